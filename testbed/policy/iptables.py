"""Network policy with iptables and ipset, in the shape of kube-router's (``pkg/controllers/netpol``).

FORWARD and INPUT jump first to KUBE-ROUTER-FORWARD and KUBE-ROUTER-INPUT: after DNAT and before SNAT, so
that policy sees pods' own addresses and ports. There what belongs to an open connection returns; what comes
from or goes to a pod of this node that policies concern meets that pod's chain (KUBE-POD-FW-…), which rejects
it unless a policy's chain (KUBE-NWPLCY-…) marks it. Nothing is accepted here: a packet passes by returning,
so both ends' policies, and whoever else has rules, have their say. A node reaches its own pods by OUTPUT,
which is left alone.

Beside IPVS packets to a Service come to INPUT, where its address says nothing of the pod, and leave by OUTPUT
with that pod's: INPUT lets what is a Service's pass, and what OUTPUT sends for others is looked at as in
FORWARD.

Unlike kube-router's, chains do not depend on labels and addresses of other pods: a pod's chain jumps to all
policies of its namespace, each guarded by the set of its subjects, so that changed labels change sets only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import is_not
from typing import Literal

from testbed.control.policies import ANY_PORT, Block, Direction, Port
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.policy import enforcers
from testbed.policy.meaning import network
from testbed.policy.members import of_family
from testbed.policy.plan import (
    ACCEPTED,
    CUT,
    DIRECTIONS,
    PerNode,
    PerPolicy,
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
from testbed.state import Chain, Family, IpSet, NetnsState

FORWARD, INPUT, OUTPUT = "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-INPUT", "KUBE-ROUTER-OUTPUT"
LABEL: dict[Direction, str] = {"Ingress": "INGRESS", "Egress": "EGRESS"}
MARK = f"{ACCEPTED:#x}/{ACCEPTED:#x}"
UNMARK = f"-j MARK --set-xmark 0x0/{ACCEPTED:#x}"
ACCEPT = f"-j MARK --set-xmark {MARK}"
IS_MARKED, IS_NOT_MARKED = f"-m mark --mark {MARK}", f"-m mark ! --mark {MARK}"
LOG = "-m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100"
"""kube-router's: what is rejected can be heard by netlink, ten packets a minute."""
REJECT: dict[Family, str] = {
    "ipv4": "-j REJECT --reject-with icmp-port-unreachable",
    "ipv6": "-j REJECT --reject-with icmp6-port-unreachable",
}
NEIGHBOURS = (133, 134, 135, 136)
"""Router and neighbour discovery (RFC 4861), without which nobody on an IPv6 link finds anybody."""
COMMENT_LENGTH = 255
"""What iptables' comment match holds."""

SetKind = Literal["hash:ip", "hash:net", "hash:ip,port"]


