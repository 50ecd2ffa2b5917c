"""The faults of one cluster: applied, held through every change of the cluster, healed; kept in the daemon.

``POST /apis/testbed/v1/faults`` (fields of ``Request``) applies one and answers when the kernel shows it;
``DELETE …/faults/ID`` heals it, ``DELETE …/faults`` all; ``GET …/faults`` lists them, healed ones too, as
``Record`` has them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec

from testbed.cluster.runtime import Runtime
from testbed.errors import InputError, NotConverged, TestbedError
from testbed.faults.hands import Hands
from testbed.faults.model import Ends, EndState, Fault, faults
from testbed.faults.readback import changed_netns, unlike
from testbed.faults.target import Scene, Target, Wanted, choose
from testbed.kernel import capabilities
from testbed.kernel.channel import ChannelClosed
from testbed.objects.kinds import BY_NAME
from testbed.objects.status import ApiError
from testbed.objects.store import Event
from testbed.state import NODE, NodeState
from testbed.wait import patient

log = logging.getLogger(__name__)

DEADLINE = 15.0
"""Seconds in which the kernel has to show a fault, or that it is healed, unless asked otherwise."""
POLL_SECONDS = 0.05


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for. seconds: after these it is healed by itself; seed: for what is chosen by chance."""

    fault: str
    target: Wanted = Wanted()
    options: dict[str, Any] = {}
    seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    seed: int = 0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = DEADLINE


class Record(msgspec.Struct, omit_defaults=True):
    """A fault as people and scripts see it. Times: seconds, monotonic and since 1970.

    took: how long it took until the kernel showed it; problem: why it could not be healed in full.
    """

    id: str
    fault: str
    target: list[str]
    options: dict[str, Any]
    seed: int
    applied: tuple[float, float]
    took: float
    healed: tuple[float, float] | None = None
    seconds: float | None = None
    problem: str = ""


class _Active:
    """A fault that is on. target: without the nodes that it is over on, as they have left the cluster since;
    over: it is so everywhere, and about to be healed."""

    def __init__(self, number: str, request: Request, fault: Fault, target: Target) -> None:
        self.id, self.request, self.fault = number, request, fault
        self.target = msgspec.structs.replace(target, fault=number)
        self.timer: asyncio.TimerHandle | None = None
        self.over = False

    def perturb(self, node: str, state: NodeState) -> NodeState:
        """A node's state with this fault."""
        return state if self.over else self.fault.perturb({node: state}, self.target)[node]


def now() -> tuple[float, float]:
    """Monotonic and wall time."""
    return time.monotonic(), time.time()


