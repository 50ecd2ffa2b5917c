"""Do cells that run at once disturb each other? Measured: one cell alone, then several at once, then alone
again.

Each figure of each cell at once is compared with the same figure of the cell alone. What two runs alone
differ by is chance and the machine's mood. Of many figures the worst is always bad, so it does not decide;
the upper quartile does (``cells.Disturbance``), and all are kept and shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from testbed.cells import NEVER, Disturbance, Slowdown
from testbed.quantiles import quantile
from testbed.records import FIGURE

if TYPE_CHECKING:
    import pandas as pd

LEAST: Final = 20
"""Samples a figure needs in a cell to be compared."""
DECIDING: Final = 0.75
"""The quantile that decides: a quarter of the figures of cells has to be slower."""


def measure(
    run: Callable[[int], Sequence[pd.DataFrame]], workers: int, tolerance: float, machine: str, code: str
) -> Disturbance:
    """Run one cell alone, ``workers`` at once, one alone. run: how many at once → the samples of each."""
    before = run(1)
    together = run(workers)
    after = run(1)
    figures = compare(before[0], together, after[0])
    return Disturbance(
        machine=machine,
        code=code,
        workers=workers,
        tolerance=tolerance,
        figures=figures,
        slower=_upper(ratio for one in figures for ratio in one.together),
        apart=_upper(one.apart for one in figures),
    )


def compare(
    before: pd.DataFrame, together: Sequence[pd.DataFrame], after: pd.DataFrame
) -> tuple[Slowdown, ...]:
    """What became of each figure that has enough samples in both runs alone."""
    first, second = medians(before), medians(after)
    crowd = [medians(frame) for frame in together]
    found = []
    for key in first:
        if key in second:
            alone = math.sqrt(first[key] * second[key])
            apart = max(first[key], second[key]) / min(first[key], second[key])
            ratios = tuple(cell[key] / alone if key in cell else NEVER for cell in crowd)
            found.append(Slowdown(figure=_named(key), together=ratios, apart=apart))
    return tuple(found)


def medians(samples: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """The median of each figure of a cell that has LEAST samples or more: seconds, of what was answered."""
    from testbed.measure.frames import figures_of, times_of

    groups = figures_of(samples).groupby(list(FIGURE), sort=False, dropna=False)
    times = {tuple(map(str, key)): sorted(times_of(rows)) for key, rows in groups}
    return {key: quantile(values, 0.5) for key, values in times.items() if len(values) >= LEAST}


def _upper(ratios: Iterable[float]) -> float:
    found = sorted(ratios)
    return quantile(found, DECIDING) if found else 1.0


def _named(key: tuple[str, ...]) -> str:
    variant, step, _, protocol, path = key
    return ", ".join(part for part in (variant, step, protocol, path) if part)
