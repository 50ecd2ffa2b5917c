"""What a fault acts on: named, or chosen by a seed among all there is. Pure: same seed, same choice."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import msgspec

from testbed.control.ipam import NOTHING
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.errors import InputError
from testbed.objects.selectors import parse_labels

Aim = Literal["node", "pod", "link"]
"""What a kind of fault acts on. A link is named by a node (``node-2``: its first) or by both (``s1:r1``)."""

T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked for. names: all of these; else those of a label selector and namespace; else any one.

    count: so many of them, chosen by the seed; 0: all that are named, one of those that are not.
    """

    names: tuple[str, ...] = ()
    selector: str = ""
    namespace: str = ""
    count: int | Literal["all"] = 0


class Link(msgspec.Struct, frozen=True):
    """A link of the fabric: both ends as (node, interface). The first is the one it was named by."""

    ends: tuple[tuple[str, str], tuple[str, str]]

    @property
    def name(self) -> str:
        """``node-1:s1``."""
        return ":".join(node for node, _ in self.ends)


class Target(msgspec.Struct, frozen=True):
    """What a fault acts on, as it was when the fault was applied (but see ``Fault.follows_nodes``).

    peers, addresses: what else it is about, by its options: the other side of a withdrawn route, say. fault:
    the id of what acts on it, under which that keeps its running programs.
    """

    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    links: tuple[Link, ...] = ()
    peers: tuple[Node, ...] = ()
    addresses: tuple[str, ...] = ()
    fault: str = ""

    def on(self, node: str) -> Target:
        """This node of it alone."""
        return msgspec.structs.replace(self, nodes=tuple(each for each in self.nodes if each.name == node))

    def without(self, node: str) -> Target:
        """All its nodes but this one."""
        return msgspec.structs.replace(self, nodes=tuple(each for each in self.nodes if each.name != node))

    def now(self, there: Mapping[str, Node]) -> Target:
        """With its nodes and peers as they are. Who has left is as it was, but holds nothing of a pool."""

        def now(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
            return tuple(there.get(node.name) or replace(node, held=NOTHING) for node in nodes)

        return msgspec.structs.replace(self, nodes=now(self.nodes), peers=now(self.peers))

    @property
    def names(self) -> list[str]:
        """Of nodes, or pods (``namespace/name``), or links."""
        if self.nodes:
            return [node.name for node in self.nodes]
        return [f"{pod.namespace}/{pod.name}" for pod in self.pods] or [link.name for link in self.links]


@dataclass(frozen=True)
class Scene:
    """The cluster at the moment. running: pods in the kernel; links: (node a, port a, node b, port b).

    control_plane: its addresses.
    """

    snapshot: Snapshot
    running: Sequence[Pod]
    links: Sequence[tuple[str, str, str, str]]
    control_plane: tuple[str, ...] = ()

    def node(self, name: str) -> Node:
        """Raises InputError that lists the nodes."""
        if name not in self.snapshot.node:
            raise InputError(f"no node {name!r}: there are {', '.join(sorted(self.snapshot.node))}")
        return self.snapshot.node[name]

    def pod(self, name: str, namespace: str = "") -> Pod:
        """A running pod by ``namespace/name`` or ``name``. Raises InputError."""
        space, _, short = name.rpartition("/")
        space = space or namespace or "default"
        for pod in self.running:
            if (pod.namespace, pod.name) == (space, short):
                return pod
        raise InputError(f"no running pod {space}/{short}")

    def link(self, name: str) -> Link:
        """Raises InputError that says what the named nodes are linked to."""
        one, _, other = name.partition(":")
        found = [link for link in self._links_of(one) if other in ("", link.ends[1][0])]
        if not found:
            beside = ", ".join(link.name for link in self._links_of(one)) or "no such node of the fabric"
            raise InputError(f"no link {name!r}: {beside}")
        return found[0]

    def _links_of(self, name: str) -> list[Link]:
        return [
            Link((one, other) if one[0] == name else (other, one))
            for one, other in (((a, pa), (b, pb)) for a, pa, b, pb in self.links)
            if name in (one[0], other[0])
        ]


def choose(aim: Aim, wanted: Wanted, scene: Scene, seed: str) -> Target:
    """The target that was asked for. Raises InputError where there is none, or fewer than asked for."""
    chance = random.Random(seed)  # noqa: S311 - chosen for an experiment, to be the same again
    if aim == "pod":
        return Target(pods=_some(wanted, _pods(wanted, scene), chance, "pods"))
    if wanted.selector or wanted.namespace:
        raise InputError(f"a selector and a namespace are for pods; this acts on a {aim}")
    names = wanted.names or tuple(sorted(scene.snapshot.node))
    if aim == "node":
        return Target(nodes=_some(wanted, [scene.node(name) for name in names], chance, "nodes"))
    return Target(links=_some(wanted, [scene.link(name) for name in names], chance, "links"))


def _pods(wanted: Wanted, scene: Scene) -> list[Pod]:
    if wanted.names:
        return [scene.pod(name, wanted.namespace) for name in wanted.names]
    selected = parse_labels(wanted.selector)
    found = [
        pod
        for pod in scene.running
        if wanted.namespace in ("", pod.namespace) and selected(pod.labels) and not pod.host_network
    ]
    # Not by name: those that a workload gives its pods differ from run to run.
    return sorted(found, key=lambda pod: (pod.namespace, pod.node, pod.ips))


def _some(wanted: Wanted, found: Sequence[T], chance: random.Random, what: str) -> tuple[T, ...]:
    if not found:
        raise InputError(f"there are no {what} of that kind")
    count = wanted.count
    if count == "all" or (count == 0 and wanted.names):
        return tuple(found)
    number = count or 1
    if not 0 < number <= len(found):
        raise InputError(f"count: {number} asked for, there are {len(found)} {what}")
    return tuple(found[place] for place in sorted(chance.sample(range(len(found)), number)))


def other_nodes(scene: Scene, target: Target) -> tuple[Node, ...]:
    """All nodes that a target does not name."""
    named = {node.name for node in target.nodes}
    return tuple(node for node in scene.snapshot.nodes if node.name not in named)
