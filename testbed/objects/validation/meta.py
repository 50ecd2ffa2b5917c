"""Rules for metadata and for label selectors, which many kinds have.

Sources: ``apimachinery/pkg/api/validation/objectmeta.go``, ``apimachinery/pkg/apis/meta/v1/validation``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testbed.documents import FieldPath
from testbed.objects.kinds import Kind, Object
from testbed.objects.status import FieldError, forbidden, invalid, required
from testbed.objects.validation import names

_Rule = Callable[[str], list[str]]
_LABEL_NAMED = frozenset({"Namespace", "Service"})
_PATH_NAMED = frozenset({"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"})


def _name_rule(kind: Kind) -> _Rule:
    if kind.kind in _LABEL_NAMED:
        return names.label
    return names.path_segment if kind.kind in _PATH_NAMED else names.subdomain


def validate(kind: Kind, obj: Object, old: Object | None) -> list[FieldError]:
    """Name, namespace, labels, annotations, finalizers, owners."""
    given: Object = obj["metadata"]
    root: FieldPath = ("metadata",)
    errors: list[FieldError] = []
    if name := given.get("name"):
        errors += names.checked((*root, "name"), name, _name_rule(kind)(name))
    else:
        errors.append(required((*root, "name"), "name or generateName is required"))
    if namespace := given.get("namespace"):
        errors += names.checked((*root, "namespace"), namespace, names.label(namespace))
    errors += names.label_map((*root, "labels"), given.get("labels"))
    errors += names.annotation_map((*root, "annotations"), given.get("annotations"))
    for index, finalizer in enumerate(given.get("finalizers") or ()):
        errors += names.checked((*root, "finalizers", index), finalizer, names.qualified_name(finalizer))
    return errors + _owners((*root, "ownerReferences"), given.get("ownerReferences") or [])


def _owners(root: FieldPath, owners: list[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, owner in enumerate(owners):
        for name, why in (
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ):
            if not owner.get(name):
                errors.append(invalid((*root, index, name), owner.get(name, ""), why))
    controllers = [owner for owner in owners if owner.get("controller")]
    if len(controllers) > 1:
        first, second = (f"{owner.get('kind')}/{owner.get('name')}" for owner in controllers[:2])
        why = (
            "Only one reference can have Controller set to true. "
            f'Found "true" in references for {first} and {second}'
        )
        errors.append(invalid(root, owners, why))
    return errors


def selector(path: FieldPath, given: Object | None) -> list[FieldError]:
    """What is wrong with a LabelSelector."""
    if given is None:
        return []
    errors = names.label_map((*path, "matchLabels"), given.get("matchLabels"))
    for index, expression in enumerate(given.get("matchExpressions") or ()):
        errors += _expression((*path, "matchExpressions", index), expression)
    return errors


def _expression(path: FieldPath, expression: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    operator, values = expression.get("operator", ""), expression.get("values") or []
    match operator:
        case "In" | "NotIn":
            if not values:
                why = "must be specified when `operator` is 'In' or 'NotIn'"
                errors.append(required((*path, "values"), why))
        case "Exists" | "DoesNotExist":
            if values:
                why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                errors.append(forbidden((*path, "values"), why))
        case _:
            errors.append(invalid((*path, "operator"), operator, "not a valid selector operator"))
    key = expression.get("key", "")
    errors += names.checked((*path, "key"), key, names.qualified_name(key))
    for index, value in enumerate(values):
        errors += names.checked((*path, "values", index), value, names.label_value(value))
    return errors


def immutable(path: FieldPath, new: Any, old: Any) -> list[FieldError]:
    """``field is immutable`` where the two differ."""
    return [] if new == old else [invalid(path, new, "field is immutable")]


def not_negative(path: FieldPath, value: int | None) -> list[FieldError]:
    """``must be greater than or equal to 0`` for a negative number."""
    wrong = value is not None and value < 0
    return [invalid(path, value, "must be greater than or equal to 0")] if wrong else []
