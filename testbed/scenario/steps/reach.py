"""``reach``: every pod to every pod; ``expect`` says what each flow should come to."""

from __future__ import annotations

from collections import Counter
from typing import Any

from testbed.measure.messages import Protocol, VerdictName
from testbed.records import reach_samples
from testbed.scenario.model import Context, Step, step


@step("reach")
class Reach(Step, frozen=True, kw_only=True):
    """Fields of ``measure.service.ReachRequest``. expect: the verdict of every flow; None expects nothing."""

    protocol: Protocol = "tcp"
    port: int | None = None
    namespace: str = ""
    selector: str = ""
    hosts: bool = False
    family: str | None = None
    timeout: float = 1.0
    attempts: int = 2
    expect: VerdictName | None = None

    def run(self, context: Context) -> None:
        """Measure, record, compare."""
        fields = ("protocol", "port", "namespace", "selector", "hosts", "family", "timeout", "attempts")
        request = {name: getattr(self, name) for name in fields}
        answer = context.cluster.client.post("/apis/testbed/v1/reachability", request, timeout=None)
        title = self.name or f"reach {self.protocol}"
        context.samples += reach_samples(title, answer)
        rows = answer["rows"]
        context.note(
            "reachability", step=title, flows=len(rows), seconds=answer["seconds"], skipped=answer["skipped"]
        )
        context.report(f"  {len(rows)} flows in {answer['seconds']:.2f} s: {_counts(rows)}")
        if self.expect is not None:
            met = bool(rows) and all(row["verdict"] == self.expect for row in rows)
            context.expect(title, f"every flow {self.expect}", _counts(rows), met)


def _counts(rows: list[dict[str, Any]]) -> str:
    """``870 ok, 29 refused (reset)``; what was not tried is said too."""
    counts = Counter((row["verdict"], row["reason"]) for row in rows)
    parts = (
        f"{count} {verdict}" + (f" ({reason})" if reason else "")
        for (verdict, reason), count in counts.most_common()
    )
    return ", ".join(parts) or "no flow was tried"
