"""The cloud's load balancers: the gateway owns their addresses and spreads traffic for them over the nodes.

Which nodes: those that are ready, not excluded by a label, and answer health checks: kube-proxy's own, or,
where a Service wants local endpoints only, its health check node port. How: equal-cost routes in the fabric's
routers. A packet reaches a node with the address of the load balancer, and the node's own rules do the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Protocol

from testbed.cluster.messages import AnyMessage, CheckHealth, Done, Health, SetRoutes
from testbed.control.loadbalancers import balanced
from testbed.control.snapshot import Node, Service, Snapshot
from testbed.errors import TestbedError
from testbed.kernel.channel import AsyncChannel, ChannelClosed
from testbed.objects.store import Event
from testbed.proxy.health import HEALTHZ_PORT, is_checked
from testbed.topology.balancing import spread
from testbed.topology.routing import Graph

if TYPE_CHECKING:
    from mininet.topo import Topo

log = logging.getLogger(__name__)

Target = tuple[str, int]
Routes = dict[str, dict[str, tuple[str, ...]]]

RETRY_SECONDS = 1.0
"""How long after routes were refused they are set again."""


class Surroundings(Protocol):
    """What the balancer needs of the running cluster."""

    fabric: AsyncChannel[AnyMessage]

    def snapshot(self) -> Snapshot:
        """The cluster as it is now."""

    async def start_checker(self) -> AsyncChannel[AnyMessage]:
        """A channel to a new process for health checks in the gateway's netns."""

    def background(self, work: object) -> None:
        """Run a coroutine for as long as the cluster lives."""

    def settled(self) -> None:
        """What was under way is done."""


class Balancer:
    """Keeps the fabric's routes to load balancers' addresses what they should be."""

    def __init__(self, around: Surroundings, topo: Topo) -> None:
        self._around, self._topo = around, topo
        self._checker: AsyncChannel[AnyMessage] | None = None
        self._dirty = asyncio.Event()
        self._dirty.set()
        self._busy = False
        self._targets: frozenset[Target] = frozenset()
        self._healthy: dict[Target, bool] = {}
        self._routes: Routes = {}
        self._spread: dict[tuple[frozenset[str], int], dict[str, tuple[str, ...]]] = {}

    @cached_property
    def _graph(self) -> Graph:
        return Graph(self._topo)

    @property
    def idle(self) -> bool:
        """Whether the routes are those of everything known, and everything to be asked was asked once."""
        return not (self._dirty.is_set() or self._busy or self._targets - self._healthy.keys())

    def fabric_changed(self) -> None:
        """Hosts on the fabric's graph have other addresses."""
        self.__dict__.pop("_graph", None)
        self._spread.clear()
        self._dirty.set()

    def observe(self, event: Event) -> None:
        """Take note of a change in the store."""
        if event.kind == "Node" or (event.kind == "Service" and _is_balanced(event)):
            self._dirty.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._busy = True
            try:
                await self._sync()
            except (TestbedError, OSError) as error:
                log.error("load balancers: %s", error)
                self._again()
            except Exception:
                # What is wrong may be changed, and until then the rest goes on.
                log.exception("load balancers cannot be brought to their state")
                self._again()
            self._busy = False
            if self.idle:
                self._around.settled()

    def _again(self) -> None:
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._dirty.set)

    async def _sync(self) -> None:
        snapshot = self._around.snapshot()
        ranges = tuple(map(ip_network, snapshot.facts.load_balancer_cidrs))
        services = [own for each in snapshot.services.values() if (own := _ours(each, ranges)).vips]
        if services and "gateway" not in self._graph.roles.values():
            log.error("the fabric has no gateway: nothing leads to load balancers' addresses")
            return
        nodes = balanced(snapshot.nodes)
        await self._check(frozenset(target for service in services for _, target in _targets(service, nodes)))
        wanted = self._wanted(services, nodes)
        if wanted != self._routes:
            await self._set(wanted)

    async def _check(self, targets: frozenset[Target]) -> None:
        if targets == self._targets:
            return
        if self._checker is None:
            self._checker = await self._around.start_checker()
            self._around.background(self._listen(self._checker))
        self._targets = targets
        self._healthy = {target: known for target, known in self._healthy.items() if target in targets}
        self._checker.send(CheckHealth(tuple(sorted(targets))))

    async def _listen(self, checker: AsyncChannel[AnyMessage]) -> None:
        try:
            while True:
                message, _ = await checker.receive()
                if isinstance(message, Health):
                    found = dict.fromkeys(message.healthy, True) | dict.fromkeys(message.unhealthy, False)
                    self._healthy |= {t: known for t, known in found.items() if t in self._targets}
                    self._dirty.set()
        except ChannelClosed:
            log.error("the health checks of load balancers have ended, and begin again")
            checker.close()
            self._checker, self._targets = None, frozenset()
            self._again()

    def _wanted(self, services: list[Service], nodes: tuple[Node, ...]) -> Routes:
        """Router → address of a load balancer → next hops."""
        routes: Routes = {}
        for service in services:
            usable = {name for name, target in _targets(service, nodes) if self._healthy.get(target)}
            for vip in service.vips:
                version = 6 if ":" in vip else 4
                prefix = f"{vip}/{128 if version == 6 else 32}"
                for router, hops in self._hops(frozenset(usable), version).items():
                    routes.setdefault(router, {})[prefix] = hops
        return routes

    def _hops(self, nodes: frozenset[str], version: int) -> Mapping[str, tuple[str, ...]]:
        if (nodes, version) not in self._spread:
            self._spread = dict(list(self._spread.items())[-64:])
            self._spread[nodes, version] = spread(self._graph, sorted(nodes), version)
        return self._spread[nodes, version]

    async def _set(self, wanted: Routes) -> None:
        fabric = self._around.fabric
        # A router that has none any more is named, too, so that what it had goes.
        named: Routes = {router: wanted.get(router, {}) for router in {**self._routes, **wanted}}
        answer, _ = await fabric.request(SetRoutes(fabric.new_id(), named))
        if not isinstance(answer, Done):
            raise TestbedError(getattr(answer, "message", f"the fabric answered {type(answer).__name__}"))
        self._routes = wanted


def _ours(service: Service, ranges: Sequence[IPv4Network | IPv6Network]) -> Service:
    """The Service with those of its addresses that are the gateway's; somebody else sees to others."""
    vips = [vip for vip in service.vips if any(ip_address(vip) in each for each in ranges)]
    return replace(service, vips=tuple(vips)) if service.vips else service


def _targets(service: Service, nodes: tuple[Node, ...]) -> Iterator[tuple[str, Target]]:
    """(node, what is asked on it) for each node that may get traffic for a Service."""
    port = service.health_check_node_port if is_checked(service) else HEALTHZ_PORT
    yield from ((node.name, (node.addresses[0], port)) for node in nodes if node.addresses)


def _is_balanced(event: Event) -> bool:
    return any(((obj or {}).get("status") or {}).get("loadBalancer") for obj in (event.object, event.old))
