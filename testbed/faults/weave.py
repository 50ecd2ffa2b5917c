"""What goes wrong with Weave: its ports blocked, an MTU that the underlay does not carry, machines that were
cloned, a MAC that appears elsewhere, a bridge of another start, a peer that nobody removes. That too few
peers agree on the ring is no fault of a running cluster: that is the dataplane's option ``consensus``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from testbed.control.nodelifecycle import UNWIRED, ready
from testbed.control.snapshot import Node
from testbed.dataplane.weave import ROUTER
from testbed.dataplane.weave.names import (
    BRIDGE,
    BRIDGE_PORT,
    DATAPATH,
    DATAPATH_PORT,
    FASTDP_PORT,
    PCAP_PORT,
    POD_PORT,
    SLEEVE_PORT,
    VXLAN,
    peer_name,
)
from testbed.dataplane.weave.ring import EXPOSED
from testbed.errors import InputError
from testbed.faults.loss import DEVICE
from testbed.faults.model import Fault, States, fault, on_nodes, told, with_rules
from testbed.faults.programs import argv
from testbed.faults.refused import refusing, with_pods
from testbed.faults.target import Aim, Scene, Target
from testbed.state import Daemon, Link, NetnsState, NodeState, PodState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

DEVICES = ("datapath", "vethwe-", POD_PORT)
"""Names, and beginnings of names, of devices that have the datapath's MTU, beside the bridge; a vxlan takes
none that its underlay does not carry."""
NEAR, FAR = "vethwe-moved", "vethwe-moved1"


def _on_weave(nodes: Iterable[Node]) -> None:
    if not all(EXPOSED in node.held.own for node in nodes):
        raise InputError("this cluster's dataplane is not weave")


def _config(daemon: Daemon, change: Any) -> Daemon:
    """The daemon with another configuration."""
    config = change(json.loads(daemon.files["config.json"]))
    files = {**daemon.files, "config.json": json.dumps(config, indent=1) + "\n"}
    return msgspec.structs.replace(daemon, files=files)


@fault("weave-blocked")
class WeaveBlocked(Fault, frozen=True, kw_only=True):
    """A firewall in front of the node lets no fastdp in (UDP 6784), or nothing of Weave's.

    sleeve: whether UDP 6783 is blocked, too. Without fastdp, frames go by sleeve once heartbeats are missed
    (``heartbeatTimeout``); without both, the node's pods reach no others.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})

    sleeve: bool = False

    def resolve(self, target: Target, scene: Scene) -> Target:
        """On weave alone these ports mean something."""
        _on_weave(target.nodes)
        return target

    def perturb(self, states: States, target: Target) -> States:
        """Rules in front of all others."""
        ports = (FASTDP_PORT, SLEEVE_PORT) if self.sleeve else (FASTDP_PORT,)
        rules = [f"-i {DEVICE} -p udp -m udp --dport {port} -j DROP" for port in ports]
        names = [node.name for node in target.nodes]
        return on_nodes(states, names, lambda netns: with_rules(netns, "ipv4", "raw", "PREROUTING", rules))


@fault("weave-mtu")
class WeaveMtu(Fault, frozen=True, kw_only=True):
    """WEAVE_MTU is set to more than the underlay carries: pods and the datapath believe in ``mtu``.

    Heartbeats of fastdp are as large, and die: frames go by sleeve, which finds out what the path takes.
    Without fallback large packets vanish in silence. Usually asked of all nodes.
    """

    aim: ClassVar[Aim] = "node"

    mtu: Annotated[int, msgspec.Meta(ge=576, le=65_535)] = 1500

    def perturb(self, states: States, target: Target) -> States:
        """Devices on the node and in its pods, and what the router takes for the MTU."""
        found = dict(states)
        for node in target.nodes:
            if (state := found.get(node.name)) is not None and BRIDGE in state.netns.links:
                found[node.name] = self._larger(state)
        return found

    def _larger(self, state: NodeState) -> NodeState:
        links = {
            name: msgspec.structs.replace(link, mtu=self.mtu)
            if name == BRIDGE or name.startswith(DEVICES)
            else link
            for name, link in state.netns.links.items()
        }
        pods = {uid: self._larger_pod(pod) for uid, pod in state.pods.items()}
        daemons = {
            name: _config(daemon, lambda config: {**config, "mtu": self.mtu}) if name == "weaver" else daemon
            for name, daemon in state.daemons.items()
        }
        netns = msgspec.structs.replace(state.netns, links=links)
        return msgspec.structs.replace(state, netns=netns, pods=pods, daemons=daemons)

    def _larger_pod(self, pod: PodState) -> PodState:
        links = {
            name: msgspec.structs.replace(link, mtu=self.mtu) if link.kind == "veth" else link
            for name, link in pod.netns.links.items()
        }
        return msgspec.structs.replace(pod, netns=msgspec.structs.replace(pod.netns, links=links))


