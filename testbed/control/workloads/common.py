"""What all workload controllers share: pods' states, owners, counts, conditions, revisions.

Sources: ``pkg/controller/controller_utils.go``, ``controller_ref_manager.go``, ``pkg/api/v1/pod/util.go``,
``pkg/controller/history/controller_history.go``.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from testbed.objects.selectors import matches, matches_labels

Object = dict[str, Any]

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_HASH_LETTERS = "456789bcdf"  # rand.SafeEncodeString of the ten digits

POD_NAME = "{pod}"
"""Stands for the pod's name in the text of an event about a pod that has no name yet."""
WHY = "{why}"
"""Stands for the server's message in the text of an event about a creation that it refused."""


class Happened(NamedTuple):
    """An event about the owner."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass
class Outcome:
    """What a controller wants done, in this order: update, create, delete; then the owner's new status.

    created, deleted, refused: the texts of events about pods, with POD_NAME and WHY to be filled in.
    status: None leaves it as it is. later: seconds after which to look again; None: when something changes.
    """

    update: list[Object] = field(default_factory=list)
    create: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    status: Object | None = None
    events: list[Happened] = field(default_factory=list)
    created: str = f"Created pod: {POD_NAME}"
    deleted: str = f"Deleted pod: {POD_NAME}"
    refused: str = f"Error creating: {WHY}"
    later: float | None = None

    def look_again(self, seconds: float) -> None:
        """Ask to be called again after so many seconds, or earlier if that was asked for before."""
        self.later = seconds if self.later is None else min(self.later, seconds)


# --- time -------------------------------------------------------------------------------------------------


def timestamp(now: float) -> str:
    """Seconds since 1970 as the API prints them."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a time as the API prints it."""
    return datetime.fromisoformat(text).timestamp()


# --- pods -------------------------------------------------------------------------------------------------


def condition_of(obj: Object, kind: str) -> Object | None:
    """The condition of that type in an object's status."""
    for condition in obj.get("status", {}).get("conditions") or ():
        if condition["type"] == kind:
            found: Object = condition
            return found
    return None


def is_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition is True."""
    ready = condition_of(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def is_terminating(obj: Object) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in obj["metadata"]


def is_finished(pod: Object) -> bool:
    """Whether its phase is Succeeded or Failed."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Neither finished nor being deleted."""
    return not is_terminating(pod) and not is_finished(pod)


def ready_since(pod: Object) -> float:
    """Since when a ready pod is so; 0 where its condition does not say."""
    changed = (condition_of(pod, "Ready") or {}).get("lastTransitionTime")
    return seconds_of(changed) if changed else 0.0


def unavailable_for(pod: Object, min_ready: int, now: float) -> float:
    """Seconds until a pod that stays ready is available: 0 if it is, infinite if it is not ready."""
    if not is_ready(pod):
        return math.inf
    return max(0.0, ready_since(pod) + min_ready - now) if min_ready else 0.0


def count_available(pods: Iterable[Object], min_ready: int, now: float, out: Outcome) -> int:
    """How many pods are available; when the next one of those that are ready becomes so, ``out`` is told."""
    available = 0
    for pod in pods:
        missing = unavailable_for(pod, min_ready, now)
        if not missing:
            available += 1
        elif missing < math.inf:
            out.look_again(missing)
    return available


def counts(**numbers: int) -> Object:
    """Status counters as the API prints them: zeros are left out."""
    return {name: number for name, number in numbers.items() if number}


