"""Programs inside pods and nodes: namespaces, files, privileges, terminal, exit codes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandboxed import in_sandbox, running, wait_for_the_end

from testbed.cluster.launcher import DaemonContext
from testbed.cluster.messages import AnyMessage, Ended, Failed, Spawn, Spawned
from testbed.errors import TestbedError
from testbed.kernel import execute, process
from testbed.kernel import syscalls as sc
from testbed.kernel.channel import Channel, socket_pair

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

C_LIBRARYS_OWN = 1 << 31 | 1 << 32
"""Signals 32 and 33 (nptl(7)): nobody can change how they are handled, whoever made them so."""


@pytest.fixture
def inside(tmp_path: Path) -> Callable[[Callable[[], Any]], Any]:
    """Calls a function in a sandbox and returns its result, which must be JSON."""
    return lambda function: in_sandbox(function, tmp_path / "testbed")


def new_netns() -> int:
    """A descriptor of a fresh network namespace, as an agent makes a pod's; this process stays in its own."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    sc.unshare(sc.CLONE_NEWNET)
    made = os.open("/proc/self/ns/net", os.O_RDONLY)
    sc.setns(home)
    os.close(home)
    return made


def run(*argv: str, **options: Any) -> tuple[int, str]:
    """(exit code, output) of a program started by ``spawn``."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    options.setdefault("env", ENV)
    try:
        pid = execute.spawn(argv, stdio=(null, writer, writer), **options)
    finally:
        os.close(writer)
    with open(reader) as pipe:
        output = pipe.read()
    return process.exit_code(os.waitpid(pid, 0)[1]), output


def test_exit_code_and_output(inside: Any) -> None:
    assert inside(lambda: run("sh", "-c", "echo out; echo err >&2; exit 7")) == [7, "out\nerr\n"]


def test_a_killed_program_has_128_and_its_signal(inside: Any) -> None:
    assert inside(lambda: run("sh", "-c", "kill -TERM $$"))[0] == 143


def test_the_environment_is_the_given_one_alone(inside: Any) -> None:
    assert (
        inside(lambda: run("env", env={**ENV, "A": "1"}))[1]
        == "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C\nA=1\n"
    )


@pytest.mark.parametrize(
    ("argv", "options", "kind", "code", "text"),
    [
        (["no-such-program"], {}, "FileNotFoundError", 127, "no-such-program: command not found"),
        (["/no/such/program"], {}, "FileNotFoundError", 127, "/no/such/program: command not found"),
        (["ls"], {"env": {"PATH": "/no/such"}}, "FileNotFoundError", 127, "ls: command not found"),
        (["/etc/passwd"], {}, "PermissionError", 126, "/etc/passwd: Permission denied"),
        (["/"], {}, "PermissionError", 126, "/: Permission denied"),
        (["ls"], {"cwd": "/no/such"}, "NotADirectoryError", 126, "/no/such: No such file or directory"),
    ],
)
def test_what_cannot_be_started(
    inside: Any, argv: list[str], options: dict[str, Any], kind: str, code: int, text: str
) -> None:
    def attempt() -> Any:
        try:
            run(*argv, **options)
        except OSError as error:
            return type(error).__name__, execute.failure_code(error), execute.failure_text(error)

    assert inside(attempt) == [kind, code, text]


def test_a_pod_has_its_own_view(inside: Any) -> None:
    files = {
        "/etc/hosts": "10.244.1.2\tweb-0\n",
        "/etc/hostname": "web-0\n",
        "/etc/resolv.conf": "nameserver 10.96.0.10\n",
        "/etc/no-such-directory/file": "",
    }

    def pod() -> Any:
        Path("/run/resolver.sock").touch()
        host_files = Path("/etc/hosts").read_text()
        script = "hostname; cat /etc/hosts /etc/hostname /etc/resolv.conf; ls /run /sys/class/net"
        said = run("sh", "-c", script, netns=new_netns(), hostname="web-0", files=files, drop_privileges=True)
        return said, Path("/etc/hosts").read_text() == host_files, socket.gethostname(), os.listdir("/run")

    (code, said), host_file_unchanged, hostname, run_directory = inside(pod)
    view = "web-0\n10.244.1.2\tweb-0\nweb-0\nnameserver 10.96.0.10\n/run:\nlock\n\n/sys/class/net:\nlo\n"
    assert (code, said.endswith(view)) == (0, True), said
    assert said.removesuffix(view) == "/etc/no-such-directory/file: not on this machine, so not in the pod\n"
    assert host_file_unchanged
    assert hostname == socket.gethostname()
    assert "resolver.sock" in run_directory


def test_a_node_keeps_the_sandboxs_run_and_its_own_hostname(inside: Any) -> None:
    """The lock of iptables lies in /run and must be one for all who write a node's rules."""

    def node() -> Any:
        Path("/run/xtables.lock").touch()
        return run(
            "sh",
            "-c",
            "hostname; ls /run/xtables.lock; ip link add br0 type bridge; ls /sys/class/net",
            netns=new_netns(),
            hostname="node-1",
        )

    assert inside(node) == [0, "node-1\n/run/xtables.lock\nbr0\nlo\n"]


