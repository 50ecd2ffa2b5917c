"""Nodes that fail: ``node-crash`` and ``node-not-ready``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from testbed.errors import NotConverged
from testbed.faults.model import Ends, EndState, Fault, fault, told
from testbed.faults.target import Scene, Target
from testbed.state import NodeState
from testbed.wait import patient

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

GONE_WITHIN = 10.0
"""Seconds in which the kernel removes devices, and the links of pods that were killed."""

UNDELETABLE = frozenset(
    {
        *("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0"),
        *("sit0", "ip6_vti0", "ip6tnl0", "ip6gre0"),
    }
)
"""Devices that a netns has by itself, with fallback tunnels (``fb_tunnels_only_for_init_net``)."""


@fault("node-crash")
class NodeCrash(Fault, frozen=True, kw_only=True):
    """The node loses power: its pods are gone at once, and its cable is dead. Healing boots it.

    It comes back with an empty kernel, and its agent starts the pods that are still bound to it. That it is
    NotReady, and that its pods are evicted, follows by the cluster's own clocks (``spec.kubelet``).
    """

    outlives_nodes: ClassVar[bool] = True

    def resolve(self, target: Target, scene: Scene) -> Target:
        """With the nodes' own links."""
        return msgspec.structs.replace(target, links=tuple(scene.link(node.name) for node in target.nodes))

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """Nobody is at the other end of the cable."""
        cut = [link.ends[0] for link in target.links]
        return {**ends, **{end: msgspec.structs.replace(ends.get(end, EndState()), up=False) for end in cut}}

    async def inject(self, hands: Hands, target: Target) -> None:
        """Kill the agents."""
        for node in target.nodes:
            hands.crash(node.name)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """The agent is gone, its pods' host ends with it, and there is no carrier. Healed, it is there and
        has brought the node to its state; what left meanwhile needs none."""
        if not on:
            there = [node.name for node in target.nodes if node.name in hands.plane.workers]
            late = [name for name in there if not (hands.alive(name) and hands.idle(name))]
            return told(late, "is not up yet")
        for node, link in zip(target.nodes, target.links, strict=True):
            if hands.alive(node.name):
                return f"{node.name}: its agent lives"
            left = await _left_ends(hands, node.name, hands.applied(node.name))
            if left:
                return f"{node.name}: still has {', '.join(left)}"
            if not await hands.down(link):
                return f"{link.name}: still up"
        return ""

    async def lift(self, hands: Hands, target: Target) -> None:
        """Empty the kernel of each node, as power gone does, and boot it."""
        for node in target.nodes:
            if hands.crashed(node.name):
                await empty(hands, node.name, hands.applied(node.name))
                await hands.boot(node.name)


async def _left_ends(hands: Hands, node: str, applied: NodeState) -> list[str]:
    """The ends of pods' links that are still there, of those that stood on a node."""
    ends = {link.peer for pod in applied.pods.values() for link in pod.netns.links.values() if link.peer}
    return sorted(ends & await _devices(hands, node))


async def _devices(hands: Hands, node: str) -> set[str]:
    shown: list[dict[str, Any]] = await hands.json(node, ["ip", "-json", "link", "show"])
    return {device["ifname"] for device in shown}


async def empty(hands: Hands, node: str, applied: NodeState) -> None:
    """Remove from a node's netns what was applied there: rules, sets, connections, devices, routes.

    Its agent has ended. What the fabric made (eth0 with its address and default route) stays: it is in the
    node's configuration. Raises NotConverged where devices stay.
    """
    had = applied.netns
    links = ((end[:2], end[2:]) for end in hands.runtime.links)
    own = {port for ends in links for host, port in ends if host == node} | UNDELETABLE
    until = time.monotonic() + patient(GONE_WITHIN)
    while left := sorted(await _devices(hands, node) - own):
        if time.monotonic() > until:
            raise NotConverged(f"{node}: its devices are gone", GONE_WITHIN, ", ".join(left))
        # One that goes by itself meanwhile, with its pod, cannot be deleted: -force goes on.
        deletions = "".join(f"link delete {name}\n" for name in left)
        await hands.run(node, ["ip", "-force", "-batch", "-"], deletions, fails=True)
    await flush(hands, node)
    for argv in (["ipvsadm", "-C"], ["ipset", "destroy"]):
        await hands.run(node, argv, fails=True)  # not installed, or none of it in the kernel
    lines = [f"address delete {each.address} dev {each.dev}" for each in had.addresses.values()]
    lines += [
        f"route delete {each.kind if each.kind != 'unicast' else ''} {each.dst}"
        for each in had.routes.values()
        if each.dst not in ("default", "default6")
    ]
    lines += ["neighbour flush all", "neighbour flush nud permanent"]
    # What stood on a device that is gone by now is gone with it: -force goes on.
    await hands.run(node, ["ip", "-force", "-batch", "-"], "".join(f"{line}\n" for line in lines), fails=True)
    await hands.run(node, ["conntrack", "-F"], fails=True)


async def flush(hands: Hands, node: str) -> None:
    """Flush every netfilter rule of a node, whoever made it and how; sets of ipset and IPVS' tables stay."""
    await hands.run(node, ["nft", "flush", "ruleset"])
    options = hands.plane.facts.proxy_options
    if options.get("backend") == "legacy":
        for program in ("iptables-legacy", "ip6tables-legacy"):
            for table in ("raw", "mangle", "nat", "filter"):
                await hands.run(node, [program, "-t", table, "-F"])
                await hands.run(node, [program, "-t", table, "-X"])


@fault("node-not-ready")
class NodeNotReady(Fault, frozen=True, kw_only=True):
    """The node's way to the API server is cut: no heartbeats, no news either way. What runs there runs on.

    After nodeMonitorGracePeriod the node is Unknown, its pods leave the endpoints, and those that do not
    tolerate its taints for longer are evicted; they go on running until the node hears of it.
    """

    async def conclude(self, hands: Hands, target: Target) -> None:
        """From now on."""
        for node in target.nodes:
            hands.cut_off(node.name, target.fault)

    async def lift(self, hands: Hands, target: Target) -> None:
        """The node is heard again, and told all that it missed."""
        for node in target.nodes:
            hands.reconnect(node.name, target.fault)

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Healed, it has caught up."""
        behind = [node.name for node in target.nodes if not (on or hands.idle(node.name))]
        return told(behind, "is not brought to its state yet")
