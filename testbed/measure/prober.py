"""The prober: a process that measures from inside the pods' netns, one request at a time.

It is single-threaded: it enters a netns (setns), opens sockets, which keep belonging there, and goes
back. Requests and answers: ``measure.messages``.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time

import msgspec

from testbed.errors import InputError
from testbed.kernel.channel import Channel, ChannelClosed
from testbed.measure.ask import ask
from testbed.measure.messages import (
    Ask,
    Asked,
    FromProber,
    Namespaces,
    ProbeFailed,
    ProbeRan,
    Reach,
    Reached,
    RoundTrips,
    RunProbe,
    ToProber,
    Trace,
    Traced,
    Trips,
)
from testbed.measure.reach import NeighbourWatch, reach, window
from testbed.measure.rtt import round_trips
from testbed.measure.sockets import Namespaces as Entered

log = logging.getLogger(__name__)
Request = Reach | RoundTrips | Ask | RunProbe | Trace


def main(sock: socket.socket, name: str = "prober") -> None:
    """Serve requests until the other end closes; the entry of a worker of the zygote."""
    channel: Channel[Namespaces | Request] = Channel(sock, ToProber)
    fds: dict[str, int] = {}
    try:
        while True:
            message, received = channel.receive()
            if isinstance(message, Namespaces):
                fds.update(_adopt(message.names, received, fds))
                continue
            answer = _answer(message, fds)
            _close_all(fds)
            channel.send(answer)
    except ChannelClosed:
        log.debug("%s: the daemon is gone", name)
    finally:
        _close_all(fds)


def _adopt(names: tuple[str, ...], received: list[int], fds: dict[str, int]) -> dict[str, int]:
    """Names with their descriptors; a name that came before keeps the new one."""
    for name in names:
        if name in fds:
            os.close(fds.pop(name))
    return dict(zip(names, received, strict=True))


def _close_all(fds: dict[str, int]) -> None:
    for fd in fds.values():
        os.close(fd)
    fds.clear()


def _answer(message: Request, fds: dict[str, int]) -> FromProber:
    try:
        if isinstance(message, Reach):
            return _reach(message, fds)
        if isinstance(message, Ask):
            return _ask(message, fds)
        if isinstance(message, RunProbe):
            return _run(message, fds)
        if isinstance(message, Trace):
            return _trace(message, fds)
        with Entered(fds) as namespaces:
            trips, answers = round_trips(
                message.series,
                namespaces,
                count=message.count,
                interval=message.interval,
                timeout=message.timeout,
            )
        return Trips(message.id, tuple(trips), tuple(answers))
    except (OSError, KeyError, InputError, subprocess.SubprocessError) as error:
        log.exception("request %d", message.id)
        return ProbeFailed(message.id, f"{type(error).__name__}: {error}")


def _reach(message: Reach, fds: dict[str, int]) -> Reached:
    started = time.monotonic()
    watch = NeighbourWatch.over(message.flows)
    with Entered(fds) as namespaces:
        outcomes = reach(
            message.protocol,
            message.flows,
            namespaces,
            timeout=message.timeout,
            attempts=message.attempts,
        )
    seconds = time.monotonic() - started
    return Reached(message.id, tuple(outcomes), seconds, watch.result())


def _ask(message: Ask, fds: dict[str, int]) -> Asked:
    with Entered(fds) as namespaces:
        replies = ask(
            message.language,
            message.questions,
            namespaces,
            text=message.text,
            count=message.count,
            rate=message.rate,
            at_once=min(message.at_once, window()),
            timeout=message.timeout,
        )
    return Asked(message.id, tuple(replies))


def _run(message: RunProbe, fds: dict[str, int]) -> ProbeRan:
    from testbed.measure.floor import FLOOR, bare_veth

    if any(flow.source == FLOOR for flow in message.flows):
        with bare_veth() as near:
            return _run_kind(message, {FLOOR: near})
    return _run_kind(message, fds)


def _run_kind(message: RunProbe, fds: dict[str, int]) -> ProbeRan:
    from testbed.measure.loop import closed_loop, open_loop
    from testbed.measure.probes import Program, probes

    window()  # for its limit of descriptors
    kind = msgspec.convert(message.options, probes.get(message.kind))
    with Entered(fds) as namespaces:
        if isinstance(kind, Program):
            rows = kind.run(message.flows, namespaces, message.seconds, message.timeout)
            return ProbeRan(message.id, {}, rows=tuple(dict(row) for row in rows))
        if message.moments:
            book = open_loop(
                kind,
                message.flows,
                namespaces,
                message.moments,
                timeout=message.timeout,
                favoured=message.favoured,
            )
        else:
            book = closed_loop(
                kind,
                message.flows,
                namespaces,
                message.count,
                at_once=message.at_once,
                gap=message.gap,
                timeout=message.timeout,
                seconds=message.seconds,
                favoured=message.favoured,
            )
    stepped = time.time_ns() - time.monotonic_ns() - book.offset
    return ProbeRan(message.id, book.columns(), tuple(book.words), book.offset, stepped, book.favoured)


def _trace(message: Trace, fds: dict[str, int]) -> Traced:
    from testbed.measure.trace import follow

    with Entered(fds) as namespaces:
        return follow(message, namespaces)
