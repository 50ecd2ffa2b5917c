"""The control API: the Kubernetes REST shape over the store, by aiohttp.

Maps HTTP to the store and back and thinks of nothing else. What is ours is the group ``testbed/v1``
(``api.testbed_routes``). Source of paths, verbs and Status: the Kubernetes API reference and
``staging/src/k8s.io/apiserver/pkg/endpoints``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from testbed import __version__
from testbed.control.podstatus import termination_grace
from testbed.errors import InputError, TestbedError
from testbed.objects import kinds
from testbed.objects.kinds import Kind
from testbed.objects.status import ApiError
from testbed.objects.store import Event, Store

log = logging.getLogger(__name__)

Object = dict[str, Any]

STORE: web.AppKey[Store] = web.AppKey("store", Store)
MAX_BODY = 8 << 20
"""Bytes; a manifest may be that large."""

WATCH_CHECK_SECONDS = 10.0
"""How often a watch in which nothing happens looks whether its client is still there."""

_JSON = {"application/json", "application/octet-stream", "application/x-www-form-urlencoded"}
"""Content types read as JSON: its own, none (octet-stream here), and what curl says unasked."""

_PATCHES = {
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
}


def application(store: Store, own: Iterable[web.RouteDef] = ()) -> web.Application:
    """The API over ``store``. own: further routes, which take precedence (the group ``testbed/v1``)."""
    app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY)
    app[STORE] = store
    app.router.add_routes(list(own))
    app.router.add_get("/version", _version)
    for path in ("/readyz", "/livez", "/healthz"):
        app.router.add_get(path, _healthy)
    app.router.add_get("/api", _api_versions)
    app.router.add_get("/apis", _api_groups)
    for base in ("/api/{version}", "/apis/{group}/{version}"):
        app.router.add_get(base, _resources)
        for scope in ("", "/namespaces/{namespace}"):
            collection = base + scope + "/{plural}"
            app.router.add_get(collection, _list)
            app.router.add_post(collection, _create)
            for path in (collection + "/{name}", collection + "/{name}/{subresource:status|scale}"):
                app.router.add_get(path, _get)
                app.router.add_put(path, _replace)
                app.router.add_patch(path, _patch)
            app.router.add_delete(collection + "/{name}", _delete)
            app.router.add_delete(collection, _delete_all)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        if request.query.get("dryRun"):
            raise _no_dry_run()
        response: web.StreamResponse = await handler(request)
    except ApiError as error:
        return web.json_response(error.status, status=error.code)
    except web.HTTPException as error:
        reason = (error.reason or "").replace(" ", "")
        status = ApiError.of(error.status, reason, f"{error.reason}: {request.path}")
        return web.json_response(status.status, status=error.status)
    except InputError as error:
        status = ApiError.bad_request(str(error))
        return web.json_response(status.status, status=status.code)
    except TestbedError as error:
        status = ApiError.of(500, "InternalError", str(error))
        details = {"details": {"exitCode": error.exit_code}}
        return web.json_response({**status.status, **details}, status=500)
    except ConnectionError:
        raise
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        status = ApiError.of(500, "InternalError", f"internal failure: {type(error).__name__}: {error}")
        return web.json_response(status.status, status=500)
    return response


def _no_dry_run() -> ApiError:
    return ApiError.bad_request("a dry run is not supported; nothing was changed")


async def _version(request: web.Request) -> web.Response:
    return web.json_response({"major": "1", "minor": "36", "gitVersion": f"v1.36.2+testbed.{__version__}"})


async def _healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _api_versions(request: web.Request) -> web.Response:
    return web.json_response({"kind": "APIVersions", "versions": ["v1"]})


async def _api_groups(request: web.Request) -> web.Response:
    groups: dict[str, list[str]] = {}
    for kind in kinds.KINDS:
        if kind.group:
            known = groups.setdefault(kind.group, [])
            known += [version for version in (kind.version, *kind.older) if version not in known]
    listed = [
        {
            "name": group,
            "versions": [{"groupVersion": f"{group}/{v}", "version": v} for v in versions],
            "preferredVersion": {"groupVersion": f"{group}/{versions[0]}", "version": versions[0]},
        }
        for group, versions in groups.items()
    ]
    return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})


async def _resources(request: web.Request) -> web.Response:
    group, version = request.match_info.get("group", ""), request.match_info["version"]
    served = [kind for kind in kinds.KINDS if kind.group == group and version in (kind.version, *kind.older)]
    if not served:
        raise ApiError.of(404, "NotFound", "the server could not find the requested resource")
    resources = [
        {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            **({"shortNames": list(kind.short_names)} if kind.short_names else {}),
        }
        for kind in served
    ]
    return web.json_response(
        {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": resources,
        }
    )


def _kind(request: web.Request) -> Kind:
    info = request.match_info
    kind = kinds.by_plural(info.get("group", ""), info["version"], info["plural"])
    if kind is None:
        raise ApiError.of(404, "NotFound", "the server could not find the requested resource")
    return kind


def _names(request: web.Request) -> tuple[Kind, str, str]:
    kind = _kind(request)
    return kind, request.match_info.get("namespace", ""), request.match_info["name"]


async def json_body(request: web.Request) -> Object:
    """The request's body, an object. Raises ApiError."""
    if request.content_type not in _JSON and not request.content_type.endswith("+json"):
        raise ApiError.of(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: "
            f"application/json (not {request.content_type})",
        )
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:  # the latter: nested too deeply
        raise ApiError.bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError.bad_request("the body is not an object")
    return body


