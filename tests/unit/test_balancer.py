"""The gateway's routes to load balancers' addresses, beside a fabric and a checker that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from testbed.cluster import balancer
from testbed.cluster.balancer import Balancer
from testbed.cluster.messages import AnyMessage, CheckHealth, Done, Failed, Health, SetRoutes
from testbed.control.snapshot import ClusterFacts, Node, Service, Snapshot
from testbed.kernel.channel import AsyncChannel, ChannelClosed, socket_pair
from testbed.objects.store import Event
from testbed.spec.load import parse_spec
from testbed.topology.planning import build, plan

SPEC = parse_spec("apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: lab}\nspec: {nodes: {count: 2}}\n")
NODE_CHANGED = Event("MODIFIED", {"kind": "Node", "metadata": {"name": "node-1"}})
BOTH = ("192.168.100.11", "192.168.100.12")


class Around:
    """A cluster of two nodes with the range 198.51.100.0/24; answers: what the fabric says, in turn."""

    def __init__(self, *services: Service) -> None:
        self.services = services
        self.fabric: Any = self
        self.set: list[dict[str, dict[str, tuple[str, ...]]]] = []
        self.answers: list[Callable[[int], AnyMessage]] = []
        self.checkers: list[AsyncChannel[AnyMessage]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def snapshot(self) -> Snapshot:
        facts = ClusterFacts("cluster.local", (), (), (), (), load_balancer_cidrs=("198.51.100.0/24",))
        nodes = (Node("node-1", ("192.168.100.11",), ()), Node("node-2", ("192.168.100.12",), ()))
        return Snapshot(facts, nodes, services={(each.namespace, each.name): each for each in self.services})

    def new_id(self) -> int:
        return 1

    async def request(self, message: SetRoutes) -> tuple[AnyMessage, list[int]]:
        answer = self.answers.pop(0)(message.id) if self.answers else Done(message.id)
        if isinstance(answer, Done):
            self.set.append(dict(message.routes))
        return answer, []

    async def start_checker(self) -> AsyncChannel[AnyMessage]:
        ours, theirs = socket_pair()
        checker: AsyncChannel[AnyMessage] = AsyncChannel(theirs, AnyMessage)
        self.checkers.append(checker)
        self.background(self._healthy(checker))
        return AsyncChannel(ours, AnyMessage)

    async def _healthy(self, checker: AsyncChannel[AnyMessage]) -> None:
        """Find everything healthy."""
        try:
            while True:
                message, _ = await checker.receive()
                assert isinstance(message, CheckHealth)
                checker.send(Health(message.targets, ()))
        except ChannelClosed:
            return

    def background(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    def settled(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def watch(around: Around, story: Callable[[Balancer], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        subject = Balancer(around, build(SPEC, plan(SPEC)))
        around.background(subject.run())
        try:
            async with asyncio.timeout(20):
                await story(subject)
        finally:
            around.close()

    asyncio.run(told())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def balanced(name: str, *vips: str) -> Service:
    return Service("default", name, "LoadBalancer", vips=vips)


def test_the_gateway_leads_to_its_own_addresses_and_to_no_others() -> None:
    around = Around(balanced("web", "198.51.100.1"), balanced("other", "192.168.100.12", "203.0.113.9"))

    async def story(subject: Balancer) -> None:
        await until(lambda: bool(around.set) and subject.idle)

    watch(around, story)
    assert around.set == [{"gateway": {"198.51.100.1/32": BOTH}}]


def test_what_is_refused_is_tried_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(balancer, "RETRY_SECONDS", 0.0)
    around = Around(balanced("web", "198.51.100.1"))

    def raises(_: int) -> AnyMessage:
        raise ValueError("an oddity")

    around.answers = [lambda number: Failed(number, "no such device"), raises]

    async def story(subject: Balancer) -> None:
        await until(lambda: bool(around.set) and subject.idle)

    watch(around, story)
    assert around.set == [{"gateway": {"198.51.100.1/32": BOTH}}]


def test_health_checks_that_end_begin_again_and_routes_stay_meanwhile(monkeypatch: Any) -> None:
    monkeypatch.setattr(balancer, "RETRY_SECONDS", 0.0)
    around = Around(balanced("web", "198.51.100.1"))

    async def story(subject: Balancer) -> None:
        await until(lambda: bool(around.set) and subject.idle)
        around.checkers[0].close()
        await until(lambda: len(around.checkers) == 2 and subject.idle)
        around.services = (*around.services, balanced("api", "198.51.100.2"))
        subject.observe(NODE_CHANGED)
        await until(lambda: len(around.set) == 2 and subject.idle)

    watch(around, story)
    assert around.set[1] == {"gateway": {"198.51.100.1/32": BOTH, "198.51.100.2/32": BOTH}}
