"""Network policy natively in nftables: a table of its own per family, sets for addresses, maps for dispatch.

Each direction has base chains of its own (egress first), so that to allow is to accept: that ends one
direction only. A packet finds its pod's chain by one look into a map that holds just the pods that policies
concern now; a policy's rules look at sets. Changed labels and addresses change elements only, in one
transaction.

Between DNAT and SNAT, as everywhere in ``forward``; what a node sends itself is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import collapse_addresses
from typing import Any

from testbed.control.policies import ANY_PORT, Block, Direction, Port, Selection, Selector
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.policy import enforcers
from testbed.policy.meaning import network
from testbed.policy.members import of_family
from testbed.policy.plan import (
    CUT,
    DIRECTIONS,
    Match,
    PerNode,
    Plan,
    PlannedPolicy,
    PlannedRule,
    Planner,
    Source,
    Subject,
    digest,
    families,
    hashed,
)
from testbed.rules import nft
from testbed.state import Family, NetnsState, NftChain, NftElement, NftFamily, NftSet, NftTable

TABLE = "network-policy"
FAMILY: dict[Family, NftFamily] = {"ipv4": "ip", "ipv6": "ip6"}
ADDRESS: dict[Family, str] = {"ipv4": "ipv4_addr", "ipv6": "ipv6_addr"}
BASES: dict[Direction, tuple[tuple[str, str], ...]] = {
    "Egress": (("forward", "filter - 10"), ("input", "filter - 10")),
    "Ingress": (("forward", "filter - 5"),),
}
"""Where each direction is looked at: hook and priority, before kube-proxy's own at ``filter``."""
NEIGHBOURS = "nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert"
COMMENT_LENGTH = 127
"""Bytes of a rule's comment: NFTNL_UDATA_COMMENT_MAXLEN without its end."""


@dataclass(frozen=True)
class _Shape:
    """Chains and sets of a plan, which others' labels and addresses do not change.

    of: what they were made of; sources: the sets with what their members are.
    """

    of: tuple[object, ...]
    chains: dict[nft.Key, NftChain]
    sources: tuple[tuple[Source, NftSet], ...]
    sets: dict[nft.Key, NftSet]


class NftEnforcer:
    """Compiles the policy rules of nodes for nft."""

    needs: frozenset[str] = frozenset({"nf_tables"})

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._planner = Planner()
        self._nodes: PerNode[_Kept] = PerNode(_Kept)

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The tables of one node; nothing at all where there is no policy."""
        if not snapshot.policies:
            self._forget()
            return NetnsState()
        self._planner.see(snapshot)
        kept = self._nodes.of(snapshot, node)
        shapes: dict[tuple[Direction, Family], _Shape] = {}
        members: dict[tuple[str, str], _Elements] = {}
        tables: dict[nft.TableKey, NftTable] = {}
        chains: dict[nft.Key, NftChain] = {}
        sets: dict[nft.Key, NftSet] = {}
        elements: dict[Any, NftElement] = {}
        cut = snapshot.facts.policy_on_change == "cut"
        for family in families(snapshot.facts.pod_cidrs):
            for direction in DIRECTIONS:
                plan = self._planner.plan(snapshot, node, direction, family)
                if not plan.pods:
                    continue
                table = NftTable(FAMILY[family], TABLE, "network policy")
                tables[nft.table_key(table)] = table
                shape = shapes[direction, family] = kept.shape(plan, cut=cut)
                chains |= shape.chains
                sets |= shape.sets
                words = _Words(plan)
                elements |= words.dispatch()
                for each, entries in self._filled(words, shape, snapshot, node):
                    found = members[each.family, each.name] = kept.elements(each, entries)
                    elements |= found[1]
        kept.turn(shapes, members)
        return NetnsState(nft_tables=tables, nft_chains=chains, nft_sets=sets, nft_elements=elements)

    def _filled(
        self, words: _Words, shape: _Shape, snapshot: Snapshot, node: Node
    ) -> Iterator[tuple[NftSet, frozenset[str]]]:
        """All sets with their members."""
        if words.plan.cluster_wide:
            yield words.set(words.isolated), words.plan.isolated
        for source, each in shape.sources:
            yield each, self._planner.entries(source, words.plan.family, snapshot, node)


_Elements = tuple[frozenset[str], dict[Any, NftElement]]
"""The members of a set, and the elements that were made of them."""


class _Kept:
    """What was compiled for one node last: what is the same is the same object again, the rest is dropped."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[Direction, Family], _Shape] = {}
        self._members: dict[tuple[str, str], _Elements] = {}

    def turn(
        self, shapes: dict[tuple[Direction, Family], _Shape], members: dict[tuple[str, str], _Elements]
    ) -> None:
        """The compile is over, and this is what came of it."""
        self._shapes, self._members = shapes, members

    def shape(self, plan: Plan, *, cut: bool) -> _Shape:
        """Chains and sets, the same while policies and the node's pods are."""
        pods = tuple((pod.namespace, pod.name, pod.ips) for pod in plan.pods)
        of = (cut, plan.admin, plan.baseline, tuple(plan.policies.items()), pods)
        kept = self._shapes.get((plan.direction, plan.family))
        return kept if kept is not None and kept.of == of else _shape(plan, of, cut=cut)

    def elements(self, each: NftSet, entries: frozenset[str]) -> _Elements:
        """The elements of a set, the same while its members are."""
        kept = self._members.get((each.family, each.name))
        if kept is None or (kept[0] is not entries and kept[0] != entries):
            made = (NftElement(each.family, TABLE, each.name, _key(entry)) for entry in entries)
            return entries, {nft.element_key(element): element for element in made}
        return kept


