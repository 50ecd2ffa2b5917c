"""Pods that a node's plugin refuses to wire, for faults of plugins: they stay in ContainerCreating."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from testbed.cluster.apply import without_devices
from testbed.dataplane.portmap import container_id
from testbed.faults.model import States
from testbed.faults.target import Scene, Target
from testbed.state import NetnsState, PodState


def with_pods(target: Target, scene: Scene) -> Target:
    """The target with the pods that run on its nodes by now: these were wired before."""
    names = {node.name for node in target.nodes}
    return msgspec.structs.replace(target, pods=tuple(pod for pod in scene.running if pod.node in names))


def refusing(states: States, target: Target, says: Callable[[str], str]) -> States:
    """The states in which plugins of the target's nodes refuse all pods but the target's.

    says: an event's words about a container id. Nothing is left of an attempt: the runtime had it undone.
    """
    wired = {pod.uid for pod in target.pods}
    found = dict(states)
    for node in (each.name for each in target.nodes if each.name in states):
        state = found[node]
        new = [pod for uid, pod in state.pods.items() if uid not in wired and not pod.host_network]
        ends = {link.peer for pod in new for link in pod.netns.links.values() if link.peer}
        found[node] = msgspec.structs.replace(
            state,
            netns=without_devices(state.netns, ends),
            pods={**state.pods, **{pod.uid: _refused(pod, says(container_id(pod))) for pod in new}},
        )
    return found


def _refused(pod: PodState, why: str) -> PodState:
    """Nothing of it runs."""
    return msgspec.structs.replace(
        pod,
        netns=NetnsState(),
        refused=why,
        listeners=(),
        commands={},
        probes={},
        nameservers={},
    )
