"""How long cells take and how much memory, from what was measured before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

from testbed.cells import CellRecord
from testbed.records import EVENTS, Event

SAME, CAMPAIGN, RUNS, NOTHING = (
    "cells of the same levels",
    "other cells of this campaign",
    "earlier runs of the scenario",
    "nothing measured yet",
)


@dataclass(frozen=True)
class Estimate:
    """seconds, memory (bytes): None where nothing is known; source: what it is taken from."""

    seconds: float | None
    memory: int | None
    source: str


class Estimator:
    """Knows cells that ran, and can be told of more. runs: seconds that earlier runs of the scenario took."""

    def __init__(self, records: Iterable[CellRecord], runs: Sequence[float] = ()) -> None:
        self._by_levels: dict[tuple[tuple[str, str], ...], list[CellRecord]] = {}
        self._runs = list(runs)
        for record in records:
            self.add(record)

    def add(self, record: CellRecord) -> None:
        """One more cell that ran; without a result it says nothing."""
        if record.done:
            self._by_levels.setdefault(_key(record.levels), []).append(record)

    def of(self, levels: Mapping[str, str]) -> Estimate:
        """The estimate for a cell: medians, of memory the largest."""
        same = self._by_levels.get(_key(levels))
        every = [record for records in self._by_levels.values() for record in records]
        for records, source in ((same, SAME), (every, CAMPAIGN)):
            if records:
                return Estimate(
                    median(record.seconds for record in records),
                    max(record.memory for record in records) or None,
                    source,
                )
        if self._runs:
            return Estimate(median(self._runs), None, RUNS)
        return Estimate(None, None, NOTHING)

    def left(self, cells: Iterable[Mapping[str, str]], workers: int) -> float | None:
        """Seconds that the cells with these levels will take, ``workers`` at once; None where unknown."""
        times = [self.of(levels).seconds for levels in cells]
        known = [seconds for seconds in times if seconds is not None]
        if len(known) < len(times):
            return None
        return max(sum(known) / workers, max(known, default=0.0))


def _key(levels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(levels.items()))


def earlier_runs(root: Path, scenario: str, most: int = 20) -> list[float]:
    """Seconds that the latest runs of a scenario took from start to end, below ``root``."""
    times = []
    for path in sorted((root / scenario).glob(f"*/{EVENTS}"))[-most:]:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        if len(lines) > 1:
            first, last = (msgspec.json.decode(line, type=Event) for line in (lines[0], lines[-1]))
            times.append(last.monotonic - first.monotonic)
    return times


def spoken(seconds: float | None) -> str:
    """A length of time as people say it: ``40 s``, ``3 min``, ``2 h 10 min``."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
