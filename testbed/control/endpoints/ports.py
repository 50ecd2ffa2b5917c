"""The ports of an endpoint: target ports looked up in a pod, in upstream's order.

Upstream sorts ports by a hash of how Go prints them, so their order is the same in every cluster and the
same here: ``endpointslice/util/controller_utils.go`` (portsInOrder), ``pkg/api/v1/endpoints/util.go``
(portsByHash), both FNV-128a of ``k8s.io/utils/dump.ForHash``.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

Object = dict[str, Any]

_FNV_OFFSET = 0x6C62272E07BB014262B821756295C58D
_FNV_PRIME = 0x0000000001000000000000000000013B
_FNV_MASK = (1 << 128) - 1


class Port(NamedTuple):
    """One port of an endpoint; port: None stands for every one, in a slice made by hand."""

    name: str
    protocol: str
    port: int | None
    app_protocol: str | None = None


Ports = tuple[Port, ...]


def resolve(service_spec: Object, pod_spec: Object) -> Ports:
    """The pod's ports behind the service's, those left out whose name no container has."""
    found = [
        Port(port.get("name", ""), port.get("protocol", "TCP"), number, port.get("appProtocol"))
        for port in service_spec.get("ports") or ()
        if (number := _target(port, pod_spec)) is not None
    ]
    return tuple(sorted(found, key=_slice_order) if len(found) > 1 else found)


def _target(port: Object, pod_spec: Object) -> int | None:
    """``FindPort``: a name is looked up together with the protocol, in containers, then in sidecars."""
    wanted = port.get("targetPort") or port["port"]
    if isinstance(wanted, int):
        return wanted
    sidecars = [one for one in pod_spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    for container in [*(pod_spec.get("containers") or ()), *sidecars]:
        for declared in container.get("ports") or ():
            if declared.get("name") == wanted and declared.get("protocol", "TCP") == port.get(
                "protocol", "TCP"
            ):
                return int(declared["containerPort"])
    return None


def of_slice(endpoint_slice: Object) -> Ports:
    """The ports that a stored slice has."""
    return tuple(
        Port(port.get("name", ""), port.get("protocol", "TCP"), port.get("port"), port.get("appProtocol"))
        for port in endpoint_slice.get("ports") or ()
    )


def in_slice(ports: Ports) -> list[Object] | None:
    """As an EndpointSlice has them; None for none, as a slice comes back from etcd."""
    return [
        {
            "name": port.name,
            "port": port.port,
            "protocol": port.protocol,
            **({"appProtocol": port.app_protocol} if port.app_protocol is not None else {}),
        }
        for port in ports
    ] or None


def in_subset(ports: Ports) -> list[Object]:
    """As a subset of an Endpoints object has them, in its order."""
    return [
        {
            **({"name": port.name} if port.name else {}),
            "port": port.port,
            "protocol": port.protocol,
            **({"appProtocol": port.app_protocol} if port.app_protocol is not None else {}),
        }
        for port in sorted(ports, key=_subset_order)
    ]


def sorted_for_slice(ports: Ports) -> Ports:
    """Ports in a slice's order."""
    return tuple(sorted(ports, key=_slice_order))


@cache
def _slice_order(port: Port) -> int:
    return _fnv128a(
        f"(v1.EndpointPort){{Name:(*string){port.name} Protocol:(*v1.Protocol){port.protocol}"
        f" Port:(*int32){_or_nil(port.port)} AppProtocol:(*string){_or_nil(port.app_protocol)}}}"
    )


@cache
def _subset_order(port: Port) -> int:
    return _fnv128a(
        f"(v1.EndpointPort){{Name:(string){port.name} Port:(int32){port.port}"
        f" Protocol:(v1.Protocol){port.protocol} AppProtocol:(*string){_or_nil(port.app_protocol)}}}"
    )


def _or_nil(value: object) -> str:
    return "<nil>" if value is None else str(value)


def _fnv128a(text: str) -> int:
    number = _FNV_OFFSET
    for byte in text.encode():
        number = (number ^ byte) * _FNV_PRIME & _FNV_MASK
    return number
