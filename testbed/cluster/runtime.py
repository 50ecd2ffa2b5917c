"""The running cluster as the daemon holds it: channels to fabric and zygote, an agent per node, the plane."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.cluster import sandboxes
from testbed.cluster.balancer import Balancer
from testbed.cluster.controlplane import ControlPlane
from testbed.cluster.messages import (
    AnyMessage,
    Applied,
    Apply,
    Beat,
    Ended,
    FabricReady,
    Failed,
    GetNetns,
    KeepRules,
    Netns,
    Readdress,
    RunDaemons,
    Spawn,
    Spawned,
)
from testbed.cluster.outside import serve_zone
from testbed.cluster.worker import NodeWorker
from testbed.control.snapshot import Router, Snapshot
from testbed.dataplane import Repairing, dataplanes
from testbed.errors import NotConverged, TestbedError
from testbed.kernel.channel import MAX_FDS, AsyncChannel, ChannelClosed, socket_pair
from testbed.objects.status import ApiError
from testbed.spec.model import ClusterSpec
from testbed.state import NODE, Daemon, NodeState
from testbed.topology.routing import Graph, routers
from testbed.wait import patient

if TYPE_CHECKING:
    from mininet.topo import Topo

log = logging.getLogger(__name__)

AGENT_ENTRY = "testbed.cluster.agent:main"
CHECKER_ENTRY = "testbed.cluster.checker:main"
ROUTER = "router "
"""What a router's agent is called begins with this."""
ROUTER_BACKOFF = 1.0
"""Seconds after which one that ended is started again."""

ENDS_WITHIN = 10.0
"""Seconds in which a process that was killed is gone, or the zygote tells of one whose channel is closed."""

HOST_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
"""The environment of a program run on a node or host of the fabric."""


@dataclass(frozen=True)
class Target:
    """Where a program is to run: the channel of who runs it (in words: runner) and what to tell that one."""

    runner: str
    channel: AsyncChannel[AnyMessage]
    where: str
    env: dict[str, str]


class SandboxFailed(TestbedError):
    """A process of the sandbox reported a failure; its own exit code is kept."""

    def __init__(self, failure: Failed) -> None:
        self.exit_code = failure.exit_code
        super().__init__(failure.message)


class AgentsEnded(TestbedError):
    """Agents ended while the cluster started; why is in its log. agents: in words."""

    def __init__(self, agents: Iterable[str]) -> None:
        super().__init__(f"{', '.join(agents)} ended as the cluster started")


async def _nothing() -> None:
    """Do nothing."""


