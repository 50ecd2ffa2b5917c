"""Questions about policies, and answers in plain data: who is meant by a name, what is allowed, what changes.

Pure; the API serves it, ``testbed policy`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from testbed.control.policies import Block, Policy
from testbed.control.snapshot import EndpointSlice, Pod, Service, Snapshot
from testbed.errors import InputError
from testbed.policy.meaning import PROTOCOLS, Decision, Flow, Meaning, Verdict, holds_address, network
from testbed.policy.plan import DIRECTIONS

OUTSIDE = {"ipv4": "203.0.113.1", "ipv6": "2001:db8::1"}
"""Addresses of nobody (RFC 5737, RFC 3849), for what a change means to the world outside."""


@dataclass(frozen=True)
class End:
    """One end of flows: an address and what it is called."""

    name: str
    ip: str


@dataclass(frozen=True)
class Asked:
    """One flow by the names of its ends. by: the Service and port that it goes by, "" for none."""

    source: End
    target: End
    flow: Flow
    by: str = ""


def asked(
    snapshot: Snapshot, source: str, target: str, protocol: str, port: int | None, namespace: str = "default"
) -> list[Asked]:
    """The flows that ``--from``, ``--to``, ``--port`` and ``--protocol`` mean.

    source, target: an address, ``POD``, ``NAMESPACE/POD``, ``pod/POD``; target also ``SERVICE``,
    ``svc/SERVICE`` and ``svc/NAMESPACE/SERVICE``. An address by which a Service is reached stands for it.
    namespace: of names without one. port None: every port that a pod declares. Raises InputError.
    """
    protocol = protocol.upper()
    here = _end(snapshot, source, namespace)
    kind, _, rest = target.partition("/")
    if kind in ("svc", "service", "services"):
        return list(_by_service(snapshot, here, _service(snapshot, rest, namespace), protocol, port))
    if (reached := _at(snapshot, here, target, protocol, port)) is not None:
        return list(_by_service(snapshot, here, *reached))
    try:
        there = _end(snapshot, target, namespace)
    except InputError:
        if (service := snapshot.services.get(_named(target, namespace))) is None:
            raise
        return list(_by_service(snapshot, here, service, protocol, port))
    there = _same_family(snapshot, here, there)
    ports = [port] if port is not None else _declared(snapshot, there, protocol)
    return [Asked(here, there, Flow(here.ip, there.ip, protocol, each)) for each in ports]


def _named(text: str, namespace: str) -> tuple[str, str]:
    where, slash, name = text.rpartition("/")
    return (where, name) if slash else (namespace, name)


def _end(snapshot: Snapshot, text: str, namespace: str) -> End:
    """An end by name or address; a hostNetwork pod is its node. Raises InputError."""
    try:
        address = str(ip_address(text))
    except ValueError:
        where, name = _named(text.removeprefix("pod/").removeprefix("pods/"), namespace)
        found = [pod for pod in snapshot.pods if (pod.namespace, pod.name) == (where, name)]
        if not found or not found[0].ips:
            raise InputError(f"no pod {name!r} with an address in namespace {where!r}") from None
        return End(f"{where}/{name}", found[0].ips[0])
    known = {ip: _called(pod) for pod in snapshot.pods if not pod.host_network for ip in pod.ips}
    return End(known.get(address, address), address)


def _service(snapshot: Snapshot, text: str, namespace: str) -> Service:
    key = _named(text, namespace)
    if key not in snapshot.services:
        raise InputError(f"no service {key[1]!r} in namespace {key[0]!r}")
    return snapshot.services[key]


def _at(
    snapshot: Snapshot, here: End, text: str, protocol: str, port: int | None
) -> tuple[Service, str, int | None] | None:
    """The Service that an address leads to before policy sees the packet, with protocol and its own port.

    A node port does so at the pod's own node; another node translates behind the pod's policies.
    """
    try:
        wanted = str(ip_address(text))
    except ValueError:
        return None
    own = next((pod.node for pod in snapshot.pods if here.ip in pod.ips), "")
    at_node = any(wanted in node.addresses for node in snapshot.nodes if node.name == own)
    for service in snapshot.services.values():
        if wanted in (*service.cluster_ips, *service.external_ips, *service.vips):
            return service, protocol, port
        for each in service.ports if at_node else ():
            if each.protocol == protocol and port is not None and each.node_port == port:
                return service, protocol, each.port
    return None


def _same_family(snapshot: Snapshot, here: End, there: End) -> End:
    """The target's address in the family of the source's, where it has one."""
    for pod in snapshot.pods:
        if there.ip in pod.ips:
            same = [ip for ip in pod.ips if (":" in ip) == (":" in here.ip)]
            return End(there.name, same[0]) if same else there
    return there


def _declared(snapshot: Snapshot, there: End, protocol: str) -> list[int]:
    if protocol not in PROTOCOLS:
        return [0]
    for pod in snapshot.pods:
        if there.ip in pod.ips and (ports := declared(pod, protocol)):
            return ports
    raise InputError(f"say --port: {there.name} declares no {protocol} port")


def declared(pod: Pod, protocol: str) -> list[int]:
    """The numbers of the ports that a pod's containers, sidecars too, declare for a protocol."""
    containers = (*pod.containers, *pod.sidecars)
    return sorted(
        {port.container_port for each in containers for port in each.ports if port.protocol == protocol}
    )


