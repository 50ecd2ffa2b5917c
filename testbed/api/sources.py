"""What measurements need of the running cluster: its pods and outside hosts, and their namespaces."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.cluster.runtime import Runtime
from testbed.control.containers import listeners
from testbed.control.snapshot import Pod
from testbed.errors import InputError
from testbed.measure.paths import Endpoint, Port
from testbed.state import NODE

PROBER_ENTRY = "testbed.measure.prober:main"
HOST, NODE_KEY = "host:", "node:"


class ClusterSources:
    """``measure.service.Sources`` over a Runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def endpoints(self) -> list[Endpoint]:
        """Pods that run, and hosts outside the cluster."""
        plane = self._runtime.plane
        allowed = plane.facts.allow_commands
        outside = [
            Endpoint(
                key=HOST + host.name,
                namespace="",
                name=host.name,
                node="",
                ips=tuple(map(str, host.addresses)),
            )
            for host in self._runtime.spec.external
        ]
        workers = plane.workers
        return [
            *(_endpoint(pod, allowed, alive=workers[pod.node].alive) for pod in plane.running()),
            *outside,
        ]

    def nodes(self) -> list[Endpoint]:
        """Nodes whose agent lives."""
        return [
            Endpoint(
                key=NODE_KEY + node.name,
                namespace="",
                name=node.name,
                node=node.name,
                ips=node.addresses,
            )
            for node in self._runtime.snapshot().nodes
            if node.name in self._runtime.plane.workers and self._runtime.plane.workers[node.name].alive
        ]

    async def netns(self, keys: Sequence[str]) -> list[int]:
        """A netns descriptor per key, in order; hostNetwork pods have their node's. Raises InputError."""
        runtime = self._runtime
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(self._place(key), []).append(key)
        found: dict[str, int] = {}
        for place, members in groups.items():
            if place == HOST:
                fds = await runtime.netns_of(runtime.fabric, [key.removeprefix(HOST) for key in members])
            else:
                names = [NODE if key.startswith(NODE_KEY) else key for key in members]
                fds = await runtime.netns_of(runtime.agent(place), names)
            found.update(zip(members, fds, strict=True))
        return [found[key] for key in keys]

    def _place(self, key: str) -> str:
        """The node whose agent has it, or ``host:`` for the fabric."""
        if key.startswith(HOST):
            return HOST
        if key.startswith(NODE_KEY):
            return key.removeprefix(NODE_KEY)
        try:
            return self._runtime.plane.typed(key).node
        except KeyError as error:
            raise InputError(f"no pod with uid {key} runs") from error

    def service(self, namespace: str, name: str) -> Mapping[str, Any]:
        """A Service as it is stored. Raises InputError."""
        found = self._runtime.plane.store.find("Service", namespace, name)
        if found is None:
            raise InputError(f"there is no Service {namespace}/{name}")
        return found

    def fabric(self) -> list[str]:
        """The routers, and one switch: all switches are in one netns."""
        hosts = self._runtime.hosts
        outside = {host.name for host in self._runtime.spec.external}
        nodes = {node.name for node in self._runtime.spec.nodes}
        names = dict.fromkeys(end for link in self._runtime.links for end in link[::2])
        switches = [name for name in names if name not in hosts]
        routers = [name for name in hosts if name not in outside | nodes]
        return [HOST + name for name in (*switches[:1], *routers)]

    async def spawn_prober(self) -> socket.socket:
        """A new prober."""
        return await self._runtime.spawn("prober", PROBER_ENTRY)


def _endpoint(pod: Pod, allow_commands: bool, *, alive: bool) -> Endpoint:
    return Endpoint(
        key=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        ips=pod.ips,
        ports=tuple(
            Port(listener.protocol.lower(), listener.port) for listener in listeners(pod, allow_commands)
        ),
        labels=pod.labels,
        gone="" if alive else f"the agent of its node {pod.node} has ended",
    )
