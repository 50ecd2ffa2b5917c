"""``testbed/v1`` about network policy: what is allowed and why, whole tables, and what a change would do.

``POST policycheck`` (fields of ``Check``), ``policytable`` (``Table``), ``policydiff`` (``Diff``); each
answers ``{"flows": […]}`` with rows as ``policy.explain.told`` makes them; table and diff also
``undeclared``: the pods that nobody was asked about, as they declare no port.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web

from testbed.api.server import json_body
from testbed.cluster.runtime import Runtime
from testbed.control import view
from testbed.control.policies import KINDS, Policies
from testbed.control.snapshot import Snapshot
from testbed.errors import InputError
from testbed.measure.service import Measurements
from testbed.objects.apply import apply_all, last_applied
from testbed.objects.manifests import SOURCE_ANNOTATION
from testbed.objects.selectors import parse_labels
from testbed.objects.store import Store
from testbed.policy import explain
from testbed.policy.explain import Asked, Places
from testbed.policy.meaning import Meaning

T = TypeVar("T")
Protocol = Literal["tcp", "udp", "sctp", "icmp"]
PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]

SILENCE = 0.3
"""Seconds after which a flow that nothing answers counts as blocked."""
ATTEMPTS = 3
"""How often a flow that was not as expected is tried before it counts."""


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question; names as ``policy.explain.asked`` takes them."""

    source: str
    target: str
    protocol: Protocol = "tcp"
    port: PortNumber | None = None
    namespace: str = "default"


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All pods of a selection to each other; observed: measured too."""

    protocol: Protocol = "tcp"
    port: PortNumber | None = None
    namespace: str = ""
    selector: str = ""
    observed: bool = False


class Diff(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Objects as they would be applied."""

    objects: list[dict[str, Any]]


class _Undone(Exception):
    """Ends a transaction that was only tried."""


def routes(runtime: Runtime, measurements: Measurements) -> list[web.RouteDef]:
    """The routes about policy."""
    plane = runtime.plane

    def judged(flows: list[Asked]) -> list[dict[str, Any]]:
        meaning, places = Meaning(plane.snapshot()), places_of(plane.store)
        return [explain.told(each, meaning.allowed(each.flow), places) for each in flows]

    async def check(body: dict[str, Any]) -> dict[str, Any]:
        wanted = _decode(body, Check)
        flows = explain.asked(
            plane.snapshot(), wanted.source, wanted.target, wanted.protocol, wanted.port, wanted.namespace
        )
        return {"flows": judged(flows)}

    async def table(body: dict[str, Any]) -> dict[str, Any]:
        wanted = _decode(body, Table)
        if wanted.protocol == "icmp":
            raise InputError("protocol: a table has ports")
        selected = parse_labels(wanted.selector)
        pods = [
            pod
            for pod in plane.running()
            if wanted.namespace in ("", pod.namespace) and selected(pod.labels) and not pod.host_network
        ]
        if not pods:
            scope = f" in namespace {wanted.namespace}" if wanted.namespace else ""
            raise InputError(f"no running pod{scope} is selected by {wanted.selector or 'no selector'}")
        protocol = wanted.protocol.upper()
        rows = judged(explain.table(plane.snapshot(), pods, protocol, wanted.port))
        if wanted.observed:
            await _observe(measurements, wanted.protocol, rows)
        return {"flows": rows, "undeclared": [] if wanted.port else explain.undeclared(pods, [protocol])}

    async def diff(body: dict[str, Any]) -> dict[str, Any]:
        before = plane.snapshot()
        after, places = _tried(plane.store, before, _decode(body, Diff).objects)
        hosts = {str(ip): host.name for host in runtime.spec.external for ip in host.addresses}
        rows = [
            {
                **explain.told(each, new, places),
                "change": "opens" if new.allowed else "closes",
                "was": str(old.deciding),
            }
            for each, old, new in explain.changes(before, after, hosts)
        ]
        pods = [pod for pod in after.pods if not pod.host_network]
        return {"flows": rows, "undeclared": explain.undeclared(pods)}

    return [
        web.post(f"/apis/testbed/v1/{name}", _served(answer))
        for name, answer in (("policycheck", check), ("policytable", table), ("policydiff", diff))
    ]