@fault("weave-duplicate-peer")
class WeaveDuplicatePeer(Fault, frozen=True, kw_only=True):
    """The node has the peer name of another one, as a cloned machine with the same machine id has.

    of: the node whose name it is. Peers refuse a second connection to a name that they have one to, so that
    the clone is connected to nobody and its pods reach those of no other node.
    """

    aim: ClassVar[Aim] = "node"
    outlives_peers: ClassVar[bool] = False

    of: str

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The one whose name it is."""
        owner = scene.node(self.of)
        if owner in target.nodes:
            raise InputError(f"of: {self.of} has that name anyhow")
        _on_weave((*target.nodes, owner))
        return msgspec.structs.replace(target, peers=(owner,))

    def perturb(self, states: States, target: Target) -> States:
        """The clone's name and MAC are the other's, and nobody is connected to it."""
        clones = {node.name for node in target.nodes}
        gone = {address for node in target.nodes for address in node.addresses}
        return {
            name: self._cloned(state, target.peers[0].name)
            if name in clones
            else _without(state, clones, gone)
            for name, state in states.items()
        }

    @staticmethod
    def _cloned(state: NodeState, of: str) -> NodeState:
        if BRIDGE not in state.netns.links:
            return state
        bridge = msgspec.structs.replace(state.netns.links[BRIDGE], mac=peer_name(of))
        netns = msgspec.structs.replace(state.netns, links={**state.netns.links, BRIDGE: bridge}, fdb={})
        nobody = {"name": peer_name(of), "peers": {}, "unicast": {}, "broadcast": {}}
        daemons = {
            name: _config(daemon, lambda config: {**config, **nobody}) if name == "weaver" else daemon
            for name, daemon in state.daemons.items()
        }
        return msgspec.structs.replace(state, netns=netns, daemons=daemons)


def _without(state: NodeState, clones: set[str], gone: set[str]) -> NodeState:
    """A node that has no connection to some others."""
    names = {peer_name(clone) for clone in clones}

    def change(config: dict[str, Any]) -> dict[str, Any]:
        return {
            **config,
            "peers": {name: each for name, each in config["peers"].items() if name not in names},
            "unicast": {
                to: by for to, by in config["unicast"].items() if to not in names and by not in names
            },
            "broadcast": {
                name: [hop for hop in hops if hop not in names]
                for name, hops in config["broadcast"].items()
                if name not in names
            },
        }

    fdb = {key: entry for key, entry in state.netns.fdb.items() if entry.dst not in gone}
    daemons = {
        name: _config(daemon, change) if name == "weaver" else daemon
        for name, daemon in state.daemons.items()
    }
    netns: NetnsState = msgspec.structs.replace(state.netns, fdb=fdb)
    return msgspec.structs.replace(state, netns=netns, daemons=daemons)


@fault("weave-mac-moved")
class WeaveMacMoved(Fault, frozen=True, kw_only=True):
    """The pod's MAC appears on another node's bridge and speaks there, as a virtual machine's that moved.

    to: that node. Whoever hears it sends the pod's frames there, until the pod speaks again.
    """

    aim: ClassVar[Aim] = "pod"

    to: str

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The node, and that it is another one."""
        node = scene.node(self.to)
        _on_weave((node,))
        if len(target.pods) != 1 or target.pods[0].node == self.to:
            raise InputError("to: one pod moves, to another node than its own")
        return msgspec.structs.replace(target, peers=(node,))

    async def inject(self, hands: Hands, target: Target) -> None:
        """A device with the pod's MAC at the bridge; that it comes up it says by itself (IPv6)."""
        (pod,) = target.pods
        mac = (await hands.run_in(pod, ["cat", "/sys/class/net/eth0/address"])).strip()
        pair = ["type", "veth", "peer", "name", FAR]
        await hands.run(self.to, ["ip", "link", "add", NEAR, *pair])
        await hands.run(self.to, ["ip", "link", "set", NEAR, "master", BRIDGE, "up"])
        await hands.run(self.to, ["ip", "link", "set", FAR, "address", mac, "up"])

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The bridge has learned the MAC at its new place."""
        if not on:
            return ""
        (pod,) = target.pods
        mac = (await hands.run_in(pod, ["cat", "/sys/class/net/eth0/address"])).strip()
        entries = await hands.json(self.to, ["bridge", "-json", "fdb", "show", "br", BRIDGE])
        ports = {entry["ifname"] for entry in entries if entry["mac"] == mac and not entry.get("state")}
        return "" if NEAR in ports else f"{self.to}: {mac} is not at {NEAR}"

    async def lift(self, hands: Hands, target: Target) -> None:
        """The device goes, and the pod says where it is, if it still is."""
        links = await hands.json(self.to, ["ip", "-json", "link"])
        if any(link["ifname"] == NEAR for link in links):
            await hands.run(self.to, ["ip", "link", "delete", NEAR])
        (pod,) = target.pods
        if pod.uid in {each.uid for each in hands.plane.running()}:
            await hands.run_in(pod, argv("announce", "eth0", pod.ips[0]))


@fault("weave-bridge-type")
class WeaveBridgeType(Fault, frozen=True, kw_only=True):
    """The node's bridge is left of a start with another datapath: weaver, which finds it, ends at once.

    The node's pods reach one another alone, and it is NotReady: its CNI configuration is written only once
    weaver is up. No pod that comes is wired. An event of the node has weaver's words. Healing is ``weave
    reset``.
    """

    aim: ClassVar[Aim] = "node"

    def resolve(self, target: Target, scene: Scene) -> Target:
        """With the pods that are wired."""
        _on_weave(target.nodes)
        if scene.snapshot.facts.dataplane_options.get("datapath") == "ovs":
            raise InputError("not with datapath: ovs")
        return with_pods(target, scene)

    def perturb(self, states: States, target: Target) -> States:
        """The other bridge, no weaver, and nobody who is connected to it."""
        names = {node.name for node in target.nodes}
        gone = {address for node in target.nodes for address in node.addresses}
        found = {
            name: _of_other_type(state) if name in names else _without(state, names, gone)
            for name, state in states.items()
        }
        return refusing(found, target, lambda container: f"network is not ready: {UNWIRED}")

    async def inject(self, hands: Hands, target: Target) -> None:
        """What weaver says, and the kubelet."""
        for node in target.nodes:
            there, wanted = _types(hands.plane.workers[node.name].applied)
            hands.plane.node_failed(
                node.name,
                f'weaver: Existing bridge type "{there}" is different than requested "{wanted}". '
                "Please do 'weave reset' and try again",
            )
            hands.plane.network_status(node.name, UNWIRED)

    async def lift(self, hands: Hands, target: Target) -> None:
        """weaver starts."""
        for node in target.nodes:
            hands.plane.node_failed(node.name, "")
            hands.plane.network_status(node.name, "")

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Whether the nodes are Ready; those that have left are neither."""
        objects = [hands.plane.store.find("Node", "", node.name) for node in target.nodes]
        there = [each for each in objects if each is not None]
        wrong = [each["metadata"]["name"] for each in there if (ready(each) == "True") == on]
        return told(wrong, "is Ready" if on else "is not Ready")


