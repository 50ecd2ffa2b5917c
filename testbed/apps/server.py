"""The sockets of the built-in application server, in the event loop of a node's agent.

The agent opens a pod's sockets while it is inside the pod's netns (a socket stays in the netns it was
made in) and serves them from its own loop. Sockets are used raw, without asyncio transports: a hundred
pods being connected to by each other cost one accept, one receive and one close a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import mmap
import resource
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.apps import About, App, Conversation, Endpoint, apps, endpoint
from testbed.state import Listener, PodState

log = logging.getLogger(__name__)

BACKLOG = 4096
BATCH = 64
"""Connections or datagrams taken from one socket before others get their turn."""
MAX_PORT_CONNECTIONS = 1000
"""Open connections of one port; a further one is closed at once."""
READ_SIZE = 64 * 1024
SWEEP_SECONDS = 5.0
PAUSE_SECONDS = 0.5
"""How often silent connections are looked for, and how long accepting rests when descriptors are short."""
LINGER_SECONDS = 5.0
"""How long the client has to hang up after the app has; closing with unread data would reset the rest."""

_IP_PKTINFO = 8  # linux/in.h; not in Python's socket module
_IN_PKTINFO = struct.Struct("=i4s4s")
_IN6_PKTINFO = struct.Struct("=16sI")
_SHORT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ABORTED = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.EPERM})
_NOT_IN_KERNEL = frozenset({errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT})
_SOCKETS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, getattr(socket, "IPPROTO_SCTP", 132)),
}


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of one listener: its socket, or the problem that kept it from having one."""

    listener: Listener
    sock: socket.socket | None = None
    problem: str = ""


class Server:
    """Serves the ports of all pods of a node. Not thread safe: everything runs in ``loop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # Every datagram is read into this, then copied. Of a mapping only what is written to takes memory.
        self.buffer = memoryview(mmap.mmap(-1, READ_SIZE))
        self._ports: dict[str, list[_Port]] = {}
        self._connections: set[_Connection] = set()
        self._max_connections = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._sweeper: asyncio.TimerHandle | None = None

    # --- pods ---------------------------------------------------------------------------------------

    def open(self, pod: PodState) -> list[Opened]:
        """Open the sockets of the pod's listeners that are not open yet, in the caller's current netns.

        Blocks for nothing and never raises for one port: what could not be opened carries its problem.
        """
        kept = {_key(port.listener) for port in self._ports.get(pod.uid, ())}
        opened: list[Opened] = []
        owners: dict[_Key, str] = {}
        for listener in pod.listeners:
            owner = owners.setdefault(_key(listener), listener.container)
            if owner != listener.container:
                problem = f"{_called(listener)} is already taken by container {owner}"
                opened.append(Opened(listener, problem=f"container {listener.container}: {problem}"))
            elif _key(listener) not in kept:
                opened.append(_open(listener))
        return opened

    def start(self, pod: PodState, opened: Sequence[Opened]) -> tuple[str, ...]:
        """Serve what ``open`` opened for the pod; says what could not be opened, one sentence each."""
        return self.update(pod, opened)

    def update(self, pod: PodState, opened: Iterable[Opened] = ()) -> tuple[str, ...]:
        """Take over the pod's new state: its identity, its listeners (new ones from ``open``), ones gone."""
        wanted = {_key(listener): listener for listener in reversed(pod.listeners)}
        ports: list[_Port] = []
        for port in self._ports.get(pod.uid, ()):
            listener = wanted.get(_key(port.listener))
            if listener is None:
                port.close()
                continue
            port.become(pod, listener)
            ports.append(port)
        problems: list[str] = []
        for one in opened:
            if one.sock is not None:
                ports.append(_Port(self, one.sock, pod, one.listener))
            elif one.problem:
                problems.append(one.problem)
                log.warning("pod %s/%s: %s", pod.namespace, pod.name, one.problem)
        self._ports[pod.uid] = ports
        return tuple(problems)

    def stop(self, uid: str) -> None:
        """Close every socket of the pod, open connections too (they would keep its netns alive)."""
        for port in self._ports.pop(uid, ()):
            port.close()

    def close(self) -> None:
        """Stop every pod."""
        for uid in list(self._ports):
            self.stop(uid)

    # --- connections --------------------------------------------------------------------------------

    def admit(self, connection: _Connection) -> bool:
        """Count a connection in; False where there are too many already."""
        if len(self._connections) >= self._max_connections:
            return False
        self._connections.add(connection)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        return True

    def forget(self, connection: _Connection) -> None:
        """Count a closed connection out."""
        self._connections.discard(connection)

    def _sweep(self) -> None:
        """Close connections that have been silent for longer than their app allows."""
        now = self.loop.time()
        for connection in [one for one in self._connections if now - one.heard > one.patience]:
            connection.close()
        again = bool(self._connections)
        self._sweeper = self.loop.call_later(SWEEP_SECONDS, self._sweep) if again else None


