"""The built-in application server: what answers on pods' ports, one file per application.

An application is a class registered under the name that ``state.Listener.app`` holds. It does no I/O:
the server (``apps.server``) hands it bytes and sends the bytes it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from testbed.registry import Registry


class Endpoint(NamedTuple):
    """An address and port. address: as text, IPv4 as IPv4 even on a socket of both families."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def endpoint(name: Any) -> Endpoint:
    """The Endpoint of a socket name as ``accept`` and ``getsockname`` give it."""
    address = str(name[0])
    if address.startswith("::ffff:"):
        address = str(getattr(ip_address(address), "ipv4_mapped", None) or address)
    return Endpoint(address, name[1])


@dataclass(frozen=True, slots=True)
class About:
    """What an application says of itself: the pod it runs in, and its container."""

    pod: str
    namespace: str
    node: str
    hostname: str
    ips: tuple[str, ...]
    container: str


class Conversation:
    """One TCP connection as an application sees it: bytes in, bytes out."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False
        """True: the connection is closed once everything returned so far is sent."""

    def receive(self, data: bytes) -> bytes:
        """What to send upon ``data``. Called once with b"" at the start where the app speaks first."""
        raise NotImplementedError


class App:
    """What answers on one port; made once per listening port, so it may keep a bounded state.

    speaks_first: it sends before it has received; idle: seconds of silence after which a connection
    is closed.
    """

    speaks_first = False
    idle = 3600.0

    def __init__(self, about: About, options: Mapping[str, str]) -> None:
        self.about, self.options = about, options

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A new TCP connection. local: asks the kernel for the address that was connected to."""
        raise NotImplementedError

    def datagram(self, data: bytes, client: Endpoint) -> bytes | None:
        """What to answer to a UDP datagram; None: nothing."""
        raise NotImplementedError


apps: Registry[type[App]] = Registry("application", "testbed.apps")
