"""Time as the control plane sees it: the daemon's loop, or a clock that a test turns by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What controllers ask of time."""

    def now(self) -> float:
        """The wall clock: seconds since 1970."""
        ...

    def later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once, that much later; returns what cancels it."""
        ...


def timestamp(seconds: float) -> str:
    """A time as the API prints it: ``2026-01-31T12:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class LoopClock:
    """The running asyncio loop's."""

    def now(self) -> float:
        """The wall clock."""
        return time.time()

    def later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""
        return asyncio.get_running_loop().call_later(seconds, callback).cancel


class ManualClock:
    """Stands still until ``advance`` moves it; also the clock of decisions made without a cluster."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()

    def now(self) -> float:
        """Where it stands."""
        return self._now

    def later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""
        number = next(self._numbers)
        heapq.heappush(self._timers, (self._now + seconds, number, callback))
        return lambda: self._cancelled.add(number)

    def advance(self, seconds: float) -> None:
        """Move on, calling what becomes due in its order."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            at, number, callback = heapq.heappop(self._timers)
            self._now = at
            if number not in self._cancelled:
                callback()
        self._now = until


class WakingClock:
    """Another clock that, after each callback, wakes who is to act upon it."""

    def __init__(self, clock: Clock, wake: Callable[[], object]) -> None:
        self._clock, self._wake = clock, wake

    def now(self) -> float:
        """The other clock's."""
        return self._clock.now()

    def later(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""

        def act() -> None:
            callback()
            self._wake()

        return self._clock.later(seconds, act)
