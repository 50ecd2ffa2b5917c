"""Which socket has something to read: callbacks by descriptor, and waits that end to the microsecond."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Final

Callback = Callable[[int], None]
"""Takes the epoll events."""

CLOSE: Final = 60e-6
"""Seconds before a moment at which sleeping ends and looking all the time begins."""


class Watch:
    """An epoll set. ``select`` on the set itself waits in microseconds, where epoll_wait counts in ms."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}

    def add(self, sock: socket.socket, events: int, callback: Callback) -> None:
        """Call back on these events (errors always)."""
        self._callbacks[sock.fileno()] = callback
        self._epoll.register(sock.fileno(), events)

    def change(self, sock: socket.socket, events: int) -> None:
        """Wait for other events."""
        self._epoll.modify(sock.fileno(), events)

    def drop(self, sock: socket.socket) -> None:
        """Forget a socket that is about to be closed."""
        if self._callbacks.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def look(self, most: int = 8) -> bool:
        """Serve what is ready, at most so many sockets; whether there was any."""
        ready = self._epoll.poll(0, most)
        for fd, events in ready:
            if (callback := self._callbacks.get(fd)) is not None:
                callback(events)
        return bool(ready)

    def wait(self, seconds: float) -> None:
        """Until something is ready, or seconds are over."""
        select.select([self._epoll], [], [], max(0.0, seconds))

    def close(self) -> None:
        """Close the set."""
        self._epoll.close()
