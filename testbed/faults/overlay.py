"""Faults of overlays and of what stands beside them, as students meet them with flannel and its like.

Each acts on a node: what the others keep of it, or its own rules and devices. Sources: flannel
``Documentation/troubleshooting.md``, flannel issues 1155, 1279 and 1795, kubernetes issue 88986.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Annotated

import msgspec

from testbed.control.snapshot import Node
from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes
from testbed.faults.target import Scene, Target, other_nodes
from testbed.state import Chain, FdbEntry, Link, Neighbour, NetnsState, NodeState, PodState, Route

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Mtu = Annotated[int, msgspec.Meta(ge=576, le=65_535)]

FLOOD = "00:00:00:00:00:00"


class _OfPeers(Fault, frozen=True, kw_only=True):
    """Base: what the other nodes keep of the target."""

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The others are all other nodes."""
        return msgspec.structs.replace(target, peers=other_nodes(scene, target))

    def perturb(self, states: States, target: Target) -> States:
        """Changed at each of them."""
        names = (peer.name for peer in target.peers)
        return on_nodes(states, names, lambda netns: self.at_peer(netns, target))

    def at_peer(self, netns: NetnsState, target: Target) -> NetnsState:
        """What a peer's netns becomes."""
        return netns


def _vteps(netns: NetnsState, target: Target) -> dict[tuple[str, str, str], FdbEntry]:
    """The forwarding entries that lead to the target."""
    own = {address for node in target.nodes for address in node.addresses}
    return {key: entry for key, entry in netns.fdb.items() if entry.dst in own and entry.mac != FLOOD}


def _neighbours(netns: NetnsState, target: Target) -> dict[tuple[str, str], Neighbour]:
    """The neighbours whose MAC these entries are for."""
    macs = {entry.mac for entry in _vteps(netns, target).values()}
    return {key: entry for key, entry in netns.neighbours.items() if entry.mac in macs}


@fault("wrong-vtep-mac")
class WrongVtepMac(_OfPeers, frozen=True, kw_only=True):
    """Other nodes send to another MAC than the node's tunnel device has; what arrives is dropped there."""

    def at_peer(self, netns: NetnsState, target: Target) -> NetnsState:
        """Both entries of a peer agree on the wrong MAC, as after the device was made anew."""
        entries, neighbours = _vteps(netns, target), _neighbours(netns, target)
        fdb = {key: entry for key, entry in netns.fdb.items() if key not in entries}
        for entry in entries.values():
            wrong = msgspec.structs.replace(entry, mac=_other(entry.mac))
            fdb[wrong.dev, wrong.mac, wrong.dst] = wrong
        changed = {
            key: msgspec.structs.replace(entry, mac=_other(entry.mac or ""))
            for key, entry in neighbours.items()
        }
        return msgspec.structs.replace(netns, fdb=fdb, neighbours={**netns.neighbours, **changed})


@fault("missing-fdb")
class MissingFdb(_OfPeers, frozen=True, kw_only=True):
    """Other nodes do not know behind which address the node's tunnel device is: exactly its pods are lost."""

    def at_peer(self, netns: NetnsState, target: Target) -> NetnsState:
        """Without the entries."""
        gone = _vteps(netns, target)
        kept = {key: entry for key, entry in netns.fdb.items() if key not in gone}
        return msgspec.structs.replace(netns, fdb=kept)


@fault("missing-neighbour")
class MissingNeighbour(_OfPeers, frozen=True, kw_only=True):
    """Other nodes do not know the MAC of the node's tunnel device, and nobody answers if they ask for it."""

    def at_peer(self, netns: NetnsState, target: Target) -> NetnsState:
        """Without the entries."""
        gone = _neighbours(netns, target)
        kept = {key: entry for key, entry in netns.neighbours.items() if key not in gone}
        return msgspec.structs.replace(netns, neighbours=kept)


@fault("stale-subnet")
class StaleSubnet(_OfPeers, frozen=True, kw_only=True):
    """Other nodes believe that the node still has the subnet it had before; their routes lead there."""

    def at_peer(self, netns: NetnsState, target: Target) -> NetnsState:
        """Routes to each of its ranges lead to the last range of that length in the same /16 (IPv6: /48)."""
        ranges = {cidr: last_subnet(cidr) for node in target.nodes for cidr in node.pod_cidrs}
        routes: dict[str, Route] = {}
        for dst, route in netns.routes.items():
            stale = msgspec.structs.replace(route, dst=ranges.get(dst, dst))
            routes[stale.dst] = stale
        return msgspec.structs.replace(netns, routes=routes)


