"""http: what a request means, whichever HTTP it came by; ``grpc`` is the same under another name.

Every path answers with JSON about the pod and the request, but for those that agnhost netexec has.
Options: ``root: hostname`` gives the host name at ``/``; ``root: text`` gives ``text`` everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from testbed.apps import App, Conversation, Endpoint, apps
from testbed.apps.wire import Request, Response

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What an HTTP/2 client with prior knowledge sends first (RFC 9113, 3.4)."""


class _Http(Conversation):
    """Finds out which HTTP the client speaks and hands over to that."""

    __slots__ = ("_app", "_client", "_local", "_seen", "_wire")

    def __init__(self, app: Http, client: Endpoint, local: Callable[[], Endpoint]) -> None:
        self._app, self._client, self._local = app, client, local
        self._seen = b""
        self._wire: Conversation | None = None

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self._wire is not None and self._wire.done

    def receive(self, data: bytes) -> bytes:
        """What the client's protocol answers."""
        if self._wire is None:
            self._seen += data
            if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
                return b""
            data, self._seen = self._seen, b""
            self._wire = self._speak(data.startswith(PREFACE))
        return self._wire.receive(data)

    def _speak(self, http2: bool) -> Conversation:
        # The libraries cost 30 ms each: an agent whose pods are only connected to never pays.
        if http2:
            from testbed.apps.wire.http2 import Http2

            return Http2(self._app.respond, self._client, self._local)
        from testbed.apps.wire.http1 import Http1

        return Http1(self._app.respond, self._client, self._local)


@apps.register("grpc")
@apps.register("http")
class Http(App):
    """HTTP/1.1 and HTTP/2 on one port."""

    idle = 75.0  # nginx's keepalive_timeout

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A connection of either HTTP."""
        return _Http(self, client, local)

    def respond(self, request: Request) -> Response:
        """The response to one request."""
        if self.options.get("root") == "text":
            return Response(self.options.get("text", "").encode())
        try:
            url = urlsplit(request.target)
        except ValueError as error:  # such as brackets that are no IPv6 address
            return Response(f"{error}\n".encode(), status=400)
        if url.path == "/" and self.options.get("root") == "hostname":
            return _hostname(self, request, {})
        page = PAGES.get(url.path.lower(), _about)
        return page(self, request, parse_qs(url.query, keep_blank_values=True))


Query = dict[str, list[str]]


def _hostname(app: Http, request: Request, query: Query) -> Response:
    return Response(app.about.hostname.encode())


def _client_ip(app: Http, request: Request, query: Query) -> Response:
    return Response(str(request.client).encode())


def _healthy(app: Http, request: Request, query: Query) -> Response:
    return Response(b"ok")


def _echo(app: Http, request: Request, query: Query) -> Response:
    """agnhost: the text of ``msg``, with the status ``code`` where one is asked for."""
    code = query.get("code", ["200"])[0]
    if not (code.isascii() and code.isdigit() and 200 <= int(code[:4]) <= 599):
        return Response(f"argument 'code' must be an HTTP status, not {code!r}\n".encode(), status=400)
    return Response(query.get("msg", [""])[0].encode(), status=int(code))


def _about(app: Http, request: Request, query: Query) -> Response:
    about = app.about
    document = {
        "pod": about.pod,
        "namespace": about.namespace,
        "node": about.node,
        "ips": about.ips,
        "hostname": about.hostname,
        "container": about.container,
        "client": request.client._asdict(),
        "local": request.local._asdict(),
        "protocol": request.version,
        "method": request.method,
        "path": request.target,
        "headers": request.headers,
        "bodyBytes": request.size,
    }
    return Response((json.dumps(document) + "\n").encode(), "application/json")


PAGES: dict[str, Callable[[Http, Request, Query], Response]] = {
    "/hostname": _hostname,
    "/clientip": _client_ip,
    "/healthz": _healthy,
    "/readyz": _healthy,
    "/livez": _healthy,
    "/echo": _echo,
}
"""Paths in lower case: agnhost has both /hostname and /hostName."""
