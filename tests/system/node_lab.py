"""For tests: real node agents on one segment, in namespaces of their own: the dataplanes' reference lab.

Nodes a 172.18.0.2 (pods 10.244.1.0/24) and b 172.18.0.3 (10.244.2.0/24), an outside host 172.18.0.254 that
is the nodes' default gateway, all ports of one bridge. An agent runs in each, so that everything is asked
of real agents by real messages. Works as an ordinary user; nothing of it outlives the test process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from testbed.cluster import agent
from testbed.cluster.messages import (
    AnyMessage,
    Applied,
    Apply,
    Change,
    Exec,
    Exited,
    GetNetns,
    KeepRules,
    Signal,
    Started,
)
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import ClusterFacts, Container, ContainerPort, Node, Pod, Snapshot
from testbed.kernel import netlink, netns, process, sandbox, syscalls, sysctl
from testbed.kernel.channel import Channel, socket_pair
from testbed.kernel.netlink import Netlink
from testbed.state import Address, NodeState, Route, Upkeep
from testbed.wait import wait_until

OUTSIDE, OUTSIDE_IN_10 = "172.18.0.254", "10.99.0.1"
HOSTS = {
    "a": ("172.18.0.2/16", "fd18::2/64"),
    "b": ("172.18.0.3/16", "fd18::3/64"),
    "outside": (f"{OUTSIDE}/16", "fd18::254/64"),
}
SEGMENT = ("172.18.0.0/16", "fd18::/64")
NODES = (
    Node("a", ("172.18.0.2", "fd18::2"), ("10.244.1.0/24", "fd24:0:0:1::/64"), networks=SEGMENT),
    Node("b", ("172.18.0.3", "fd18::3"), ("10.244.2.0/24", "fd24:0:0:2::/64"), networks=SEGMENT),
)
FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16", "fd24::/48"),
    service_cidrs=("10.96.0.0/16",),
    node_cidrs=("172.18.0.0/16", "fd18::/64"),
    dns_addresses=(),
)
ENV = {"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin", "LC_ALL": "C"}


def pod(name: str, node: str, number: int, **more: Any) -> Pod:
    """Pod ``name`` with the addresses .number and ::number of the node's ranges, answering on port 8080."""
    k = {"a": 1, "b": 2}[node]
    return Pod(
        **{
            "uid": f"uid-{name}",
            "namespace": "default",
            "name": name,
            "node": node,
            "ips": (f"10.244.{k}.{number}", f"fd24:0:0:{k}::{number:x}"),
            "containers": (Container("main", "nginx", ports=(ContainerPort(8080),)),),
            **more,
        }
    )


def snapshot(*pods: Pod, nodes: Sequence[Node] = NODES, facts: ClusterFacts = FACTS) -> Snapshot:
    return Snapshot(facts, tuple(nodes), pods)


@dataclass
class Ran:
    """How a program ended and what it printed."""

    code: int
    output: str