def undeclared(pods: Iterable[Pod], protocols: Sequence[str] = PROTOCOLS) -> list[str]:
    """The pods that declare no port of these protocols, which nobody is asked about unless by number."""
    return [_called(pod) for pod in pods if not any(declared(pod, each) for each in protocols)]


def _by_service(
    snapshot: Snapshot, here: End, service: Service, protocol: str, port: int | None
) -> Iterator[Asked]:
    """A flow for each endpoint that a Service leads to: policy sees the pod and its own port."""
    called = f"{service.namespace}/{service.name}"
    ports = [each for each in service.ports if each.protocol == protocol and port in (None, each.port)]
    if not ports:
        raise InputError(f"service {called} has no {protocol} port{'' if port is None else f' {port}'}")
    found = 0
    for each in ports:
        for ip, number in _endpoints(snapshot.slices.get((service.namespace, service.name), ()), each.name):
            if (":" in ip) == (":" in here.ip):
                found += 1
                there = _end(snapshot, ip, service.namespace)
                by = f"{called}:{each.port}"
                yield Asked(here, there, Flow(here.ip, ip, protocol, number or each.port), by)
    if not found:
        raise InputError(f"service {called} has no ready endpoint of the source's family")


def _endpoints(slices: Iterable[EndpointSlice], port: str) -> Iterator[tuple[str, int]]:
    for each in slices:
        for endpoint_port in each.ports:
            if endpoint_port.name == port:
                for endpoint in each.endpoints:
                    if endpoint.ready:
                        yield endpoint.addresses[0], endpoint_port.number or 0


def table(snapshot: Snapshot, pods: Sequence[Pod], protocol: str, port: int | None) -> list[Asked]:
    """Every pod to every other one, on the port given or on every port that the target declares."""
    found = []
    for source in pods:
        for target in pods:
            ends = _common(source, target)
            if source is target or ends is None:
                continue
            ports = [port] if port is not None else declared(target, protocol)
            here, there = End(_called(source), ends[0]), End(_called(target), ends[1])
            found += [Asked(here, there, Flow(here.ip, there.ip, protocol, each)) for each in ports]
    return found


def _common(source: Pod, target: Pod) -> tuple[str, str] | None:
    """Addresses of both in one family, the source's primary one if that can be."""
    for ip in source.ips:
        for other in target.ips:
            if (":" in ip) == (":" in other):
                return ip, other
    return None


