"""What samples come to: loss, outages, convergence, duplicates, order, balance, lateness. Pure, without
pandas.

Samples are rows of ``records.Sample`` of one step; those of a warm-up are left out by who calls.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from testbed import quantiles
from testbed.measure.balance import evenness
from testbed.records import Sample

LATE: Final = 100e-6
"""Seconds after its due time from which on a send counts as late."""


def of_figure(sample: Sample) -> bool:
    """Whether it is part of what its step measured: no warm-up, no noise floor, of a followed packet its
    whole way and no hop."""
    return not sample.warm_up and sample.kind != "floor" and not (sample.kind == "path" and sample.order)


def lost(samples: Sequence[Sample]) -> int:
    """Probes that were not answered well."""
    return sum(sample.verdict != "ok" for sample in samples)


def loss(samples: Sequence[Sample]) -> float:
    """The share of them; NaN without samples."""
    return lost(samples) / len(samples) if samples else math.nan


def duplicates(samples: Sequence[Sample]) -> int:
    """Answers beyond the first of each probe."""
    return sum(max(0, sample.copies - 1) for sample in samples)


def reordered(samples: Sequence[Sample]) -> int:
    """Packets that arrived after one of their flow and repetition that was sent later (RFC 4737,
    Type-P-Reordered)."""
    late = 0
    for flow in _flows(samples).values():
        highest = 0
        for sample in sorted((one for one in flow if one.order), key=lambda one: one.order):
            late += sample.sequence < highest
            highest = max(highest, sample.sequence)
    return late


def outages(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """(begin, end) of each time in which no probe of a flow was answered, seconds since the epoch, per flow.

    From the sending of the first that failed to that of the next one that was answered; one that never ended
    ends with the last sample. Overlapping ones of several flows stay apart."""
    found = []
    for flow in _flows(samples).values():
        begun: float | None = None
        ordered = sorted((one for one in flow if one.at is not None), key=_when)
        for sample in ordered:
            if sample.verdict != "ok":
                begun = _when(sample) if begun is None else begun
            elif begun is not None:
                found.append((begun, _when(sample)))
                begun = None
        if begun is not None:
            found.append((begun, _when(ordered[-1])))
    return sorted(found)


def outage(samples: Sequence[Sample]) -> float:
    """The longest outage of any flow, in seconds; 0 without one, NaN without samples."""
    if not samples:
        return math.nan
    return max((end - begin for begin, end in outages(samples)), default=0.0)


def convergence(samples: Sequence[Sample], changes: Iterable[float]) -> float:
    """The longest time from a change until what becomes of probes stays as it is until the next change, in
    seconds.

    changes: seconds since the epoch. What it stays at may be failure, where a change forbids something. Per
    flow; 0 where nothing became different, NaN without a change among the samples."""
    flows = [
        sorted((one for one in flow if one.at is not None), key=_when) for flow in _flows(samples).values()
    ]
    times = [_when(sample) for flow in flows for sample in flow]
    within = sorted(change for change in changes if times and min(times) <= change <= max(times))
    if not within:
        return math.nan
    longest = 0.0
    for flow in flows:
        for change, following in zip(within, [*within[1:], math.inf], strict=True):
            after = [one for one in flow if change <= _when(one) < following]
            unlike = [one for one in after if (one.verdict == "ok") != (after[-1].verdict == "ok")]
            if unlike:
                longest = max(longest, _when(unlike[-1]) - change)
    return longest


def balance(samples: Sequence[Sample]) -> float:
    """The p of a chi-square test for equal shares of those who answered; NaN where nobody said its name."""
    shares = Counter(sample.answer for sample in samples if sample.verdict == "ok" and sample.answer)
    return evenness(shares.values()) if shares else math.nan


def late(samples: Sequence[Sample]) -> float:
    """The share of sends that were more than LATE behind their due time; NaN where none had one."""
    scheduled = sum(sample.late is not None for sample in samples)
    return sent_late(samples) / scheduled if scheduled else math.nan


def sent_late(samples: Sequence[Sample]) -> int:
    """How many sends were more than LATE behind their due time."""
    return sum(sample.late is not None and sample.late > LATE for sample in samples)


def waits(samples: Sequence[Sample]) -> list[float]:
    """How long each probe took to be answered, in seconds; infinity where it failed without any answer. What
    is no time (a throughput) is left out."""
    return [
        math.inf if sample.seconds is None else sample.seconds
        for sample in samples
        if sample.seconds is not None or sample.verdict != "ok"
    ]


def quantile(samples: Sequence[Sample], share: float) -> float:
    """A quantile of their ``waits``: infinity where it falls on one that failed; NaN without any."""
    return quantiles.quantile(sorted(waits(samples)), share)


def mean(samples: Sequence[Sample]) -> float:
    """The mean of ``seconds``, of those that were answered alone; NaN without any."""
    times = [sample.seconds for sample in samples if sample.seconds is not None]
    return sum(times) / len(times) if times else math.nan


def throughput(samples: Sequence[Sample]) -> float:
    """The mean of ``bits_per_second``; NaN without any."""
    rates = [sample.bits_per_second for sample in samples if sample.bits_per_second is not None]
    return sum(rates) / len(rates) if rates else math.nan


def _when(sample: Sample) -> float:
    return sample.at or 0.0


def _flows(samples: Sequence[Sample]) -> dict[tuple[int, int], list[Sample]]:
    found: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        found[(sample.repetition, sample.flow)].append(sample)
    return found