def _types(state: NodeState) -> tuple[str, str]:
    """What ``net/bridge.go`` calls the bridge that is left, and the one that is asked for."""
    return ("bridged_fastdp", "bridge") if PCAP_PORT in state.netns.links else ("bridge", "bridged_fastdp")


def _of_other_type(state: NodeState) -> NodeState:
    """What stands beside the pods' bridge is that of the other type: a datapath, or the port for pcap."""
    before = state.netns.links
    if BRIDGE_PORT not in before:
        return state
    other = DATAPATH_PORT if PCAP_PORT in before else PCAP_PORT
    far = before[before[BRIDGE_PORT].peer or ""]
    links = {name: link for name, link in before.items() if name not in (far.name, DATAPATH, VXLAN)}
    links[BRIDGE_PORT] = msgspec.structs.replace(before[BRIDGE_PORT], peer=other)
    links[other] = msgspec.structs.replace(far, name=other, master=None)
    if other == DATAPATH_PORT:
        links[DATAPATH] = Link(DATAPATH, "bridge", mtu=before[BRIDGE].mtu)
        links[other] = msgspec.structs.replace(links[other], master=DATAPATH)
    daemons = {name: daemon for name, daemon in state.daemons.items() if name != ROUTER}
    netns = msgspec.structs.replace(state.netns, links=links, fdb={})
    return msgspec.structs.replace(state, netns=netns, daemons=daemons)


@fault("weave-stale-peer")
class WeaveStalePeer(Fault, frozen=True, kw_only=True):
    """When the node leaves nobody removes its peer, as before weave 2.1.1: it keeps its share of the ring.

    What the others have to give away shrinks with every such node, until pods find no address. Healing is
    ``weave rmpeer``.
    """

    aim: ClassVar[Aim] = "node"
    outlives_nodes: ClassVar[bool] = True

    def resolve(self, target: Target, scene: Scene) -> Target:
        """On weave alone there is a ring."""
        _on_weave(target.nodes)
        return target

    async def inject(self, hands: Hands, target: Target) -> None:
        """Nothing changes yet."""
        for node in target.nodes:
            hands.ring.keep(node.name)

    async def lift(self, hands: Hands, target: Target) -> None:
        """What it owned is another's."""
        for node in target.nodes:
            hands.ring.forget(node.name)
        hands.plane.held_changed()

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Healed, all nodes know whose addresses are theirs."""
        behind = [name for name in sorted(hands.plane.workers) if not (on or hands.idle(name))]
        return told(behind, "is not brought to its state yet")
