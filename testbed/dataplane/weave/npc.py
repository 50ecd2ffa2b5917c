"""Network policy as weave-npc enforces it: ``WEAVE-NPC…`` chains, and ipsets of pods' addresses.

Every node has the same rules, about all pods of the cluster; which of them a packet meets is decided by where
it comes from. Egress is looked at where the pod is: what comes by ``vethwe-bridge`` was looked at before.
Ingress likewise, since what leaves by ``vethwe-bridge`` is for the node there to decide; a routed packet to a
pod elsewhere (a node port) is looked at on both. Pods that no policy selects in a direction are in their
namespace's default-allow set. What no rule allows is dropped in silence; a packet to the pod's own node and
one that the node itself sends are never looked at.

Beyond weave-npc, in its manner: named ports, port ranges, SCTP, and the cluster-wide tiers, which get chains
of their own (``WEAVE-NPC-…ADMIN``, ``-…BASELINE``) where there are such policies; and open connections that
are no longer allowed are cut off first of all. Its sets of namespaces (list:set) are plain sets of addresses.

Sources: weave 2.8 ``prog/weave-npc/main.go``, ``net/bridge.go``, ``common/chains/npc.go``,
``npc/{namespace,rule,selector,ipblock,analysis}.go``.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from testbed.control.policies import ANY_PORT, EVERYTHING, Block, Direction, Policy, Port, Selection, Selector
from testbed.control.snapshot import Node, Snapshot
from testbed.dataplane.weave.names import BRIDGE, BRIDGE_PORT, short
from testbed.policy.meaning import network
from testbed.policy.members import Members, of_family
from testbed.policy.plan import CUT, DIRECTIONS, Match, PlannedRule, Source, Subject, halves, plan_policy
from testbed.state import Chain, IpSet, NetnsState

MAIN, DEFAULT, INGRESS = "WEAVE-NPC", "WEAVE-NPC-DEFAULT", "WEAVE-NPC-INGRESS"
EGRESS, EGRESS_DEFAULT = "WEAVE-NPC-EGRESS", "WEAVE-NPC-EGRESS-DEFAULT"
EGRESS_CUSTOM, EGRESS_ACCEPT = "WEAVE-NPC-EGRESS-CUSTOM", "WEAVE-NPC-EGRESS-ACCEPT"
MARK = "0x40000/0x40000"
"""What egress allows is marked and goes on, for ingress to be looked at."""
NFLOG = "-j NFLOG --nflog-group 86"
"""What weave-npc listens to and logs."""
MULTICAST = "224.0.0.0/4"
NEW, OPEN = "-m state --state NEW", "-m state --state RELATED,ESTABLISHED"
BELONGS = "-m conntrack --ctstate RELATED,ESTABLISHED"
FROM_ELSEWHERE = f"-m physdev --physdev-in {BRIDGE_PORT}"
TO_ELSEWHERE = f"-m physdev --physdev-out {BRIDGE_PORT} --physdev-is-bridged"
COMMENT_LENGTH = 255

TIERS = ("Admin", "Baseline")


class Npc:
    """Compiles the policy rules, which are the same on every node."""

    needs: frozenset[str] = frozenset({"iptables", "ipset", "br_netfilter"})

    def __init__(self) -> None:
        self._members = Members()
        self._of: tuple[object, ...] = ()
        self._made = NetnsState()

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The chains and sets; the same object as long as they are made of the same."""
        of = (snapshot.facts, snapshot.pods, snapshot.policies, snapshot.namespaces, snapshot.nodes)
        if len(self._of) != len(of) or any(one is not other for one, other in zip(self._of, of, strict=True)):
            self._members.see(snapshot)
            made = _Rules(snapshot, self._members).made()
            self._of = of
            self._made = self._made if made == self._made else made
        return self._made