class IptablesEnforcer:
    """Compiles the policy rules of nodes."""

    needs: frozenset[str] = frozenset({"iptables", "ipset"})

    def __init__(self, *, beside_ipvs: bool = False) -> None:
        self._beside_ipvs = beside_ipvs
        self._forget()

    def _forget(self) -> None:
        self._planner = Planner()
        self._chains = PerPolicy(_policy_chain)
        self._nodes: PerNode[_Kept] = PerNode(_Kept)

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The chains and sets of one node; nothing at all where there is no policy."""
        if not snapshot.policies:
            self._forget()
            return NetnsState()
        self._planner.see(snapshot)
        self._chains.see(snapshot)
        kept = self._nodes.of(snapshot, node)
        chains: dict[tuple[str, str, str], Chain] = {}
        sets: dict[str, IpSet] = {}
        for family in families(snapshot.facts.pod_cidrs):
            plans = [self._planner.plan(snapshot, node, direction, family) for direction in DIRECTIONS]
            if not any(plan.pods for plan in plans):
                continue
            cut = snapshot.facts.policy_on_change == "cut"
            for chain in self._all_chains(kept, plans, family, cut=cut):
                chains[family, "filter", chain.name] = chain
            for each in self._all_sets(kept, plans, family, snapshot, node):
                sets[each.name] = each
        kept.turn(sets)
        return NetnsState(chains=chains, ipsets=sets)

    # --- chains -------------------------------------------------------------------------------------

    def _all_chains(self, kept: _Kept, plans: list[Plan], family: Family, *, cut: bool) -> Iterator[Chain]:
        yield from _entrances(plans, family, cut=cut, beside_ipvs=self._beside_ipvs)
        for plan in plans:
            if not plan.pods:
                continue
            yield _dispatch(plan)
            yield from (kept.pod_chain(plan, pod) for pod in plan.pods)
            for namespace, policies in plan.policies.items():
                yield kept.namespace_chain(plan, namespace, policies)
                yield from (self._chains.of(planned, family) for planned in policies)
            if plan.admin:
                yield _tier_chain(plan, "ADMIN", plan.admin)
            if plan.baseline:
                yield _tier_chain(plan, "BASELINE", plan.baseline)

    def _all_sets(
        self, kept: _Kept, plans: list[Plan], family: Family, snapshot: Snapshot, node: Node
    ) -> Iterator[IpSet]:
        for plan in plans:
            if not plan.pods:
                continue
            yield kept.set(_gate(plan), "hash:ip", family, plan.gated, "isolated")
            if plan.cluster_wide:
                yield kept.set(_isolated(plan), "hash:ip", family, plan.isolated, "isolated")
            sources = {source for planned in plan.all_policies for source in planned.sources}
            for source in sources:
                kind: SetKind = "hash:ip,port" if isinstance(source, Port) else "hash:ip"
                entries = self._planner.entries(source, family, snapshot, node)
                if isinstance(source, Block):
                    kind, entries = "hash:net", _block_entries(source, entries)
                yield kept.set(_set_name(source, plan.direction, family), kind, family, entries)


class _Kept:
    """What was compiled for one node last: what is the same is the same object again, the rest is dropped."""

    def __init__(self) -> None:
        self._pods: dict[tuple[object, ...], Chain] = {}
        self._pods_now: dict[tuple[object, ...], Chain] = {}
        self._namespaces: dict[tuple[object, ...], tuple[tuple[PlannedPolicy, ...], Chain]] = {}
        self._namespaces_now: dict[tuple[object, ...], tuple[tuple[PlannedPolicy, ...], Chain]] = {}
        self._sets: dict[str, IpSet] = {}

    def turn(self, sets: dict[str, IpSet]) -> None:
        """The compile is over: what it did not ask for is not kept any longer."""
        self._pods, self._pods_now = self._pods_now, {}
        self._namespaces, self._namespaces_now = self._namespaces_now, {}
        self._sets = sets

    def pod_chain(self, plan: Plan, pod: Pod) -> Chain:
        """A pod's chain, which says nothing of its labels and addresses."""
        shape = (plan.cluster_wide, bool(plan.admin), bool(plan.baseline), pod.namespace in plan.policies)
        key = (plan.direction, plan.family, pod.namespace, pod.name, shape)
        if (chain := self._pods.get(key)) is None:
            chain = _pod_chain(plan, pod)
        self._pods_now[key] = chain
        return chain

    def namespace_chain(self, plan: Plan, namespace: str, policies: tuple[PlannedPolicy, ...]) -> Chain:
        """A namespace's chain; the same while its policies are the very same."""
        key = (plan.direction, plan.family, namespace)
        kept = self._namespaces.get(key)
        if kept is None or len(kept[0]) != len(policies) or any(map(is_not, kept[0], policies)):
            kept = policies, _namespace_chain(plan, namespace, policies)
        self._namespaces_now[key] = kept
        return kept[1]

    def set(
        self,
        name: str,
        kind: SetKind,
        family: Family,
        entries: frozenset[str],
        members: Literal["any", "isolated"] = "any",
    ) -> IpSet:
        """A set; the same while its entries are."""
        kept = self._sets.get(name)
        if kept is None or (kept.entries is not entries and kept.entries != entries):
            kept = IpSet(name, kind, "inet" if family == "ipv4" else "inet6", entries, members)
        return kept


enforcers.register("iptables")(IptablesEnforcer)
enforcers.register("ipvs")(partial(IptablesEnforcer, beside_ipvs=True))


def _block_entries(block: Block, ranges: frozenset[str]) -> frozenset[str]:
    """A range with its exceptions, as ipset prints them; the longest prefix that an address is in decides."""
    excepts = {_printed(each) for each in block.excepts}
    return frozenset(map(_printed, ranges)) - excepts | {f"{each} nomatch" for each in excepts}


def _printed(cidr: str) -> str:
    """A range as ipset prints it: a single address without a length."""
    whole = network(cidr)
    return str(whole.network_address) if whole.prefixlen == whole.max_prefixlen else str(whole)


# --- names ----------------------------------------------------------------------------------------------


def _chain(family: Family, name: str, rules: Iterator[str] | tuple[str, ...] | list[str]) -> Chain:
    return Chain(family, "filter", name, tuple(rules))


def _side(direction: Direction, *, peer: bool = False) -> str:
    """``src`` or ``dst``: where the subject (or its peer) of a direction is."""
    return "dst" if (direction == "Ingress") != peer else "src"