def _shape(plan: Plan, of: tuple[object, ...], *, cut: bool) -> _Shape:
    words = _Words(plan)
    found = {source for planned in plan.all_policies for source in planned.sources}
    sources = tuple(
        (source, words.set(words.name(source), ports=isinstance(source, Port)))
        for source in found
        if not isinstance(source, Block)  # ranges stand in the rules themselves
    )
    chains = [
        *words.bases(cut=cut),
        *words.pods(),
        *words.shared(),
        *(words.policy(planned) for policies in plan.policies.values() for planned in policies),
    ]
    sets = [words.map(), *(each for _, each in sources)]
    if plan.cluster_wide:
        sets.append(words.set(words.isolated))
    return _Shape(
        of, {nft.key(chain): chain for chain in chains}, sources, {nft.key(each): each for each in sets}
    )


enforcers.register("nft")(NftEnforcer)


def _key(entry: str) -> str:
    """``address,protocol:port`` as nft concatenates it: ``address . protocol . port``."""
    address, comma, service = entry.partition(",")
    return f"{address} . {service.replace(':', ' . ')}" if comma else entry


@dataclass(frozen=True)
class _Words:
    """How things of one plan are named and written."""

    plan: Plan

    # --- names

    @property
    def ip(self) -> str:
        """``ip`` or ``ip6``."""
        return FAMILY[self.plan.family]

    @property
    def direction(self) -> str:
        """In lower case."""
        return self.plan.direction.lower()

    def side(self, *, peer: bool = False) -> str:
        """``ip saddr`` or ``ip daddr``: where the subject, or its peer, is."""
        return f"{self.ip} {'daddr' if (self.plan.direction == 'Ingress') != peer else 'saddr'}"

    @property
    def isolated(self) -> str:
        """The set of pods that a NetworkPolicy isolates."""
        return f"isolated-{self.direction}"

    def name(self, source: Source) -> str:
        """The set of a source."""
        if isinstance(source, Port):
            return f"ports-{digest(source)}-{self.direction}"
        word = "subject" if isinstance(source, Subject) else "peer"
        return f"{word}-{digest(source)}-{self.direction}"

    def pod_name(self, pod: Pod) -> str:
        """A pod's chain."""
        return f"pod-{hashed(pod.namespace, pod.name)}-{self.direction}/{pod.namespace}/{pod.name}"[:240]

    def namespace_name(self, namespace: str) -> str:
        """A namespace's chain."""
        return f"namespace-{self.direction}/{namespace}"

    def policy_name(self, planned: PlannedPolicy) -> str:
        """A policy's chain."""
        policy = planned.policy
        return f"policy-{planned.name}-{self.direction}/{policy.namespace}/{policy.name}"[:240]

    # --- chains, sets and elements

    def chain(self, name: str, rules: Iterable[str], **base: str) -> NftChain:
        """A chain of the table."""
        return NftChain(FAMILY[self.plan.family], TABLE, name, tuple(rules), **base)  # type: ignore[arg-type]

    def set(self, name: str, *, ports: bool = False) -> NftSet:
        """A set of addresses, or of addresses with ports."""
        kind = ADDRESS[self.plan.family] + (" . inet_proto . inet_service" if ports else "")
        return NftSet(FAMILY[self.plan.family], TABLE, name, kind)

    def map(self) -> NftSet:
        """Pod's address → jump to its chain."""
        return NftSet(
            FAMILY[self.plan.family], TABLE, f"pods-{self.direction}", ADDRESS[self.plan.family], "verdict"
        )

    def dispatch(self) -> dict[Any, NftElement]:
        """The map's elements: the pods that policies concern now."""
        made = (
            NftElement(
                FAMILY[self.plan.family], TABLE, f"pods-{self.direction}", ip, f"goto {self.pod_name(pod)}"
            )
            for pod in self.plan.pods
            for ip in of_family(pod.ips, self.plan.family)
            if ip in self.plan.gated
        )
        return {nft.element_key(element): element for element in made}

    def bases(self, *, cut: bool) -> Iterator[NftChain]:
        """The chains on the hooks."""
        rules = []
        if self.plan.family == "ipv6":
            rules.append(f"icmpv6 type {{ {NEIGHBOURS} }} accept")
        if cut:
            is_cut = f"ct mark & {CUT:#010x} == {CUT:#010x}"
            # A reset is for TCP alone, which nft sees to itself.
            rules += [f"{is_cut} reject with tcp reset", f"{is_cut} reject"]
        rules.append("ct state established,related accept")
        rules.append(f"{self.side()} vmap @pods-{self.direction}")
        for hook, priority in BASES[self.plan.direction]:
            name = f"{hook}-{self.direction}"
            yield self.chain(name, rules, type="filter", hook=hook, priority=priority)

    def pods(self) -> Iterator[NftChain]:
        """A chain for each pod: the tiers in their order, and at the end the rejection."""
        for pod in self.plan.pods:
            rules = [
                f"{self.side(peer=True)} {ip} accept{comment('a pod is never cut off from itself')}"
                for ip in of_family(pod.ips, self.plan.family)
            ]
            if self.plan.admin:
                rules.append(f"jump admin-{self.direction}")
            if self.plan.cluster_wide:
                onward = f"goto baseline-{self.direction}" if self.plan.baseline else "accept"
                words = comment("no NetworkPolicy selects the pod")
                rules.append(f"{self.side()} != @{self.isolated} {onward}{words}")
            if pod.namespace in self.plan.policies:
                rules.append(f"jump {self.namespace_name(pod.namespace)}")
            rules.append(f"reject{comment(f'no policy allows this {self.direction}')}")
            yield self.chain(self.pod_name(pod), rules)

    def shared(self) -> Iterator[NftChain]:
        """The chains of namespaces and of the cluster-wide tiers."""
        for namespace, policies in self.plan.policies.items():
            subjects = (self.name(Subject(planned.policy.subject)) for planned in policies)
            rules = [
                f"{self.side()} @{subject} jump {self.policy_name(planned)}"
                for subject, planned in zip(subjects, policies, strict=True)
            ]
            yield self.chain(self.namespace_name(namespace), rules)
        for tier, tier_policies in (("admin", self.plan.admin), ("baseline", self.plan.baseline)):
            if tier_policies:
                yield self.chain(f"{tier}-{self.direction}", self._tier(tier_policies))

    def policy(self, planned: PlannedPolicy) -> NftChain:
        """The chain of a NetworkPolicy: what it allows it accepts."""
        rules = [
            f"{match}accept{words}" for rule in planned.rules for match, words in self._matches(planned, rule)
        ]
        return self.chain(self.policy_name(planned), rules)

    def _tier(self, policies: tuple[PlannedPolicy, ...]) -> Iterator[str]:
        for planned in policies:
            subject = f"{self.side()} @{self.name(Subject(planned.policy.subject))} "
            for rule in planned.rules:
                verdict = {"Accept": "accept", "Deny": "reject", "Pass": "return"}[rule.rule.action]
                for match, words in self._matches(planned, rule):
                    yield f"{subject}{match}{verdict}{words}"

    def _matches(self, planned: PlannedPolicy, rule: PlannedRule) -> Iterator[tuple[str, str]]:
        """What a packet has to be for a rule, and the rule in words."""
        for match in rule.matches:
            peer = "" if match.peer is None else f" peer {match.peer}"
            words = comment(f"{planned.policy} {self.direction} rule {rule.rule.index}{peer}")
            parts = [part for part in (self._addresses(match), self._port(match.port)) if part]
            yield "".join(f"{part} " for part in parts), words

    def _addresses(self, match: Match) -> str:
        side = self.side(peer=True)
        match match.addresses:
            case None:
                return ""
            case Block() as block:
                return _range(side, block)
            case Selection() | Subject() | Selector() | Port() as source:
                return f"{side} @{self.name(source)}"

    def _port(self, port: Port | None) -> str:
        if port is None:
            return ""
        if port.name:
            return f"{self.ip} daddr . meta l4proto . th dport @{self.name(port)}"
        protocol = port.protocol.lower()
        if (port.first, port.last) == ANY_PORT:
            return f"meta l4proto {protocol}"
        return f"{protocol} dport " + (
            str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
        )


def _range(side: str, block: Block) -> str:
    """A range and its exceptions, as nft prints them."""
    whole = network(block.cidr)
    parts = [f"{side} {_printed(whole)}"] if whole.prefixlen else []
    excepts = list(collapse_addresses(network(each) for each in block.excepts))  # type: ignore[type-var]
    if len(excepts) == 1:
        parts.append(f"{side} != {_printed(excepts[0])}")
    elif excepts:
        parts.append(f"{side} != {{ {', '.join(map(_printed, excepts))} }}")
    return " ".join(parts)


def _printed(whole: Any) -> str:
    return str(whole.network_address) if whole.prefixlen == whole.max_prefixlen else str(whole)


def comment(text: str) -> str:
    """A rule's comment, at most as long as nft keeps it."""
    return f' comment "{text[:COMMENT_LENGTH]}"'
