"""Mininet's command line on the running network, on a terminal (or pipes) that somebody else brought.

Mininet's CLI takes its process's own terminal for granted: signals for Ctrl-C, ``stty`` on standard input,
output on standard error. Here it runs in a thread beside the fabric's event loop, so these are done on the
given files instead.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import termios
import time
from cmd import Cmd
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO, cast

from mininet.cli import CLI
from mininet.link import Intf
from mininet.log import error, lg, output
from mininet.node import Node

from testbed.errors import TestbedError
from testbed.fabric.links import Port
from testbed.fabric.network import ClusterNet

INTERRUPT_SECONDS = 1.0
"""How long a command may take to react to Ctrl-C once nobody is there any more; then it is killed."""


SHELL_ENDERS = ("exit", "exec", "logout")


class Terminal:
    """What somebody brought to type on and read from: a terminal, or pipes. Also a text file, for Mininet.

    Waiting for a line ends when another thread calls ``hang_up``. When it is gone, input ends and output
    goes nowhere.
    """

    def __init__(self, stdin: int, stdout: int) -> None:
        self.stdin, self.stdout = stdin, stdout
        self.gone = False
        self.wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._buffer = b""
        self._poller = select.poll()
        self._poller.register(stdin, select.POLLIN)
        self._poller.register(self.wake, select.POLLIN)

    def interrupt(self) -> None:
        """Make ``wake`` readable, which means Ctrl-C."""
        os.write(self._waker, b"c")

    def hang_up(self) -> None:
        """Treat it as gone."""
        self.gone = True
        self.interrupt()

    def awake(self) -> None:
        """Take note of ``interrupt``."""
        os.read(self.wake, 64)

    def read_keys(self) -> str:
        """What was typed (there must be something); empty when the terminal is gone."""
        data = self._read()
        self.gone |= not data
        return data.decode(errors="replace")

    def readline(self) -> str:
        """The next line with its newline; empty at the end of input."""
        while b"\n" not in self._buffer:
            ready = {fd for fd, _ in self._poller.poll()}
            if self.wake in ready:
                self.awake()
            if self.gone:
                return ""
            if self.stdin in ready:
                data = self._read()
                if not data and not self._buffer:
                    return ""
                self._buffer += data or b"\n"  # the last line may lack its end
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace") + "\n"

    def _read(self) -> bytes:
        try:
            return os.read(self.stdin, 1024)
        except OSError as failure:
            if failure.errno != errno.EIO:
                raise
            return b""

    def write(self, text: str) -> int:
        """Write all of ``text``."""
        data = text.encode(errors="replace")
        while data and not self.gone:
            try:
                data = data[os.write(self.stdout, data) :]
            except OSError as failure:
                if failure.errno not in (errno.EIO, errno.EPIPE):
                    raise
                self.gone = True
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        """The descriptor of the input."""
        return self.stdin

    @contextmanager
    def mode(self, *, without: int) -> Iterator[None]:
        """Switch off some of termios' local flags for a while; nothing where it is no terminal."""
        if not os.isatty(self.stdin):
            yield
            return
        before = termios.tcgetattr(self.stdin)
        changed = termios.tcgetattr(self.stdin)
        changed[3] &= ~without
        termios.tcsetattr(self.stdin, termios.TCSANOW, changed)
        try:
            yield
        finally:
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(self.stdin, termios.TCSANOW, before)

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self.stdin, self.stdout, self.wake, self._waker):
            os.close(fd)


class ClusterCLI(CLI):  # type: ignore[misc]
    """Mininet's CLI on a terminal of its own. The terminal's methods may be called by other threads."""

    identchars = Cmd.identchars + "-"
    """What a command's first word is made of; node names have hyphens."""

    def __init__(self, net: ClusterNet, terminal: Terminal) -> None:
        # Not CLI.__init__: it takes over the process's readline and runs at once.
        file = cast(TextIO, terminal)
        Cmd.__init__(self, stdin=file, stdout=file)
        self.use_rawinput = False
        self.terminal = terminal
        self.mn, self.locals, self.inputFile = net, {"net": net}, None
        if not self.isatty():
            self.prompt = ""

    def run_until_left(self) -> None:
        """Read and run commands until ``exit``, end of input, or the terminal is gone."""
        before, lg.ch.stream = lg.ch.stream, self.terminal
        try:
            with redirect_stdout(self.stdout):  # what ``px print(…)`` prints
                self.cmdloop()
        finally:
            lg.ch.stream = before

    # --- what Mininet does with its process's terminal -----------------------------------------------------

    def onecmd(self, line: str) -> bool:
        """Run one command; whatever goes wrong in it is a message, not the end of the shell."""
        try:
            stop = bool(super().onecmd(line))
        except TestbedError as failure:
            error(f"*** {failure}\n")
            stop = False
        except Exception as failure:  # noqa: BLE001 - a person's command, on code that is not ours
            error(f"*** {type(failure).__name__}: {failure}\n")
            stop = False
        return stop or self.terminal.gone

    def default(self, line: str) -> None:
        """Run a command on a node, but not one that ends its shell, which holds the node's namespaces."""
        name, command, _ = self.parseline(line)
        if name in self.mn and command and command.split()[0] in SHELL_ENDERS:
            error(f"*** this would end {name} itself; to leave the command line type: exit\n")
            return
        super().default(line)

    def waitForNode(self, node: Node) -> None:
        """Show a node's output until its command ends; keys, Ctrl-C among them, go to the command."""
        terminal = self.terminal
        poller = select.poll()
        poller.register(node.stdout, select.POLLIN)
        poller.register(terminal.wake, select.POLLIN)
        if self.isatty():
            poller.register(terminal.stdin, select.POLLIN)
        give_up: float | None = None
        with terminal.mode(without=termios.ICANON | termios.ISIG):
            while node.waiting:
                for fd, _ in poller.poll(100):
                    if fd == terminal.wake:
                        terminal.awake()
                        node.sendInt()
                    elif fd != terminal.stdin:
                        output(node.monitor())
                    elif keys := terminal.read_keys():
                        node.write(keys)
                    else:
                        poller.unregister(fd)
                        node.sendInt()
                if terminal.gone:
                    give_up = give_up or time.monotonic() + INTERRUPT_SECONDS
                    if time.monotonic() > give_up:
                        _kill_children(node.pid)

    def do_EOF(self, _line: str) -> bool:
        """Leave the shell."""
        if self.isatty():
            output("\n")
        return True

    def do_sh(self, line: str) -> None:
        """Run an external shell command in the switches' namespace
           Usage: sh [cmd args]"""  # fmt: skip
        subprocess.call(  # noqa: S602 - a shell is what was asked for
            line,
            shell=True,
            stdin=self.terminal.stdin,
            stdout=self.terminal.stdout,
            stderr=self.terminal.stdout,
        )

    def do_noecho(self, line: str) -> None:
        """Run an interactive command with echoing turned off.
           Usage: noecho [cmd args]"""  # fmt: skip
        with self.terminal.mode(without=termios.ECHO):
            self.default(line)

    def do_net(self, _line: str) -> None:
        """List network connections."""
        for node in self.mn.values():
            output(node.name + "".join(f" {intf}:{_far_end(intf)}" for intf in node.intfList()) + "\n")


def _far_end(intf: Intf) -> str:
    if intf.link is None:
        return ""
    far: Port = intf.link.intf2 if intf is intf.link.intf1 else intf.link.intf1
    return far.label


def _kill_children(pid: int) -> None:
    """SIGKILL what a node's shell runs; the shell itself holds the node's namespaces and must live."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
