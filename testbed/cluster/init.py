"""PID 1 of a sandbox: forks the others, reaps orphans, and ends, and with it everything, when they do.

It is small and single-threaded: a daemon that reaped orphans itself would swallow the exit codes of its
own children.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from testbed.cluster import zygote
from testbed.errors import TestbedError
from testbed.kernel import process
from testbed.kernel.channel import socket_pair

log = logging.getLogger(__name__)

FABRIC_NOFILE = 1024
"""The fabric's soft limit of descriptors: Mininet's ``mnexec -c`` closes each possible one, up to the limit,
every time it starts a host; with a million of them that takes a second."""

LAST_WORDS = 0.1
"""Seconds the others get to say why, when one of them has ended; then the kernel ends them."""


class Reporter:
    """The sandbox's end of the pipe on which the launcher waits; the first report counts."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def ready(self, report: dict[str, Any]) -> None:
        """The cluster is ready."""
        self._send({"ready": report})

    def failed(self, exit_code: int, message: str) -> None:
        """The cluster cannot be."""
        self._send({"exit_code": exit_code, "message": message})

    def error(self, error: BaseException) -> None:
        """The cluster cannot be, because of this."""
        if isinstance(error, TestbedError):
            self.failed(error.exit_code, str(error))
        else:
            self.failed(TestbedError.exit_code, f"{type(error).__name__}: {error}")

    def _send(self, message: dict[str, Any]) -> None:
        if self.fd < 0:
            return
        data = msgspec.json.encode(message) + b"\n"
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except BrokenPipeError:
            log.info("nobody waits for the report any more")
        finally:
            self.close()

    def close(self) -> None:
        """Nothing to report from this process (any more)."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def run(
    *,
    name: str,
    daemon: Callable[[socket.socket, socket.socket], None],
    fabric: Callable[[socket.socket], None],
    preload: Sequence[str],
    reporter: Reporter,
    life: int,
    daemon_keeps: Sequence[int],
    owner: int = -1,
) -> None:
    """Fork zygote, fabric and daemon, and watch them until one ends; then return, which ends all.

    daemon is called with its channels' ends to the zygote and to the fabric. life: a pipe whose other end
    the launcher holds until the cluster is ready. daemon_keeps: descriptors only the daemon needs. owner: a
    pidfd of the process whose end is the cluster's too; -1 for none.
    """
    wakeup = _wake_on_signals()
    gc.freeze()
    zygote_end, zygote_inside = socket_pair()
    fabric_end, fabric_inside = socket_pair()
    bodies: dict[str, tuple[Callable[[], None], list[int]]] = {
        "zygote": (partial(zygote.run, zygote_inside, preload), [zygote_inside.fileno()]),
        "fabric": (partial(fabric, fabric_inside), [fabric_inside.fileno()]),
        "daemon": (
            partial(daemon, zygote_end, fabric_end),
            [zygote_end.fileno(), fabric_end.fileno(), *daemon_keeps],
        ),
    }
    children = {_fork(body, name, reporter, keep): name for name, (body, keep) in bodies.items()}
    reporter.close()
    for end in (zygote_end, zygote_inside, fabric_end, fabric_inside):
        end.close()
    for fd in daemon_keeps:
        os.close(fd)
    log.info("cluster %s: init watches over %s", name, children)
    _watch(children, wakeup, life, owner)


def _fork(body: Callable[[], None], name: str, reporter: Reporter, keep: Sequence[int]) -> int:
    def limited() -> None:
        _limit_descriptors(name)
        body()

    return process.fork(limited, title=f"testbed-{name}", keep=(*keep, reporter.fd), on_error=reporter.error)


def _limit_descriptors(name: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(FABRIC_NOFILE, hard) if name == "fabric" else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _wake_on_signals() -> int:
    """A descriptor that is readable after SIGCHLD or SIGTERM. PID 1 gets only signals it has handlers for."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _watch(children: dict[int, str], wakeup: int, life: int, owner: int) -> None:
    poller = select.poll()
    for fd in (wakeup, life, owner):
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    last = math.inf  # when to stop waiting, monotonic
    while children and (left := last - time.monotonic()) > 0:
        readable = {fd for fd, _ in poller.poll(None if math.isinf(left) else left * 1000)}
        if owner in readable:
            log.info("the process that the cluster belongs to has ended")
            return
        if life in readable:
            if not os.read(life, 1):
                log.error("the launcher ended before the cluster was ready")
                sys.exit(1)
            poller.unregister(life)
            os.close(life)
        if wakeup in readable:
            if signal.SIGTERM in os.read(wakeup, 4096):
                log.info("terminated")
                return
            if _reap(children):
                last = min(last, time.monotonic() + LAST_WORDS)


def _reap(children: dict[int, str]) -> bool:
    """Reap whoever has ended; whether one of ``children`` was among them."""
    known = len(children)
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if (name := children.pop(pid, None)) is not None:
            log.warning("the %s ended with code %d; the cluster ends", name, process.exit_code(status))
    return len(children) < known