def test_a_pod_has_a_containers_capabilities_and_a_node_all(inside: Any) -> None:
    def sets() -> Any:
        arguments = ("grep", "^Cap", "/proc/self/status")
        return [
            dict(
                line.split(":\t")
                for line in run(*arguments, hostname="x", drop_privileges=drop)[1].splitlines()
            )
            for drop in (True, False)
        ]

    pod, node = inside(sets)
    # What containerd gives by default: 'capsh --decode=00000000a80425fb'.
    assert {pod["CapPrm"], pod["CapEff"], pod["CapBnd"]} == {"00000000a80425fb"}
    assert {pod["CapInh"], pod["CapAmb"]} == {"0000000000000000"}
    assert int(node["CapEff"], 16) >> 12 & 1  # NET_ADMIN


def test_a_pod_may_ping_but_not_change_its_network(inside: Any) -> None:
    def attempts() -> Any:
        netns = new_netns()
        run("ip", "link", "set", "lo", "up", netns=netns)
        pod = {"netns": netns, "hostname": "web-0", "drop_privileges": True}
        return run("ping", "-c1", "-W1", "127.0.0.1", **pod)[0], run(
            "ip", "link", "set", "lo", "down", **pod
        )[0]

    assert inside(attempts) == [0, 2]


def test_no_descriptor_leaks_into_a_program(inside: Any) -> None:
    def leak() -> Any:
        kept = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(kept, True)
        return run("ls", "/proc/self/fd")[1].split()

    assert inside(leak) == ["0", "1", "2", "3"]  # 3: ls itself reads the directory


def test_signals_and_limits_are_those_of_a_fresh_program(inside: Any) -> None:
    said = inside(lambda: run("sh", "-c", "ulimit -Sn; grep -E '^Sig(Blk|Ign)' /proc/self/status"))[1]
    limit, *masks = said.split("\n")[:3]
    assert limit == "1024"
    assert [line.split(":")[0] for line in masks] == ["SigBlk", "SigIgn"]
    for line in masks:
        assert int(line.split()[1], 16) & ~C_LIBRARYS_OWN == 0


def test_a_terminal_controls_the_program(inside: Any) -> None:
    """No shell in between: one that is about to fork may put an interrupt off until its child has ended."""

    def talk() -> Any:
        master, slave = os.openpty()
        pid = execute.spawn(["cat"], env=ENV, stdio=(slave,) * 3, hostname="x", tty=True)
        os.close(slave)
        os.write(master, b"hello\n")
        said = b""
        while said.count(b"hello") < 2:  # the terminal's echo, and cat
            said += os.read(master, 1024)
        os.write(master, b"\x03")  # Ctrl-C: only a controlling terminal makes a signal of it
        return process.exit_code(os.waitpid(pid, 0)[1])

    assert inside(talk) == 130


def test_stdio_may_come_in_any_order(inside: Any) -> None:
    def crossed() -> Any:
        saved = os.dup(2)
        reader, writer = os.pipe()
        os.dup2(writer, 0)
        pid = execute.spawn(["sh", "-c", "echo out; echo err >&2"], env=ENV, stdio=(saved, 0, 0))
        os.waitpid(pid, 0)
        return os.read(reader, 100).decode()

    assert inside(crossed) == "out\nerr\n"


def test_children_tell_who_ended_and_how(inside: Any) -> None:
    async def watch() -> dict[str, int]:
        loop = asyncio.get_running_loop()
        children = process.Children(loop)
        codes: dict[str, int] = {}
        over = asyncio.Event()
        null = os.open(os.devnull, os.O_RDWR)

        def ended(name: str, status: int) -> None:
            codes[name] = process.exit_code(status)
            if len(codes) == 3:
                over.set()

        for name, script in (("three", "exit 3"), ("killed", "sleep 60 & wait"), ("zero", "true")):
            pid = execute.spawn(["sh", "-c", script], env=ENV, stdio=(null,) * 3)
            children.watch(pid, lambda status, name=name: ended(name, status))
            if name == "killed":
                children.signal(pid, signal.SIGTERM, group=True)
        await asyncio.wait_for(over.wait(), 10)
        return codes

    assert inside(lambda: asyncio.run(watch())) == {"three": 3, "killed": 143, "zero": 0}


