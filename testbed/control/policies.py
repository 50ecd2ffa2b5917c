"""Network policies of every kind as one typed model, and the namespaces that their selectors look at.

NetworkPolicy (``networking.k8s.io/v1``), ClusterNetworkPolicy (``policy.networking.k8s.io/v1alpha2``) and its
forerunners AdminNetworkPolicy and BaselineAdminNetworkPolicy (``v1alpha1``) differ in their spelling only;
what they mean is in ``testbed.policy``. Sources: ``staging/src/k8s.io/api/networking/v1/types.go``;
kubernetes-sigs/network-policy-api ``apis/v1alpha2``, ``apis/v1alpha1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from testbed.objects.selectors import holds

Object = dict[str, Any]
Action = Literal["Accept", "Deny", "Pass"]
Tier = Literal["Admin", "NetworkPolicy", "Baseline"]
Direction = Literal["Ingress", "Egress"]

KINDS = frozenset(
    {"Namespace", "NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"}
)
"""The kinds whose objects are kept here."""

TIERS: tuple[Tier, ...] = ("Admin", "NetworkPolicy", "Baseline")
"""In the order in which they are asked."""

LAST_PRIORITY = 1001
"""Of the BaselineAdminNetworkPolicy, which has none: after every ClusterNetworkPolicy of its tier."""

ANY_PORT = (0, 65535)


@dataclass(frozen=True)
class Namespace:
    """A namespace and its labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Selector:
    """A label selector; the empty one selects everything. expressions: (key, operator, values)."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects an object with these labels."""
        return all(labels.get(key) == value for key, value in self.labels) and all(
            holds(labels, *expression) for expression in self.expressions
        )


EVERYTHING = Selector()


@dataclass(frozen=True)
class Selection:
    """Pods by their labels and where they are. namespace: the only one looked into, "" for those selected."""

    namespace: str = ""
    namespaces: Selector = EVERYTHING
    pods: Selector = EVERYTHING


@dataclass(frozen=True)
class Block:
    """Addresses by range: those of ``cidr`` but for those of ``excepts``."""

    cidr: str
    excepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """One item of ``from`` or ``to``; of ``pods``, ``blocks`` and ``nodes`` one is set. index: its place."""

    index: int
    pods: Selection | None = None
    blocks: tuple[Block, ...] = ()
    nodes: Selector | None = None


@dataclass(frozen=True)
class Port:
    """One item of ``ports``. name: of a container port of the destination pod, then first and last mean
    nothing; protocol "": that of the named port, whichever it is."""

    protocol: str
    first: int = ANY_PORT[0]
    last: int = ANY_PORT[1]
    name: str = ""


@dataclass(frozen=True)
class Rule:
    """One rule of a direction. index: its place; peers, ports: None for any, an empty tuple for none."""

    index: int
    action: Action
    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None
    name: str = ""


@dataclass(frozen=True)
class Policy:
    """One policy object. ingress, egress: None where it says nothing of that direction.

    In tier NetworkPolicy a direction that is not None isolates the pods of ``subject``; rules of the other
    tiers are asked in the order of ``priority`` (the lower first) and then of the list.
    """

    kind: str
    namespace: str
    name: str
    tier: Tier
    subject: Selection
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    priority: int = 0

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """Those of a direction."""
        return self.ingress if direction == "Ingress" else self.egress

    def __str__(self) -> str:
        """``NetworkPolicy shop/deny-all``, ``ClusterNetworkPolicy guard``."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def order(policy: Policy) -> tuple[int, int, str, str, str]:
    """The order in which policies are asked. Upstream leaves equal priorities open; here the name decides."""
    return TIERS.index(policy.tier), policy.priority, policy.kind, policy.namespace, policy.name


# --- from objects -------------------------------------------------------------------------------------


def typed_namespace(obj: Object) -> Namespace:
    """One Namespace object, typed; its own name is always among the labels, as the API server has it."""
    metadata = obj["metadata"]
    named = {"kubernetes.io/metadata.name": metadata["name"]}
    return Namespace(metadata["name"], {**(metadata.get("labels") or {}), **named})


def typed_policy(obj: Object) -> Policy:
    """One policy object of any of the kinds, typed; it must be valid and have its defaults."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    if obj["kind"] == "NetworkPolicy":
        return _network_policy(metadata["namespace"], metadata["name"], spec)
    admin = obj["kind"] == "AdminNetworkPolicy"
    baseline = obj["kind"] == "BaselineAdminNetworkPolicy"
    return Policy(
        kind=obj["kind"],
        namespace="",
        name=metadata["name"],
        tier="Admin" if admin else "Baseline" if baseline else spec["tier"],
        subject=_selection(spec["subject"]) or Selection(),
        ingress=tuple(_cluster_rule(i, rule, "from") for i, rule in enumerate(spec.get("ingress") or ())),
        egress=tuple(_cluster_rule(i, rule, "to") for i, rule in enumerate(spec.get("egress") or ())),
        priority=LAST_PRIORITY if baseline else spec["priority"],
    )


def _selector(given: Object | None) -> Selector:
    given = given or {}
    return Selector(
        tuple(sorted((given.get("matchLabels") or {}).items())),
        tuple(
            (each["key"], each["operator"], tuple(each.get("values") or ()))
            for each in given.get("matchExpressions") or ()
        ),
    )


