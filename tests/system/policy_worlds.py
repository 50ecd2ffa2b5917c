"""Generated clusters with policies, and flows to ask about: for hypothesis, which shrinks them.

Everything is made of few words, so that selectors hit and miss, rules overlap, and what differs stays
readable. ``walked`` is the answer of the rules; that of traffic is in ``policy_traffic``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import strategies as st

from testbed.conformance.network_policy.cases import complete
from testbed.control.policies import Policies
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.control.view import typed_pod
from testbed.objects import kinds
from testbed.objects.validation import validate
from testbed.policy import enforcers
from testbed.policy.meaning import Flow, Meaning, own_addresses
from testbed.rules import nftwalk, walk
from testbed.rules.flows import Flow as Packet
from testbed.rules.flows import Host
from testbed.state import NetnsState

Object = dict[str, Any]

FACTS = ClusterFacts(
    "cluster.local", ("10.244.0.0/16", "fd00:244::/48"), ("10.96.0.0/12",), ("192.168.100.0/24",), ()
)
NODES = tuple(
    Node(
        f"node-{k}",
        (f"192.168.100.1{k}", f"fd00:100::1{k}"),
        (f"10.244.{k}.0/24", f"fd00:244:0:{k}::/64"),
        labels={"zone": "ab"[k % 2]},
    )
    for k in (1, 2)
)
OUTSIDE = ("203.0.113.10", "fd00:203::10")
NAMESPACES = ("x", "y", "z")
PORTS = (80, 81, 82)
NAMES = ("web", "alt")
BLOCKS = (
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.2.2/32",
    "192.168.100.11/32",
    "203.0.113.0/24",
)
BLOCKS6 = ("::/0", "fd00:244::/48", "fd00:244:0:1::/64", "fd00:203::10/128")
EXCEPTS = {
    "0.0.0.0/0": ("10.0.0.0/8", "0.0.0.0/1", "10.244.1.2/32"),
    "10.244.0.0/16": ("10.244.1.0/24", "10.244.2.2/32"),
    "10.244.1.0/24": ("10.244.1.2/32", "10.244.1.0/31"),
    "203.0.113.0/24": ("203.0.113.10/32",),
    "::/0": ("fd00:244:0:2::/64", "8000::/1"),
    "fd00:244::/48": ("fd00:244:0:1::2/128",),
    "fd00:244:0:1::/64": ("fd00:244:0:1::3/128",),
}


@dataclass(frozen=True)
class Generated:
    """Objects as the API has them, and flows."""

    namespaces: tuple[Object, ...]
    pods: tuple[Object, ...]
    policies: tuple[Object, ...]
    flows: tuple[Flow, ...] = ()

    @cached_property
    def snapshot(self) -> Snapshot:
        """As compilers see it."""
        kept = Policies()
        for obj in (*self.namespaces, *self.policies):
            kept.put(obj)
        pods = tuple(
            typed_pod(pod, tuple(entry["ip"] for entry in pod["status"]["podIPs"])) for pod in self.pods
        )
        return Snapshot(FACTS, NODES, pods, policies=kept.policies, namespaces=kept.namespaces)

    @classmethod
    def example(cls) -> Generated:
        """A small one, the same always."""
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "only-a", "namespace": "x"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "a"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}],
            },
        }
        pods = tuple(pod("x", k, {"app": "a", "tier": "x"}, [("web", 80, "TCP")]) for k in range(3))
        return cls((namespace("x", {"team": "r"}),), pods, (complete(policy),))


def namespace(name: str, labels: dict[str, str]) -> Object:
    """A Namespace object."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(
    where: str,
    number: int,
    labels: dict[str, str],
    ports: list[tuple[str, int, str]],
    *,
    families: tuple[int, ...] = (0, 1),
    host_network: bool = False,
    life: int = 0,
) -> Object:
    """The ``number``-th Pod object of the cluster, on one node after the other.

    families: of its addresses, 0 for IPv4; life: how often it was made anew, each time with another identity.
    """
    k, host = number % 2 + 1, number // 2 + 2
    ips = (f"10.244.{k}.{host}", f"fd00:244:0:{k}::{host}")
    if host_network:
        ips, families = NODES[k - 1].addresses, (0, 1)  # type: ignore[assignment]
    named = [
        {"containerPort": port, "protocol": protocol, **({"name": name} if name else {})}
        for name, port, protocol in ports
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"p{number}",
            "namespace": where,
            "uid": f"uid-{number}-{life}",
            "labels": labels,
        },
        "spec": {
            "nodeName": f"node-{k}",
            "hostNetwork": host_network,
            "containers": [{"name": "c", "image": "agnhost", "ports": named}],
        },
        "status": {"podIPs": [{"ip": ips[family]} for family in families]},
    }


