"""Which pods each selection selects, kept from one snapshot to the next: a change costs what it touches.

The answers are always those for the snapshot that was seen last, whatever came before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from testbed.control.policies import Namespace, Policy, Port, Selection
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.policy.meaning import named_ports, selects
from testbed.state import Family

_NOWHERE = Namespace("")


@dataclass
class _Found:
    """The pods of one selection by uid, and what was made of them since they last changed."""

    pods: dict[str, Pod] = field(default_factory=dict)
    made: dict[tuple[Family, str | None], frozenset[str]] = field(default_factory=dict)


class Members:
    """The pods of every selection that somebody asks for."""

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._in_order: tuple[Pod, ...] = ()
        self._namespaces: Mapping[str, Namespace] = {}
        self._policies: tuple[Policy, ...] = ()
        self._nodes: tuple[Node, ...] = ()
        self._found: dict[Selection, _Found] = {}
        self._ports: dict[tuple[Family, Port], frozenset[str]] = {}

    def see(self, snapshot: Snapshot) -> None:
        """From now on answer for this snapshot."""
        if snapshot.policies is not self._policies:
            self._policies = snapshot.policies
            used = set(selections(snapshot.policies))
            self._found = {each: found for each, found in self._found.items() if each in used}
            self._ports.clear()
        if snapshot.nodes is not self._nodes:
            self._nodes, names = snapshot.nodes, {None, *(node.name for node in snapshot.nodes)}
            for found in self._found.values():
                found.made = {key: made for key, made in found.made.items() if key[1] in names}
        changed = {
            name
            for name in self._namespaces.keys() | snapshot.namespaces.keys()
            if self._namespaces.get(name) is not snapshot.namespaces.get(name)
        }
        self._namespaces = snapshot.namespaces
        if snapshot.pods is self._in_order and not changed:
            return
        now = {pod.uid: pod for pod in snapshot.pods}
        gone = [pod for uid, pod in self._pods.items() if uid not in now]
        moved = [
            pod for uid, pod in now.items() if self._pods.get(uid) is not pod or pod.namespace in changed
        ]
        if gone or any(_address_view(self._pods.get(pod.uid)) != _address_view(pod) for pod in moved):
            self._ports.clear()
        self._pods, self._in_order = now, snapshot.pods
        for selection, found in self._found.items():
            self._adjust(selection, found, gone, moved)

    def _adjust(self, selection: Selection, found: _Found, gone: list[Pod], moved: list[Pod]) -> None:
        for pod in gone:
            if found.pods.pop(pod.uid, None) is not None:
                found.made.clear()
        for pod in moved:
            before = found.pods.get(pod.uid)
            if self._selected(selection, pod):
                found.pods[pod.uid] = pod
                if _address_view(before) != _address_view(pod):
                    found.made.clear()
            elif before is not None:
                del found.pods[pod.uid]
                found.made.clear()

    def _selected(self, selection: Selection, pod: Pod) -> bool:
        return selects(selection, pod, self._namespaces.get(pod.namespace, _NOWHERE))

    def addresses(self, selection: Selection, family: Family, node: str | None = None) -> frozenset[str]:
        """The addresses of a selection's pods; node: only of those there. The same object while the same."""
        found = self._found.get(selection)
        if found is None:
            pods = {uid: pod for uid, pod in self._pods.items() if self._selected(selection, pod)}
            found = self._found[selection] = _Found(pods)
        if (family, node) not in found.made:
            found.made[family, node] = frozenset(
                ip
                for pod in found.pods.values()
                if node is None or pod.node == node
                for ip in of_family(pod.ips, family)
            )
        return found.made[family, node]

    def named(self, port: Port, family: Family) -> frozenset[str]:
        """``address,protocol:number`` of every container port in the cluster that a named port may mean."""
        if (family, port) not in self._ports:
            self._ports[family, port] = frozenset(
                f"{ip},{protocol.lower()}:{number}"
                for pod in self._pods.values()
                if not pod.host_network
                for protocol, number in named_ports(pod, port)
                for ip in of_family(pod.ips, family)
            )
        return self._ports[family, port]


def _address_view(pod: Pod | None) -> object:
    """What of a pod sets of addresses depend on."""
    return pod and (pod.ips, pod.node, pod.containers, pod.sidecars)


def of_family(ips: Iterable[str], family: Family) -> Iterator[str]:
    """Those of a family, written as the kernel prints them."""
    for ip in ips:
        if (":" in ip) == (family == "ipv6"):
            yield str(ip_address(ip)) if family == "ipv6" else ip


def selections(policies: Iterable[Policy]) -> Iterator[Selection]:
    """Every selection that policies speak of."""
    for policy in policies:
        yield policy.subject
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            yield from (peer.pods for peer in rule.peers or () if peer.pods is not None)
