"""Forks the cluster's workers on request, so that they are small and share what was imported once."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from testbed.cluster.messages import AnyMessage, Ended, Failed, Spawn, Spawned
from testbed.kernel import process, syscalls
from testbed.kernel.channel import Channel, ChannelClosed

log = logging.getLogger(__name__)


def run(sock: socket.socket, preload: Sequence[str] = ()) -> None:
    """Serve the daemon at the other end of ``sock`` until it is gone.

    preload: what to call first, as ``module:function``, so that workers share what it imports.
    """
    for entry in preload:
        _load(entry)()
    _Zygote(sock).serve()


class _Selector:
    """Calls back when a descriptor is readable, as an asyncio loop would; but one may fork out of it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> None:
        self._selector.register(fd, selectors.EVENT_READ, (callback, args))

    def remove_reader(self, fd: int) -> None:
        self._selector.unregister(fd)

    def run_once(self) -> None:
        for key, _ in self._selector.select():
            callback, args = key.data
            callback(*args)


class _Zygote:
    def __init__(self, sock: socket.socket) -> None:
        self._channel: Channel[AnyMessage] = Channel(sock, AnyMessage)
        self._selector = _Selector()
        self._children = process.Children(self._selector)
        self._selector.add_reader(sock.fileno(), self._readable)

    def serve(self) -> None:
        try:
            while True:
                self._selector.run_once()
        except ChannelClosed:
            return

    def _readable(self) -> None:
        got: tuple[AnyMessage, list[int]] | None = self._channel.receive()
        while got is not None:
            message, fds = got
            try:
                if isinstance(message, Spawn):
                    self._spawn(message, fds)
                else:
                    log.error("unexpected message %r", message)
            finally:
                for fd in fds:
                    os.close(fd)
            got = self._channel.buffered()

    def _spawn(self, message: Spawn, fds: list[int]) -> None:
        try:
            worker = _load(message.entry)
        except (ImportError, AttributeError, ValueError) as error:
            self._channel.send(Failed(message.id, f"{message.entry}: {error}"))
            return
        gc.freeze()  # what is here by now stays shared with the child

        def work() -> None:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if len(fds) > 1:
                syscalls.setns(fds[1], syscalls.CLONE_NEWNET)
                os.close(fds[1])
            with suppress(ChannelClosed):  # the daemon is gone, and with it whoever wanted this work
                worker(socket.socket(fileno=fds[0]), message.name)

        pid = process.fork(work, title=f"testbed-{message.name}", keep=fds)
        self._children.watch(pid, lambda status: self._ended(message.name, pid, status))
        self._channel.send(Spawned(message.id, pid))

    def _ended(self, name: str, pid: int, status: int) -> None:
        self._channel.send(Ended(name, pid, os.waitstatus_to_exitcode(status)))


def _load(entry: str) -> Callable[..., None]:
    """The function that ``module:function`` names. Raises ImportError, AttributeError, ValueError."""
    module, _, name = entry.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function
