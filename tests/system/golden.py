"""Recorded objects and ours in one form: what chance, time and the choice of a node put in is replaced.

See the README beside the recorded files for what is random there. ``tests/golden/api`` has copies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from testbed.objects.manifests import SOURCE_ANNOTATION

CASES = Path(__file__).parents[1] / "golden" / "api"
READY, RECORDED_READY = "testbed/ready", "oracle/ready"

Object = dict[str, Any]
Listing = Callable[[str], list[Object]]
"""Kind → every object of it in a cluster."""

SECTIONS = ("live", "pods", "endpointSlices", "endpoints", "owned", "onePodInFull")

_ABSENT = ("uid", "resourceVersion", "managedFields", "selfLink")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_TRIGGERED = "endpoints.kubernetes.io/last-change-trigger-time"
_PORTS = ("nodePort", "healthCheckNodePort")
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_DRAWN = (
    (re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"), "TIME"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UID"),
    (re.compile(r"\b[456789bcdf]{7,10}\b"), "HASH"),
    (re.compile(rf"-[{_LETTERS}]{{5}}$"), "-?????"),
    (re.compile(r"^10\.244\.\d+\.\d+$"), "POD-IPv4"),
    (re.compile(r"^192\.168\.100\.\d+$"), "NODE-IPv4"),
    (re.compile(r"^10\.(9[6-9]|10\d|11[01])\.\d+\.\d+$"), "SERVICE-IPv4"),
    (re.compile(r"^fd00:10:96::[0-9a-f:]*$"), "SERVICE-IPv6"),
    (re.compile(r"^node-\d$"), "NODE"),
    (re.compile(r"^zone-[ab]$"), "ZONE"),
)
_UNRECORDED = (*_ABSENT, _LAST_APPLIED, SOURCE_ANNOTATION)
_UNORDERED = ("endpoints", "addresses", "notReadyAddresses", "conditions")


def load(path: Path) -> Any:
    """A recorded case, with the annotation for readiness that means the same here."""
    return yaml.safe_load(path.read_text().replace(RECORDED_READY, READY))


def by_form(value: Any, key: str = "") -> Any:
    """A value with everything drawn replaced by its form, and lists without an order sorted."""
    if isinstance(value, dict):
        kept = {name: one for name, one in value.items() if name not in _UNRECORDED}
        if value.get("kind") == "EndpointSlice" and "metadata" in value:
            # How many writes it took to get there is a matter of time.
            kept["metadata"] = {name: one for name, one in value["metadata"].items() if name != "generation"}
        if value.get("kind") == "Service" and value.get("spec", {}).get("type") == "LoadBalancer":
            # The recorded cluster has no cloud, so nobody gave it an address and watches over it.
            unwatched = {name: one for name, one in value["metadata"].items() if name != "finalizers"}
            kept |= {"metadata": unwatched, "status": {"loadBalancer": {}}}
        if value.get("kind") == "Endpoints":
            # Of two looks at a service within a second the later one takes the note of the time away again.
            kept["metadata"] = {**value["metadata"], "annotations": _untimed(value["metadata"])}
        formed = {name: by_form(one, name) for name, one in kept.items()}
        return {name: one for name, one in formed.items() if not (name == "annotations" and one == {})}
    if isinstance(value, list):
        formed_list = [by_form(one) for one in value]
        if key in _UNORDERED:
            formed_list.sort(key=lambda one: json.dumps(one, sort_keys=True))
        return formed_list
    if isinstance(value, str):
        for pattern, form in _DRAWN:
            value = pattern.sub(form, value)
        return value
    return "PORT" if key in _PORTS and value else value


def _untimed(metadata: Object) -> Object:
    annotations = metadata.get("annotations") or {}
    return {key: value for key, value in annotations.items() if key != _TRIGGERED}


def as_set(objects: Iterable[Object]) -> list[Any]:
    """Objects by form, in an order of their own."""
    return sorted((by_form(obj) for obj in objects), key=lambda one: json.dumps(one, sort_keys=True))


def section(case: Object, name: str, listing: Listing) -> Any:
    """What a cluster has in a case's section, as the recorder wrote it down."""
    match name:
        case "live":
            return [_same(listing(obj["kind"]), obj) for obj in case["live"]]
        case "pods":
            return [pod_row(pod) for pod in pods_of(case, listing)]
        case "endpointSlices":
            return [
                slice_
                for slice_ in listing("EndpointSlice")
                if _service_of(slice_) in _names(case, "Service")
            ]
        case "endpoints":
            return [one for one in listing("Endpoints") if one["metadata"]["name"] in _names(case, "Service")]
        case "owned":
            owners = {(obj["kind"], obj["metadata"]["name"]) for obj in case["live"]}
            owned = [*listing("ReplicaSet"), *listing("ControllerRevision")]
            return [one for one in owned if owners & set(_owners(one))]
        case "onePodInFull":
            wanted = by_form(case[name])
            every = pods_of(case, listing)
            alike = [pod for pod in every if by_form(pod)["metadata"]["name"] == wanted["metadata"]["name"]]
            return (alike or [{}])[0]
        case _:
            raise ValueError(name)


