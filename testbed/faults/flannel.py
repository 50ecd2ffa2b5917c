"""What goes wrong with flannel on a node itself: flanneld that is not up, a subnet that is not the bridge's
any more, rules in disorder. What other nodes keep of a node is in ``overlay``.

Sources: flannel ``Documentation/troubleshooting.md``, ``pkg/trafficmngr/iptables/iptables.go``; flannel CNI
plugin ``flannel.go``; containernetworking plugins ``plugins/main/bridge`` (ensureAddr).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace

from testbed.cluster.files import STATE
from testbed.cluster.sandboxes import setup_text
from testbed.dataplane.flannel import SUBNET_FILE
from testbed.dataplane.flannel.rules import FORWARD, POSTROUTING
from testbed.dataplane.plugins import BRIDGE, gateway
from testbed.errors import InputError
from testbed.faults.model import Fault, States, fault, on_nodes, told
from testbed.faults.overlay import last_subnet
from testbed.faults.refused import refusing, with_pods
from testbed.faults.target import Aim, Scene, Target
from testbed.rules.iptables import restore_input
from testbed.state import Family, NetnsState, NodeState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

PROGRAMS: Mapping[Family, str] = {"ipv4": "iptables", "ipv6": "ip6tables"}
PLUGIN = 'plugin type="flannel" failed (add)'


def _on_flannel(scene: Scene) -> None:
    if scene.snapshot.facts.dataplane != "flannel":
        raise InputError("this cluster's dataplane is not flannel")


@fault("no-subnet-file")
class NoSubnetFile(Fault, frozen=True, kw_only=True):
    """flanneld is not up, or the node has no podCIDR: its plugin finds no /run/flannel/subnet.env to read.

    Pods that come to the node are created for ever, and an event says why. Those that run go on.
    """

    aim: ClassVar[Aim] = "node"

    def resolve(self, target: Target, scene: Scene) -> Target:
        """With the pods that are wired."""
        _on_flannel(scene)
        return with_pods(target, scene)

    def perturb(self, states: States, target: Target) -> States:
        """Without the file, and what the plugin says then."""
        found = dict(states)
        for name in (node.name for node in target.nodes if node.name in states):
            files = {path: text for path, text in found[name].files.items() if path != SUBNET_FILE}
            found[name] = replace(found[name], files=files)
        why = f"loadFlannelSubnetEnv failed: open {SUBNET_FILE}: no such file or directory"
        return refusing(found, target, lambda container: setup_text(container, f"{PLUGIN}: {why}"))

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Files are not read back by themselves."""
        paths = {node.name: STATE / node.name / SUBNET_FILE.removeprefix("/run/") for node in target.nodes}
        wrong = [
            name
            for name, path in paths.items()
            if (on or hands.alive(name)) and bool(await hands.run(name, ["cat", str(path)], fails=True)) == on
        ]
        return told(wrong, f"{'still has' if on else 'has no'} {SUBNET_FILE}")


@fault("subnet-changed")
class SubnetChanged(Fault, frozen=True, kw_only=True):
    """The node was given another subnet while its bridge cni0 stayed: no pod can be wired, old ones are lost.

    subnet: the new one; without, the last of that length in the same /16. Peers have routes to that one
    alone, so that they do not reach the node's pods. New pods stay in ContainerCreating, as cni0 "already has
    an IP address different from" that of the new subnet. What a failed ADD left there a DEL has removed.
    """

    aim: ClassVar[Aim] = "node"

    subnet: str = ""

    def resolve(self, target: Target, scene: Scene) -> Target:
        """One node, which has a bridge, and the new subnet."""
        _on_flannel(scene)
        if len(target.nodes) != 1:
            raise InputError("one node at a time")
        (node,) = target.nodes
        old = _subnet(target)
        if not node.had_pods:
            raise InputError(f"{node.name}: no pod was there yet, so that it has no {BRIDGE} that could stay")
        try:
            new = IPv4Network(self.subnet or last_subnet(str(old)))
        except ValueError as error:
            raise InputError(f"subnet: {error}") from error
        taken = [cidr for each in scene.snapshot.nodes for cidr in each.pod_cidrs if ":" not in cidr]
        if new.prefixlen != old.prefixlen or any(new.overlaps(IPv4Network(cidr)) for cidr in taken):
            raise InputError(f"subnet: {new} has to be a /{old.prefixlen} that no node has")
        return with_pods(replace(target, addresses=(str(new),)), scene)

    def perturb(self, states: States, target: Target) -> States:
        """The node believes in the new subnet but for its bridge; so do its peers."""
        old, new = _subnet(target), IPv4Network(target.addresses[0])
        moves = {str(old[0]): str(new[0]), gateway(old): gateway(new)}
        found = {name: _moved(state, moves) for name, state in states.items()}
        why = f'failed to set bridge addr: "{BRIDGE}" already has an IP address different from'
        says = f"{PLUGIN}: failed to delegate add: {why} {gateway(new)}/{new.prefixlen}"

        return refusing(found, target, lambda container: setup_text(container, says))