@fault("wrong-pod-mtu")
class WrongPodMtu(Fault, frozen=True, kw_only=True):
    """The node's pods and their bridge believe in an MTU that the way to other nodes does not have.

    mtu: what they believe, 1500 as where a subnet file is stale.
    """

    mtu: Mtu = 1500

    def perturb(self, states: States, target: Target) -> States:
        """On pods' devices, their host ends, and the bridges these are ports of."""
        found = dict(states)
        for name in (node.name for node in target.nodes if node.name in states):
            found[name] = self._node(states[name])
        return found

    def _node(self, state: NodeState) -> NodeState:
        ports = {name for name, link in state.netns.links.items() if link.kind == "peer"}
        ports |= {link.master for link in state.netns.links.values() if link.kind == "peer" and link.master}
        pods = {uid: self._pod(pod) for uid, pod in state.pods.items()}
        netns = msgspec.structs.replace(state.netns, links=self._links(state.netns.links, ports))
        return msgspec.structs.replace(state, netns=netns, pods=pods)

    def _pod(self, pod: PodState) -> PodState:
        own = {name for name, link in pod.netns.links.items() if link.kind == "veth"}
        netns = msgspec.structs.replace(pod.netns, links=self._links(pod.netns.links, own))
        return msgspec.structs.replace(pod, netns=netns)

    def _links(self, links: Mapping[str, Link], names: Iterable[str]) -> dict[str, Link]:
        wanted = set(names)
        return {
            name: msgspec.structs.replace(link, mtu=self.mtu) if name in wanted else link
            for name, link in links.items()
        }


@fault("forward-drop")
class ForwardDrop(Fault, frozen=True, kw_only=True):
    """The node drops what no rule lets through, as where Docker has set the policy of FORWARD to DROP."""

    def perturb(self, states: States, target: Target) -> States:
        """By a rule behind all others: a policy is no part of what is described."""

        def change(netns: NetnsState) -> NetnsState:
            key = ("ipv4", "filter", "FORWARD")
            before = netns.chains.get(key, Chain("ipv4", "filter", "FORWARD"))
            chain = msgspec.structs.replace(before, rules=(*before.rules, "-j DROP"))
            return msgspec.structs.replace(netns, chains={**netns.chains, key: chain})

        return on_nodes(states, (node.name for node in target.nodes), change)


@fault("no-masquerade")
class NoMasquerade(Fault, frozen=True, kw_only=True):
    """The node does not translate what its pods send outside: answers find no way back."""

    def perturb(self, states: States, target: Target) -> States:
        """Without the dataplane's own rules to masquerade; kube-proxy's stay."""

        def change(netns: NetnsState) -> NetnsState:
            chains = {
                key: msgspec.structs.replace(
                    chain, rules=tuple(r for r in chain.rules if not _masquerades(r))
                )
                if chain.table == "nat" and not chain.name.startswith(("KUBE-", "CNI-"))
                else chain
                for key, chain in netns.chains.items()
            }
            return msgspec.structs.replace(netns, chains=chains)

        return on_nodes(states, (node.name for node in target.nodes), change)


@fault("checksum-fault")
class ChecksumFault(Fault, frozen=True, kw_only=True):
    """The node finds bad checksums in packets that others masqueraded before they put them into the tunnel.

    As kernels before 5.7 made them with --random-fully: pods by their own addresses are fine, Services with
    remote backends answer after retries or not at all. share: of these packets that are dropped.
    """

    share: Share = 0.9

    def resolve(self, target: Target, scene: Scene) -> Target:
        """Of the others' tunnel devices."""
        peers = other_nodes(scene, target)
        found = tuple(address for peer in peers for address in _tunnel_addresses(peer))
        if not found:
            raise InputError("no other node has a pod range of IPv4")
        return msgspec.structs.replace(target, peers=peers, addresses=found)

    def perturb(self, states: States, target: Target) -> States:
        """What comes masqueraded out of the tunnel is dropped before it is looked at."""

        def change(netns: NetnsState) -> NetnsState:
            rules = tuple(
                f"-s {address}/32 -i {link.name} -m statistic --mode random "
                f"--probability {self.share:.11f} -j DROP"
                for link in netns.links.values()
                if link.kind == "vxlan"
                for address in target.addresses
            )
            key = ("ipv4", "mangle", "PREROUTING")
            before = netns.chains.get(key, Chain("ipv4", "mangle", "PREROUTING"))
            chain = msgspec.structs.replace(
                before, rules=(*rules, *before.rules), inserted=before.inserted + len(rules)
            )
            return msgspec.structs.replace(netns, chains={**netns.chains, key: chain})

        return on_nodes(states, (node.name for node in target.nodes), change)


def _tunnel_addresses(node: Node) -> list[str]:
    """The IPv4 address of a node's VXLAN device: of a pool, with calico, or the first of the node's range."""
    if "vxlan" in node.held.own:
        return [node.held.own["vxlan"]]
    ranges = map(ip_network, node.pod_cidrs)
    return [str(network.network_address) for network in ranges if network.version == 4]


def _other(mac: str) -> str:
    """Another MAC, the same for the same one."""
    return f"{mac[:-2]}{int(mac[-2:], 16) ^ 0xFF:02x}"


def last_subnet(cidr: str) -> str:
    """The last range of that length in the same /16 (IPv6: /48)."""
    network = ip_network(cidr)
    around = network.supernet(new_prefix=min(network.prefixlen, 16 if network.version == 4 else 48))
    last = int(around.broadcast_address) - network.num_addresses + 1
    return f"{type(network.network_address)(last)}/{network.prefixlen}"


def _masquerades(rule: str) -> bool:
    return "-j MASQUERADE" in rule
