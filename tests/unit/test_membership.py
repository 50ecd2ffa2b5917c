"""Nodes that join and leave, with a real control plane and workers, and agents of the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from testbed.cluster import worker as working
from testbed.cluster.clock import LoopClock
from testbed.cluster.controlplane import ControlPlane
from testbed.cluster.membership import Membership
from testbed.cluster.messages import Applied, ChangeNetns, Failed, NetnsRead, ReadNetns
from testbed.cluster.proxying import Change
from testbed.cluster.worker import NodeWorker
from testbed.control import view
from testbed.control.snapshot import ClusterFacts
from testbed.dataplane import dataplanes
from testbed.errors import NotConverged, TestbedError
from testbed.kernel.channel import ChannelClosed
from testbed.objects.allocate import ServiceRanges
from testbed.objects.status import ApiError
from testbed.objects.store import Store
from testbed.proxy import proxiers
from testbed.spec.model import NodeSpec
from testbed.state import NODE, NetnsState, NodeState

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
MACHINES = tuple(
    NodeSpec(
        f"node-{n}",
        (ip_address(f"192.168.100.{10 + n}"),),
        (ip_network(f"10.244.{n}.0/24"),),
        subnets=(ip_network("192.168.100.0/24"),),
    )
    for n in (1, 2, 3)
)


class Agent:
    """Carries out what it is asked, but for the first ``failing`` requests; waits for ``go`` before each."""

    def __init__(self) -> None:
        self.closed, self.failing, self.asked = False, 0, 0
        self.whole = False
        self.found = NetnsState()
        self.changes: list[tuple[Any, ...]] = []
        self.go = asyncio.Event()
        self.go.set()

    def new_id(self) -> int:
        return self.asked

    async def request(self, message: Any) -> tuple[Any, list[int]]:
        self.asked += 1
        await asyncio.sleep(0)
        await self.go.wait()
        if self.closed:
            raise ChannelClosed
        if isinstance(message, ReadNetns):
            return NetnsRead(0, self.found), []
        self.changes.append(message.changes)
        if self.failing:
            self.failing -= 1
            return (Failed(0, "no") if self.whole else Applied(0, {NODE: "no"})), []
        return Applied(0), []


class Machines:
    """What stands for the runtime: the plane, a worker and an agent for each node."""

    def __init__(self) -> None:
        store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
        default = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
        store.create(default, trusted=True)
        self.plane = ControlPlane(
            store, FACTS, dataplanes.get("bridge"), proxiers.get("none"), {}, LoopClock()
        )
        self.spec = SimpleNamespace(nodes=MACHINES)
        self.crashed: dict[str, Any] = {}
        self.agents: dict[str, Agent] = {}
        self.emptied: list[tuple[str, NodeState]] = []
        self.refusing = ""
        self.fabric: list[tuple[str, tuple[str, ...]]] = []
        self.tasks: list[asyncio.Task[None]] = [asyncio.create_task(self.plane.run())]
        self.membership = Membership(cast(Any, self), self.empty)

    @property
    def store(self) -> Store:
        return self.plane.store

    async def start(self) -> None:
        for machine in MACHINES:
            self.store.create(view.node_object(machine, ready=True), trusted=True)
            await self.begin(machine.name)
        assert await self.plane.settle(5)

    async def begin(self, node: str) -> None:
        if self.refusing:
            raise TestbedError(self.refusing)
        agent = self.agents[node] = Agent()
        worker = self.plane.workers[node] = NodeWorker(node, cast(Any, agent), self.plane)
        worker.touch()
        self.tasks.append(asyncio.create_task(worker.run()))

    async def end(self, node: str) -> None:
        self.plane.dismiss(node)

    def crash(self, node: str) -> None:
        self.agents[node].closed = True

    async def gone(self, worker: NodeWorker) -> None:
        assert not worker.alive

    async def boot(self, node: str) -> None:
        self.plane.rebooted(node)
        await self.begin(node)

    def owner(self, address: str) -> str:
        owned = {str(each.addresses[0]): each.name for each in MACHINES} | {"192.168.100.1": "gateway"}
        return owned.get(address, "")

    async def readdress(self, node: str, addresses: tuple[str, ...]) -> None:
        if self.refusing:
            raise TestbedError(self.refusing)
        self.fabric.append((node, addresses))

    async def tell_routers(self) -> None:
        self.fabric.append(("routers", ()))

    async def empty(self, node: str, had: NodeState) -> None:
        self.emptied.append((node, had))


def story(tell: Callable[[Machines], Awaitable[None]]) -> None:
    async def told() -> None:
        machines = Machines()
        try:
            async with asyncio.timeout(20):
                await machines.start()
                await tell(machines)
        finally:
            for task in machines.tasks:
                task.cancel()
            ended = await asyncio.gather(*machines.tasks, return_exceptions=True)
        assert [each for each in ended if isinstance(each, Exception)] == []

    asyncio.run(told())


def node(name: str = "node-3", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, **parts}


def pod(name: str, node: str = "") -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "image": "nginx"}], **({"nodeName": node} if node else {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"spec": {"taints": [{"key": "a"}]}},
        {"spec": {"taints": [{"key": "a", "effect": "Sometimes"}]}},
        {"spec": {"unschedulable": "maybe"}},
        {"metadata": {"name": "node-3", "labels": {"a": 1}}},
        {"metadata": {"name": "node-3", "labels": "x"}},
        {"metadata": {"name": "node-3", "annotations": ["x"]}},
        {"metadata": []},
        {"spec": []},
        {"apiVersion": "v2"},
    ],
)
def test_a_node_that_is_none_is_refused_and_pods_are_still_placed(wrong: dict[str, Any]) -> None:
    async def tell(machines: Machines) -> None:
        await machines.membership.leave("node-3")
        with pytest.raises(ApiError) as caught:
            await machines.membership.join({**node(), **wrong})
        assert caught.value.code in (400, 404, 422)
        assert machines.store.find("Node", "", "node-3") is None
        machines.store.create(pod("a"))
        assert await machines.plane.reach(
            lambda: "nodeName" in machines.store.get("Pod", "default", "a")["spec"], 5
        )

    story(tell)


def test_what_is_asked_of_a_node_stands_beside_what_its_machine_has() -> None:
    async def tell(machines: Machines) -> None:
        await machines.membership.leave("node-3")
        taint = {"key": "a", "effect": "NoSchedule"}
        asked = node(metadata={"name": "node-3", "labels": {"tier": "spare"}}, spec={"taints": [taint]})
        joined = await machines.membership.join(asked)
        assert joined["metadata"]["labels"].items() >= {
            ("tier", "spare"),
            ("kubernetes.io/hostname", "node-3"),
        }
        assert (joined["spec"]["taints"], joined["spec"]["podCIDR"]) == ([taint], "10.244.3.0/24")

    story(tell)


@pytest.mark.parametrize("whole", [True, False])
def test_a_failure_while_a_node_leaves_is_tried_again(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr(working, "RETRY_SECONDS", 0.001)

    async def tell(machines: Machines) -> None:
        agent = machines.agents["node-3"]
        agent.failing, agent.whole = 1, whole
        await machines.membership.leave("node-3")
        assert agent.failing == 0
        assert (machines.emptied, machines.plane.failing_nodes().keys() & {"node-3"}) == ([], set())

    story(tell)


def test_what_a_leaving_node_cannot_remove_in_time_is_removed_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("testbed.cluster.membership.WITHIN", 0.2)

    async def tell(machines: Machines) -> None:
        machines.agents["node-3"].go.clear()
        had = machines.plane.workers["node-3"].applied
        assert had != NodeState()
        await machines.membership.leave("node-3")
        assert "node-3 was not emptied within 0.2 s" in caplog.text
        assert machines.emptied == [("node-3", had)]
        assert "node-3" not in machines.plane.workers

    story(tell)


def test_a_node_whose_agent_is_gone_leaves_and_its_pods_with_it() -> None:
    async def tell(machines: Machines) -> None:
        machines.store.create(pod("a", "node-3"))
        assert await machines.plane.settle(5)
        machines.agents["node-3"].closed = True
        had = machines.plane.workers["node-3"].applied
        await machines.membership.leave("node-3")
        assert machines.store.list("Pod") == []
        assert machines.emptied == [("node-3", had)]
        machines.crashed["node-3"] = had
        with pytest.raises(ApiError, match="no power"):
            await machines.membership.join(node())
        machines.crashed.clear()
        await machines.membership.join(node())
        assert machines.plane.workers["node-3"].alive

    story(tell)


def test_a_node_that_is_cut_off_stays() -> None:
    async def tell(machines: Machines) -> None:
        machines.plane.workers["node-3"].pause()
        with pytest.raises(ApiError, match="cut off"):
            await machines.membership.leave("node-3")
        assert machines.store.find("Node", "", "node-3") is not None

    story(tell)


def test_a_machine_whose_agent_cannot_begin_is_no_node_and_can_join_later() -> None:
    async def tell(machines: Machines) -> None:
        await machines.membership.leave("node-3")
        machines.refusing = "no process"
        with pytest.raises(TestbedError, match="no process"):
            await machines.membership.join(node())
        assert machines.store.find("Node", "", "node-3") is None
        machines.refusing = ""
        await machines.membership.join(node())
        assert machines.plane.workers["node-3"].alive

    story(tell)


def test_a_machine_that_cannot_be_taken_in_is_no_node_and_can_join_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def tell(machines: Machines) -> None:
        await machines.membership.leave("node-3")
        with monkeypatch.context() as patched:
            patched.setattr("testbed.control.ipam.HostLocal.add_node", refuse)
            with pytest.raises(RuntimeError, match="no address"):
                await machines.membership.join(node())
        assert machines.store.find("Node", "", "node-3") is None
        await machines.membership.join(node())
        with pytest.raises(ApiError, match="already exists"):
            await machines.membership.join(node())
        assert machines.plane.workers["node-3"].alive

    def refuse(*_: Any) -> None:
        raise RuntimeError("no address")

    story(tell)


def test_preconditions_are_kept() -> None:
    async def tell(machines: Machines) -> None:
        metadata = machines.store.get("Node", "", "node-3")["metadata"]
        with pytest.raises(ApiError, match="UID in precondition: other"):
            await machines.membership.leave("node-3", uid="other")
        with pytest.raises(ApiError, match="ResourceVersion in precondition: 1,"):
            await machines.membership.leave("node-3", version="1")
        assert "node-3" in machines.plane.workers
        await machines.membership.leave("node-3", uid=metadata["uid"], version=metadata["resourceVersion"])
        assert "node-3" not in machines.plane.workers

    story(tell)


def test_a_node_follows_when_its_own_network_is_made_and_not_when_it_rests_before_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("testbed.cluster.membership.WITHIN", 0.2)
    monkeypatch.setattr(working, "RETRY_SECONDS", 60)

    async def tell(machines: Machines) -> None:
        machines.agents["node-1"].failing = 1
        with pytest.raises(NotConverged, match="node-1: node node-3 is deleted"):
            await machines.membership.leave("node-3")
        assert {each.node for each in machines.membership.programmed} == {"node-2", "node-3"}

    story(tell)


def test_a_node_follows_though_other_work_never_ends() -> None:
    async def tell(machines: Machines) -> None:
        worker, numbers = machines.plane.workers["node-1"], itertools.count()

        def busy(node: str, state: NodeState) -> NodeState:
            if node != worker.name:
                return state
            worker.touch()
            return msgspec.structs.replace(state, files={"/run/number": str(next(numbers))})

        machines.plane.perturb = busy
        await machines.membership.leave("node-3")
        assert not worker.idle
        assert {each.node for each in machines.membership.programmed} == set(machines.agents)

    story(tell)


def test_others_follow_while_the_agent_of_the_node_that_joins_begins() -> None:
    async def tell(machines: Machines) -> None:
        await machines.membership.leave("node-3")
        begin, membership = machines.begin, machines.membership

        async def late(node: str) -> None:
            assert await machines.plane.reach(lambda: len(list(membership.since(version))) == 2, 5)
            await begin(node)

        version = int(machines.store.resource_version)
        machines.begin = late  # type: ignore[method-assign]
        await membership.join(node())
        assert [each.node for each in membership.since(version)][2:] == ["node-3"]

    story(tell)


def test_changes_while_a_node_was_no_node_do_not_count_for_its_rules() -> None:
    async def tell(machines: Machines) -> None:
        agent, plane = machines.agents["node-3"], machines.plane
        agent.go.clear()
        leaving = asyncio.create_task(machines.membership.leave("node-3"))
        assert await plane.reach(lambda: machines.store.find("Node", "", "node-3") is None, 5)
        plane.proxying.changed("node-3", Change(1, "EndpointSlice", "default", "web", "modified", 0.0))
        agent.go.set()
        await leaving
        await machines.membership.join(node())
        assert await plane.settle(5)
        assert [each for each in plane.proxying.programmed if each.node == "node-3"] == []

    story(tell)


def internal(obj: dict[str, Any]) -> list[str]:
    return [each["address"] for each in obj["status"]["addresses"] if each["type"] == "InternalIP"]


def test_a_node_that_gets_another_address_keeps_its_pods_and_all_nodes_follow() -> None:
    async def tell(machines: Machines) -> None:
        own = pod("own", "node-3")
        own["spec"]["hostNetwork"] = True
        machines.store.create(own)
        machines.store.create(pod("a", "node-3"))
        assert await machines.plane.settle(5)
        before = machines.store.get("Pod", "default", "a")["status"]["podIP"]
        applied = machines.plane.workers["node-3"].applied
        version = int(machines.store.resource_version)
        answer = await machines.membership.readdress("node-3", ["192.168.100.33"])
        assert internal(answer) == ["192.168.100.33"]
        assert machines.emptied == [("node-3", applied)]
        assert machines.fabric == [("node-3", ("192.168.100.33/24",)), ("routers", ())]
        assert await machines.plane.settle(5)
        assert internal(machines.store.get("Node", "", "node-3")) == ["192.168.100.33"]
        status = machines.store.get("Pod", "default", "own")["status"]
        assert (status["hostIP"], status["podIP"]) == ("192.168.100.33", "192.168.100.33")
        status = machines.store.get("Pod", "default", "a")["status"]
        assert (status["hostIP"], status["podIP"]) == ("192.168.100.33", before)
        followed = list(machines.membership.since(version))
        assert {(each.change.what, each.node) for each in followed} == {
            ("readdressed", name) for name in machines.agents
        }
        routes = machines.plane.workers["node-1"].applied.netns.routes.values()
        assert "192.168.100.33" in {route.via for route in routes}
        await machines.membership.leave("node-3")
        await machines.membership.join(node())
        assert internal(machines.store.get("Node", "", "node-3")) == ["192.168.100.33"]

    story(tell)


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ([], "one IPv4 address"),
        (["fd00::1"], "one IPv4 address"),
        (["192.168.100.33", "192.168.100.34"], "one IPv4 address"),
        (["192.168.100.x"], "does not appear"),
        (["fd00::1%eth0"], "one IPv4 address"),
        (["192.168.101.3"], "no host address of 192.168.100.0/24"),
        (["192.168.100.255"], "no host address of 192.168.100.0/24"),
        (["192.168.100.1"], "already that of gateway"),
        (["192.168.100.11"], "already that of node-1"),
    ],
)
def test_addresses_that_a_machine_cannot_have_are_refused(addresses: list[str], why: str) -> None:
    async def tell(machines: Machines) -> None:
        with pytest.raises(ApiError, match=why):
            await machines.membership.readdress("node-3", addresses)
        assert (machines.emptied, machines.fabric) == ([], [])
        assert machines.plane.workers["node-3"].alive

    story(tell)


def test_a_node_that_is_not_reached_keeps_its_address() -> None:
    async def tell(machines: Machines) -> None:
        with pytest.raises(ApiError, match="not found"):
            await machines.membership.readdress("node-9", ["192.168.100.33"])
        machines.plane.workers["node-3"].pause()
        with pytest.raises(ApiError, match="does not answer"):
            await machines.membership.readdress("node-3", ["192.168.100.33"])
        machines.plane.workers["node-3"].resume()
        machines.agents["node-3"].closed = True
        with pytest.raises(ApiError, match="does not answer"):
            await machines.membership.readdress("node-3", ["192.168.100.33"])

    story(tell)


def test_a_machine_that_the_fabric_cannot_readdress_boots_with_what_it_had() -> None:
    async def tell(machines: Machines) -> None:
        machines.refusing = "no such host"
        begin = machines.begin

        async def boots(node: str) -> None:
            machines.refusing = ""
            await begin(node)

        machines.begin = boots  # type: ignore[method-assign]
        with pytest.raises(TestbedError, match="no such host"):
            await machines.membership.readdress("node-3", ["192.168.100.33"])
        assert await machines.plane.settle(5)
        assert internal(machines.store.get("Node", "", "node-3")) == ["192.168.100.13"]
        assert machines.plane.workers["node-3"].alive

    story(tell)


def test_a_network_that_restarts_is_set_again_but_for_what_is_there_and_that_node_alone_follows() -> None:
    async def tell(machines: Machines) -> None:
        worker, agent = machines.plane.workers["node-3"], machines.agents["node-3"]
        applied = worker.applied
        agent.found = msgspec.structs.replace(applied.netns, chains={}, routes={})
        before = {name: len(each.changes) for name, each in machines.agents.items()}
        version = int(machines.store.resource_version)
        await machines.membership.restart("node-3")
        ((change,),) = agent.changes[before.pop("node-3") :]
        assert isinstance(change, ChangeNetns)
        assert (change.add.routes, change.add.chains) == (applied.netns.routes, applied.netns.chains)
        assert (change.add.links, change.remove) == ({}, NetnsState())
        assert worker.applied == applied
        assert before == {name: len(machines.agents[name].changes) for name in before}
        (followed,) = machines.membership.since(version)
        assert (followed.change.what, followed.node) == ("restarted", "node-3")
        worker.pause()
        with pytest.raises(ApiError, match="does not answer"):
            await machines.membership.restart("node-3")

    story(tell)


def test_a_node_without_power_is_not_readdressed() -> None:
    async def tell(machines: Machines) -> None:
        machines.crashed["node-3"] = NodeState()  # its agent was killed a moment ago
        with pytest.raises(ApiError, match="does not answer"):
            await machines.membership.readdress("node-3", ["192.168.100.33"])

    story(tell)
