"""HTTP on the wire, as conversations: HTTP/1.1 and HTTP/2; the meaning of a request is ``apps.http``'s.

A package of its own, so that looking for applications does not import the protocol libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from testbed.apps import Endpoint

MAX_HEAD = 16 * 1024
"""Bytes of a request's line and headers."""
MAX_BODY = 1024 * 1024
"""Bytes of a request's body that are read (and counted, not kept)."""


@dataclass(slots=True)
class Request:
    """A whole request. target: as sent, path and query; size: bytes of the body."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    client: Endpoint
    local: Endpoint
    size: int = 0


@dataclass(slots=True)
class Response:
    """A whole response; the codec adds Content-Length and leaves the body out for HEAD."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)


Respond = Callable[[Request], Response]
