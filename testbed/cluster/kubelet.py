"""The kubelet's part of a node's agent: runs probes, restarts containers, ends pods gracefully.

What a result means is decided in ``control.probes``; here are the timers, the processes and the telling.
A pod without probes, commands or a wish to linger is not known here and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections.abc import Callable
from typing import Any, Literal

from msgspec.structs import replace

from testbed.cluster import probers
from testbed.cluster.messages import PodChanged, PodEnded, PodEvent
from testbed.cluster.nameserver import Nameserver, Nameservers
from testbed.cluster.probers import Outcome
from testbed.cluster.programs import Log, Programs
from testbed.control import probes
from testbed.control.podstatus import unstarted
from testbed.control.probes import Backoff, Probing
from testbed.errors import TestbedError
from testbed.kernel import process
from testbed.state import ContainerState, PodState, Probe

log = logging.getLogger(__name__)

Tell = Callable[[Any], None]
Serve = Callable[[str, frozenset[str]], None]
"""Have the built-in servers of a pod (uid) answer for all containers but these."""

SERVER_KILLED = 128 + signal.SIGTERM
"""The exit code of a built-in server that a probe ends."""
START_ERROR = 128
"""The exit code of a container whose command cannot be run, as containerd has it."""
PROBE_TRIES = 3
"""``pkg/kubelet/prober``: maxProbeRetries."""
NEW_LINK_SECONDS = 2.0
"""The kernel may take a second until a bridge forwards to a new port (``net/core/link_watch.c``). A real
pod's network is older than that when its container starts, so a probe this early that hears nothing is
tried again."""
MAX_OUTPUT = 10 << 10
"""Bytes of a command's output that an event shows, as ``pkg/probe/exec`` limits it."""


class Kubelet:
    """The pods of one node that have something to watch. tell: sends a message to the daemon."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        programs: Programs,
        nameservers: Nameservers,
        tell: Tell,
        serve: Serve,
    ) -> None:
        self.loop, self.programs, self.tell, self.serve = loop, programs, tell, serve
        self.nameservers = nameservers
        self._pods: dict[str, _Pod] = {}

    def start(self, pod: PodState) -> None:
        """The pod is made: run its commands and probes."""
        if pod.probes or pod.commands or pod.nameservers:
            self._pods[pod.uid] = _Pod(self, pod)
            self._pods[pod.uid].begin()
        if pod.grace is not None:
            self.update(pod)

    def update(self, pod: PodState) -> None:
        """The pod changed; with a ``grace`` it is to end."""
        known = self._pods.get(pod.uid)
        if known is None and pod.grace is not None:
            known = self._pods[pod.uid] = _Pod(self, pod)
        if known is not None:
            known.state = pod
            if pod.grace is not None:
                known.end(pod.grace)

    def stop(self, uid: str) -> None:
        """The pod is being removed: forget it. Its programs are killed by ``Programs.stop``."""
        if known := self._pods.pop(uid, None):
            known.close()

    def down(self, uid: str) -> frozenset[str]:
        """The pod's containers that do not run now, so that nothing answers for them."""
        return self._pods[uid].down if uid in self._pods else frozenset()

    def close(self) -> None:
        """Forget every pod."""
        for uid in list(self._pods):
            self.stop(uid)


