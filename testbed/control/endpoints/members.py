"""A pod as the endpoints of one Service see it. Source: ``endpointslice/utils.go`` (podToEndpoint)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.control.endpoints import hints
from testbed.control.endpoints.ports import Ports, resolve

Object = dict[str, Any]

ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class Member:
    """A selected pod. endpoints: address type → its endpoint, none where it belongs in no slice.

    address, ready: its place in the legacy Endpoints object (None: none there). since: when its readiness
    last changed, "" where nothing says so.
    """

    uid: str
    since: str
    ports: Ports
    endpoints: Mapping[str, Object]
    address: Object | None
    ready: bool

    @property
    def counts(self) -> bool:
        """Whether anything stands for it in a slice or an Endpoints object."""
        return bool(self.endpoints) or self.address is not None


def selects(service: Object) -> bool:
    """Whether pods are looked for: it has a selector and stands for addresses, not for another name."""
    spec = service["spec"]
    return bool(spec.get("selector")) and spec.get("type") != "ExternalName"


def is_headless(service: Object) -> bool:
    """No address of its own."""
    return service["spec"].get("clusterIP") in (None, "", "None")


def address_types(service: Object) -> tuple[str, ...]:
    """``IPv4``, ``IPv6``, as the service has families, its first one first."""
    spec = service["spec"]
    if spec.get("ipFamilies"):
        return tuple(spec["ipFamilies"])
    if is_headless(service):
        return ("IPv4", "IPv6")
    return (_family(spec["clusterIP"]),)


def member(service: Object, pod: Object, node: Object | None) -> Member:
    """The pod as a member of the service; node: the labels of its node, None where there is no such node."""
    spec, metadata, status = service["spec"], pod["metadata"], pod.get("status") or {}
    uid, ready_condition = metadata["uid"], _ready_condition(status)
    since = ready_condition.get("lastTransitionTime") or ""
    ips = [entry["ip"] for entry in status.get("podIPs") or ()]
    if not ips or status.get("phase") in ("Succeeded", "Failed"):
        return Member(uid, since, (), {}, None, False)
    publish = bool(spec.get("publishNotReadyAddresses"))
    serving = ready_condition.get("status") == "True"
    terminating = "deletionTimestamp" in metadata
    ready = publish or (serving and not terminating)
    reference = {"kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": uid}
    shared: Object = {"targetRef": reference}
    if pod["spec"].get("nodeName"):
        shared["nodeName"] = pod["spec"]["nodeName"]
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain") == service["metadata"]["name"]:
        shared["hostname"] = pod["spec"]["hostname"]
    endpoints: dict[str, Object] = {}
    if node is not None or publish:
        common: Object = {
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
            **shared,
        }
        if zone := (node or {}).get(ZONE_LABEL):
            common["zone"] = zone
        if ready and (wanted := hints.of_distribution(service, common)):
            common["hints"] = wanted
        for family in address_types(service):
            if own := [ip for ip in ips if _family(ip) == family]:
                endpoints[family] = {"addresses": own, **common}
    address = None
    if not terminating or publish:
        primary = address_types(service)[0]
        address = next(({"ip": ip, **shared} for ip in ips if _family(ip) == primary), None)
    return Member(uid, since, resolve(spec, pod["spec"]), endpoints, address, publish or serving)


def _ready_condition(status: Object) -> Object:
    for condition in status.get("conditions") or ():
        if condition["type"] == "Ready":
            return dict(condition)
    return {}


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
