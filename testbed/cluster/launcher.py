"""Starts a cluster's sandbox from the host and waits until it is ready.

Everything in it is a fork of the process that calls ``launch``, so what that process imported is shared
and costs no time again. Whatever happens before the cluster is ready, an error, Ctrl-C, SIGKILL of the
launcher, ends the sandbox; afterwards it lives alone, or, where it is bound, as long as the launcher does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from testbed import __version__
from testbed.cluster import init, statedir
from testbed.cluster.statedir import Facts
from testbed.errors import NotConverged, TestbedError, error_of
from testbed.kernel import process, sandbox
from testbed.wait import patient

KILL_DEADLINE = 10.0
"""Seconds the kernel may take to end every process of a sandbox."""

LOG_FORMAT = "%(asctime)s.%(msecs)03d [%(process)d] %(levelname)s %(name)s: %(message)s"
LOG_TAIL = 20
"""Lines of the log shown with an unforeseen end."""


@dataclass(frozen=True)
class DaemonContext:
    """What the daemon is given. All sockets are connected or listening, and belong to it.

    api_socket: listening, for the control API; zygote, fabric: ends of channels (``cluster.messages``);
    state_dir: the cluster's directory on the host, as ``cluster.statedir`` lays it out.
    """

    name: str
    state_dir: Path
    api_socket: socket.socket
    zygote: socket.socket
    fabric: socket.socket
    reporter: init.Reporter = field(repr=False)

    def ready(self, report: dict[str, Any]) -> None:
        """Tell the launcher, once, that the cluster is ready; ``launch`` returns ``report`` (JSON)."""
        self.reporter.ready(report)

    def failed(self, exit_code: int, message: str, *, log: bool = False) -> None:
        """Tell the launcher that the cluster cannot be; the daemon should then end.

        log: with the end of its log, where the cause is. A TestbedError that leaves the daemon (or the
        fabric) before it is ready does the same.
        """
        more = f"; the end of its log:\n{_tail(self.state_dir)}" if log else ""
        self.reporter.failed(exit_code, message + more)


def launch(
    name: str,
    *,
    daemon: Callable[[DaemonContext], None],
    fabric: Callable[[socket.socket], None],
    info: dict[str, Any],
    deadline: float,
    preload: Sequence[str] = (),
    root: Path | None = None,
    bound: bool = False,
) -> dict[str, Any]:
    """Start the sandbox of cluster ``name`` and return the daemon's report when it is ready.

    daemon, fabric: what these processes run, in the sandbox; when the daemon returns the cluster ends.
    info: facts for ``testbed ls`` (spec, nodes, pods); nodes and pods of the report override them.
    deadline: seconds. preload: what the zygote calls (``module:function``) while the fabric is being built.
    root: where the cluster's directory is made, by default the user's. bound: the cluster ends when this
    process does, however that comes.

    Raises InputError for a name that runs already, what the daemon or the fabric reported, NotConverged after
    the deadline, TestbedError for any other end.
    """
    root = root or statedir.root_directory()
    statedir.clean_stale(root)
    directory, lock = statedir.create(name, root)
    launched = False
    with ExitStack() as cleanup:
        # From here on init, if it was forked, is dead before its directory goes.
        cleanup.callback(lambda: lock.close() if launched else statedir.remove(directory, lock))
        facts = Facts(name=name, version=__version__, created=time.time(), **_known(info))
        statedir.write_facts(directory, facts)
        ends = _Ends.make(directory)
        cleanup.callback(ends.close)
        owner = os.pidfd_open(os.getpid()) if bound else -1
        if bound:
            cleanup.callback(os.close, owner)

        pid, pidfd = _fork_sandbox(ends, lock.fd, name, directory, daemon, fabric, tuple(preload), owner)
        cleanup.callback(os.close, pidfd)
        cleanup.callback(lambda: None if launched else _kill(pidfd))

        lock.name_init(pid, process.start_time(pid) or 0)
        report = _await_report(ends.report_reader, pidfd, directory, deadline)
        statedir.write_facts(directory, msgspec.structs.replace(facts, ready=True, **_counts(report)))
        ends.detach()
        launched = True
    return report


def _known(info: dict[str, Any]) -> dict[str, Any]:
    return {key: info[key] for key in ("spec", "nodes", "pods") if key in info}


def _counts(report: dict[str, Any]) -> dict[str, Any]:
    """What of the daemon's report overrides the facts: how much there turned out to be."""
    return {key: report[key] for key in ("nodes", "pods") if isinstance(report.get(key), int)}