class Runtime:
    """Starts what the plane needs and hands out where things run. Sockets: our ends of the pairs."""

    def __init__(
        self, name: str, spec: ClusterSpec, plane: ControlPlane, fabric: Any, zygote: Any, topo: Topo
    ) -> None:
        self.name, self.spec, self.plane = name, spec, plane
        self.fabric: AsyncChannel[AnyMessage] = AsyncChannel(fabric, AnyMessage)
        self.zygote: AsyncChannel[AnyMessage] = AsyncChannel(zygote, AnyMessage)
        self.hosts: dict[str, str] = {}
        self.links: tuple[tuple[str, str, str, str], ...] = ()
        self.seconds: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = time.monotonic()
        self._routers: dict[str, AsyncChannel[AnyMessage]] = {}
        self._ended: dict[str, Callable[[], None]] = {}
        self._topo = topo
        self._balancer = Balancer(self, topo)
        self._pids: dict[str, int] = {}
        self.crashed: dict[str, NodeState] = {}
        """Machine without power → what was applied there when it went."""

    def background(self, work: Any) -> None:
        """Run a coroutine for as long as the cluster lives; its failure is logged, never lost."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the daemon failed", exc_info=error)

    def _mark(self, step: str) -> None:
        self.seconds[step] = round(time.monotonic() - self._begun, 4)

    async def start(self, deadline: float, first: Callable[[], Awaitable[None]] = _nothing) -> None:
        """Bring every node up and wait until nothing is due. deadline: seconds. Raises TestbedError.

        first: done while the nodes' agents start, once the fabric is there.
        """
        self.plane.step()
        self._mark("decided")
        await self._fabric_ready()
        self._mark("fabric")
        for host in self.spec.external:
            if host.zone:
                self.background(serve_zone(self.fabric, host))
        names = [node.name for node in self.spec.nodes]
        netns = await self.netns_of(self.fabric, names)
        agents = (self._start_agent(name, fd) for name, fd in zip(names, netns, strict=True))
        self.background(self._watch_zygote())
        try:
            await asyncio.gather(first(), self._start_routers(), *agents)
        except ChannelClosed:
            await self._refuse_ended(names)
            raise
        self._mark("agents")
        self.background(self.plane.run())
        self.background(self.plane.naming.run())
        until = time.monotonic() + patient(deadline)
        await self.plane.settle_first(patient(deadline))
        # Nodes are asked for their health when they can answer.
        self.plane.store.subscribe(self._balancer.observe)
        self.plane.beside.append(lambda: self._balancer.idle)
        self.background(self._balancer.run())
        await self.plane.settle(until - time.monotonic())
        await self._refuse_ended(names)
        self._mark("ready")

    async def _refuse_ended(self, names: Sequence[str]) -> None:
        """Raises AgentsEnded where one of these nodes' agents has ended, once the log says how."""
        workers = self.plane.workers
        ended = [name for name in names if name in workers and not workers[name].alive]
        if ended:
            await self._hear_of_ends([f"agent {name}" for name in ended])
            raise AgentsEnded(map(_agent_of, ended))

    async def _hear_of_ends(self, processes: Sequence[str]) -> None:
        """Wait a moment until the zygote has told, and the log says, how these ended."""
        until = time.monotonic() + ENDS_WITHIN
        while any(name in self._pids for name in processes) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def _fabric_ready(self) -> None:
        message, _ = await self.fabric.receive()
        match message:
            case FabricReady():
                self.hosts, self.links = message.hosts, message.links
                self.seconds.update({f"fabric {step}": value for step, value in message.seconds.items()})
            case Failed():
                raise SandboxFailed(message)
            case _:
                raise TestbedError(f"the fabric said {type(message).__name__} before it was ready")

    async def netns_of(self, channel: AsyncChannel[AnyMessage], names: Sequence[str]) -> list[int]:
        """Network namespaces by name from an agent or the fabric; the descriptors belong to the caller."""
        fds: list[int] = []
        for start in range(0, len(names), MAX_FDS):
            part = tuple(names[start : start + MAX_FDS])
            answer, received = await channel.request(GetNetns(channel.new_id(), part))
            if not isinstance(answer, Netns):
                raise TestbedError(f"no namespaces: {getattr(answer, 'message', answer)}")
            fds += received
        return fds

    async def spawn(self, name: str, entry: str, netns: int = -1) -> socket.socket:
        """A worker process from the zygote; our end of its channel. netns is closed here."""
        ours, theirs = socket_pair()
        extra = [netns] if netns >= 0 else []
        answer, _ = await self.zygote.request(
            Spawn(self.zygote.new_id(), name, entry), [theirs.fileno(), *extra]
        )
        theirs.close()
        for fd in extra:
            os.close(fd)
        if isinstance(answer, Failed):
            raise SandboxFailed(answer)
        if not isinstance(answer, Spawned):
            raise TestbedError(f"the zygote answered {type(answer).__name__}")
        self._pids[name] = answer.pid
        return ours

    async def spawn_channel(self, name: str, entry: str, netns: int = -1) -> AsyncChannel[AnyMessage]:
        """As ``spawn``, ready to talk over."""
        return AsyncChannel(await self.spawn(name, entry, netns), AnyMessage)

    async def _start_agent(self, node: str, netns: int) -> None:
        channel = await self.spawn_channel(f"agent {node}", AGENT_ENTRY, netns)
        worker = NodeWorker(node, channel, self.plane)
        self.plane.workers[node] = worker
        self.plane.heard(node)
        options = self.plane.facts.proxy_options
        dataplane = dataplanes.get(self.spec.network.dataplane)
        upkeep = (
            dataplane.upkeep(self.spec.network.dataplane_options) if isinstance(dataplane, Repairing) else ()
        )
        channel.send(KeepRules(options.get("backend", "nft"), options.get("syncPeriod", 0.0), upkeep))
        channel.send(Beat(self.plane.nodes.clocks["nodeStatusUpdateFrequency"]))
        worker.touch()
        self.background(worker.run())
        self.background(worker.listen())

    # --- nodes that come and go ----------------------------------------------------------------------

    async def begin(self, node: str) -> None:
        """Start an agent on a machine whose netns holds nothing. Raises TestbedError."""
        (netns,) = await self.netns_of(self.fabric, [node])
        try:
            await self._start_agent(node, netns)
        except ChannelClosed as error:
            raise TestbedError(f"{_agent_of(node)} ended as it began") from error

    async def end(self, node: str) -> None:
        """End the agent of a machine that is no node any more."""
        self.crash(node)
        worker = self.plane.dismiss(node)
        if worker is not None:
            await self.gone(worker)
        sandboxes.forget(node)
        self.plane.worker_done()

    # --- nodes that crash ---------------------------------------------------------------------------

    def crash(self, node: str) -> None:
        """Kill a node's agent, and with it its pods and all that it runs; the node's own netns stays."""
        if (pid := self._pids.pop(f"agent {node}", None)) is not None:
            os.kill(pid, signal.SIGKILL)

    async def gone(self, worker: NodeWorker) -> None:
        """Wait until an agent that was killed is gone, and its channel with it. Raises NotConverged."""
        until = time.monotonic() + patient(ENDS_WITHIN)
        while worker.alive:
            if time.monotonic() > until:
                raise NotConverged(f"{_agent_of(worker.name)} has ended", patient(ENDS_WITHIN))
            await asyncio.sleep(0.01)

    async def boot(self, node: str) -> None:
        """Start an agent for a node that crashed, whose netns holds nothing any more. Raises TestbedError."""
        self.plane.rebooted(node)
        await self.begin(node)

    def owner(self, address: str) -> str:
        """The machine of the fabric that has an address; "": none."""
        try:
            return Graph(self._topo).owner(address)
        except KeyError:
            return ""

    async def readdress(self, node: str, addresses: Sequence[str]) -> None:
        """Give a machine of the fabric other addresses, with prefix length, and tell the routers of it.

        Raises TestbedError.
        """
        answer, _ = await self.fabric.request(Readdress(self.fabric.new_id(), node, tuple(addresses)))
        if isinstance(answer, Failed):
            raise SandboxFailed(answer)
        self._topo.nodeInfo(node)["ips"] = list(addresses)
        self._balancer.fabric_changed()
        self.plane.fabric_changed(tuple(Router(*each) for each in routers(self._topo)))

    async def tell_routers(self) -> None:
        """Have the routers that run daemons run what the dataplane has for them now. Raises TestbedError."""
        for router, daemons in self.plane.router_daemons().items():
            if router in self._routers:
                with suppress(ChannelClosed):  # one that is started again gets them then
                    await self._run_on_router(router, self._routers[router], daemons)

    async def _start_routers(self) -> None:
        """Have the fabric's routers run the daemons that the dataplane has for them. Raises TestbedError."""
        for router in self.plane.router_daemons():
            try:
                await self._start_router(router)
            except ChannelClosed as error:
                if self.fabric.closed or self.zygote.closed:
                    raise
                await self._hear_of_ends([ROUTER + router])
                raise AgentsEnded([f"the agent of router {router}"]) from error

    async def _start_router(self, router: str) -> None:
        (netns,) = await self.netns_of(self.fabric, [router])
        self._routers[router] = channel = await self.spawn_channel(ROUTER + router, AGENT_ENTRY, netns)
        await self._run_on_router(router, channel, self.plane.router_daemons()[router])

    @staticmethod
    async def _run_on_router(
        router: str, channel: AsyncChannel[AnyMessage], daemons: Mapping[str, Daemon]
    ) -> None:
        answer, _ = await channel.request(Apply(channel.new_id(), (RunDaemons(dict(daemons)),)))
        if not isinstance(answer, Applied) or answer.failed:
            raise TestbedError(f"router {router}: {getattr(answer, 'failed', answer)}")

    async def _run_router_again(self, router: str) -> None:
        """What a router's init does about daemons that are gone, after a moment."""
        self._routers.pop(router).close()
        await asyncio.sleep(ROUTER_BACKOFF)
        try:
            await self._start_router(router)
        except (TestbedError, ChannelClosed) as error:  # where its agent ended again, so is this
            log.error("router %s runs no daemons: %s", router, error)

    # --- for the load balancers ---------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The cluster as it is now."""
        return self.plane.snapshot()

    def settled(self) -> None:
        """Load balancers are what they should be."""
        self.plane.worker_done()

    async def start_checker(self) -> AsyncChannel[AnyMessage]:
        """A channel to a new process for health checks in the gateway's netns."""
        (netns,) = await self.netns_of(self.fabric, [self.spec.topology.gateway_name])
        return await self.spawn_channel("checker", CHECKER_ENTRY, netns)

    # --- what ends ------------------------------------------------------------------------------------

    async def _watch_zygote(self) -> None:
        try:
            while True:
                message, _ = await self.zygote.receive()
                if not isinstance(message, Ended):
                    continue
                if self._pids.get(message.name) == message.pid:
                    del self._pids[message.name]  # the number may be another's soon
                if message.status:
                    # A node whose agent ended says nothing more, which its controller notices in time.
                    log.warning("%s ended with %d", message.name, message.status)
                    if (router := message.name.removeprefix(ROUTER)) in self._routers:
                        self.background(self._run_router_again(router))
        except ChannelClosed:
            log.error("the zygote is gone")

    # --- where programs run -------------------------------------------------------------------------

    def pod_target(self, namespace: str, name: str, container: str) -> Target:
        """A pod's namespaces, with the environment of ``container`` (default: the first). Raises ApiError."""
        pod = self.plane.typed(self.plane.pod_uid(namespace, name))
        names = [entry.name for entry in pod.containers]
        if container and container not in names:
            raise ApiError.bad_request(f"container {container} is not valid for pod {name}")
        env = self.plane.environment(pod, container or names[0])
        return Target(_agent_of(pod.node), self._agent(pod.node), pod.uid, env)

    def node_target(self, node: str) -> Target:
        """A node's own namespaces. Raises ApiError."""
        self.plane.store.get("Node", "", node)
        return Target(_agent_of(node), self._agent(node), NODE, HOST_ENV)

    def host_target(self, host: str) -> Target:
        """A host of the fabric: outside hosts, routers, the control plane. Raises ApiError."""
        if host not in self.hosts:
            raise ApiError.of(404, "NotFound", f'no host "{host}": there are {", ".join(sorted(self.hosts))}')
        return Target("the fabric", self.fabric, host, HOST_ENV)

    def _agent(self, node: str) -> AsyncChannel[AnyMessage]:
        worker = self.plane.workers.get(node)
        if worker is None or worker.channel.closed:
            raise ApiError.of(503, "ServiceUnavailable", f"{_agent_of(node)} does not answer")
        return worker.channel

    def agent(self, node: str) -> AsyncChannel[AnyMessage]:
        """The channel to a node's agent. Raises ApiError."""
        return self._agent(node)

    # --- what there is ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The cluster in one object, for people and scripts."""
        pods = self.plane.store.list("Pod")
        return {
            "kind": "ClusterStatus",
            "apiVersion": "testbed/v1",
            "metadata": {"name": self.name},
            "spec": self.spec.document,
            "nodes": len(self.plane.store.list("Node")),
            "pods": len(pods),
            "running": sum(pod.get("status", {}).get("phase") == "Running" for pod in pods),
            "waiting": self.plane.waiting_pods(),
            "failing": self.plane.failing_nodes(),
            "hosts": self.hosts,
            "links": [list(link) for link in self.links],
            "seconds": self.seconds,
        }


def _agent_of(node: str) -> str:
    return f"the agent of node {node}"
