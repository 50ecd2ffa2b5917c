"""One node's work in the daemon: compile when touched, take the difference, have the agent apply it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from testbed.cluster.messages import (
    AnyMessage,
    Applied,
    Apply,
    Change,
    ChangeNetns,
    ChangeSandboxes,
    Connection,
    Connections,
    Done,
    Heartbeat,
    ListConnections,
    MarkConnections,
    NamesFed,
    NetnsRead,
    NetworkStatus,
    PodChanged,
    PodEnded,
    PodEvent,
    ReadNetns,
    RulesLost,
    RunDaemons,
    SandboxFailed,
    SandboxGone,
    SandboxReady,
    WantNames,
)
from testbed.cluster.naming import Naming
from testbed.cluster.reconcile import NFT_PARTS, diff, restarted
from testbed.errors import TestbedError
from testbed.kernel.channel import AsyncChannel, ChannelClosed
from testbed.state import NODE, ContainerState, NetnsState, NodeState

log = logging.getLogger(__name__)

News = PodChanged | PodEvent | PodEnded | SandboxReady | SandboxFailed | SandboxGone | NetworkStatus
"""What an agent says unasked of its pods, and of what they need."""

RETRY_SECONDS = 1.0
"""How long after a failed apply the node is looked at again."""


class Plane(Protocol):
    """What a worker needs of the control plane."""

    naming: Naming

    def desired(self, node: str) -> NodeState:
        """What the node should look like now."""

    def pods_made(self, uids: list[str]) -> None:
        """These pods are in the kernel."""

    def pod_failed(self, uid: str, message: str, reason: str = ...) -> None:
        """This pod could not be made; reason: of the event that says so."""

    def sandbox_ready(self, uid: str, addresses: tuple[str, ...]) -> None:
        """The node gave a pod these addresses."""

    def sandbox_stuck(self, uid: str, message: str) -> None:
        """The node cannot take a pod's sandbox down yet."""

    def pod_warned(self, uid: str, message: str) -> None:
        """This pod was made, but something of it does not work."""

    def pods_removed(self, node: str, kept: list[str]) -> None:
        """Only the pods ``kept`` are on the node now."""

    def node_failed(self, node: str, message: str) -> None:
        """The node could not be brought to its state; "": now it is."""

    def services_applied(self, node: str, done: bool) -> None:
        """What ``desired`` gave last is in force on the node, or (not done) could not be brought there."""

    def judge(self, node: str) -> Callable[[Connection], bool] | None:
        """Whether open connections are still allowed, if what is says so changed on the node; else None."""

    def judged(self, node: str) -> None:
        """The node's open connections were dealt with as ``judge`` said."""

    def worker_done(self) -> None:
        """A round is over."""

    def network_status(self, node: str, message: str) -> None:
        """The plugins of the node's runtime cannot be used; "": they can."""

    def heard(self, node: str) -> None:
        """The node's agent said that it lives."""

    def pod_changed(self, uid: str, containers: tuple[ContainerState, ...]) -> None:
        """The node says how these containers of a pod are."""

    def pod_event(self, uid: str, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """The node has something to tell about a pod."""

    def pod_ended(self, uid: str) -> None:
        """Nothing of a pod that is being deleted runs any more."""


class NodeWorker:
    """Keeps one node's kernel state equal to the desired one. channel: to the node's agent.

    rounds: how many it began; done: the last of them after which the node's own netns was as desired.
    """

    def __init__(self, name: str, channel: AsyncChannel[AnyMessage], plane: Plane) -> None:
        self.name, self.channel, self._plane = name, channel, plane
        self._applied = NodeState()
        self._dirty = asyncio.Event()
        self._busy = self._gone = False
        self._problem = ""
        self._sandboxes: set[str] = set()  # uids of which the agent has something
        self._awaited: set[str] = set()  # those of which it has not said yet what came of them
        self._rules_lost = self._restarts = False
        self._going = asyncio.Event()
        self._going.set()
        self._unsaid: list[News] = []
        self.seconds: dict[str, float] = {}
        self.rounds = self.done = 0

    @property
    def applied(self) -> NodeState:
        """What the node was brought to last."""
        return self._applied

    @property
    def idle(self) -> bool:
        """Whether nothing is being done or waits; an agent that is gone does nothing any more."""
        waits = not self.paused and (self._dirty.is_set() or bool(self._awaited))
        return self._gone or not (self._busy or waits)

    @property
    def alive(self) -> bool:
        """Whether the node's agent is there."""
        return not self.channel.closed

    @property
    def paused(self) -> bool:
        """Whether nothing reaches the node, nor comes from it."""
        return not self._going.is_set()

    def pause(self) -> None:
        """Cut the node off from the control plane: its agent is not heard, and told of no change."""
        self._going.clear()
        self._plane.worker_done()

    def resume(self) -> None:
        """End that: the agent's news are heard now, and the node is brought up to date."""
        self._going.set()
        unsaid, self._unsaid = self._unsaid, []
        for message in unsaid:
            self._hear(message)
        self.touch()

    def touch(self) -> None:
        """Something that may concern this node changed; a node whose agent is gone stays as it is."""
        if not self._gone:
            self._dirty.set()

    async def run(self) -> None:
        """Work until the agent is gone (returns) or cancelled."""
        try:
            while True:
                await self._dirty.wait()
                await self._going.wait()
                self._dirty.clear()
                self._busy = True
                self.rounds += 1
                try:
                    await self._sync()
                except ChannelClosed:
                    raise
                except Exception as error:
                    # Compiling failed: what is wrong may be changed, and until then the rest goes on.
                    log.exception("%s: cannot be brought to its state", self.name)
                    self._plane.services_applied(self.name, False)
                    self._tell(f"{type(error).__name__}: {error}")
                    asyncio.get_running_loop().call_later(RETRY_SECONDS, self.touch)
                self._busy = False
                self._plane.worker_done()
        except ChannelClosed:
            self._busy, self._gone = False, True
            self._dirty.clear()
            self._plane.worker_done()

    async def listen(self) -> None:
        """Hand on what the agent says unasked, until it is gone or this is cancelled."""
        try:
            while True:
                message, _ = await self.channel.receive()
                match message:
                    case Heartbeat():
                        if not self.paused:
                            self._plane.heard(self.name)
                    case (
                        PodChanged()
                        | PodEvent()
                        | PodEnded()
                        | SandboxReady()
                        | SandboxFailed()
                        | SandboxGone()
                        | NetworkStatus()
                    ):
                        self._unsaid.append(message) if self.paused else self._hear(message)
                    case RulesLost():
                        log.warning("%s: %s: its rules are made again", self.name, message.message)
                        self.forget_rules()
                    case WantNames():
                        self._plane.naming.wanted(self.name, self.channel.send)
                    case NamesFed():
                        self._plane.naming.fed(self.name, message.serial, message.restarted)
                    case _:  # an answer that nobody waits for any more
                        log.debug("%s: %s", self.name, type(message).__name__)
        except ChannelClosed:
            self._plane.naming.gone(self.name)

    def _hear(self, message: News) -> None:
        match message:
            case PodChanged():
                self._plane.pod_changed(message.uid, message.containers)
            case PodEvent():
                self._plane.pod_event(message.uid, message.kind, message.reason, message.message)
            case PodEnded():
                self._plane.pod_ended(message.uid)
            case NetworkStatus():
                self._plane.network_status(self.name, message.message)
            case SandboxReady() | SandboxFailed() | SandboxGone():
                self._hear_of_sandbox(message)

    def _hear_of_sandbox(self, message: SandboxReady | SandboxFailed | SandboxGone) -> None:
        match message:
            case SandboxReady(uid, addresses):
                self._plane.sandbox_ready(uid, addresses)
            case SandboxFailed(uid, text, leaving=True):
                self._plane.sandbox_stuck(uid, text)
            case SandboxFailed(uid, text, reason=reason):
                self._plane.pod_failed(uid, text, reason)
            case SandboxGone(uid):
                self._sandboxes.discard(uid)
                self._tell_removed()
        self._awaited.discard(message.uid)
        self._plane.worker_done()

    def _tell_removed(self) -> None:
        """Say which pods are still on the node: with a sandbox, until plugins have taken it down."""
        self._plane.pods_removed(self.name, [*self._applied.pods, *self._sandboxes])

    def forget_rules(self) -> None:
        """The node's rules are no longer what was applied: apply all of them again."""
        self._rules_lost = True
        self.touch()

    def restart(self) -> None:
        """Have what makes the node's network start anew: daemons end, and all that it sets is set again."""
        self._restarts = True
        self.forget_rules()

    async def _found(self) -> NetnsState:
        """What the kernel has in the node's own netns. Raises TestbedError."""
        answer, _ = await self.channel.request(ReadNetns(self.channel.new_id(), NODE))
        if not isinstance(answer, NetnsRead):
            raise TestbedError(getattr(answer, "message", f"unexpected answer {type(answer).__name__}"))
        return answer.state

    def _tell(self, problem: str) -> None:
        """Say once that something is wrong with the node, and once that it no longer is."""
        if problem != self._problem:
            self._problem = problem
            self._plane.node_failed(self.name, problem)

    async def _sync(self) -> None:
        begun = time.monotonic()
        desired = self._plane.desired(self.name)
        ended: tuple[Change, ...] = ()
        if self._restarts:
            ended = (RunDaemons({}),) if self._applied.daemons else ()
            self._applied = restarted(self._applied, await self._found())
        elif self._rules_lost:
            lost: dict[str, Any] = {part: {} for part in ("chains", "ipsets", *NFT_PARTS)}
            netns = msgspec.structs.replace(self._applied.netns, **lost)
            self._applied = msgspec.structs.replace(self._applied, netns=netns)
        self._rules_lost = self._restarts = False
        changes = (*ended, *diff(self._applied, desired))
        if not changes and desired.netns is not self._applied.netns:
            # A look that finds nothing to change still is one: what an earlier one left for later is done.
            changes = (ChangeNetns(NODE, NetnsState(), NetnsState()),)
        compiled = time.monotonic()
        for change in changes:
            if isinstance(change, ChangeSandboxes):
                self._sandboxes |= {each.uid for each in change.add}
                self._awaited |= {each.uid for each in change.add} | (set(change.remove) & self._sandboxes)
        if changes:
            answer, _ = await self.channel.request(Apply(self.channel.new_id(), changes))
            if not isinstance(answer, Applied):  # nobody knows how far it came: do it again
                raise TestbedError(getattr(answer, "message", f"unexpected answer {type(answer).__name__}"))
            failed, warnings = answer.failed, answer.warnings
        else:
            failed, warnings = {}, {}
        if NODE in failed:
            log.error("%s: %s", self.name, failed[NODE])
        self._tell(failed.get(NODE, ""))
        if NODE not in failed:
            self.done = self.rounds
        self._plane.services_applied(self.name, NODE not in failed)
        refused = {uid: pod.refused for uid, pod in desired.pods.items() if pod.refused}
        stood = {uid for uid, pod in self._applied.pods.items() if not pod.refused}
        made = [uid for uid in desired.pods if uid not in failed.keys() | refused.keys() | stood]
        # What failed is not part of what was applied, so the next difference asks for it again.
        self._applied = msgspec.structs.replace(
            desired,
            netns=self._applied.netns if NODE in failed else desired.netns,
            daemons=self._applied.daemons if NODE in failed else desired.daemons,
            files=self._applied.files if NODE in failed else desired.files,
            pods={uid: pod for uid, pod in desired.pods.items() if uid not in failed},
        )
        self.seconds = {"compile": compiled - begun, "apply": time.monotonic() - compiled}
        log.debug("%s: %s", self.name, self.seconds)
        self._plane.pods_made(made)
        for uid, message in (refused | failed).items():
            self._plane.pod_failed(uid, message)
        for uid, messages in warnings.items():
            self._plane.pod_warned(uid, "; ".join(messages))
        self._tell_removed()
        if failed:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.touch)
        if NODE not in failed:
            await self._cut()

    async def _cut(self) -> None:
        """Cut off the open connections that are no longer allowed, and let those go on that are again."""
        if (allowed := self._plane.judge(self.name)) is None:
            return
        answer, _ = await self.channel.request(ListConnections(self.channel.new_id()))
        if not isinstance(answer, Connections):
            raise TestbedError(getattr(answer, "message", f"unexpected answer {type(answer).__name__}"))
        keys = tuple((each.key, not each.marked) for each in answer.found if allowed(each) == each.marked)
        if keys:
            done, _ = await self.channel.request(MarkConnections(self.channel.new_id(), keys))
            if not isinstance(done, Done):
                raise TestbedError(getattr(done, "message", f"unexpected answer {type(done).__name__}"))
        self._plane.judged(self.name)
