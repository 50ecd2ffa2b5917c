"""Felix's rules on one node: chains that are always there, chains of each pod, and those of policies.

Everything that felix has in iptables, so that all of it stands in front of kube-proxy's rules, as felix's
insert mode has it. The policies that select a pod are in the chains of its host end (``cali-fw-``: what comes
from the pod, ``cali-tw-``: what goes to it): a policy's chain marks what it accepts; what no policy of the
tier accepts is dropped; a pod that no policy selects is accepted by the profile of its namespace.

Cluster-wide policies are in tiers before (``kube-admin``) and after (``kube-baseline``) the tier ``default``;
these two leave what they do not match to the next. Not felix's are the rules that cut open connections off
(``TESTBED-CUT``), which a policy's change never does in Calico.

Sources: projectcalico/calico ``felix/rules/{static,endpoints,dispatch,policy,nat}.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha3_224
from ipaddress import ip_network
from itertools import groupby

from testbed.control.policies import ANY_PORT, Block, Direction, Policy, Port, Selection, Selector
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane.calico.names import PREFIX, TUNNEL, VXLAN, VXLAN_PORT, address, host_end, version_of
from testbed.dataplane.calico.options import Options
from testbed.dataplane.calico.rules import (
    ACCEPT,
    ACCEPT_MARK,
    ALL_MARKS,
    DROP,
    DROP_MARK,
    MASQUERADE,
    NOTRACK,
    PASS_MARK,
    RETURN,
    SCRATCH0,
    SCRATCH1,
    Action,
    Part,
    Rule,
    any_mark,
    built_in,
    chain,
    clear_mark,
    comes_in,
    encoded,
    from_local,
    goes_out,
    goto,
    icmpv6_type,
    in_set,
    is_protocol,
    jump,
    limited,
    marked,
    net,
    not_from_local_of_device,
    not_in_set,
    not_state,
    set_mark,
    set_masked_mark,
    set_name,
    spoofed,
    state,
    to_local,
    to_ports,
    to_udp_port,
    unique_id,
    unmarked,
    when,
)
from testbed.errors import TestbedError
from testbed.policy.meaning import network
from testbed.policy.members import of_family
from testbed.policy.plan import (
    CUT,
    DIRECTIONS,
    PerPolicy,
    Plan,
    PlannedPolicy,
    PlannedRule,
    Planner,
    Source,
    Subject,
    families,
)
from testbed.state import Chain, Family, IpSet, NetnsState

FROM, TO = "cali-from-wl-dispatch", "cali-to-wl-dispatch"
TIERS = {"Admin": "kube-admin", "NetworkPolicy": "default", "Baseline": "kube-baseline"}
KIND = {
    "NetworkPolicy": "knp",
    "ClusterNetworkPolicy": "kcnp",
    "AdminNetworkPolicy": "kanp",
    "BaselineAdminNetworkPolicy": "kbanp",
}
"""Short words in the ids of policies (felix ``types.PolicyID``)."""
CUT_CHAIN = "TESTBED-CUT"
NEIGHBOURS = (130, 131, 132, 133, 135, 136)
"""Types of ICMPv6 that a router needs of pods: ``ICMPv6Filter``."""
RETURN_STRIDE = 5
"""Policies of a group between two looks at whether one decided."""
MOST_PORTS = 15
"""That one match of multiport takes."""
IPIP_PROTOCOL = "4"
MASQ_POOLS, ALL_POOLS, ALL_HOSTS, VXLAN_HOSTS = (
    "masq-ipam-pools",
    "all-ipam-pools",
    "all-hosts-net",
    "all-vxlan-net",
)
REJECT: dict[Family, str] = {
    "ipv4": "-j REJECT --reject-with icmp-port-unreachable",
    "ipv6": "-j REJECT --reject-with icmp6-port-unreachable",
}


class Felix:
    """Compiles felix's rules of nodes."""

    needs: frozenset[str] = frozenset({"iptables", "ip6tables", "ipset"})

    def __init__(self) -> None:
        self._planner = Planner()
        self._policies = PerPolicy(policy_chain)
        self._endpoints: dict[tuple[object, ...], Chain] = {}
        self._sets: dict[tuple[str, str], IpSet] = {}
        self._static: tuple[ClusterFacts | None, dict[Family, tuple[Chain, ...]]] = (None, {})

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """All chains and sets of one node."""
        self._planner.see(snapshot)
        self._policies.see(snapshot)
        options = Options.of(snapshot.facts)
        chains: list[Chain] = []
        sets: list[IpSet] = []
        for family in families(snapshot.facts.pod_cidrs):
            chains += self._static_chains(snapshot.facts, options, family)
            chains += self._pods(snapshot, node, family, sets)
            sets += self._static_sets(snapshot, node, options, family)
            if snapshot.policies and snapshot.facts.policy_on_change == "cut":
                chains += _cut_chains(family)
        return NetnsState(chains=merged(chains), ipsets={each.name: each for each in sets})

    def _static_chains(self, facts: ClusterFacts, options: Options, family: Family) -> tuple[Chain, ...]:
        if self._static[0] is not facts:
            self._static = facts, {}
        kept = self._static[1]
        if family not in kept:
            kept[family] = tuple(static_chains(options, family))
        return kept[family]

    def _static_sets(
        self, snapshot: Snapshot, node: Node, options: Options, family: Family
    ) -> Iterator[IpSet]:
        version = version_of(family)
        pools = frozenset(
            _printed(pool) for pool in snapshot.facts.pod_cidrs if network(pool).version == version
        )
        yield self._set(node, set_name(family, ALL_POOLS), "hash:net", family, pools)
        masqueraded = pools if options.nat_outgoing else frozenset()
        yield self._set(node, set_name(family, MASQ_POOLS), "hash:net", family, masqueraded)
        how = options.encapsulation(version)
        if how:
            name = ALL_HOSTS if how == "ipip" else VXLAN_HOSTS
            nodes = [each for each in snapshot.nodes if name == ALL_HOSTS or each.name != node.name]
            hosts = (address(each, version) for each in nodes)
            entries = frozenset(each for each in hosts if each is not None)
            yield self._set(node, set_name(family, name), "hash:net", family, entries)

    def _set(self, node: Node, name: str, kind: str, family: Family, entries: frozenset[str]) -> IpSet:
        """The same object as last time while its entries are the same."""
        kept = self._sets.get((node.name, name))
        if kept is None or (kept.entries is not entries and kept.entries != entries):
            inet = "inet" if family == "ipv4" else "inet6"
            kept = self._sets[node.name, name] = IpSet(name, kind, inet, entries)  # type: ignore[arg-type]
        return kept

    # --- pods -------------------------------------------------------------------------------------------

    def _pods(self, snapshot: Snapshot, node: Node, family: Family, sets: list[IpSet]) -> Iterator[Chain]:
        pods = [
            pod
            for pod in snapshot.pods_by_node.get(node.name, ())
            if not pod.host_network and any(of_family(pod.ips, family))
        ]
        yield from dispatch_chains(family, [host_end(pod.namespace, pod.name) for pod in pods])
        for namespace in sorted({pod.namespace for pod in pods}):
            yield from _profile_chains(family, f"kns.{namespace}", allows=True)
        for account in sorted({f"{pod.namespace}.{pod.service_account}" for pod in pods}):
            yield from _profile_chains(family, f"ksa.{account}", allows=False)
        for direction in DIRECTIONS:
            plan = self._planner.plan(snapshot, node, direction, family)
            active: dict[str, PlannedPolicy] = {}
            for pod in pods:
                tiers = self._selecting(plan, node, pod)
                for group in (group for _, groups in tiers for group in groups):
                    active |= {policy_chain_name(each): each for each in group}
                    if len(group) > 1:
                        yield _group_chain(family, group)
                yield self._endpoint_chain(family, direction, pod, tiers)
            for planned in active.values():
                yield self._policies.of(planned, family)
                for source in planned.sources:
                    if not isinstance(source, Subject | Block):
                        kind = "hash:ip,port" if isinstance(source, Port) else "hash:net"
                        entries = self._planner.entries(source, family, snapshot, node)
                        sets.append(self._set(node, source_set(source, family), kind, family, entries))

    def _selecting(self, plan: Plan, node: Node, pod: Pod) -> Tiers:
        """The policies that select a pod, by tier, in groups of those with one selector."""
        ips = frozenset(of_family(pod.ips, plan.family))
        tiers: list[tuple[str, tuple[tuple[PlannedPolicy, ...], ...]]] = []
        for tier, policies in (
            ("Admin", plan.admin),
            ("NetworkPolicy", plan.policies.get(pod.namespace, ())),
            ("Baseline", plan.baseline),
        ):
            here = [
                planned
                for planned in policies
                if ips & self._planner.members.addresses(planned.policy.subject, plan.family, node.name)
            ]
            if here:
                groups = groupby(here, key=lambda planned: planned.policy.subject)
                tiers.append((TIERS[tier], tuple(tuple(group) for _, group in groups)))
        return tuple(tiers)

    def _endpoint_chain(self, family: Family, direction: Direction, pod: Pod, tiers: Tiers) -> Chain:
        names = tuple((tier, tuple(map(_target_name, groups))) for tier, groups in tiers)
        key = (family, direction, pod.namespace, pod.name, pod.service_account, names)
        if key not in self._endpoints:
            if len(self._endpoints) > MOST_KEPT:
                self._endpoints.clear()
            self._endpoints[key] = endpoint_chain(family, direction, pod, names)
        return self._endpoints[key]


