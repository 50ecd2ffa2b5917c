"""Expectations as people write them: ``loss < 1 %``, ``p99 < 5 ms``, ``outage < 2 s``, ``reachable: none``.
Pure."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from testbed.measure import metrics
from testbed.records import Sample

Written = str | dict[str, str | float | int]
Metric = Callable[[Sequence[Sample], Sequence[float]], float]

_UNITS: Final = {
    "share": {"%": 0.01, "": 1.0},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "count": {"": 1.0},
    "rate": {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9},
}
_METRICS: Final[dict[str, tuple[str, Metric]]] = {
    "loss": ("share", lambda samples, _: metrics.loss(samples)),
    "lost": ("count", lambda samples, _: metrics.lost(samples)),
    "duplicates": ("count", lambda samples, _: metrics.duplicates(samples)),
    "reordered": (
        "share",
        lambda samples, _: metrics.reordered(samples) / len(samples) if samples else math.nan,
    ),
    "outage": ("time", lambda samples, _: metrics.outage(samples)),
    "convergence": ("time", metrics.convergence),
    "balance": ("count", lambda samples, _: metrics.balance(samples)),
    "late": ("share", lambda samples, _: metrics.late(samples)),
    "probes": ("count", lambda samples, _: len(samples)),
    "median": ("time", lambda samples, _: metrics.quantile(samples, 0.5)),
    "min": ("time", lambda samples, _: metrics.quantile(samples, 0.0)),
    "max": ("time", lambda samples, _: metrics.quantile(samples, 1.0)),
    "mean": ("time", lambda samples, _: metrics.mean(samples)),
    "throughput": ("rate", lambda samples, _: metrics.throughput(samples)),
    "answerers": ("count", lambda samples, _: len({one.answer for one in samples if one.answer})),
}
_QUANTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_COMPARISONS: Final = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_FORM: Final = re.compile(
    r"\s*([a-z][a-z0-9.]*)\s*(<=|>=|==|<|>)\s*([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)\s*([A-Za-zµ%]*)\s*"
)
_REACHABLE: Final = {"all": ("loss", "==", 0.0), "none": ("loss", "==", 1.0)}


@dataclass(frozen=True)
class Bound:
    """A metric compared with a value. text: as it was written."""

    text: str
    metric: str
    unit: str
    comparison: str
    value: float

    def judge(self, samples: Sequence[Sample], changes: Sequence[float] = ()) -> tuple[str, bool]:
        """What was observed, in words, and whether it is as expected; nothing observed never is."""
        value = _metric(self.metric)[1](samples, changes)
        if math.isnan(value):
            return "nothing was measured", False
        return shown_value(value, self.unit), bool(_COMPARISONS[self.comparison](value, self.value))


def parse(written: Written) -> Bound:
    """Read one. Raises ValueError that says what may stand there."""
    if isinstance(written, Mapping):
        if len(written) != 1:
            raise ValueError(f"an expectation is one comparison, not {dict(written)}")
        ((name, value),) = written.items()
        written = f"{name}: {value}"
    name, colon, word = written.partition(":")
    if colon:
        if name.strip() != "reachable" or word.strip() not in _REACHABLE:
            raise ValueError(f"{written!r}: must be reachable: all, or reachable: none")
        metric, comparison, value = _REACHABLE[word.strip()]
        return Bound(written, metric, "share", comparison, value)
    found = _FORM.fullmatch(written)
    if found is None:
        raise ValueError(f"{written!r}: must be a comparison such as 'loss < 1 %' or 'p99 < 5 ms'")
    name, comparison, number, unit = found.groups()
    kind, _ = _metric(name)
    if unit not in _UNITS[kind] or (kind == "time" and not unit):
        known = ", ".join(one or "none" for one in _UNITS[kind])
        raise ValueError(f"{written!r}: the unit of {name} is one of: {known}")
    return Bound(written, name, kind, comparison, float(number) * _UNITS[kind][unit])


def _metric(name: str) -> tuple[str, Metric]:
    if name in _METRICS:
        return _METRICS[name]
    if found := _QUANTILE.fullmatch(name):
        share = float(found[1]) / 100
        return "time", lambda samples, _: metrics.quantile(samples, share)
    raise ValueError(f"unknown metric {name!r}: known are {', '.join(_METRICS)} and quantiles such as p99")


def shown_value(value: float, unit: str) -> str:
    """A value as people read it. unit: the kind of its unit."""
    match unit:
        case "share":
            return f"{value * 100:.3g} %"
        case "time" if math.isinf(value):
            return "lost"
        case "time":
            scale, name = next(
                ((scale, name) for scale, name in ((1.0, "s"), (1e-3, "ms")) if value >= scale), (1e-6, "µs")
            )
            return f"{value / scale:.3g} {name}"
        case "rate":
            return f"{value / 1e6:.4g} Mbit/s"
    return f"{value:.4g}"
