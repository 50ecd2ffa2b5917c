"""A node's worker in the daemon, with a plane and an agent of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from testbed.cluster import worker
from testbed.cluster.messages import Applied, Apply, ChangeNetns, Failed, WriteFiles
from testbed.kernel.channel import ChannelClosed
from testbed.state import NODE, Chain, IpSet, Link, NetnsState, NftTable, NodeState, PodState


class Plane:
    """Cannot compile the first time; counts the rounds."""

    naming: Any = None

    def __init__(self) -> None:
        self.asked = 0
        self.rounds = 0
        self.done = asyncio.Event()

    def desired(self, node: str) -> NodeState:
        self.asked += 1
        if self.asked == 1:
            raise KeyError(node)
        if self.asked > 2:
            raise ChannelClosed
        return NodeState()

    def judge(self, node: str) -> Any:
        return None

    def judged(self, node: str) -> None: ...

    def worker_done(self) -> None:
        self.rounds += 1

    def pods_removed(self, node: str, kept: list[str]) -> None:
        self.done.set()

    def pods_made(self, uids: list[str]) -> None: ...
    def pod_failed(self, uid: str, message: str) -> None: ...
    def pod_warned(self, uid: str, message: str) -> None: ...
    def node_failed(self, node: str, message: str) -> None: ...
    def heard(self, node: str) -> None: ...
    def pod_changed(self, uid: str, containers: Any) -> None: ...
    def pod_event(self, uid: str, kind: Any, reason: str, message: str) -> None: ...
    def pod_ended(self, uid: str) -> None: ...
    def services_applied(self, node: str, done: bool) -> None: ...


def test_a_node_that_cannot_be_compiled_is_tried_again_until_its_agent_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.001)
    channel: Any = None

    async def story() -> Plane:
        plane = Plane()
        node = worker.NodeWorker("node-1", channel, plane)
        node.touch()
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            await plane.done.wait()
            node.touch()
            await running
        node.touch()  # nobody is there to act on it, so nobody is to wait for it
        assert node.idle
        return plane

    plane = asyncio.run(story())
    assert (plane.asked, plane.rounds) == (3, 3)
    assert "node-1: cannot be brought to its state" in caplog.text


class Agent:
    """The other end of a channel: fails the first request as a whole, carries out the second, then ends."""

    def __init__(self) -> None:
        self.asked = 0

    def new_id(self) -> int:
        return self.asked

    async def request(self, message: Any) -> tuple[Any, list[int]]:
        self.asked += 1
        return (Failed(message.id, "out of order") if self.asked == 1 else Applied(message.id)), []


class OnePod(Plane):
    """Wants one pod on the node."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[list[str]] = []

    def desired(self, node: str) -> NodeState:
        return NodeState(pods={"u": PodState("u", "default", "web", "web")})

    def pods_made(self, uids: list[str]) -> None:
        self.made.append(uids)


def test_pods_of_a_request_that_failed_as_a_whole_are_not_said_to_run_but_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.001)
    agent, plane = Agent(), OnePod()

    async def story() -> None:
        channel: Any = agent
        node = worker.NodeWorker("node-1", channel, plane)
        node.touch()
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            await plane.done.wait()
        running.cancel()

    asyncio.run(story())
    assert (agent.asked, plane.made) == (2, [["u"]])


class Refusing(OnePod):
    """Its plugin refuses the pod at first."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[tuple[str, str]] = []

    def desired(self, node: str) -> NodeState:
        refused = "" if self.failed else "no such file"
        return NodeState(pods={"u": PodState("u", "default", "web", "web", refused=refused)})

    def pod_failed(self, uid: str, message: str) -> None:
        self.failed.append((uid, message))


def test_a_pod_that_its_plugin_refuses_is_told_and_said_to_run_when_it_no_longer_does() -> None:
    agent, plane = Agent(), Refusing()
    agent.asked = 1

    async def story() -> None:
        channel: Any = agent
        node = worker.NodeWorker("node-1", channel, plane)
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            for _ in range(2):
                plane.done.clear()
                node.touch()
                await plane.done.wait()
        running.cancel()

    asyncio.run(story())
    assert plane.failed == [("u", "no such file")]
    assert plane.made == [[], ["u"]]


class Full:
    """Can write no file the first time; orders: what it was asked."""

    def __init__(self) -> None:
        self.orders: list[Apply] = []

    def new_id(self) -> int:
        return len(self.orders)

    async def request(self, message: Any) -> tuple[Any, list[int]]:
        self.orders.append(message)
        failed = {NODE: "no space left on device"} if len(self.orders) == 1 else {}
        return Applied(message.id, failed), []


class OneFile(OnePod):
    """Wants one file on the node."""

    def desired(self, node: str) -> NodeState:
        return NodeState(files={"/run/calico/node": "node-1"})


def test_files_that_could_not_be_written_are_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.001)
    agent, plane = Full(), OneFile()

    async def story() -> None:
        channel: Any = agent
        node = worker.NodeWorker("node-1", channel, plane)
        node.touch()
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            while len(agent.orders) < 2:
                plane.done.clear()
                await plane.done.wait()
        running.cancel()

    asyncio.run(story())
    assert [order.changes for order in agent.orders] == [(WriteFiles({"/run/calico/node": "node-1"}),)] * 2


class Willing:
    """Carries out everything; orders: what it was asked."""

    def __init__(self) -> None:
        self.orders: list[Apply] = []

    def new_id(self) -> int:
        return len(self.orders)

    async def request(self, message: Any) -> tuple[Any, list[int]]:
        self.orders.append(message)
        return Applied(message.id), []


class Rules(Plane):
    """Wants a chain of iptables, an ipset and a table of nftables on the node."""

    def desired(self, node: str) -> NodeState:
        table, chain = NftTable("ip", "kube-proxy"), Chain("ipv4", "nat", "KUBE-SERVICES", ("-j ACCEPT",))
        return NodeState(
            NetnsState(
                links={"lo": Link("lo", "existing")},
                chains={("ipv4", "nat", "KUBE-SERVICES"): chain},
                ipsets={"KUBE-CLUSTER-IP": IpSet("KUBE-CLUSTER-IP", "hash:ip,port")},
                nft_tables={("ip", "kube-proxy"): table},
            )
        )


def test_rules_that_are_lost_are_applied_again_whoever_keeps_them_and_nothing_else() -> None:
    agent, plane = Willing(), Rules()

    async def story() -> None:
        channel: Any = agent
        node = worker.NodeWorker("node-1", channel, plane)
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            for act in (node.touch, node.forget_rules):
                plane.done.clear()
                act()
                await plane.done.wait()
        running.cancel()

    asyncio.run(story())
    (change,) = agent.orders[1].changes
    assert isinstance(change, ChangeNetns)
    rules = plane.desired("node-1").netns
    assert change.add == NetnsState(chains=rules.chains, ipsets=rules.ipsets, nft_tables=rules.nft_tables)
    assert change.remove == NetnsState()


class Judging(OnePod):
    """Has connections to judge."""

    def judge(self, node: str) -> Any:
        return lambda connection: True


def test_pods_are_said_to_run_though_connections_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.001)
    agent, plane = Agent(), Judging()
    agent.asked = 1  # everything is answered as if it were applied, which lists no connections

    async def story() -> None:
        channel: Any = agent
        node = worker.NodeWorker("node-1", channel, plane)
        node.touch()
        running = asyncio.create_task(node.run())
        async with asyncio.timeout(5):
            while agent.asked < 6:
                await asyncio.sleep(0)
        running.cancel()

    asyncio.run(story())
    assert [uids for uids in plane.made if uids] == [["u"]]
