"""The control API over its socket: deleting, refusals as Status objects, watching; without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from testbed.api import server
from testbed.api.client import Client, RequestFailed
from testbed.objects.store import Store

PODS = "/api/v1/namespaces/default/pods"


async def _broken(request: web.Request) -> web.Response:
    raise KeyError("x")


def serve(socket_path: Path, story: Callable[[Client], Any]) -> Any:
    """What ``story`` returns, told to the API of a store with a ReplicaSet and its pod."""
    store = Store()
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    metadata = {"name": "web", "namespace": "default"}
    owner = store.create({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata}, trusted=True)
    reference = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web",
        "uid": owner["metadata"]["uid"],
    }
    metadata = {"name": "web-1", "namespace": "default", "ownerReferences": [reference]}
    store.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}}, trusted=True)

    async def tell() -> Any:
        runner = web.AppRunner(server.application(store, [web.get("/broken", _broken)]))
        await runner.setup()
        await web.UnixSite(runner, "s").start()
        try:
            return await asyncio.to_thread(story, Client(socket_path))
        finally:
            await runner.cleanup()

    return asyncio.run(tell())


@pytest.fixture
def socket_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path longer than a socket's address may be, in the current directory."""
    directory = tmp_path / ("long-" * 40)
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory / "s"


@pytest.mark.parametrize(("policy", "left"), [("Background", 0), ("Foreground", 0), ("Orphan", 1)])
def test_what_becomes_of_dependants_is_asked_in_the_body(socket_path: Path, policy: str, left: int) -> None:
    def story(client: Client) -> int:
        path = "/apis/apps/v1/namespaces/default/replicasets/web"
        client.request("DELETE", path, {"kind": "DeleteOptions", "propagationPolicy": policy})
        return len(client.get(PODS)["items"])

    assert serve(socket_path, story) == left


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("DELETE", f"{PODS}/web-1", {"preconditions": {"uid": "another"}}, 409, "Conflict"),
        ("DELETE", f"{PODS}/web-1", {"preconditions": {"resourceVersion": "99"}}, 409, "Conflict"),
        ("DELETE", f"{PODS}/web-1", {"propagationPolicy": "Never"}, 400, "BadRequest"),
        ("DELETE", f"{PODS}/web-1", {"dryRun": ["All"]}, 400, "BadRequest"),
        ("DELETE", f"{PODS}/web-1?dryRun=All", None, 400, "BadRequest"),
        ("DELETE", PODS, {"preconditions": 5}, 400, "BadRequest"),
        ("DELETE", "/api/v1/nodes", None, 403, "Forbidden"),
        ("DELETE", "/api/v1/nodes/node-1", None, 403, "Forbidden"),
        ("GET", "/nowhere", None, 404, "NotFound"),
        ("PUT", PODS, {}, 405, "MethodNotAllowed"),
        ("GET", "/broken", None, 500, "InternalError"),
    ],
)
def test_a_refusal_is_a_status_and_changes_nothing(
    socket_path: Path, method: str, path: str, body: Any, code: int, reason: str
) -> None:
    def story(client: Client) -> tuple[dict[str, Any], int]:
        with pytest.raises(RequestFailed) as refused:
            client.request(method, path, body)
        return refused.value.status, len(client.get(PODS)["items"])

    status, left = serve(socket_path, story)
    assert (status["kind"], status["code"], status["reason"], left) == ("Status", code, reason, 1)


def test_a_body_that_is_not_json_is_refused_by_its_type(socket_path: Path) -> None:
    def story(client: Client) -> None:
        with pytest.raises(RequestFailed, match="unknown format"):
            client.request("POST", PODS, {}, content_type="application/vnd.kubernetes.protobuf")

    serve(socket_path, story)


def test_a_watch_without_a_limit_outlives_silence_and_ends_with_its_client(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timeoutSeconds 0 is no limit, as upstream has it."""
    monkeypatch.setattr(server, "WATCH_CHECK_SECONDS", 0.01)

    def story(client: Client) -> list[str]:
        events = client.watch(PODS, timeoutSeconds="0")
        seen = [next(events)["type"]]
        client.delete(f"{PODS}/web-1")
        seen.append(next(events)["type"])
        events.close()  # type: ignore[attr-defined]
        return seen

    assert serve(socket_path, story) == ["ADDED", "DELETED"]
