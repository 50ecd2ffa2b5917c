"""``probe``: a probe kind from somewhere to somewhere, on schedule, and what is expected of it."""

from __future__ import annotations

from typing import Any

import msgspec

from testbed.measure import metrics
from testbed.measure.probing import ProbeRequest, kind_of
from testbed.measure.schedule import Arrivals, digest
from testbed.measure.targets import End, Family
from testbed.records import probe_samples
from testbed.scenario.expectations import Written, parse
from testbed.scenario.model import Context, Step, step
from testbed.scenario.steps.ask import counts
from testbed.scenario.steps.fault import note_faults
from testbed.units import parse_duration

_FLOOR_PROBES = 100
_FLOOR_RATES = (100.0, 1000.0)


@step("probe")
class Probe(Step, frozen=True, kw_only=True, rename={"source": "from", "duration": "for"}):
    """Fields of ``measure.probing.ProbeRequest``; ``for``: how long. warm_up: the beginning of it that does
    not count. floor: measure a bare veth pair first, at the same rate. about: a word of explanation for the
    report. expect: comparisons such as ``loss < 1 %``; see ``scenario.expectations``."""

    kind: str
    source: End
    to: End
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    rate: float = 0.0
    count: int = 0
    duration: str | float = 0.0
    burst: int = 1
    arrivals: Arrivals = "constant"
    at_once: int = 1
    gap: str | float = 0.0
    timeout: str | float = 1.0
    family: Family | None = None
    warm_up: str | float = 0.0
    floor: bool = True
    about: str = ""
    expect: tuple[Written, ...] = ()

    def __post_init__(self) -> None:
        for written in self.expect:
            parse(written)
        for value in (self.duration, self.gap, self.timeout, self.warm_up):
            parse_duration(value)

    def lasting(self, seconds: float) -> Step:
        """It ends by itself."""
        return msgspec.structs.replace(self, duration=seconds)

    def needs(self) -> None:
        """The programs of the kind; its options have to be right, too."""
        kind_of(self.kind, self.options)

    @property
    def title(self) -> str:
        """What its samples are filed under."""
        return self.name or f"{self.kind} to {self.to}"

    def request(self, context: Context) -> ProbeRequest:
        """The request, with a seed of its own."""
        return ProbeRequest(
            kind=self.kind,
            source=self.source,
            to=self.to,
            options=self.options,
            rate=self.rate,
            count=self.count,
            seconds=parse_duration(self.duration),
            burst=self.burst,
            arrivals=self.arrivals,
            seed=context.draw.getrandbits(32),
            at_once=self.at_once,
            gap=parse_duration(self.gap),
            timeout=parse_duration(self.timeout),
            family=self.family,
        )

    def plan(self, context: Context) -> dict[str, Any]:
        """Its fields, and its schedule's fingerprint."""
        moments = self.request(context).moments()
        return {**super().plan(context), "probes": len(moments) or self.count, "schedule": digest(moments)}

    def prepare(self, context: Context) -> None:
        """Measure the noise floor."""
        if self.floor:
            measure_floor(context, self.title, self.rate)

    def run(self, context: Context) -> None:
        """Measure, record, compare."""
        asked = msgspec.to_builtins(self.request(context))
        context.note("probe", step=self.title, kind=self.kind, rate=self.rate, about=self.about)
        answer = context.cluster.client.post("/apis/testbed/v1/probe", asked, timeout=None)
        warm_up = parse_duration(self.warm_up)
        samples = context.measured(probe_samples(self.title, self.kind, answer, warm_up=warm_up))
        behind = metrics.late(samples)
        context.note(
            "probe done",
            step=self.title,
            kind=self.kind,
            sent=len(samples),
            late_share=None if behind != behind else round(behind, 6),
            favoured=answer.get("favoured"),
            clock_stepped=answer.get("stepped"),
        )
        context.report(f"  {self.title}: {counts(samples)}")
        judge(context, self.title, self.title, self.expect)


def judge(context: Context, step_name: str, of: str, expect: tuple[Written, ...]) -> None:
    """Compare what a step measured in this repetition with what is expected; not of a warm-up."""
    if context.warm_up:
        return
    if expect and context.running is not None:
        note_faults(context)  # what has healed by itself, say
    samples, changes = context.of_step(of), context.changes()
    for written in expect:
        bound = parse(written)
        observed, met = bound.judge(samples, changes)
        again = f" (repetition {context.repetition})" if context.repetition > 1 else ""
        context.expect(step_name, f"{of}: {bound.text}{again}", observed, met)


def measure_floor(context: Context, title: str, rate: float) -> None:
    """Echoes over a bare veth pair, filed as ``floor`` under the step whose figures they are to be compared
    with."""
    low, high = _FLOOR_RATES
    request = {
        "kind": "icmp",
        "from": {"ip": "192.0.2.1"},
        "to": {"ip": "192.0.2.2"},
        "rate": min(max(rate, low), high),
        "count": _FLOOR_PROBES,
        "floor": True,
    }
    answer = context.cluster.client.post("/apis/testbed/v1/probe", request, timeout=None)
    context.measured(probe_samples(title, "icmp", answer, row="floor"))
