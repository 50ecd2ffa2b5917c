"""What network policies mean: whether a flow is allowed, and which rule of which object says so.

Pure, and knows nothing of rules in a kernel. Sources: ``networking/v1/types.go``; the API reference of
network-policy-api v1alpha2; what both leave open is pinned in docs/network-policy.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from testbed.control.policies import (
    Block,
    Direction,
    Namespace,
    Peer,
    Policy,
    Port,
    Rule,
    Selection,
    Tier,
)
from testbed.control.snapshot import Node, Pod, Snapshot

PROTOCOLS = ("TCP", "UDP", "SCTP")

_NOBODY = Namespace("")


@dataclass(frozen=True)
class Flow:
    """A connection that is asked for, as policy sees it: after services were resolved to a pod.

    source, destination: addresses; protocol: TCP, UDP, SCTP, or another's name, which has no ports; port:
    the destination's own.
    """

    source: str
    destination: str
    protocol: str = "TCP"
    port: int = 0

    def __str__(self) -> str:
        where = f"[{self.destination}]" if ":" in self.destination else self.destination
        port = f":{self.port}" if self.port else ""
        return f"{self.protocol} {self.source} -> {where}{port}"


@dataclass(frozen=True)
class Decision:
    """What one side's policies say. policy, rule, peer: that decided (peer: None where the rule has none).

    isolating: the NetworkPolicies that select the pod for the direction, where none of their rules allows.
    why: where no policy decided.
    """

    direction: Direction
    allowed: bool
    why: str = ""
    policy: Policy | None = None
    rule: Rule | None = None
    peer: Peer | None = None
    isolating: tuple[Policy, ...] = ()

    def __str__(self) -> str:
        word = self.direction.lower()
        if self.policy is not None and self.rule is not None:
            peer = "" if self.peer is None else f" peer {self.peer.index}"
            named = f" ({self.rule.name})" if self.rule.name else ""
            verb = "allowed" if self.allowed else "denied"
            return f"{word} {verb} by {self.policy} rule {self.rule.index}{named}{peer}"
        if self.isolating:
            return f"{word} denied: no rule of {', '.join(map(str, self.isolating))} allows it"
        return f"{word} {'allowed' if self.allowed else 'denied'}: {self.why}"


@dataclass(frozen=True)
class Verdict:
    """Whether a flow is allowed: by both sides."""

    flow: Flow
    egress: Decision
    ingress: Decision

    @property
    def allowed(self) -> bool:
        """Whether both sides allow it."""
        return self.egress.allowed and self.ingress.allowed

    @property
    def deciding(self) -> Decision:
        """The decision that counts: the first that denies, else the one that some policy made."""
        if not self.egress.allowed:
            return self.egress
        return self.ingress if not self.ingress.allowed or self.ingress.policy else self.egress


def allowed(flow: Flow, snapshot: Snapshot) -> Verdict:
    """Whether the policies of a cluster allow a flow. For many flows of one snapshot make a ``Meaning``."""
    return Meaning(snapshot).allowed(flow)


@lru_cache(maxsize=65536)
def network(cidr: str) -> IPv4Network | IPv6Network:
    """A range of addresses; host bits, which older objects may have, are ignored."""
    return ip_network(cidr, strict=False)


@lru_cache(maxsize=65536)
def address(text: str) -> IPv4Address | IPv6Address:
    """An address."""
    return ip_address(text)


class Meaning:
    """The policies of one snapshot, ready to judge flows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._selected: dict[tuple[Selection, str], bool] = {}
        self._subject: dict[tuple[str, Direction, Tier], tuple[Policy, ...]] = {}

    @cached_property
    def pods(self) -> dict[str, Pod]:
        """The pods that policies see, by address: those that do not share their node's."""
        return {ip: pod for pod in self._snapshot.pods if not pod.host_network for ip in pod.ips}

    @cached_property
    def _nodes(self) -> dict[str, str]:
        """Every address of a node's own → its name; none that a pod has, where IPAM leaves podCIDRs aside."""
        own = ((ip, node.name) for node in self._snapshot.nodes for ip in own_addresses(node))
        return {ip: name for ip, name in own if ip not in self.pods}

    def allowed(self, flow: Flow) -> Verdict:
        """The verdict on one flow."""
        source, destination = self.pods.get(flow.source), self.pods.get(flow.destination)
        if source is not None and source is destination:
            why = "a pod is never cut off from itself"
            return Verdict(flow, Decision("Egress", True, why), Decision("Ingress", True, why))
        return Verdict(flow, self._decide(flow, "Egress", source), self._decide(flow, "Ingress", destination))

    def allowed_on(self, node: str, flow: Flow) -> bool:
        """Whether what this node enforces allows a flow that is open on it: the sides of its own pods.

        The other side's node may see it from another address, that of a node which masquerades it.
        """
        verdict = self.allowed(flow)
        sides = ((flow.source, verdict.egress), (flow.destination, verdict.ingress))
        return all(side.allowed for ip, side in sides if (pod := self.pods.get(ip)) and pod.node == node)

    def _decide(self, flow: Flow, direction: Direction, pod: Pod | None) -> Decision:
        if pod is None:
            return Decision(direction, True, "no pod's side, so no policy applies")
        if direction == "Ingress" and (
            self._nodes.get(flow.source) == pod.node or address(flow.source).is_loopback
        ):
            return Decision(direction, True, "a node always reaches its own pods")
        if (
            direction == "Egress"
            and self._snapshot.facts.spares_own_node
            and self._nodes.get(flow.destination) == pod.node
        ):
            return Decision(direction, True, "this dataplane does not judge what pods send to their own node")
        if (decided := self._tier(flow, direction, pod, "Admin")) is not None:
            return decided
        isolating = self.subject_to(pod, direction, "NetworkPolicy")
        if isolating:
            found = self._first(flow, direction, isolating)
            if found is None:
                return Decision(direction, False, isolating=isolating)
            return Decision(direction, True, "", *found)
        if (decided := self._tier(flow, direction, pod, "Baseline")) is not None:
            return decided
        return Decision(direction, True, "no policy selects the pod for this direction")

    def _tier(self, flow: Flow, direction: Direction, pod: Pod, tier: Tier) -> Decision | None:
        """What the cluster-wide policies of a tier decide; None where they leave it to the next."""
        found = self._first(flow, direction, self.subject_to(pod, direction, tier))
        if found is None or found[1].action == "Pass":
            return None
        return Decision(direction, found[1].action == "Accept", "", *found)

    def subject_to(self, pod: Pod, direction: Direction, tier: Tier) -> tuple[Policy, ...]:
        """The policies of a tier that select the pod and have to do with the direction, in order."""
        key = (pod.uid, direction, tier)
        if key not in self._subject:
            self._subject[key] = tuple(
                policy
                for policy in self._snapshot.policies
                if policy.tier == tier
                and policy.rules(direction) is not None
                and self.selects(policy.subject, pod)
            )
        return self._subject[key]

    def selects(self, selection: Selection, pod: Pod) -> bool:
        """Whether a pod is selected; one in its node's network never is."""
        key = (selection, pod.uid)
        if key not in self._selected:
            namespace = self._snapshot.namespaces.get(pod.namespace, _NOBODY)
            self._selected[key] = selects(selection, pod, namespace)
        return self._selected[key]

    def _first(
        self, flow: Flow, direction: Direction, policies: Iterable[Policy]
    ) -> tuple[Policy, Rule, Peer | None] | None:
        """The first rule that matches, and the peer by which."""
        for policy in policies:
            for rule in policy.rules(direction) or ():
                if not self._port_matches(rule.ports, flow):
                    continue
                if rule.peers is None:
                    return policy, rule, None
                for peer in rule.peers:
                    if self._peer_matches(peer, flow.source if direction == "Ingress" else flow.destination):
                        return policy, rule, peer
        return None

    def _peer_matches(self, peer: Peer, ip: str) -> bool:
        if peer.pods is not None:
            pod = self.pods.get(ip)
            return pod is not None and self.selects(peer.pods, pod)
        if peer.nodes is not None:
            return any(
                peer.nodes.matches(node.labels) and ip in node.addresses for node in self._snapshot.nodes
            )
        return any(holds_address(block, ip) for block in peer.blocks)

    def _port_matches(self, ports: tuple[Port, ...] | None, flow: Flow) -> bool:
        return ports is None or any(self._one_port_matches(port, flow) for port in ports)

    def _one_port_matches(self, port: Port, flow: Flow) -> bool:
        if flow.protocol not in PROTOCOLS:
            return False  # a rule that names ports says nothing of what has none
        if port.name:
            pod = self.pods.get(flow.destination)
            return pod is not None and (flow.protocol, flow.port) in set(named_ports(pod, port))
        return port.protocol == flow.protocol and port.first <= flow.port <= port.last