class Host:
    """One netns with an agent in it, and the state it was last asked to have."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.channel: Channel[AnyMessage] = Channel(sock, AnyMessage)
        self.state = NodeState()
        self._id = 0
        self._unread: dict[int, list[tuple[AnyMessage, list[int]]]] = {}

    def new_id(self) -> int:
        self._id += 1
        return self._id

    def ask(self, message: Any, fds: Sequence[int] = ()) -> tuple[Any, list[int]]:
        self.channel.send(message, fds)
        return self.answer(message.id)

    def answer(self, request: int) -> tuple[Any, list[int]]:
        """The next message about a request; others are kept for who waits for them."""
        while not self._unread.get(request):
            message, fds = self.channel.receive()
            self._unread.setdefault(getattr(message, "id", 0), []).append((message, fds))
        return self._unread[request].pop(0)

    def apply(self, changes: Sequence[Change]) -> Applied:
        answer, _ = self.ask(Apply(self.new_id(), tuple(changes)))
        assert isinstance(answer, Applied), answer
        return answer

    def become(self, state: NodeState) -> None:
        """Bring the node to a state by the difference to the last one; a failure fails the test."""
        applied = self.apply(diff(self.state, state))
        assert applied.failed == {}
        self.state = state

    def keep(self, *upkeep: Upkeep, period: float) -> None:
        """Have the agent look after these, ever so often, of what it is asked to make from now on."""
        self.channel.send(KeepRules(upkeep=tuple(replace(each, period=period) for each in upkeep)))

    def netns(self, *names: str) -> list[int]:
        _, fds = self.ask(GetNetns(self.new_id(), names))
        return fds

    def start(self, argv: Sequence[str], where: str = "node") -> Running:
        """Start a program in the node or a pod (by uid)."""
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by Running.wait
        silence = os.open(os.devnull, os.O_RDONLY)
        request = Exec(self.new_id(), where, tuple(argv), ENV)
        answer, _ = self.ask(request, (silence, output.fileno(), output.fileno()))
        os.close(silence)
        assert isinstance(answer, Started), answer
        return Running(self, request.id, output)

    def run(self, *argv: str, where: str = "node") -> Ran:
        return self.start(argv, where).wait()

    def ok(self, *argv: str, where: str = "node") -> str:
        """What a program prints that must succeed."""
        ran = self.run(*argv, where=where)
        assert ran.code == 0, f"{' '.join(argv)}: {ran.code}: {ran.output}"
        return ran.output

    def json(self, *argv: str, where: str = "node") -> Any:
        return json.loads(self.ok(*argv, where=where) or "[]")


@dataclass
class Running:
    """A program that was started on a host."""

    host: Host
    id: int
    output: Any

    def wait(self) -> Ran:
        answer, _ = self.host.answer(self.id)
        assert isinstance(answer, Exited), answer
        with self.output:
            self.output.seek(0)
            return Ran(answer.code, self.output.read().decode(errors="replace"))

    def so_far(self) -> str:
        """What it has printed by now."""
        return os.pread(self.output.fileno(), 1 << 20, 0).decode(errors="replace")

    def stop(self) -> Ran:
        self.host.channel.send(Signal(self.id, signal.SIGTERM))
        return self.wait()


@contextmanager
def captured(host: Host, interface: str, where: str = "node") -> Iterator[list[dict[str, Any]]]:
    """What is seen on an interface during the block; the list is filled when the block ends."""
    seen: list[dict[str, Any]] = []
    script = str(Path(__file__).with_name("sniff.py"))
    running = host.start([sys.executable, script, interface], where)
    wait_until(lambda: running.so_far().startswith("ready"), 10, f"capture on {interface} begins")
    try:
        yield seen
    finally:
        seen += [json.loads(line) for line in running.stop().output.splitlines()[1:]]


@dataclass
class Lab:
    a: Host
    b: Host
    outside: Host

    def wire(self, *pods: Pod, dataplane: Any, **more: Any) -> None:
        """Bring both nodes to what a dataplane and the applications of these pods ask for."""
        for host, state in self.states(*pods, dataplane=dataplane, **more).items():
            getattr(self, host).become(state)

    def states(self, *pods: Pod, dataplane: Any, **more: Any) -> dict[str, NodeState]:
        from testbed.cluster.compile import compile_node
        from testbed.proxy import proxiers

        taken = snapshot(*pods, **more)
        return {node.name: compile_node(taken, node, dataplane, proxiers.get("none")) for node in taken.nodes}


@contextmanager
def running_lab() -> Iterator[Lab]:
    """Set the lab up; all of it is gone afterwards."""
    report, reporter = socket.socketpair()
    pairs = {name: socket_pair() for name in HOSTS}
    keep = [reporter.fileno(), *(theirs.fileno() for _, theirs in pairs.values())]
    holder = process.fork(
        lambda: _hold(reporter, {name: theirs for name, (_, theirs) in pairs.items()}), title="lab", keep=keep
    )
    reporter.close()
    for _, theirs in pairs.values():
        theirs.close()
    try:
        assert report.recv(1) == b"!", "the lab could not be set up"
        hosts = {name: Host(name, ours) for name, (ours, _) in pairs.items()}
        for host in hosts.values():
            host.apply(
                ()
            )  # answered once its agent is in its netns and has its title: what is there stays as it is
        yield Lab(**hosts)
    finally:
        report.close()
        for ours, _ in pairs.values():
            ours.close()
        os.waitpid(holder, 0)


def _hold(reporter: socket.socket, agents: dict[str, socket.socket]) -> None:
    """The lab's first process: makes the namespaces, forks the agents, waits for the test to end."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    _isolate()
    home = netns.current()
    with Netlink() as links:
        _ok(links.send([netlink.add_bridge("switch"), netlink.set_link("switch", up=True)]))
        sysctl.write("net/bridge/bridge-nf-call-iptables", "0")
        sysctl.write("net/bridge/bridge-nf-call-ip6tables", "0")
        pids = [_start_host(home, links, name, sock) for name, sock in agents.items()]
    for sock in agents.values():
        sock.close()
    reporter.send(b"!")
    reporter.recv(1)
    for pid in pids:
        os.waitpid(pid, 0)


