"""Suite ``dns``: cluster DNS by the DNS specification 1.1.0 and as CoreDNS answers, asked with dig in a pod.

Each question goes to every address of Service kube-dns, over UDP and TCP. Source of the list: kubernetes/dns
docs/specification.md, coredns plugin/kubernetes, and kubernetes v1.36 ``test/e2e/network/dns.go``.
"""

from __future__ import annotations

from testbed.conformance import WrittenSuite, suites

dns = WrittenSuite(__name__)
suites.register("dns")(dns)