Tiers = tuple[tuple[str, tuple[tuple[PlannedPolicy, ...], ...]], ...]
"""Tier's name → groups of policies that select the same pods."""
Targets = tuple[tuple[str, tuple[str, ...]], ...]
"""Tier's name → the chains of its groups."""
MOST_KEPT = 100_000
"""Pods' chains that are kept, so that those of pods long gone do not pile up."""
MOST_KINDS = 1000
"""The same of kinds of pods' chains."""


# --- names ----------------------------------------------------------------------------------------------


def policy_chain_name(planned: PlannedPolicy) -> str:
    """``cali-pi-`` (to pods) or ``cali-po-`` (from pods) and the policy's id."""
    policy = planned.policy
    where = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
    prefix = "cali-pi-" if planned.direction == "Ingress" else "cali-po-"
    return limited(prefix, f"{KIND[policy.kind]}/{where}")


def source_set(source: Source, family: Family) -> str:
    """``cali40s:`` of a selector, ``cali40n:`` of a named port."""
    letter = "n" if isinstance(source, Port) else "s"
    return set_name(family, unique_id(letter, selector_text(source)))


def selector_text(source: Source) -> str:
    """A selector in Calico's language."""
    match source:
        case Selection():
            words = [*_labels(source.pods, "")]
            words += _labels(source.namespaces, "pcns.")
            if source.namespace:
                words.append(f'projectcalico.org/namespace == "{source.namespace}"')
            orchestrated = ['projectcalico.org/orchestrator == "k8s"', *words]
            return f"({' && '.join(orchestrated)})"
        case Selector():
            return f"nodes({' && '.join(_labels(source, '')) or 'all()'})"
        case Port():
            return f"{source.protocol.lower() or 'any'},{source.name}"
        case _:
            return repr(source)


