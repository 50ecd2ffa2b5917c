"""Endpoints objects: made for a Service with a selector, or mirrored into slices if people made them.

Sources: ``pkg/controller/endpoint/endpoints_controller.go``, ``pkg/api/v1/endpoints/util.go``
(RepackSubsets), ``pkg/controller/endpointslicemirroring``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from testbed.control.endpoints import ports
from testbed.control.endpoints.members import Member, is_headless
from testbed.control.endpoints.slices import (
    HEADLESS,
    MANAGED_BY,
    SERVICE_NAME,
    TRIGGER_TIME,
    Plan,
    is_owned,
    owner_reference,
    recycle,
    with_trigger,
)

Object = dict[str, Any]

MIRRORED_BY = "endpointslicemirroring-controller.k8s.io"
SKIP_MIRROR = "endpointslice.kubernetes.io/skip-mirror"
MAX_ADDRESSES = 1000
"""Of an Endpoints object; also what is mirrored of one subset."""

_ENDPOINTS_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
_OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
LEADER = "control-plane.alpha.kubernetes.io/leader"
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def endpoints_object(
    service: Object, members: Iterable[Member], stored: Object | None, *, trigger: str = ""
) -> Object | None:
    """The Endpoints object of a service with a selector; None where ``stored`` says the same already."""
    metadata = service["metadata"]
    subsets = _subsets(service, members)
    over = sum(len(_all(subset)) for subset in subsets) > MAX_ADDRESSES
    if over:
        subsets = _truncated(subsets)
    labels = {
        **{key: value for key, value in (metadata.get("labels") or {}).items() if key != HEADLESS},
        **({HEADLESS: ""} if is_headless(service) else {}),
        _ENDPOINTS_MANAGED_BY: "endpoint-controller",
    }
    before = (stored or {}).get("metadata", {})
    annotations = before.get("annotations") or {}
    if (
        stored is not None
        and (stored.get("subsets") or []) == subsets
        and before.get("labels") == labels
        and over == (_OVER_CAPACITY in annotations)
    ):
        return None
    annotations = {key: value for key, value in annotations.items() if key != _OVER_CAPACITY}
    if over:
        annotations[_OVER_CAPACITY] = "truncated"
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            **{key: value for key, value in before.items() if key != "annotations"},
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": labels,
            **with_trigger(annotations, trigger),
        },
        **({"subsets": subsets} if subsets else {}),
    }


def _subsets(service: Object, members: Iterable[Member]) -> list[Object]:
    """Ports that the same addresses offer stand together; addresses sorted by text."""
    by_ports: dict[ports.Ports, list[Member]] = {}
    for member in members:
        if member.address is not None:
            by_ports.setdefault(member.ports, []).append(member)
    if not service["spec"].get("ports"):
        everyone = by_ports.get((), [])
        return [_subset(everyone, ())] if everyone else []
    offered: dict[tuple[ports.Ports, ...], list[ports.Port]] = {}
    for port in dict.fromkeys(port for group in by_ports for port in group):
        offered.setdefault(tuple(group for group in by_ports if port in group), []).append(port)
    return [
        _subset([member for group in groups for member in by_ports[group]], tuple(offers))
        for groups, offers in sorted(offered.items(), key=lambda item: repr(sorted(map(repr, item[1]))))
    ]


def _subset(members: Iterable[Member], offers: ports.Ports) -> Object:
    ready: list[tuple[str, str, Object]] = []
    others: list[tuple[str, str, Object]] = []
    for member in members:
        if member.address is not None:
            (ready if member.ready else others).append((member.address["ip"], member.uid, member.address))
    named = (("addresses", ready), ("notReadyAddresses", others))
    subset: Object = {
        key: [address for _, _, address in sorted(found, key=lambda entry: entry[:2])]
        for key, found in named
        if found
    }
    return {**subset, "ports": ports.in_subset(offers)} if offers else subset


def _all(subset: Object) -> list[Object]:
    return [*(subset.get("addresses") or ()), *(subset.get("notReadyAddresses") or ())]


def _truncated(subsets: Sequence[Object]) -> list[Object]:
    """``truncateEndpoints``: cut in proportion, those that are not ready first."""
    ready = sum(len(subset.get("addresses", ())) for subset in subsets)
    cut = "addresses" if ready > MAX_ADDRESSES else "notReadyAddresses"
    room = left = MAX_ADDRESSES if ready > MAX_ADDRESSES else MAX_ADDRESSES - ready
    total = sum(len(subset.get(cut, ())) for subset in subsets)
    made = []
    for subset in subsets:
        addresses = subset.get(cut, [])
        keep = min(left, math.ceil(len(addresses) / total * room))
        left -= min(keep, len(addresses))
        rest = {key: value for key, value in subset.items() if key not in (cut, "notReadyAddresses")}
        made.append({**rest, **({cut: addresses[:keep]} if keep else {})})
    return made


# --- mirroring ------------------------------------------------------------------------------------------


def is_mirrored(endpoints: Object) -> bool:
    """Whether slices are made of an Endpoints object (of a service without a selector)."""
    metadata = endpoints["metadata"]
    return (metadata.get("labels") or {}).get(SKIP_MIRROR) != "true" and LEADER not in (
        metadata.get("annotations") or {}
    )


def mirror(endpoints: Object, stored: Sequence[Object]) -> Plan:
    """Bring the mirrored slices of an Endpoints object in line with it: one for each ports and family."""
    uid = endpoints["metadata"]["uid"]
    left: dict[tuple[ports.Ports, str], Object] = {}
    out = Plan()
    for one in stored:
        key = (ports.sorted_for_slice(ports.of_slice(one)), one["addressType"])
        if key in left or not is_owned(one, uid):
            out.delete.append(one)
        else:
            left[key] = one
    for (found, family), made in _mirrored(endpoints).items():
        new = _mirror_slice(endpoints, found, family, made)
        old = left.pop((found, family), None)
        if old is None:
            out.create.append(new)
        elif not _says_the_same(old, new):
            out.update.append({**new, "metadata": {**new["metadata"], "name": old["metadata"]["name"]}})
    out.create, recycled, out.delete = recycle(out.create, [*out.delete, *left.values()], uid)
    out.update += recycled
    return out


def _mirrored(endpoints: Object) -> Mapping[tuple[ports.Ports, str], list[Object]]:
    made: dict[tuple[ports.Ports, str], list[Object]] = {}
    for subset in endpoints.get("subsets") or ():
        found = ports.sorted_for_slice(ports.of_slice(subset))
        listed = [(address, True) for address in subset.get("addresses") or ()]
        listed += [(address, False) for address in subset.get("notReadyAddresses") or ()]
        for address, ready in listed[:MAX_ADDRESSES]:
            family = "IPv6" if ":" in address["ip"] else "IPv4"
            kept = {key: address[key] for key in ("hostname", "nodeName", "targetRef") if address.get(key)}
            endpoint = {"addresses": [address["ip"]], "conditions": {"ready": ready}, **kept}
            made.setdefault((found, family), []).append(endpoint)
    return made


def _mirror_slice(endpoints: Object, found: ports.Ports, family: str, made: list[Object]) -> Object:
    metadata = endpoints["metadata"]
    annotations = {
        key: value
        for key, value in (metadata.get("annotations") or {}).items()
        if key not in (TRIGGER_TIME, _LAST_APPLIED)
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "labels": {
                **(metadata.get("labels") or {}),
                SERVICE_NAME: metadata["name"],
                MANAGED_BY: MIRRORED_BY,
            },
            **({"annotations": annotations} if annotations else {}),
            "ownerReferences": [owner_reference(endpoints)],
        },
        "addressType": family,
        "endpoints": made,
        "ports": ports.in_slice(found),
    }


def _says_the_same(old: Object, new: Object) -> bool:
    return all(old.get(key) == new[key] for key in ("endpoints", "ports")) and all(
        (old["metadata"].get(key) or {}) == (new["metadata"].get(key) or {})
        for key in ("labels", "annotations")
    )
