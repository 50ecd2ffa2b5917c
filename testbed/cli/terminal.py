"""This terminal, for as long as a program elsewhere in the cluster uses it: ``exec``, ``shell``.

With a terminal the program gets a pseudo-terminal made here and this one becomes its screen and keyboard
(raw mode, window size, every byte passed through). Without, it gets our own descriptors and signals.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from testbed.cluster.messages import AnyMessage, Exited, Failed, Signal
from testbed.errors import TestbedError
from testbed.kernel.channel import Channel, ChannelClosed

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mean the program, not us. SIGWINCH goes through the terminal."""

HANGUP = 128 + signal.SIGHUP
END_OF_FILE = b"\x04"
"""What a terminal in its usual mode takes as end of input."""

CHUNK = 1 << 16


class Request(Protocol):
    """A message that starts something and is answered by Exited: Exec, OpenShell."""

    @property
    def id(self) -> int:
        """The request's id."""


class RemoteFailed(TestbedError):
    """What was asked for could not be started. exit_code: as the other side says (127: not found)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def relay(
    channel: Channel[AnyMessage], request: Request, *, tty: bool, stdin: bool = True, stdout: int = 1
) -> int:
    """Start ``request`` on the channel with this terminal and return its exit code when it has ended.

    tty: give it a pseudo-terminal, else our standard input, output and error. stdin False: its input is
    empty. stdout: where its output goes without a terminal. Raises RemoteFailed where it could not be
    started, TestbedError where the cluster went away.
    """
    if tty:
        return _Screen(channel, request, read_input=stdin).run()
    with open(os.devnull, "rb") as nothing:
        channel.send(request, [0 if stdin else nothing.fileno(), stdout, 2])
    with _signals(channel, request.id):
        while (code := _next_code(channel)) is None:
            pass
    return code


def _next_code(channel: Channel[AnyMessage]) -> int | None:
    """Take one message: the exit code if it is the last, None if more follows."""
    try:
        message, fds = channel.receive()
    except ChannelClosed as error:
        raise TestbedError("the cluster went away") from error
    for fd in fds:
        os.close(fd)
    match message:
        case Exited():
            return message.code
        case Failed():
            raise RemoteFailed(message.message, message.exit_code)
        case _:
            return None


@contextmanager
def _signals(
    channel: Channel[AnyMessage], request_id: int, winch: Callable[[], None] | None = None
) -> Iterator[None]:
    """Send the signals we get to the program; call ``winch`` when the window changes its size."""

    def forward(number: int, _frame: object) -> None:
        channel.send(Signal(request_id, number))

    def resized(_number: int, _frame: object) -> None:
        if winch is not None:
            winch()

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Screen:
    """A program's pseudo-terminal, shown on ours."""

    def __init__(self, channel: Channel[AnyMessage], request: Request, *, read_input: bool) -> None:
        self._channel, self._request = channel, request
        self._stdin = sys.stdin.fileno() if read_input else None
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        self._typed = bytearray()
        self._shown = True

    def run(self) -> int:
        """Show it until the program ends; its exit code."""
        try:
            self._copy_size()
            self._channel.send(self._request, [self._slave] * 3)
            # From now on only the program holds it: when it lets go, reading the master says so.
            os.close(self._slave)
            with _raw(self._stdin), _signals(self._channel, self._request.id, self._copy_size):
                return self._loop()
        finally:
            os.close(self._master)

    def _loop(self) -> int:
        answers = self._channel.sock.fileno()
        while True:
            if self._channel.waiting:
                readable, writable = [answers], list[int]()
            else:
                readable, writable, _ = select.select(
                    self._inputs(), [self._master] if self._typed else [], []
                )
            if self._stdin in readable and not self._read_keys():
                return HANGUP
            if self._master in writable:
                self._type()
            if self._master in readable:
                self._show()
            if answers in readable and (code := _next_code(self._channel)) is not None:
                while self._show():
                    pass
                return code

    def _inputs(self) -> list[int]:
        inputs = [self._channel.sock.fileno()]
        if self._shown:
            inputs.append(self._master)
        if self._stdin is not None and not self._typed:
            inputs.append(self._stdin)
        return inputs

    def _read_keys(self) -> bool:
        """Take what was typed; False where the terminal is gone."""
        assert self._stdin is not None  # noqa: S101 - only called when it is readable
        try:
            data = os.read(self._stdin, CHUNK)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        if not data:
            if os.isatty(self._stdin):
                return False
            self._stdin, data = None, END_OF_FILE
        self._typed += data
        return True

    def _type(self) -> None:
        try:
            del self._typed[: os.write(self._master, self._typed)]
        except BlockingIOError:
            return

    def _show(self) -> bool:
        """Copy what the program wrote to our screen; False where there is nothing more now."""
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._shown = False  # nobody holds the other side any more
            return False
        while data:
            data = data[os.write(1, data) :]
        return True

    def _copy_size(self) -> None:
        """Give the program's terminal the size of ours; the kernel tells the program."""
        for fd in (1, 0, 2):
            if os.isatty(fd):
                size = fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
                return


@contextmanager
def _raw(fd: int | None) -> Iterator[None]:
    """Pass every byte of the terminal ``fd`` through, unedited; nothing where it is none."""
    if fd is None or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)
