"""Which fields each kind has and what may stand in them, and the strict reading of an object by that.

The table is ``schema.json``, written by ``tools/make_schema.py`` from the published API definitions, and
``schema_network_policy.json``, by hand from the types of kubernetes-sigs/network-policy-api.
Messages are those of the server's decoder: ``sigs.k8s.io/json`` in strict mode, ``encoding/json``.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from testbed.documents import FieldPath, format_path
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, required

_LIST = re.compile(r"\[([^\]]*)\](.*)")
_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[-+]\d\d:\d\d)")


@dataclass(frozen=True)
class Struct:
    """A type with fields. name: as Go prints it (``PodSpec``); go: with its package (``v1.PodSpec``)."""

    name: str
    go: str
    fields: dict[str, str]
    required: tuple[str, ...] = field(default=())


@cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = {"kinds": {}, "types": {}}
    for name in ("schema.json", "schema_network_policy.json"):
        part = json.loads(files("testbed.objects").joinpath(name).read_bytes())
        for table in loaded:
            loaded[table] |= part[table]
    return loaded


@cache
def struct(name: str) -> Struct:
    """The type that a notation names, e.g. ``core.v1.PodSpec``."""
    entry = _data()["types"][name]
    return Struct(
        name.rpartition(".")[2], name.partition(".")[2], entry["fields"], tuple(entry.get("required", ()))
    )


@cache
def is_struct(notation: str) -> bool:
    """Whether a notation names a type with fields."""
    return notation in _data()["types"]


def type_of(api_version: str, kind: str) -> str:
    """The notation of a kind's type."""
    name: str = _data()["kinds"][f"{api_version}/{kind}"]
    return name


@cache
def list_of(notation: str) -> tuple[str, str] | None:
    """(merge key, items' notation) of a list's notation; the key is "" where a patch replaces the list."""
    match = _LIST.fullmatch(notation)
    return (match[1], match[2]) if match else None


def map_of(notation: str) -> str:
    """The values' notation of a map's; "" for what is no map."""
    return notation[4:] if notation.startswith("map:") else ""


@dataclass
class Unreadable:
    """What is wrong with an object: wrong types (the decoder stops at the first), unknown fields."""

    wrong: list[FieldError] = field(default_factory=list)
    unknown: list[FieldError] = field(default_factory=list)

    def message(self) -> str:
        """The decoder's message; "" if all is well."""
        if self.wrong:
            return self.wrong[0].message
        unknown = ", ".join(error.message for error in self.unknown)
        return f"strict decoding error: {unknown}" if unknown else ""


def read(obj: Object) -> tuple[Object, Unreadable]:
    """A copy of an object as the server reads it, and all that is wrong with it.

    Fields that are null, and empty lists and maps that are optional, are left out, as storing does. The
    kind must be in the table.
    """
    reader = _Reader()
    copied = reader.read_struct(type_of(obj["apiVersion"], obj["kind"]), obj, (), "")
    return copied, reader.found


class _Reader:
    """One strict reading. go: the name of the struct and field a value is in, as Go's messages say it."""

    def __init__(self) -> None:
        self.found = Unreadable()

    def read(self, notation: str, value: Any, path: FieldPath, go: str) -> Any:
        """The value if it is of the type, else something harmless and a problem noted."""
        if is_struct(notation):
            return self.read_struct(notation, value, path, go)
        if (items := list_of(notation)) is not None:
            if not isinstance(value, list):
                return self._wrong(value, notation, path, go, [])
            return [
                self.read(items[1], item, (*path, index), go) if item is not None else _zero(items[1])
                for index, item in enumerate(value)
            ]
        if values := map_of(notation):
            if not isinstance(value, dict):
                return self._wrong(value, notation, path, go, {})
            return {
                key: self.read(values, item, (*path, key), go) if item is not None else _zero(values)
                for key, item in value.items()
            }
        return self._scalar(notation, value, path, go)

    def read_struct(self, notation: str, value: Any, path: FieldPath, go: str) -> Object:
        """A value of a type with fields."""
        if not isinstance(value, dict):
            wrong: Object = self._wrong(value, notation, path, go, {})
            return wrong
        kind = struct(notation)
        names = _go_names(go)
        copied: Object = {}
        for name, item in value.items():
            field_notation = kind.fields.get(name)
            here = (*path, name)
            if field_notation is None:
                message = f'unknown field "{format_path(here)}"'
                self.found.unknown.append(FieldError(here, message))
            elif item is not None:
                go_here = f"{kind.name}.{names}.{name}" if names else f"{kind.name}.{name}"
                read = self.read(field_notation, item, here, go_here)
                if read not in ([], {}) or name in kind.required or _kept_empty(field_notation):
                    copied[name] = read
        return copied

    def _scalar(self, notation: str, value: Any, path: FieldPath, go: str) -> Any:
        if (problem := _CHECKS[notation](value)) is None:
            return value
        if problem:
            self.found.wrong.append(FieldError(path, problem))
            return _zero(notation)
        return self._wrong(value, notation, path, go, _zero(notation))

    def _wrong(self, value: Any, notation: str, path: FieldPath, go: str, instead: Any) -> Any:
        what = _json_type(value)
        if what == "number" and notation in ("int32", "int64"):
            what = f"number {json.dumps(value)}"
        message = f"json: cannot unmarshal {what} into Go struct field {go} of type {_go_type(notation)}"
        self.found.wrong.append(FieldError(path, message))
        return instead


