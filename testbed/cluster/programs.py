"""Programs that run in a node's pods: what a person executes, and the commands of manifests where allowed."""

from __future__ import annotations

import logging
import os
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Mapping

from testbed.errors import TestbedError
from testbed.kernel import execute, process
from testbed.state import PodState

log = logging.getLogger(__name__)

LOG_BYTES = 256 * 1024
"""How much of a container's output is kept: its end."""


class Log:
    """The last ``LOG_BYTES`` of what a container printed, in whole writes."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._size = 0

    def append(self, data: bytes) -> None:
        """Add output; the oldest goes when there is too much."""
        self._parts.append(data)
        self._size += len(data)
        while self._size > LOG_BYTES:
            self._size -= len(self._parts.popleft())

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)


class Programs:
    """The programs of one node, by the pod they belong to. netns: uid → descriptor, of the kernel."""

    def __init__(
        self, readers: process.Readers, children: process.Children, netns: Callable[[str], int]
    ) -> None:
        self._readers, self._children, self._netns = readers, children, netns
        self._of_pod: dict[str, set[int]] = defaultdict(set)
        self._pipes: dict[int, int] = {}  # pid → where its output comes from
        self.logs: dict[tuple[str, str], Log] = {}
        """(uid, container) → its output."""

    def spawn(
        self,
        pod: PodState,
        argv: tuple[str, ...],
        stdio: tuple[int, int, int],
        ended: Callable[[int], object],
        *,
        env: dict[str, str],
        cwd: str = "/",
        tty: bool = False,
        volumes: Mapping[str, str] | None = None,
    ) -> int:
        """Run a program in a pod and return its pid; ``ended(wait status)`` when it has.

        Raises OSError where it cannot be run (see ``execute.failure_code``) and KernelRefused.
        """
        pid = execute.spawn(
            argv,
            env=env,
            cwd=cwd,
            stdio=stdio,
            netns=self._netns(pod.uid),
            hostname=pod.hostname,
            domainname=pod.domainname,
            files=pod.files,
            volumes=volumes,
            tty=tty,
            drop_privileges=True,
        )
        self._of_pod[pod.uid].add(pid)

        def over(status: int) -> None:
            if pod.uid in self._of_pod:
                self._of_pod[pod.uid].discard(pid)
            ended(status)

        self._children.watch(pid, over)
        return pid

    def log(self, uid: str, container: str) -> Log:
        """A new log for a container that starts."""
        output = self.logs[uid, container] = Log()
        return output

    def start_command(
        self, pod: PodState, container: str, argv: tuple[str, ...], ended: Callable[[int], object]
    ) -> int:
        """Run a container's command; its log begins anew. Returns and raises as ``run``."""
        output = self.log(pod.uid, container)
        try:
            return self.run(pod, container, argv, output, ended)
        except (OSError, TestbedError) as error:
            output.append(f"{error}\n".encode())
            raise

    def run(
        self,
        pod: PodState,
        container: str,
        argv: tuple[str, ...],
        output: Log,
        ended: Callable[[int], object],
        volumes: Mapping[str, str] | None = None,
        env: dict[str, str] | None = None,
    ) -> int:
        """Run a program of a container with what it prints kept in ``output``; see ``spawn``.

        env: by default the container's.
        """
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        silence = os.open(os.devnull, os.O_RDONLY)

        def over(status: int) -> None:
            if reading in self._pipes:
                self._read(reading, output)  # what it printed last
            ended(status)

        try:
            stdio = silence, writing, writing
            env = pod.env.get(container, {}) if env is None else env
            pid = self.spawn(pod, argv, stdio, over, env=env, volumes=volumes)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(silence)
            os.close(writing)
        self._pipes[reading] = pid
        self._readers.add_reader(reading, self._read, reading, output)
        return pid

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the process group of a program; one that has ended is left alone."""
        self._children.signal(pid, number, group=True)

    def _read(self, pipe: int, output: Log) -> None:
        try:
            data = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return
        if data:
            output.append(data)
        else:
            self._close_pipe(pipe)

    def _close_pipe(self, pipe: int) -> None:
        del self._pipes[pipe]
        self._readers.remove_reader(pipe)
        os.close(pipe)

    def stop(self, uid: str) -> None:
        """Kill every program of a pod and forget what it printed."""
        pids = self._of_pod.pop(uid, set())
        for pid in pids:
            self._children.signal(pid, signal.SIGKILL, group=True)
        for pipe in [pipe for pipe, pid in self._pipes.items() if pid in pids]:
            self._close_pipe(pipe)
        for key in [key for key in self.logs if key[0] == uid]:
            del self.logs[key]