def _labels(selector: Selector, prefix: str) -> Iterator[str]:
    for key, value in selector.labels:
        yield f'{prefix}{key} == "{value}"'
    for key, operator, values in selector.expressions:
        name = prefix + key
        listed = ", ".join(f'"{value}"' for value in values)
        match operator:
            case "In":
                yield f"{name} in {{{listed}}}"
            case "NotIn":
                yield f"{name} not in {{{listed}}}"
            case "Exists":
                yield f"has({name})"
            case _:
                yield f"! has({name})"


# --- chains of pods -------------------------------------------------------------------------------------


def dispatch_chains(family: Family, names: Iterable[str]) -> Iterator[Chain]:
    """From each host end to its chain: a tree of two levels, by the first letter that differs."""
    ordered = sorted(set(names))
    common = _common_prefix(ordered)
    for root, prefix, device in ((FROM, "cali-fw-", comes_in), (TO, "cali-tw-", goes_out)):
        end = when(do=DROP, say="Unknown interface")
        rules: list[Rule] = []
        for letter, several in groupby(ordered, key=lambda name: name[: len(common) + 1]):
            ends = list(several)
            to_each = [when(device(name), do=goto(limited(prefix, name))) for name in ends]
            if len(ends) == 1:
                rules += to_each
                continue
            child = f"{root}-{letter[len(common) :]}"
            rules.append(when(device(f"{letter}+"), do=goto(child)))
            yield chain(family, "filter", child, [*to_each, end])
        yield chain(family, "filter", root, [*rules, end])


