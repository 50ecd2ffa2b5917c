"""``repeat``: steps again and again: so many times, or until a figure is known narrowly enough."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final

import msgspec

from testbed.measure import metrics
from testbed.measure.bootstrap import interval_of_means
from testbed.records import Sample
from testbed.scenario.model import Context, Step, Steps, step

_UNTIL: Final = re.compile(r"\s*ci\s*<\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_FEWEST: Final = 5
"""Repetitions from which on there is an interval to look at. No resample of n values has a mean outside of
them, and they hold what they scatter about with a chance of 1 - 2 / 2**n: of fewer that is not about 95 %."""


@step("repeat")
class Repeat(Step, frozen=True, kw_only=True):
    """Run ``steps`` ``warm_up`` times without counting, then ``times`` times. until (``ci < 5 %``): go on,
    up to ``at_most``, until the half width of the 95 % interval of the mean, over repetitions, of the median
    of step ``of`` is below that share of it: a bootstrap of whole repetitions, as samples of one are
    alike."""

    steps: Steps = Steps()
    times: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    warm_up: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    until: str = ""
    of: str = ""
    at_most: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 30

    def __post_init__(self) -> None:
        if self.until and (not _UNTIL.fullmatch(self.until) or not self.of):
            raise ValueError("until: must be such as 'ci < 5 %', with `of`, the step whose median it is of")

    def needs(self) -> None:
        """What its steps need."""
        for _, one in self.steps.listed:
            one.needs()

    def plan(self, context: Context) -> dict[str, Any]:
        """What each step plans, for every repetition that there may be."""
        most = self.at_most if self.until else self.times
        planned = {
            str(repetition): {
                f"{number} {kind}": one.plan(
                    context.at_place(f"{context.place}.{number}", repetition=repetition)
                )
                for number, (kind, one) in enumerate(self.steps.listed, 1)
            }
            for repetition in range(1 - self.warm_up, most + 1)
        }
        return {"times": self.times, "warm_up": self.warm_up, "until": self.until, "repetitions": planned}

    def run(self, context: Context) -> None:
        """Repeat; what was measured is marked with the number of its repetition, a warm-up's from 0 down."""
        for number in range(self.warm_up):
            context.report(f"  warm-up {number + 1} of {self.warm_up}")
            self._once(context, -number, warm_up=True)
        wanted = _UNTIL.fullmatch(self.until)
        share = float(wanted[1]) / 100 if wanted else 0.0
        repetition, width = 0, math.inf
        while repetition < self.times or (share and repetition < self.at_most and width >= share):
            repetition += 1
            context.report(f"  repetition {repetition}")
            self._once(context, repetition)
            if share:
                width = half_width(context.samples, self.of, context.variant)
        if share:
            title = self.name or "repeat"
            expected = f"{self.of}: {self.until.strip()} within {self.at_most} repetitions"
            context.expect(title, expected, f"{width:.1%} after {repetition}", width < share)
        context.note(
            "repeated", repetitions=repetition, half_width=None if width == math.inf else round(width, 6)
        )

    def _once(self, context: Context, repetition: int, *, warm_up: bool = False) -> None:
        context.note("repetition", number=repetition, warm_up=warm_up)
        self.steps.run(context.at_place(context.place, repetition=repetition, warm_up=warm_up))


def half_width(samples: list[Sample], of: str, variant: str) -> float:
    """Half the 95 % interval of the mean of each repetition's median, as a share of it; infinite with too
    few."""
    groups: dict[int, list[Sample]] = {}
    for one in samples:
        if one.step == of and one.variant == variant and metrics.of_figure(one):
            groups.setdefault(one.repetition, []).append(one)
    medians = [metrics.quantile(group, 0.5) for group in groups.values()]
    if len(medians) < _FEWEST or not all(map(math.isfinite, medians)):
        return math.inf
    low, high = interval_of_means(medians)
    middle = sum(medians) / len(medians)
    return (high - low) / 2 / middle if middle else math.inf