def _network_policy(namespace: str, name: str, spec: Object) -> Policy:
    # Absent, the types are Ingress, and Egress where there is a rule of it (networking/v1/types.go).
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]

    def rules(direction: Direction, peers: str) -> tuple[Rule, ...] | None:
        if direction not in types:
            return None
        given = spec.get(direction.lower()) or ()
        return tuple(
            Rule(
                index,
                "Accept",
                tuple(_peer(namespace, i, peer) for i, peer in enumerate(rule[peers]))
                if rule.get(peers)
                else None,
                tuple(map(_port, rule["ports"])) if rule.get("ports") else None,
            )
            for index, rule in enumerate(given)
        )

    return Policy(
        kind="NetworkPolicy",
        namespace=namespace,
        name=name,
        tier="NetworkPolicy",
        subject=Selection(namespace, EVERYTHING, _selector(spec.get("podSelector"))),
        ingress=rules("Ingress", "from"),
        egress=rules("Egress", "to"),
    )


def _peer(namespace: str, index: int, peer: Object) -> Peer:
    if (block := peer.get("ipBlock")) is not None:
        return Peer(index, blocks=(Block(block["cidr"], tuple(block.get("except") or ())),))
    pods = _selector(peer.get("podSelector"))
    if (namespaces := peer.get("namespaceSelector")) is not None:
        return Peer(index, Selection("", _selector(namespaces), pods))
    return Peer(index, Selection(namespace, EVERYTHING, pods))


def _port(port: Object) -> Port:
    protocol, number = port.get("protocol") or "TCP", port.get("port")
    if number is None:
        return Port(protocol)
    if isinstance(number, str):
        return Port(protocol, name=number)
    return Port(protocol, number, port.get("endPort") or number)


def _selection(given: Object) -> Selection | None:
    """What ``namespaces`` or ``pods`` of a cluster-wide policy select; None where it has neither."""
    if (namespaces := given.get("namespaces")) is not None:
        return Selection("", _selector(namespaces))
    if (pods := given.get("pods")) is not None:
        return Selection("", _selector(pods.get("namespaceSelector")), _selector(pods.get("podSelector")))
    return None


def _cluster_rule(index: int, rule: Object, peers: str) -> Rule:
    action: Action = "Accept" if rule["action"] == "Allow" else rule["action"]
    given = rule.get("protocols") or rule.get("ports")
    ports = tuple(map(_protocol if rule.get("protocols") else _admin_port, given)) if given else None
    name = rule.get("name", "")
    found = [_cluster_peer(i, peer) for i, peer in enumerate(rule.get(peers) or ())]
    understood = tuple(peer for peer in found if peer is not None)
    if len(understood) == len(found):
        return Rule(index, action, understood, ports, name)
    # A peer of a kind that is not known here: fail closed, as v1alpha2 wants it.
    return Rule(index, "Accept", (), None, name) if action == "Accept" else Rule(index, "Deny", name=name)


def _cluster_peer(index: int, peer: Object) -> Peer | None:
    """A peer; None for one of a kind that is not known here, ``domainNames`` among them."""
    if networks := peer.get("networks"):
        return Peer(index, blocks=tuple(map(Block, networks)))
    if (nodes := peer.get("nodes")) is not None:
        return Peer(index, nodes=_selector(nodes))
    pods = _selection(peer)
    return None if pods is None else Peer(index, pods)


def _protocol(entry: Object) -> Port:
    """An item of v1alpha2's ``protocols``."""
    if name := entry.get("destinationNamedPort"):
        return Port("", name=name)
    (protocol, given), *_ = entry.items()
    port = (given or {}).get("destinationPort") or {}
    return _numbered(protocol.upper(), port.get("number"), port.get("range"))


def _admin_port(entry: Object) -> Port:
    """An item of v1alpha1's ``ports``."""
    if name := entry.get("namedPort"):
        return Port("", name=name)
    given = entry.get("portNumber") or entry["portRange"]
    return _numbered(given.get("protocol") or "TCP", given.get("port"), given)


def _numbered(protocol: str, number: int | None, span: Object | None) -> Port:
    if number:
        return Port(protocol, number, number)
    return Port(protocol, span["start"], span["end"]) if span else Port(protocol)


# --- as they change ---------------------------------------------------------------------------------------


class Policies:
    """Typed policies and namespaces as they change one by one; what did not change stays the same object.

    ``policies`` and ``namespaces`` are replaced, never changed, so that they can be compared by identity.
    """

    def __init__(self) -> None:
        self.policies: tuple[Policy, ...] = ()
        self.namespaces: dict[str, Namespace] = {}
        self._known: dict[tuple[str, str, str], Policy] = {}

    def put(self, obj: Object) -> bool:
        """Take note of an object that is new or changed. Whether that changes what compilers see."""
        if obj["kind"] == "Namespace":
            namespace = typed_namespace(obj)
            if self.namespaces.get(namespace.name) == namespace:
                return False
            self.namespaces = {**self.namespaces, namespace.name: namespace}
            return True
        policy = typed_policy(obj)
        if self._known.get(_key(obj)) == policy:
            return False
        self._known[_key(obj)] = policy
        self.policies = tuple(sorted(self._known.values(), key=order))
        return True

    def drop(self, obj: Object) -> bool:
        """Forget a deleted object. Whether that changes what compilers see."""
        if obj["kind"] == "Namespace":
            name = obj["metadata"]["name"]
            known = name in self.namespaces
            self.namespaces = {key: each for key, each in self.namespaces.items() if key != name}
            return known
        if self._known.pop(_key(obj), None) is None:
            return False
        self.policies = tuple(sorted(self._known.values(), key=order))
        return True


def _key(obj: Object) -> tuple[str, str, str]:
    metadata = obj["metadata"]
    return obj["kind"], metadata.get("namespace", ""), metadata["name"]
