"""Effect sizes between two sides of a comparison, with bootstrap intervals and a plain verdict. Pure.

A figure is what one step measured over one protocol and way. Its effect is the ratio of medians. Where each
side has three units or more (runs, or cells of a campaign), the units are resampled, since what runs differ
by is what counts; else the samples of the one run are, in blocks, since neighbours in time are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from testbed.measure.bootstrap import expanded_tail
from testbed.measure.resample import LEAST_BLOCKS, blocks_in, interval_tail, resampled_medians
from testbed.quantiles import quantile

Values = np.ndarray[Any, np.dtype[np.float64]]
Verdict = Literal["better", "worse", "no difference shown"]
BETTER, WORSE, NONE = Verdict.__args__  # type: ignore[attr-defined]

ROUNDS: Final = 1000
LEAST_UNITS: Final = 3
"""Units a side needs for its units to be resampled."""

LEAST_SAMPLES: Final = 10
"""Samples a side needs for its times to be compared."""

NEGLIGIBLE: Final = 0.147
"""|Cliff's delta| below which an effect is called negligible: Romano, Kromrey, Coraggio, Skowronek (2006)."""


def median(times: Values) -> float:
    """The median of times in any order; NaN without any."""
    return quantile(np.sort(times), 0.5)


@dataclass(frozen=True)
class Measured:
    """One side of a figure. times: seconds, an array per unit, of what was answered; ok, probes: counts over
    all units, by which what failed is judged."""

    times: Sequence[Values]
    ok: int
    probes: int

    @property
    def pooled(self) -> Values:
        """The times of all units."""
        return np.concatenate(list(self.times)) if self.times else np.array([])

    @property
    def median(self) -> float:
        """Of the units' medians where they are resampled, else of all times; NaN without any."""
        if len(self.times) >= LEAST_UNITS:
            return float(np.exp(np.mean([np.log(median(unit)) for unit in self.times])))
        return median(self.pooled)


@dataclass(frozen=True)
class Effect:
    """What a figure changed by from ``before`` to ``after``.

    ratio: of medians, after to before, with its 95 % interval (low, high); NaN where times cannot be
    compared. delta: Cliff's delta, P(after is slower) - P(after is faster), -1 to 1. share: difference of
    the shares that succeeded, with its 95 % interval. units: whether units were resampled, not samples. why:
    what the verdict rests on, in words.
    """

    before: Measured
    after: Measured
    ratio: float
    low: float
    high: float
    delta: float
    share: tuple[float, float, float]
    units: bool
    verdict: Verdict
    why: str


def effect(before: Measured, after: Measured, *, floor: float = 0.0, seed: int = 0) -> Effect:
    """The effect of one figure. floor: seconds that a change of the machine's noise floor may explain."""
    share = newcombe(before.ok, before.probes, after.ok, after.probes)
    first, second = before.pooled, after.pooled
    if min(len(first), len(second)) < LEAST_SAMPLES or min(first.min(), second.min()) <= 0:
        verdict, why = _of_shares(share)
        return Effect(
            before,
            after,
            math.nan,
            math.nan,
            math.nan,
            math.nan,
            share,
            False,
            verdict,
            why or "too few times",
        )
    units = min(len(before.times), len(after.times)) >= LEAST_UNITS
    random = np.random.default_rng(seed)
    blocks = 0 if units else min(blocks_in(first), blocks_in(second))
    low, high = _by_units(before, after, random) if units else _by_samples(first, second, blocks, random)
    ratio = after.median / before.median
    delta = cliffs_delta(first, second)
    verdict, why = _of_shares(share)
    if verdict != WORSE:
        timed, timed_why = _of_times(before.median, low, high, delta, floor, blocks)
        if timed != NONE or not why:
            verdict, why = timed, timed_why
    return Effect(before, after, ratio, low, high, delta, share, units, verdict, why)