def _common_prefix(names: Sequence[str]) -> str:
    """Of sorted names: what the first and the last have in common."""
    if not names:
        return ""
    pairs = enumerate(zip(names[0], names[-1], strict=False))
    return next((names[0][:place] for place, (one, other) in pairs if one != other), names[0])


def endpoint_chain(family: Family, direction: Direction, pod: Pod, tiers: Targets) -> Chain:
    """What is asked of what comes from a pod (``cali-fw-``) or goes to it (``cali-tw-``)."""
    comes = direction == "Egress"
    name = limited("cali-fw-" if comes else "cali-tw-", host_end(pod.namespace, pod.name))
    return chain(family, "filter", name, _endpoint_rules(comes, pod.namespace, pod.service_account, tiers))


@lru_cache(maxsize=MOST_KINDS)  # pods of a workload have the same
def _endpoint_rules(comes: bool, namespace: str, account: str, tiers: Targets) -> tuple[Rule, ...]:
    rules = [
        when(state("RELATED,ESTABLISHED"), do=ACCEPT),
        when(state("INVALID"), do=DROP),
        when(do=clear_mark(ACCEPT_MARK | PASS_MARK)),
    ]
    if comes:
        words = "Drop {} encapped packets originating in workloads"
        to_vxlan = (is_protocol("udp"), to_ports(str(VXLAN_PORT)))
        rules.append(when(*to_vxlan, do=DROP, say=words.format("VXLAN")))
        rules.append(when(is_protocol(IPIP_PROTOCOL), do=DROP, say=words.format("IPinIP")))
    for tier, targets in tiers:
        rules.append(when(do=clear_mark(PASS_MARK), say=f"Start of tier {tier}"))
        for target in targets:
            rules.append(when(unmarked(PASS_MARK), do=jump(target)))
            rules.append(when(marked(ACCEPT_MARK), do=RETURN, say="Return if policy accepted"))
        if tier == "default":
            words = f"End of tier {tier}. Drop if no policies passed packet"
            rules.append(when(unmarked(PASS_MARK), do=DROP, say=words))
    for profile in (f"kns.{namespace}", f"ksa.{namespace}.{account}"):
        rules.append(when(do=jump(_profile_name(profile, comes))))
        rules.append(when(marked(ACCEPT_MARK), do=RETURN, say="Return if profile accepted"))
    rules.append(when(do=DROP, say="Drop if no profiles matched"))
    return tuple(rules)


def _profile_name(profile: str, outbound: bool) -> str:
    return limited("cali-pro-" if outbound else "cali-pri-", profile)


def _profile_chains(family: Family, profile: str, *, allows: bool) -> Iterator[Chain]:
    """The profile of a namespace accepts everything, that of a service account says nothing."""
    for outbound, word in ((False, "ingress"), (True, "egress")):
        action = set_mark(ACCEPT_MARK) if allows else Action()
        rule = Rule((), action, (f"Profile {profile} {word}",))
        yield chain(family, "filter", _profile_name(profile, outbound), [rule])


def _target_name(group: Sequence[PlannedPolicy]) -> str:
    """Where an endpoint's chain jumps for these: a policy alone needs no group."""
    return policy_chain_name(group[0]) if len(group) == 1 else _group_name(group)