class _Pod:
    """One pod: its containers that have probes or commands, and its end."""

    def __init__(self, kubelet: Kubelet, state: PodState) -> None:
        self.kubelet, self.state = kubelet, state
        names = list(dict.fromkeys([*state.commands, *state.nameservers, *state.probes]))
        self._containers = {name: _Container(self, name) for name in names}
        self._flush: asyncio.Handle | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.ending = self._lingering = self._told = False
        self._linger_until = self._deadline = math.inf  # the loop's clock: when SIGTERM comes, and SIGKILL

    def begin(self) -> None:
        for container in self._containers.values():
            container.begin()

    def close(self) -> None:
        if self._flush:
            self._flush.cancel()
        for timer in self._timers:
            timer.cancel()
        for container in self._containers.values():
            container.close()

    @property
    def down(self) -> frozenset[str]:
        return frozenset(name for name, one in self._containers.items() if one.state.state != "running")

    def changed(self) -> None:
        """Tell the daemon soon, once for all that changes now."""
        if self._flush is None:
            self._flush = self.kubelet.loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._flush = None
        states = tuple(container.state for container in self._containers.values())
        self.kubelet.tell(PodChanged(self.state.uid, states))

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self.kubelet.tell(PodEvent(self.state.uid, kind, reason, message))

    def serve(self) -> None:
        """Have the built-in servers answer for the containers that run."""
        try:
            self.kubelet.serve(self.state.uid, self.down)
        except (OSError, TestbedError) as error:
            self.event("Warning", "Failed", str(error))

    # --- the end ------------------------------------------------------------------------------------

    def end(self, grace: float) -> None:
        """End within ``grace`` seconds: servers and commands go on as long as they linger, then SIGTERM,
        and SIGKILL for what is left when the time is over. Said again, it can only become shorter."""
        loop = self.kubelet.loop
        deadline = loop.time() + grace
        if deadline >= self._deadline:
            return
        self._deadline = deadline
        for timer in self._timers:
            timer.cancel()
        if not self.ending:
            self.ending = self._lingering = True
            self._linger_until = loop.time() + self.state.linger
            for container in self._containers.values():
                container.retire()
        self._timers = [loop.call_at(deadline, self._kill)]
        if self._lingering:
            self._timers.append(loop.call_at(min(self._linger_until, deadline), self._terminate))

    def _terminate(self) -> None:
        self._lingering = False
        for container in self._containers.values():
            container.signal(signal.SIGTERM)
        self.ended()

    def _kill(self) -> None:
        for container in self._containers.values():
            container.signal(signal.SIGKILL)

    def ended(self) -> None:
        """Tell the daemon, if nothing of the pod runs any more."""
        ended = self.ending and not self._lingering and not any(c.running for c in self._containers.values())
        if ended and not self._told:
            self._told = True
            self.kubelet.tell(PodEnded(self.state.uid))


