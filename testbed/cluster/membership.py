"""Nodes that join a cluster and leave it: machines of the fabric, which stay, and the Node objects of them.

Joining is what ``kubeadm join`` does: a kubelet, here the agent, begins to run on the machine and registers
it. Leaving is ``kubectl delete node`` and ``kubeadm reset`` together: the pods that were bound to the node
are deleted at once, where upstream's garbage collector waits 40 s (``pkg/controller/podgc``), all that was
put onto the machine is removed, and its agent ends. A node whose agent is gone leaves, too. A machine
may also boot with other addresses, and its node stays one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Literal

from testbed.cluster.proxying import KEPT, Change, Distribution, Programmed
from testbed.cluster.runtime import Runtime
from testbed.cluster.worker import NodeWorker
from testbed.control import view
from testbed.errors import NotConverged
from testbed.objects import admission
from testbed.objects.kinds import BY_NAME, find
from testbed.objects.status import ApiError
from testbed.spec.addressing import is_host, with_prefix
from testbed.spec.model import NodeSpec
from testbed.state import NodeState
from testbed.wait import patient

log = logging.getLogger(__name__)

Object = dict[str, Any]

What = Literal["added", "deleted", "readdressed", "restarted"]
"""What happens to a node."""

KIND = BY_NAME["Node"]
WITHIN = 60.0
"""Seconds in which a change of nodes has to be in force on each of them."""


class Membership:
    """Which machines are nodes, and with which addresses; one change at a time. empty: removes what is left
    in a machine's netns of what was applied there, once its agent has ended.

    programmed, distribution: how long it took until each node followed a change, as far as its agent makes it
    so: routing daemons converge after that.
    """

    def __init__(self, runtime: Runtime, empty: Callable[[str, NodeState], Awaitable[None]]) -> None:
        self._runtime, self._plane, self._empty = runtime, runtime.plane, empty
        self._machines: dict[str, NodeSpec] = {node.name: node for node in runtime.spec.nodes}
        self._changing = asyncio.Lock()
        self.distribution: dict[str, Distribution] = {}
        self.programmed: deque[Programmed] = deque(maxlen=KEPT)

    async def join(self, obj: Object) -> Object:
        """Have a machine join; obj: a Node of its name, of which labels, annotations, taints and
        ``unschedulable`` count. Returns the Node as it was registered. Raises ApiError, TestbedError; where
        its agent cannot begin it is no node."""
        node = self._registered(obj)
        name = node["metadata"]["name"]
        async with self._changing:
            if name in self._runtime.crashed:
                raise ApiError.conflict(KIND, name, "its machine has no power: heal its fault first")
            if self._plane.store.find("Node", "", name) is not None:
                raise ApiError.already_exists(KIND, name)
            written = self._plane.clock.now()
            others: asyncio.Future[list[str]] | None = None
            try:
                created = self._plane.store.create(node)
                change = self._change(name, "added", written)
                others = self._following(change, self._plane.workers)
                await self._runtime.begin(name)
            except BaseException:
                if others is not None:
                    others.cancel()
                await self._take_back(name)
                raise
            itself = self._following(change, [name])
            self._refuse_late(change, [*await others, *await itself])
        return created

    async def _take_back(self, name: str) -> None:
        """A machine is no node after all, however far it came."""
        if self._plane.store.find("Node", "", name) is not None:
            self._plane.store.delete("Node", "", name)
            self._plane.collect(name)
        await self._runtime.end(name)

    def _registered(self, obj: Object) -> Object:
        """The Node that a machine's agent registers where it is asked for so. Raises ApiError."""
        group, kind = str(obj.get("apiVersion", "")), str(obj.get("kind", ""))
        if find(group, kind) is not KIND:
            raise ApiError.no_such_kind(group, kind)
        asked = admission.readable(KIND, obj)
        metadata, name = asked["metadata"], asked["metadata"].get("name", "")
        if name not in self._machines:
            there = ", ".join(self._machines)
            raise ApiError.forbidden(KIND, name, f"nodes come from the cluster's spec, which has {there}")
        node = view.node_object(self._machines[name], ready=False)
        node["metadata"] |= {
            "labels": {**node["metadata"]["labels"], **(metadata.get("labels") or {})},
            "annotations": metadata.get("annotations") or {},
        }
        node["spec"] |= {
            key: asked["spec"][key] for key in ("taints", "unschedulable") if key in asked["spec"]
        }
        return node

    async def leave(self, name: str, *, uid: str = "", version: str = "") -> Object:
        """Have a node leave, and end what runs on it. uid, version: if given, those that it must have.

        Returns the Node as it was. Raises ApiError, and NotConverged where the others do not follow in time;
        it is no node any more all the same. Nothing is left on it, even where it does not follow itself, as
        when a plugin hangs that should take a pod's network down: then its machine is emptied without it.
        """
        async with self._changing:
            node = self._plane.store.get("Node", "", name)
            worker = self._plane.workers.get(name)
            if worker is not None and worker.alive and worker.paused:
                text = "its agent is cut off, so that it cannot be emptied: heal its fault first"
                raise ApiError.conflict(KIND, name, text)
            if node["metadata"].get("finalizers"):
                raise ApiError.conflict(KIND, name, "it has finalizers, which nobody here acts on")
            written = self._plane.clock.now()
            self._plane.store.delete("Node", "", name, uid=uid, version=version)
            change = self._change(name, "deleted", written)
            self._plane.collect(name)
            try:
                late = await self._following(change, self._plane.workers)
                if name in late:
                    log.warning("%s was not emptied within %g s: its machine is, as it leaves", name, WITHIN)
                self._refuse_late(change, [each for each in late if each != name])
            finally:
                await self._runtime.end(name)
                if worker is not None and worker.applied != NodeState():
                    await self._empty(name, worker.applied)
        return node

    async def readdress(self, name: str, addresses: Sequence[str]) -> Object:
        """Have a node's machine boot with other addresses, as after a lease of DHCP that ran out.

        Its pods are started anew with their own addresses, but those with hostNetwork, which have the node's.
        addresses: one of each family that it has. Returns the Node as it is then. Raises ApiError where it
        cannot have them, TestbedError.
        """
        async with self._changing:
            self._plane.store.get("Node", "", name)
            worker = self._reached(name)
            machine = self._readdressed(name, addresses)
            had = worker.applied
            self._runtime.crash(name)
            await self._runtime.gone(worker)
            others: asyncio.Future[list[str]] | None = None
            try:
                await self._empty(name, had)
                await self._runtime.readdress(name, with_prefix(machine.addresses, machine.subnets))
                self._machines[name] = machine
                written = self._plane.clock.now()
                node = self._plane.readdress(name, view.addresses(machine))
                self._started(node)
                change = self._change(name, "readdressed", written)
                others = self._following(change, [each for each in self._plane.workers if each != name])
                await self._runtime.tell_routers()
                await self._runtime.boot(name)
            except BaseException:
                if others is not None:
                    others.cancel()
                if not self._plane.workers[name].alive:
                    await self._runtime.boot(name)
                raise
            itself = self._following(change, [name])
            self._refuse_late(change, [*await others, *await itself])
        return node

    async def restart(self, name: str) -> None:
        """Restart what makes a node's network, kube-proxy and the dataplane's agent with its daemons: all is
        set again, also what only a start mends. Returns when it is in force.

        Raises ApiError, NotConverged.
        """
        async with self._changing:
            node = self._plane.store.get("Node", "", name)
            self._reached(name).restart()
            self._started(node)
            change = self._change(name, "restarted", self._plane.clock.now())
            self._refuse_late(change, await self._following(change, [name]))

    def _started(self, node: Object) -> None:
        """Have an event say what kube-proxy says when it starts (``cmd/kube-proxy/app/server.go``)."""
        self._plane.recorder.record(node, "Normal", "Starting", "", "kube-proxy")

    def _reached(self, name: str) -> NodeWorker:
        """Who works for a node. Raises ApiError where its agent does not answer."""
        worker = self._plane.workers.get(name)
        crashed = name in self._runtime.crashed
        if worker is None or crashed or not worker.alive or worker.paused:
            raise ApiError.conflict(KIND, name, "its agent does not answer: heal its fault first")
        return worker

    def _readdressed(self, name: str, addresses: Sequence[str]) -> NodeSpec:
        """The machine with these addresses. Raises ApiError where it cannot have them."""
        machine = self._machines[name]
        try:
            wanted = {address.version: address for address in map(ip_address, addresses)}
        except ValueError as error:
            raise ApiError.bad_request(f"addresses: {error}") from error
        has = [address.version for address in machine.addresses]
        if len(addresses) != len(has) or set(wanted) != set(has):
            needs = " and ".join(f"one IPv{version}" for version in has)
            raise ApiError.bad_request(f"addresses: node {name} has {needs} address, not {len(addresses)}")
        for address in wanted.values():
            if getattr(address, "scope_id", None):
                raise ApiError.bad_request(f"addresses: {address}: a node's address has no scope")
            if not any(is_host(address, subnet) for subnet in machine.subnets):
                ranges = ", ".join(map(str, machine.subnets))
                raise ApiError.bad_request(f"addresses: {address} is no host address of {ranges}")
            if (owner := self._runtime.owner(str(address))) not in ("", name):
                raise ApiError.bad_request(f"addresses: {address} is already that of {owner}")
        return replace(machine, addresses=tuple(wanted[version] for version in has))

    def since(self, version: int) -> Iterator[Programmed]:
        """What is kept of changes later than ``version``, in the order in which they came into force."""
        return (each for each in self.programmed if each.change.version > version)

    def _change(self, node: str, what: What, written: float) -> Change:
        """The store's last one."""
        return Change(int(self._plane.store.resource_version), "Node", "", node, what, written)

    def _following(self, change: Change, names: Iterable[str]) -> asyncio.Future[list[str]]:
        """Those that do not follow the change in time, of these nodes, as far as they answer."""
        workers = [self._plane.workers[name] for name in names]
        asked = [each for each in workers if each.alive and not each.paused]
        # A round that is under way may have begun before the change, but where the node itself came with it.
        joins = change.name if change.what in ("added", "readdressed") else ""
        before = [0 if each.name == joins else each.rounds for each in asked]
        return asyncio.gather(*(self._late(*each, change) for each in zip(asked, before, strict=True)))

    async def _late(self, worker: NodeWorker, before: int, change: Change) -> str:
        """The node's name where no round after ``before`` has brought it to its state in time, else ""."""
        leaves = change.what == "deleted" and worker.name == change.name

        def follows() -> bool:
            emptied = not leaves or (worker.idle and worker.applied == NodeState())
            return not worker.alive or worker.paused or (worker.done > before and emptied)

        if not await self._plane.reach(follows, patient(WITHIN)):
            return worker.name
        if worker.done > before:
            seconds = max(0.0, self._plane.clock.now() - change.written)
            self.programmed.append(Programmed(change, worker.name, seconds))
            self.distribution.setdefault(worker.name, Distribution()).add(seconds)
        return ""

    @staticmethod
    def _refuse_late(change: Change, names: Iterable[str]) -> None:
        """Raises NotConverged where there are any."""
        if late := [name for name in names if name]:
            what = f"{', '.join(late)}: node {change.name} is {change.what}"
            raise NotConverged(what, patient(WITHIN))