def _some(**choices: tuple[str, ...]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(few) for key, few in choices.items()})


POD_LABELS = _some(app=("a", "b"), tier=("x", "y"))
NAMESPACE_LABELS = _some(team=("r", "s"))


@st.composite
def _requirement(draw: st.DrawFn, key: str, values: tuple[str, ...]) -> Object:
    """A selector of one requirement."""
    kind = draw(st.sampled_from(("label", "In", "NotIn", "Exists", "DoesNotExist")))
    if kind == "label":
        return {"matchLabels": {key: draw(st.sampled_from(values))}}
    few = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))
    named = {"values": few} if kind in ("In", "NotIn") else {}
    return {"matchExpressions": [{"key": key, "operator": kind, **named}]}


@st.composite
def selectors(draw: st.DrawFn, **keys: tuple[str, ...]) -> Object:
    """A label selector about some of these keys; often the empty one."""
    found: Object = {}
    for key in draw(st.lists(st.sampled_from(sorted(keys)), max_size=2)):
        one = draw(_requirement(key, keys[key]))
        found.setdefault("matchLabels", {}).update(one.get("matchLabels", {}))
        found.setdefault("matchExpressions", []).extend(one.get("matchExpressions", []))
    return {kind: requirements for kind, requirements in found.items() if requirements}


POD_SELECTORS = selectors(app=("a", "b"), tier=("x", "y"))
NAMESPACE_SELECTORS = selectors(**{"team": ("r", "s"), "kubernetes.io/metadata.name": NAMESPACES})


@st.composite
def _block(draw: st.DrawFn) -> Object:
    cidr = draw(st.sampled_from(BLOCKS + BLOCKS6))
    excepts = draw(st.lists(st.sampled_from(EXCEPTS.get(cidr, ("",))), max_size=2, unique=True))
    found = [each for each in excepts if each]
    return {"cidr": cidr, **({"except": found} if found else {})}


PEERS = st.one_of(
    st.fixed_dictionaries({"podSelector": POD_SELECTORS}),
    st.fixed_dictionaries({"namespaceSelector": NAMESPACE_SELECTORS}),
    st.fixed_dictionaries({"podSelector": POD_SELECTORS, "namespaceSelector": NAMESPACE_SELECTORS}),
    st.fixed_dictionaries({"ipBlock": _block()}),
)
PROTOCOLS = st.sampled_from(("TCP", "UDP", "SCTP"))


@st.composite
def _port(draw: st.DrawFn) -> Object:
    port: Object = {"protocol": draw(PROTOCOLS)}
    kind = draw(st.sampled_from(("any", "number", "range", "name")))
    if kind == "name":
        port["port"] = draw(st.sampled_from(NAMES))
    elif kind != "any":
        port["port"] = draw(st.sampled_from(PORTS))
        if kind == "range":
            port["endPort"] = port["port"] + draw(st.integers(0, 2))
    return port


@st.composite
def network_policies(draw: st.DrawFn, number: int) -> Object:
    """A NetworkPolicy."""
    spec: Object = {"podSelector": draw(POD_SELECTORS)}
    types = draw(st.sampled_from((("Ingress",), ("Egress",), ("Ingress", "Egress"), ())))
    if types:
        spec["policyTypes"] = list(types)
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        rules = draw(
            st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        peers: st.lists(PEERS, max_size=2),
                        "ports": st.lists(_port(), max_size=2),
                    },
                ),
                max_size=2,
            )
        )
        spec[direction] = rules
    metadata = {"name": f"np{number}", "namespace": draw(st.sampled_from(NAMESPACES))}
    return complete(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": spec,
        }
    )


NAMESPACED = st.fixed_dictionaries({"namespaceSelector": NAMESPACE_SELECTORS, "podSelector": POD_SELECTORS})
SELECTED = st.one_of(
    st.fixed_dictionaries({"namespaces": NAMESPACE_SELECTORS}), st.fixed_dictionaries({"pods": NAMESPACED})
)
NETWORKS = st.fixed_dictionaries(
    {"networks": st.lists(st.sampled_from(BLOCKS + BLOCKS6), min_size=1, max_size=2, unique=True)}
)
NODE_PEERS = st.fixed_dictionaries({"nodes": selectors(zone=("a", "b"))})


