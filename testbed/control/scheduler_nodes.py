"""What a pod's spec says of nodes: tolerations, node selectors, node affinity.

Sources: ``component-helpers/scheduling/corev1`` (ToleratesTaint, nodeaffinity).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Object = dict[str, Any]

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether one toleration covers one taint (core/v1 helper ``ToleratesTaint``)."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def untolerated(taints: Iterable[Object], tolerations: Sequence[Object]) -> int:
    """How many of the taints none of the tolerations covers."""
    return sum(not any(tolerates(toleration, taint) for toleration in tolerations) for taint in taints)


def matches(spec: Object, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a pod's nodeSelector and required node affinity allow a node."""
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    required = _node_affinity(spec).get(REQUIRED)
    return not required or any(_term(term, name, labels) for term in required.get("nodeSelectorTerms") or ())


def preference(spec: Object, name: str, labels: Mapping[str, str]) -> int:
    """The weights of the node preferences that a node fulfils."""
    return sum(
        int(entry["weight"])
        for entry in _node_affinity(spec).get(PREFERRED) or ()
        if _term(entry["preference"], name, labels)
    )


def has_preference(spec: Object) -> bool:
    """Whether a pod prefers nodes."""
    return bool(_node_affinity(spec).get(PREFERRED))


def named(spec: Object) -> set[str] | None:
    """The only nodes that required affinity names, None where it names none (NodeAffinity, PreFilter)."""
    terms = (_node_affinity(spec).get(REQUIRED) or {}).get("nodeSelectorTerms") or ()
    names: set[str] = set()
    for term in terms:
        found: set[str] | None = None
        for field in term.get("matchFields") or ():
            if field["key"] == "metadata.name" and field["operator"] == "In":
                values = set(field["values"])
                found = values if found is None else found & values
        if found is None:
            return None
        names |= found
    return names if terms else None


def _node_affinity(spec: Object) -> Object:
    return (spec.get("affinity") or {}).get("nodeAffinity") or {}


def _term(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    return (
        bool(expressions or fields)
        and all(_expression(labels, expression) for expression in expressions)
        and all(_expression({"metadata.name": name}, expression) for expression in fields)
    )


def _expression(labels: Mapping[str, str], expression: Object) -> bool:
    """One node selector requirement: set-based as in label selectors, plus Gt and Lt."""
    value = labels.get(expression["key"])
    values: list[str] = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            have, bound = _number(value), _number(values[0] if values else None)
            if have is None or bound is None:
                return False
            return have > bound if expression["operator"] == "Gt" else have < bound
        case _:
            return False


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch("-?[0-9]{1,18}", text) else None
