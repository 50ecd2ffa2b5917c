"""Rules for what a pod says of where it may run: affinity and topology spread.

Source: ``pkg/apis/core/validation/validation.go`` (validateAffinity, ValidateNodeSelector,
validatePodAffinityTerm, validateTopologySpreadConstraints).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from testbed.documents import FieldPath
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, duplicate, forbidden, invalid, required, unsupported
from testbed.objects.validation import meta, names

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_ACTIONS = ("DoNotSchedule", "ScheduleAnyway")
_INCLUSION = ("Honor", "Ignore")
_NOT_POSITIVE = "must be greater than zero"


def affinity(path: FieldPath, given: Object | None) -> list[FieldError]:
    """What is wrong with an Affinity."""
    given = given or {}
    errors = list(_node_affinity((*path, "nodeAffinity"), given.get("nodeAffinity") or {}))
    for kind in ("podAffinity", "podAntiAffinity"):
        errors += _pod_affinity((*path, kind), given.get(kind) or {})
    return errors


def _node_affinity(path: FieldPath, given: Object) -> Iterator[FieldError]:
    if (wanted := given.get(REQUIRED)) is not None:
        here = (*path, REQUIRED, "nodeSelectorTerms")
        if not wanted.get("nodeSelectorTerms"):
            yield required(here, "must have at least one node selector term")
        for index, term in enumerate(wanted.get("nodeSelectorTerms") or ()):
            yield from _node_term((*here, index), term)
    for index, preferred in enumerate(given.get(PREFERRED) or ()):
        yield from _weight((*path, PREFERRED, index), preferred)
        yield from _node_term((*path, PREFERRED, index, "preference"), preferred.get("preference") or {})


def _weight(path: FieldPath, preferred: Object) -> Iterator[FieldError]:
    if not 1 <= (weight := preferred.get("weight", 0)) <= 100:
        yield invalid((*path, "weight"), weight, "must be in the range 1-100")


def _node_term(path: FieldPath, term: Object) -> Iterator[FieldError]:
    for index, requirement in enumerate(term.get("matchExpressions") or ()):
        here = (*path, "matchExpressions", index)
        yield from _requirement(here, requirement)
        key = requirement.get("key", "")
        yield from names.checked((*here, "key"), key, names.qualified_name(key))


def _requirement(path: FieldPath, requirement: Object) -> Iterator[FieldError]:
    values: Sequence[str] = requirement.get("values") or ()
    match requirement.get("operator", ""):
        case "In" | "NotIn":
            if not values:
                yield required((*path, "values"), "must be specified when `operator` is 'In' or 'NotIn'")
        case "Exists" | "DoesNotExist":
            if values:
                why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield forbidden((*path, "values"), why)
        case "Gt" | "Lt":
            if len(values) != 1:
                why = "must be specified single value when `operator` is 'Lt' or 'Gt'"
                yield required((*path, "values"), why)
        case other:
            yield invalid((*path, "operator"), other, "not a valid selector operator")


def _pod_affinity(path: FieldPath, given: Object) -> Iterator[FieldError]:
    for index, term in enumerate(given.get(REQUIRED) or ()):
        yield from _pod_term((*path, REQUIRED, index), term)
    for index, preferred in enumerate(given.get(PREFERRED) or ()):
        yield from _weight((*path, PREFERRED, index), preferred)
        yield from _pod_term(
            (*path, PREFERRED, index, "podAffinityTerm"), preferred.get("podAffinityTerm") or {}
        )


def _pod_term(path: FieldPath, term: Object) -> Iterator[FieldError]:
    for field in ("labelSelector", "namespaceSelector"):
        yield from meta.selector((*path, field), term.get(field))
    for name in term.get("namespaces") or ():
        yield from names.checked((*path, "namespace"), name, names.label(name))
    yield from _topology_key(path, term)


def _topology_key(path: FieldPath, given: Object) -> Iterator[FieldError]:
    key = given.get("topologyKey", "")
    if not key:
        yield required((*path, "topologyKey"), "can not be empty")
    yield from names.checked((*path, "topologyKey"), key, names.qualified_name(key))


def spread(path: FieldPath, constraints: Sequence[Object]) -> list[FieldError]:
    """What is wrong with TopologySpreadConstraints."""
    errors: list[FieldError] = []
    for index, constraint in enumerate(constraints):
        errors += _constraint((*path, index), constraint, constraints[index + 1 :])
    return errors


def _constraint(path: FieldPath, constraint: Object, later: Sequence[Object]) -> Iterator[FieldError]:
    if (skew := constraint.get("maxSkew", 0)) <= 0:
        yield invalid((*path, "maxSkew"), skew, _NOT_POSITIVE)
    if constraint.get("topologyKey"):
        yield from _topology_key(path, constraint)
    else:
        yield required((*path, "topologyKey"), "can not be empty")
    action = constraint.get("whenUnsatisfiable", "")
    if action not in _ACTIONS:
        yield unsupported((*path, "whenUnsatisfiable"), action, _ACTIONS)
    kind = _kind(constraint)
    if any(_kind(other) == kind for other in later):
        yield duplicate((*path, "{topologyKey, whenUnsatisfiable}"), f"{{{', '.join(kind)}}}")
    if (least := constraint.get("minDomains")) is not None:
        if least <= 0:
            yield invalid((*path, "minDomains"), least, _NOT_POSITIVE)
        if action != "DoNotSchedule":
            why = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
            yield invalid((*path, "minDomains"), least, why)
    for field in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
        if (policy := constraint.get(field)) is not None and policy not in _INCLUSION:
            yield unsupported((*path, field), policy, _INCLUSION)
    yield from meta.selector((*path, "labelSelector"), constraint.get("labelSelector"))


def _kind(constraint: Object) -> tuple[str, str]:
    return constraint.get("topologyKey", ""), constraint.get("whenUnsatisfiable", "")