class _Container:
    """One container: its run, the probes of that run, and when the next run begins."""

    def __init__(self, pod: _Pod, name: str) -> None:
        self._pod, self.name = pod, name
        self._probes = pod.state.probes.get(name, ())
        self._backoff = Backoff(*pod.state.backoff)
        self._probing = Probing(self._probes)
        self._handles: dict[str, asyncio.Handle | asyncio.Task[None]] = {}
        self._killed = False
        self.pid = 0
        self._nameserver: Nameserver | None = None
        self._begun_with = pod.state
        self.state = self._fresh()

    @property
    def _argv(self) -> tuple[str, ...]:
        return self._pod.state.commands.get(self.name, ())

    @property
    def _built_in(self) -> bool:
        """Whether the agent's own servers answer for it, not a program."""
        return not self._argv and self.name not in self._pod.state.nameservers

    @property
    def running(self) -> bool:
        """Whether a program of it runs."""
        return bool(self.pid or self._nameserver)

    def close(self) -> None:
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    def retire(self) -> None:
        """The pod is to end: no more restarts, and of the probes only readiness goes on."""
        for key in [key for key in self._handles if key != "readiness"]:
            self._handles.pop(key).cancel()

    def signal(self, number: int) -> None:
        """Send a signal to the container's program, if it has one that runs."""
        if self.pid:
            self._pod.kubelet.programs.signal(self.pid, number)
        if self._nameserver:
            self._nameserver.signal(number)

    # --- runs ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the container for the first time."""
        self._run()

    def _again(self) -> None:
        """Start it once more."""
        last = self.state.last or self.state
        self.state = replace(self._fresh(), restarts=last.restarts + 1, last=replace(last, last=None))
        self._run()
        if self._built_in:
            self._pod.serve()
        self._pod.changed()

    def _fresh(self) -> ContainerState:
        """The container as it is when it has just been started."""
        kinds = {self.name: [probe.kind for probe in self._probes]}
        (state,) = unstarted(kinds, [self.name], time.time())
        return state

    def _run(self) -> None:
        self._probing, self._killed = Probing(self._probes), False
        pod = self._begun_with = self._pod.state
        if self.name in pod.nameservers:  # probed from when it first answers
            output = self._pod.kubelet.programs.log(pod.uid, self.name)
            start = self._pod.kubelet.nameservers.start
            self._nameserver = start(pod, self.name, output, self._schedule, self._exited)
            return
        if self._argv:
            try:
                self.pid = self._pod.kubelet.programs.start_command(pod, self.name, self._argv, self._exited)
            except (OSError, TestbedError) as error:
                log.warning("pod %s/%s: container %s: %s", pod.namespace, pod.name, self.name, error)
                self._pod.event("Warning", "Failed", f"Error: {error}")
                self._over(START_ERROR, "StartError", str(error))
                return
        self._schedule()

    def _exited(self, wait_status: int) -> None:
        self.pid, self._nameserver = 0, None
        code = process.exit_code(wait_status)
        self._over(code, "Error" if code else "Completed")

    def _over(self, code: int, reason: str, message: str = "") -> None:
        self.close()
        self.state = replace(
            self.state,
            state="terminated",
            ready=False,
            started=False,
            ended=time.time(),
            exit_code=code,
            reason=reason,
            message=message,
            last=None,
        )
        pod = self._pod.state
        if self._pod.ending:
            self._pod.ended()
        elif probes.restarts(pod.restart_policy, code, killed=self._killed):
            self._restart()
        elif self._built_in:
            self._pod.serve()
        self._pod.changed()

    def _restart(self) -> None:
        wait = self._backoff.wait(self.state.ended)
        if not wait:
            self._again()
            return
        pod = self._pod.state
        where = self.name, pod.name, pod.namespace, pod.uid
        self.state = replace(
            self.state,
            state="waiting",
            reason="CrashLoopBackOff",
            message=probes.waiting_text(wait, *where),
            last=self.state,
        )
        self._pod.event("Warning", "BackOff", probes.backoff_text(*where))
        if self._built_in:
            self._pod.serve()
        self._handles["restart"] = self._pod.kubelet.loop.call_later(wait, self._again)

    # --- probes -------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Have those probes run that may and do not yet."""
        for probe in self._probes:
            if self._probing.runs(probe.kind) and probe.kind not in self._handles:
                due = self.state.begun + probe.delay - time.time()
                self._handles[probe.kind] = self._pod.kubelet.loop.call_later(max(0, due), self._due, probe)

    def _due(self, probe: Probe) -> None:
        self._handles[probe.kind] = self._pod.kubelet.loop.create_task(self._probe(probe))

    async def _probe(self, probe: Probe) -> None:
        """Run one probe and see to the next; cancelled when the run it belongs to is over."""
        loop = self._pod.kubelet.loop
        begun = loop.time()
        outcome = await self._outcome(probe)
        del self._handles[probe.kind]
        if outcome.success is None:
            self._pod.event("Warning", "Unhealthy", probes.errored_text(probe.kind, outcome.text))
        elif not outcome.success:
            self._pod.event("Warning", "Unhealthy", probes.failed_text(probe.kind, outcome.text))
        elif outcome.warning:
            text = f"{probe.kind.capitalize()} probe warning: {outcome.warning}"
            self._pod.event("Warning", "ProbeWarning", text)
        verdict = "same" if outcome.success is None else self._probing.feed(probe, outcome.success)
        if verdict == "kill":
            self._kill(probe)
            return
        if verdict == "changed":
            self.state = replace(self.state, ready=self._probing.ready, started=self._probing.started)
            self._pod.changed()
        if self._probing.runs(probe.kind):
            self._handles[probe.kind] = loop.call_at(begun + probe.period, self._due, probe)
        if not self._pod.ending:
            self._schedule()

    async def _outcome(self, probe: Probe) -> Outcome:
        if probe.problem:
            return Outcome(None, probe.problem)
        outcome = Outcome(None)
        for _ in range(PROBE_TRIES):
            try:
                outcome = await (self._execute(probe) if probe.how == "exec" else probers.run(probe))
            except Exception as error:  # noqa: BLE001 - whatever a server answers, the next probe is due
                outcome = Outcome(None, f"{type(error).__name__}: {error}")
            fresh = outcome.late and time.time() - self.state.begun < NEW_LINK_SECONDS
            if outcome.success is not None and not fresh:
                break
        return outcome

    async def _execute(self, probe: Probe) -> Outcome:
        """Run a probe's command in the pod, with the environment that the container was started with."""
        pod, output = replace(self._pod.state, env=self._begun_with.env), Log()
        over: asyncio.Future[int] = self._pod.kubelet.loop.create_future()

        def ended(status: int) -> None:
            if not over.done():
                over.set_result(process.exit_code(status))

        programs = self._pod.kubelet.programs
        try:
            pid = programs.run(pod, self.name, probe.command, output, ended)
        except (OSError, TestbedError) as error:
            return Outcome(False, str(error))
        try:
            code = await asyncio.wait_for(over, probe.timeout)
        except TimeoutError:
            what = " ".join(probe.command)
            return Outcome(False, f'command timed out: "{what}" timed out after {probe.timeout:g}s')
        finally:
            programs.signal(pid, signal.SIGKILL)
        return Outcome(code == 0, bytes(output)[:MAX_OUTPUT].decode(errors="replace"))

    def _kill(self, probe: Probe) -> None:
        """A probe wants the container ended and, where its pod's policy allows, started again."""
        self.close()
        self._killed = True
        self._pod.event("Normal", "Killing", probes.killing_text(self.name, probe.kind))
        if self._built_in:
            self._over(SERVER_KILLED, "Error")
            return
        self.signal(signal.SIGTERM)
        self._handles["kill"] = self._pod.kubelet.loop.call_later(probe.grace, self.signal, signal.SIGKILL)
