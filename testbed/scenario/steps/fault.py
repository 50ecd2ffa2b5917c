"""``fault`` and ``heal``: something breaks, and is made whole again. ``docs/faults.md``."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

import msgspec

from testbed.errors import InputError, TestbedError
from testbed.scenario.model import Context, Step, Steps, step

PATH = "/apis/testbed/v1/faults"
_NOTING = threading.Lock()
"""Steps of a timeline run in threads; what one records no other does."""


@step("fault")
class Fault(Step, frozen=True, kw_only=True, rename={"seconds": "for"}):
    """fault: its kind; target: nodes, pods or links, none: ``count`` chosen by the seed; options: the kind's.

    for: seconds until it is healed by itself; without, until a ``heal`` step, or until the steps of
    ``during`` are over. Goes on when the kernel shows it. seed: for what is chosen by chance.
    """

    fault: str
    target: tuple[str, ...] = ()
    selector: str = ""
    namespace: str = ""
    count: int | Literal["all"] = 0
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    seed: int = 0
    during: Steps = Steps()

    def lasting(self, seconds: float) -> Step:
        """It heals by itself."""
        return msgspec.structs.replace(self, seconds=seconds)

    def plan(self, context: Context) -> dict[str, Any]:
        """Its fields, and the seed that its target is drawn by."""
        return {**super().plan(context), "seed": self._seed(context)}

    def _seed(self, context: Context) -> int:
        return self.seed or context.draw.getrandbits(31)

    def run(self, context: Context) -> None:
        """Apply; with steps ``during`` it, run these and heal, whatever becomes of them."""
        request = {
            "fault": self.fault,
            "target": {
                "names": self.target,
                "selector": self.selector,
                "namespace": self.namespace,
                "count": self.count,
            },
            "options": self.options,
            "seconds": self.seconds,
            "seed": self._seed(context),
        }
        record = context.cluster.client.post(PATH, request, timeout=None)
        context.report(f"  {record['id']}: {self.fault} on {', '.join(record['target'])}")
        note_faults(context)
        if not self.during.listed:
            return
        try:
            self.during.run(context)
        finally:
            context.cluster.client.delete(f"{PATH}/{record['id']}")
            note_faults(context)

    def undo(self, context: Context) -> None:
        """Heal the last of this kind that is in force."""
        client = context.cluster.client
        active = [each for each in _active(context) if each["fault"] == self.fault]
        for record in active[-1:]:
            client.delete(f"{PATH}/{record['id']}")
        note_faults(context)


@step("heal")
class Heal(Step, frozen=True, kw_only=True):
    """fault: the kind of those that are healed, "": all that are in force."""

    fault: str = ""

    def run(self, context: Context) -> None:
        """Heal, the last first; goes on when the kernel shows it."""
        client = context.cluster.client
        active = [record for record in _active(context) if self.fault in ("", record["fault"])]
        if not active and self.fault:
            raise InputError(f"heal: no fault {self.fault} is in force")
        for record in reversed(active):
            client.delete(f"{PATH}/{record['id']}")
            context.report(f"  {record['id']}: {record['fault']} healed")
        note_faults(context)


def _active(context: Context) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = context.cluster.client.get(PATH)["items"]
    return [record for record in items if record.get("healed") is None]


def note_faults(context: Context) -> None:
    """Record what became of faults, at the times at which it happened, as far as it is not recorded yet."""
    items = context.cluster.client.get(PATH)["items"]
    with _NOTING:
        known = {
            (each.what, each.detail.get("id"))
            for each in list(context.events)
            if each.detail.get("variant", "") == context.variant
        }
        for record in items:
            detail = {name: record[name] for name in ("fault", "id", "target")}
            for what, moment in (
                ("fault applied", record["applied"]),
                ("fault healed", record.get("healed")),
            ):
                if moment is not None and (what, record["id"]) not in known:
                    context.note_at(what, moment, **detail)


def heal_what_is_left(context: Context) -> TestbedError | None:
    """At the end of a cluster's steps: heal what no step healed, and record it; what could not be healed."""
    try:
        if _active(context):
            context.cluster.client.delete(PATH)
        note_faults(context)
    except TestbedError as error:
        context.note("failed", error=str(error))
        return error
    return None