async def _get(request: web.Request) -> web.Response:
    kind, namespace, name = _names(request)
    obj = request.app[STORE].get(kind.kind, namespace, name)
    if request.match_info.get("subresource") == "scale":
        obj = _scale_of(obj)
    return web.json_response(obj)


async def _list(request: web.Request) -> web.StreamResponse:
    kind = _kind(request)
    store = request.app[STORE]
    namespace = request.match_info.get("namespace")
    query = request.query
    if query.get("watch") in ("true", "1"):
        return await _watch(request, kind, namespace)
    items = store.list(
        kind.kind,
        namespace,
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
    )
    return web.json_response(
        {
            "kind": f"{kind.kind}List",
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": store.resource_version},
            "items": items,
        }
    )


async def _watch(request: web.Request, kind: Kind, namespace: str | None) -> web.StreamResponse:
    store = request.app[STORE]
    query = request.query
    events: asyncio.Queue[Event] = asyncio.Queue()
    stop = store.watch(
        kind.kind,
        namespace,
        events.put_nowait,
        resource_version=query.get("resourceVersion", ""),
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
    )
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    seconds = query.get("timeoutSeconds", "")
    try:
        await response.prepare(request)
        async with asyncio.timeout((int(seconds) if seconds.isdecimal() else 0) or None):
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), WATCH_CHECK_SECONDS)
                except TimeoutError:
                    if request.transport is None:  # the client has left, which only a write would tell
                        return response
                    continue
                line = json.dumps({"type": event.type, "object": event.object})
                await response.write(line.encode() + b"\n")
    except TimeoutError:
        await response.write_eof()
    except ConnectionResetError:
        log.debug("a watcher of %s left", kind.plural)
    finally:
        stop()
    return response


async def _create(request: web.Request) -> web.Response:
    kind = _kind(request)
    obj = placed(await json_body(request), kind, request.match_info.get("namespace", ""))
    _refuse_node(kind, str(obj["metadata"].get("name", "")))
    return web.json_response(request.app[STORE].create(obj), status=201)


def _refuse_node(kind: Kind, name: str) -> None:
    """A Node that is created or deleted as an object alone would be none of a machine's: nodes join and leave
    by routes of their own (``node_routes``), on the cluster's socket. Raises ApiError."""
    if kind.kind == "Node":
        raise ApiError.forbidden(kind, name, "nodes join and leave one by one, on the cluster's own socket")


def placed(obj: Object, kind: Kind, namespace: str, name: str = "") -> Object:
    """The object with kind, namespace and name as the path says. Raises ApiError where they differ."""
    for field, wanted in (("kind", kind.kind), ("apiVersion", kind.api_version)):
        if obj.get(field, wanted) != wanted:
            raise ApiError.bad_request(f"the {field} of the object ({obj[field]}) is not {wanted}")
    metadata = dict(obj.get("metadata") or {})
    for field, wanted in (("namespace", namespace), ("name", name)):
        if wanted and metadata.get(field, wanted) != wanted:
            raise ApiError.bad_request(
                f"the {field} of the provided object does not match the {field} sent on the request"
            )
        if wanted:
            metadata[field] = wanted
    return {**obj, "kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}


async def _replace(request: web.Request) -> web.Response:
    kind, namespace, name = _names(request)
    store = request.app[STORE]
    body = await json_body(request)
    match request.match_info.get("subresource"):
        case "scale":
            return web.json_response(_rescale(store, kind, namespace, name, body))
        case "status":
            return web.json_response(store.update_status(placed(body, kind, namespace, name), trusted=False))
    return web.json_response(store.update(placed(body, kind, namespace, name)))


async def _patch(request: web.Request) -> web.Response:
    kind, namespace, name = _names(request)
    store = request.app[STORE]
    if request.content_type not in _PATCHES:
        raise ApiError.of(
            415, "UnsupportedMediaType", f"the patch type {request.content_type} is not supported"
        )
    body = await json_body(request)
    subresource = request.match_info.get("subresource") or ""
    if subresource == "scale":
        return web.json_response(_rescale(store, kind, namespace, name, body))
    return web.json_response(store.patch_merge(kind.kind, namespace, name, body, subresource=subresource))


def _scale_of(obj: Object) -> Object:
    metadata = {
        field: obj["metadata"][field]
        for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if field in obj["metadata"]
    }
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": obj["spec"].get("replicas", 1)},
        "status": {"replicas": obj.get("status", {}).get("replicas", 0)},
    }


