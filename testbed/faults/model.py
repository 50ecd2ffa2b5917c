"""What a fault is: a function on desired state wherever it can be, and its registry.

``@fault("name")`` on a ``Fault`` makes ``testbed fault apply name`` and the scenario step work. Its fields
are its options. A fault says what the desired state is while it is on (``perturb`` for nodes and pods,
``perturb_ends`` for the fabric's links): injecting is applying that, healing is applying the true state, and
a change of the cluster in between is perturbed like everything else. Only what no state can express
(killing a process, filling a table) is done by ``inject``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from testbed.faults.target import Aim, Scene, Target
from testbed.registry import Registry
from testbed.rules.iptables import is_built_in
from testbed.state import Chain, Family, NetnsState, NodeState, PodState, Table

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

States = Mapping[str, NodeState]
"""Node → its state; not always those of all nodes."""


class EndState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One end of a link as it should be. up: False takes the whole link down; mtu: 0 for its true one.

    shaping: Mininet's keyword arguments (``spec.links.link_options``) that replace the link's own.
    """

    up: bool = True
    mtu: int = 0
    shaping: dict[str, Any] = {}


Ends = Mapping[tuple[str, str], EndState]
"""(node, interface) → what is not as it truly is."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all faults. A subclass answers what concerns it; the rest stays as here.

    aim: what it acts on; needs: capabilities; namespace, selector: of the pods it acts on where nobody names
    any; outlives_nodes: whether it is of the machine or the network and not of what runs there, so that it
    stays where a node leaves the cluster; outlives_peers: whether it stays where a peer of the target leaves;
    follows_nodes: whether it sees the nodes and peers of its target as they are now, with the ranges that
    their pods have got since, and not as they were when it was applied.
    """

    aim: ClassVar[Aim] = "node"
    outlives_nodes: ClassVar[bool] = False
    outlives_peers: ClassVar[bool] = True
    follows_nodes: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    namespace: ClassVar[str] = ""
    selector: ClassVar[str] = ""

    def requires(self) -> frozenset[str]:
        """Capabilities that it needs with these options."""
        return self.needs

    def takes(self) -> float:
        """Seconds that it may take to come into force or to heal, beside those that all may take."""
        return 0.0

    def over(self) -> bool:
        """Whether it is over once it has happened, as when a pod was killed: nothing is left to heal."""
        return False

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The target with what the options mean at this moment. Raises InputError where they mean nothing."""
        return target

    def perturb(self, states: States, target: Target) -> States:
        """The states while the fault is on; pure. What a state no longer has cannot be perturbed."""
        return states

    def perturb_ends(self, ends: Ends, target: Target) -> Ends:
        """The links' ends while the fault is on; pure."""
        return ends

    async def inject(self, hands: Hands, target: Target) -> None:
        """Do what no state expresses; before the perturbed states are applied. Raises TestbedError."""

    async def conclude(self, hands: Hands, target: Target) -> None:
        """Do what can only be done when the kernel shows the rest. Raises TestbedError."""

    async def lift(self, hands: Hands, target: Target) -> None:
        """Undo ``inject`` and ``conclude``; also where only part was done. Raises TestbedError."""

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """What the kernel does not show as it has to, while the fault is on or once it is healed; "" is none.

        What ``perturb`` changes of a netns is read back by itself.
        """
        return ""


faults: Registry[type[Fault]] = Registry("fault", "testbed.faults")
fault = faults.register


def told(names: Sequence[str], what: str) -> str:
    """``node-1, node-2: still up``; "" of none."""
    return f"{', '.join(names)}: {what}" if names else ""


# --- for perturbing -----------------------------------------------------------------------------------


def on_nodes(states: States, names: Iterable[str], change: Any) -> States:
    """The states with ``change(NetnsState) → NetnsState`` made to these nodes' own netns."""
    changed = {
        name: msgspec.structs.replace(states[name], netns=change(states[name].netns))
        for name in names
        if name in states
    }
    return {**states, **changed}


def on_pods(states: States, target: Target, change: Any) -> States:
    """The states with ``change(PodState) → PodState`` made to those of the target's pods that are there."""
    found = dict(states)
    for pod in target.pods:
        node = found.get(pod.node)
        if node is not None and pod.uid in node.pods:
            state: PodState = change(node.pods[pod.uid])
            found[pod.node] = msgspec.structs.replace(node, pods={**node.pods, pod.uid: state})
    return found


def with_rules(
    netns: NetnsState, family: Family, table: Table, name: str, rules: Iterable[str]
) -> NetnsState:
    """The netns with these rules before all others of a built-in chain."""
    key, first = (family, table, name), tuple(rules)
    before = netns.chains.get(key, Chain(family, table, name))
    chain = Chain(family, table, name, (*first, *before.rules), before.inserted + len(first))
    assert is_built_in(chain)  # noqa: S101 - others are not ours to add to
    return msgspec.structs.replace(netns, chains={**netns.chains, key: chain})


def described() -> list[dict[str, Any]]:
    """Every kind of fault: its name, what it acts on and needs, its options with defaults, what it does."""
    found = []
    for name in faults:
        kind = faults.get(name)
        fields = msgspec.structs.fields(kind)
        found.append(
            {
                "fault": name,
                "acts on": kind.aim,
                "needs": sorted(kind.needs),
                "options": {
                    field.name: msgspec.to_builtins(field.default) if not field.required else None
                    for field in fields
                },
                "about": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
            }
        )
    return found
