"""kubeproxy: what kube-proxy answers on a node: its own health, and a Service's health check node port.

Options: ``healthy``: whether the node's rules are what they should be; ``eligible``: false for a node that an
autoscaler is about to delete; of a health check node port also ``service`` and ``namespace``, and
``endpoints``: how many ready endpoints of the Service are on this node.

Sources: ``pkg/proxy/healthcheck/{service_health,proxy_health}.go``; Go's net/http for what has no path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from testbed.apps import App, Conversation, Endpoint, apps
from testbed.apps.wire import Request, Response

_NOSNIFF = ("X-Content-Type-Options", "nosniff")


@apps.register("kubeproxy")
class KubeProxy(App):
    """HTTP/1.1, as Go's server speaks it."""

    idle = 180.0

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A connection."""
        from testbed.apps.wire.http1 import Http1  # costs 30 ms, which a node without a client never pays

        return Http1(self.respond, client, local)

    def respond(self, request: Request) -> Response:
        """The response to one request."""
        healthy = self.options.get("healthy", "true") == "true"
        if "service" in self.options:
            return self._service(healthy)
        eligible = self.options.get("eligible", "true") == "true"
        path = urlsplit(request.target).path
        if path == "/healthz":
            return _own(healthy and eligible, f', "nodeEligible": {str(eligible).lower()}')
        if path == "/livez":
            return _own(healthy, "")
        return Response(b"404 page not found\n", status=404, headers=[_NOSNIFF])

    def _service(self, healthy: bool) -> Response:
        """Any path: whether a load balancer is to send traffic for the Service to this node."""
        count = int(self.options["endpoints"])
        body = (
            '{\n\t"service": {\n'
            f'\t\t"namespace": "{self.options["namespace"]}",\n\t\t"name": "{self.options["service"]}"\n'
            f'\t}},\n\t"localEndpoints": {count},\n\t"serviceProxyHealthy": {str(healthy).lower()}\n}}'
        )
        headers = [_NOSNIFF, ("X-Load-Balancing-Endpoint-Weight", str(count))]
        return Response(body.encode(), "application/json", 200 if count and healthy else 503, headers)


def _own(healthy: bool, more: str) -> Response:
    now = _go_time()
    body = f'{{"lastUpdated": "{now}","currentTime": "{now}"{more}}}'
    return Response(body.encode(), "application/json", 200 if healthy else 503, [_NOSNIFF])


def _go_time() -> str:
    """Now, as Go prints a time: with nanoseconds, the zone, and the seconds of its monotonic clock."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    day = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{day}.{nanoseconds:09d} +0000 UTC m=+{time.monotonic():.9f}"