@st.composite
def _protocol(draw: st.DrawFn, named: bool) -> Object:
    if named and draw(st.booleans()):
        return {"destinationNamedPort": draw(st.sampled_from(NAMES))}
    first = draw(st.sampled_from(PORTS))
    port = {"number": first} if draw(st.booleans()) else {"range": {"start": first, "end": first + 1}}
    return {draw(st.sampled_from(("tcp", "udp", "sctp"))): {"destinationPort": port}}


@st.composite
def _admin_port(draw: st.DrawFn, named: bool) -> Object:
    """The same as v1alpha1 spells it."""
    if named and draw(st.booleans()):
        return {"namedPort": draw(st.sampled_from(NAMES))}
    protocol, first = draw(PROTOCOLS), draw(st.sampled_from(PORTS))
    if draw(st.booleans()):
        return {"portNumber": {"protocol": protocol, "port": first}}
    return {"portRange": {"protocol": protocol, "start": first, "end": first + 1}}


@st.composite
def _wide_spec(draw: st.DrawFn, actions: tuple[str, ...], ports: str) -> Object:
    """Subject and rules of a cluster-wide policy. ports: the field's name, ``protocols`` or ``ports``."""
    spec: Object = {"subject": draw(SELECTED)}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        rules = []
        for _ in range(draw(st.integers(0, 2))):
            wide = direction == "egress" and draw(st.booleans())
            kinds_of_peers = st.one_of(SELECTED, NETWORKS, NODE_PEERS) if wide else SELECTED
            rule: Object = {
                "action": draw(st.sampled_from(actions)),
                peers: draw(st.lists(kinds_of_peers, min_size=1, max_size=2)),
            }
            one = _protocol if ports == "protocols" else _admin_port
            if some := draw(st.lists(one(not wide), max_size=2)):
                rule[ports] = some
            rules.append(rule)
        spec[direction] = rules
    return spec


