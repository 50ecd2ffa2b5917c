"""Patches: JSON merge patch, and the three-way merge by which ``kubectl apply`` changes an object.

Sources: RFC 7386; ``apimachinery/pkg/util/strategicpatch``.
"""

from __future__ import annotations

from typing import Any

from testbed.objects import schema
from testbed.objects.kinds import Object


def merge_patch(target: Any, patch: Any) -> Any:
    """``target`` with ``patch`` merged in: null deletes, objects merge, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged: Object = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def three_way(notation: str, last: Any, wanted: Any, live: Any) -> Any:
    """``live`` changed as ``kubectl apply`` would: what is wanted is set, what was and no longer is goes.

    notation: the values' type (``objects.schema``); last: what was wanted before, None if unknown. Lists
    whose items have a merge key are merged item by item, others are replaced.
    """
    if isinstance(wanted, dict) and isinstance(live, dict):
        return _three_way_object(notation, last if isinstance(last, dict) else {}, wanted, live)
    items = schema.list_of(notation)
    if items and items[0] and isinstance(wanted, list) and isinstance(live, list):
        return _three_way_list(items[0], items[1], last if isinstance(last, list) else [], wanted, live)
    return wanted


def _three_way_object(notation: str, last: Object, wanted: Object, live: Object) -> Object:
    merged = {key: value for key, value in live.items() if key in wanted or key not in last}
    fields = schema.struct(notation).fields if schema.is_struct(notation) else {}
    values = schema.map_of(notation) or "any"
    for key, value in wanted.items():
        merged[key] = three_way(fields.get(key, values), last.get(key), value, live.get(key))
    return merged


def _three_way_list(
    key: str, notation: str, last: list[Any], wanted: list[Any], live: list[Any]
) -> list[Any]:
    def by_identity(items: list[Any]) -> dict[Any, Any]:
        return {_identity(key, item): item for item in items}

    before, asked, present = by_identity(last), by_identity(wanted), by_identity(live)
    if len(asked) < len(wanted) or len(present) < len(live):
        return wanted
    merged = [
        three_way(notation, before.get(identity), item, present.get(identity))
        for identity, item in asked.items()
    ]
    kept = (item for identity, item in present.items() if identity not in asked and identity not in before)
    return [*merged, *kept]


def _identity(key: str, item: Any) -> Any:
    """What makes an item of a list the same item; one port number is another port in another protocol."""
    if key == "=" or not isinstance(item, dict):
        return str(item)
    is_port = key in ("port", "containerPort")
    return (str(item.get(key)), item.get("protocol", "TCP") if is_port else "")
