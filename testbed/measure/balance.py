"""Whether connections are spread evenly: Pearson's chi-square test against equal shares. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection


def evenness(counts: Collection[int]) -> float:
    """The probability of counts at least as uneven as these, where each was as likely to grow as any other.

    counts: how often each was chosen, those never chosen included. One alone is even: 1.0.
    """
    expected = sum(counts) / len(counts) if counts else 0.0
    if len(counts) < 2 or not expected:
        return 1.0
    statistic = sum((count - expected) ** 2 for count in counts) / expected
    return chi_square_tail(statistic, len(counts) - 1)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X > statistic) of a chi-square distribution. freedom: degrees of freedom, a whole number from 1 on.

    Source: Abramowitz and Stegun 26.4.4 (odd) and 26.4.5 (even degrees of freedom), finite sums.
    """
    half = statistic / 2
    if freedom % 2 == 0:
        term = total = math.exp(-half)
        for number in range(1, freedom // 2):
            term *= half / number
            total += term
        return total
    total = math.erfc(math.sqrt(half))
    term = math.sqrt(2 * statistic / math.pi) * math.exp(-half)
    for number in range(1, freedom, 2):
        total += term
        term *= statistic / (number + 2)
    return total