def _group_name(group: Sequence[PlannedPolicy]) -> str:
    planned = group[0]
    words = [
        selector_text(planned.policy.subject),
        "inbound" if planned.direction == "Ingress" else "outbound",
        str(len(group)),
        *(_id_text(each.policy) for each in group),
    ]
    digest = encoded(sha3_224("".join(f"{word}\n" for word in words).encode()).digest())
    prefix = "cali-gi-" if planned.direction == "Ingress" else "cali-go-"
    return prefix + digest[: 28 - len(prefix)]


def _id_text(policy: Policy) -> str:
    """A policy's id as a group's hash has it: policies of two kinds may share tier and name."""
    return f"{{Name: {policy.name}, Namespace: {policy.namespace}, Kind: Kubernetes{policy.kind}}}"


def _group_chain(family: Family, group: Sequence[PlannedPolicy]) -> Chain:
    rules: list[Rule] = []
    verdict = PASS_MARK | ACCEPT_MARK
    for number, planned in enumerate(group):
        first = number % RETURN_STRIDE == 0
        if number and first:
            rules.append(when(any_mark(verdict), do=RETURN, say="Return on verdict"))
        match = () if first else (unmarked(verdict),)
        rules.append(when(*match, do=jump(policy_chain_name(planned))))
    return chain(family, "filter", _group_name(group), rules)


# --- chains of policies ---------------------------------------------------------------------------------


def policy_chain(planned: PlannedPolicy, family: Family) -> Chain:
    """The rules of a policy in one direction: each that matches sets a mark and ends the chain, or drops."""
    rules: list[Rule] = []
    for rule in planned.rules:
        sources = tuple(dict.fromkeys((match.peer, match.addresses) for match in rule.matches))
        for ports in by_protocol(rule.rule.ports):
            for _, source in sources:
                rules += _rules(planned, rule, source, ports, family)
    while rules and rules[-1].action.returns:
        rules.pop()
    kind = f"Kubernetes{planned.policy.kind}"
    where = f"{planned.policy.namespace}/" if planned.policy.namespace else ""
    words = f"{kind} {where}{planned.policy.name} {planned.direction.lower()}"
    first = rules[0] if rules else Rule()
    rules[:1] = [Rule(first.match, first.action, (*first.comments, words))]
    return chain(family, "filter", policy_chain_name(planned), rules)


@dataclass(frozen=True)
class Ports:
    """What of one protocol a rule is about. protocol: "" for any; numbers: what each match of multiport says;
    named: named ports. Neither: all of it."""

    protocol: str
    numbers: tuple[str, ...] = ()
    named: tuple[Port, ...] = ()


def by_protocol(ports: tuple[Port, ...] | None) -> Iterator[Ports]:
    """Ports as Calico has them: protocol by protocol, ports that touch as one range, 15 to a match.

    Sources: libcalico-go ``lib/backend/k8s/conversion/conversion.go`` (k8sRuleToCalico, SimplifyPorts),
    ``felix/rules/policy.go`` (SplitPortList).
    """
    if ports is None:
        yield Ports("")
        return
    for protocol in sorted({port.protocol for port in ports}):
        those = [port for port in ports if port.protocol == protocol]
        numbers = [(port.first, port.last) for port in those if not port.name]
        if ANY_PORT in numbers:
            yield Ports(protocol.lower())
            continue
        named = tuple(dict.fromkeys(port for port in those if port.name))
        yield Ports(protocol.lower(), tuple(_split(_joined(numbers))), named)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order; those that overlap or touch are one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def _split(ranges: Iterable[tuple[int, int]]) -> Iterator[str]:
    """In portions that one match of multiport takes: a range counts as two ports."""
    portion: list[str] = []
    left = MOST_PORTS
    for first, last in ranges:
        size = 1 if first == last else 2
        if size > left:
            yield ",".join(portion)
            portion, left = [], MOST_PORTS
        portion.append(str(first) if first == last else f"{first}:{last}")
        left -= size
    if portion:
        yield ",".join(portion)