def selects(selection: Selection, pod: Pod, namespace: Namespace) -> bool:
    """Whether a pod in this namespace is selected; one in its node's network never is."""
    if pod.host_network or (selection.namespace and selection.namespace != pod.namespace):
        return False
    return selection.pods.matches(pod.labels) and selection.namespaces.matches(namespace.labels)


def named_ports(pod: Pod, port: Port) -> Iterator[tuple[str, int]]:
    """(protocol, number) of the pod's container ports that a named port means, sidecars' as well."""
    for container in (*pod.containers, *pod.sidecars):
        for each in container.ports:
            if each.name == port.name and port.protocol in ("", each.protocol):
                yield each.protocol, each.container_port


def holds_address(block: Block, ip: str) -> bool:
    """Whether an address is in the range and in none of its exceptions."""
    return _within(ip, block.cidr) and not any(_within(ip, each) for each in block.excepts)


@lru_cache(maxsize=65536)
def _within(ip: str, cidr: str) -> bool:
    return address(ip) in network(cidr)


def own_addresses(node: Node) -> tuple[str, ...]:
    """A node's own addresses, and those of its devices by which it reaches its pods: what it holds of a
    shared pool for itself, if anything; without a pool the first of each podCIDR."""
    if node.pooled:
        return (*node.addresses, *node.held.own.values())
    return (*node.addresses, *(str(network(cidr).network_address + 1) for cidr in node.pod_cidrs))
