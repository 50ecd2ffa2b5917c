"""Steps by the clock. Those that stand one after the other and have ``at``, ``every`` or ``background`` make
a timeline.

Its clock starts when the first of them is reached; each runs in a thread of its own, so that probes go on
while other steps happen; the step after the last of them waits for all. Whatever happens, what lasts is
ended."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from testbed.errors import TestbedError
from testbed.measure.machine import Machine
from testbed.scenario.model import Context, Step

log = logging.getLogger(__name__)


class Timed(Step, frozen=True, kw_only=True):
    """A step on the timeline. at: seconds of its clock; every, until: again so often, up to that second;
    lasts: seconds after which ``undo`` ends it, 0: not."""

    kind: str
    step: Step
    at: float = 0.0
    every: float = 0.0
    until: float = 0.0
    lasts: float = 0.0

    def moments(self) -> list[float]:
        """When it begins."""
        if not self.every:
            return [self.at]
        return [
            self.at + number * self.every
            for number in range(int((self.until - self.at) / self.every + 1e-9) + 1)
        ]

    def run(self, context: Context) -> None:
        """A timeline of one."""
        run_timeline([self], context)

    def needs(self) -> None:
        """What the step needs."""
        self.step.needs()

    def plan(self, context: Context) -> dict[str, Any]:
        """When, and what the step plans."""
        when = {"at": self.moments(), "lasts": self.lasts}
        return {**when, self.kind: self.step.plan(context)}


def run_steps(listed: Sequence[tuple[str, Step]], context: Context, *, report: bool = False) -> None:
    """Steps in order; neighbours on a timeline together. Raises TestbedError where one fails."""
    numbered = list(enumerate(listed, 1))
    prefix = f"{context.place}." if context.place else ""
    for timed, group in itertools.groupby(numbered, key=lambda entry: isinstance(entry[1][1], Timed)):
        members = list(group)
        if timed:
            entries = [
                (one, context.at_place(f"{prefix}{number}"))
                for number, (_, one) in members
                if isinstance(one, Timed)
            ]
            with told(context, members, len(listed), report):
                _Running(entries).run()
            continue
        for number, (kind, one) in members:
            with told(context, [(number, (kind, one))], len(listed), report):
                placed = context.at_place(f"{prefix}{number}")
                one.prepare(placed)
                one.run(placed)


def run_timeline(entries: Sequence[Timed], context: Context) -> None:
    """Several steps by one clock, from now on. Raises TestbedError, that of the first that failed."""
    _Running([(one, context) for one in entries]).run()


@contextlib.contextmanager
def told(
    context: Context, members: Sequence[tuple[int, tuple[str, Step]]], total: int, report: bool
) -> Iterator[None]:
    """Events around steps: that they begin, that they are done, and what the machine did meanwhile."""
    machine = Machine()
    for number, (kind, one) in members:
        words = f": {_name(one)}" if _name(one) else ""
        if report:
            context.report(
                f"[{number}/{total}] {kind}{words}" + (f" at {one.at:g} s" if isinstance(one, Timed) else "")
            )
        context.note("step", number=number, kind=kind, name=_name(one))
    begun = time.monotonic()
    yield
    for number, (kind, one) in members:
        context.note("step done", number=number, kind=kind, seconds=time.monotonic() - begun)
        context.note("machine", step=_name(one) or kind, **machine.since())


def _name(one: Step) -> str:
    return one.step.name if isinstance(one, Timed) else one.name


@dataclass(order=True)
class _Due:
    """Something to do at a moment; what ends comes before what begins then."""

    moment: float
    order: tuple[int, int]
    work: Callable[[], None] = field(compare=False)


class _Running:
    """A timeline under way."""

    def __init__(self, entries: Sequence[tuple[Timed, Context]]) -> None:
        self._entries = entries
        self._failed = threading.Event()
        self._undone: list[tuple[Timed, Context, Future[None]]] = []
        self._futures: list[Future[None]] = []

    def run(self) -> None:
        for timed, context in self._entries:
            timed.step.prepare(context)
        due: list[_Due] = []
        total = sum(len(timed.moments()) + 1 for timed, _ in self._entries)
        with ThreadPoolExecutor(max(1, min(64, 2 * total))) as pool:
            for place, (timed, context) in enumerate(self._entries):
                for moment in timed.moments():
                    self._add(due, pool, moment, place, timed, context)
            begun = time.monotonic()
            try:
                while due and not self._failed.is_set():
                    left = begun + due[0].moment - time.monotonic()
                    if left <= 0:
                        heapq.heappop(due).work()
                    else:
                        self._failed.wait(left)
            finally:
                self._end_all()
        self._raise()

    def _add(
        self,
        due: list[_Due],
        pool: ThreadPoolExecutor,
        moment: float,
        place: int,
        timed: Timed,
        context: Context,
    ) -> None:
        step = timed.step

        def begin() -> None:
            future = pool.submit(step.run, context)
            future.add_done_callback(self._look)
            self._futures.append(future)
            if timed.lasts:
                entry = (timed, context, future)
                self._undone.append(entry)
                when = moment + timed.lasts
                heapq.heappush(due, _Due(when, (0, place), lambda: end(entry)))

        def end(entry: tuple[Timed, Context, Future[None]]) -> None:
            self._undone.remove(entry)
            future = pool.submit(_end, entry)
            future.add_done_callback(self._look)
            self._futures.append(future)

        heapq.heappush(due, _Due(moment, (1, place), begin))

    def _look(self, future: Future[None]) -> None:
        if future.exception() is not None:
            self._failed.set()

    def _end_all(self) -> None:
        """End what still lasts, the latest first."""
        for entry in reversed(self._undone):
            try:
                _end(entry)
            except TestbedError as error:
                log.error("%s could not be ended: %s", entry[0].kind, error)

    def _raise(self) -> None:
        errors = [error for future in self._futures if (error := future.exception()) is not None]
        for error in errors[1:]:
            log.error("another step failed, too: %s", error)
        if errors:
            raise errors[0]


def _end(entry: tuple[Timed, Context, Future[None]]) -> None:
    timed, context, future = entry
    if future.exception() is None:  # waits until it has begun
        timed.step.undo(context)
