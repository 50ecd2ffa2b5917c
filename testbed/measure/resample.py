"""The bootstrap of the median of samples in the order they were taken, with numpy. Pure.

Neighbours in time are alike: drawn one by one they would make any interval too narrow. Drawn are blocks of
neighbours instead (moving block bootstrap: Künsch (1989)), as long as the samples themselves ask for.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from testbed.measure.bootstrap import expanded_tail
from testbed.quantiles import rank

Values = np.ndarray[Any, Any]
_FEWEST: Final = 16
"""Values below which nothing can be told of how alike neighbours are."""
LEAST_BLOCKS: Final = 20
"""Blocks below which intervals hold the median clearly less often than they say, widened as they are."""
_AT_ONCE: Final = 2_000_000
_MOST: Final = 20_000_000
"""Values that are drawn together, and in all rounds."""


def block_length(values: Values) -> int:
    """How many neighbours to draw together for the median: Politis and White (2004) with the correction of
    Patton, Politis and White (2009), on whether each value is above the median, which is what the median's
    own variance depends on. Where many are the median (most were lost, say), on whether each is at least it,
    if that divides them more evenly."""
    size = len(values)
    if size < _FEWEST:
        return 1
    middle = np.partition(values, rank(0.5, size))[rank(0.5, size)]
    above = min((values > middle, values >= middle), key=lambda side: abs(side.mean() - 0.5)).astype(float)
    if above.min() == above.max():
        return 1
    covariance = _autocovariance(above - above.mean())
    quiet = max(5, math.ceil(math.sqrt(math.log10(size))))
    correlation = np.abs(covariance / covariance[0]) < 2 * math.sqrt(math.log10(size) / size)
    most = math.ceil(math.sqrt(size)) + quiet
    # The first lag that is followed by nothing but chance; twice that far the correlation is looked at.
    last = next((lag for lag in range(most) if correlation[lag + 1 : lag + 1 + quiet].all()), most)
    lags = np.arange(1, min(max(1, 2 * last), most) + 1)
    flat_top = np.minimum(1.0, 2 * (1 - lags / (lags[-1] + 1)))
    spread = covariance[0] + 2 * float((flat_top * covariance[lags]).sum())
    slope = 2 * float((flat_top * lags * covariance[lags]).sum())
    longest = math.ceil(min(3 * math.sqrt(size), size / 3))
    if spread <= 0:
        return longest
    best = (2 * slope**2 / (4 / 3 * spread**2)) ** (1 / 3) * size ** (1 / 3)
    return min(longest, max(1, round(float(best))))


def blocks_in(values: Values) -> int:
    """How many blocks of neighbours there are: that many values that are unlike tell as much."""
    return len(values) // block_length(values)


def interval_tail(blocks: int) -> float:
    """The share to leave out at each end of the resampled medians for an interval of 95 %."""
    return expanded_tail(max(2, blocks))


def _autocovariance(values: Values) -> Values:
    """By lag, from 0 on (through the spectrum)."""
    size = len(values)
    spectrum = np.fft.rfft(values, 2 * size)
    found: Values = np.fft.irfft(spectrum * spectrum.conj(), 2 * size)[:size] / size
    return found


def resampled_medians(values: Values, rounds: int, random: np.random.Generator) -> Values:
    """The medians of so many resamples, or of fewer, but 100, where the values are very many."""
    size, place = len(values), rank(0.5, len(values))
    rounds = max(100, min(rounds, _MOST // size))
    length, at_once = block_length(values), max(1, _AT_ONCE // size)
    medians = [
        np.partition(values[_blocks(size, length, min(at_once, rounds - begun), random)], place)[:, place]
        for begun in range(0, rounds, at_once)
    ]
    found: Values = np.concatenate(medians)
    return found


def _blocks(size: int, length: int, rounds: int, random: np.random.Generator) -> Values:
    """Indices of resamples, a row each, made of blocks of neighbours."""
    starts = random.integers(0, size - length + 1, (rounds, math.ceil(size / length)))
    indices: Values = (starts[..., None] + np.arange(length)).reshape(rounds, -1)[:, :size]
    return indices
