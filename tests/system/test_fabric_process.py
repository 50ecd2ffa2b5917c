"""The fabric process and Mininet's command line on it, spoken to as the daemon and the CLI do."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandboxed import in_sandbox
from test_fabric import Single

from testbed.cli import terminal
from testbed.cluster.messages import (
    AnyMessage,
    Done,
    Exec,
    Exited,
    FabricReady,
    Failed,
    GetNetns,
    Netns,
    OpenShell,
    SetRoutes,
    Signal,
    Started,
)
from testbed.fabric import process as fabric
from testbed.kernel import process
from testbed.kernel.channel import Channel, socket_pair

PATH = {"PATH": os.environ["PATH"]}
PROMPT = "mininet> "


def with_fabric(talk: Callable[[Channel[AnyMessage]], Any], root: Path, **link: Any) -> Any:
    """What ``talk`` returns (JSON), given the daemon's end of a channel to a fabric process."""

    def inside() -> Any:
        ours, theirs = socket_pair()
        child = process.fork(
            lambda: fabric.main(theirs, Single(**link)), title="fabric", keep=[theirs.fileno()]
        )
        theirs.close()
        channel = Channel[AnyMessage](ours, AnyMessage)
        result = talk(channel)
        channel.close()
        assert os.waitpid(child, 0)[1] == 0, "the fabric process failed"
        return result

    return in_sandbox(inside, root)


def receive(channel: Channel[AnyMessage]) -> AnyMessage:
    return channel.receive()[0]


def read_all(fd: int) -> str:
    with open(fd) as pipe:
        return pipe.read()


def run_piped(channel: Channel[AnyMessage], commands: str) -> str:
    """What the shell prints for commands on a pipe."""
    out_reader, out_writer = os.pipe()
    in_reader, in_writer = os.pipe()
    os.write(in_writer, commands.encode())
    os.close(in_writer)
    channel.send(OpenShell(50), [in_reader, out_writer, out_writer])
    os.close(in_reader)
    os.close(out_writer)
    text = read_all(out_reader)
    assert receive(channel) == Exited(50, 0)
    return text


