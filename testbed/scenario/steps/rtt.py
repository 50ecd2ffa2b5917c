"""``rtt``: series of echoes by path class, with the machine's noise floor beside them."""

from __future__ import annotations

from statistics import median
from typing import Any

from testbed.measure.paths import Path
from testbed.records import LOOPBACK, rtt_samples
from testbed.scenario.model import Context, Step, step


@step("rtt")
class RoundTrips(Step, frozen=True, kw_only=True):
    """Fields of ``measure.service.RoundTripsRequest``. lost_at_most: share; None: any."""

    paths: tuple[Path, ...] = ("same-node", "cross-node", "outside")
    pairs: tuple[dict[str, str], ...] = ()
    per_path: int = 1
    count: int = 200
    interval: float = 0.01
    size: int = 56
    timeout: float = 1.0
    family: str | None = None
    noise_floor: bool = True
    lost_at_most: float | None = None

    def run(self, context: Context) -> None:
        """Measure, record, compare."""
        title = self.name or "round trips"
        skip = ("name", "lost_at_most")
        request = {name: getattr(self, name) for name in self.__struct_fields__ if name not in skip}
        answer = context.cluster.client.post("/apis/testbed/v1/roundtrips", request, timeout=None)
        context.samples += rtt_samples(title, answer)
        for series in answer["series"]:
            self._report(context, title, series)

    def _report(self, context: Context, title: str, series: dict[str, Any]) -> None:
        times = [rtt for rtt in series["samples"]["rtt"] if rtt is not None]
        sent = len(series["samples"]["rtt"])
        way = f"{series['source']} → {series['destination']} ({series['path']})"
        middle = f"median {median(times) * 1e6:.1f} µs" if times else "no answer"
        context.report(f"  {way}: {len(times)} of {sent} answered, {middle}")
        context.note("series", step=title, way=way, answer=series["answer"])
        if self.lost_at_most is not None and series["path"] != LOOPBACK:
            lost = (sent - len(times)) / sent
            expected = f"{way}: at most {self.lost_at_most:.1%} of echoes lost"
            context.expect(title, expected, f"{lost:.1%} lost", lost <= self.lost_at_most)
