"""Label and field selectors: of objects (matchLabels, matchExpressions) and of the command line.

Source: ``apimachinery/pkg/labels/selector.go``, ``apimachinery/pkg/fields/selector.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from testbed.objects.kinds import Object
from testbed.objects.status import ApiError

Labels = Mapping[str, str]
Predicate = Callable[[Labels], bool]


def matches(selector: Mapping[str, Any] | None, labels: Labels | None) -> bool:
    """Whether a LabelSelector selects these labels: an empty one everything, None nothing."""
    if selector is None:
        return False
    labels = labels or {}
    return matches_labels(selector.get("matchLabels"), labels) and all(
        holds(labels, expression["key"], expression["operator"], expression.get("values") or ())
        for expression in selector.get("matchExpressions") or ()
    )


def matches_labels(wanted: Labels | None, labels: Labels | None) -> bool:
    """Whether ``labels`` has every pair of ``wanted``: a map selector, as a Service's."""
    labels = labels or {}
    return all(labels.get(key) == value for key, value in (wanted or {}).items())


def holds(labels: Labels, key: str, operator: str, values: Any) -> bool:
    """Whether one requirement, as in matchExpressions, is fulfilled."""
    match operator:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"not a label selector operator: {operator}")


_KEY = r"(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)"
_VALUE = r"[-A-Za-z0-9_.]*"
_REQUIREMENT = re.compile(
    rf"\s*(?:{_KEY}\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    rf"|{_KEY.replace('key', 'key2')}\s*(?P<op>==|=|!=)\s*(?P<value>{_VALUE})"
    rf"|(?P<not>!?)\s*{_KEY.replace('key', 'key3')})\s*(?:,|$)"
)


def parse_labels(text: str) -> Predicate:
    """A selector as in ``-l 'a=b,c!=d,e in (x,y),f notin (z),g,!h'``. Raises ApiError (400)."""
    requirements = list(_requirements(text))
    return lambda labels: all(holds(labels, *requirement) for requirement in requirements)


def _requirements(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if not text.strip():
        return
    position = 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if match is None or (match.end() == len(text) and text.rstrip().endswith(",")):
            raise ApiError.bad_request(
                f"unable to parse requirement: {text[position:]!r} in selector {text!r}"
            )
        position = match.end()
        if match["set"]:
            values = tuple(value.strip() for value in match["values"].split(","))
            yield match["key"], "In" if match["set"] == "in" else "NotIn", values
        elif match["op"]:
            yield match["key2"], "NotIn" if match["op"] == "!=" else "In", (match["value"],)
        else:
            yield match["key3"], "DoesNotExist" if match["not"] else "Exists", ()


_COMMON_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_FIELDS: dict[str, frozenset[str]] = {
    "Pod": frozenset(
        {"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"}
        | {"spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName"}
    ),
    "Node": frozenset({"spec.unschedulable"}),
    "Namespace": frozenset({"status.phase"}),
    "Secret": frozenset({"type"}),
    "Job": frozenset({"status.successful"}),
    "ReplicaSet": frozenset({"status.replicas"}),
    "ReplicationController": frozenset({"status.replicas"}),
    "Service": frozenset({"spec.clusterIP", "spec.type"}),
    "Event": frozenset(
        {"reason", "reportingComponent", "source", "type"}
        | {
            f"involvedObject.{part}"
            for part in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")
        }
    ),
}


def parse_fields(kind: str, text: str) -> Callable[[Object], bool]:
    """A selector as in ``--field-selector spec.nodeName=node-1,status.phase!=Running``.

    Raises ApiError (400) for a field that this kind cannot be selected by.
    """
    wanted: list[tuple[str, str, bool]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        field, operator, value = re.match(r"([^=!]*)(==|=|!=|$)(.*)", part).groups()  # type: ignore[union-attr]
        if not operator:
            raise ApiError.bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        if field not in _COMMON_FIELDS | _FIELDS.get(kind, frozenset()):
            raise ApiError.bad_request(f"field label not supported: {field}")
        wanted.append((field, value, operator == "!="))
    return lambda obj: all((_field(obj, field) == value) != negated for field, value, negated in wanted)


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None or isinstance(value, bool):
        return str(bool(value)).lower() if path in ("spec.hostNetwork", "spec.unschedulable") else ""
    return str(value)
