"""The loop that probes are sent by: on schedule, come what may; or each when an earlier one has ended.

One thread. Close to a moment at which something is due it looks for answers all the time instead of
sleeping; a probe that is late is sent at once, and how late it was is kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from testbed.measure.book import PENDING, Book
from testbed.measure.messages import Outcome, ProbeFlow
from testbed.measure.probes import Kind, Line
from testbed.measure.sockets import Namespaces
from testbed.measure.verdicts import NO_ANSWER
from testbed.measure.watch import CLOSE, Watch

_PR_SET_TIMERSLACK: Final = 29
_BETWEEN: Final = 12_000
"""ns: with less than this left until the next one is due, nothing else is begun."""
_LOOK_EVERY: Final = 64
"""Sends in a row, all late, after which answers are looked for all the same."""
_EXPIRE_EVERY: Final = 256
"""Sends after which what was not answered is let go of, however little time there is: sockets are no endless
thing."""
HIGHEST: Final = -20
"""The nice value of a prober while it sends."""
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def undisturbed(may: bool) -> Iterator[bool]:
    """No garbage collection and no timer slack for the time being, and the highest priority where that is
    allowed.

    Nice -20, which only real root may have, and only where another CPU is left for those who answer. No
    real-time class: from one that does not sleep the kernel takes 50 ms of each second. may: whether it may
    have it; of several at once only one, or nobody would be left to answer. Yields whether it is so.
    """
    gc.collect()
    gc.disable()
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    favoured = may and _favour()
    try:
        yield favoured
    finally:
        if favoured:
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        _libc.prctl(_PR_SET_TIMERSLACK, 0, 0, 0, 0)  # 0: back to the default
        gc.enable()


def _favour() -> bool:
    if len(os.sched_getaffinity(0)) < 2:
        return False
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST)
    except PermissionError:
        return False
    return True


def open_loop(
    kind: Kind,
    flows: Sequence[ProbeFlow],
    namespaces: Namespaces,
    moments: Sequence[int],
    *,
    timeout: float,
    favoured: bool = False,
) -> Book:
    """Send probe k at ``moments[k]`` (ns after the first), the flows in turn. timeout: seconds. Raises
    OSError."""
    book = Book(list(moments), [number % len(flows) for number in range(len(moments))])
    with _lines(kind, flows, namespaces, book) as (lines, watch), undisturbed(favoured) as book.favoured:
        _send_on_schedule(book, lines, watch, timeout)
    return book


def closed_loop(
    kind: Kind,
    flows: Sequence[ProbeFlow],
    namespaces: Namespaces,
    count: int,
    *,
    at_once: int,
    gap: float,
    timeout: float,
    seconds: float = 0.0,
    favoured: bool = False,
) -> Book:
    """Send ``count`` probes, ``at_once`` at a time; each next one ``gap`` seconds after one has ended.

    seconds: after which no more are begun, 0 for none; the book then has fewer.
    """
    book = Book([0] * count, [number % len(flows) for number in range(count)])
    with _lines(kind, flows, namespaces, book) as (lines, watch), undisturbed(favoured) as book.favoured:
        _send_when_answered(book, lines, watch, at_once, gap, timeout, seconds)
    return book


@contextlib.contextmanager
def _lines(
    kind: Kind, flows: Sequence[ProbeFlow], namespaces: Namespaces, book: Book
) -> Iterator[tuple[list[Line], Watch]]:
    watch = Watch()
    lines: list[Line] = []
    try:
        for flow in flows:
            namespaces.enter(flow.source)
            lines.append(kind.line(flow, namespaces, watch, book))
        yield lines, watch
    finally:
        for line in lines:
            line.close()
        watch.close()


def _send_on_schedule(book: Book, lines: list[Line], watch: Watch, timeout: float) -> None:
    clock, due, flow, begun = time.monotonic_ns, book.due, book.flow, book.begun
    start, count, late = clock() + 2_000_000, len(due), 0
    for number in range(count):
        due[number] += start
    expiry, before = _Expiry(book, lines, timeout), start
    for number in range(count):
        moment = due[number]
        while (left := moment - clock()) > 0:
            late = 0
            if left > _BETWEEN and not watch.look(1):
                if left > 1_000_000:
                    expiry.run(number, clock())
                if left > 200_000:
                    watch.wait(left / 1e9 - CLOSE)
        late += 1
        if late % _LOOK_EVERY == 0:
            watch.look()
        if number % _EXPIRE_EVERY == 0:
            expiry.run(number, before)
            before = clock()
        begun[number] = clock()
        lines[flow[number]].send(number)
    _listen(expiry, watch, count)


def _send_when_answered(
    book: Book,
    lines: list[Line],
    watch: Watch,
    at_once: int,
    gap: float,
    timeout: float,
    seconds: float,
) -> None:
    clock = time.monotonic_ns
    pause, count, sent = round(gap * 1e9), len(book.due), 0
    slots = max(1, min(at_once, count))
    free = deque([clock()] * slots)
    end = clock() + round(seconds * 1e9) if seconds else 0
    expiry = _Expiry(book, lines, timeout)
    while sent < count and not (end and clock() >= end):
        now = clock()
        ended = book.settled - (sent - (slots - len(free)))
        free.extend([now + pause] * max(0, ended))
        if free and free[0] <= now:
            book.due[sent] = free.popleft()
            book.begun[sent] = clock()
            lines[book.flow[sent]].send(sent)
            sent += 1
        elif not watch.look():
            expiry.run(sent, now)
            left = free[0] - now if free else 1_000_000
            watch.wait(min(left / 1e9, 0.001))
    book.cut(sent)
    _listen(expiry, watch, sent)


def _listen(expiry: _Expiry, watch: Watch, count: int) -> None:
    """Until every probe has its outcome; then what came too often, or its transmit stamp, may still come."""
    while True:
        now = time.monotonic_ns()
        expiry.run(count, now)
        if expiry.oldest >= count:
            break
        if not watch.look():
            watch.wait(0.005)
    end = time.monotonic_ns() + 50_000_000
    while time.monotonic_ns() < end:
        if not watch.look():
            watch.wait(0.005)


class _Expiry:
    """Ends probes that were not answered in time; the oldest first, as all wait equally long."""

    def __init__(self, book: Book, lines: list[Line], timeout: float) -> None:
        self._book, self._lines, self._timeout = book, lines, round(timeout * 1e9)
        self.oldest = 0

    def run(self, sent: int, now: int) -> None:
        """End what is due among the first ``sent`` probes. now: a time before the last look at the
        sockets."""
        book = self._book
        while self.oldest < sent:
            number = self.oldest
            if book.outcome[number] == PENDING:
                if book.begun[number] + self._timeout > now:
                    return
                self._lines[book.flow[number]].expire(number)
                book.failed(number, Outcome("timeout", NO_ANSWER))
            self.oldest += 1
