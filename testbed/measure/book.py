"""What becomes of each probe of a request, in columns: a list per column, an entry per probe."""

from __future__ import annotations

import time
from typing import Final

from testbed.measure.messages import Outcome

PENDING: Final = -1
Words = tuple[str, str, str, str, str]
"""Verdict, reason, reporter, ICMP type/code, answer."""


class Book:
    """Times are ns of CLOCK_MONOTONIC, 0 where there is none; the kernel's stamps, which are of
    CLOCK_REALTIME, are converted by the distance of the clocks when the book was opened.

    begun: just before the call that sent; sent: the kernel's transmit stamp; received: the kernel's receive
    stamp, of the first answer; took: ns, where the kernel itself measured; copies: answers; order: the
    how-manieth of its flow's that arrived, from 1. settled: how many have an outcome. favoured: whether the
    prober had the highest priority."""

    def __init__(self, due: list[int], flow: list[int]) -> None:
        count = len(due)
        self.due, self.flow = due, flow
        self.begun = [0] * count
        self.sent = [0] * count
        self.received = [0] * count
        self.took = [0] * count
        self.copies = [0] * count
        self.order = [0] * count
        self.outcome = [PENDING] * count
        self.words: dict[Words, int] = {}
        self.settled = 0
        self.favoured = False
        self.offset = time.time_ns() - time.monotonic_ns()

    def answered(self, number: int, received: int, answer: str = "") -> None:
        """An answer arrived. received: ns of CLOCK_REALTIME as the kernel stamps it."""
        self.copies[number] += 1
        if self.outcome[number] == PENDING:
            self.received[number] = received - self.offset
            self._settle(number, ("ok", "", "", "", answer))

    def failed(self, number: int, outcome: Outcome, answer: str = "") -> None:
        """It failed."""
        if self.outcome[number] == PENDING:
            words = (outcome.verdict, outcome.reason, outcome.reporter, outcome.code, answer)
            self._settle(number, words)

    def transmitted(self, number: int, stamp: int) -> None:
        """The kernel sent it. stamp: ns of CLOCK_REALTIME."""
        self.sent[number] = stamp - self.offset

    def _settle(self, number: int, words: Words) -> None:
        self.outcome[number] = self.words.setdefault(words, len(self.words))
        self.settled += 1

    def cut(self, count: int) -> None:
        """Keep the first ``count`` probes: the others were never begun."""
        for column in self.columns().values():
            del column[count:]

    def columns(self) -> dict[str, list[int]]:
        """Every column by name."""
        return {
            "due": self.due,
            "flow": self.flow,
            "begun": self.begun,
            "sent": self.sent,
            "received": self.received,
            "took": self.took,
            "copies": self.copies,
            "order": self.order,
            "outcome": self.outcome,
        }
