"""What faults reach the running cluster with: programs in its namespaces, readings of its kernel, its plane.

Programs on nodes, hosts and switches are run by the fabric, which is there whatever became of a node's agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from testbed.cluster.messages import (
    AnyMessage,
    ChangeEnd,
    Done,
    Exec,
    Exited,
    Failed,
    NetnsRead,
    ReadNetns,
    Signal,
    Started,
)
from testbed.cluster.runtime import HOST_ENV, Runtime, SandboxFailed
from testbed.control.snapshot import Pod
from testbed.dataplane.weave.ring import Ring
from testbed.errors import CommandFailed, TestbedError
from testbed.faults.model import EndState
from testbed.faults.target import Link
from testbed.kernel.channel import AsyncChannel
from testbed.state import NODE, NetnsState, NodeState


class Program:
    """A program that goes on running until it is stopped."""

    def __init__(self, channel: AsyncChannel[AnyMessage], request: int) -> None:
        self._channel, self._request = channel, request

    def stop(self) -> None:
        """Kill it, if whoever runs it is still there."""
        if not self._channel.closed:
            self._channel.send(Signal(self._request, signal.SIGKILL))


class Hands:
    """Acts on one running cluster. ends: of links, those that are not as the topology has them.

    By ``Target.fault``: kept, what faults have running; before, what they have read before they acted.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.plane = runtime.plane
        self.ends: dict[tuple[str, str], EndState] = {}
        self.before: dict[str, Any] = {}
        self._cut: dict[str, set[str]] = {}
        self._seen: dict[str, asyncio.Event] = {}
        self.kept: dict[str, list[Program | asyncio.Task[None]]] = {}

    def keep(self, key: str, running: Program | asyncio.Task[None]) -> None:
        """Remember something that runs, to be stopped by ``stopped``."""
        self.kept.setdefault(key, []).append(running)

    def seen(self, key: str) -> asyncio.Event:
        """Set when what a fault does was seen in the kernel, for those who wait for that."""
        return self._seen.setdefault(key, asyncio.Event())

    async def stopped(self, key: str) -> None:
        """Stop all that runs under a key; nothing of it is at work any more when this returns."""
        self._seen.pop(key, None)
        for each in self.kept.pop(key, []):
            if isinstance(each, Program):
                each.stop()
                continue
            each.cancel()
            await asyncio.wait([each])
            if not each.cancelled() and (error := each.exception()) is not None:
                raise error

    @property
    def ring(self) -> Ring:
        """Where pods have their addresses of with weave. Raises TestbedError elsewhere."""
        if not isinstance(self.plane.ipam, Ring):
            raise TestbedError("this cluster's addresses are no ring")
        return self.plane.ipam

    def alive(self, node: str) -> bool:
        """Whether a node has an agent; none where it has left."""
        worker = self.plane.workers.get(node)
        return worker is not None and worker.alive

    def idle(self, node: str) -> bool:
        """Whether nothing is to be done for a node; nothing is where it has left."""
        worker = self.plane.workers.get(node)
        return worker is None or worker.idle

    def crash(self, node: str) -> None:
        """Kill a node's agent; what was applied there is remembered. Raises ApiError where it has none."""
        self.runtime.agent(node)
        self.runtime.crashed[node] = self.plane.workers[node].applied
        self.runtime.crash(node)

    def crashed(self, node: str) -> bool:
        """Whether a node's agent was killed, and no other started."""
        return node in self.runtime.crashed

    async def boot(self, node: str) -> None:
        """Start an agent for a node that crashed; on one that has left meanwhile none begins. Raises
        TestbedError."""
        if (worker := self.plane.workers.get(node)) is not None:
            await self.runtime.gone(worker)
            await self.runtime.boot(node)
        del self.runtime.crashed[node]

    def applied(self, node: str) -> NodeState:
        """What a node had been brought to when it crashed."""
        return self.runtime.crashed[node]

    def cut_off(self, node: str, key: str) -> None:
        """From now on nothing passes between a node and the API server; until ``reconnect`` by all keys."""
        if node in self.plane.workers:
            self._cut.setdefault(node, set()).add(key)
            self.plane.workers[node].pause()

    def reconnect(self, node: str, key: str) -> None:
        """Let them hear each other again, unless they are cut off for another reason, too."""
        keys = self._cut.get(node, set())
        if key not in keys:
            return
        keys.discard(key)
        worker = self.plane.workers.get(node)
        if not keys and worker is not None and worker.paused:
            worker.resume()

    async def qdiscs(self, end: tuple[str, str]) -> list[dict[str, Any]]:
        """``tc -json qdisc show`` of one end of a link. Raises CommandFailed."""
        node, port = end
        shown: list[dict[str, Any]] = await self.json(node, ["tc", "-json", "qdisc", "show", "dev", port])
        return shown

    async def run(self, where: str, argv: Sequence[str], stdin: str = "", *, fails: bool = False) -> str:
        """What a program printed that ran on a node, host or switch of the fabric.

        fails: its exit code does not matter. Raises CommandFailed.
        """
        try:
            return await self._run(self.runtime.fabric, where, argv, stdin, where)
        except CommandFailed:
            if not fails:
                raise
            return ""

    async def run_in(self, pod: Pod, argv: Sequence[str], stdin: str = "") -> str:
        """As ``run``, inside a pod. Raises CommandFailed, ApiError where its agent is gone."""
        agent = self.runtime.agent(pod.node)
        return await self._run(agent, pod.uid, argv, stdin, f"{pod.namespace}/{pod.name}")

    async def start(self, where: str, argv: Sequence[str]) -> Program:
        """Have a program run on a node, host or switch of the fabric from now on. Raises CommandFailed."""
        return await self._start(self.runtime.fabric, where, argv, HOST_ENV, where)

    async def start_in(self, pod: Pod, argv: Sequence[str]) -> Program:
        """Have a program run inside a pod from now on. Raises CommandFailed, ApiError."""
        agent = self.runtime.agent(pod.node)
        env = self.runtime.pod_target(pod.namespace, pod.name, "").env
        return await self._start(agent, pod.uid, argv, env, f"{pod.namespace}/{pod.name}")

    @staticmethod
    async def _start(
        channel: AsyncChannel[AnyMessage], where: str, argv: Sequence[str], env: dict[str, str], place: str
    ) -> Program:
        request = channel.new_id()
        null = os.open(os.devnull, os.O_RDWR)
        try:
            answer, _ = await channel.request(Exec(request, where, tuple(argv), env), [null, null, null])
        finally:
            os.close(null)
        if isinstance(answer, Failed):
            raise CommandFailed(argv, answer.exit_code, answer.message, place)
        return Program(channel, request)

    async def json(self, where: str, argv: Sequence[str]) -> Any:
        """As ``run``, for a program that prints JSON."""
        return json.loads(await self.run(where, argv) or "[]")

    async def read(self, node: str, where: str = NODE) -> NetnsState:
        """What the kernel holds of a node's netns or (by uid) of a pod's. Raises TestbedError."""
        agent = self.runtime.agent(node)
        answer, _ = await agent.request(ReadNetns(agent.new_id(), where))
        if isinstance(answer, NetnsRead):
            return answer.state
        raise TestbedError(f"{node}: cannot be read: {getattr(answer, 'message', answer)}")

    async def change_end(self, end: tuple[str, str], state: EndState) -> None:
        """Have one end of a link be so. Raises MissingCapability where the kernel cannot."""
        fabric = self.runtime.fabric
        node, port = end
        asked = ChangeEnd(fabric.new_id(), node, port, state.up, state.mtu, dict(state.shaping))
        answer, _ = await fabric.request(asked)
        if isinstance(answer, Failed):
            raise SandboxFailed(answer)
        if not isinstance(answer, Done):
            raise TestbedError(f"the fabric answered {type(answer).__name__}")

    async def device(self, end: tuple[str, str]) -> Mapping[str, Any]:
        """``ip -json -details link show`` of one end of a link. Raises CommandFailed."""
        node, port = end
        shown: list[dict[str, Any]] = await self.json(
            node, ["ip", "-json", "-details", "link", "show", "dev", port]
        )
        return shown[0]

    async def down(self, link: Link) -> bool:
        """Whether neither end of a link carries anything."""
        flags = [(await self.device(end))["flags"] for end in link.ends]
        return not any("LOWER_UP" in each and "UP" in each for each in flags)

    async def _run(
        self, channel: AsyncChannel[AnyMessage], where: str, argv: Sequence[str], stdin: str, place: str
    ) -> str:
        with ExitStack() as files:
            stdio = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
            for fd in stdio:
                files.callback(os.close, fd)
            os.pwrite(stdio[0], stdin.encode(), 0)
            request = channel.new_id()
            with channel.expect(request) as answers:
                channel.send(Exec(request, where, tuple(argv), HOST_ENV), stdio)
                answer, _ = await answers.next()
                while isinstance(answer, Started):
                    answer, _ = await answers.next()
            stdout, stderr = (
                os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace") for fd in stdio[1:]
            )
        if isinstance(answer, Failed):
            raise CommandFailed(argv, answer.exit_code, answer.message, place)
        if not isinstance(answer, Exited) or answer.code:
            raise CommandFailed(argv, getattr(answer, "code", 1), stderr, place)
        return stdout