class Person:
    """Somebody at a terminal, whose other side is ``slave``."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, text: str, deadline: float = 10.0) -> str:
        """What appeared since the last call, up to ``text``."""
        end = time.monotonic() + deadline
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0.0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self.master, 4096).decode()
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def open_shell(self, channel: Channel[AnyMessage], number: int) -> None:
        channel.send(OpenShell(number), [self.slave] * 3)
        os.close(self.slave)
        self.read_until(PROMPT)


def test_ready_tells_roles_and_links(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        ready = receive(channel)
        assert isinstance(ready, FabricReady)
        return ready.hosts, ready.links, list(ready.seconds)

    hosts, links, steps = with_fabric(talk, tmp_path)
    assert hosts == {"client": "external", "gateway": "gateway", "node-1": "node", "node-2": "node"}
    assert ["s1", "s1-eth2", "node-1", "eth0"] in links
    assert len(links) == 4
    assert steps[-1] == "verify"


def test_a_network_that_cannot_be_built_is_failed(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        failed = receive(channel)
        assert isinstance(failed, Failed)
        return failed.message, failed.exit_code

    message, code = with_fabric(talk, tmp_path, mtu=20_000_000)
    assert code == 4
    assert "in line: link add name s1-eth2" in message


def test_namespaces_are_handed_out_by_name(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        channel.send(GetNetns(1, ("node-1", "s1", "client")))
        answer, fds = channel.receive()
        assert answer == Netns(1, ("node-1", "s1", "client"))
        channel.send(GetNetns(2, ("node-1", "nobody")))
        failed = receive(channel)
        assert isinstance(failed, Failed)
        own = os.readlink("/proc/self/ns/net")
        return [os.readlink(f"/proc/self/fd/{fd}") for fd in fds], own, failed.message

    (node, switch, client), own, message = with_fabric(talk, tmp_path)
    assert switch == own
    assert len({node, switch, client}) == 3
    assert message.startswith("no host 'nobody' in the fabric")


def test_programs_run_on_hosts_with_their_exit_codes_and_signals(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        reader, writer = os.pipe()
        channel.send(Exec(1, "client", ("sh", "-c", "hostname; exit 7"), PATH), [0, writer, writer])
        os.close(writer)
        started, exited = receive(channel), receive(channel)
        assert isinstance(started, Started)
        channel.send(Exec(2, "client", ("sleep", "60"), PATH), [0, 1, 2])
        assert isinstance(receive(channel), Started)
        channel.send(Signal(2, signal.SIGTERM))
        killed = receive(channel)
        channel.send(Exec(3, "client", ("no-such-program",), PATH), [0, 1, 2])
        absent = receive(channel)
        assert isinstance(absent, Failed)
        channel.send(SetRoutes(4, {"gateway": {"10.244.0.0/24": ("192.168.100.11",)}}))
        assert receive(channel) == Done(4)
        return read_all(reader), exited == Exited(1, 7), killed == Exited(2, 143), absent.exit_code

    assert with_fabric(talk, tmp_path) == ["client\n", True, True, 127]


def test_a_host_whose_shell_was_killed_is_a_failure_of_the_request_alone(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        run_piped(channel, "py net['node-2'].shell.kill() or net['node-2'].shell.wait()\n")
        channel.send(GetNetns(1, ("node-2",)))
        failed = receive(channel)
        channel.send(GetNetns(2, ("node-1",)))
        return isinstance(failed, Failed), isinstance(receive(channel), Netns)

    assert with_fabric(talk, tmp_path) == [True, True]


def test_piped_commands_all_run_and_print(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        return run_piped(
            channel,
            "nodes\nlinks\nnet\nintfs\ndump\nnode-1 ip route\nnode-1 ping -c1 node-2\n"
            "sh echo from $((40+2))\npy net['node-1'].IP()\npx print('printed')\nno-such-command\n"
            "switch s1 stop\nlinks\nswitch s1 start\npy 1/0\nlink a b down\n"
            "link s1 node-1 down\nlinks\nlink node-1 s1 up\nnode-1 exit\npingall\n"
            "node-1 echo last",
        )

    text = with_fabric(talk, tmp_path)
    lines = text.splitlines()
    assert lines[1] == "client gateway node-1 node-2 s1"
    for expected in (
        "s1-eth2<->node-1-eth0 (OK OK) ",
        "node-1 eth0:s1-eth2",
        "default via 192.168.100.1 dev eth0 ",
        "1 packets transmitted, 1 received, 0% packet loss, time 0ms",
        "from 42",
        "192.168.100.11",
        "printed",
        "*** Unknown command: no-such-command",
        "division by zero",
        "*** no such node: a, b",
        "s1-eth2<->node-1-eth0 (DOWN DOWN) ",
        "*** this would end node-1 itself; to leave the command line type: exit",
        "*** Results: 0% dropped (12/12 received)",
    ):
        assert expected in lines, text
    assert lines[-1] == "last"
    assert PROMPT not in text


def test_a_person_can_interrupt_a_command_and_leave_with_ctrl_d(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        person = Person()
        person.open_shell(channel, 1)
        person.type("node-1 ping node-2\n")
        person.read_until("icmp_seq=1")
        person.type("\x03")
        person.read_until("packets transmitted")
        person.read_until(PROMPT)
        # While it is open the fabric still answers, and a second shell is refused.
        channel.send(OpenShell(2), [0, 1, 2])
        refused = receive(channel)
        assert isinstance(refused, Failed)
        person.type("node-1 echo x$((1+1))x\n")
        person.read_until("x2x")
        person.read_until(PROMPT)
        person.type("\x04")
        return refused.message, receive(channel) == Exited(1, 0), run_piped(channel, "node-1 echo again\n")

    message, left, again = with_fabric(talk, tmp_path)
    assert message == "somebody else uses the shell; only one at a time"
    assert left
    assert again == "again\n"


@pytest.mark.parametrize("how", ["terminal", "signal"])
def test_a_shell_whose_person_is_gone_ends_even_while_a_stubborn_command_runs(
    tmp_path: Path, how: str
) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        person = Person()
        person.open_shell(channel, 1)
        person.type("node-1 sh -c 'trap \"\" INT; echo stub'born'; sleep 60; sleep 60'\n")
        person.read_until("stubborn")
        if how == "terminal":
            os.close(person.master)
        else:
            channel.send(Signal(1, signal.SIGHUP))
        return receive(channel) == Exited(1, 0), run_piped(channel, "node-1 echo again\n")

    assert with_fabric(talk, tmp_path) == [True, "again\n"]


def test_a_shell_idle_at_its_prompt_ends_when_told_to(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        person = Person()
        person.open_shell(channel, 1)
        channel.send(Signal(1, signal.SIGHUP))
        return receive(channel) == Exited(1, 0)

    assert with_fabric(talk, tmp_path)


def relay_at_terminal(person: Person, channel: Channel[AnyMessage], request: Exec) -> int:
    """Fork a process whose terminal is the person's and that relays ``request``; its pid."""

    def child() -> None:
        os.setsid()
        for fd in (0, 1, 2):
            os.dup2(person.slave, fd)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
        raise SystemExit(terminal.relay(channel, request, tty=True))

    return process.fork(child, title="client", keep=[person.slave, channel.sock.fileno()])


