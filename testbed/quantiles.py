"""What a median, a p99 and any other quantile is, everywhere: one definition. Pure, without numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def rank(share: float, count: int) -> int:
    """The place, from 0, of a quantile among ``count`` values in order: the first that at least this share
    of all does not exceed (nearest rank; Hyndman and Fan (1996), definition 1). Never between two values, so
    that it is one that was measured, and infinity where it falls on what was never answered."""
    return min(count - 1, max(0, math.ceil(share * count - 1e-9) - 1))


def quantile(ordered: Sequence[float] | Any, share: float) -> float:
    """A quantile of values in ascending order, a list or an array; NaN without any."""
    return float(ordered[rank(share, len(ordered))]) if len(ordered) else math.nan
