"""``same-host-name``: two machines of one host name are one node to Calico."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import TYPE_CHECKING, ClassVar

import msgspec

from testbed.control.snapshot import Node
from testbed.dataplane.calico import fabric
from testbed.dataplane.calico.names import address
from testbed.errors import InputError
from testbed.faults.bgp import EXPORT, asked, directed, rewritten, with_line
from testbed.faults.model import Fault, States, fault
from testbed.faults.target import Aim, Scene, Target
from testbed.state import NodeState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands


@fault("same-host-name")
class SameHostName(Fault, frozen=True, kw_only=True):
    """The node has the host name of another one, so that both are one node to Calico, with shared blocks.

    of: the other, whose Node resource this one overwrote last. Peers speak with this node alone; it announces
    the other's blocks, and its black hole swallows what is for the other's pods. Its own pods are known
    by routes of their own, as borrowed addresses. Where pods go through tunnels it is refused.
    """

    aim: ClassVar[Aim] = "node"
    outlives_peers: ClassVar[bool] = False

    of: str

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The owner of the name."""
        owner = scene.node(self.of)
        options = scene.snapshot.facts.dataplane_options
        if len(target.nodes) != 1 or owner in target.nodes:
            raise InputError("of: one node takes the name of another one")
        if not any(_of(owner.held.ranges, 4)) or "weave:expose" in owner.held.own:
            raise InputError(f"of: {self.of} has no IPv4 block: is this calico, and has it a pod?")
        tunnels = {options.get(mode, "Never") for mode in ("vxlanMode", "ipipMode")} - {"Never"}
        if tunnels or options.get("routeReflectors") or fabric.speaks(scene.snapshot.facts):
            raise InputError("only where BGP alone, in a full mesh, says where pods are")
        return msgspec.structs.replace(target, peers=(owner,))

    def perturb(self, states: States, target: Target) -> States:
        """What confd makes of one Node resource for two."""
        (clone,), (owner,) = target.nodes, target.peers

        def change(name: str, state: NodeState) -> NodeState:
            if name == clone.name:
                return rewritten(state, lambda text: _with_blocks(_without(text, owner), clone, owner))
            if name == owner.name:
                return rewritten(state, lambda text: _moved(_without(text, clone), owner, clone))
            return rewritten(state, lambda text: _renamed(_without(text, owner), clone, owner))

        return {name: change(name, state) for name, state in states.items()}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """What the clone's BIRD announces as its own."""
        (clone,), (owner,) = target.nodes, target.peers
        shown = await asked(hands, clone.name, "route", "protocol", "blocks4")
        block = next(_of(owner.held.ranges, 4))
        if (block in shown) != on:
            return f"{clone.name}: {'does not announce' if on else 'still announces'} {block}"
        return ""


def _of(ranges: Iterable[str], version: int) -> Iterator[str]:
    return (each for each in ranges if ip_network(each).version == version)


def _without(text: str, peer: Node) -> str:
    """``bird.conf`` without the sessions with a node that is this one, by its name, or another."""
    return re.sub(rf"\n# {re.escape(peer.name)}\nprotocol bgp [^\n]*{{\n(?:  [^\n]*\n)*}}\n", "", text)


def _renamed(text: str, clone: Node, owner: Node) -> str:
    """``bird.conf`` of another node, to which the clone's address is the owner's."""
    return text.replace(f"\n# {clone.name}\n", f"\n# {owner.name}\n")


def _with_blocks(text: str, clone: Node, owner: Node) -> str:
    """``bird.conf`` with the blocks of the name's owner in place of the clone's own."""
    for block in clone.held.ranges:
        text = re.sub(rf"^  [^\n]* {re.escape(block)} [^\n]*\n", "", text, flags=re.M)
    for version in (4, 6):
        for block in _of(owner.held.ranges, version):
            static, told = f"protocol static blocks{version}", f"filter {EXPORT}{version}"
            text = with_line(text, static, "}", f"  route {block} blackhole;")
            felixs = "  if ( defined(krt_source)"
            text = with_line(text, told, felixs, f"  if ( net = {block} ) then accept;")
            text = with_line(text, told, felixs, f"  if ( net ~ {block} ) then reject;")
    return text


def _moved(text: str, owner: Node, clone: Node) -> str:
    """``bird.conf`` with the addresses of the resource, which are the clone's."""
    for version in (4, 6):
        own, other = address(owner, version), address(clone, version)
        if own is not None and other is not None:
            text = re.sub(rf"(router id|source address) {re.escape(own)};", rf"\1 {other};", text)
    return directed(text)