def _served(
    answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(await answer(await json_body(request)))

    return handle


def _decode(body: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise InputError(str(error)) from error


def places_of(store: Store) -> Places:
    """Where the policies of a store were written, as far as that is known."""
    found = {}
    for kind in KINDS - {"Namespace"}:
        for obj in store.list(kind):
            metadata = obj["metadata"]
            text = (metadata.get("annotations") or {}).get(SOURCE_ANNOTATION)
            if text and _as_applied(obj):
                found[kind, metadata.get("namespace", ""), metadata["name"]] = _place(text)
    return found


def _as_applied(obj: dict[str, Any]) -> bool:
    """Whether an object still says what was applied: a patch or an edit leaves the file behind."""
    said = last_applied(obj)
    return said is None or (isinstance(said, dict) and _says(obj.get("spec"), said.get("spec")))


def _says(live: Any, said: Any) -> bool:
    """Whether something says all that was said, defaults aside."""
    if isinstance(said, dict):
        return isinstance(live, dict) and all(_says(live.get(key), each) for key, each in said.items())
    if isinstance(said, list):
        same = isinstance(live, list) and len(live) == len(said)
        return same and all(map(_says, live, said))
    return bool(live == said) or (said is None and not live)


def _place(text: str) -> dict[str, Any]:
    """An annotation's content; anybody may have written it, so anything may stand in it."""
    try:
        place = json.loads(text)
    except ValueError:
        return {}
    lines = place.get("lines") if isinstance(place, dict) else None
    return {"file": str(place.get("file", "")), "lines": lines} if isinstance(lines, dict) else {}


async def _observe(measurements: Measurements, protocol: str, rows: list[dict[str, Any]]) -> None:
    """Add to each row whether traffic passed. What is not as expected is tried again."""
    left = rows
    for _ in range(ATTEMPTS):
        if not left:
            return
        questions = [{"source": row["from"], "ip": row["destinationIP"], "port": row["port"]} for row in left]
        answer = await measurements.ask(
            {
                "questions": questions,
                "language": protocol,
                "text": "" if protocol == "tcp" else "testbed",
                "timeout": SILENCE,
                "at_once": 512,
            }
        )
        replies = answer["replies"]
        for row, verdict, reason in zip(left, replies["verdict"], replies["reason"], strict=True):
            row |= {"observed": verdict == "ok", "seen": reason or verdict}
        left = [row for row in left if row["observed"] != row["allowed"]]


def _tried(store: Store, before: Snapshot, objects: list[dict[str, Any]]) -> tuple[Snapshot, Places]:
    """The snapshot and the places as they would be, with these objects applied. Raises ApiError."""
    after, places = before, places_of(store)
    try:
        with store.transaction() as trial:
            apply_all(trial, objects)
            after, places = _as_it_would_be(trial, before), places_of(trial)
            raise _Undone
    except _Undone:
        return after, places


def _as_it_would_be(trial: Store, before: Snapshot) -> Snapshot:
    """With the policies and the labels of a trial; pods that are not there yet are left out."""
    kept = Policies()
    for kind in KINDS:
        for obj in trial.list(kind):
            kept.put(obj)
    pods = []
    for pod in before.pods:
        found = trial.find("Pod", pod.namespace, pod.name)
        pods.append(pod if found is None else view.typed_pod(found, pod.ips))
    return Snapshot(
        before.facts,
        before.nodes,
        tuple(pods),
        before.services,
        before.slices,
        before.service_cidrs,
        kept.policies,
        kept.namespaces,
    )
