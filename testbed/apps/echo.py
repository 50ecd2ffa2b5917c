"""echo: what is sent comes back, over TCP and UDP; over UDP also agnhost netexec's three commands."""

from __future__ import annotations

from collections.abc import Callable

from testbed.apps import App, Conversation, Endpoint, apps


class _Echo(Conversation):
    __slots__ = ()

    def receive(self, data: bytes) -> bytes:
        return data


@apps.register("echo")
class Echo(App):
    """TCP: the bytes. UDP: ``hostname``, ``clientip`` and ``echo TEXT`` are answered, the rest comes back."""

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A connection that gives back what it gets."""
        return _Echo()

    def datagram(self, data: bytes, client: Endpoint) -> bytes | None:
        """The answer to one datagram."""
        command = data.strip()
        if command.lower() == b"hostname":
            return self.about.hostname.encode()
        if command.lower() == b"clientip":
            return str(client).encode()
        if command[:5].lower() == b"echo ":
            return command[5:]
        return data
