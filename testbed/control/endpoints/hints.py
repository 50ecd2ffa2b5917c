"""Topology hints of endpoints: which zones and nodes should use them.

Sources: ``endpointslice/trafficdist/trafficdist.go`` for the field trafficDistribution,
``endpointslice/topologycache`` for the annotation topology-mode, which wins over it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Object = dict[str, Any]

_SAME_ZONE = ("PreferClose", "PreferSameZone", "PreferSameNode")
_OVERLOAD = 0.2
_EXCLUDED = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_ZONE = "topology.kubernetes.io/zone"
_MODE = ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode")


class HintEvent(NamedTuple):
    """An event on the Service."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def is_auto(service: Object) -> bool:
    """Whether the annotation asks for hints by zone CPU; the older name of it has precedence."""
    annotations = service["metadata"].get("annotations") or {}
    mode = next((annotations[key] for key in _MODE if key in annotations), "")
    return mode in ("Auto", "auto")


def of_distribution(service: Object, endpoint: Object) -> Object:
    """The hints of a ready endpoint by the service's trafficDistribution, empty for none."""
    wanted = service["spec"].get("trafficDistribution")
    if wanted not in _SAME_ZONE or is_auto(service):
        return {}
    found: Object = {}
    if zone := endpoint.get("zone"):
        found["forZones"] = [{"name": zone}]
    if wanted == "PreferSameNode" and (node := endpoint.get("nodeName")):
        found["forNodes"] = [{"name": node}]
    return found


def without(endpoint: Object) -> Object:
    """The endpoint with no hints."""
    if "hints" not in endpoint:
        return endpoint
    return {key: value for key, value in endpoint.items() if key != "hints"}


def zone_shares(nodes: Iterable[tuple[Mapping[str, str], bool, float]]) -> dict[str, float] | None:
    """Zone → its part of the ready nodes' CPU; None where a zone or CPU is unknown or there is one zone.

    nodes: labels, readiness and allocatable CPU in cores of each (``TopologyCache.SetNodes``).
    """
    cores: Counter[str] = Counter()
    amounts: dict[str, float] = {}
    for labels, ready, cpu in nodes:
        if not ready or any(label in labels for label in _EXCLUDED):
            continue
        zone = labels.get(_ZONE, "")
        if not zone or not cpu:
            return None
        cores[zone] += 1
        amounts[zone] = amounts.get(zone, 0.0) + cpu
    if len(cores) < 2:
        return None
    total = sum(amounts.values())
    return {zone: amounts[zone] / total for zone in sorted(amounts)}


def auto(
    slices: Sequence[list[Object]],
    changing: Sequence[bool],
    shares: Mapping[str, float] | None,
    *,
    had_hints: bool,
    address_type: str,
) -> tuple[list[list[Object]], list[HintEvent]]:
    """The endpoints of a service's slices with hints by zone CPU, or without any where that is unfair.

    changing: whether a slice is written anyway; others are left alone where their hints still hold.
    """
    total = sum(_ready(endpoint) for endpoints in slices for endpoint in endpoints)
    try:
        limits = _limits(total, shares)
        hinted = _allocate(slices, changing, limits)
    except _Unfair as reason:
        event = HintEvent("Warning", "TopologyAwareHintsDisabled", f"{reason}, addressType: {address_type}")
        return [[without(endpoint) for endpoint in endpoints] for endpoints in slices], [event]
    message = f"Topology Aware Hints has been enabled, addressType: {address_type}"
    return hinted, [] if had_hints else [HintEvent("Normal", "TopologyAwareHintsEnabled", message)]


class _Unfair(Exception):
    """No hints: the message is that of the event."""


class _Limit(NamedTuple):
    """How many endpoints a zone should have."""

    desired: float
    maximum: int


def _ready(endpoint: Object) -> bool:
    return endpoint["conditions"].get("ready") is True


def _limits(total: int, shares: Mapping[str, float] | None) -> dict[str, _Limit]:
    """``getAllocations``: each zone's endpoints, none overloaded by more than a fifth."""
    if shares is None:
        raise _Unfair(
            "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
        )
    counts = f"({total} endpoints, {len(shares)} zones)"
    if len(shares) > total:
        raise _Unfair(f"Insufficient number of endpoints {counts}")
    minima = {zone: math.ceil(share * total / (1 + _OVERLOAD)) for zone, share in shares.items()}
    spare = total - sum(minima.values())
    if spare < 0:
        raise _Unfair(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold "
            + counts
        )
    return {
        zone: _Limit(max(share * total, float(minima[zone])), minima[zone] + spare)
        for zone, share in shares.items()
    }


def _allocate(
    slices: Sequence[list[Object]], changing: Sequence[bool], limits: Mapping[str, _Limit]
) -> list[list[Object]]:
    """``AddHints``: every endpoint its own zone, then those too many given to zones with too few."""
    given: Counter[str] = Counter()
    fixed = [False] * len(slices)
    for index, endpoints in enumerate(slices):
        if not changing[index] and (kept := _kept(endpoints, given, limits)) is not None:
            given.update(kept)
            fixed[index] = True
    hinted = [list(endpoints) for endpoints in slices]
    places = [
        (index, position)
        for index, endpoints in enumerate(hinted)
        if not fixed[index]
        for position in range(len(endpoints))
    ]
    for index, position in places:
        endpoint = hinted[index][position] = without(hinted[index][position])
        if not _ready(endpoint):
            continue
        if not endpoint.get("zone"):
            raise _Unfair("One or more endpoints do not have a zone specified")
        given[endpoint["zone"]] += 1
        hinted[index][position] = {**endpoint, "hints": {"forZones": [{"name": endpoint["zone"]}]}}
    giving, receiving = _moves(limits, given)
    for index, position in places:
        endpoint = hinted[index][position]
        if _ready(endpoint) and giving[endpoint["zone"]] > 0 and (to := next(iter(+receiving), "")):
            hinted[index][position] = {**endpoint, "hints": {"forZones": [{"name": to}]}}
            giving[endpoint["zone"]] -= 1
            receiving[to] -= 1
    return hinted


def _kept(
    endpoints: Sequence[Object], given: Mapping[str, int], limits: Mapping[str, _Limit]
) -> Counter[str] | None:
    """The zones an unchanged slice's hints give; None where they no longer hold (``getHintsByZone``)."""
    found: Counter[str] = Counter()
    for endpoint in filter(_ready, endpoints):
        zones = [entry["name"] for entry in (endpoint.get("hints") or {}).get("forZones") or ()]
        if not zones or any(zone not in limits for zone in zones):
            return None
        found.update(zones)
    if any(count + given.get(zone, 0) > limits[zone].maximum for zone, count in found.items()):
        return None
    return found


def _moves(limits: Mapping[str, _Limit], given: Mapping[str, int]) -> tuple[Counter[str], Counter[str]]:
    """``getGivingAndReceivingZones``: zone → endpoints it gives away, zone → endpoints it gets."""
    over = {zone: given.get(zone, 0) - limit.desired for zone, limit in limits.items()}
    giving: Counter[str] = Counter()
    receiving: Counter[str] = Counter()
    while True:
        giver = max(over, key=lambda zone: over[zone])
        taker = min(over, key=lambda zone: over[zone])
        give, take = over[giver], -over[taker]
        if (give < 1 and take < 1) or give < 0.5 or take < 0.5:
            return giving, receiving
        giving[giver] += 1
        receiving[taker] += 1
        over[giver] -= 1
        over[taker] += 1
