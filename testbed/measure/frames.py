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
from testbed.records import Sample, reach_samples, rtt_samples

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
CONFIDENCE: Final = 0.95


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
    values: np.ndarray[Any, Any], seed: int = 0, groups: np.ndarray[Any, Any] | None = None
) -> tuple[float, float]:
    """The 95 % bootstrap confidence interval of the median; the same for the same values and seed.

    groups: the repetition of each value; of several, whole repetitions are drawn, as values of one are alike,
    and the interval is widened for their small number.
    """
    if len(values) == 0:
        return (float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    size = len(values)
    rounds = max(100, min(BOOTSTRAP_ROUNDS, 20_000_000 // size))
    kinds = np.unique(groups) if groups is not None else np.array([])
    if len(kinds) > 1:
        parts = [values[groups == kind] for kind in kinds]
        drawn = (random.integers(0, len(parts), len(parts)) for _ in range(rounds))
        medians = [np.median(np.concatenate([parts[one] for one in chosen])) for chosen in drawn]
    else:
        medians = [np.median(values[random.integers(0, size, size)]) for _ in range(rounds)]
    tail = expanded_tail(len(kinds)) if len(kinds) > 1 else (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return float(low), float(high)


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
    seconds."""
    keys = ["variant", "step", "kind", "protocol", "path"]
    samples = figures_of(samples)
    rows = [
        {**dict(zip(keys, group, strict=True)), **_statistics(part)}
        for group, part in samples.groupby(keys, sort=False, dropna=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, *_STATISTICS])


_STATISTICS: Final = (
    "probes",
    "ok",
    "failed",
    "min",
    "median",
    "median_low",
    "median_high",
    "p95",
    "p99",
    "max",
    "mean",
    "std",
    "kernel_median",
)


def _statistics(part: pd.DataFrame) -> dict[str, float]:
    values = part["seconds"].dropna().to_numpy(dtype=float)
    kernel = part["seconds_kernel"].dropna().to_numpy(dtype=float)
    good = int((part["verdict"] == "ok").sum())
    counts: dict[str, float] = {"probes": len(part), "ok": good, "failed": len(part) - good}
    if len(values) == 0:
        return counts
    groups = part.loc[part["seconds"].notna(), "repetition"].to_numpy() if "repetition" in part else None
    low, high = median_interval(values, groups=groups)
    p95, p99 = np.quantile(values, [0.95, 0.99])
    return {
        **counts,
        "min": float(values.min()),
        "median": float(np.median(values)),
        "median_low": low,
        "median_high": high,
        "p95": float(p95),
        "p99": float(p99),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "kernel_median": float(np.median(kernel)) if len(kernel) else float("nan"),
    }
