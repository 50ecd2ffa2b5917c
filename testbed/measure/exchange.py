"""One attempt at many flows at once, one socket per flow: the loop that TCP and UDP probes share.

One thread, one epoll. A flow is started in its source's netns and watched from outside of it; it ends by
an answer, an error or its deadline. At most ``window`` flows are open at a time.
"""

from __future__ import annotations

import collections
import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from testbed.measure.messages import Flow, Outcome
from testbed.measure.sockets import Namespaces, out_of_descriptors


class Exchange(Protocol):
    """What one protocol does with one flow. events: the epoll events that mean progress."""

    events: int
    repeats: int

    def open(self, flow: Flow) -> socket.socket | Outcome | None:
        """Start in the current netns: a socket to watch, or the outcome at once; None: try another time."""
        ...

    def read(self, sock: socket.socket) -> Outcome | None:
        """The outcome the socket now tells; None: nothing yet."""
        ...

    def repeat(self, sock: socket.socket, number: int) -> None:
        """Send again, ``number`` from 1 to ``repeats``, at equal distances within the deadline."""
        ...


class _Open:
    """A flow that is under way."""

    __slots__ = ("index", "sock", "started")

    def __init__(self, index: int, sock: socket.socket, started: float) -> None:
        self.index, self.sock, self.started = index, sock, started


class Attempt:
    """One attempt at each of ``flows``; ``run`` returns an outcome per flow, None where none answered."""

    def __init__(self, exchange: Exchange, flows: Sequence[Flow], timeout: float, window: int) -> None:
        self._exchange, self._flows = exchange, flows
        self._timeout, self._window = timeout, window
        self._outcomes: list[Outcome | None] = [None] * len(flows)
        self._open: dict[int, _Open] = {}
        # One queue per repetition and one for the deadline; all flows wait equally long, so each is FIFO.
        self._queues: list[collections.deque[_Open]] = [
            collections.deque() for _ in range(exchange.repeats + 1)
        ]
        self._epoll = select.epoll()

    def run(self, namespaces: Namespaces) -> list[Outcome | None]:
        """Carry it out. Raises OSError where a netns cannot be entered or no socket can be had."""
        try:
            source = ""
            for index, flow in enumerate(self._flows):
                if flow.source != source:
                    source = flow.source
                    namespaces.enter(source)
                    self._progress(0.0)
                while len(self._open) >= self._window:
                    self._progress(self._next_due())
                self._start(index, flow)
            while self._open:
                self._progress(self._next_due())
        finally:
            for entry in self._open.values():
                entry.sock.close()
            self._epoll.close()
        return self._outcomes

    def _start(self, index: int, flow: Flow) -> None:
        started = time.monotonic()
        try:
            opened = self._exchange.open(flow)
        except OSError as error:
            if not (out_of_descriptors(error) and self._open):
                raise
            self._window = len(self._open)  # what this process may really hold
            while len(self._open) >= self._window:
                self._progress(self._next_due())
            self._start(index, flow)
            return
        if not isinstance(opened, socket.socket):
            self._outcomes[index] = opened
            return
        entry = _Open(index, opened, started)
        self._open[opened.fileno()] = entry
        self._queues[0].append(entry)
        self._epoll.register(opened.fileno(), self._exchange.events)

    def _next_due(self) -> float:
        """Seconds until the next repetition or deadline, at least 0."""
        step = self._timeout / len(self._queues)
        due = [queue[0].started + step * (n + 1) for n, queue in enumerate(self._queues) if queue]
        return max(0.0, min(due, default=0.0) - time.monotonic())

    def _progress(self, wait: float) -> None:
        # The clock is read before the events: what had answered by then is never taken for a timeout,
        # however long this process was kept from running.
        now = time.monotonic()
        for fd, _ in self._epoll.poll(wait, self._window):
            entry = self._open[fd]
            outcome = self._exchange.read(entry.sock)
            if outcome is not None:
                self._close(entry, outcome)
        self._fall_due(now)

    def _fall_due(self, now: float) -> None:
        step = self._timeout / len(self._queues)
        for number, queue in enumerate(self._queues):
            due = now - step * (number + 1)
            while queue and queue[0].started <= due:
                entry = queue.popleft()
                if entry.sock.fileno() < 0:
                    continue
                if number == self._exchange.repeats:
                    self._close(entry, None)
                else:
                    self._exchange.repeat(entry.sock, number + 1)
                    self._queues[number + 1].append(entry)

    def _close(self, entry: _Open, outcome: Outcome | None) -> None:
        self._outcomes[entry.index] = outcome
        del self._open[entry.sock.fileno()]
        entry.sock.close()  # takes it out of the epoll set too
