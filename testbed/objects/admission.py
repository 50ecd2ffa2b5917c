"""What happens to an object between a request and the store: read strictly, defaulted, checked by the rules.

Pure: an object in, the object to store out, or an ``ApiError``. What needs to know other objects
(existence, versions, addresses) is the store's.
"""

from __future__ import annotations

from testbed.objects import defaults, schema
from testbed.objects.kinds import Kind, Object
from testbed.objects.status import ApiError
from testbed.objects.validation import service, validate, validate_status

_STATUS_OF_CREATOR = frozenset({"Node", "APIService", "Lease"})
"""Kinds whose creator, not a controller, gives the first status."""


def readable(kind: Kind, obj: Object) -> Object:
    """A copy of the object, which has the kind's fields with the right types. Raises ApiError (400)."""
    copied, found = schema.read(obj)
    if message := found.message():
        version = obj["apiVersion"].rpartition("/")[2]
        raise ApiError.bad_request(
            f'{kind.kind} in version "{version}" cannot be handled as a {kind.kind}: {message}',
            [*found.wrong, *found.unknown],
        )
    for part in ("metadata", "spec"):
        if part in schema.struct(schema.type_of(obj["apiVersion"], obj["kind"])).fields:
            copied.setdefault(part, {})
    return copied


def admit_new(kind: Kind, obj: Object, *, trusted: bool) -> Object:
    """A new object, named and placed, as it is stored. Raises ApiError (422).

    trusted: from a controller, with its defaults in and known to be right.
    """
    if trusted:
        return defaults.complete(obj)
    if kind.kind not in _STATUS_OF_CREATOR:
        obj.pop("status", None)
    obj = _defaulted(kind, obj, None)
    _refuse(kind, obj, None)
    return defaults.complete(obj)


def admit_update(kind: Kind, new: Object, old: Object, *, trusted: bool) -> Object:
    """An object that is to take the place of ``old``, as it is stored. Raises ApiError (422)."""
    if trusted:
        return new
    new = _defaulted(kind, new, old)
    if kind.kind == "Pod":
        new = defaults.complete(new)
    _refuse(kind, new, old)
    return new


def admit_status(kind: Kind, new: Object, *, trusted: bool) -> Object:
    """An object with a new status, as it is stored. Raises ApiError (422)."""
    if not trusted and (errors := validate_status(kind, new)):
        raise ApiError.invalid(kind, new["metadata"].get("name", ""), errors)
    return new


def _defaulted(kind: Kind, obj: Object, old: Object | None) -> Object:
    defaults.fill(obj)
    return service.prepare(obj, old) if kind.kind == "Service" else obj


def _refuse(kind: Kind, obj: Object, old: Object | None) -> None:
    if errors := validate(kind, obj, old):
        raise ApiError.invalid(kind, obj["metadata"].get("name", ""), errors)
