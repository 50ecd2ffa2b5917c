"""Do cells that run at once disturb each other? Measured: one cell alone, then several at once, then alone
again.

What two runs alone differ by is chance and the machine's mood; cells disturb each other where together they
are slower than the tolerance allows, and than that difference explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    import pandas as pd

KEYS: Final = ["variant", "step", "kind", "protocol", "path"]
LEAST: Final = 20
"""Samples a figure needs to be compared."""


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, for ``workers`` cells at once on a machine. slower: the largest ratio of medians,
    together to alone; apart: that of the two runs alone, for the same figure; figure: which; tolerance: a
    share.
    """

    machine: str
    code: str
    workers: int
    tolerance: float
    figure: str = ""
    slower: float = 1.0
    apart: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there was a figure to tell by."""
        return bool(self.figure)

    @property
    def disturbed(self) -> bool:
        """Whether cells disturb each other."""
        return self.slower > 1 + self.tolerance and self.slower > self.apart

    def told(self) -> str:
        """It in words."""
        if not self.known:
            return f"no figure has {LEAST} samples: not known whether {self.workers} cells disturb each other"
        change = f"{self.figure}: median {self.slower - 1:+.1%} with {self.workers} cells at once"
        return f"{change} (two runs alone: {self.apart - 1:.1%} apart; allowed: {self.tolerance:.0%})"


def measure(
    run: Callable[[int], Sequence[pd.DataFrame]], workers: int, tolerance: float, machine: str, code: str
) -> Disturbance:
    """Run one cell alone, ``workers`` at once, one alone. run: how many at once → the samples of each."""
    before = run(1)
    together = run(workers)
    after = run(1)
    figure, slower, apart = compare(before[0], together, after[0])
    return Disturbance(
        machine=machine,
        code=code,
        workers=workers,
        tolerance=tolerance,
        figure=figure,
        slower=slower,
        apart=apart,
    )


def compare(
    before: pd.DataFrame, together: Sequence[pd.DataFrame], after: pd.DataFrame
) -> tuple[str, float, float]:
    """The figure that suffers most beyond what the runs alone differ by: name, ratio together, ratio alone.

    "" where no figure has enough samples.
    """
    import pandas as pd

    alone = [_medians(frame) for frame in (before, after)]
    crowd = _medians(pd.concat(together))
    worst, found = 0.0, ("", 1.0, 1.0)
    for key in crowd.index.intersection(alone[0].index).intersection(alone[1].index):
        first, second = (float(medians[key]) for medians in alone)
        apart = max(first, second) / min(first, second)
        slower = float(crowd[key]) / ((first * second) ** 0.5)
        if slower / apart > worst:
            worst, found = slower / apart, (_named(key), slower, apart)
    return found


def _medians(samples: pd.DataFrame) -> pd.Series[float]:
    timed = samples[samples["seconds"] > 0]
    grouped = timed.groupby(KEYS, dropna=False)["seconds"]
    medians: pd.Series[float] = grouped.median()[grouped.size() >= LEAST]
    return medians


def _named(key: tuple[str, ...]) -> str:
    variant, step, _, protocol, path = key
    return ", ".join(part for part in (variant, step, protocol, path) if part)
