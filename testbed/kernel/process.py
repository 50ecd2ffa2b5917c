"""Processes: forking without inheriting what is not meant, titles, identity, waiting by pidfd."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn, Protocol

from testbed.kernel import syscalls
from testbed.wait import patient

MAX_FD = 2**32 - 1

YOUNG = 10_000
"""New objects after which Python looks for garbage. By default 700, and what compiles the rules of 5,000
Services, nearly all of which stay, spends a third of its time looking."""


class Readers(Protocol):
    """What calls back when a descriptor is readable; an asyncio loop is one."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: object) -> object:
        """Call ``callback(*args)`` whenever fd is readable."""

    def remove_reader(self, fd: int) -> object:
        """Stop that."""


def exit_code(wait_status: int) -> int:
    """The code a shell gives for a wait status: 128 + signal for a killed process."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid its identity. None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Field 22; field 2 is the name in parentheses, which may hold anything.
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def open_pidfd(pid: int, started: int) -> int | None:
    """A descriptor for exactly the process ``pid`` that started at ``started``; None if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != started:  # read after opening: from here on the number cannot be another's
        os.close(fd)
        return None
    return fd


def wait_pidfd(fd: int, deadline: float) -> bool:
    """Wait until the process is dead; a PID namespace's init is dead when all its processes are.

    deadline: seconds from now. Returns whether it died in time.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, int(patient(deadline) * 1000))))


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor that is not in ``keep``."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first, MAX_FD)


def reset_signals() -> None:
    """Every signal back to its default and unblocked, as a fresh program expects."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) not in (
            signal.SIG_DFL,
            None,
        ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def set_title(title: str) -> None:
    """What ``ps`` shows for this process, both as name and as command line."""
    syscalls.set_thread_name(title)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: where ps finds the arguments
    if 0 < start < end:
        room = end - start
        ctypes.memmove(start, os.fsencode(title)[: room - 1].ljust(room, b"\0"), room)


def fork(
    body: Callable[[], object],
    *,
    title: str,
    keep: Iterable[int],
    on_error: Callable[[BaseException], None] | None = None,
) -> int:
    """Fork a process that runs ``body`` and exits; returns its pid.

    It starts with default signals and without any descriptor but stdin, stdout, stderr and ``keep``.
    Its exit code is 0, that of a SystemExit, or 1 after any other exception, which is printed with
    its traceback and handed to ``on_error``. Nothing of the parent's (finally blocks, atexit) runs in it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _child(body, title, keep, on_error)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _child(
    body: Callable[[], object],
    title: str,
    keep: Iterable[int],
    on_error: Callable[[BaseException], None] | None,
) -> NoReturn:
    code = 1
    try:
        gc.freeze()  # the parent's garbage must not close descriptors whose numbers are now others'
        gc.set_threshold(YOUNG)
        _python_signals()
        close_all_but({0, 1, 2, *keep})
        _leave_log_files()
        set_title(title)
        body()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1 if leaving.code else 0
    except BaseException as error:  # noqa: BLE001 - the last frame of a process: everything ends here
        traceback.print_exc()
        if on_error is not None:
            on_error(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave_log_files() -> None:
    """Take the parent's log files off every logger: their descriptors' numbers will soon be others'.

    Not off the root logger alone: a logger that does not propagate, such as Mininet's, has handlers of its
    own (pytest 9.2 gives its log file to each of those).
    """
    named = [known for known in logging.root.manager.loggerDict.values() if isinstance(known, logging.Logger)]
    for logger in (logging.root, *named):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)


def _python_signals() -> None:
    """As at the start of an interpreter: all default, but a closed pipe is an exception."""
    reset_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Children:
    """Child processes of this process, each with what to call when it has ended."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._pidfds: dict[int, int] = {}

    def __contains__(self, pid: object) -> bool:
        return pid in self._pidfds

    def watch(self, pid: int, ended: Callable[[int], object]) -> None:
        """Reap ``pid`` when it dies and call ``ended(wait status)``; see ``exit_code``."""
        pidfd = os.pidfd_open(pid)
        self._pidfds[pid] = pidfd
        self._readers.add_reader(pidfd, self._reap, pid, ended)

    def _reap(self, pid: int, ended: Callable[[int], object]) -> None:
        got, status = os.waitpid(pid, os.WNOHANG)
        if got == 0:
            return
        pidfd = self._pidfds.pop(pid)
        self._readers.remove_reader(pidfd)
        os.close(pidfd)
        ended(status)

    def signal(self, pid: int, number: int, *, group: bool = False) -> None:
        """Send a signal to a child, or to the process group it leads; one that has ended is left alone."""
        if pid not in self._pidfds:
            return
        try:
            # Not yet reaped, so the number is still the child's.
            os.killpg(pid, number) if group else os.kill(pid, number)
        except ProcessLookupError:
            return

    def kill_all(self) -> None:
        """SIGKILL every child and its group."""
        for pid in list(self._pidfds):
            self.signal(pid, signal.SIGKILL)
            self.signal(pid, signal.SIGKILL, group=True)
