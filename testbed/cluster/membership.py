"""Nodes that join a cluster and leave it: machines of the fabric, which stay, and the Node objects of them.

Joining is what ``kubeadm join`` does: a kubelet, here the agent, begins to run on the machine and registers
it. Leaving is ``kubectl delete node`` and ``kubeadm reset`` together: the pods that were bound to the node
are deleted at once, where upstream's garbage collector waits 40 s (``pkg/controller/podgc``), all that was
put onto the machine is removed, and its agent ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from testbed.cluster.proxying import KEPT, Change, Distribution, Programmed
from testbed.cluster.runtime import Runtime
from testbed.control import view
from testbed.errors import NotConverged
from testbed.objects.kinds import BY_NAME
from testbed.objects.status import ApiError
from testbed.spec.model import NodeSpec
from testbed.state import NodeState
from testbed.wait import patient

Object = dict[str, Any]

WITHIN = 60.0
"""Seconds in which a change of nodes has to be in force on each of them."""


class Membership:
    """Which machines are nodes; one change at a time. programmed, distribution: how long it took until each
    node followed a change, as far as its agent makes it so: routing daemons converge after that."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._plane = runtime, runtime.plane
        self._machines: Mapping[str, NodeSpec] = {node.name: node for node in runtime.spec.nodes}
        self._changing = asyncio.Lock()
        self.distribution: dict[str, Distribution] = {}
        self.programmed: deque[Programmed] = deque(maxlen=KEPT)

    async def join(self, obj: Object) -> Object:
        """Have a machine join; obj: a Node of its name, of which labels, annotations, taints and
        ``unschedulable`` count. Returns the Node as it was registered. Raises ApiError, TestbedError."""
        metadata, wanted = obj.get("metadata") or {}, obj.get("spec") or {}
        name = str(metadata.get("name", ""))
        if name not in self._machines:
            there = ", ".join(self._machines)
            text = f"nodes come from the cluster's spec, which has {there}"
            raise ApiError.forbidden(BY_NAME["Node"], name, text)
        node = view.node_object(self._machines[name], ready=False)
        node["metadata"] |= {
            "labels": {**node["metadata"]["labels"], **(metadata.get("labels") or {})},
            "annotations": dict(metadata.get("annotations") or {}),
        }
        node["spec"] |= {key: wanted[key] for key in ("taints", "unschedulable") if key in wanted}
        async with self._changing:
            written = self._plane.clock.now()
            created = self._plane.store.create(node, trusted=True)
            change = self._change(name, "added", written)
            await self._runtime.begin(name)
            await self._followed(change)
        return created

    async def leave(self, name: str) -> Object:
        """Have a node leave, and end what runs on it. Returns the Node as it was. Raises ApiError, and
        NotConverged where the node cannot be emptied in time; it is no node any more all the same."""
        async with self._changing:
            node = self._plane.store.get("Node", "", name)
            worker = self._plane.workers[name]
            if not worker.alive or worker.paused:
                text = "its agent does not answer, so that it cannot be emptied"
                raise ApiError.conflict(BY_NAME["Node"], name, text)
            written = self._plane.clock.now()
            self._plane.store.delete("Node", "", name)
            change = self._change(name, "deleted", written)
            self._plane.collect(name)
            try:
                await self._followed(change)
            finally:
                await self._runtime.end(name)
        return node

    def since(self, version: int) -> Iterator[Programmed]:
        """What is kept of changes later than ``version``, in the order in which they came into force."""
        return (each for each in self.programmed if each.change.version > version)

    def _change(self, node: str, what: Literal["added", "deleted"], written: float) -> Change:
        """The store's last one."""
        return Change(int(self._plane.store.resource_version), "Node", "", node, what, written)

    async def _followed(self, change: Change) -> None:
        """Wait until every node that answers follows the change. Raises NotConverged."""
        asked = [name for name, each in self._plane.workers.items() if each.alive and not each.paused]
        followed = await asyncio.gather(*(self._one_followed(name, change) for name in asked))
        if late := [name for name, done in zip(asked, followed, strict=True) if not done]:
            what = f"{', '.join(late)}: node {change.name} is {change.what}"
            raise NotConverged(what, patient(WITHIN))

    async def _one_followed(self, name: str, change: Change) -> bool:
        worker = self._plane.workers[name]
        leaves = change.what == "deleted" and name == change.name

        def follows() -> bool:
            return not worker.alive or (worker.idle and (not leaves or worker.applied == NodeState()))

        if not await self._plane.reach(follows, patient(WITHIN)):
            return False
        seconds = max(0.0, self._plane.clock.now() - change.written)
        self.programmed.append(Programmed(change, name, seconds))
        self.distribution.setdefault(name, Distribution()).add(seconds)
        return True
