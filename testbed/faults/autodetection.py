"""``wrong-autodetection``: a node that takes the address of the wrong interface for its own.

Calico's ``first-found`` and flannel without ``--iface`` take the first interface that looks right; where that
is a bridge of Docker or libvirt, or the NAT interface that all machines of Vagrant have, peers are told an
address that leads nowhere. Sources: projectcalico/calico ``node/pkg/lifecycle/startup/autodetection``;
flannel ``Documentation/troubleshooting.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from testbed.control.snapshot import Node
from testbed.dataplane.calico.bird import CONFIG
from testbed.dataplane.calico.bird import NAME as BIRD
from testbed.dataplane.calico.felix import ALL_HOSTS, VXLAN_HOSTS
from testbed.dataplane.calico.names import PROTO, TUNNEL, VXLAN, address
from testbed.dataplane.calico.rules import set_name
from testbed.errors import InputError
from testbed.faults.bgp import asked, directed
from testbed.faults.loss import DEVICE
from testbed.faults.model import Fault, States, fault
from testbed.faults.target import Aim, Scene, Target
from testbed.state import Address, Daemon, Link, NetnsState, NodeState, Route

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

HOSTS = tuple(set_name("ipv4", name) for name in (ALL_HOSTS, VXLAN_HOSTS))
Interface = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9.-]{0,14}$")]


@fault("wrong-autodetection")
class WrongAutodetection(Fault, frozen=True, kw_only=True):
    """The node announces the address of another interface, a bridge that nobody else is on, as its own.

    device, address: that interface. With calico BGP comes to nothing; tunnels of peers lead to that address.
    With flannel (vxlan, wireguard, udp, ipip) several nodes may announce the same.
    """

    aim: ClassVar[Aim] = "node"

    device: Interface = "docker0"
    address: str = "172.17.0.1/16"

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The wrong address, and the peers with theirs."""
        try:
            wrong = IPv4Interface(self.address)
        except ValueError as error:
            raise InputError(f"address: {error}") from error
        nodes = scene.snapshot.nodes
        if str(wrong.ip) in {each for node in nodes for each in node.addresses}:
            raise InputError(f"address: {wrong.ip} is a node's own")
        if any("weave:expose" in node.held.own for node in nodes):
            raise InputError("weave detects no address: peers are told those of the Node objects")
        if scene.snapshot.facts.dataplane_options.get("directRouting"):
            raise InputError("not with directRouting")
        if len(target.nodes) > 1 and any(node.held.ranges for node in nodes):
            raise InputError("one at a time: a node of Calico does not start with the address of another")
        return msgspec.structs.replace(target, peers=nodes, addresses=(str(wrong.ip),))

    def perturb(self, states: States, target: Target) -> States:
        """The node has the interface and believes in it; all others believe the node."""
        names = {node.name for node in target.nodes}
        told = {own: target.addresses[0] for node in target.nodes if (own := address(node, 4)) is not None}
        found = {}
        for name, state in states.items():
            if not _announces(state):
                found[name] = state
                continue
            peers = target.peers if name in names else target.nodes
            netns = _believing(state.netns, told, [each for each in peers if each.name != name])
            if name in names:
                netns = self._taken_in(netns)
            daemons = {key: _told(daemon, told) for key, daemon in state.daemons.items()}
            found[name] = msgspec.structs.replace(state, netns=netns, daemons=daemons)
        return found

    def _taken_in(self, netns: NetnsState) -> NetnsState:
        """The interface is there, and tunnels are bound to it. Calico's tunl0 is bound to none."""
        links = {self.device: Link(self.device, "bridge")}
        own = IPv4Interface(self.address)
        for name, link in netns.links.items():
            if link.vxlan is not None and ":" not in link.vxlan.local:
                vxlan = msgspec.structs.replace(link.vxlan, dev=self.device, local=str(own.ip))
                link = msgspec.structs.replace(link, vxlan=vxlan)
            links[name] = link
        key = self.device, self.address
        addresses = {**netns.addresses, key: Address(self.device, self.address)}
        return msgspec.structs.replace(netns, links=links, addresses=addresses)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Which address each BIRD knows the node by; its configuration is not read back by itself."""
        for node in target.nodes:
            true, wrong = address(node, 4) or "", target.addresses[0]
            known = true if on else wrong
            for peer in (each for each in target.peers if hands.alive(each.name)):
                if peer.name == node.name:
                    shown = await asked(hands, peer.name, "status")
                    still = f"Router ID is {known}\n" in shown
                else:
                    shown = await asked(hands, peer.name, "protocols")
                    still = f"_{known.replace('.', '_')} " in shown
                if still:
                    return f"{peer.name}: BIRD knows {node.name} by {known}"
        return ""


def _announces(state: NodeState) -> bool:
    """Whether others are told of an address of this node's own finding."""
    tunnels = any(link.vxlan or link.ipip or link.wireguard for link in state.netns.links.values())
    return tunnels or BIRD in state.daemons or "flanneld" in state.daemons


