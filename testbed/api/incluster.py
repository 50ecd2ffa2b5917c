"""The API as pods reach it: HTTPS at the control plane's address, behind Service ``default/kubernetes``.

The same store as on the cluster's own socket, without what is ours and without running programs. A client
shows the token of its service account; whoever has one may do anything, for there is no authorisation here.
Sources: ``apiserver/pkg/endpoints/{filters,handlers/responsewriters}`` for the refusals.
"""

from __future__ import annotations

import secrets
import socket
from typing import Any

from aiohttp import web

from testbed.api.server import application
from testbed.cluster.messages import Listening
from testbed.cluster.runtime import Runtime
from testbed.control.snapshot import ClusterFacts
from testbed.control.tokens import subject
from testbed.errors import TestbedError
from testbed.kernel.certificates import Identity, make_identity
from testbed.objects.store import Store
from testbed.spec.addressing import CONTROL_PLANE
from testbed.spec.model import ClusterSpec

LISTENER_ENTRY = "testbed.cluster.listening:main"
PUBLIC = frozenset({"/healthz", "/livez", "/readyz", "/version", "/version/"})
"""What anybody may ask: ClusterRole ``system:public-info-viewer``."""


def identity_of(spec: ClusterSpec) -> Identity:
    """A certificate for every name and address by which the API is known, as kubeadm makes it."""
    domain = spec.network.cluster_domain
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{domain}"]
    services = [str(cidr[1]) for cidr in spec.network.service_cidrs]
    return make_identity(
        [*names, CONTROL_PLANE], [*services, *map(str, spec.control_plane.addresses), "127.0.0.1"]
    )


def new_key() -> str:
    """A secret to sign tokens with."""
    return secrets.token_urlsafe(32)


async def serve(runtime: Runtime, facts: ClusterFacts, store: Store, identity: Identity) -> None:
    """Answer at the control plane's address from now on. Raises TestbedError."""
    (netns,) = await runtime.netns_of(runtime.fabric, [CONTROL_PLANE])
    port = runtime.spec.control_plane.port
    channel = await runtime.spawn_channel(f"listener {port}", LISTENER_ENTRY, netns)
    message, (descriptor,) = await channel.receive()
    channel.close()
    if not isinstance(message, Listening):
        raise TestbedError(f"the listener of the API said {type(message).__name__}")
    runner = web.AppRunner(_guarded(store, facts.token_key), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=descriptor), ssl_context=identity.context).start()


def _guarded(store: Store, key: str) -> web.Application:
    app = application(store)

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path in PUBLIC:
            response: web.StreamResponse = await handler(request)
            return response
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and token:
            if subject(key, token.strip()) is None:
                return _refusal(401, "Unauthorized", "Unauthorized")
            return await handler(request)  # type: ignore[no-any-return]
        return _forbidden(request)

    app.middlewares.insert(0, guard)
    return app


_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}


def _forbidden(request: web.Request) -> web.Response:
    """What somebody without a token hears (``responsewriters/errors.go``, ForbiddenStatusError)."""
    who, about = 'User "system:anonymous"', request.match_info
    if not (plural := about.get("plural", "")):
        what = f'{who} cannot {request.method.lower()} path "{request.path}"'
        return _refusal(403, "Forbidden", f"forbidden: {what}", {})
    group, namespace, name = (about.get(part, "") for part in ("group", "namespace", "name"))
    namespace = name if plural == "namespaces" else namespace
    verb = _VERBS.get(request.method, "")
    if not name:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
        verb = "watch" if verb == "list" and request.query.get("watch") in ("true", "1") else verb
    part = f"/{about['subresource']}" if about.get("subresource") else ""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what = f'{who} cannot {verb} resource "{plural}{part}" in API group "{group}" {where}'
    named = f' "{name}"' if name else ""
    told = {"name": name, "group": group, "kind": plural}
    message = f"{plural}{f'.{group}' if group else ''}{named} is forbidden: {what}"
    return _refusal(403, "Forbidden", message, {key: text for key, text in told.items() if text})


def _refusal(code: int, reason: str, message: str, details: dict[str, str] | None = None) -> web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    more = {} if details is None else {"details": details}
    return web.json_response(
        {**status, "message": message, "reason": reason, **more, "code": code}, status=code
    )