def _family_name(name: str, family: Family) -> str:
    """kube-router marks the sets of IPv6 in their name."""
    return f"inet6:{name}" if family == "ipv6" else name


def _gate(plan: Plan) -> str:
    return _family_name(f"KUBE-FW-{LABEL[plan.direction]}", plan.family)


def _isolated(plan: Plan) -> str:
    return _family_name(f"KUBE-ISOLATED-{LABEL[plan.direction]}", plan.family)


def _set_name(source: Source, direction: Direction, family: Family) -> str:
    """KUBE-DST-… for what is compared with the destination, KUBE-SRC-… with the source."""
    if isinstance(source, Port):
        word = "DST"
    else:
        word = _side(direction, peer=not isinstance(source, Subject)).upper()
    return _family_name(f"KUBE-{word}-{digest(source)}", family)


def _pod_name(plan: Plan, pod: Pod) -> str:
    return f"KUBE-POD-FW-{hashed(pod.namespace, pod.name, plan.direction)}"


def _namespace_name(plan: Plan, namespace: str) -> str:
    return f"KUBE-NS-FW-{hashed(namespace, plan.direction)}"


def _policy_name(planned: PlannedPolicy) -> str:
    return f"KUBE-NWPLCY-{planned.name}"


def _tier_name(plan: Plan, tier: str) -> str:
    return f"KUBE-CNP-{tier}-{LABEL[plan.direction]}"


def _comment(text: str) -> str:
    return f'-m comment --comment "{text[:COMMENT_LENGTH]}"'


def _in_set(name: str, side: str, *, outside: bool = False) -> str:
    return f"-m set {'! ' if outside else ''}--match-set {name} {side}"


# --- the chains --------------------------------------------------------------------------------------------