def _believing(netns: NetnsState, told: Mapping[str, str], apart: list[Node]) -> NetnsState:
    """Tunnels to the wrong address; and nodes that stand apart, as it seems, are reached by the tunnel."""
    routes = dict(netns.routes)
    for dst, route in netns.routes.items():
        if route.onlink and route.dev != DEVICE and (via := route.via or "") in told:
            routes[dst] = msgspec.structs.replace(route, via=told[via])
        elif route.proto == PROTO and route.dev == DEVICE:
            for node in (each for each in apart if address(each, 4) == route.via):
                routes |= {each.dst: each for each in _tunnelled(netns, route, node, told)}
    fdb = {}
    for entry in netns.fdb.values():
        entry = msgspec.structs.replace(entry, dst=told.get(entry.dst, entry.dst))
        fdb[entry.dev, entry.mac, entry.dst] = entry
    peers = {
        key: msgspec.structs.replace(peer, endpoint=_replaced(peer.endpoint, told))
        for key, peer in netns.peers.items()
    }
    sets = {
        name: msgspec.structs.replace(each, entries=frozenset(told.get(ip, ip) for ip in each.entries))
        if name in HOSTS
        else each
        for name, each in netns.ipsets.items()
    }
    return msgspec.structs.replace(netns, routes=routes, fdb=fdb, peers=peers, ipsets=sets)


def _tunnelled(netns: NetnsState, route: Route, node: Node, told: Mapping[str, str]) -> list[Route]:
    """A direct route of mode CrossSubnet, to a node that seems to be on another subnet."""
    if TUNNEL in netns.links:
        via = told.get(route.via or "", route.via)
        return [Route(route.dst, via=via, dev=TUNNEL, proto=PROTO, onlink=True)]
    if (own := node.held.own.get("vxlan")) is None:
        return []
    return [
        Route(route.dst, via=own, dev=VXLAN[4], proto=PROTO, onlink=True),
        Route(f"{own}/32", dev=VXLAN[4], proto=PROTO, scope="link"),
    ]


def _told(daemon: Daemon, told: Mapping[str, str]) -> Daemon:
    """A daemon that is configured with what nodes announce."""
    files = {name: _replaced(text, told) for name, text in daemon.files.items()}
    if CONFIG in files:
        files[CONFIG] = directed(files[CONFIG])
    argv = tuple(_replaced(word, told) for word in daemon.argv)
    return msgspec.structs.replace(daemon, argv=argv, files=files)


def _replaced(text: str, told: Mapping[str, str]) -> str:
    """Each address by the one that is announced; BIRD's names of sessions have them with ``_``."""
    for true, wrong in told.items():
        for separator in "._":
            this, other = (each.replace(".", separator) for each in (true, wrong))
            text = re.sub(rf"(?<!\d){re.escape(this)}(?!\d)", other, text)
    return text
