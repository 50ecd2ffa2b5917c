"""``bird-down``, ``bgp-filtered``, ``bgp-withdrawn``: what goes wrong with a node's routing daemon.

For dataplanes whose nodes run BIRD (calico). Where nodes run none, they are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import msgspec

from testbed.cluster.daemons import directory
from testbed.dataplane.calico.bird import CONFIG, CONTROL, NAME
from testbed.errors import CommandFailed
from testbed.faults.model import Fault, States, fault, on_nodes, told, with_rules
from testbed.faults.target import Aim, Target
from testbed.state import NetnsState, NodeState

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

BGP = 179
EXPORT, PROGRAM = "calico_export_to_bgp_peers", "calico_kernel_programming"
"""Filters of ``bird.conf``, before the IP version: what goes to other routers, and what to the kernel."""


@fault("bird-down")
class BirdDown(Fault, frozen=True, kw_only=True):
    """The node's BIRD is killed and does not come back.

    Its kernel keeps the routes it has; its peers keep theirs to it for as long as BGP's timers say.
    """

    aim: ClassVar[Aim] = "node"

    def perturb(self, states: States, target: Target) -> States:
        """Without the daemon."""

        def without(state: NodeState) -> NodeState:
            kept = {name: daemon for name, daemon in state.daemons.items() if name != NAME}
            return msgspec.structs.replace(state, daemons=kept)

        names = {node.name for node in target.nodes}
        return {name: without(state) if name in names else state for name, state in states.items()}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Nobody answers birdc; healed, BIRD does, unless the node has left."""
        there = [node.name for node in target.nodes if on or hands.alive(node.name)]
        wrong = [name for name in there if bool(await asked(hands, name, "status")) == on]
        return told(wrong, "BIRD still answers" if on else "BIRD does not answer")


@fault("bgp-filtered")
class BgpFiltered(Fault, frozen=True, kw_only=True):
    """A firewall on the node drops TCP port 179: sessions hang until their hold time is over, then end."""

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"iptables"})

    def perturb(self, states: States, target: Target) -> States:
        """Before all other rules of what comes in."""

        def change(netns: NetnsState) -> NetnsState:
            rules = [f"-p tcp -m tcp --{end}port {BGP} -j DROP" for end in "ds"]
            netns = with_rules(netns, "ipv4", "filter", "INPUT", rules)
            return with_rules(netns, "ipv6", "filter", "INPUT", rules)

        running = {node.name for node in target.nodes if NAME in states.get(node.name, NodeState()).daemons}
        return on_nodes(states, running, change)


@fault("bgp-withdrawn")
class BgpWithdrawn(Fault, frozen=True, kw_only=True):
    """The node announces none of its pods' addresses: its peers withdraw their routes at once."""

    aim: ClassVar[Aim] = "node"

    def perturb(self, states: States, target: Target) -> States:
        """The filter towards its peers rejects everything."""

        names = {node.name for node in target.nodes}
        return {name: rewritten(state, _silent) if name in names else state for name, state in states.items()}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """What BIRD itself says it sends."""
        for node in target.nodes:
            shown = await asked(hands, node.name, "route", "stats", "filter", f"{EXPORT}4")
            if (" 0 of " in shown) != on:
                return f"{node.name}: announces {'still something' if on else 'nothing'}"
        return ""


def rewritten(state: NodeState, change: Callable[[str], str]) -> NodeState:
    """A node's state with another ``bird.conf``; where it runs no BIRD, as it is."""
    if (daemon := state.daemons.get(NAME)) is None:
        return state
    daemon = msgspec.structs.replace(daemon, files={**daemon.files, CONFIG: change(daemon.files[CONFIG])})
    return msgspec.structs.replace(state, daemons={**state.daemons, NAME: daemon})


def with_line(text: str, block: str, before: str, line: str) -> str:
    """``bird.conf`` with one more line in a block, before each that begins like this."""
    lines: list[str] = []
    inside = False
    for each in text.splitlines():
        if inside and each.startswith(before):
            lines.append(line)
        if not each.startswith(" "):
            inside = each == f"{block} {{"
        lines.append(each)
    return "\n".join((*lines, ""))


def directed(text: str) -> str:
    """``bird.conf`` with the passive sides of the mesh as they are by the addresses in it."""
    lines: list[str] = []
    there = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["neighbor"]:
            there = words[1]
        if words[:2] != ["passive", "on;"]:
            lines.append(line)
        if words[:2] == ["source", "address"] and there > words[2].rstrip(";") and "Mesh_" in _opened(lines):
            lines.append("  passive on;  # the mesh is unidirectional: the peer connects")
    return "\n".join((*lines, ""))


def _opened(lines: list[str]) -> str:
    """The line that opens the block that the last line is in."""
    return next(line for line in reversed(lines) if line.endswith("{") and not line.startswith(" "))


def _silent(text: str) -> str:
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line.startswith(f"filter {EXPORT}"):
            lines.append("  reject;")
    return "\n".join((*lines, ""))


async def asked(hands: Hands, node: str, *question: str) -> str:
    """What a node's BIRD shows; "" where it does not answer."""
    control = str(directory(node, NAME) / CONTROL)
    try:
        return await hands.run(node, ["birdc", "-r", "-s", control, "show", *question])
    except CommandFailed:
        return ""
