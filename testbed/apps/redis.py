"""redis: enough of RESP2 for redis-cli, health checks and a guestbook, on a small bounded store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from testbed.apps import About, App, Conversation, Endpoint, apps

MAX_KEYS = 1000
MAX_VALUE = 4096
MAX_ARGUMENTS = 64
MAX_COMMAND = 64 * 1024
"""Bounds of the store and of one command, in entries and bytes."""

_OK = b"+OK\r\n"
_NIL = b"$-1\r\n"


class _Incomplete(Exception):
    """The command has not arrived whole."""


class _Wrong(Exception):
    """The client does not speak RESP."""


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _error(text: str) -> bytes:
    return f"-ERR {text}\r\n".encode()


def parse(buffer: bytes) -> tuple[list[bytes], int]:
    """The first command in ``buffer`` and its length: an array of bulk strings, or words on a line."""
    if not buffer.startswith(b"*"):
        line, end = _line(buffer, 0)
        return line.split(), end
    count, position = _number(buffer, 1, MAX_ARGUMENTS)
    words: list[bytes] = []
    for _ in range(count):
        if position >= len(buffer):
            raise _Incomplete
        if buffer[position : position + 1] != b"$":
            raise _Wrong("expected '$'")
        size, position = _number(buffer, position + 1, MAX_COMMAND)
        if len(buffer) < position + size + 2:
            raise _Incomplete
        words.append(buffer[position : position + size])
        position += size + 2
    return words, position


def _line(buffer: bytes, start: int) -> tuple[bytes, int]:
    end = buffer.find(b"\n", start)
    if end < 0:
        raise _Incomplete
    return buffer[start:end].rstrip(b"\r"), end + 1


def _number(buffer: bytes, start: int, limit: int) -> tuple[int, int]:
    text, end = _line(buffer, start)
    if not text.isdigit() or len(text) > 9 or int(text) > limit:
        raise _Wrong("invalid length")
    return int(text), end


class _Redis(Conversation):
    __slots__ = ("_app", "_buffer")

    def __init__(self, app: Redis) -> None:
        super().__init__()
        self._app = app
        self._buffer = b""

    def receive(self, data: bytes) -> bytes:
        self._buffer += data
        out = bytearray()
        try:
            while self._buffer and not self.done:
                words, length = parse(self._buffer)
                self._buffer = self._buffer[length:]
                if words:
                    out += self._app.execute(words)
                    self.done = words[0].upper() == b"QUIT"
        except _Incomplete:
            if len(self._buffer) > 2 * MAX_COMMAND:
                out += self._stop("too big")
        except _Wrong as error:
            out += self._stop(str(error))
        return bytes(out)

    def _stop(self, why: str) -> bytes:
        self.done = True
        return _error(f"Protocol error: {why}")


@apps.register("redis")
class Redis(App):
    """One small store per pod port; gone with the pod."""

    def __init__(self, about: About, options: Mapping[str, str]) -> None:
        super().__init__(about, options)
        self._store: dict[bytes, bytes] = {}

    def connect(self, client: Endpoint, local: Callable[[], Endpoint]) -> Conversation:
        """A connection that takes commands."""
        return _Redis(self)

    def execute(self, words: list[bytes]) -> bytes:
        """The reply to one command."""
        name, *arguments = words
        known = COMMANDS.get(name.upper().decode("latin-1"))
        if known is None:
            return _error(f"unknown command '{name[:64].decode('latin-1')}'")
        least, reply = known
        if len(arguments) < least:
            return _error(f"wrong number of arguments for '{name.decode('latin-1').lower()}' command")
        return reply(self, arguments)

    def ping(self, arguments: list[bytes]) -> bytes:
        """PING [text]."""
        return _bulk(arguments[0]) if arguments else b"+PONG\r\n"

    def get(self, arguments: list[bytes]) -> bytes:
        """GET key."""
        value = self._store.get(arguments[0])
        return _NIL if value is None else _bulk(value)

    def set(self, arguments: list[bytes]) -> bytes:
        """SET key value; options are taken and ignored."""
        key, value = arguments[:2]
        if len(key) > MAX_VALUE or len(value) > MAX_VALUE:
            return _error(f"this small redis keeps values of at most {MAX_VALUE} bytes")
        if key not in self._store and len(self._store) >= MAX_KEYS:
            return b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
        self._store[key] = value
        return _OK

    def delete(self, arguments: list[bytes]) -> bytes:
        """DEL key…"""
        return b":%d\r\n" % sum(self._store.pop(key, None) is not None for key in arguments)

    def increment(self, arguments: list[bytes]) -> bytes:
        """INCR key."""
        value = self._store.get(arguments[0], b"0")
        if not re.fullmatch(rb"-?[0-9]{1,18}", value):
            return _error("value is not an integer or out of range")
        reply = self.set([arguments[0], b"%d" % (int(value) + 1)])
        return b":%b\r\n" % self._store[arguments[0]] if reply is _OK else reply

    def info(self, arguments: list[bytes]) -> bytes:
        """INFO: who this is."""
        lines = [
            "# Server",
            "redis_version:7.0.0",
            "redis_mode:standalone",
            f"run_id:{self.about.namespace}/{self.about.pod}",
            "# Replication",
            "role:master",
            "connected_slaves:0",
            "# Keyspace",
            f"db0:keys={len(self._store)},expires=0,avg_ttl=0",
        ]
        return _bulk("\r\n".join([*lines, ""]).encode())


COMMANDS: dict[str, tuple[int, Callable[[Redis, list[bytes]], bytes]]] = {
    "PING": (0, Redis.ping),
    "ECHO": (1, lambda app, arguments: _bulk(arguments[0])),
    "GET": (1, Redis.get),
    "SET": (2, Redis.set),
    "DEL": (1, Redis.delete),
    "EXISTS": (1, lambda app, arguments: b":%d\r\n" % sum(key in app._store for key in arguments)),
    "INCR": (1, Redis.increment),
    "DBSIZE": (0, lambda app, arguments: b":%d\r\n" % len(app._store)),
    "INFO": (0, Redis.info),
    "SELECT": (1, lambda app, arguments: _OK),
    "CLIENT": (1, lambda app, arguments: _OK),
    "COMMAND": (0, lambda app, arguments: b"*0\r\n"),
    "CONFIG": (1, lambda app, arguments: b"*0\r\n"),
    "QUIT": (0, lambda app, arguments: _OK),
}
"""Command → least number of arguments and what replies."""
