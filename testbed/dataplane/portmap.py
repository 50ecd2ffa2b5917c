"""hostPorts by the rules of the plugin portmap, beside every dataplane and in every proxy mode.

As iptables-save prints what plugin version 1.1.1 makes, with snat on. Chains that no pod needs any more go,
where the plugin leaves its empty top chains behind. Source: containernetworking plugins
``plugins/meta/portmap/portmap_iptables.go``, ``pkg/utils/utils.go`` (chain names).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256, sha512
from ipaddress import ip_address, ip_interface, ip_network

from testbed.control.snapshot import ContainerPort, Node, Pod
from testbed.state import Chain, Family, NetnsState, NodeState, PodState, UdpFlows

DNAT, SETMARK, MASQ = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
MARK = "0x2000/0x2000"
"""markMasqBit 13."""
NETWORK = "kubenet"
"""The network's name, which is in comments and hashes."""
PORTS_A_RULE = 15
"""What the match multiport takes."""


def compile_ports(wiring: NodeState, node: Node, pods: Iterable[Pod]) -> NetnsState:
    """The rules of all hostPorts of a node's pods, and the sysctls by which they answer on 127.0.0.1.

    wiring: what the dataplane made of the node; pods: those of the node, in the order in which they came.
    """
    mapped = [pod for pod in pods if not pod.host_network and _ports(pod)]
    chains = [chain for family in _FAMILIES for chain in _chains(wiring, node, mapped, family)]
    devices = {_device(wiring, pod) for pod in mapped} - {""}
    return NetnsState(
        chains={(chain.family, chain.table, chain.name): chain for chain in chains},
        sysctls={f"net/ipv4/conf/{device}/route_localnet": "1" for device in sorted(devices)},
        # The plugin ends connections that UDP clients had with a port before it was mapped.
        udp={
            (each.family, f"host port {each.address}", each.port): each
            for pod in mapped
            for each in _flows(node, pod)
        },
    )


_FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")


def container_id(pod: Pod | PodState) -> str:
    """What stands for the id of the pod's sandbox: 64 hex digits, the same for the same pod always."""
    return sha256(pod.uid.encode()).hexdigest()


def chain_name(pod: Pod) -> str:
    """The chain of a pod's own rules, 28 characters."""
    return ("CNI-DN-" + sha512((NETWORK + container_id(pod)).encode()).hexdigest())[:28]


def _ports(pod: Pod) -> list[ContainerPort]:
    return [port for container in pod.containers for port in container.ports if port.host_port]


def _device(wiring: NodeState, pod: Pod) -> str:
    """The node's device on the way to a pod: the bridge it hangs on, or the host end of its veth pair."""
    state = wiring.pods.get(pod.uid)
    peers = [link.peer for link in state.netns.links.values() if link.peer] if state else []
    link = wiring.netns.links.get(peers[0]) if peers else None
    return (link.master or link.name) if link else ""


def _chains(wiring: NodeState, node: Node, pods: list[Pod], family: Family) -> Iterator[Chain]:
    placed = [(pod, address) for pod in pods for address in pod.ips if _family(address) == family]
    if not placed:
        return
    entry = f"-m addrtype --dst-type LOCAL -j {DNAT}"
    yield Chain(family, "nat", "PREROUTING", (entry,))
    yield Chain(family, "nat", "OUTPUT", (entry,))
    masquerade = f'-m comment --comment "CNI portfwd requiring masquerade" -j {MASQ}'
    yield Chain(family, "nat", "POSTROUTING", (masquerade,), inserted=1)
    yield Chain(family, "nat", MASQ, (f"-m mark --mark {MARK} -j MASQUERADE",))
    mark = f'-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark {MARK}'
    yield Chain(family, "nat", SETMARK, (mark,))
    yield Chain(family, "nat", DNAT, tuple(rule for pod, _ in placed for rule in _entries(pod)))
    for pod, address in placed:
        subnet = _subnet(wiring, node, pod, address)
        yield Chain(family, "nat", chain_name(pod), tuple(_rules(pod, address, family, subnet)))


def _entries(pod: Pod) -> Iterator[str]:
    """The rules that lead to a pod's chain: by protocol, so many ports a rule."""
    said = f'dnat name: "{NETWORK}" id: "{container_id(pod)}"'.replace('"', '\\"')
    numbers: dict[str, list[int]] = {}
    for port in _ports(pod):
        numbers.setdefault(port.protocol.lower(), []).append(port.host_port)
    for protocol, ports in sorted(numbers.items()):
        for start in range(0, len(ports), PORTS_A_RULE):
            listed = ",".join(map(str, ports[start : start + PORTS_A_RULE]))
            match = f'-m comment --comment "{said}" -m multiport --dports {listed}'
            yield f"-p {protocol} {match} -j {chain_name(pod)}"


def _subnet(wiring: NodeState, node: Node, pod: Pod, address: str) -> str:
    """The network of an address as the pod has it."""
    netns = wiring.pods[pod.uid].netns if pod.uid in wiring.pods else NetnsState()
    found = map(ip_interface, (each.address for each in netns.addresses.values()))
    here = [str(each.network) for each in found if each.ip == ip_address(address)]
    own = (cidr for cidr in node.pod_cidrs if _family(cidr) == _family(address))
    return next(iter(here), next(own, _whole(address)))


def _rules(pod: Pod, address: str, family: Family, subnet: str) -> Iterator[str]:
    """A port each: mark what comes from the pods' own subnet, and from 127.0.0.1; then translate."""
    destination = f"[{address}]" if family == "ipv6" else address
    for port in _ports(pod):
        host = "" if not port.host_ip or ip_address(port.host_ip).is_unspecified else port.host_ip
        if port.host_ip and _family(port.host_ip) != family:
            continue
        protocol = port.protocol.lower()
        where = (
            f"-d {_whole(host)} " if host else ""
        ) + f"-p {protocol} -m {protocol} --dport {port.host_port}"
        yield f"-s {ip_network(subnet)} {where} -j {SETMARK}"
        if family == "ipv4":
            yield f"-s 127.0.0.1/32 {where} -j {SETMARK}"
        yield f"{where} -j DNAT --to-destination {destination}:{port.container_port}"


def _flows(node: Node, pod: Pod) -> Iterator[UdpFlows]:
    for port in _ports(pod):
        if port.protocol != "UDP":
            continue
        whole = not port.host_ip or ip_address(port.host_ip).is_unspecified
        for address in (*node.addresses, "127.0.0.1") if whole else (port.host_ip,):
            family = _family(address)
            own = [f"[{ip}]" if family == "ipv6" else ip for ip in pod.ips if _family(ip) == family]
            if own:
                serving = tuple(f"{ip}:{port.container_port}" for ip in own)
                yield UdpFlows(family, address, port.host_port, serving)


def _whole(address: str) -> str:
    return str(ip_network(address))


def _family(text: str) -> Family:
    return "ipv6" if ":" in text else "ipv4"
