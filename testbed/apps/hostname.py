"""hostname: says the pod's host name and hangs up, as agnhost serve-hostname does over TCP and UDP."""

from __future__ import annotations

from collections.abc import Callable

from testbed.apps import App, Conversation, Endpoint, apps


class _Say(Conversation):
    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.done = True

    def receive(self, data: bytes) -> bytes:
        return self._text


@apps.register("hostname")
class Hostname(App):
    """The host name, without a line end, to whoever connects or sends a datagram."""

    speaks_first = True

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A connection that says the name and ends."""
        return _Say(self.about.hostname.encode())

    def datagram(self, data: bytes, client: Endpoint) -> bytes | None:
        """The name."""
        return self.about.hostname.encode()