@dataclass
class _Ends:
    """The descriptors between launcher and sandbox. life: while its writer is open the launcher lives;
    a byte on it means that the sandbox is to live on alone."""

    api: socket.socket
    log: int
    report_reader: int
    report_writer: int
    life_reader: int
    life_writer: int
    handshake: socket.socket
    handshake_inside: socket.socket

    @classmethod
    def make(cls, directory: Path) -> _Ends:
        api = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A path through the descriptor is short, however long the directory's own is (limit: 108 bytes).
        there = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        api.bind(f"/proc/self/fd/{there}/{statedir.SOCKET}")
        os.close(there)
        os.chmod(directory / statedir.SOCKET, 0o600)
        api.listen(128)
        log = os.open(directory / statedir.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return cls(api, log, *os.pipe(), *os.pipe(), *socket.socketpair())

    def detach(self) -> None:
        os.write(self.life_writer, b"!")

    def close(self) -> None:
        for fd in (self.log, self.report_reader, self.report_writer, self.life_reader, self.life_writer):
            if fd >= 0:
                os.close(fd)
        self.report_writer = self.life_reader = -1
        for end in (self.api, self.handshake, self.handshake_inside):
            end.close()

    def close_inside(self) -> None:
        """Close what is the sandbox's, so that its end is seen."""
        os.close(self.report_writer)
        os.close(self.life_reader)
        self.report_writer = self.life_reader = -1
        self.handshake_inside.close()


def _fork_sandbox(
    ends: _Ends,
    lock: int,
    name: str,
    directory: Path,
    daemon: Callable[[DaemonContext], None],
    fabric: Callable[[socket.socket], None],
    preload: tuple[str, ...],
    owner: int,
) -> tuple[int, int]:
    """Fork the process that makes the namespaces and in them init; returns init's pid here, and a pidfd."""
    maps = sandbox.own_id_maps() if sandbox.needs_user_namespace() else None
    reporter = init.Reporter(ends.report_writer)
    inside = ends.handshake_inside

    def run_init() -> None:
        sandbox.prepare(directory)

        def run_daemon(zygote: socket.socket, to_fabric: socket.socket) -> None:
            daemon(DaemonContext(name, directory, ends.api, zygote, to_fabric, reporter))

        init.run(
            name=name,
            daemon=run_daemon,
            fabric=fabric,
            preload=preload,
            reporter=reporter,
            life=ends.life_reader,
            daemon_keeps=(ends.api.fileno(),),
            owner=owner,
        )

    def make_namespaces() -> None:
        os.setsid()
        _detach_stdio(ends.log)
        os.chdir("/")
        os.umask(0o022)
        if maps is not None:
            sandbox.enter_user_namespace()
            inside.send(b"u")
            match inside.recv(1):
                case b"":
                    sys.exit(1)  # the launcher is gone
                case b"m":
                    os.setgroups([])
        sandbox.enter_namespaces()
        pid = process.fork(
            run_init,
            title="testbed-init",
            keep=(lock, ends.api.fileno(), ends.report_writer, ends.life_reader, owner),
            on_error=reporter.error,
        )
        # As long as this process has not reaped it the number cannot be another's.
        socket.send_fds(inside, [str(pid).encode()], [os.pidfd_open(pid)])

    helper = process.fork(
        make_namespaces,
        title="testbed-start",
        keep=(
            lock,
            ends.log,
            ends.api.fileno(),
            ends.report_writer,
            ends.life_reader,
            inside.fileno(),
            owner,
        ),
        on_error=reporter.error,
    )
    ends.close_inside()
    try:
        said, fds, _, _ = socket.recv_fds(ends.handshake, 64, 1)
        if said == b"u" and maps is not None:
            many = sandbox.write_id_maps(helper, maps)
            ends.handshake.send(b"m" if many else b"1")
            said, fds, _, _ = socket.recv_fds(ends.handshake, 64, 1)
    finally:
        ends.handshake.close()  # lets the helper go, if it still waits
        os.waitpid(helper, 0)
    if not said:
        raise _failure(ends.report_reader, directory)
    return int(said), fds[0]


def _detach_stdio(log: int) -> None:
    """No terminal: input from nowhere, output and logging to the cluster's log."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(min(root.level, logging.INFO))


def _await_report(reader: int, pidfd: int, directory: Path, deadline: float) -> dict[str, Any]:
    """The daemon's report; raises what it or another process of the sandbox reported instead."""
    until = time.monotonic() + patient(deadline)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    text = b""
    while not text.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise NotConverged("cluster ready", deadline, _tail(directory))
        data = os.read(reader, 1 << 16)
        if not data:
            # All who could report are gone; init goes last.
            process.wait_pidfd(pidfd, KILL_DEADLINE)
            raise _unforeseen(directory)
        text += data
    return _parse(text)


def _failure(reader: int, directory: Path) -> TestbedError:
    """Why there is no sandbox at all: what its would-be processes reported before they ended."""
    text = b""
    while data := os.read(reader, 1 << 16):
        text += data
    if not text:
        return _unforeseen(directory)
    try:
        _parse(text)
    except TestbedError as error:
        return error
    return _unforeseen(directory)


def _parse(text: bytes) -> dict[str, Any]:
    first: dict[str, Any] = msgspec.json.decode(text.split(b"\n", 1)[0])
    if "ready" in first:
        report: dict[str, Any] = first["ready"]
        return report
    raise error_of(first["exit_code"], first["message"])


def _unforeseen(directory: Path) -> TestbedError:
    return TestbedError(f"the cluster ended before it was ready; the end of its log:\n{_tail(directory)}")


def _tail(directory: Path) -> str:
    text = (directory / statedir.LOG).read_text(errors="replace")
    return "\n".join(text.splitlines()[-LOG_TAIL:]) or "(empty)"


def _kill(pidfd: int) -> None:
    """SIGKILL init and wait until nothing of its namespaces runs."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait_pidfd(pidfd, KILL_DEADLINE)
