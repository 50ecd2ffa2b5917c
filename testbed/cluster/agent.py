"""The agent of one node: lives in the node's netns, makes its pods, applies changes, serves and executes.

One thread, one loop. While it is inside a pod's netns it does nothing but open that pod's sockets.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial

import msgspec

from testbed.apps import apps
from testbed.apps.server import Opened, Server
from testbed.cluster.apply import apply
from testbed.cluster.canaries import Canaries
from testbed.cluster.daemons import Daemons
from testbed.cluster.files import Files
from testbed.cluster.kubelet import Kubelet, Tell
from testbed.cluster.messages import (
    AnyMessage,
    Applied,
    Apply,
    Beat,
    CheckSandbox,
    Connections,
    Done,
    Exec,
    Exited,
    Failed,
    FeedNames,
    GetNetns,
    Heartbeat,
    KeepRules,
    ListConnections,
    MarkConnections,
    Netns,
    NetnsRead,
    ReadNetns,
    RulesLost,
    Signal,
    Started,
)
from testbed.cluster.nameserver import Nameservers, Surroundings
from testbed.cluster.programs import Programs
from testbed.cluster.repairs import Repairs
from testbed.cluster.sandboxes import Sandboxes
from testbed.errors import KernelRefused, TestbedError
from testbed.kernel import conntrack, execute, process
from testbed.kernel.apply import Kernel, RealKernel
from testbed.kernel.channel import AsyncChannel, ChannelClosed
from testbed.policy.plan import CUT
from testbed.state import NODE, Daemon, Listener, PluginList, PodState, Sandbox

log = logging.getLogger(__name__)

HEALTH_TIMEOUT = 60.0
"""Seconds that rules may be late until kube-proxy calls itself unhealthy: twice its syncPeriod."""


def preload() -> None:
    """Load, in the process that forks agents, what each of them would load for itself."""
    apps.discover()
    importlib.import_module("testbed.apps.wire.http1")


def main(sock: socket.socket, name: str) -> None:
    """Serve the daemon at the other end of ``sock``, in the netns this process was started in.

    name: the node's, perhaps after a word that says what this process is. Returns when the daemon is gone.
    """
    with closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(_serve(sock, name.rpartition(" ")[2]))


async def _serve(sock: socket.socket, node: str) -> None:
    agent = Agent(AsyncChannel(sock, AnyMessage), node)
    try:
        await agent.run()
    finally:
        agent.close()


class Pods:
    """The node's pods as their servers and programs see them: the ``Tenants`` of its kernel."""

    def __init__(
        self,
        server: Server,
        programs: Programs,
        nameservers: Nameservers,
        daemons: Daemons,
        sandboxes: Sandboxes,
        files: Files,
        tell: Tell,
        kernel: Kernel,
    ) -> None:
        self.server, self.programs, self._kernel = server, programs, kernel
        self.nameservers, self.daemons, self.sandboxes = nameservers, daemons, sandboxes
        self.files = files
        self.kubelet = Kubelet(server.loop, programs, nameservers, tell, self._serve)
        self._states: dict[str, PodState] = {}
        self._opened: dict[str, list[Opened]] = {}
        self._listeners: tuple[Listener, ...] = ()
        self._failing_since: float | None = None
        self._healthy = True

    def __getitem__(self, uid: str) -> PodState:
        if uid not in self._states:
            raise KernelRefused(f"find pod {uid}", errno.ENOENT, "no such pod")
        return self._states[uid]

    def open(self, pod: PodState) -> None:
        """Open the sockets of the pod, in whose netns this is called."""
        self._opened[pod.uid] = self.server.open(pod)

    def start(self, pod: PodState) -> tuple[str, ...]:
        """Serve them and run the pod's commands."""
        self._states[pod.uid] = pod
        problems = self.server.start(pod, self._opened.pop(pod.uid, []))
        self.kubelet.start(pod)
        return problems

    def update(self, pod: PodState) -> tuple[str, ...]:
        """Serve the changed pod; running programs keep the files and environment they started with."""
        self._states[pod.uid] = pod
        self.kubelet.update(pod)
        return self._listen(_without(pod, self.kubelet.down(pod.uid)))

    def _listen(self, pod: PodState) -> tuple[str, ...]:
        """Serve the pod's listeners, and no others; in the pod's netns."""
        return self.server.update(pod, self.server.open(pod))

    def serve_node(self, listeners: tuple[Listener, ...]) -> None:
        """Answer on the node itself, as what runs there beside the pods does."""
        self._listeners = listeners
        if not self._healthy:
            sick = {"healthy": "false"}
            listeners = tuple(
                msgspec.structs.replace(one, options={**one.options, **sick}) for one in listeners
            )
        own = PodState(NODE, "", "kube-proxy", "", host_network=True, listeners=listeners)
        self.server.update(own, self.server.open(own))

    def run_daemons(self, daemons: Mapping[str, Daemon]) -> None:
        """Run these on the node, and no others."""
        self.daemons.run(daemons)

    def load_plugins(self, plugins: PluginList) -> None:
        """Have the runtime use these plugins."""
        self.sandboxes.load(plugins)

    def change_sandboxes(self, add: Sequence[Sandbox], remove: Sequence[str]) -> None:
        """Have plugins wire these sandboxes and take those down, in their own time."""
        self.sandboxes.change(add, remove)

    def write_files(self, files: Mapping[str, str]) -> None:
        """Have programs on the node see these files."""
        self.files.write(files)

    def rules_made(self, made: bool) -> None:
        """The node could be brought to its state, or not: for long, and health checks say so."""
        now = self.server.loop.time()
        self._failing_since = None if made else self._failing_since or now
        healthy = self._failing_since is None or now - self._failing_since < HEALTH_TIMEOUT
        if healthy != self._healthy:
            self._healthy = healthy
            self.serve_node(self._listeners)

    def _serve(self, uid: str, down: frozenset[str]) -> None:
        self._kernel.enter(uid, partial(self._listen, _without(self[uid], down)))

    def stop(self, uid: str) -> None:
        """Close the pod's sockets and kill its programs."""
        for opened in self._opened.pop(uid, []):
            if opened.sock is not None:
                opened.sock.close()
        self._states.pop(uid, None)
        self.kubelet.stop(uid)
        self.nameservers.stop(uid)
        self.server.stop(uid)
        self.programs.stop(uid)