def _rules(
    planned: PlannedPolicy, rule: PlannedRule, source: Source | None, ports: Ports, family: Family
) -> Iterator[Rule]:
    """As ``ProtoRuleToIptablesRules`` has it: what one rule cannot say is said before it, by a mark."""
    side = "src" if planned.direction == "Ingress" else "dst"
    protocol = [is_protocol(ports.protocol)] if ports.protocol else []
    numbers = [to_ports(each) for each in ports.numbers]
    named = [in_set(source_set(each, family), "dst,dst") for each in ports.named]
    excepts: list[str] = []
    if isinstance(source, Block):
        excepts = [each for each in source.excepts if network(each).version == version_of(family)]
    several = len(numbers) + len(named) > 1
    if several or excepts:
        yield when(do=set_masked_mark(0 if several else SCRATCH0, SCRATCH0 | SCRATCH1))
    if several:
        for number in numbers:
            yield when(*protocol, number, do=set_mark(SCRATCH0))
        for name in named:
            yield when(name, do=set_mark(SCRATCH0))
    for each in excepts:
        yield when(net(side, str(network(each))), do=clear_mark(SCRATCH0))
    parts: list[Part] = [*protocol]
    if isinstance(source, Block):
        parts.append(net(side, str(network(source.cidr))))
    elif source is not None:
        parts.append(in_set(source_set(source, family), side))
    if not several:
        parts += [*numbers, *named]
    if several or excepts:
        parts.append(marked(SCRATCH0))
    mark, then = {
        "Accept": (ACCEPT_MARK, RETURN),
        "Pass": (PASS_MARK, RETURN),
        "Deny": (DROP_MARK, DROP),
    }[rule.rule.action]
    yield when(*parts, do=set_mark(mark))
    yield when(marked(mark), do=then)


# --- chains that are always there -----------------------------------------------------------------------


def static_chains(options: Options, family: Family) -> Iterator[Chain]:
    """Felix's chains of all tables that do not depend on pods and policies."""
    yield from _filter_chains(options, family)
    yield from _nat_chains(options, family)
    yield from _mangle_chains(family)
    yield from _raw_chains(options, family)


def _from_pods() -> Part:
    return comes_in(f"{PREFIX}+")


def _to_pods() -> Part:
    return goes_out(f"{PREFIX}+")


def _filter_chains(options: Options, family: Family) -> Iterator[Chain]:
    accepted = "Policy explicitly accepted packet."
    last = [when(marked(ACCEPT_MARK), do=ACCEPT, say=accepted), when(do=set_mark(ACCEPT_MARK))]
    for name, behind in (("INPUT", ()), ("FORWARD", last), ("OUTPUT", ())):
        yield built_in(family, "filter", name, [when(do=jump(f"cali-{name}"))], behind)
    forward = [
        when(do=clear_mark(ALL_MARKS & ~ACCEPT_MARK)),
        when(unmarked(ACCEPT_MARK), do=jump("cali-from-hep-forward")),
        when(_from_pods(), do=jump(FROM)),
        when(_to_pods(), do=jump(TO)),
        when(do=jump("cali-to-hep-forward")),
        when(do=jump("cali-cidr-block")),
    ]
    yield chain(family, "filter", "cali-FORWARD", forward)
    heps = (
        "cali-from-hep-forward",
        "cali-to-hep-forward",
        "cali-from-host-endpoint",
        "cali-to-host-endpoint",
    )
    for name in (*heps, "cali-cidr-block"):
        yield chain(family, "filter", name, [])
    hep_accepted = when(marked(ACCEPT_MARK), do=ACCEPT, say="Host endpoint policy accepted packet.")
    yield chain(
        family,
        "filter",
        "cali-INPUT",
        [
            *_tunnels_in(options, family),
            when(_from_pods(), do=goto("cali-wl-to-host")),
            when(marked(ACCEPT_MARK), do=ACCEPT),
            when(do=clear_mark(ALL_MARKS)),
            when(do=jump("cali-from-host-endpoint")),
            hep_accepted,
        ],
    )
    to_host = []
    if family == "ipv6":
        to_host += [when(is_protocol("ipv6-icmp"), icmpv6_type(number), do=ACCEPT) for number in NEIGHBOURS]
    to_host.append(when(do=jump(FROM)))
    action = jump(options.to_host.upper())
    to_host.append(when(do=action, say="Configured DefaultEndpointToHostAction"))
    yield chain(family, "filter", "cali-wl-to-host", to_host)
    yield chain(
        family,
        "filter",
        "cali-OUTPUT",
        [
            when(marked(ACCEPT_MARK), do=ACCEPT),
            when(_to_pods(), do=RETURN),
            *_tunnels_out(options, family),
            when(do=clear_mark(ALL_MARKS)),
            when(not_state("DNAT"), do=jump("cali-to-host-endpoint")),
            hep_accepted,
        ],
    )


