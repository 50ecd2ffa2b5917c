"""``path``: packets of one flow, seen at every interface they cross."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import msgspec

from testbed.measure.messages import Protocol
from testbed.measure.probing import PathRequest
from testbed.measure.targets import End, Family
from testbed.records import path_samples
from testbed.scenario.model import Context, Step, step


@step("path")
class Path(Step, frozen=True, kw_only=True, rename={"source": "from"}):
    """Fields of ``measure.probing.PathRequest``. about: a word of explanation for the report. crosses: words
    (a node, an interface) each of which some hop there has to have; rewrites: headers that have to be
    rewritten on the way there."""

    source: End
    to: End
    protocol: Protocol = "icmp"
    count: int = 20
    interval: float = 0.02
    size: int = 56
    timeout: float = 1.0
    family: Family | None = None
    about: str = ""
    crosses: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()

    def run(self, context: Context) -> None:
        """Follow, record, compare."""
        title = self.name or f"path to {self.to}"
        request = PathRequest(
            source=self.source,
            to=self.to,
            protocol=self.protocol,
            count=self.count,
            interval=self.interval,
            size=self.size,
            timeout=self.timeout,
            family=self.family,
        )
        answer = context.cluster.client.post(
            "/apis/testbed/v1/path", msgspec.to_builtins(request), timeout=None
        )
        context.measured(path_samples(title, answer))
        trips = [one["round_trip"] for one in answer["journeys"] if one["round_trip"] is not None]
        ways = Counter(way(one) for one in answer["journeys"])
        context.note(
            "path", step=title, about=self.about, packets=self.count, answered=len(trips), ways=len(ways)
        )
        middle = f"median {median(trips) * 1e6:.1f} µs" if trips else "no answer"
        context.report(f"  {title}: {len(trips)} of {self.count} answered, {middle}, {len(ways)} ways")
        self._judge(context, title, answer["journeys"])

    def _judge(self, context: Context, title: str, journeys: list[dict[str, Any]]) -> None:
        there = [hop for one in journeys for hop in one["hops"] if hop["leg"] == "there"]
        places = {f"{hop['where']} {hop['interface']}" for hop in there}
        for word in self.crosses:
            met = any(word in place for place in places)
            context.expect(title, f"{title}: crosses {word}", ", ".join(sorted(places)), met)
        written = {name for hop in there for name in hop["rewritten"]}
        for header in self.rewrites:
            expected = f"{title}: {header} is rewritten on the way there"
            context.expect(title, expected, ", ".join(sorted(written)) or "nothing is", header in written)
        for header in self.keeps:
            expected = f"{title}: {header} stays as it is on the way there"
            met = bool(there) and header not in written
            context.expect(title, expected, ", ".join(sorted(written)) or "nothing is rewritten", met)


def way(journey: dict[str, Any]) -> tuple[str, ...]:
    """The interfaces that a packet crossed on its way there."""
    return tuple(f"{hop['where']} {hop['interface']}" for hop in journey["hops"] if hop["leg"] == "there")
