"""Runs a tool: an argument list in, its result or an error out. The only place that starts short programs."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from testbed.errors import CommandFailed, NotConverged
from testbed.kernel import process
from testbed.wait import patient

log = logging.getLogger(__name__)

DEADLINE = 30.0
"""Seconds a tool may take unless told otherwise."""


@dataclass(frozen=True)
class Result:
    """What a tool said. seconds: how long it ran."""

    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Sequence[str],
    *,
    stdin: str = "",
    deadline: float = DEADLINE,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run ``argv`` to its end, without a shell, with ``stdin`` as its input.

    deadline: seconds, after which it is killed; env: the whole environment, None for ours.
    Raises CommandFailed (exit code as a shell gives it: 127 not found, 126 not executable, 128 + signal)
    and NotConverged after the deadline.
    """
    start = time.monotonic()
    with ExitStack() as files:
        stdio = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        for fd in stdio:
            files.callback(os.close, fd)
        os.pwrite(stdio[0], stdin.encode(), 0)
        code = _wait(_start(argv, stdio, os.environ if env is None else env), argv, deadline)
        stdout, stderr = map(_read, stdio[1:])
    seconds = time.monotonic() - start
    log.debug("%s: exit code %d after %.1f ms", " ".join(argv), code, seconds * 1e3)
    if code != 0:
        raise CommandFailed(argv, code, stderr)
    return Result(stdout, stderr, seconds)


def _start(argv: Sequence[str], stdio: Sequence[int], env: Mapping[str, str]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    ignored_by_python = (signal.SIGPIPE, signal.SIGXFSZ)
    try:
        return os.posix_spawnp(
            argv[0], list(argv), env, file_actions=actions, setsigmask=(), setsigdef=ignored_by_python
        )
    except FileNotFoundError as error:
        raise CommandFailed(argv, 127, "command not found") from error
    except PermissionError as error:
        raise CommandFailed(argv, 126, "not executable") from error


def _wait(pid: int, argv: Sequence[str], deadline: float) -> int:
    """Its exit code when it has ended."""
    in_time = False
    pidfd = os.pidfd_open(pid)
    try:
        in_time = process.wait_pidfd(pidfd, deadline)
    finally:
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
    if not in_time:
        raise NotConverged(" ".join(argv), patient(deadline), "killed")
    return process.exit_code(status)


def _read(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