def _entrances(plans: list[Plan], family: Family, *, cut: bool, beside_ipvs: bool) -> Iterator[Chain]:
    """The built-in chains' jumps, and the chains that tell whom policies concern."""
    first: list[str] = []
    if family == "ipv6":
        first += [f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN" for kind in NEIGHBOURS]
    if cut:
        words = _comment("open connections that are no longer allowed")
        is_cut = f"{words} -m connmark --mark {CUT:#x}/{CUT:#x}"
        first.append(f"-p tcp {is_cut} -j REJECT --reject-with tcp-reset")
        first.append(f"{is_cut} {REJECT[family]}")
    words = _comment("what belongs to an open connection")
    first.append(f"{words} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
    jumps = {
        plan.direction: f"{_in_set(_gate(plan), _side(plan.direction))} -j {_dispatch_name(plan)}"
        for plan in plans
        if plan.pods
    }
    both = [jumps[direction] for direction in ("Egress", "Ingress") if direction in jumps]
    services = list(_services_of_ipvs(family)) if beside_ipvs else []
    own = f"{_comment('what the node itself sends')} -m addrtype --src-type LOCAL -j RETURN"
    jump = _comment("kube-router netpol")
    for built_in, name, rules in (
        ("FORWARD", FORWARD, both),
        ("INPUT", INPUT, [*services, jumps["Egress"]] if "Egress" in jumps else []),
        ("OUTPUT", OUTPUT, [own, *both] if beside_ipvs and both else []),
    ):
        if rules:
            yield Chain(family, "filter", built_in, (f"{jump} -j {name}",), inserted=1)
            yield _chain(family, name, first + rules)


def _services_of_ipvs(family: Family) -> Iterator[str]:
    """What IPVS takes at INPUT, by kube-proxy's own sets: addresses on its device, and the node's ports."""
    six = "6-" if family == "ipv6" else ""
    words = _comment("to a Service: judged once it leads to a pod")
    yield f"{words} {_in_set(f'KUBE-{six}IPVS-IPS', 'dst')} -j RETURN"
    local = "-m addrtype --dst-type LOCAL"
    for protocol, name, side in (
        ("tcp", "NODE-PORT-TCP", "dst"),
        ("udp", "NODE-PORT-UDP", "dst"),
        ("sctp", "NODE-PORT-SCTP-HASH", "dst,dst"),
    ):
        yield f"-p {protocol} {local} {words} {_in_set(f'KUBE-{six}{name}', side)} -j RETURN"


def _dispatch_name(plan: Plan) -> str:
    return f"KUBE-POD-FW-{LABEL[plan.direction]}"


def _dispatch(plan: Plan) -> Chain:
    """To each pod's own chain; a pod that reaches itself by a Service is never stopped."""
    length = 32 if plan.family == "ipv4" else 128
    option, other = ("-d", "-s") if plan.direction == "Ingress" else ("-s", "-d")
    rules = []
    for pod in plan.pods:
        for ip in of_family(pod.ips, plan.family):
            here, there = f"{option} {ip}/{length}", f"! {other} {ip}/{length}"
            ends = f"{there} {here}" if option == "-d" else f"{here} {there}"
            words = _comment(f"{plan.direction.lower()} of pod {pod.namespace}/{pod.name}")
            rules.append(f"{ends} {words} -j {_pod_name(plan, pod)}")
    return _chain(plan.family, _dispatch_name(plan), rules)


def _pod_chain(plan: Plan, pod: Pod) -> Chain:
    """The tiers in their order; what no policy marked at the end is rejected."""
    side, named = _side(plan.direction), f"pod {pod.namespace}/{pod.name}"
    rules = [UNMARK]
    if plan.admin:
        rules += [f"-j {_tier_name(plan, 'ADMIN')}", f"{IS_MARKED} -j RETURN"]
    if plan.cluster_wide:
        words = _comment("no NetworkPolicy selects the pod")
        goes = f"-g {_tier_name(plan, 'BASELINE')}" if plan.baseline else "-j RETURN"
        rules.append(f"{words} {_in_set(_isolated(plan), side, outside=True)} {goes}")
    if pod.namespace in plan.policies:
        rules.append(f"-j {_namespace_name(plan, pod.namespace)}")
    words = _comment(f"reject {plan.direction.lower()} of {named} that no policy allows")
    rules += [f"{words} {IS_NOT_MARKED} {LOG}", f"{words} {IS_NOT_MARKED} {REJECT[plan.family]}"]
    return _chain(plan.family, _pod_name(plan, pod), rules)


def _namespace_chain(plan: Plan, namespace: str, policies: tuple[PlannedPolicy, ...]) -> Chain:
    """To each policy of a namespace, for the pods that it selects, until one allows."""
    rules: list[str] = []
    for planned in policies:
        if rules:
            rules.append(f"{IS_MARKED} -j RETURN")
        subject = _set_name(Subject(planned.policy.subject), plan.direction, plan.family)
        words = _comment(f"{planned.policy} {plan.direction.lower()}")
        rules.append(f"{words} {_in_set(subject, _side(plan.direction))} -j {_policy_name(planned)}")
    return _chain(plan.family, _namespace_name(plan, namespace), rules)


def _policy_chain(planned: PlannedPolicy, family: Family) -> Chain:
    """Marks what one of its rules allows."""
    rules: list[str] = []
    for rule in planned.rules:
        matches = list(_matches(planned, rule, family))
        if rules and matches:
            rules.append(f"{IS_MARKED} -j RETURN")
        rules += [f"{match} {ACCEPT}" for match in matches]
    return _chain(family, _policy_name(planned), rules)


def _tier_chain(plan: Plan, tier: str, policies: tuple[PlannedPolicy, ...]) -> Chain:
    """The rules of a cluster-wide tier in their order: marked is accepted, unmarked goes on to the next."""
    rules: list[str] = []
    for planned in policies:
        for rule in planned.rules:
            subject = _set_name(Subject(planned.policy.subject), plan.direction, plan.family)
            matches = [
                f"{match} {_in_set(subject, _side(plan.direction))}"
                for match in _matches(planned, rule, plan.family)
            ]
            match rule.rule.action:
                case "Accept":
                    rules += [f"{match} {ACCEPT}" for match in matches]
                    rules += [f"{IS_MARKED} -j RETURN"] if matches else []
                case "Deny":
                    rules += [f"{match} {REJECT[plan.family]}" for match in matches]
                case "Pass":
                    rules += [f"{match} -j RETURN" for match in matches]
    return _chain(plan.family, _tier_name(plan, tier), rules)


def _matches(planned: PlannedPolicy, rule: PlannedRule, family: Family) -> Iterator[str]:
    """What a packet has to be for a rule, one text for each way."""
    side = _side(planned.direction, peer=True)
    for each in rule.matches:
        peer = "" if each.peer is None else f" peer {each.peer}"
        words = _comment(f"{planned.policy} {planned.direction.lower()} rule {rule.rule.index}{peer}")
        parts = [words]
        if each.addresses is not None:
            parts.append(_in_set(_set_name(each.addresses, planned.direction, family), side))
        if (port := each.port) is not None:
            if port.name:
                parts.append(_in_set(_set_name(port, planned.direction, family), "dst,dst"))
            else:
                protocol = port.protocol.lower()
                parts.insert(0, f"-p {protocol}")
                if (port.first, port.last) != ANY_PORT:
                    span = str(port.first) if port.first == port.last else f"{port.first}:{port.last}"
                    parts.append(f"-m {protocol} --dport {span}")
        yield " ".join(parts)