def _without(pod: PodState, down: frozenset[str]) -> PodState:
    """The pod without the listeners of containers that do not run."""
    if not down:
        return pod
    return msgspec.structs.replace(
        pod, listeners=tuple(listener for listener in pod.listeners if listener.container not in down)
    )


class Agent:
    """Answers the daemon's requests about one node."""

    def __init__(self, channel: AsyncChannel[AnyMessage], node: str) -> None:
        loop = asyncio.get_running_loop()
        self._channel, self._node = channel, node
        self._kernel = RealKernel()
        self._children = process.Children(loop)
        programs = Programs(loop, self._children, self._kernel.netns)
        around = Surroundings(loop, programs, self._children, self._kernel)
        nameservers = Nameservers(around, self._tell)
        daemons = Daemons(loop, self._children, node)
        sandboxes = Sandboxes(loop, self._children, node, self._tell)
        self._kernel.sandbox = sandboxes.netns
        files = Files(node)
        self._pods = Pods(
            Server(loop), programs, nameservers, daemons, sandboxes, files, self._tell, self._kernel
        )
        self._executed: dict[int, int] = {}  # request id → pid
        self._beat: asyncio.TimerHandle | None = None
        self._canaries = Canaries(loop, self._lost)
        self._repairs = Repairs(loop, self._kernel, node, self._lost)

    async def run(self) -> None:
        """Answer until the daemon is gone."""
        try:
            while True:
                message, fds = await self._channel.receive()
                try:
                    self._handle(message, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except ChannelClosed:
            return

    def close(self) -> None:
        """End every program, close every socket and let the pods go."""
        if self._beat:
            self._beat.cancel()
        self._canaries.close()
        self._repairs.close()
        self._pods.kubelet.close()
        self._pods.nameservers.close()
        self._pods.daemons.close()
        self._pods.sandboxes.close()
        self._pods.files.close()
        self._children.kill_all()
        self._pods.server.close()
        self._kernel.close()

    def _tell(self, message: AnyMessage) -> None:
        if not self._channel.closed:  # nobody is left to tell while the agent ends
            self._channel.send(message)

    def _lost(self, what: str) -> None:
        """Rules are gone: have all of them applied again."""
        self._tell(RulesLost(what))

    def _live(self, seconds: float) -> None:
        """Say every ``seconds`` that this node lives."""
        if self._beat:
            self._beat.cancel()
        self._tell(Heartbeat())
        self._beat = asyncio.get_running_loop().call_later(seconds, self._live, seconds)

    def _handle(self, message: AnyMessage, fds: list[int]) -> None:
        try:
            match message:
                case Apply():
                    outcome = apply(self._kernel, message.changes, self._pods)
                    self._canaries.applied(message.changes)
                    self._repairs.applied(message.changes)
                    self._pods.rules_made(NODE not in outcome.failed)
                    seconds = dict(outcome.seconds)
                    self._channel.send(Applied(message.id, outcome.failed, outcome.warnings, seconds))
                case ListConnections():
                    self._channel.send(Connections(message.id, tuple(conntrack.connections(CUT))))
                case MarkConnections():
                    conntrack.mark(message.keys, CUT)
                    self._channel.send(Done(message.id))
                case Beat():
                    self._live(message.seconds)
                case KeepRules():
                    self._kernel.use(message.backend)
                    self._canaries.keep(message.backend, message.period)
                    self._repairs.keep(message.backend, message.upkeep)
                case CheckSandbox():
                    self._pods.sandboxes.check(message)
                case FeedNames():
                    self._pods.nameservers.feed(message)
                case GetNetns():
                    held = [self._kernel.netns(name) for name in message.names]
                    self._channel.send(Netns(message.id, message.names), held)
                case ReadNetns():
                    self._channel.send(NetnsRead(message.id, self._kernel.read(message.where)))
                case Exec():
                    self._exec(message, (fds[0], fds[1], fds[2]))
                case Signal():
                    if (pid := self._executed.get(message.id)) is not None:
                        self._children.signal(pid, message.number, group=True)
                case _:
                    log.error("unexpected message %r", message)
        except TestbedError as error:
            self._channel.send(Failed(getattr(message, "id", 0), str(error), error.exit_code))

    def _exec(self, message: Exec, stdio: tuple[int, int, int]) -> None:
        try:
            pid = self._spawn(message, stdio)
        except OSError as error:
            self._channel.send(Failed(message.id, execute.failure_text(error), execute.failure_code(error)))
            return
        except KernelRefused as error:
            self._channel.send(Failed(message.id, str(error), 126))
            return
        self._executed[message.id] = pid
        self._channel.send(Started(message.id, pid))

    def _spawn(self, message: Exec, stdio: tuple[int, int, int]) -> int:
        def ended(status: int) -> None:
            del self._executed[message.id]
            self._tell(Exited(message.id, process.exit_code(status)))

        argv, env, cwd, tty = message.argv, message.env, message.cwd, message.tty
        if message.where != NODE:
            pod = self._pods[message.where]
            return self._pods.programs.spawn(pod, argv, stdio, ended, env=env, cwd=cwd, tty=tty)
        volumes = self._pods.files.volumes()
        pid = execute.spawn(
            argv, env=env, cwd=cwd, stdio=stdio, hostname=self._node, volumes=volumes, tty=tty
        )
        self._children.watch(pid, ended)
        return pid