def _wide(kind: str, version: str, name: str, spec: Object) -> Object:
    policy = complete(
        {
            "apiVersion": f"policy.networking.k8s.io/{version}",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
    )
    assert validate(kinds.kind_of(policy), policy) == []
    return policy


@st.composite
def cluster_policies(draw: st.DrawFn, number: int) -> Object:
    """A ClusterNetworkPolicy."""
    order = {"tier": draw(st.sampled_from(("Admin", "Baseline"))), "priority": draw(st.integers(0, 3))}
    spec = order | draw(_wide_spec(("Accept", "Deny", "Pass"), "protocols"))
    return _wide("ClusterNetworkPolicy", "v1alpha2", f"cnp{number}", spec)


@st.composite
def admin_policies(draw: st.DrawFn, number: int) -> Object:
    """An AdminNetworkPolicy."""
    spec = {"priority": draw(st.integers(0, 3))} | draw(_wide_spec(("Allow", "Deny", "Pass"), "ports"))
    return _wide("AdminNetworkPolicy", "v1alpha1", f"anp{number}", spec)


@st.composite
def baseline_policies(draw: st.DrawFn) -> Object:
    """The BaselineAdminNetworkPolicy."""
    spec = draw(_wide_spec(("Allow", "Deny"), "ports"))
    return _wide("BaselineAdminNetworkPolicy", "v1alpha1", "default", spec)


@st.composite
def policy_sets(draw: st.DrawFn) -> tuple[Object, ...]:
    """A few policies of every kind."""
    plain = [draw(network_policies(n)) for n in range(draw(st.integers(0, 3)))]
    wide = [draw(cluster_policies(n)) for n in range(draw(st.integers(0, 2)))]
    old = [draw(admin_policies(n)) for n in range(draw(st.integers(0, 1)))]
    if draw(st.integers(0, 2)) == 2:
        old.append(draw(baseline_policies()))
    return (*plain, *wide, *old)


@st.composite
def generated(draw: st.DrawFn, flows: int = 24) -> Generated:
    """A cluster, its policies and flows between everything there is."""
    namespaces = tuple(namespace(name, draw(NAMESPACE_LABELS)) for name in NAMESPACES)
    ports = st.tuples(st.sampled_from(("", *NAMES)), st.sampled_from(PORTS), PROTOCOLS)
    few = st.lists(ports, max_size=2, unique_by=(lambda each: each[0] or each[1], lambda each: each[1:]))
    pods = tuple(
        pod(
            draw(st.sampled_from(NAMESPACES)),
            number,
            draw(POD_LABELS),
            draw(few),
            families=draw(st.sampled_from(((0, 1), (0, 1), (0, 1), (0,), (1,)))),
            host_network=draw(st.integers(0, 9)) == 9,
            life=draw(st.integers(0, 1)),
        )
        for number in range(draw(st.integers(2, 6)))
    )
    asked = draw(st.lists(_flow(pods), min_size=flows, max_size=flows)) if flows else []
    return Generated(namespaces, pods, draw(policy_sets()), tuple(asked))


@st.composite
def changed(draw: st.DrawFn, world: Generated) -> Generated:
    """The same cluster after one change: a policy more or less, or a pod's labels."""
    pods, policies = world.pods, world.policies
    kind = draw(st.sampled_from(("add", "drop", "relabel")))
    if kind == "add" or (kind == "drop" and not policies):
        policies = (*policies, draw(st.one_of(network_policies(8), cluster_policies(8))))
    elif kind == "drop":
        gone = draw(st.integers(0, len(policies) - 1))
        policies = policies[:gone] + policies[gone + 1 :]
    else:
        which = draw(st.integers(0, len(pods) - 1))
        metadata = {**pods[which]["metadata"], "labels": draw(POD_LABELS)}
        pods = (*pods[:which], {**pods[which], "metadata": metadata}, *pods[which + 1 :])
    return Generated(world.namespaces, pods, policies, world.flows)


@st.composite
def _flow(draw: st.DrawFn, pods: tuple[Object, ...]) -> Flow:
    family = draw(st.integers(0, 1))
    known = [entry["ip"] for each in pods for entry in each["status"]["podIPs"]]
    other = [OUTSIDE[family], *(node.addresses[family] for node in NODES)]
    ends = [ip for ip in known if (":" in ip) == bool(family)] or other
    first, second = draw(st.sampled_from(ends)), draw(st.sampled_from([*ends, *other]))
    source, destination = (first, second) if draw(st.booleans()) else (second, first)
    protocol = draw(st.sampled_from(("TCP", "TCP", "UDP", "SCTP", "ICMP")))
    port = 0 if protocol == "ICMP" else draw(st.sampled_from(PORTS))
    return Flow(source, destination, protocol, port)


# --- what the rules do ----------------------------------------------------------------------------------

FORMS = ("iptables", "nft")


def passes(form: str, state: NetnsState, node: Node, flow: Flow) -> tuple[bool, str]:
    """Whether the rules of one node let a flow pass, and which decided."""
    local = frozenset(own_addresses(node))
    device = "" if flow.source in local else "eth0"  # the first: made by the node itself
    packet = Packet(flow.source, flow.destination, flow.protocol.lower(), flow.port, device=device)
    if form == "nft":
        verdicts = nftwalk.walk(state, packet, Host(local))
    else:
        sets = {name: each.entries for name, each in state.ipsets.items()}
        verdicts = dict(walk.walk(state.chains, packet, Host(local), sets))
    (verdict,) = verdicts
    return verdict.action == "pass", verdict.rule


def walked(form: str, states: dict[str, NetnsState], snapshot: Snapshot, flow: Flow) -> tuple[bool, str]:
    """Whether every node on the way lets a flow pass: those of its two ends."""
    homes = {ip: pod.node for pod in snapshot.pods for ip in pod.ips}
    for name in dict.fromkeys(homes[end] for end in (flow.source, flow.destination) if end in homes):
        passed, rule = passes(form, states[name], snapshot.node[name], flow)
        if not passed:
            return False, f"{name}: {rule}"
    return True, ""


def compiled(form: str, snapshot: Snapshot) -> dict[str, NetnsState]:
    """The rules of every node."""
    enforcer = enforcers.get(form)()
    return {node.name: enforcer.compile(snapshot, node) for node in snapshot.nodes}


def disagreements(form: str, snapshot: Snapshot, flows: tuple[Flow, ...]) -> list[str]:
    """Flows of which the policies mean one thing and the rules do another, in words."""
    states, meaning = compiled(form, snapshot), Meaning(snapshot)
    found = []
    for flow in flows:
        meant = meaning.allowed(flow)
        passed, rule = walked(form, states, snapshot, flow)
        if passed != meant.allowed:
            found.append(f"{flow}: meant {meant.deciding}; walked {'pass' if passed else rule}")
    return found