class _Rules:
    """The rules of one snapshot."""

    def __init__(self, snapshot: Snapshot, members: Members) -> None:
        self._snapshot, self._members = snapshot, members
        self._sets: dict[str, IpSet] = {}
        self._here = sorted({pod.namespace for pod in snapshot.pods if not pod.host_network})
        self._isolated: dict[Direction, frozenset[str]] = {
            direction: frozenset().union(
                *(
                    members.addresses(policy.subject, "ipv4")
                    for policy in snapshot.policies
                    if policy.tier == "NetworkPolicy" and policy.rules(direction) is not None
                )
            )
            for direction in DIRECTIONS
        }

    def made(self) -> NetnsState:
        """All chains and sets."""
        chains = [Chain("ipv4", "filter", name, tuple(rules)) for name, rules in self._chains()]
        chains += [
            Chain("ipv4", "filter", "FORWARD", (*FRONT, *BEHIND), inserted=len(FRONT)),
            Chain("ipv4", "filter", "INPUT", (f"-i {BRIDGE} -j {EGRESS}",), inserted=1),
        ]
        return NetnsState(
            chains={(chain.family, chain.table, chain.name): chain for chain in chains}, ipsets=self._sets
        )

    def _chains(self) -> Iterator[tuple[str, list[str]]]:
        tiers = {
            (direction, tier): list(self._tier(direction, tier))
            for direction in DIRECTIONS
            for tier in TIERS
            if any(policy.tier == tier and policy.rules(direction) for policy in self._snapshot.policies)
        }

        def jump(direction: Direction, tier: str) -> list[str]:
            if (direction, tier) not in tiers:
                return []
            unmarked = "" if direction == "Ingress" else f" -m mark ! --mark {MARK}"
            return [f"{NEW}{unmarked} -j {_tier_name(direction, tier)}"]

        cut = self._cut()
        yield (
            MAIN,
            [
                *cut,
                f"{OPEN} -j ACCEPT",
                f"-d {MULTICAST} -j ACCEPT",
                f"{TO_ELSEWHERE} -j ACCEPT",
                *jump("Ingress", "Admin"),
                *jump("Ingress", "Baseline"),
                f"{NEW} -j {DEFAULT}",
                f"{NEW} -j {INGRESS}",
            ],
        )
        marked, unmarked = f"-m mark --mark {MARK}", f"-m mark ! --mark {MARK}"
        yield (
            EGRESS,
            [
                *cut,
                f"{OPEN} -j ACCEPT",
                f"{FROM_ELSEWHERE} --physdev-is-bridged -j RETURN",
                "-m addrtype --dst-type LOCAL -j RETURN",
                f"-d {MULTICAST} -j RETURN",
                *jump("Egress", "Admin"),
                *jump("Egress", "Baseline"),
                *([f"{marked} -j RETURN"] if any(direction == "Egress" for direction, _ in tiers) else []),
                f"{NEW} -j {EGRESS_DEFAULT}",
                f"{NEW} {unmarked} -j {EGRESS_CUSTOM}",
                f"{NEW} {unmarked} {NFLOG}",
                f"{unmarked} -j DROP",
            ],
        )
        yield EGRESS_ACCEPT, [f"-j MARK --set-xmark {MARK}"]
        yield DEFAULT, list(self._default("Ingress"))
        yield EGRESS_DEFAULT, list(self._default("Egress"))
        yield INGRESS, list(dict.fromkeys(self._rules("Ingress")))
        yield EGRESS_CUSTOM, list(dict.fromkeys(self._rules("Egress")))
        for (direction, tier), rules in tiers.items():
            yield _tier_name(direction, tier), rules

    def _cut(self) -> list[str]:
        """What ends open connections that are no longer allowed: ours, weave-npc leaves them open."""
        if self._snapshot.facts.policy_on_change != "cut" or not self._snapshot.policies:
            return []
        words = _comment("open connections that are no longer allowed")
        is_cut = f"{words} -m connmark --mark {CUT:#x}/{CUT:#x}"
        return [
            f"-p tcp {is_cut} -j REJECT --reject-with tcp-reset",
            f"{is_cut} -j REJECT --reject-with icmp-port-unreachable",
        ]

    def _default(self, direction: Direction) -> Iterator[str]:
        """Pods that no policy selects in the direction, a set for each namespace."""
        word, side = direction.lower(), _side(direction)
        for namespace in self._here:
            pods = self._members.addresses(Selection(namespace), "ipv4")
            name = short(f"{word}-default-allow:{namespace}")
            spared = pods - self._isolated[direction]
            self._sets[name] = IpSet(name, "hash:ip", "inet", spared, "spared")
            match = f"-m set --match-set {name} {side}"
            words = _comment(f"DefaultAllow {word} isolation for namespace: {namespace}")
            yield from _allow(f"{match} {words}", direction)

    def _rules(self, direction: Direction) -> Iterator[str]:
        """What NetworkPolicies allow."""
        for policy in self._snapshot.policies:
            if policy.tier != "NetworkPolicy":
                continue
            for rule in self._planned(policy, direction):
                for match in rule.matches:
                    yield from _allow(self._match(policy, direction, match), direction)

    @staticmethod
    def _planned(policy: Policy, direction: Direction) -> tuple[PlannedRule, ...]:
        planned = plan_policy(policy, direction, "ipv4")
        return planned.rules if planned is not None else ()

    def _tier(self, direction: Direction, tier: str) -> Iterator[str]:
        """A cluster-wide tier in order; the lower one is about pods that no NetworkPolicy isolates."""
        for policy in self._snapshot.policies:
            if policy.tier != tier:
                continue
            for rule in self._planned(policy, direction):
                for match in rule.matches:
                    matched = self._match(policy, direction, match)
                    match rule.rule.action:
                        case "Accept":
                            yield from _allow(matched, direction)
                        case "Deny":
                            yield f"{matched} -j DROP"
                        case _:
                            yield f"{matched} -j RETURN"

    # --- what a rule matches

    def _match(self, policy: Policy, direction: Direction, match: Match) -> str:
        """Protocol, source, destination, port and what it says in words, as weave-npc writes a rule."""
        target = self._subject(policy, direction)
        peer = self._source(policy, match.addresses, _side(direction, peer=True))
        ends = (peer, target) if direction == "Ingress" else (target, peer)
        protocol, port = self._port(match.port)
        words = f"{ends[0][1]} -> {ends[1][1]} ({direction.lower()})"
        parts = [protocol, ends[0][0], ends[1][0], port, _comment(words)]
        return " ".join(part for part in parts if part)

    def _subject(self, policy: Policy, direction: Direction) -> tuple[str, str]:
        pods = self._members.addresses(policy.subject, "ipv4")
        key, words = _selection(policy.subject)
        if policy.tier == "Baseline":
            name = short(f"baseline-{direction.lower()}:{key}")
            # Who leaves it is isolated from then on, which the other chains have to know first.
            self._sets[name] = IpSet(name, "hash:ip", "inet", pods - self._isolated[direction], "spared")
            return f"-m set --match-set {name} {_side(direction)}", words
        return f"-m set --match-set {self._set(short(key), pods)} {_side(direction)}", words

    def _source(self, policy: Policy, source: Source | None, side: str) -> tuple[str, str]:
        match source:
            case None:
                return "", "anywhere"
            case Block():
                return self._block(policy, source, side)
            case Selection():
                key, words = _selection(source)
                pods = self._members.addresses(source, "ipv4")
                return f"-m set --match-set {self._set(short(key), pods)} {side}", words
            case Selector():
                key = f"nodes:{_labels(source)}"
                nodes = frozenset(
                    ip
                    for node in self._snapshot.nodes
                    if source.matches(node.labels)
                    for ip in of_family(node.addresses, "ipv4")
                )
                return f"-m set --match-set {self._set(short(key), nodes)} {side}", key
            case Subject() | Port():
                raise TypeError(f"{source} is nobody's peer")

    def _block(self, policy: Policy, block: Block, side: str) -> tuple[str, str]:
        """A range as itself, one that all are in as nothing, and exceptions as a set of ranges beside it."""
        whole = network(block.cidr)
        option = "-s" if side == "src" else "-d"
        matched = f"{option} {whole}" if whole.prefixlen else ""
        words = f"cidr: {block.cidr}"
        if not block.excepts:
            return matched, words
        key = f"{policy.namespace}:{block.cidr} except {','.join(block.excepts)}"
        ranges = frozenset(_printed(str(half)) for each in block.excepts for half in halves(each))
        name = short(key)
        self._sets[name] = IpSet(name, "hash:net", "inet", ranges)
        excepted = f"-m set ! --match-set {name} {side}"
        words = f"{words} except [{','.join(block.excepts)}]"
        return " ".join(part for part in (matched, excepted) if part), words

    def _port(self, port: Port | None) -> tuple[str, str]:
        """The conditions of protocol and port, which stand before and behind those of addresses."""
        if port is None:
            return "", ""
        if port.name:
            key = f"port:{port.protocol}:{port.name}"
            name = short(key)
            self._sets[name] = IpSet(name, "hash:ip,port", "inet", self._members.named(port, "ipv4"))
            return "", f"-m set --match-set {name} dst,dst"
        protocol = port.protocol.lower()
        if (port.first, port.last) == ANY_PORT:
            return f"-p {protocol}", ""
        ports = str(port.first) if port.first == port.last else f"{port.first}:{port.last}"
        return f"-p {protocol}", f"-m {protocol} --dport {ports}"

    def _set(self, name: str, addresses: frozenset[str]) -> str:
        self._sets[name] = IpSet(name, "hash:ip", "inet", addresses)
        return name