class Faults:
    """Holds the faults that are in force, in the order in which they came."""

    def __init__(self, runtime: Runtime, hands: Hands) -> None:
        self._runtime, self._plane = runtime, runtime.plane
        self._hands = hands
        self._active: dict[str, _Active] = {}
        self._half: dict[str, _Active] = {}  # those that could not be healed in full
        self.records: dict[str, Record] = {}
        self._count = 0
        self._lock = asyncio.Lock()
        self._kept: dict[str, tuple[NodeState, tuple[tuple[str, Target, bool], ...], NodeState]] = {}
        self._true: dict[str, NodeState] = {}
        self._plane.perturb = self.perturb

    # --- desired state ------------------------------------------------------------------------------

    def perturb(self, node: str, state: NodeState) -> NodeState:
        """A node's state with all faults that are on; the same object for the same state and faults."""
        self._true[node] = state
        self._follow()
        order = tuple((each.id, each.target, each.over) for each in self._active.values())
        kept = self._kept.get(node)
        if kept is not None and kept[0] is state and kept[1] == order:
            return kept[2]
        perturbed = self._folded(node, state)
        if perturbed is not state and perturbed == state:
            perturbed = state
        self._kept[node] = state, order, perturbed
        return perturbed

    def _follow(self) -> None:
        """Show the faults that follow their nodes what these are now."""
        for each in self._active.values():
            if each.fault.follows_nodes:
                each.target = each.target.now(self._plane.snapshot().node)

    def _folded(self, node: str, state: NodeState, without: str = "") -> NodeState:
        for each in self._active.values():
            if each.id != without:
                state = each.perturb(node, state)
        return state

    def _wanted_ends(self) -> Ends:
        ends: Ends = {}
        for each in self._active.values():
            ends = each.fault.perturb_ends(ends, each.target)
        return ends

    async def _set_ends(self) -> None:
        """Make the fabric's links what they should be. Raises TestbedError."""
        wanted = self._wanted_ends()
        for end in sorted({**self._hands.ends, **wanted}):
            state = wanted.get(end, EndState())
            if self._hands.ends.get(end, EndState()) != state:
                await self._hands.change_end(end, state)
                self._hands.ends[end] = state

    # --- applying -----------------------------------------------------------------------------------

    async def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        """Apply a fault and wait until the kernel shows it.

        Raises InputError, MissingCapability, NotConverged, TestbedError.
        What could not be applied in full is undone.
        """
        request = _decode(body, Request)
        async with self._lock:
            kind = faults.get(request.fault)
            fault = _decode(request.options, kind)
            capabilities.require(sorted(fault.requires()))
            target = self._target(request, kind, fault)
            self._refuse(request.fault, fault, target)
            begun = time.monotonic()
            self._count += 1
            active = _Active(f"fault-{self._count}", request, fault, target)
            self._active[active.id] = active
            try:
                await fault.inject(self._hands, active.target)
                await self._set_ends()
                self._touch()
                deadline = request.timeout + fault.takes()
                await self._until(lambda: self._missing(active), deadline, f"fault {request.fault}")
                await fault.conclude(self._hands, active.target)
            except BaseException as error:
                await self._give_up(active, error, begun)
                raise
            record = self._record(active, begun)
            log.info("%s: %s on %s", active.id, request.fault, ", ".join(target.names))
            if fault.over():
                del self._active[active.id]
                record.healed = record.applied
            elif request.seconds is not None:
                loop = asyncio.get_running_loop()
                active.timer = loop.call_later(request.seconds, self._time_is_up, active.id)
            return _document(record)

    def _record(self, active: _Active, begun: float) -> Record:
        request = active.request
        record = self.records[active.id] = Record(
            *(active.id, request.fault, active.target.names, request.options, request.seed),
            applied=now(),
            took=round(time.monotonic() - begun, 4),
            seconds=request.seconds,
        )
        return record

    async def _give_up(self, active: _Active, error: BaseException, begun: float) -> None:
        """Undo what could not be applied. Raises TestbedError where that fails; then it can be healed."""
        try:
            await self._undo(active, active.request.timeout)
        except (TestbedError, ChannelClosed) as second:
            self._half[active.id] = active
            record = self._record(active, begun)
            record.problem = f"neither applied nor undone in full: {second}"
            raise TestbedError(f"{error}; {active.id} is {record.problem}") from error

    def _target(self, request: Request, kind: type[Fault], fault: Fault) -> Target:
        wanted = request.target
        if kind.aim == "pod" and not (wanted.names or wanted.selector or wanted.namespace):
            wanted = msgspec.structs.replace(wanted, namespace=kind.namespace, selector=kind.selector)
        spec = self._runtime.spec
        addresses = tuple(map(str, spec.control_plane.addresses))
        scene = Scene(self._plane.snapshot(), self._plane.running(), self._runtime.links, addresses)
        target = choose(kind.aim, wanted, scene, f"{request.seed}/{request.fault}/{self._count}")
        return fault.resolve(target, scene)

    def _refuse(self, name: str, fault: Fault, target: Target) -> None:
        """Raises InputError where it is in force already, or would change nothing."""
        for each in self._active.values():
            if (each.request.fault, each.target.names) == (name, target.names):
                raise InputError(f"{each.id} is {name} on {', '.join(target.names)} already: heal it first")
        if type(fault).perturb is Fault.perturb or fault.over():
            return
        states = {node: self.perturb(node, state) for node, state in self._true.items()}
        if all(fault.perturb({node: state}, target)[node] == state for node, state in states.items()):
            raise InputError(f"{name}: would change nothing of {', '.join(target.names)}, with these options")

    def _touch(self) -> None:
        """Have every node that looks different now looked at."""
        for node, worker in self._plane.workers.items():
            state = self._true.get(node)
            kept = self._kept.get(node)
            if state is not None and self.perturb(node, state) is not (kept[2] if kept else state):
                worker.touch()

    async def _missing(self, active: _Active) -> str:
        for node in self._true.keys() & self._plane.workers.keys():  # what has left shows nothing any more
            true = self._true[node]
            without = self._folded(node, true, active.id)
            with_it = active.perturb(node, without)
            if with_it is without or with_it == without:
                continue
            # With all faults: what a later one made of it does not count against this one.
            if problem := await self._unlike(node, without, self._kept[node][2]):
                return problem
        return await active.fault.amiss(self._hands, active.target, on=True)

    async def _unlike(self, node: str, before: NodeState, after: NodeState) -> str:
        for uid, old, new in changed_netns(before, after):
            found = await self._hands.read(node, uid or NODE)
            if problems := unlike(old, new, found):
                where = f"{node}, pod {after.pods[uid].name}" if uid else node
                return f"{where}: {'; '.join(problems[:5])}"
        return ""

    @staticmethod
    async def _until(missing: Callable[[], Awaitable[str]], deadline: float, what: str) -> None:
        begun, problem = time.monotonic(), ""
        while True:
            try:
                problem = await missing()
            except ChannelClosed as error:
                raise TestbedError(f"{what}: the agent is gone") from error
            if not problem:
                return
            if (waited := time.monotonic() - begun) > patient(deadline):
                raise NotConverged(f"{what} in force", waited, problem)
            await asyncio.sleep(POLL_SECONDS)

    # --- healing ------------------------------------------------------------------------------------

    def _time_is_up(self, name: str) -> None:
        if name in self._active:
            self._runtime.background(self._heal_late(name))

    async def _heal_late(self, name: str) -> None:
        try:
            await self.heal(name)
        except TestbedError as error:
            log.error("%s: %s", name, error)  # it stands in its record

    async def heal(self, name: str) -> dict[str, Any]:
        """Heal a fault and wait until the kernel shows the true state. Raises ApiError, NotConverged."""
        async with self._lock:
            if name not in self.records:
                known = ", ".join([*self._half, *self._active]) or "none"
                raise ApiError.of(404, "NotFound", f'no fault "{name}"; in force: {known}')
            record = self.records[name]
            active = self._active.get(name) or self._half.get(name)
            if active is None:
                return _document(record)
            try:
                await self._undo(active, active.request.timeout)
            except BaseException as error:  # whatever it was, it can be healed again
                self._half[name] = active
                record.problem = f"not healed in full: {error}"
                raise
            self._half.pop(name, None)
            record.healed, record.problem = now(), ""
            log.info("%s: healed", name)
            return _document(record)

    @asynccontextmanager
    async def none_on(self, node: str) -> AsyncIterator[None]:
        """No fault is applied or healed meanwhile. Raises ApiError where one is about the node."""
        async with self._lock:
            for each in (*self._active.values(), *self._half.values()):
                target = each.target
                about = {one.name for one in (*target.nodes, *target.peers)}
                about |= {pod.node for pod in target.pods}
                about |= {host for link in target.links for host, _ in link.ends}
                if node in about:
                    text = f"{each.id} ({each.request.fault}) is about it: heal it first"
                    raise ApiError.conflict(BY_NAME["Node"], node, text)
            yield

    def node_changed(self, event: Event) -> None:
        """Where a node leaves the cluster, faults of what ran there end: what joins by its name is well."""
        if event.type != "DELETED":
            return
        left = event.object["metadata"]["name"]
        for each in (active for active in self._active.values() if not active.over):
            others = each.target.without(left)
            named = others != each.target and not each.fault.outlives_nodes
            needed = not each.fault.outlives_peers and left in {peer.name for peer in each.target.peers}
            if named and others.nodes and not needed:
                part, each.target = each.target.on(left), others
                self._runtime.background(self._end_on(left, each, part))
            elif named or needed:
                each.over = True
                self._runtime.background(self._heal_after(left, each.id))

    async def _gone(self, node: str) -> None:
        """Until the node is emptied and its agent has ended, of which nothing can be read meanwhile."""
        worker = self._plane.workers.get(node)
        while worker is not None and self._plane.workers.get(node) is worker:
            await asyncio.sleep(POLL_SECONDS)

    async def _heal_after(self, node: str, name: str) -> None:
        await self._gone(node)
        await self._heal_late(name)

    async def _end_on(self, node: str, active: _Active, part: Target) -> None:
        """Undo what was done on a node that has left; what was perturbed of it went with it."""
        await self._gone(node)
        async with self._lock:
            try:
                await active.fault.lift(self._hands, part)
                what = f"fault {active.request.fault} is no longer"
                deadline = active.request.timeout + active.fault.takes()
                await self._until(lambda: active.fault.amiss(self._hands, part, on=False), deadline, what)
            except (TestbedError, ChannelClosed) as error:
                log.error("%s: %s: %s", active.id, node, error)
                if (record := self.records.get(active.id)) is not None:  # else it could not be applied
                    record.problem = f"not ended on {node}: {error}"

    async def heal_all(self) -> list[dict[str, Any]]:
        """Heal all, the last first. Raises the first failure when all were tried."""
        healed: list[dict[str, Any]] = []
        failure: Exception | None = None
        for name in reversed([*self._half, *self._active]):
            try:
                healed.append(await self.heal(name))
            except Exception as error:  # noqa: BLE001 - whatever it was, it must not keep the others
                failure = failure or error
        if failure is not None:
            raise failure
        return healed

    async def _undo(self, active: _Active, deadline: float) -> None:
        if active.timer is not None:
            active.timer.cancel()
        before = {node: kept[2] for node, kept in self._kept.items()}
        self._active.pop(active.id, None)
        failure: Exception | None = None
        try:
            await active.fault.lift(self._hands, active.target)
        except ChannelClosed:
            failure = TestbedError(f"{active.request.fault}: who had to undo it ended meanwhile")
        except Exception as error:  # noqa: BLE001 - what follows does not depend on it
            failure = error
        await self._set_ends()
        self._touch()
        what = f"fault {active.request.fault} is no longer"
        await self._until(lambda: self._left(active, before), deadline + active.fault.takes(), what)
        if failure is not None:
            raise failure

    async def _left(self, active: _Active, before: dict[str, NodeState]) -> str:
        for node, state in before.items():
            after = self._kept[node][2]
            worker = self._plane.workers.get(node)
            concerned = after is not state and worker is not None and worker.alive
            if concerned and (problem := await self._unlike(node, state, after)):
                return problem
        return await active.fault.amiss(self._hands, active.target, on=False)

    async def held(self, name: str, let_go: Awaitable[None]) -> None:
        """Heal a fault once whoever holds it lets go, or is gone."""
        try:
            await let_go
        finally:
            if name in self._active:
                self._runtime.background(self._heal_late(name))

    # --- listing ------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Any]:
        """All faults there were, in the order in which they came."""
        return {
            "kind": "FaultList",
            "apiVersion": "testbed/v1",
            "items": [_document(record) for record in self.records.values()],
        }


def _document(record: Record) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(record)
    return document


def _decode(data: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise InputError(str(error)) from error
