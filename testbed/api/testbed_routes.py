"""The API group ``testbed/v1``: what is ours and not Kubernetes', on the same server.

``cluster`` (status), ``manifests`` (all or nothing apply), measurements, and upgrades of a request into a
channel that carries descriptors: ``exec`` in pods, on nodes and hosts, and the fabric's shell.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from aiohttp import web

from testbed.api.client import UPGRADE
from testbed.api.server import json_body
from testbed.cluster import naming
from testbed.cluster.membership import Membership
from testbed.cluster.messages import AnyMessage, Exec, Failed, OpenShell, Signal, Started
from testbed.cluster.naming import Naming
from testbed.cluster.proxying import BUCKETS, Proxying, exposition
from testbed.cluster.runtime import Runtime, Target
from testbed.kernel.channel import Answers, AsyncChannel, ChannelClosed
from testbed.objects.apply import apply_all
from testbed.objects.status import ApiError
from testbed.objects.store import Store

log = logging.getLogger(__name__)

STANDARD_FILES = 3
"""Descriptors that come with a program to run: input, output and error."""


def routes(runtime: Runtime, measurements: Any, membership: Membership) -> list[web.RouteDef]:
    """All routes of the group. measurements: ``measure.service.Measurements``."""

    async def cluster(request: web.Request) -> web.Response:
        return web.json_response(runtime.status())

    async def manifests(request: web.Request) -> web.Response:
        body = await json_body(request)
        objects = body.get("objects")
        if not isinstance(objects, list):
            raise ApiError.bad_request("objects: must be a list")
        joined = await _join_new(runtime.plane.store, objects, membership)
        results = apply_all(runtime.plane.store, objects)
        done = [(kind, name, "created" if (kind, name) in joined else act) for kind, name, act in results]
        return web.json_response({"results": done})

    async def settle(request: web.Request) -> web.Response:
        settled = await runtime.plane.settle(_seconds(request.query.get("timeout", "30")))
        return web.json_response({"settled": settled, "waiting": runtime.plane.waiting_pods()})

    async def reachability(request: web.Request) -> web.Response:
        return web.json_response(await measurements.reach(await json_body(request)))

    async def roundtrips(request: web.Request) -> web.Response:
        return web.json_response(await measurements.rtt(await json_body(request)))

    async def conversations(request: web.Request) -> web.Response:
        return web.json_response(await measurements.ask(await json_body(request)))

    async def probe(request: web.Request) -> web.Response:
        return web.json_response(await measurements.probe(await json_body(request)))

    async def path(request: web.Request) -> web.Response:
        return web.json_response(await measurements.path(await json_body(request)))

    async def programming(request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        if not since.isdecimal():
            raise ApiError.bad_request(f"since: must be a resourceVersion, not {since!r}")
        plane = runtime.plane
        latencies: dict[str, Proxying | Naming | Membership] = {
            "rules": plane.proxying,
            "names": plane.naming,
            "nodes": membership,
        }
        of = request.query.get("of", "rules")
        if of not in latencies:
            raise ApiError.bad_request(f"of: must be one of {', '.join(latencies)}, not {of!r}")
        return web.json_response(programming_document(latencies[of], int(since)))

    async def metrics(request: web.Request) -> web.Response:
        plane = runtime.plane
        text = exposition(plane.proxying.distribution)
        text += exposition(plane.naming.distribution, naming.METRIC, naming.METRIC_HELP)
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    async def pod_exec(request: web.Request) -> web.StreamResponse:
        info = request.match_info
        container = request.query.get("container", "")
        return await _execute(request, runtime.pod_target(info["namespace"], info["name"], container))

    async def node_exec(request: web.Request) -> web.StreamResponse:
        return await _execute(request, runtime.node_target(request.match_info["name"]))

    async def host_exec(request: web.Request) -> web.StreamResponse:
        return await _execute(request, runtime.host_target(request.match_info["name"]))

    async def shell(request: web.Request) -> web.StreamResponse:
        return await _shell(request, runtime.fabric)

    group = "/apis/testbed/v1"
    return [
        web.get(f"{group}/cluster", cluster),
        web.get(f"{group}/settled", settle),
        web.post(f"{group}/manifests", manifests),
        web.get(f"{group}/programming", programming),
        web.get(f"{group}/metrics", metrics),
        web.post(f"{group}/reachability", reachability),
        web.post(f"{group}/roundtrips", roundtrips),
        web.post(f"{group}/conversations", conversations),
        web.post(f"{group}/probe", probe),
        web.post(f"{group}/path", path),
        web.post("/api/v1/namespaces/{namespace}/pods/{name}/exec", pod_exec),
        web.post(f"{group}/nodes/{{name}}/exec", node_exec),
        web.post(f"{group}/hosts/{{name}}/exec", host_exec),
        web.post(f"{group}/shell", shell),
    ]


async def _join_new(store: Store, objects: list[Any], membership: Membership) -> set[tuple[str, str]]:
    """Have the Nodes among objects that are none yet join; returns them as results name them."""
    joined = set()
    for obj in objects:
        if isinstance(obj, dict) and obj.get("kind") == "Node":
            metadata = obj.get("metadata")
            name = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
            if store.find("Node", "", name) is None:
                await membership.join(obj)
                joined.add(("node", name))
    return joined


def programming_document(latencies: Proxying | Naming | Membership, since: int) -> dict[str, Any]:
    """How long changes took until they were in force on each node; ``docs/results.md``."""
    return {
        "kind": "NetworkProgramming",
        "apiVersion": "testbed/v1",
        "items": [
            {**asdict(each.change), "node": each.node, "seconds": each.seconds, "how": each.how}
            for each in latencies.since(since)
        ],
        "nodes": {
            node: {
                "count": seen.count,
                "sum": seen.sum,
                "buckets": dict(zip(map(str, BUCKETS), seen.counts, strict=True)),
            }
            for node, seen in latencies.distribution.items()
        },
    }


def _seconds(text: str) -> float:
    """A time to wait. Raises ApiError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ApiError.bad_request(f"timeout: must be a number of seconds, not {text!r}")
    return seconds