BEFORE_KUBE = "-m comment --comment \"NOTE: this must go before \\'-j KUBE-FORWARD\\'\""
FRONT = (
    f"-i {BRIDGE} {BEFORE_KUBE} -j {EGRESS}",
    f"-o {BRIDGE} {BEFORE_KUBE} -j {MAIN}",
    f"-o {BRIDGE} {NEW} {NFLOG}",
    f"-o {BRIDGE} -j DROP",
)
"""What stands first in FORWARD, in this order (``net/bridge.go``: configureIPTables, ensureRulesAtTop)."""
BEHIND = (f"-i {BRIDGE} ! -o {BRIDGE} -j ACCEPT", f"-o {BRIDGE} {BELONGS} -j ACCEPT")
"""weave has these directly behind the others. There pods never meet kube-proxy's REJECT of Services without
endpoints, and wait in vain; here these are behind kube-proxy's rules, and clients are refused."""


def _allow(match: str, direction: Direction) -> Iterator[str]:
    """Ingress is asked last and accepts; egress marks, and returns for ingress to be asked."""
    if direction == "Ingress":
        yield f"{match} -j ACCEPT"
    else:
        yield f"{match} -j {EGRESS_ACCEPT}"
        yield f"{match} -j RETURN"


def _tier_name(direction: Direction, tier: str) -> str:
    return f"{MAIN if direction == 'Ingress' else EGRESS}-{tier.upper()}"