def _subnet(target: Target) -> IPv4Network:
    """The node's own. Raises InputError where it has none of IPv4."""
    (node,) = target.nodes
    found = [IPv4Network(cidr) for cidr in node.pod_cidrs if ":" not in cidr]
    if not found:
        raise InputError(f"{node.name}: has no IPv4 subnet")
    return found[0]


def _moved(state: NodeState, moves: Mapping[str, str]) -> NodeState:
    """What flanneld makes of a node where it believes in other addresses; it knows nothing of pods."""
    daemons = {
        name: replace(daemon, files={path: _text(text, moves) for path, text in daemon.files.items()})
        for name, daemon in state.daemons.items()
    }
    files = {path: _text(text, moves) for path, text in state.files.items()}
    netns = _moved_netns(state.netns, moves)
    return replace(state, netns=netns, daemons=daemons, files=files)


def _moved_netns(netns: NetnsState, moves: Mapping[str, str]) -> NetnsState:
    addresses = [
        each if each.dev == BRIDGE else replace(each, address=_text(each.address, moves))
        for each in netns.addresses.values()
    ]
    routes = [
        replace(each, dst=_text(each.dst, moves), via=each.via and _text(each.via, moves))
        for each in netns.routes.values()
    ]
    neighbours = [replace(each, dst=_text(each.dst, moves)) for each in netns.neighbours.values()]
    peers = {
        key: replace(peer, allowed=tuple(_text(cidr, moves) for cidr in peer.allowed))
        for key, peer in netns.peers.items()
    }
    chains = {
        key: replace(chain, rules=tuple(_text(rule, moves) for rule in chain.rules))
        if chain.name in (POSTROUTING, FORWARD)
        else chain
        for key, chain in netns.chains.items()
    }
    return replace(
        netns,
        addresses={(each.dev, each.address): each for each in addresses},
        routes={each.dst: each for each in routes},
        neighbours={(each.dev, each.dst): each for each in neighbours},
        peers=peers,
        chains=chains,
    )


def _text(text: str, moves: Mapping[str, str]) -> str:
    """Each address by the other one."""
    return re.sub(r"\d+(?:\.\d+){3}", lambda found: moves.get(found[0], found[0]), text)


@fault("flannel-rules-disordered")
class FlannelRulesDisordered(Fault, frozen=True, kw_only=True):
    """FLANNEL-POSTRTG has its rules in the reverse order, as somebody left it who edited it by hand.

    What leaves a node is masqueraded before any exception is looked at: pods elsewhere see the node instead
    of the client, be that a pod or somebody who came by a NodePort. kept: flanneld does not look after its
    rules meanwhile. Without, it is over at once, and up to flanneld, which looks every 5 s, to mend it.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})

    kept: bool = True

    def over(self) -> bool:
        """Whether flanneld makes it whole."""
        return not self.kept

    def resolve(self, target: Target, scene: Scene) -> Target:
        """flannel alone has that chain."""
        _on_flannel(scene)
        return target

    def perturb(self, states: States, target: Target) -> States:
        """The same rules, the last first."""
        if not self.kept:
            return states
        return on_nodes(states, (node.name for node in target.nodes), _disordered)

    async def inject(self, hands: Hands, target: Target) -> None:
        """Behind flanneld's back, with the tools of an administrator."""
        for node in target.nodes if not self.kept else ():
            chains = _disordered(hands.plane.workers[node.name].applied.netns).chains.values()
            changed = [chain for chain in chains if chain.name == POSTROUTING]
            for family, program in PROGRAMS.items():
                if text := restore_input(changed, (), family):
                    backend = hands.plane.facts.proxy_options.get("backend", "nft")
                    await hands.run(node.name, [f"{program}-{backend}-restore", "--noflush"], text)


def _disordered(netns: NetnsState) -> NetnsState:
    return replace(
        netns,
        chains={
            key: replace(chain, rules=chain.rules[::-1]) if chain.name == POSTROUTING else chain
            for key, chain in netns.chains.items()
        },
    )