def _tunnels_in(options: Options, family: Family) -> Iterator[Rule]:
    """What is encapsulated is taken from the cluster's nodes alone."""
    version = version_of(family)
    match options.encapsulation(version):
        case "ipip":
            known = in_set(set_name(family, ALL_HOSTS), "src")
            ours = is_protocol(IPIP_PROTOCOL)
            yield when(ours, known, to_local(), do=ACCEPT, say="Allow IPIP packets from Calico hosts")
            yield when(ours, do=DROP, say="Drop IPIP packets from non-Calico hosts")
        case "vxlan":
            known = in_set(set_name(family, VXLAN_HOSTS), "src")
            vxlan = (is_protocol("udp"), to_ports(str(VXLAN_PORT)))
            words = f"Allow IPv{version} VXLAN packets from allowed hosts"
            yield when(*vxlan, known, to_local(), do=ACCEPT, say=words)
            words = f"Drop IPv{version} VXLAN packets from non-allowed hosts"
            yield when(*vxlan, to_local(), do=DROP, say=words)


def _tunnels_out(options: Options, family: Family) -> Iterator[Rule]:
    version = version_of(family)
    match options.encapsulation(version):
        case "ipip":
            known = in_set(set_name(family, ALL_HOSTS), "dst")
            words = "Allow IPIP packets to other Calico hosts"
            yield when(is_protocol(IPIP_PROTOCOL), known, from_local(), do=ACCEPT, say=words)
        case "vxlan":
            known = in_set(set_name(family, VXLAN_HOSTS), "dst")
            words = f"Allow IPv{version} VXLAN packets to other allowed hosts"
            vxlan = (is_protocol("udp"), to_ports(str(VXLAN_PORT)))
            yield when(*vxlan, from_local(), known, do=ACCEPT, say=words)


def _nat_chains(options: Options, family: Family) -> Iterator[Chain]:
    version = version_of(family)
    for name in ("PREROUTING", "OUTPUT", "POSTROUTING"):
        yield built_in(family, "nat", name, [when(do=jump(f"cali-{name}"))])
    for name in ("PREROUTING", "OUTPUT"):
        yield chain(family, "nat", f"cali-{name}", [when(do=jump("cali-fip-dnat"))])
    yield chain(family, "nat", "cali-fip-dnat", [])
    yield chain(family, "nat", "cali-fip-snat", [])
    outgoing = []
    if options.nat_outgoing:
        pools = in_set(set_name(family, MASQ_POOLS), "src"), not_in_set(set_name(family, ALL_POOLS), "dst")
        outgoing.append(when(*pools, do=MASQUERADE))
    yield chain(family, "nat", "cali-nat-outgoing", outgoing)
    last = [when(do=jump("cali-fip-snat")), when(do=jump("cali-nat-outgoing"))]
    if how := options.encapsulation(version):
        device = VXLAN[version] if how == "vxlan" else TUNNEL
        wrong = goes_out(device), not_from_local_of_device(), from_local()
        last.append(when(*wrong, do=MASQUERADE))
    yield chain(family, "nat", "cali-POSTROUTING", last)


