"""What a scenario is made of: steps that share a context. A step kind is one small class in its own file.

``@step("name")`` on a ``Step`` makes ``- name: {…fields…}`` work in a scenario file; the runner knows only
``run(context)``.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from testbed.errors import InputError
from testbed.measure import metrics
from testbed.records import CHANGES, Event, Expectation, Sample, event
from testbed.registry import Registry

if TYPE_CHECKING:
    from testbed.api.cluster import Cluster


@dataclass
class Context:
    """What a step works with and adds to. folder: the scenario file's; report: a line of progress.

    running: the cluster, None for conclusions; variant: which of the scenario's variants it is, "" where
    there is but one. seed: the scenario's; place: which step it is, ``3`` or, within another, ``3.1``;
    repetition: from 1 on; warm_up: whether what is measured now does not count."""

    running: Cluster | None
    folder: Path
    report: Callable[[str], None] = lambda line: None
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)
    variant: str = ""
    seed: int = 0
    place: str = ""
    repetition: int = 1
    warm_up: bool = False

    def at_place(self, place: str, **changes: Any) -> Context:
        """The same for another step: what is gathered is gathered together."""
        return replace(self, place=place, **changes)

    @property
    def draw(self) -> random.Random:
        """What this step draws by chance: the same for the same seed, variant, step and repetition."""
        return drawing(self.seed, self.variant, self.place, self.repetition)

    def measured(self, samples: Iterable[Sample]) -> list[Sample]:
        """Add samples, under this repetition; returns them as they were added."""
        added = [
            msgspec.structs.replace(
                one,
                repetition=self.repetition,
                warm_up=one.warm_up or self.warm_up,
                variant=self.variant,
            )
            for one in samples
        ]
        self.samples.extend(added)
        return added

    def of_step(self, name: str) -> list[Sample]:
        """What a step of this variant measured in this repetition, without warm-up."""
        return [
            one
            for one in list(self.samples)
            if one.step == name
            and metrics.of_figure(one)
            and one.repetition == self.repetition
            and one.variant in ("", self.variant)
        ]

    def changes(self) -> list[float]:
        """When something was changed, seconds since the epoch: faults, manifests, rollouts."""
        return [one.wall for one in list(self.events) if one.what in CHANGES]

    @property
    def cluster(self) -> Cluster:
        """The cluster. Raises InputError where there is none any more."""
        if self.running is None:
            raise InputError("this step needs a cluster: conclusions only look at what was measured")
        return self.running

    def note(self, what: str, **detail: Any) -> None:
        """Record an event that happens now."""
        self.events.append(event(what, **({"variant": self.variant} if self.variant else {}), **detail))

    def note_at(self, what: str, moment: Sequence[float], **detail: Any) -> None:
        """Record an event that happened before, at (monotonic, wall) time; events stay in order."""
        more = {"variant": self.variant} if self.variant else {}
        # Not sorted as a whole: other threads add events meanwhile.
        earlier = Event(moment[0], moment[1], what, {**more, **detail})
        bisect.insort(self.events, earlier, key=lambda each: each.monotonic)

    def expect(self, step: str, expected: str, observed: str, met: bool) -> None:
        """Record an expectation and whether it was met."""
        expected = f"{self.variant}: {expected}" if self.variant else expected
        self.expectations.append(Expectation(step, expected, observed, met))
        self.report(f"  {'met' if met else 'NOT MET'}: {expected}" + ("" if met else f" (was: {observed})"))


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all step kinds. name: what its samples and expectations are filed under."""

    name: str = ""

    def run(self, context: Context) -> None:
        """Do it. Raises TestbedError where the scenario cannot go on."""
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        """What has to be done before it can begin, and before the clock of its timeline does."""

    def undo(self, context: Context) -> None:
        """End what ``run`` began: what ``for`` does on a timeline. Raises InputError where there is nothing
        to end."""
        raise InputError(f"{type(self).__name__.lower()}: does not last, so there is no `for`")

    def lasting(self, seconds: float) -> Step | None:
        """The same step lasting so long by itself; None where ``undo`` ends it."""
        return None

    def needs(self) -> None:
        """Look whether the machine has what the step needs. Raises InputError, MissingCapability."""

    def plan(self, context: Context) -> dict[str, Any]:
        """What is settled before it runs, for the record: its fields, and what it draws from
        ``context.draw``."""
        built: dict[str, Any] = msgspec.to_builtins(self, enc_hook=lambda value: None)
        return {key: value for key, value in built.items() if value not in (None, "", [], {}, "name")}


@dataclass(frozen=True)
class Steps:
    """Steps within a step, as a field of it; in a file a list like that of the scenario."""

    listed: Sequence[tuple[str, Step]] = ()

    def run(self, context: Context) -> None:
        """One after the other; those of a timeline by their clock."""
        from testbed.scenario.timeline import run_steps

        run_steps(self.listed, context)


def drawing(seed: int, *names: object) -> random.Random:
    """A source of chance for one purpose: the same for the same seed and names."""
    text = "/".join(map(str, (seed, *names)))
    return random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - a drawing to repeat


steps: Registry[type[Step]] = Registry("scenario step", "testbed.scenario.steps")
step = steps.register


@dataclass(frozen=True)
class Scenario:
    """A scenario file. cluster: the spec's path; overrides: ``key=value`` for it; folder: the file's.

    seed: of all that is drawn by chance. setup: steps that are done once, before those that ``repeat``
    repeats. variants: name → further overrides; the steps run once for each, on a cluster of its own;
    without any there is one, "". conclusions: what is expected of all that they measured."""

    name: str
    description: str
    cluster: Path
    overrides: tuple[str, ...]
    steps: Sequence[tuple[str, Step]]
    folder: Path
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"": ()})
    conclusions: Sequence[tuple[str, Step]] = ()
    seed: int = 0
    setup: Sequence[tuple[str, Step]] = ()
