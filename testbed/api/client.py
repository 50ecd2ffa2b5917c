"""Client of a cluster's control API: HTTP over the Unix socket in the cluster's state directory.

Plain ``http.client``; one connection per request, as ``curl --unix-socket`` would do it.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from testbed.cluster.messages import AnyMessage
from testbed.errors import TestbedError
from testbed.kernel.channel import Channel

UPGRADE = "testbed-channel"
"""Value of the Upgrade header that turns a connection into a ``kernel.channel``."""


class ServerGone(TestbedError):
    """The cluster's daemon does not answer on its socket."""


class RequestFailed(TestbedError):
    """The API answered with a Status of failure. status: the Kubernetes Status object as it came."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status
        self.reason: str = status.get("reason", "")
        details = status.get("details") or {}
        self.exit_code = int(details.get("exitCode") or (2 if 400 <= status.get("code", 500) < 500 else 4))
        prefix = f"Error from server ({self.reason}): " if self.reason else "Error from server: "
        super().__init__(prefix + status.get("message", ""))


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("cluster", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            # A path through the descriptor is short, however long the directory's own is (limit: 108 bytes).
            there = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.sock.connect(f"/proc/self/fd/{there}/{self._path.name}")
            finally:
                os.close(there)
        except OSError as error:
            raise ServerGone(f"cluster at {self._path.parent}: no answer: {error.strerror}") from error


class Client:
    """Requests to one cluster. ``socket_path``: its ``api.sock``."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    @classmethod
    def of(cls, name: str | None = None) -> Client:
        """The client of the running cluster ``name``, or of the only one. Raises InputError."""
        from testbed.cluster.statedir import resolve

        return cls(resolve(name).directory / "api.sock")

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        timeout: float | None = 120.0,
        content_type: str = "application/json",
    ) -> Any:
        """One request, JSON in and out. timeout: seconds. Raises RequestFailed, ServerGone."""
        connection = _UnixConnection(self.socket_path, timeout)
        try:
            response = self._send(connection, method, path, body, query, content_type)
            return _decode(response)
        finally:
            connection.close()

    def get(self, path: str, **query: str) -> Any:
        """GET."""
        return self.request("GET", path, query=query)

    def post(self, path: str, body: Any, *, timeout: float | None = 120.0) -> Any:
        """POST."""
        return self.request("POST", path, body, timeout=timeout)

    def put(self, path: str, body: Any) -> Any:
        """PUT."""
        return self.request("PUT", path, body)

    def delete(self, path: str, **query: str) -> Any:
        """DELETE."""
        return self.request("DELETE", path, query=query)

    def watch(self, path: str, **query: str) -> Iterator[dict[str, Any]]:
        """Watch events, one dict with ``type`` and ``object`` each, until the server ends the stream."""
        connection = _UnixConnection(self.socket_path, None)
        try:
            response = self._send(connection, "GET", path, None, {**query, "watch": "true"}, "")
            if response.status >= 400:
                _decode(response)
            for line in response:
                if line.strip():
                    yield json.loads(line)
        finally:
            connection.close()

    def channel(self, path: str) -> Channel[AnyMessage]:
        """Upgrade a POST to ``path`` into a channel of messages and descriptors.

        Raises RequestFailed where the server refuses.
        """
        connection = _UnixConnection(self.socket_path, None)
        connection.request("POST", path, headers={"Connection": "Upgrade", "Upgrade": UPGRADE})
        sock = connection.sock
        # The response head is read byte by byte: what follows it belongs to the channel.
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            if not byte:
                raise ServerGone("the cluster closed the connection")
            head += byte
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                ),
                0,
            )
            body = b""
            while len(body) < length and (more := sock.recv(length - len(body))):
                body += more
            sock.close()
            raise RequestFailed(json.loads(body or b"{}"))
        return Channel(sock, AnyMessage)

    @staticmethod
    def _send(
        connection: _UnixConnection,
        method: str,
        path: str,
        body: Any,
        query: dict[str, str] | None,
        content_type: str,
    ) -> http.client.HTTPResponse:
        target = path + ("?" + urlencode(query) if query else "")
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if payload is not None else {}
        try:
            connection.request(method, target, payload, headers)
            return connection.getresponse()
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            raise ServerGone(
                f"cluster at {connection._path.parent}: {error or type(error).__name__}"
            ) from error


def _decode(response: http.client.HTTPResponse) -> Any:
    try:
        data = response.read()
    except (ConnectionError, http.client.HTTPException) as error:
        raise ServerGone(f"the cluster went away: {error or type(error).__name__}") from error
    if "json" not in (response.getheader("Content-Type") or ""):
        if response.status >= 400:
            raise RequestFailed({"code": response.status, "message": data.decode(errors="replace")})
        return data.decode(errors="replace")
    document = json.loads(data) if data else None
    if response.status >= 400:
        raise RequestFailed(document if isinstance(document, dict) else {"code": response.status})
    return document
