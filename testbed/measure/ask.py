"""Whole conversations, many and fast: connect, ask one thing, hear the answer, hang up.

One thread, one epoll, as ``exchange``; here what was answered counts too, and conversations may be begun at
a steady rate whatever becomes of earlier ones (an open loop: a slow answer delays no later question).
"""

from __future__ import annotations

import collections
import errno
import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from testbed.measure.messages import Language, Outcome, Question, Reply
from testbed.measure.sockets import (
    LINGER_RESET,
    TCP_INFO_SIZE,
    Namespaces,
    family_of,
    handshake_of,
    read_errors,
    want_errors,
)
from testbed.measure.verdicts import CUT_SHORT, NO_ANSWER, SILENT, from_errno

ANSWER_BYTES: Final = 1 << 16
"""How much of an answer is read; one that is longer is cut short."""

_SOCKETS: Final[dict[Language, tuple[socket.SocketKind, int]]] = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "http": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, getattr(socket, "IPPROTO_SCTP", 132)),
}


def ask(
    language: Language,
    questions: Sequence[Question],
    namespaces: Namespaces,
    *,
    text: str,
    count: int,
    rate: float,
    at_once: int,
    timeout: float,
) -> list[Reply]:
    """``count`` conversations, the questions in turn; see ``messages.Ask``. Raises OSError."""
    return _Talks(language, questions, namespaces, text, timeout).run(count, rate, at_once)


class _Talk:
    """One conversation that is under way."""

    __slots__ = ("at", "begun", "connected", "handshake", "heard", "number", "sock")

    def __init__(self, number: int, sock: socket.socket, at: int, begun: float) -> None:
        self.number, self.sock, self.at, self.begun = number, sock, at, begun
        self.connected = False
        self.handshake: float | None = None
        self.heard = b""