def _kept_empty(notation: str) -> bool:
    """Whether ``{}`` says something: structs are pointers in Go, lists and maps are not."""
    return notation == "any" or is_struct(notation)


def _go_names(go: str) -> str:
    """``Service.spec.ports`` without the struct: the path so far."""
    return go.partition(".")[2]


def _json_type(value: Any) -> str:
    for kind, name in ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "number"


def _go_type(notation: str) -> str:
    if (items := list_of(notation)) is not None:
        return "[]" + _go_type(items[1])
    if values := map_of(notation):
        return "map[string]" + _go_type(values)
    if is_struct(notation):
        return struct(notation).go
    return {"double": "float64", "bytes": "[]uint8", "intstr": "int32", "time": "string"}.get(
        notation, notation
    )


def _zero(notation: str) -> Any:
    if list_of(notation) is not None:
        return []
    if map_of(notation) or is_struct(notation):
        return {}
    return {"bool": False, "int32": 0, "int64": 0, "double": 0, "intstr": 0, "any": None}.get(notation, "")


# A check says None for a good value, "" for one of the wrong type, or what is wrong with it.
_Check = Callable[[Any], str | None]


def _integer(bits: int) -> _Check:
    limit = 1 << (bits - 1)

    def check(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and -limit <= value < limit
        return None if good else ""

    return check


def _quantity(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "json: cannot unmarshal " + _json_type(value) + " into Go value of type string"
    text = str(value)
    match = _QUANTITY.fullmatch(text)
    if match and match[1].count(".") <= 1 and _is_suffix(match[2]):
        return None
    return (
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        if match is None
        else "unable to parse quantity's suffix"
    )


def _is_suffix(text: str) -> bool:
    return text in _SUFFIXES or re.fullmatch(r"[eE][-+]?[0-9]+", text) is not None


_SUFFIXES = frozenset(["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])


def _time(value: Any) -> str | None:
    if not isinstance(value, str):
        return "json: cannot unmarshal " + _json_type(value) + " into Go value of type string"
    if _TIME.fullmatch(value):
        return None
    return f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse it'


def _bytes(value: Any) -> str | None:
    if not isinstance(value, str):
        return ""
    try:
        b64decode(value.replace("\n", "").replace("\r", ""), validate=True)
    except ValueError:
        return "illegal base64 data"
    return None


def _int_or_string(value: Any) -> str | None:
    return None if isinstance(value, str) else _CHECKS["int32"](value)


_CHECKS: dict[str, _Check] = {
    "string": lambda value: None if isinstance(value, str) else "",
    "bool": lambda value: None if isinstance(value, bool) else "",
    "int32": _integer(32),
    "int64": _integer(64),
    "double": lambda value: None if isinstance(value, int | float) and not isinstance(value, bool) else "",
    "any": lambda value: None,
    "quantity": _quantity,
    "intstr": _int_or_string,
    "time": _time,
    "bytes": _bytes,
}


def missing(obj: Object) -> list[FieldError]:
    """The fields that the published schema requires and the object does not have, at any depth.

    For kinds without rules of their own; the server's own rules say the same of most of these.
    """
    found: list[FieldError] = []
    _missing(type_of(obj["apiVersion"], obj["kind"]), obj, (), found)
    return found


def _missing(notation: str, value: Any, path: FieldPath, found: list[FieldError]) -> None:
    if is_struct(notation):
        kind = struct(notation)
        found.extend(required((*path, name)) for name in kind.required if value.get(name) in (None, ""))
        for name, item in value.items():
            _missing(kind.fields[name], item, (*path, name), found)
    elif (items := list_of(notation)) is not None:
        for index, item in enumerate(value):
            _missing(items[1], item, (*path, index), found)
    elif (values := map_of(notation)) and is_struct(values):
        for key, item in value.items():
            _missing(values, item, (*path, key), found)