_Key = tuple[str, int, str]


def _key(listener: Listener) -> _Key:
    return listener.protocol, listener.port, listener.address


def _called(listener: Listener) -> str:
    return f"{listener.protocol} port {listener.port}" + (
        f" of {listener.address}" if listener.address else ""
    )


# --- opening ----------------------------------------------------------------------------------------


def _open(listener: Listener) -> Opened:
    try:
        return Opened(listener, sock=_bound(listener))
    except OSError as error:
        if listener.protocol == "SCTP" and error.errno in _NOT_IN_KERNEL:
            log.info("%s of container %s: no SCTP in this kernel", _called(listener), listener.container)
            return Opened(listener)
        why = (
            "is already in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
        )
        return Opened(listener, problem=f"container {listener.container}: {_called(listener)} {why}")


def _bound(listener: Listener) -> socket.socket:
    """A socket of both families on every address, of IPv4 alone where there is no IPv6; or on one address."""
    if listener.address:
        return _bind(listener, socket.AF_INET6 if ":" in listener.address else socket.AF_INET)
    try:
        return _bind(listener, socket.AF_INET6)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return _bind(listener, socket.AF_INET)


def _bind(listener: Listener, family: socket.AddressFamily) -> socket.socket:
    kind, protocol = _SOCKETS[listener.protocol]
    sock = socket.socket(family, kind, protocol)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        every = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        sock.bind((listener.address or every, listener.port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
        elif family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        undo.pop_all()
    return sock


# --- serving ----------------------------------------------------------------------------------------


class _Port:
    """One listening socket and the app behind it."""

    __slots__ = ("_paused", "app", "connections", "listener", "server", "sock")

    def __init__(self, server: Server, sock: socket.socket, pod: PodState, listener: Listener) -> None:
        self.server, self.sock, self.listener = server, sock, listener
        self.app: App = apps.get(listener.app)(_about(pod, listener), listener.options)
        self.connections: set[_Connection] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._listen()

    def become(self, pod: PodState, listener: Listener) -> None:
        """Serve for a changed pod; the app, and with it its state, stays unless it is another one."""
        about = _about(pod, listener)
        if (listener.app, listener.options) != (self.listener.app, self.listener.options):
            self.app = apps.get(listener.app)(about, listener.options)
        self.app.about, self.listener = about, listener

    def close(self) -> None:
        """Stop listening and close what is connected."""
        if self._paused:
            self._paused.cancel()
        self.server.loop.remove_reader(self.sock)
        self.sock.close()
        for connection in list(self.connections):
            connection.close()

    def _listen(self) -> None:
        self._paused = None
        ready = self._receive if self.sock.type == socket.SOCK_DGRAM else self._accept
        self.server.loop.add_reader(self.sock, ready)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, client = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _ABORTED:
                    continue
                if error.errno not in _SHORT_OF_RESOURCES:
                    raise
                log.warning("%s: %s; accepting rests", _called(self.listener), error.strerror)
                self.server.loop.remove_reader(self.sock)
                self._paused = self.server.loop.call_later(PAUSE_SECONDS, self._listen)
                return
            connection = _Connection(self, sock, client)
            if len(self.connections) < MAX_PORT_CONNECTIONS and self.server.admit(connection):
                self.connections.add(connection)
                connection.begin()
            else:
                sock.close()

    def _receive(self) -> None:
        buffer = self.server.buffer
        for _ in range(BATCH):
            try:
                size, control, _, client = self.sock.recvmsg_into([buffer], 64)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error about an earlier answer
                log.debug("%s: %s", _called(self.listener), error.strerror)
                continue
            answer = self.app.datagram(bytes(buffer[:size]), endpoint(client))
            if answer is None:
                continue
            try:
                self.sock.sendmsg([answer], _answering_from(control), 0, client)
            except OSError as error:  # full queue, unreachable client, no route: a datagram is lost
                log.debug("%s to %s: %s", _called(self.listener), client[0], error.strerror)


def _about(pod: PodState, listener: Listener) -> About:
    return About(pod.name, pod.namespace, pod.node, pod.hostname, pod.ips, listener.container)


def _answering_from(control: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Control data that sends an answer from the address the question came to.

    A node has several addresses; without this the kernel would choose by route and the client would
    refuse the answer. The interface is left open (0): replies are routed.
    """
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            address, interface = _IN6_PKTINFO.unpack(data[: _IN6_PKTINFO.size])
            link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
            if address[0] == 0xFF:
                return []
            return [(level, kind, _IN6_PKTINFO.pack(address, interface if link_local else 0))]
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, _ = _IN_PKTINFO.unpack(data[: _IN_PKTINFO.size])
            return [(level, kind, _IN_PKTINFO.pack(0, local, bytes(4)))]
    return []


class _Connection:
    """One accepted connection: at most one chunk of unsent bytes, and then nothing is read."""

    __slots__ = (
        "_client",
        "_conversation",
        "_open",
        "_over",
        "_sock",
        "_unsent",
        "_watching",
        "heard",
        "port",
    )

    def __init__(self, port: _Port, sock: socket.socket, client: tuple[str, int]) -> None:
        self.port, self._sock, self._client = port, sock, client
        self._conversation: Conversation | None = None
        self._unsent: memoryview | None = None
        self._open = True
        self._over = False
        self._watching = False
        self.heard = port.server.loop.time()

    @property
    def patience(self) -> float:
        """Seconds of silence after which it is closed."""
        return LINGER_SECONDS if self._over else self.port.app.idle

    def begin(self) -> None:
        """Serve what there is already; most often the client has gone again, or has sent its request."""
        if self.port.app.speaks_first:
            self._converse(b"")
        if self._open and self._unsent is None:
            self._read()
        if self._open and self._unsent is None:
            self._watch()

    def close(self) -> None:
        """Hang up, whatever is unsent."""
        if not self._open:
            return
        self._open = False
        loop = self.port.server.loop
        if self._watching:
            loop.remove_reader(self._sock)
        if self._unsent is not None:
            loop.remove_writer(self._sock)
        self._sock.close()
        self.port.connections.discard(self)
        self.port.server.forget(self)

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self.port.server.loop.add_reader(self._sock, self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:  # reset, timed out, unreachable
            log.debug("%s: %s", _called(self.port.listener), error.strerror)
            data = b""
        if not data:
            self.close()
            return
        if not self._over:
            self.heard = self.port.server.loop.time()
            self._converse(data)

    def _converse(self, data: bytes) -> None:
        try:
            if self._conversation is None:
                name = functools.partial(_local, self._sock)
                self._conversation = self.port.app.connect(endpoint(self._client), name)
            answer = self._conversation.receive(data)
        except Exception:
            self.close()
            raise
        self._send(memoryview(answer))

    def _send(self, data: memoryview) -> None:
        while data:
            try:
                data = data[self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait_to_send(data)
                return
            except OSError as error:
                log.debug("%s: %s", _called(self.port.listener), error.strerror)
                self.close()
                return
        self._sent()

    def _wait_to_send(self, data: memoryview) -> None:
        loop = self.port.server.loop
        if self._watching:
            self._watching = False
            loop.remove_reader(self._sock)
        self._unsent = data
        loop.add_writer(self._sock, self._send_more)

    def _send_more(self) -> None:
        data, self._unsent = self._unsent, None
        self.port.server.loop.remove_writer(self._sock)
        self.heard = self.port.server.loop.time()
        if data is not None:
            self._send(data)
        if self._open and self._unsent is None:
            self._watch()

    def _sent(self) -> None:
        if self._conversation is None or not self._conversation.done:
            return
        self._over = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client has reset it meanwhile
            self.close()


def _local(sock: socket.socket) -> Endpoint:
    return endpoint(sock.getsockname())