def _called(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


def changes(
    before: Snapshot, after: Snapshot, hosts: Mapping[str, str]
) -> list[tuple[Asked, Verdict, Verdict]]:
    """The flows that are allowed in one cluster and not in the other, with both verdicts.

    Between all pods, and between each and: the nodes, ``hosts`` outside (address → name), an address of
    nobody, and one in each range and each exception that a policy names; on every port that a pod declares.
    """
    was, will = Meaning(before), Meaning(after)
    others = _others((*before.policies, *after.policies), after, hosts)
    found = []
    for each in _everything(after, others):
        old, new = was.allowed(each.flow), will.allowed(each.flow)
        if old.allowed != new.allowed:
            found.append((each, old, new))
    return found


def _others(policies: Iterable[Policy], snapshot: Snapshot, hosts: Mapping[str, str]) -> list[End]:
    """Who is no pod, each address once."""
    named = dict.fromkeys(OUTSIDE.values(), "outside") | dict(hosts)
    named |= {ip: f"node {node.name}" for node in snapshot.nodes for ip in node.addresses}
    taken = named.keys() | {ip for pod in snapshot.pods for ip in pod.ips}
    for block in _blocks(policies):
        for cidr in (block.cidr, *block.excepts):
            inner = [Block(each) for each in block.excepts if each != cidr]
            free = (ip for ip in _some(cidr) if not any(holds_address(each, ip) for each in inner))
            ip = next(free, "")
            if ip and ip not in taken:
                named.setdefault(ip, f"{ip} in {cidr}")
    return [End(name, ip) for ip, name in named.items()]


def _blocks(policies: Iterable[Policy]) -> Iterator[Block]:
    for policy in policies:
        for direction in DIRECTIONS:
            for rule in policy.rules(direction) or ():
                for peer in rule.peers or ():
                    yield from peer.blocks


def _some(cidr: str) -> Iterator[str]:
    """Addresses of a range: the second and what follows at growing steps, the last, the first."""
    whole = network(cidr)
    first, size = whole.network_address, whole.num_addresses
    steps = (1 << bit for bit in range(size.bit_length()))
    yield from (str(first + step) for step in steps if step < size)
    yield str(first + (size - 1))
    yield str(first)


def _everything(snapshot: Snapshot, others: Sequence[End]) -> Iterator[Asked]:
    pods = [pod for pod in snapshot.pods if not pod.host_network]
    for protocol in PROTOCOLS:
        numbers = sorted({port for pod in pods for port in declared(pod, protocol)})
        yield from table(snapshot, pods, protocol, None)
        for pod in pods:
            for ip in pod.ips:
                here = End(_called(pod), ip)
                for other in (other for other in others if (":" in other.ip) == (":" in ip)):
                    for port in declared(pod, protocol):
                        yield Asked(other, here, Flow(other.ip, ip, protocol, port))
                    for port in numbers:
                        yield Asked(here, other, Flow(ip, other.ip, protocol, port))


# --- as plain data ----------------------------------------------------------------------------------------

Places = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""(kind, namespace, name) → ``file`` and ``lines`` (field path → line) of the manifest it came from."""


def told(each: Asked, verdict: Verdict, places: Places) -> dict[str, Any]:
    """A verdict as data: the flow, whether it is allowed, and who says so and where."""
    return {
        "from": each.source.name,
        "to": each.target.name,
        "by": each.by,
        "sourceIP": each.flow.source,
        "destinationIP": each.flow.destination,
        "protocol": each.flow.protocol,
        "port": each.flow.port,
        "allowed": verdict.allowed,
        "reason": str(verdict.deciding),
        "egress": _decision(verdict.egress, places),
        "ingress": _decision(verdict.ingress, places),
    }


def _decision(decision: Decision, places: Places) -> dict[str, Any]:
    objects = [decision.policy] if decision.policy is not None else list(decision.isolating)
    return {
        "allowed": decision.allowed,
        "reason": str(decision),
        "objects": [_object(policy, decision, places) for policy in objects],
    }


def _object(policy: Policy, decision: Decision, places: Places) -> dict[str, Any]:
    field = field_of(decision)
    place = places.get((policy.kind, policy.namespace, policy.name), {})
    lines = place.get("lines", {})
    line = next((lines[path] for path in _parents(field) if path in lines), 0)
    return {
        "kind": policy.kind,
        "namespace": policy.namespace,
        "name": policy.name,
        "field": field,
        "file": place.get("file", ""),
        "line": line,
    }


def field_of(decision: Decision) -> str:
    """The field that decided: ``spec.ingress[0].from[1]``; of an isolating policy its selector."""
    if decision.rule is None:
        return "spec.podSelector"
    direction = decision.direction.lower()
    peers = "from" if decision.direction == "Ingress" else "to"
    peer = "" if decision.peer is None else f".{peers}[{decision.peer.index}]"
    return f"spec.{direction}[{decision.rule.index}]{peer}"


def _parents(path: str) -> Iterator[str]:
    """The path, then what it is in."""
    yield path
    while "." in path or path.endswith("]"):
        path = path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
        yield path
