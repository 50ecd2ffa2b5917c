"""Who probes whom: ends of a flow by pod, pod selector, Service, node port, node, host or address. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

import msgspec

from testbed.errors import InputError
from testbed.measure.paths import Endpoint, path_of
from testbed.objects.selectors import parse_labels

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
SERVICE_PATH: Final = "service"
NODE_PORT_PATH: Final = "node port"
OUTSIDE_PATH: Final = "outside"
Family = Literal["ipv4", "ipv6"]


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"node_port": "nodePort"}):
    """One end, by exactly one of: ``pod`` (name), ``pods`` (label selector, "" for all), ``service``,
    ``nodePort`` (a Service, asked at its node port on ``node``, or on every node), ``node``, ``host``,
    ``ip``.

    namespace: of pod, pods, service and nodePort. port: of a Service its number or name, by default its
    first; else by default the first that the pod declares."""

    pod: str | None = None
    pods: str | None = None
    service: str | None = None
    node_port: str | None = None
    node: str | None = None
    host: str | None = None
    ip: str | None = None
    namespace: str = "default"
    port: PortNumber | str | None = None

    @property
    def how(self) -> str:
        """Which of them it is. Raises InputError where it is none or several."""
        names = ("pod", "pods", "service", "node_port", "node", "host", "ip")
        given = [name for name in names if getattr(self, name) is not None]
        if "node_port" in given and "node" in given:
            given.remove("node")
        if len(given) != 1:
            raise InputError(
                "an end is one of pod, pods, service, nodePort, node, host, ip; given: "
                + (", ".join(given) or "none")
            )
        return given[0]

    def __str__(self) -> str:
        how = self.how
        return f"{how.replace('node_port', 'node port')} {getattr(self, how) or '(all)'}"


@dataclass(frozen=True)
class Where:
    """A destination. key: of its netns, "" where that is nobody's we know."""

    name: str
    namespace: str
    node: str
    ip: str
    port: int
    key: str = ""
    path: str = ""


@dataclass(frozen=True)
class Known:
    """What there is to name. service: (namespace, name) → the object; raises InputError where there is
    none."""

    endpoints: Sequence[Endpoint]
    nodes: Sequence[Endpoint]
    service: Callable[[str, str], Mapping[str, Any]]


def sources(end: End, known: Known) -> list[Endpoint]:
    """The endpoints that an end names as sources. Raises InputError where there is none."""
    match end.how:
        case "pod" | "pods":
            found = _pods(end, known)
        case "node":
            found = [node for node in known.nodes if node.name == end.node]
        case "host":
            found = [one for one in known.endpoints if one.is_host and one.name == end.host]
        case _:
            raise InputError(f"from: must be pod, pods, node or host, not {end}")
    if gone := [one.gone for one in found if one.gone]:
        raise InputError(f"from: {end}: {gone[0]}")
    if not found:
        raise InputError(f"from: there is no {end}")
    return found


def destinations(end: End, known: Known, ports: str, default: int, family: Family | None) -> list[Where]:
    """Where an end leads as a destination. ports: protocol whose ports count, "" where none is needed;
    default: the port if none is told. Raises InputError."""
    match end.how:
        case "service":
            return [_service(end, known, family)]
        case "node_port":
            return _node_ports(end, known, family)
        case "ip":
            return [
                Where(str(end.ip), "", "", _address(str(end.ip)), _number(end) or default, "", OUTSIDE_PATH)
            ]
        case "pod" | "pods":
            found = _pods(end, known)
        case "node":
            found = [node for node in known.nodes if node.name == end.node]
        case _:
            found = [one for one in known.endpoints if one.is_host and one.name == end.host]
    if not found:
        raise InputError(f"to: there is no {end}")
    listed = []
    for one in found:
        ip, port = one.ip(family), _number(end) or (one.port(ports) if ports else None) or default
        if ip is None:
            raise InputError(f"to: {one.name} has no {family} address")
        if ports and not port:
            raise InputError(f"to: {one.name} declares no {ports.upper()} port; say which: port: N")
        listed.append(Where(one.name, one.namespace, one.node, ip, port, one.key))
    return listed


def flows(
    froms: Sequence[Endpoint], tos: Sequence[Where], by_key: Mapping[str, Endpoint]
) -> list[tuple[Endpoint, Where]]:
    """Every source with every destination but itself, each with its way. Raises InputError where none is
    left."""
    found = []
    for source in froms:
        for target in tos:
            if target.key == source.key:
                continue
            end = by_key.get(target.key)
            path = target.path or (_way(source, end) if end is not None else OUTSIDE_PATH)
            found.append(
                (
                    source,
                    Where(
                        target.name, target.namespace, target.node, target.ip, target.port, target.key, path
                    ),
                )
            )
    if not found:
        raise InputError("the only flow would be one to itself")
    return found


def _way(source: Endpoint, target: Endpoint) -> str:
    return OUTSIDE_PATH if "node:" in (source.key[:5], target.key[:5]) else path_of(source, target)


def _pods(end: End, known: Known) -> list[Endpoint]:
    selected = parse_labels(end.pods or "") if end.how == "pods" else None
    found = [
        one
        for one in known.endpoints
        if not one.is_host
        and one.namespace == end.namespace
        and (selected(one.labels) if selected is not None else one.name == end.pod)
    ]
    return sorted(found, key=lambda one: (one.node, one.name))


def _service(end: End, known: Known, family: Family | None) -> Where:
    name = str(end.service)
    spec = known.service(end.namespace, name)["spec"]
    ips = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]
    ip = next((ip for ip in ips if family is None or (":" in ip) == (family == "ipv6")), None)
    if ip is None:
        raise InputError(f"to: Service {name} has no cluster IP" + (f" of {family}" if family else ""))
    return Where(name, end.namespace, "", ip, int(_port(spec, end, name)["port"]), "", SERVICE_PATH)


def _node_ports(end: End, known: Known, family: Family | None) -> list[Where]:
    name = str(end.node_port)
    port = _port(known.service(end.namespace, name)["spec"], end, name).get("nodePort")
    if not port:
        raise InputError(f"to: Service {name} has no node port")
    nodes = [node for node in known.nodes if end.node in (None, node.name)]
    if not nodes:
        raise InputError(f"to: there is no node {end.node}")
    return [
        Where(f"{name} at {node.name}", end.namespace, node.name, ip, int(port), "", NODE_PORT_PATH)
        for node in nodes
        if (ip := node.ip(family)) is not None
    ]


def _port(spec: Mapping[str, Any], end: End, name: str) -> Mapping[str, Any]:
    ports: Sequence[Mapping[str, Any]] = spec.get("ports") or ()
    for port in ports:
        if end.port is None or end.port in (port.get("port"), port.get("name")):
            return port
    raise InputError(f"to: Service {name} has no port" + (f" {end.port}" if end.port is not None else ""))


def _number(end: End) -> int | None:
    if isinstance(end.port, str):
        raise InputError(f"to: a port of {end} is a number, not {end.port!r}")
    return end.port


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise InputError(f"to: not an IP address: {text!r}") from error
