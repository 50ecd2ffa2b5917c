"""Rows as pandas frames with documented columns and types, and the tables made of them. Pure.

Importing this module imports pandas (0.3 s): the command line and the daemon do it only where asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd

from testbed.measure.bootstrap import expanded_tail
from testbed.measure.resample import blocks_in, interval_tail, resampled_medians
from testbed.quantiles import quantile, rank
from testbed.records import FIGURE, Sample, reach_samples, rtt_samples

_FLOATS: Final = ("at", "seconds", "seconds_kernel", "sent", "received", "late", "bits_per_second")
SAMPLE_TYPES: Final[dict[str, Any]] = {
    field.name: {
        "copies": "int32",
        "flow": "int32",
        "order": "int32",
        "port": "int32",
        "repetition": "int32",
        "warm_up": "bool",
        "attempts": "int32",
        "sequence": "int32",
        "ttl": "int16",
        "size": "int32",
    }.get(field.name, "float64" if field.name in _FLOATS else "string")
    for field in msgspec.structs.fields(Sample)
}
"""Column → dtype of the samples, in order."""

REACHABILITY_COLUMNS: Final = (
    "step",
    "source",
    "source_namespace",
    "source_node",
    "destination",
    "destination_namespace",
    "destination_node",
    "ip",
    "protocol",
    "port",
    "path",
    "verdict",
    "reason",
    "reporter",
    "seconds",
    "attempts",
)
BOOTSTRAP_ROUNDS: Final = 2000


def frame_of(samples: Sequence[Sample]) -> pd.DataFrame:
    """Samples as a frame; every column of ``Sample``, with the types of SAMPLE_TYPES."""
    columns = {name: [getattr(sample, name) for sample in samples] for name in SAMPLE_TYPES}
    return pd.DataFrame({name: pd.array(columns[name], dtype=SAMPLE_TYPES[name]) for name in SAMPLE_TYPES})


def reachability_frame(answer: Mapping[str, Any]) -> pd.DataFrame:
    """A reachability answer of the API as a frame: REACHABILITY_COLUMNS without the step, a row per flow."""
    return frame_of(reach_samples("", answer))[list(REACHABILITY_COLUMNS[1:])]


def roundtrips_frame(answer: Mapping[str, Any]) -> pd.DataFrame:
    """A round-trips answer of the API as a frame of samples, a row per echo."""
    return frame_of(rtt_samples("", answer))


def reachability_table(samples: pd.DataFrame) -> pd.DataFrame:
    """The reachability samples alone: ``reachability.csv``."""
    return samples.loc[samples["kind"] == "reach", list(REACHABILITY_COLUMNS)].reset_index(drop=True)


def samples_of(frame: pd.DataFrame) -> list[Sample]:
    """The rows of a frame as samples again; NaN becomes None."""
    columns = {name: frame[name].tolist() for name in SAMPLE_TYPES if name in frame}
    for name in _FLOATS:
        if name in columns:
            columns[name] = [
                None if value is None or value is pd.NA or value != value else value
                for value in columns[name]
            ]
    return [
        Sample(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
    ]


def median_interval(
    values: np.ndarray[Any, Any],
    seed: int = 0,
    groups: np.ndarray[Any, Any] | None = None,
    rounds: int = BOOTSTRAP_ROUNDS,
) -> tuple[float, float]:
    """The 95 % bootstrap confidence interval of the median; the same for the same values and seed.

    values: in the order they were taken. Of one repetition blocks of neighbours are drawn, as these are
    alike: ``measure.resample``. groups: the repetition of each value; of several, whole repetitions are
    drawn, for the same reason. The interval is widened where blocks or repetitions are few.
    """
    if len(values) == 0:
        return (float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    kinds = np.unique(groups) if groups is not None else np.array([])
    if len(kinds) > 1:
        rounds = max(100, min(rounds, 20_000_000 // len(values)))
        parts = [values[groups == kind] for kind in kinds]
        drawn = (random.integers(0, len(parts), len(parts)) for _ in range(rounds))
        medians = np.array([_median(np.concatenate([parts[one] for one in chosen])) for chosen in drawn])
        tail = expanded_tail(len(kinds))
    else:
        medians = resampled_medians(values, rounds, random)
        tail = interval_tail(blocks_in(values))
    medians.sort()
    return quantile(medians, tail), quantile(medians, 1 - tail)


def median_blocks(values: np.ndarray[Any, Any], groups: np.ndarray[Any, Any] | None = None) -> float:
    """How many blocks of neighbours ``median_interval`` rests on; NaN where it draws whole repetitions, or
    there is none."""
    if len(values) == 0 or (groups is not None and len(np.unique(groups)) > 1):
        return float("nan")
    return float(blocks_in(values))


def _median(values: np.ndarray[Any, Any]) -> float:
    place = rank(0.5, len(values))
    return float(np.partition(values, place)[place])


def waits(samples: pd.DataFrame) -> np.ndarray[Any, Any]:
    """How long each probe took to be answered, in the samples' order; infinity where it failed without any
    answer. What is no time (a throughput) is left out. The same as ``metrics.waits``."""
    seconds = samples["seconds"].to_numpy(dtype=float, na_value=np.nan)
    unanswered = _failed(samples) & np.isnan(seconds)
    found: np.ndarray[Any, Any] = np.where(unanswered, np.inf, seconds)[timed(samples)]
    return found


def timed(samples: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Which of the samples ``waits`` tells of."""
    told: np.ndarray[Any, Any] = samples["seconds"].notna().to_numpy() | _failed(samples)
    return told


