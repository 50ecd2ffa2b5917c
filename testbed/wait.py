"""Waiting for a condition with a deadline; how long it took is a result worth recording."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from testbed.errors import NotConverged

PATIENCE = float(os.environ.get("TESTBED_PATIENCE", "1"))
"""Every deadline is stretched by this factor. For machines that are slow throughout, as one in emulation."""


def patient(deadline: float) -> float:
    """A deadline in seconds, as it is meant on this machine."""
    return deadline * PATIENCE


def wait_until(
    predicate: Callable[[], bool],
    deadline: float,
    what: str,
    *,
    interval: float = 0.01,
    detail: Callable[[], str] = str,
) -> float:
    """Poll ``predicate`` until it is true and return the seconds it took.

    deadline: seconds from now, stretched by PATIENCE; interval: seconds between polls; detail: what to say
    of the state if it never comes true. Raises NotConverged.
    """
    start = time.monotonic()
    while not predicate():
        waited = time.monotonic() - start
        if waited > patient(deadline):
            raise NotConverged(what, waited, detail())
        time.sleep(interval)
    return time.monotonic() - start