def _isolate() -> None:
    uid, gid = os.getuid(), os.getgid()
    if uid:  # mapped before there is a netns, whose files in /proc are made for its root
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    syscalls.unshare(
        syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
    )
    # As in a cluster's sandbox: a /run of its own, and nothing that is mounted shows outside.
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    sandbox.mount_run()


def _start_host(home: int, links: Netlink, name: str, sock: socket.socket) -> int:
    held = netns.create()
    with netns.inside(held), Netlink() as inside:
        _configure(inside, home, name)
    master = links.index("switch")
    _ok(links.send([netlink.set_link(f"port-{name}", up=True, master=master)]))

    def work() -> None:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        netns.enter(held)
        os.close(held)
        agent.main(socket.socket(fileno=sock.fileno()), f"agent {name}")

    pid = process.fork(work, title=f"lab-{name}", keep=[sock.fileno(), held])
    os.close(held)
    return pid


def _configure(inside: Netlink, home: int, name: str) -> None:
    _ok(inside.send([netlink.add_veth("eth0", f"port-{name}", home)]))
    sysctl.write("net/ipv6/conf/eth0/accept_dad", "0")
    _ok(inside.send([netlink.set_link("lo", up=True), netlink.set_link("eth0", up=True)]))
    index = {"eth0": inside.index("eth0")}
    wishes = [netlink.add_address(Address("eth0", address), index["eth0"]) for address in HOSTS[name]]
    if name == "outside":
        wishes.append(netlink.add_address(Address("eth0", f"{OUTSIDE_IN_10}/32"), index["eth0"]))
        pods = [Route(net, via=node.addresses[i]) for node in NODES for i, net in enumerate(node.pod_cidrs)]
        wishes += [netlink.add_route(route, index) for route in pods]
    else:
        routes = [Route("default", via=OUTSIDE), Route("default6", via="fd18::254")]
        wishes += [netlink.add_route(route, index) for route in routes]
    _ok(inside.send(wishes))


def _ok(refused: list[netlink.Refusal]) -> None:
    for refusal in refused:
        raise refusal.error


def isolated(function: Callable[[], Any]) -> Any:
    """What ``function`` returns (as JSON), called in a netns of its own with lo and eth0 up.

    Its failure fails the test, with its traceback on stderr.
    """
    report, reporter = socket.socketpair()

    def body() -> None:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        _isolate()
        other = netns.create()
        with Netlink() as links:
            up = [netlink.set_link(name, up=True) for name in ("lo", "eth0")]
            _ok(links.send([netlink.add_veth("eth0", "far", other), *up]))
        with netns.inside(other), Netlink() as links:
            _ok(links.send([netlink.set_link("far", up=True)]))
        reporter.sendall(json.dumps(function()).encode())

    pid = process.fork(body, title="isolated", keep=[reporter.fileno()])
    reporter.close()
    with report, report.makefile() as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, "failed in the isolated process, see its traceback"
    return json.loads(text)
