"""The bootstrap of few values, without numpy. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final

ROUNDS: Final = 2000

_T975: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Student's t at 97.5 % for 1 to 20 degrees of freedom."""


def expanded_tail(units: int) -> float:
    """The share to leave out at each end of the bootstrap distribution of so few units, 2 or more, for an
    interval of 95 %: Hesterberg (2015), expanded percentiles. Plain percentiles would be too narrow."""
    freedom = units - 1
    student = _T975[freedom - 1] if freedom <= len(_T975) else 1.96 + 2.4 / freedom
    return 0.5 * math.erfc(math.sqrt(units / freedom) * student / math.sqrt(2))


def interval_of_means(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ``values``, 2 or more, widened for their small number; the
    same for the same values and seed."""
    draw = random.Random(seed)  # noqa: S311 - a drawing to repeat
    count = len(values)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(ROUNDS))
    left_out = int(expanded_tail(count) * ROUNDS)
    return means[left_out], means[-1 - left_out]
