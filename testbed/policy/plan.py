"""What has to be enforced on one node, without a word of rules: which policies, pods and sets of addresses.

Shared by the renderings. Every policy's part is planned once and kept for as long as the policy is the same
object; labels and addresses appear in the members of sets alone.
"""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from ipaddress import IPv4Network, ip_network
from typing import Generic, TypeVar

from testbed.control.policies import Block, Direction, Policy, Port, Rule, Selection, Selector
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.policy.meaning import network
from testbed.policy.members import Members, of_family
from testbed.state import Family

DIRECTIONS: tuple[Direction, ...] = ("Ingress", "Egress")

ACCEPTED = 0x10000
"""The packet mark that says that a rule allows; kube-router's own (``pkg/controllers/netpol``)."""
CUT = 0x40000
"""The connection mark of open connections that are no longer allowed."""


@lru_cache(65536)
def hashed(*parts: str) -> str:
    """kube-router's way to name things: 16 characters of base32 of SHA-256."""
    return b32encode(sha256("\0".join(parts).encode()).digest()).decode()[:16]


@dataclass(frozen=True)
class Subject:
    """The pods of one node that a policy is about."""

    selection: Selection


Source = Selection | Subject | Block | Selector | Port
"""What the members of a set are: pods anywhere, pods here, a range, nodes' addresses, named ports of pods."""


@lru_cache(65536)
def digest(source: Source) -> str:
    """What names the set of a source: the same for the same source always."""
    return hashed(repr(source))


@dataclass(frozen=True)
class Match:
    """One way in which a rule matches, in one family. peer: its place, None for any.

    addresses: the set that the other side has to be in; port: that the destination has to be.
    """

    peer: int | None
    addresses: Source | None
    port: Port | None


@dataclass(frozen=True)
class PlannedRule:
    """A rule with all its ways to match. number: its place in the policy."""

    rule: Rule
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class PlannedPolicy:
    """A policy's rules of one direction and family."""

    policy: Policy
    direction: Direction
    rules: tuple[PlannedRule, ...]

    @cached_property
    def name(self) -> str:
        """What names its chain: a hash of what it is."""
        policy = self.policy
        return hashed(policy.kind, policy.namespace, policy.name, self.direction)

    @cached_property
    def sources(self) -> frozenset[Source]:
        """The sets it looks at."""
        found: set[Source] = {Subject(self.policy.subject)}
        for rule in self.rules:
            for match in rule.matches:
                if match.addresses is not None:
                    found.add(match.addresses)
                if match.port is not None and match.port.name:
                    found.add(match.port)
        return frozenset(found)


def plan_policy(policy: Policy, direction: Direction, family: Family) -> PlannedPolicy | None:
    """A policy's part in a direction; None where it has none."""
    rules = policy.rules(direction)
    if rules is None or (policy.tier != "NetworkPolicy" and not rules):
        return None
    planned = tuple(PlannedRule(rule, tuple(_matches(rule, family))) for rule in rules)
    return PlannedPolicy(policy, direction, planned)


def _matches(rule: Rule, family: Family) -> Iterator[Match]:
    for peer, source in _peers(rule, family):
        for port in rule.ports if rule.ports is not None else (None,):
            yield Match(peer, source, port)


def _peers(rule: Rule, family: Family) -> Iterator[tuple[int | None, Source | None]]:
    if rule.peers is None:
        yield None, None
        return
    for peer in rule.peers:
        if peer.pods is not None:
            yield peer.index, peer.pods
        elif peer.nodes is not None:
            yield peer.index, peer.nodes
        for block in peer.blocks:
            if (network(block.cidr).version == 4) == (family == "ipv4"):
                yield peer.index, block


@dataclass(frozen=True)
class Plan:
    """What one node has to enforce in one direction and family.

    policies: NetworkPolicies of the node's namespaces, by namespace; admin, baseline: cluster-wide ones in
    order; pods: those of the node that may become isolated, or be a cluster-wide policy's subject; gated:
    the addresses of those that are now; isolated: of those that a NetworkPolicy isolates.
    """

    direction: Direction
    family: Family
    policies: dict[str, tuple[PlannedPolicy, ...]]
    admin: tuple[PlannedPolicy, ...]
    baseline: tuple[PlannedPolicy, ...]
    pods: tuple[Pod, ...]
    gated: frozenset[str]
    isolated: frozenset[str]

    @property
    def cluster_wide(self) -> bool:
        """Whether any cluster-wide policy has a say in this direction."""
        return bool(self.admin or self.baseline)

    @property
    def all_policies(self) -> Iterator[PlannedPolicy]:
        """Every policy of the plan."""
        yield from self.admin
        for planned in self.policies.values():
            yield from planned
        yield from self.baseline


K = TypeVar("K")


class PerNode(Generic[K]):
    """What an enforcer keeps of each node, for as long as the cluster has it. make: what it begins with."""

    def __init__(self, make: Callable[[], K]) -> None:
        self._make = make
        self._kept: dict[str, K] = {}
        self._nodes: tuple[Node, ...] = ()

    def of(self, snapshot: Snapshot, node: Node) -> K:
        """What is kept of a node; what is of nodes that the snapshot no longer has goes."""
        if snapshot.nodes is not self._nodes:
            self._nodes, names = snapshot.nodes, {each.name for each in snapshot.nodes}
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}
        if node.name not in self._kept:
            self._kept[node.name] = self._make()
        return self._kept[node.name]