def _rescale(store: Store, kind: Kind, namespace: str, name: str, body: Object) -> Object:
    replicas = (body.get("spec") or {}).get("replicas")
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        raise ApiError.bad_request("spec.replicas: must be a whole number of at least 0")
    obj = store.get(kind.kind, namespace, name)
    if "replicas" not in obj.get("spec", {}):
        raise ApiError.of(404, "NotFound", f"{kind.plural} cannot be scaled")
    return _scale_of(store.update({**obj, "spec": {**obj["spec"], "replicas": replicas}}))


async def _delete(request: web.Request) -> web.Response:
    kind, namespace, name = _names(request)
    store = request.app[STORE]
    _refuse_node(kind, name)
    options = await delete_options(request)
    return web.json_response(_remove(store, store.get(kind.kind, namespace, name), options))


async def _delete_all(request: web.Request) -> web.Response:
    kind = _kind(request)
    _refuse_node(kind, "")
    store = request.app[STORE]
    options = await delete_options(request)
    doomed = store.list(
        kind.kind,
        request.match_info.get("namespace"),
        label_selector=request.query.get("labelSelector", ""),
        field_selector=request.query.get("fieldSelector", ""),
    )
    for obj in doomed:
        metadata = obj["metadata"]
        if store.find(kind.kind, metadata.get("namespace", ""), metadata["name"]) is not None:
            _remove(store, obj, options)
    return web.json_response({"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "items": doomed})


async def delete_options(request: web.Request) -> Object:
    """The DeleteOptions of a request, from its body and its query, which comes second. Raises ApiError."""
    options = await json_body(request) if await request.read() else {}
    if options.get("dryRun"):
        raise _no_dry_run()
    if not isinstance(options.get("preconditions") or {}, dict):
        raise ApiError.bad_request("preconditions: must be an object")
    if options.get("orphanDependents"):
        options["propagationPolicy"] = "Orphan"
    query = request.query
    if "gracePeriodSeconds" in query:
        text = query["gracePeriodSeconds"]
        options.setdefault("gracePeriodSeconds", int(text) if text.isdecimal() else text)
    if "propagationPolicy" in query:
        options.setdefault("propagationPolicy", query["propagationPolicy"])
    grace, propagation = options.get("gracePeriodSeconds"), options.get("propagationPolicy")
    if grace is not None and (not isinstance(grace, int) or isinstance(grace, bool) or grace < 0):
        raise ApiError.bad_request(
            f"gracePeriodSeconds: Invalid value: {grace!r}: must be a whole number >= 0"
        )
    if propagation not in (None, "Background", "Foreground", "Orphan"):
        raise ApiError.bad_request(
            f"propagationPolicy: Invalid value: {propagation!r}: must be Background, Foreground or Orphan"
        )
    return options


def _remove(store: Store, obj: Object, options: Object) -> Object:
    """Delete an object as DeleteOptions say; a pod gets its own grace period unless they give another."""
    metadata = obj["metadata"]
    preconditions = options.get("preconditions") or {}
    grace = options.get("gracePeriodSeconds")
    if obj["kind"] == "Pod":
        own = metadata.get("deletionGracePeriodSeconds", termination_grace(obj))
        grace = own if grace is None or not own else grace  # what runs nothing needs no time
    return store.delete(
        obj["kind"],
        metadata.get("namespace", ""),
        metadata["name"],
        grace=grace or 0,
        uid=preconditions.get("uid") or "",
        version=preconditions.get("resourceVersion") or "",
        propagation=options.get("propagationPolicy") or "Background",
    )