class _Talks:
    """All conversations of one request."""

    def __init__(
        self,
        language: Language,
        questions: Sequence[Question],
        namespaces: Namespaces,
        text: str,
        timeout: float,
    ) -> None:
        self._language, self._questions, self._namespaces = language, questions, namespaces
        self._request = _request(language, text)
        self._timeout = timeout
        self._replies: list[Reply] = []
        self._open: dict[int, _Talk] = {}
        self._due: collections.deque[_Talk] = collections.deque()  # all wait equally long: the oldest first
        self._epoll = select.epoll()

    def run(self, count: int, rate: float, at_once: int) -> list[Reply]:
        """Hold them; one reply each, in the order they were begun."""
        self._replies = [_UNASKED] * count
        first, begun = time.monotonic(), 0
        try:
            while begun < count or self._open:
                now = time.monotonic()
                while (
                    begun < count and len(self._open) < at_once and (not rate or now >= first + begun / rate)
                ):
                    self._begin(begun)
                    begun += 1
                    now = time.monotonic()
                waits = [self._due[0].begun + self._timeout - now] if self._due else []
                if begun < count and len(self._open) < at_once:
                    waits.append(first + begun / rate - now)
                self._progress(max(0.0, min(waits, default=0.0)))
        finally:
            for talk in self._open.values():
                talk.sock.close()
            self._epoll.close()
        return self._replies

    def _begin(self, number: int) -> None:
        question = self._questions[number % len(self._questions)]
        self._namespaces.enter(question.source)
        at, begun = time.time_ns(), time.monotonic()
        family = family_of(question.ip)
        kind, protocol = _SOCKETS[self._language]
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            self._replies[number] = _failed(at, from_errno(error.errno or 0))
            return
        talk = _Talk(number, sock, at, begun)
        try:
            want_errors(sock)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            if question.source_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", question.source_port))
            code = sock.connect_ex((question.ip, question.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, "connect")
            if kind == socket.SOCK_DGRAM:
                sock.send(self._request)
                talk.connected = True
        except OSError as error:
            self._replies[number] = _failed(at, _told(sock, error.errno or 0))
            sock.close()
            return
        self._open[sock.fileno()] = talk
        self._due.append(talk)
        self._epoll.register(sock.fileno(), select.EPOLLIN if talk.connected else select.EPOLLOUT)

    def _progress(self, wait: float) -> None:
        # The clock is read before the events: what had answered by then is never taken for silence.
        now = time.monotonic()
        for fd, _ in self._epoll.poll(wait, len(self._open) or 1):
            talk = self._open[fd]
            try:
                reply = self._read(talk) if talk.connected else self._connect(talk)
            except BlockingIOError:
                continue
            except OSError as error:
                reply = self._reply(talk, _told(talk.sock, error.errno or 0))
            if reply is not None:
                self._close(talk, reply)
        while self._due and (self._due[0].sock.fileno() < 0 or self._due[0].begun + self._timeout <= now):
            talk = self._due.popleft()
            if talk.sock.fileno() >= 0:
                reason = SILENT if talk.connected and self._language != "udp" else NO_ANSWER
                self._close(talk, self._reply(talk, Outcome("timeout", reason)))

    def _connect(self, talk: _Talk) -> Reply | None:
        code = talk.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self._reply(talk, _told(talk.sock, code))
        talk.connected = True
        if self._language != "sctp":
            info = talk.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            talk.handshake = handshake_of(info) / 1e9 or None
        if self._language == "tcp" and not self._request:
            return self._reply(talk, Outcome("ok"))
        if self._request:
            talk.sock.send(self._request)
        self._epoll.modify(talk.sock.fileno(), select.EPOLLIN)
        return None

    def _read(self, talk: _Talk) -> Reply | None:
        data = talk.sock.recv(ANSWER_BYTES)
        talk.heard += data
        if data and self._language == "http" and len(talk.heard) < ANSWER_BYTES:
            return None  # the server ends the answer by hanging up
        outcome, answer = understood(self._language, talk.heard)
        return self._reply(talk, outcome, answer)

    def _reply(self, talk: _Talk, outcome: Outcome, answer: str = "") -> Reply:
        return Reply(
            at=talk.at,
            verdict=outcome.verdict,
            reason=outcome.reason,
            reporter=outcome.reporter,
            answer=answer,
            seconds=time.monotonic() - talk.begun if outcome.verdict != "timeout" else None,
            handshake=talk.handshake,
        )

    def _close(self, talk: _Talk, reply: Reply) -> None:
        self._replies[talk.number] = reply
        del self._open[talk.sock.fileno()]
        talk.sock.close()  # takes it out of the epoll set too


_UNASKED: Final = Reply(at=0, verdict="error", reason="not asked")


def _failed(at: int, outcome: Outcome) -> Reply:
    return Reply(at=at, verdict=outcome.verdict, reason=outcome.reason, reporter=outcome.reporter)


def _told(sock: socket.socket, code: int) -> Outcome:
    """What an error of a socket call means; the ICMP message behind it, if there is one, says more."""
    return next((outcome for outcome, _ in read_errors(sock)), from_errno(code))


def _request(language: Language, text: str) -> bytes:
    if language == "http":
        return f"GET {text} HTTP/1.1\r\nHost: testbed\r\nConnection: close\r\n\r\n".encode()
    return text.encode()


def understood(language: Language, heard: bytes) -> tuple[Outcome, str]:
    """What an answer comes to: one of HTTP has to be whole and of status 2xx, any other has to be there."""
    if language != "http":
        return (Outcome("ok") if heard else Outcome("error", CUT_SHORT)), heard.decode(errors="replace")
    head, ended, body = heard.partition(b"\r\n\r\n")
    first, *fields = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    length = next(
        (field.partition(":")[2].strip() for field in fields if field.lower().startswith("content-length:")),
        "",
    )
    if not ended or len(words) < 2 or (length.isdecimal() and len(body) != int(length)):
        return Outcome("error", CUT_SHORT), ""
    outcome = Outcome("ok") if words[1].startswith("2") else Outcome("error", f"status {words[1]}")
    return outcome, body.decode(errors="replace")