class PerPolicy(Generic[K]):
    """What an enforcer makes of a policy's part alone, for every node, while the policy is the same object.

    make: of a part in a family.
    """

    def __init__(self, make: Callable[[PlannedPolicy, Family], K]) -> None:
        self._make = make
        self._kept: dict[tuple[int, Family], tuple[PlannedPolicy, K]] = {}
        self._policies: tuple[Policy, ...] = ()

    def see(self, snapshot: Snapshot) -> None:
        """Drop what is of policies that the snapshot no longer has."""
        if snapshot.policies is not self._policies:
            self._policies, current = snapshot.policies, set(map(id, snapshot.policies))
            self._kept = {key: each for key, each in self._kept.items() if id(each[0].policy) in current}

    def of(self, planned: PlannedPolicy, family: Family) -> K:
        """What is made of a part; ``see`` comes first."""
        key = (id(planned), family)
        kept = self._kept.get(key)
        if kept is None or kept[0] is not planned:
            kept = self._kept[key] = planned, self._make(planned, family)
        return kept[1]


class Planner:
    """Plans nodes again and again, keeping what stays the same."""

    def __init__(self) -> None:
        self.members = Members()
        self._snapshot: Snapshot | None = None
        self._planned: dict[tuple[int, Direction, Family], tuple[Policy, PlannedPolicy | None]] = {}
        self._ordered: dict[tuple[Direction, Family], tuple[PlannedPolicy, ...]] = {}

    def see(self, snapshot: Snapshot) -> None:
        """Look at a snapshot: what is asked next is about it."""
        if self._snapshot is None or self._snapshot.policies is not snapshot.policies:
            self._ordered.clear()
            current = {id(policy) for policy in snapshot.policies}
            self._planned = {key: each for key, each in self._planned.items() if key[0] in current}
        self._snapshot = snapshot
        self.members.see(snapshot)

    def _all(self, snapshot: Snapshot, direction: Direction, family: Family) -> tuple[PlannedPolicy, ...]:
        if (direction, family) not in self._ordered:
            planned = (self._policy(policy, direction, family) for policy in snapshot.policies)
            self._ordered[direction, family] = tuple(each for each in planned if each is not None)
        return self._ordered[direction, family]

    def _policy(self, policy: Policy, direction: Direction, family: Family) -> PlannedPolicy | None:
        key = (id(policy), direction, family)
        kept = self._planned.get(key)
        if kept is None or kept[0] is not policy:
            kept = self._planned[key] = policy, plan_policy(policy, direction, family)
        return kept[1]

    def plan(self, snapshot: Snapshot, node: Node, direction: Direction, family: Family) -> Plan:
        """The plan of a node; ``see`` comes first."""
        own = [pod for pod in snapshot.pods_by_node.get(node.name, ()) if not pod.host_network]
        here = {pod.namespace for pod in own}
        policies: dict[str, list[PlannedPolicy]] = {}
        tiers: dict[str, list[PlannedPolicy]] = {"Admin": [], "Baseline": []}
        gated: set[str] = set()
        isolated: set[str] = set()
        for planned in self._all(snapshot, direction, family):
            policy = planned.policy
            if policy.tier != "NetworkPolicy":
                tiers[policy.tier].append(planned)
                gated |= self.members.addresses(policy.subject, family, node.name)
            elif policy.namespace in here:
                policies.setdefault(policy.namespace, []).append(planned)
                isolated |= self.members.addresses(policy.subject, family, node.name)
        everywhere = bool(tiers["Admin"] or tiers["Baseline"])
        return Plan(
            direction,
            family,
            {namespace: tuple(found) for namespace, found in policies.items()},
            tuple(tiers["Admin"]),
            tuple(tiers["Baseline"]),
            tuple(pod for pod in own if everywhere or pod.namespace in policies),
            frozenset(gated | isolated),
            frozenset(isolated),
        )

    def entries(self, source: Source, family: Family, snapshot: Snapshot, node: Node) -> frozenset[str]:
        """The members of a set; of a range its parts as the kernel takes them, exceptions aside."""
        match source:
            case Selection():
                return self.members.addresses(source, family)
            case Subject():
                return self.members.addresses(source.selection, family, node.name)
            case Port():
                return self.members.named(source, family)
            case Selector():
                return frozenset(
                    ip
                    for each in snapshot.nodes
                    if source.matches(each.labels)
                    for ip in of_family(each.addresses, family)
                )
            case Block():
                return frozenset(map(str, halves(source.cidr)))


def halves(cidr: str) -> tuple[object, ...]:
    """A range as the kernel's sets take it: the whole of a family is two halves."""
    whole = network(cidr)
    if whole.prefixlen == 0:
        return tuple(whole.subnets())
    return (whole,)


def families(pod_cidrs: tuple[str, ...]) -> tuple[Family, ...]:
    """The families that pods have addresses of."""
    versions = {type(ip_network(cidr)) is IPv4Network for cidr in pod_cidrs}
    return (*(("ipv4",) if True in versions else ()), *(("ipv6",) if False in versions else ()))