def _side(direction: Direction, *, peer: bool = False) -> str:
    return "dst" if (direction == "Ingress") != peer else "src"


def _selection(selection: Selection) -> tuple[str, str]:
    """What the name of its set is made of, and how a rule's comment speaks of it."""
    pods = _labels(selection.pods)
    if selection.namespace:
        return f"{selection.namespace}:{pods}", f"pods: namespace: {selection.namespace}, selector: {pods}"
    namespaces = _labels(selection.namespaces)
    if selection.pods == EVERYTHING:
        return f":{namespaces}", f"namespaces: selector: {namespaces}"
    return f"{namespaces}:{pods}", f"namespaces: selector: {namespaces}, pods: selector: {pods}"


def _labels(selector: Selector) -> str:
    """A selector as Kubernetes prints it (``labels.Selector.String``): by key, with a comma between."""
    parts = [(key, f"{key}={value}") for key, value in selector.labels]
    for key, operator, values in selector.expressions:
        listed = ",".join(sorted(values))
        parts.append(
            (
                key,
                {
                    "In": f"{key} in ({listed})",
                    "NotIn": f"{key} notin ({listed})",
                    "Exists": key,
                    "DoesNotExist": f"!{key}",
                }[operator],
            )
        )
    return ",".join(text for _, text in sorted(parts))


def _printed(cidr: str) -> str:
    whole = ip_network(cidr)
    return str(whole.network_address) if whole.prefixlen == whole.max_prefixlen else str(whole)


def _comment(text: str) -> str:
    return f'-m comment --comment "{text[:COMMENT_LENGTH]}"'