def _of_shares(share: tuple[float, float, float]) -> tuple[Verdict, str]:
    change, low, high = share
    if low > 0:
        return BETTER, f"{change:+.1%} succeed"
    if high < 0:
        return WORSE, f"{change:+.1%} succeed"
    return NONE, ""


def _of_times(
    median: float, low: float, high: float, delta: float, floor: float, blocks: int
) -> tuple[Verdict, str]:
    """blocks: of neighbours that the interval rests on; 0 where units were resampled."""
    if low <= 1 <= high:
        return NONE, "the interval holds 1"
    if abs(delta) < NEGLIGIBLE:
        return NONE, f"the distributions overlap (Cliff's delta {delta:+.2f})"
    if min(abs(low - 1), abs(high - 1)) * median <= floor:
        return NONE, "the machine's noise floor changed as much"
    few = f", on {blocks} blocks of samples only" if blocks and blocks < LEAST_BLOCKS else ""
    return (BETTER, f"faster{few}") if high < 1 else (WORSE, f"slower{few}")


def _by_samples(
    before: Values, after: Values, blocks: int, random: np.random.Generator
) -> tuple[float, float]:
    """95 % interval of the ratio of medians by a moving block bootstrap, widened where blocks are few:
    ``measure.resample``."""
    sides = [resampled_medians(values, ROUNDS, random) for values in (before, after)]
    rounds = min(len(side) for side in sides)
    tail = interval_tail(blocks)
    low, high = np.quantile(sides[1][:rounds] / sides[0][:rounds], [tail, 1 - tail])
    return float(low), float(high)


def _by_units(before: Measured, after: Measured, random: np.random.Generator) -> tuple[float, float]:
    """95 % interval by resampling units, widened for their small number: Hesterberg (2015), expanded
    percentiles."""
    sides = []
    for side in (before, after):
        logs = np.log([median(unit) for unit in side.times])
        sides.append(logs[random.integers(0, len(logs), (4 * ROUNDS, len(logs)))].mean(axis=1))
    units = min(len(before.times), len(after.times))
    tail = expanded_tail(units)
    low, high = np.quantile(np.exp(sides[1] - sides[0]), [tail, 1 - tail])
    return float(low), float(high)


def cliffs_delta(first: Values, second: Values) -> float:
    """P(second > first) - P(second < first), over all pairs."""
    ordered = np.sort(first)
    below = np.searchsorted(ordered, second, side="left").sum()
    above = (len(ordered) - np.searchsorted(ordered, second, side="right")).sum()
    return float(below - above) / (len(first) * len(second))


def newcombe(ok_before: int, before: int, ok_after: int, after: int) -> tuple[float, float, float]:
    """The difference of two shares, after - before, with its 95 % interval: Newcombe (1998), method 10."""
    if not before or not after:
        return 0.0, 0.0, 0.0
    first, second = ok_before / before, ok_after / after
    low_first, high_first = _wilson(ok_before, before)
    low_second, high_second = _wilson(ok_after, after)
    change = second - first
    low = change - math.hypot(second - low_second, high_first - first)
    high = change + math.hypot(high_second - second, first - low_first)
    return change, low, high


def _wilson(ok: int, size: int, z: float = 1.96) -> tuple[float, float]:
    share = ok / size
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    wide = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return middle - wide, middle + wide


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Where two nested mappings differ: path, and both values as text."""
    flat = [dict(_flat(side)) for side in (before, after)]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    absent = "–"  # noqa: RUF001 - the sign of tables for nothing
    rows = [(key, flat[0].get(key, absent), flat[1].get(key, absent)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _flat(data: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(data, Mapping) and data:
        return [
            one for key, value in data.items() for one in _flat(value, f"{path}.{key}" if path else str(key))
        ]
    if isinstance(data, list) and data:
        return [one for place, value in enumerate(data) for one in _flat(value, f"{path}[{place}]")]
    return [(path, str(data))]
