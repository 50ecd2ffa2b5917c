"""Typed messages and file descriptors between two processes of a sandbox, over a Unix stream socket.

Frame: 4 bytes length, 1 byte number of descriptors (which ride on the first byte of the frame), then
the message as MessagePack. Both ends are ours and made before any untrusted program runs.
"""

from __future__ import annotations

import array
import asyncio
import collections
import functools
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

M = TypeVar("M")
_HEADER = struct.Struct("!IB")
MAX_FDS = 200
"""Descriptors in one message; the kernel's SCM_MAX_FD is 253."""


class ChannelClosed(Exception):
    """The other end is gone."""


class NotAMessage(ConnectionResetError):
    """What came is no message: the other end speaks something else, and nothing after it can be trusted."""


class DescriptorsLost(ConnectionResetError):
    """Descriptors were sent and this process may not hold so many: what follows cannot be understood."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair with large buffers, close-on-exec, for the two ends of a channel."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return pair


@functools.cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """One for all channels, also for those of processes forked later, which share its memory."""
    return msgspec.msgpack.Decoder(kind)


class _Frames(Generic[M]):
    """Bytes and descriptors in, (message, descriptors) out."""

    def __init__(self, kind: Any) -> None:
        self._decoder = _decoder(kind)
        self._buffer = bytearray()
        self._fds: collections.deque[int] = collections.deque()

    def feed(self, data: bytes, fds: Sequence[int]) -> None:
        self._buffer += data
        self._fds.extend(fds)

    @property
    def complete(self) -> bool:
        """Whether ``next`` has something."""
        if len(self._buffer) < _HEADER.size:
            return False
        return len(self._buffer) >= _HEADER.size + int(_HEADER.unpack_from(self._buffer)[0])

    def next(self) -> tuple[M, list[int]] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        try:
            with memoryview(self._buffer)[_HEADER.size : end] as body:
                message: M = self._decoder.decode(body)
            fds = [self._fds.popleft() for _ in range(count)]
        except (msgspec.DecodeError, IndexError) as error:
            raise NotAMessage(str(error)) from error
        del self._buffer[:end]
        return message, fds


def _receive(sock: socket.socket, size: int = 1 << 18) -> tuple[bytes, list[int]]:
    data, ancillary, flags, _ = sock.recvmsg(
        size, socket.CMSG_SPACE(4 * (MAX_FDS + 53)), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
            fds.extend(received)
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise DescriptorsLost
    return data, fds


def _frame(message: object, fds: Sequence[int]) -> tuple[bytes, list[tuple[int, int, array.array[int]]]]:
    body = msgspec.msgpack.encode(message)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return _HEADER.pack(len(body), len(fds)) + body, rights


class Channel(Generic[M]):
    """One end, blocking. kind: the union of messages that may arrive."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self.sock = sock
        self._frames: _Frames[M] = _Frames(kind)

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay open here. Raises ChannelClosed."""
        data, rights = _frame(message, fds)
        try:
            sent = self.sock.sendmsg([data], rights)
            if sent < len(data):  # an empty sendall would fail where the other end has left meanwhile
                self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error

    def receive(self) -> tuple[M, list[int]]:
        """The next message and its descriptors, which now belong to the caller. Raises ChannelClosed."""
        try:
            while (got := self._frames.next()) is None:
                data, fds = _receive(self.sock)
                if not data:
                    raise ChannelClosed
                self._frames.feed(data, fds)
        except ConnectionResetError as error:
            raise ChannelClosed from error
        return got

    def buffered(self) -> tuple[M, list[int]] | None:
        """A message that was read from the socket together with an earlier one, without waiting for any."""
        return self._frames.next()

    @property
    def waiting(self) -> bool:
        """Whether a message is already here in whole, so that the socket may not become readable for it."""
        return self._frames.complete

    def close(self) -> None:
        """Close this end."""
        self.sock.close()


class AsyncChannel(Generic[M]):
    """One end inside an asyncio loop. Requests may be awaited: see ``request``.

    A message whose ``id`` is awaited goes to who awaits it; every other one comes out of ``receive``.
    """

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._frames: _Frames[M] = _Frames(kind)
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[M, list[int]] | None] = asyncio.Queue()
        self._awaited: dict[int, asyncio.Queue[tuple[M, list[int]] | None]] = {}
        self._outbox: collections.deque[tuple[bytes, list[tuple[int, int, array.array[int]]], list[int]]] = (
            collections.deque()
        )
        self._writing = False
        self._next_id = 0
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def new_id(self) -> int:
        """A fresh request id, unique on this end."""
        self._next_id += 1
        return self._next_id

    def send(self, message: object, fds: Sequence[int] = ()) -> None:
        """Queue one message; descriptors are duplicated, so the caller may close its own at once."""
        if self.closed:
            raise ChannelClosed
        data, _ = _frame(message, fds)
        kept = [os.dup(fd) for fd in fds]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", kept))] if kept else []
        self._outbox.append((data, rights, kept))
        if not self._writing:
            self._writable()

    def _writable(self) -> None:
        while self._outbox:
            data, rights, kept = self._outbox[0]
            try:
                sent = self.sock.sendmsg([data], rights)
            except BlockingIOError:
                if not self._writing:
                    self._writing = True
                    self._loop.add_writer(self.sock.fileno(), self._writable)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._close()
                return
            for fd in kept:
                os.close(fd)
            if sent == len(data):
                self._outbox.popleft()
            else:
                self._outbox[0] = (data[sent:], [], [])
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self.sock.fileno())

    def _readable(self) -> None:
        try:
            data, fds = _receive(self.sock)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            self._close()
            return
        self._frames.feed(data, fds)
        try:
            while (got := self._frames.next()) is not None:
                queue = self._awaited.get(getattr(got[0], "id", -1), self._inbox)
                queue.put_nowait(got)
        except NotAMessage:
            self._close()

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.sock.fileno())
        if self._writing:
            self._loop.remove_writer(self.sock.fileno())
        self.sock.close()
        for _, _, kept in self._outbox:
            for fd in kept:
                os.close(fd)
        self._outbox.clear()
        for queue in [self._inbox, *self._awaited.values()]:
            queue.put_nowait(None)

    async def receive(self) -> tuple[M, list[int]]:
        """The next message that answers no awaited request. Raises ChannelClosed."""
        got = await self._inbox.get()
        if got is None:
            self._inbox.put_nowait(None)
            raise ChannelClosed
        return got

    def expect(self, request_id: int) -> Answers[M]:
        """Collect what arrives for ``request_id`` (call before sending), as an async context manager."""
        return Answers(self._awaited, request_id)

    async def request(self, message: object, fds: Sequence[int] = ()) -> tuple[M, list[int]]:
        """Send a message that has an ``id`` and wait for its one answer. Raises ChannelClosed."""
        with self.expect(message.id) as answers:  # type: ignore[attr-defined]
            self.send(message, fds)
            return await answers.next()

    def close(self) -> None:
        """Close this end; whoever waits gets ChannelClosed."""
        self._close()


class Answers(Generic[M]):
    """The messages of one request, in order."""

    def __init__(
        self, awaited: dict[int, asyncio.Queue[tuple[M, list[int]] | None]], request_id: int
    ) -> None:
        self._awaited, self._id = awaited, request_id
        self._queue: asyncio.Queue[tuple[M, list[int]] | None] = asyncio.Queue()

    def __enter__(self) -> Answers[M]:
        self._awaited[self._id] = self._queue
        return self

    def __exit__(self, *exc: object) -> None:
        del self._awaited[self._id]

    async def next(self) -> tuple[M, list[int]]:
        """The next message of the request. Raises ChannelClosed."""
        got = await self._queue.get()
        if got is None:
            raise ChannelClosed
        return got
