"""How fit this machine is for timing: how late it wakes up, and what a packet over a veth pair costs.

Nothing is refused for it; the figures say what a measured time can mean here. Takes about half a second.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from testbed.errors import NotConverged, TestbedError
from testbed.kernel import probe, process, syscalls
from testbed.kernel.run import run
from testbed.quantiles import quantile

SLEEPS, SLEEP = 200, 0.001
ROUND_TRIPS = 1000
PORT = 7
LATE = 1e-3
"""Seconds: where one in a hundred is later than this, times below some milliseconds say little."""


@dataclass(frozen=True)
class Spread:
    """Seconds. p99: what one in a hundred exceeds."""

    median: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        ordered = sorted(values)
        return cls(quantile(ordered, 0.5), quantile(ordered, 0.99))


def wake_up_delay() -> Spread:
    """How much later than asked for a process runs again: timer and scheduler together."""
    late = []
    for _ in range(SLEEPS):
        begun = time.perf_counter()
        time.sleep(SLEEP)  # what is measured
        late.append(time.perf_counter() - begun - SLEEP)
    return Spread.of(late)


def veth_round_trip() -> Spread:
    """A UDP datagram over a veth pair between two namespaces and back, without a change of process.

    Raises TestbedError where namespaces or veth pairs cannot be made.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def body() -> None:
        probe.enter()
        near = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _ip("link set lo up")
        syscalls.unshare(syscalls.CLONE_NEWNET)
        _ip(f"link add far type veth peer name near netns /proc/{os.getpid()}/fd/{near}")
        far_socket = _plugged("far", "10.0.0.2")
        syscalls.setns(near)
        near_socket = _plugged("near", "10.0.0.1")
        with os.fdopen(writer, "w") as report:
            json.dump(_round_trips(near_socket, far_socket), report)

    child = process.fork(body, title="testbed: fitness", keep=[writer])
    os.close(writer)
    with os.fdopen(reader) as report:
        text = report.read()
    os.waitpid(child, 0)
    if not text:
        raise TestbedError("a veth pair between two namespaces could not be made")
    return Spread.of(json.loads(text))


def _ip(words: str) -> None:
    run(["ip", *words.split()])


def _plugged(dev: str, address: str) -> socket.socket:
    _ip(f"address add {address}/24 dev {dev}")
    _ip(f"link set {dev} up")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, PORT))
    sock.settimeout(1)
    return sock


def _round_trips(near: socket.socket, far: socket.socket) -> list[float]:
    def once() -> float:
        begun = time.perf_counter()
        near.sendto(b"x", ("10.0.0.2", PORT))
        _, peer = far.recvfrom(1)
        far.sendto(b"x", peer)
        near.recv(1)
        return time.perf_counter() - begun

    _until_answered(once)
    return [once() for _ in range(ROUND_TRIPS)]


def _until_answered(once: Callable[[], float]) -> None:
    """The first ones go to resolving addresses and to ports that come up."""
    for _ in range(5):
        try:
            once()
        except TimeoutError:
            continue
        return
    raise NotConverged("a datagram crosses a veth pair", 5.0)