def test_relay_gives_a_program_this_terminal_and_its_size_and_puts_it_back(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        person = Person()
        fcntl.ioctl(person.slave, termios.TIOCSWINSZ, b"\x28\x00\x64\x00\x00\x00\x00\x00")
        before = termios.tcgetattr(person.slave)
        script = (
            "stty size; read line; echo got $line; trap 'stty size; exit 5' WINCH; echo set; "
            "while :; do sleep 0.05; done"
        )
        request = Exec(1, "client", ("bash", "-c", script), PATH, tty=True)
        client = relay_at_terminal(person, channel, request)
        size = person.read_until("\r\n")
        person.type("hello\r")
        person.read_until("got hello")
        person.read_until("set\r\n")
        fcntl.ioctl(person.master, termios.TIOCSWINSZ, b"\x1e\x00\x50\x00\x00\x00\x00\x00")
        resized = person.read_until("\r\n")
        code = process.exit_code(os.waitpid(client, 0)[1])
        return size, resized, code, before == termios.tcgetattr(person.slave)

    assert with_fabric(talk, tmp_path) == ["40 100", "30 80", 5, True]


def test_relay_passes_pipes_and_signals_where_there_is_no_terminal(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        in_reader, in_writer = os.pipe()
        out_reader, out_writer = os.pipe()
        script = "read line; echo got $line; trap 'exit 9' INT; echo set; while :; do sleep 0.05; done"
        request = Exec(1, "client", ("bash", "-c", script), PATH)

        def client() -> None:
            os.dup2(in_reader, 0)
            os.dup2(out_writer, 1)
            raise SystemExit(terminal.relay(channel, request, tty=False))

        child = process.fork(client, title="client", keep=[in_reader, out_writer, channel.sock.fileno()])
        os.close(out_writer)
        os.write(in_writer, b"hello\n")
        with open(out_reader) as shown:
            lines = [shown.readline(), shown.readline()]
            os.kill(child, signal.SIGINT)
            return lines, process.exit_code(os.waitpid(child, 0)[1])

    assert with_fabric(talk, tmp_path) == [["got hello\n", "set\n"], 9]


def test_relay_reports_what_cannot_be_started(tmp_path: Path) -> None:
    def talk(channel: Channel[AnyMessage]) -> Any:
        receive(channel)
        request = Exec(1, "client", ("no-such-program",), PATH)
        with pytest.raises(terminal.RemoteFailed) as caught:
            terminal.relay(channel, request, tty=False, stdin=False)
        return str(caught.value), caught.value.exit_code

    assert with_fabric(talk, tmp_path) == ["no-such-program: command not found", 127]
