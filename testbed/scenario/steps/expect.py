"""``expect``: a bound on a statistic of what earlier steps measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import msgspec

from testbed.errors import InputError
from testbed.measure import metrics
from testbed.records import Sample
from testbed.scenario.expectations import Written, parse, shown_value
from testbed.scenario.model import Context, Step, step
from testbed.scenario.steps.probe import judge


class Other(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same statistic of other samples, times a factor. of: their step, "": the same one."""

    of: str = ""
    variant: str | None = None
    path: str | None = None
    times: float = 1.0


@step("expect")
class Expect(Step, frozen=True, kw_only=True):
    """The samples of a step (path, protocol, variant) have a statistic above or below a bound, in seconds.

    The bound may be the same statistic of another path (``above_path: same-node``), or of another step or
    variant, times a factor (``above_other: {of: first, times: 2}``). that: comparisons of what the step
    measured in this repetition, as those of ``probe``."""

    of: str
    path: str = ""
    protocol: str = ""
    variant: str = ""
    statistic: Literal["median", "p95", "p99", "min", "max", "mean"] = "median"
    below: float | None = None
    above: float | None = None
    above_path: str = ""
    above_other: Other | None = None
    below_other: Other | None = None
    that: tuple[Written, ...] = ()

    def __post_init__(self) -> None:
        for written in self.that:
            parse(written)

    def run(self, context: Context) -> None:
        """Compute and compare."""
        judge(context, self.name or self.of, self.of, self.that)
        if self.that and not any(
            (self.below, self.above, self.above_path, self.above_other, self.below_other)
        ):
            return
        value = self._value(context.samples, self.of, self.path, self.variant)
        shown = "nothing was measured" if value is None else shown_value(value, "time")
        subject = f"{self.statistic} of {self.of}" + (f", {self.path}" if self.path else "")
        subject = f"{self.variant}: {subject}" if self.variant else subject
        bounds = [(words, bound) for words, bound in self._bounds(context.samples) if bound is not None]
        if not bounds:
            raise InputError("expect: needs a bound: below, above, or samples to compare with")
        for words, bound in bounds:
            met = value is not None and (value < bound if words.startswith("below") else value > bound)
            context.expect(
                self.name or self.of, f"{subject} {words} {shown_value(bound, 'time')}", shown, met
            )

    def _bounds(self, samples: list[Sample]) -> Iterator[tuple[str, float | None]]:
        """Each bound in words, which begin with above or below, and in seconds."""
        yield "below", self.below
        yield "above", self.above
        if self.above_path:
            yield f"above {self.above_path},", self._value(samples, self.of, self.above_path, self.variant)
        for word, other in (("above", self.above_other), ("below", self.below_other)):
            if other is not None:
                of, variant = other.of or self.of, self.variant if other.variant is None else other.variant
                value = self._value(samples, of, self.path if other.path is None else other.path, variant)
                factor = f"{other.times:g} times " if other.times != 1 else ""
                named = f"{variant}: {of}" if variant else of
                yield f"{word} {factor}that of {named},", None if value is None else value * other.times

    def _value(self, samples: list[Sample], of: str, path: str, variant: str) -> float | None:
        found = [
            sample
            for sample in samples
            if sample.step == of
            and (sample.path == path if path else metrics.of_figure(sample))
            and not sample.warm_up
            and variant in ("", sample.variant)
            and self.protocol in ("", sample.protocol)
        ]
        if self.statistic == "mean":
            value = metrics.mean(found)
        else:
            share = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}[self.statistic]
            value = metrics.quantile(found, share)
        return None if math.isnan(value) else value