def pods_of(case: Object, listing: Listing) -> list[Object]:
    """The pods of the workloads of a case, whether their own or by a ReplicaSet's."""
    owners = {(obj["kind"], obj["metadata"]["name"]) for obj in case["live"]}
    sets = [one for one in listing("ReplicaSet") if owners & set(_owners(one))]
    owners |= {("ReplicaSet", one["metadata"]["name"]) for one in sets}
    return [pod for pod in listing("Pod") if owners & set(_owners(pod))]


def pod_row(pod: Object) -> Object:
    """A pod as the recorder's list has it."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    return {
        "name": metadata["name"],
        "generateName": metadata.get("generateName"),
        "labels": metadata.get("labels"),
        "owner": [f"{one['kind']}/{one['name']}" for one in metadata.get("ownerReferences") or ()],
        "node": spec.get("nodeName"),
        "hostname": spec.get("hostname"),
        "subdomain": spec.get("subdomain"),
        "podIP": status.get("podIP"),
        "ready": [one["status"] for one in status.get("conditions") or () if one["type"] == "Ready"],
    }


def inconsistencies(listing: Listing) -> list[str]:
    """Endpoints that do not say of their pod what is true of it, hashes that are not their owner's alone."""
    pods = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in listing("Pod")}
    zones = {
        node["metadata"]["name"]: (node["metadata"].get("labels") or {}).get("topology.kubernetes.io/zone")
        for node in listing("Node")
    }
    found = []
    for slice_ in listing("EndpointSlice"):
        for endpoint in slice_.get("endpoints") or ():
            target = endpoint.get("targetRef")
            if target is None:
                continue
            pod = pods.get((target["namespace"], target["name"]))
            node = endpoint.get("nodeName", "")
            if pod is None:
                found.append(f"{slice_['metadata']['name']}: no pod {target['name']}")
            elif (
                pod["metadata"]["uid"] != target.get("uid")
                or pod["spec"].get("nodeName") != node
                or not set(endpoint["addresses"]) <= {one["ip"] for one in pod["status"].get("podIPs", ())}
                or endpoint.get("zone") != zones.get(node)
            ):
                found.append(f"{slice_['metadata']['name']}: {endpoint} is not {pod['metadata']['name']}")
    hashes: dict[str, str] = {}
    for pod in pods.values():
        label = (pod["metadata"].get("labels") or {}).get("pod-template-hash")
        for owner in _owners(pod) if label is not None else ():
            if not owner[1].endswith(f"-{label}") or hashes.setdefault(owner[1], label) != label:
                found.append(f"{pod['metadata']['name']} of {owner} has the hash {label}")
    return found


def _same(objects: list[Object], wanted: Object) -> Object:
    metadata = wanted["metadata"]
    return next(
        (
            obj
            for obj in objects
            if (obj["metadata"]["name"], obj["metadata"].get("namespace"))
            == (metadata["name"], metadata.get("namespace"))
        ),
        {},
    )


def _names(case: Object, kind: str) -> set[str]:
    return {obj["metadata"]["name"] for obj in case["live"] if obj["kind"] == kind}


def _service_of(slice_: Object) -> str:
    name: str = (slice_["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
    return name


def _owners(obj: Object) -> list[tuple[str, str]]:
    return [(one["kind"], one["name"]) for one in obj["metadata"].get("ownerReferences") or ()]