def test_a_program_dies_with_the_process_that_started_it(inside: Any) -> None:
    """The death of a node's agent is the crash of its node."""

    def crash() -> Any:
        reader, writer = os.pipe()

        def agent() -> None:
            null = os.open(os.devnull, os.O_RDWR)
            pid = execute.spawn(["sleep", "1000"], env=ENV, stdio=(null,) * 3)
            os.write(writer, str(pid).encode())

        os.waitpid(process.fork(agent, title="agent", keep=[writer]), 0)
        pidfd_of = int(os.read(reader, 20))
        try:
            return process.wait_pidfd(os.pidfd_open(pidfd_of), 10)
        except ProcessLookupError:
            return True

    assert inside(crash) is True


# --- through the zygote --------------------------------------------------------------------------------


def echoing_worker(sock: socket.socket, name: str) -> None:
    """A worker for the test below: says who and where it is, then ends as it is told."""
    sock.send(f"{name} {os.readlink('/proc/self/ns/net')} {len(os.listdir('/proc/self/fd'))}".encode())
    raise SystemExit(int(sock.recv(10)))


def ask_zygote(talk: Callable[[Channel[AnyMessage]], Any], root: Path) -> Any:
    def daemon(context: DaemonContext) -> None:
        context.ready({"result": talk(Channel(context.zygote, AnyMessage))})
        wait_for_the_end()

    with running(root, daemon=daemon) as report:
        return report["result"]


def test_zygote_forks_workers_into_a_netns(tmp_path: Path) -> None:
    def talk(zygote: Channel[AnyMessage]) -> Any:
        ours, theirs = socket_pair()
        netns = new_netns()
        zygote.send(Spawn(1, "node-1", f"{__name__}:echoing_worker"), [theirs.fileno(), netns])
        theirs.close()
        spawned, _ = zygote.receive()
        assert isinstance(spawned, Spawned)
        name, link, descriptors = ours.recv(100).decode().split()
        ours.send(b"5")
        assert zygote.receive()[0] == Ended("node-1", spawned.pid, 5)
        assert ours.recv(1) == b""
        return name, link == f"net:[{os.fstat(netns).st_ino}]", int(descriptors)

    # 0, 1, 2, its channel, and the directory it lists.
    assert ask_zygote(talk, tmp_path / "testbed") == ["node-1", True, 5]


@pytest.mark.parametrize("entry", ["no.such.module:f", "testbed.state:no_such_function", "testbed", ""])
def test_zygote_refuses_an_entry_that_is_not_there(tmp_path: Path, entry: str) -> None:
    def talk(zygote: Channel[AnyMessage]) -> Any:
        _, theirs = socket_pair()
        zygote.send(Spawn(1, "x", entry), [theirs.fileno()])
        failed, _ = zygote.receive()
        return isinstance(failed, Failed) and failed.id

    assert ask_zygote(talk, tmp_path / "testbed") == 1


def test_zygote_takes_many_requests_at_once(tmp_path: Path) -> None:
    """One read from a socket may bring several messages."""

    def talk(zygote: Channel[AnyMessage]) -> Any:
        pairs = [socket_pair() for _ in range(20)]
        for number, (_, theirs) in enumerate(pairs):
            zygote.send(Spawn(number, f"w{number}", f"{__name__}:echoing_worker"), [theirs.fileno()])
            theirs.close()
        names = [ours.recv(100).split()[0].decode() for ours, _ in pairs]
        for number, (ours, _) in enumerate(pairs):
            ours.send(str(number).encode())
        answers = [zygote.receive()[0] for _ in range(40)]
        return names, sorted([answer.name, answer.status] for answer in answers if isinstance(answer, Ended))

    names, ended = ask_zygote(talk, tmp_path / "testbed")
    assert names == [f"w{number}" for number in range(20)]
    assert ended == sorted([f"w{number}", number] for number in range(20))


def test_what_fails_inside_is_told_outside(inside: Any) -> None:
    def fail() -> None:
        subprocess.run(["false"], check=True)

    with pytest.raises(TestbedError, match="CalledProcessError"):
        inside(fail)


@pytest.mark.parametrize("propagate", [True, False])
def test_a_forked_process_does_not_log_into_a_descriptor_that_became_anothers(
    tmp_path: Path, propagate: bool
) -> None:
    logger = logging.getLogger(f"child-{propagate}")
    logger.propagate = propagate  # the handler is its own, or it is the root's
    holder = logging.root if propagate else logger
    handler = logging.FileHandler(tmp_path / "parent.log")
    number = handler.stream.fileno()
    told, teller = os.pipe()

    def body() -> None:
        into, out = os.pipe2(os.O_NONBLOCK)
        os.dup2(out, number)
        logger.error("not for you")
        try:
            os.write(teller, b"got " + os.read(into, 100))
        except BlockingIOError:
            os.write(teller, b"got nothing")

    holder.addHandler(handler)
    try:
        child = process.fork(body, title="child", keep=[teller])
        os.close(teller)
    finally:
        holder.removeHandler(handler)
        handler.close()
    with open(told, "rb") as answer:
        assert answer.read() == b"got nothing"
    assert os.waitpid(child, 0)[1] == 0