async def upgrade(request: web.Request) -> AsyncChannel[AnyMessage]:
    """Answer 101 and take the connection over. Raises ApiError where no upgrade was asked for."""
    if request.headers.get("Upgrade") != UPGRADE:
        raise ApiError.bad_request(f"this needs an upgrade of the connection to {UPGRADE}")
    transport = request.transport
    if transport is None:
        raise ApiError.bad_request("the connection is closed")
    transport.pause_reading()
    sock: socket.socket = transport.get_extra_info("socket")
    own = socket.socket(fileno=os.dup(sock.fileno()))
    own.setblocking(False)
    head = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(own, head.encode())
    return AsyncChannel(own, AnyMessage)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _execute(request: web.Request, target: Target) -> web.StreamResponse:
    """Relay one Exec between the client and who runs it; the descriptors are the client's own."""

    def order(asked: AnyMessage, request_id: int) -> AnyMessage | None:
        if not isinstance(asked, Exec):
            return None
        env = {**target.env, **asked.env}
        return msgspec.structs.replace(asked, id=request_id, where=target.where, env=env)

    return await _relay(request, target.runner, target.channel, order)


async def _shell(request: web.Request, fabric: AsyncChannel[AnyMessage]) -> web.StreamResponse:
    """Relay the fabric's own command line."""
    return await _relay(
        request,
        "the fabric",
        fabric,
        lambda asked, number: OpenShell(number) if isinstance(asked, OpenShell) else None,
    )


async def _relay(
    request: web.Request,
    called: str,
    runner: AsyncChannel[AnyMessage],
    order: Callable[[AnyMessage, int], AnyMessage | None],
) -> web.StreamResponse:
    """Hand the client's first message and descriptors to ``runner`` and its answers back, to the last.

    called: the runner in words, for the client that sees it end first.
    order: from the client's message and a request id to what the runner is told, None: refuse.
    """
    client = await upgrade(request)
    fds: list[int] = []
    client_id = 0
    try:
        asked, fds = await client.receive()
        client_id = getattr(asked, "id", 0)
        request_id = runner.new_id()
        message = order(asked, request_id)
        if message is None or len(fds) != STANDARD_FILES:
            client.send(Failed(client_id, "unexpected message", 2))
        else:
            with runner.expect(request_id) as answers:
                runner.send(message, fds)
                _close_all(fds)
                fds = []
                await _answers(client, runner, answers, client_id, request_id)
    except ChannelClosed:
        if runner.closed and not client.closed:
            client.send(Failed(client_id, f"{called} has ended, and with it what it ran"))
        log.debug("%s: the client or the runner is gone", request.path)
    finally:
        _close_all(fds)
        client.close()
    return taken_over(request)


async def _answers(
    client: AsyncChannel[AnyMessage],
    runner: AsyncChannel[AnyMessage],
    answers: Answers[AnyMessage],
    client_id: int,
    request_id: int,
) -> None:
    signals = asyncio.create_task(_signals(client, runner, request_id))
    try:
        started = True
        while started:
            answer, _ = await answers.next()
            client.send(msgspec.structs.replace(answer, id=client_id))
            started = isinstance(answer, Started)
    except ChannelClosed:
        if not runner.closed:  # the client left: hang up what it started
            runner.send(Signal(request_id, signal.SIGHUP))
        raise
    finally:
        signals.cancel()


async def _signals(
    client: AsyncChannel[AnyMessage], runner: AsyncChannel[AnyMessage], request_id: int
) -> None:
    """Forward the client's signals; a client that leaves hangs its program up (SIGHUP)."""
    try:
        while True:
            message, fds = await client.receive()
            _close_all(fds)
            if isinstance(message, Signal):
                runner.send(Signal(request_id, message.number))
    except ChannelClosed:
        if not runner.closed:
            runner.send(Signal(request_id, signal.SIGHUP))


def taken_over(request: web.Request) -> web.StreamResponse:
    """The response object of a connection that is no longer HTTP: the transport is dropped."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=101)
