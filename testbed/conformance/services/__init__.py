"""Suite ``services``: what upstream checks of Services end to end, with real traffic, in any proxy mode.

Source of the list: kubernetes v1.36 ``test/e2e/network/service.go`` and ``conntrack.go``. The cases are our
own; each says in one sentence what it promises.
"""

from __future__ import annotations

from testbed.conformance import WrittenSuite, suites

services = WrittenSuite(__name__)
suites.register("services")(services)