def share(value: int | str | None, total: int, *, up: bool) -> int:
    """A number, or a percentage of ``total`` rounded up or down (``apimachinery/pkg/util/intstr``)."""
    if isinstance(value, str):
        exact = int(value.rstrip("%")) * total
        return -(-exact // 100) if up else exact // 100
    return value or 0


def whole(text: str, otherwise: int = 0) -> int:
    """The number that an annotation gives; what is none, as anybody may write it, counts as ``otherwise``."""
    return int(text) if _WHOLE.fullmatch(text) else otherwise


# --- owners -----------------------------------------------------------------------------------------------


def owner_reference(owner: Object) -> Object:
    """The controller reference to ``owner``."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_of(obj: Object) -> Object | None:
    """The reference to what controls an object."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: Object = reference
            return found
    return None


def selects(owner: Object, obj: Object) -> bool:
    """Whether the owner's selector matches the object's labels; an empty selector selects nothing."""
    selector, labels = owner["spec"].get("selector"), obj["metadata"].get("labels")
    if not selector:
        return False
    if owner["kind"] == "ReplicationController":
        return matches_labels(selector, labels)
    return matches(selector, labels)


def adopted(owner: Object, obj: Object) -> Object:
    """An object without a controller, now the owner's."""
    metadata = obj["metadata"]
    references = [*(metadata.get("ownerReferences") or ()), owner_reference(owner)]
    return {**obj, "metadata": {**metadata, "ownerReferences": references}}


def released(owner: Object, obj: Object) -> Object:
    """An object of the owner's, no longer so."""
    metadata = dict(obj["metadata"])
    left = [entry for entry in metadata.pop("ownerReferences") if entry["uid"] != owner["metadata"]["uid"]]
    return {**obj, "metadata": metadata | ({"ownerReferences": left} if left else {})}


def pod_from(template: Object, owner: Object, *, name: str = "", labels: Mapping[str, str] = {}) -> Object:
    """A pod of a template. Without ``name`` it gets one of upstream's five random letters."""
    metadata: Object = {"name": name} if name else {}
    metadata["generateName"] = f"{owner['metadata']['name']}-"
    metadata["namespace"] = owner["metadata"]["namespace"]
    source = template.get("metadata") or {}
    if source.get("labels") or labels:
        metadata["labels"] = {**(source.get("labels") or {}), **labels}
    for key in ("annotations", "finalizers"):
        if source.get(key):
            metadata[key] = source[key]
    metadata["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


# --- conditions -------------------------------------------------------------------------------------------


def with_condition(conditions: Sequence[Object], new: Object) -> list[Object]:
    """The conditions with ``new`` at the end, unless one says the same (``SetDeploymentCondition``).

    While the status of a condition stays, so does its lastTransitionTime.
    """
    old = next((entry for entry in conditions if entry["type"] == new["type"]), None)
    if old is not None and old["status"] == new["status"]:
        if old.get("reason") == new.get("reason"):
            return list(conditions)
        new = {**new, "lastTransitionTime": old["lastTransitionTime"]}
    return [*without_condition(conditions, new["type"]), new]


def without_condition(conditions: Sequence[Object], kind: str) -> list[Object]:
    """The conditions but for those of one type."""
    return [entry for entry in conditions if entry["type"] != kind]


# --- templates and their history --------------------------------------------------------------------------


def template_hash(template: Object, collisions: int = 0) -> str:
    """A label value for a pod template: a 32-bit hash in upstream's safe alphabet.

    Upstream hashes Go's print of the structure; equal templates get equal hashes here as there, but not the
    same ones. collisions: how often a hash met another template's, which gives another one.
    """
    text = json.dumps([template, collisions] if collisions else template, sort_keys=True)
    return "".join(_HASH_LETTERS[int(digit)] for digit in str(zlib.crc32(text.encode())))


class Revisions(NamedTuple):
    """An owner's history. update: of its present template; old: the others, by number."""

    update: Object
    old: list[Object]


def revisions(
    owner: Object, known: Sequence[Object], hash_label: str, annotations: Object, out: Outcome
) -> Revisions:
    """The ControllerRevision of the present template, made or brought to the front where it is not so.

    known: those of the owner. A template that comes back gets its old revision with a new number.
    """
    template = owner["spec"]["template"]
    data = {"spec": {"template": {**template, "$patch": "replace"}}}
    update = next((revision for revision in known if revision["data"] == data), None)
    old = sorted((entry for entry in known if entry is not update), key=lambda entry: entry["revision"])
    number = old[-1]["revision"] + 1 if old else 1
    if update is None:
        digest = template_hash(template, owner.get("status", {}).get("collisionCount", 0))
        labels = {**((template.get("metadata") or {}).get("labels") or {}), hash_label: digest}
        metadata: Object = {
            "name": f"{owner['metadata']['name']}-{digest}",
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(owner)],
        }
        if annotations:
            metadata["annotations"] = annotations
        update = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": metadata,
            "data": data,
            "revision": number,
        }
        out.create.append(update)
    elif update["revision"] < number:
        update = {**update, "revision": number}
        out.update.append(update)
    return Revisions(update, old)


def forget_revisions(owner: Object, old: Sequence[Object], live: Iterable[str], out: Outcome) -> None:
    """Delete the oldest revisions beyond revisionHistoryLimit, but none of the ``live`` (by name)."""
    limit = owner["spec"].get("revisionHistoryLimit", 10)
    names = set(live)
    gone = [revision for revision in old if revision["metadata"]["name"] not in names]
    out.delete += gone[: max(0, len(gone) - limit)]