def _failed(samples: pd.DataFrame) -> np.ndarray[Any, Any]:
    failed: np.ndarray[Any, Any] = (samples["verdict"] != "ok").to_numpy(dtype=bool)
    return failed


def repetitions(samples: pd.DataFrame) -> np.ndarray[Any, Any] | None:
    """The repetition of each of the ``waits``; None in folders written before there were any."""
    return samples["repetition"].to_numpy()[timed(samples)] if "repetition" in samples else None


def figures_of(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples that figures are made of: without warm-ups, and of a followed packet only its whole way. Of
    folders written before there were any, all."""
    if "warm_up" in samples:
        samples = samples[~samples["warm_up"].astype(bool)]
        samples = samples[(samples["kind"] != "path") | (samples["order"] == 0)]
    return samples


def times_of(samples: pd.DataFrame) -> np.ndarray[Any, Any]:
    """What is compared of samples: seconds above 0; of a throughput the seconds that a Mbit took, of the
    intervals in which anything came."""
    seconds = samples["seconds"].to_numpy(dtype=float, na_value=np.nan)
    if "bits_per_second" in samples:
        rates = samples["bits_per_second"].to_numpy(dtype=float, na_value=np.nan)
        seconds = np.where(rates > 0, 1e6 / np.where(rates > 0, rates, 1.0), seconds)
    found: np.ndarray[Any, Any] = seconds[seconds > 0]
    return found


def summary(samples: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, step, kind, protocol and path of ``figures_of``: ``summary.csv``. Times in
    seconds. Quantiles, the maximum too, count what failed as infinitely late; mean and std are of the
    rest."""
    samples = figures_of(samples)
    rows = [
        {**dict(zip(FIGURE, group, strict=True)), **_statistics(part)}
        for group, part in samples.groupby(list(FIGURE), sort=False, dropna=False)
    ]
    return pd.DataFrame(rows, columns=[*FIGURE, *_STATISTICS])


_STATISTICS: Final = (
    "probes",
    "ok",
    "failed",
    "min",
    "median",
    "median_low",
    "median_high",
    "median_blocks",
    "p95",
    "p99",
    "max",
    "mean",
    "std",
    "kernel_median",
)


def _statistics(part: pd.DataFrame) -> dict[str, float]:
    values = waits(part)
    answered = values[np.isfinite(values)]
    kernel = np.sort(part["seconds_kernel"].dropna().to_numpy(dtype=float))
    good = int((part["verdict"] == "ok").sum())
    counts: dict[str, float] = {"probes": len(part), "ok": good, "failed": len(part) - good}
    if len(values) == 0:
        return counts
    groups = repetitions(part)
    low, high = median_interval(values, groups=groups)
    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    ordered = np.sort(values)
    return {
        **counts,
        **{name: quantile(ordered, share) for name, share in shares.items()},
        "median_low": low,
        "median_high": high,
        "median_blocks": median_blocks(values, groups),
        "mean": float(answered.mean()) if len(answered) else float("nan"),
        "std": float(answered.std(ddof=1)) if len(answered) > 1 else 0.0,
        "kernel_median": quantile(kernel, 0.5),
    }
