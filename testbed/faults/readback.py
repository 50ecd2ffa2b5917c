"""Whether a netns shows what perturbing changed of its state; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from testbed.rules.iptables import is_built_in, with_numbers
from testbed.state import Chain, NetnsState, NodeState

IDENTIFYING = frozenset({"dst", "mac", "via", "address", "kind"})
UNREAD = frozenset({"sysctls", "udp"})
"""Parts that are not read back: sysctls are written or fail, and UDP connections are ended, not kept."""
UNNAMED = "peer"
"""A reading of a link does not name its other end, which is a link of its own."""


def changed_netns(before: NodeState, after: NodeState) -> Iterator[tuple[str, NetnsState, NetnsState]]:
    """Every netns of a node that two states describe differently: (``""`` or pod uid, before, after).

    A pod that a plugin refused is made when it no longer does: it is no netns that changes.
    """
    if before.netns != after.netns:
        yield "", before.netns, after.netns
    for uid, pod in after.pods.items():
        old = before.pods.get(uid)
        if old is None or old is pod or old.refused or pod.refused:
            continue
        if old.netns != pod.netns:
            yield uid, old.netns, pod.netns


def unlike(before: NetnsState, after: NetnsState, found: NetnsState) -> list[str]:
    """What of the change from ``before`` to ``after`` is not in ``found``, each in a few words."""
    problems: list[str] = []
    for part in NetnsState.__struct_fields__:
        if part in UNREAD:
            continue
        old, new, seen = getattr(before, part), getattr(after, part), getattr(found, part)
        for key in {**old, **new}:
            if old.get(key) == new.get(key):
                continue
            shown = f"{part} {_shown(key)}"
            problems += [f"{shown}: {each}" for each in _unlike(old.get(key), new.get(key), seen.get(key))]
    return problems


def _unlike(old: Any, new: Any, seen: Any) -> Iterator[str]:
    if isinstance(new or old, Chain) and is_built_in(new or old):
        wanted, gone = (set(chain.rules) if chain else set() for chain in (new, old))
        there = set(map(with_numbers, seen.rules)) if seen else set()
        yield from (f"no rule {rule}" for rule in sorted(wanted - gone - there))
        yield from (f"still has {rule}" for rule in sorted((gone - wanted) & there))
    elif new is None:
        if seen is not None:
            yield "is still there"
    elif seen is None:
        yield "is not there"
    elif isinstance(new, Chain):
        if new.rules != seen.rules:
            yield "has other rules"
    else:
        yield from (
            f"{name} is {getattr(seen, name)!r}, not {value!r}"
            for name, value in _said(new, old).items()
            if name != UNNAMED and getattr(seen, name) != value
        )


def _said(new: Any, old: Any) -> dict[str, Any]:
    """What the change is about: fields that differ; of something new those by which it is known."""
    fields = {name: getattr(new, name) for name in new.__struct_fields__ if getattr(new, name) is not None}
    if old is None:
        return {name: value for name, value in fields.items() if name in IDENTIFYING}
    return {name: value for name, value in fields.items() if getattr(old, name) != value}


def _shown(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
