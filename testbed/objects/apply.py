"""Applying a batch of objects as ``kubectl apply`` does, but all or nothing.

Runs on a copy of the store: everything is read, defaulted, checked against the rules and against what the
store and the batch itself hold. Only if nothing at all is wrong does the copy become the store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from testbed.documents import FieldPath
from testbed.errors import Problem
from testbed.objects import admission, schema
from testbed.objects.kinds import Kind, Object, find
from testbed.objects.manifests import Manifest
from testbed.objects.merge import three_way
from testbed.objects.status import ApiError, FieldError
from testbed.objects.store import Store

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

Action = Literal["created", "configured", "unchanged"]
Result = tuple[str, str, Action]
"""What kubectl prints before the slash (``deployment.apps``), the name, and what was done."""


def apply_all(store: Store, objects: Sequence[Any]) -> list[Result]:
    """Create or change all objects, namespaces first; the results are in the order given.

    Raises one ApiError for everything that is wrong, and then nothing is changed. Its causes' fields start
    with the object's place in the batch: ``objects[3].spec.replicas``.
    """
    results: dict[int, Result] = {}
    refusals: list[tuple[int, ApiError]] = []
    with store.transaction() as trial:
        for index in sorted(range(len(objects)), key=lambda index: not _is_namespace(objects[index])):
            try:
                results[index] = apply_one(trial, objects[index])
            except ApiError as error:
                refusals += [(index, one) for one in _everything_wrong(trial, objects[index], error)]
        if refusals:
            raise _all_of(sorted(refusals, key=lambda refusal: refusal[0]))
    return [results[index] for index in range(len(objects))]


def _everything_wrong(trial: Store, obj: Any, first: ApiError) -> list[ApiError]:
    """The first refusal and those behind it, found by taking the first's cause away in the doomed copy."""
    found = [first]
    while (obj := _without_cause(trial, obj, found[-1])) is not None:
        try:
            apply_one(trial, obj)
        except ApiError as error:
            found.append(error)
        else:
            break
    return found


def _without_cause(trial: Store, obj: Any, error: ApiError) -> Any:
    """The object as far as it can be read, or in a namespace made for it; None for any other refusal."""
    if error.reason == "BadRequest" and error.errors:
        copied, unreadable = schema.read(obj)
        return None if unreadable.wrong else copied
    if error.reason == "NotFound" and error.details.get("kind") == "namespaces":
        name = error.details["name"]
        trial.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, trusted=True)
        return obj
    return None


def apply_one(store: Store, obj: Any) -> Result:
    """Create an object, or change the one of its name to what it says. Raises ApiError."""
    kind, wanted = _checked(obj)
    metadata = wanted["metadata"]
    name = metadata.get("name")
    if not name:
        why = "resource name may not be empty"
        raise ApiError.invalid(kind, "", [FieldError(("metadata", "name"), why, "FieldValueRequired")])
    wanted = _annotated(wanted)
    live = store.find(kind.kind, metadata.get("namespace") or "default" if kind.namespaced else "", name)
    if live is None:
        store.create(wanted)
        return kind.printed, name, "created"
    last = last_applied(live)
    merged = three_way(schema.type_of(wanted["apiVersion"], kind.kind), last, wanted, live)
    changed = store.update(merged) is not live
    return kind.printed, name, "configured" if changed else "unchanged"


def _checked(obj: Any) -> tuple[Kind, Object]:
    if not isinstance(obj, dict):
        raise ApiError.bad_request("is not an object")
    api_version, name = str(obj.get("apiVersion", "")), str(obj.get("kind", ""))
    kind = find(api_version, name)
    if kind is None:
        raise ApiError.no_such_kind(api_version, name)
    return kind, admission.readable(kind, obj)


def _is_namespace(obj: Any) -> bool:
    return isinstance(obj, dict) and obj.get("kind") == "Namespace"


def _annotated(obj: Object) -> Object:
    """The object with a note of what was asked for, by which the next apply knows what to take away."""
    metadata = obj["metadata"]
    annotations = {
        key: value for key, value in metadata.get("annotations", {}).items() if key != LAST_APPLIED
    }
    plain = {**obj, "metadata": {**metadata, "annotations": annotations}}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")) + "\n"
    return {**obj, "metadata": {**metadata, "annotations": {**annotations, LAST_APPLIED: text}}}


def last_applied(live: Object) -> Any:
    """What was last asked for of an object by an apply; None where that is not known."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "")
    try:
        return json.loads(text)
    except ValueError:  # anybody may write the annotation; without it nothing is taken away
        return None


def _all_of(refusals: Iterable[tuple[int, ApiError]]) -> ApiError:
    refusals = list(refusals)
    causes: list[FieldError] = []
    for index, error in refusals:
        at = ("objects", index)
        causes += [FieldError((*at, *one.path), one.message, one.reason) for one in error.errors] or [
            FieldError(at, error.message, error.reason)
        ]
    if len(refusals) == 1:
        error = refusals[0][1]
        return ApiError(error.code, error.reason, error.message, details=error.details, errors=causes)
    message = "; ".join(error.message for _, error in refusals)
    return ApiError(422, "Invalid", message, errors=causes)


# --- on the client's side ---------------------------------------------------------------------------------

_BATCH_FIELD = re.compile(r"objects\[(\d+)\]\.?(.*)", re.DOTALL)
_PATH_PART = re.compile(r"\[([^\]]*)\]|([^.\[]+)")


def parse_path(text: str) -> FieldPath:
    """The opposite of ``documents.format_path``: ``spec.ports[0].name`` as a tuple."""
    parts = (match[1] if match[2] is None else match[2] for match in _PATH_PART.finditer(text))
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def problems_for(manifests: Sequence[Manifest], refusal: ApiError | Mapping[str, Any]) -> list[Problem]:
    """What was wrong with a batch as problems with file and line; [] if the refusal names no objects.

    refusal: of ``apply_all``, or the Status a server sent for it.
    """
    details = refusal.details if isinstance(refusal, ApiError) else refusal.get("details") or {}
    problems = []
    for cause in details.get("causes") or ():
        message, field = str(cause.get("message", "")), str(cause.get("field", ""))
        match = _BATCH_FIELD.fullmatch(field)
        if match is None or int(match[1]) >= len(manifests):
            problems.append(Problem(message, path=field))
        else:
            problems.append(manifests[int(match[1])].problem(parse_path(match[2]), message))
    return problems
