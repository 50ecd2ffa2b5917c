"""Programs that run on a node beside its pods, as a dataplane's routing daemon does: started, fed, run again.

Each has a directory of its own, with its files and its log. One that ends by itself is run again, as a
DaemonSet's container would be: after a second, then after twice as long each time, 30 s at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from testbed.errors import TestbedError
from testbed.kernel import execute, process
from testbed.state import Daemon

log = logging.getLogger(__name__)

STATE = Path("/run/testbed-daemons")
"""In the sandbox: a directory per node, in it one per daemon."""

LOG = "log"
"""The file in a daemon's directory that its output goes to."""
MAX_LOG = 8 << 20
"""Bytes of it; then what it holds is kept as ``log.old``, and it begins anew."""
LOOK_SECONDS = 10.0
"""How often its size is looked at."""

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
STEADY_SECONDS = 10.0
"""A daemon that ran for so long is run again as if it had never ended."""


def directory(node: str, name: str) -> Path:
    """Where a daemon's files are, in the sandbox."""
    return STATE / node / name


class Daemons:
    """The daemons of the node in whose netns this process lives."""

    def __init__(self, loop: asyncio.AbstractEventLoop, children: process.Children, node: str) -> None:
        self._loop, self._children, self._node = loop, children, node
        self._running: dict[str, _Running] = {}
        self._looking: asyncio.TimerHandle | None = None

    def run(self, daemons: Mapping[str, Daemon]) -> None:
        """Run these, and no others. Raises TestbedError where some cannot be run, when the others are."""
        for name in self._running.keys() - daemons.keys():
            self._running.pop(name).stop()
        failed = []
        for name, daemon in daemons.items():
            try:
                self._run_one(name, daemon)
            except (TestbedError, OSError) as error:
                failed.append(f"{name}: {error}")
        if self._running and self._looking is None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
        if failed:
            raise TestbedError("; ".join(failed))

    def _run_one(self, name: str, daemon: Daemon) -> None:
        if name in self._running:
            self._running[name].become(daemon)
        else:
            running = _Running(self._loop, self._children, self._node, name, daemon)
            running.start()
            self._running[name] = running

    def _look(self) -> None:
        """Keep logs from growing without end."""
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look) if self._running else None
        for name in self._running:
            path = directory(self._node, name) / LOG
            try:
                if path.stat().st_size > MAX_LOG:
                    shutil.copyfile(path, path.with_suffix(".old"))
                    os.truncate(path, 0)  # its writer appends, and goes on at the new end
            except OSError as error:
                log.warning("%s: the log of %s: %s", self._node, name, error)

    def close(self) -> None:
        """End all."""
        self.run({})
        if self._looking:
            self._looking.cancel()


class _Running:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        children: process.Children,
        node: str,
        name: str,
        daemon: Daemon,
    ) -> None:
        self._loop, self._children, self._node, self._name = loop, children, node, name
        self._daemon = daemon
        self._directory = directory(node, name)
        self._pid: int | None = None
        self._since = 0.0
        self._backoff = FIRST_BACKOFF
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o755)
        self._write(self._daemon.files)
        self._start()

    def become(self, daemon: Daemon) -> None:
        """Run ``daemon`` instead; as little as possible is done. What fails is done next time."""
        before = self._daemon
        if before == daemon and (self._pid is not None or self._timer is not None):
            return
        for gone in before.files.keys() - daemon.files.keys():
            (self._directory / gone).unlink(missing_ok=True)
        self._write({name: text for name, text in daemon.files.items() if before.files.get(name) != text})
        if daemon.argv == before.argv and daemon.reload and self._pid is not None:
            if before.files != daemon.files:
                pid = self._spawn(daemon.reload)
                self._children.watch(pid, self._reloaded)
            self._daemon = daemon
        else:
            self._daemon = daemon
            self._restart()

    def stop(self) -> None:
        """End it; the processes it started go with its group."""
        if self._timer:
            self._timer.cancel()
        pid, self._pid = self._pid, None
        if pid is not None:
            self._children.signal(pid, signal.SIGKILL, group=True)

    def _restart(self) -> None:
        self.stop()
        self._backoff = FIRST_BACKOFF
        self._start()

    def _start(self) -> None:
        self._timer = None
        self._pid = pid = self._spawn(self._daemon.argv)
        self._since = self._loop.time()
        self._children.watch(pid, lambda status: self._ended(pid, status))

    def _spawn(self, argv: tuple[str, ...]) -> int:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        output = os.open(self._directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            return execute.spawn(
                tuple(map(self._filled, argv)),
                env=ENV,
                cwd=str(self._directory),
                stdio=(null, output, output),
                hostname=self._node,
            )
        finally:
            os.close(null)
            os.close(output)

    def _filled(self, text: str) -> str:
        return text.replace("@DIR@", str(self._directory)).replace("@PYTHON@", sys.executable)

    def _write(self, files: Mapping[str, str]) -> None:
        """Each file appears whole: the program may read it at any moment."""
        for name, text in files.items():
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_text(self._filled(text))
            draft.rename(path)

    def _reloaded(self, status: int) -> None:
        if code := process.exit_code(status):
            log.error("%s: %s does not take its new files: exit code %d", self._node, self._name, code)

    def _ended(self, pid: int, status: int) -> None:
        if pid != self._pid:
            return  # it was ended by us
        self._pid = None
        if self._loop.time() - self._since >= STEADY_SECONDS:
            self._backoff = FIRST_BACKOFF
        log.warning(
            "%s: %s ended with exit code %d; it is run again in %g s",
            *(self._node, self._name, process.exit_code(status), self._backoff),
        )
        self._timer = self._loop.call_later(self._backoff, self._again)
        self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)

    def _again(self) -> None:
        try:
            self._start()
        except (TestbedError, OSError) as error:
            log.error("%s: %s: %s", self._node, self._name, error)
            self._timer = self._loop.call_later(self._backoff, self._again)