def _mangle_chains(family: Family) -> Iterator[Chain]:
    for name in ("PREROUTING", "POSTROUTING"):
        yield built_in(family, "mangle", name, [when(do=jump(f"cali-{name}"))])
    for name in ("cali-from-host-endpoint", "cali-to-host-endpoint"):
        yield chain(family, "mangle", name, [])
    words = "Host endpoint policy accepted packet."
    first = [
        when(state("RELATED,ESTABLISHED"), do=ACCEPT),
        when(marked(ACCEPT_MARK), do=ACCEPT),
        when(do=jump("cali-from-host-endpoint")),
        when(marked(ACCEPT_MARK), do=ACCEPT, say=words),
    ]
    yield chain(family, "mangle", "cali-PREROUTING", first)
    last = [
        when(marked(ACCEPT_MARK), do=RETURN),
        when(do=clear_mark(ALL_MARKS)),
        when(state("DNAT"), do=jump("cali-to-host-endpoint")),
        when(marked(ACCEPT_MARK), do=RETURN, say=words),
    ]
    yield chain(family, "mangle", "cali-POSTROUTING", last)


def _raw_chains(options: Options, family: Family) -> Iterator[Chain]:
    for name in ("PREROUTING", "OUTPUT"):
        yield built_in(family, "raw", name, [when(do=jump(f"cali-{name}"))])
    for name in ("cali-from-host-endpoint", "cali-to-host-endpoint", "cali-rpf-skip"):
        yield chain(family, "raw", name, [])
    untracked = []
    if options.encapsulation(version_of(family)) == "vxlan":
        untracked.append(when(is_protocol("udp"), to_udp_port(VXLAN_PORT), do=NOTRACK))
    first = [
        when(do=clear_mark(ALL_MARKS)),
        *untracked,
        when(_from_pods(), do=set_mark(SCRATCH0)),
        when(marked(SCRATCH0), do=jump("cali-rpf-skip")),
        when(marked(SCRATCH0), spoofed(), do=DROP),
        when(unmarked(SCRATCH0), do=jump("cali-from-host-endpoint")),
        when(marked(ACCEPT_MARK), do=ACCEPT),
    ]
    yield chain(family, "raw", "cali-PREROUTING", first)
    out = [when(do=clear_mark(ALL_MARKS)), when(do=jump("cali-to-host-endpoint")), *untracked]
    yield chain(family, "raw", "cali-OUTPUT", [*out, when(marked(ACCEPT_MARK), do=ACCEPT)])


# --- what is ours ---------------------------------------------------------------------------------------


def _cut_chains(family: Family) -> Iterator[Chain]:
    """In front of felix's: open connections that are no longer allowed, by the mark on them."""
    is_cut = f"-m connmark --mark {CUT:#x}/{CUT:#x}"
    refuse = (f"-p tcp {is_cut} -j REJECT --reject-with tcp-reset", f"{is_cut} {REJECT[family]}")
    yield Chain(family, "filter", CUT_CHAIN, refuse)
    words = '-m comment --comment "open connections that are no longer allowed"'
    for name in ("FORWARD", "INPUT"):
        yield Chain(family, "filter", name, (f"{words} -j {CUT_CHAIN}",), inserted=1)


def merged(chains: Iterable[Chain]) -> dict[tuple[str, str, str], Chain]:
    """Chains by what they are called, those of one name put together. Raises TestbedError."""
    found: dict[tuple[str, str, str], Chain] = {}
    for each in chains:
        key = each.family, each.table, each.name
        found[key] = _in_front(each, found[key]) if key in found else each
    return found


def _in_front(more: Chain, there: Chain) -> Chain:
    """A built-in chain with more rules in front; one of felix's own may come twice, but has to be the same.

    Raises TestbedError: of two that differ one would be lost, and with it what its policies deny.
    """
    if not more.inserted:
        if more != there:
            raise TestbedError(f"two chains of {more.family} table {more.table} are called {more.name}")
        return there
    return Chain(
        there.family, there.table, there.name, more.rules + there.rules, more.inserted + there.inserted
    )


def _printed(cidr: str) -> str:
    whole = ip_network(cidr)
    return str(whole.network_address) if whole.prefixlen == whole.max_prefixlen else str(whole)
