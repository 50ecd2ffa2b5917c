"""What making pods costs: raw netlink alone against real node agents. Prints one table.

    python benchmarks/pods.py [--pods 1000] [--nodes 20]

Raw: one process, per pod a netns, a veth pair, one address, one route, and the other end on a bridge.
Ours: the same pods through agents, with sysctls, application servers and iptables. Memory is the machine's
(see ``memory``), so all processes and the kernel are in it. Bar: ours at most raw + 0.25 MB a pod, at most 3
descriptors a pod. Needs no root; the machine should be idle.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed.apps import apps
from testbed.cluster import agent
from testbed.cluster.compile import compile_node
from testbed.cluster.messages import AnyMessage, Applied, Apply
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import ClusterFacts, Container, ContainerPort, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.kernel import netlink, netns, process, syscalls
from testbed.kernel.channel import Channel, socket_pair
from testbed.kernel.netlink import Netlink
from testbed.proxy import proxiers
from testbed.state import Address, Route

MB = 1024.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--pods", type=int, default=1000)
    arguments.add_argument("--nodes", type=int, default=20)
    options = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    apps.discover()  # as the zygote does, before it forks agents
    print("        pods  seconds  ms/pod  CPU s  MB/pod  fds/pod  gone after")
    raw = measured("raw", options.pods, lambda: make_raw(options.pods))
    ours = measured("ours", options.pods, lambda: make_ours(options.pods, options.nodes))
    print(f"memory: ours - raw = {ours - raw:.3f} MB/pod (bar 0.25)")


def measured(name: str, pods: int, work: Callable[[], tuple[float, float]]) -> float:
    """Run ``work`` in namespaces of its own; it returns CPU seconds and descriptors. Returns MB per pod."""
    before = memory()
    inside, outside = socket.socketpair()

    def body() -> None:
        isolate()
        start = time.monotonic()
        cpu, fds = work()
        inside.sendall(f"{time.monotonic() - start} {cpu} {fds}\n".encode())
        inside.recv(1)

    pid = process.fork(body, title=f"bench-{name}", keep=[inside.fileno()])
    inside.close()
    seconds, cpu, fds = map(float, outside.makefile().readline().split())
    used = (before - memory()) / MB / pods
    stop = time.monotonic()
    outside.close()
    os.waitpid(pid, 0)
    while memory() < before - 0.1 * used * MB * pods and time.monotonic() - stop < 60:
        time.sleep(0.05)  # polls the kernel's own clean-up, which tells nobody
    gone = time.monotonic() - stop
    print(
        f"{name:6}{pods:6}{seconds:9.2f}{1e3 * seconds / pods:8.2f}{cpu:7.2f}{used:8.3f}{fds / pods:9.2f}"
        f"{gone:10.1f} s"
    )
    return used


def isolate() -> None:
    """New network namespace, and a user namespace where needed."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWNET | (syscalls.CLONE_NEWUSER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def memory() -> float:
    """Memory that is free or can be freed at once, in kB.

    MemAvailable, and the free pages that each CPU keeps at hand, which it leaves out: a hundred MB after
    much was freed, given back over 10 s and more (``mm/page_alloc.c``, decay_pcp_high).
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    zones = Path("/proc/zoneinfo").read_text().splitlines()
    at_hand = sum(int(line.split()[1]) for line in zones if line.lstrip().startswith("count:"))
    return available + at_hand * resource.getpagesize() / MB


def make_raw(pods: int) -> tuple[float, float]:
    """Nothing but the kernel's work."""
    home = netns.current()
    held = []
    with Netlink() as node:
        check(node.send([netlink.add_bridge("cni0"), netlink.set_link("cni0", up=True)]))
        bridge = node.index("cni0")
        for number in range(pods):
            held.append(netns.enter_new())
            with Netlink() as pod:
                check(pod.send([netlink.add_veth("eth0", f"veth{number}", home, 1500)]))
                index = {"eth0": pod.index("eth0")}
                address = Address("eth0", f"10.{number >> 8}.{number & 255}.2/24")
                route = Route("default", via=f"10.{number >> 8}.{number & 255}.1", dev="eth0")
                up = [netlink.set_link(name, up=True) for name in ("lo", "eth0")]
                add = [netlink.add_address(address, index["eth0"]), netlink.add_route(route, index)]
                check(pod.send(up + add))
            netns.enter(home)
        ports = [netlink.set_link(f"veth{number}", up=True, master=bridge) for number in range(pods)]
        check(node.send(ports + [netlink.set_hairpin(f"veth{number}", True) for number in range(pods)]))
    return time.process_time(), float(len(held))


def check(refused: list[netlink.Refusal]) -> None:
    for refusal in refused:
        raise refusal.error


def make_ours(pods: int, nodes: int) -> tuple[float, float]:
    """Agents, each with its share of the pods, all at the same time."""
    snapshot = cluster(pods, nodes)
    pids, channels = [], []
    for node in snapshot.nodes:
        ours, theirs = socket_pair()
        pids.append(process.fork(lambda: run_agent(theirs), title="bench-agent", keep=[theirs.fileno()]))  # noqa: B023
        theirs.close()
        channel: Channel[AnyMessage] = Channel(ours, AnyMessage)
        state = compile_node(snapshot, node, dataplanes.get("bridge"), proxiers.get("none"))
        channel.send(Apply(1, diff(None, state)))
        channels.append(channel)
    for channel in channels:
        answer, _ = channel.receive()
        assert isinstance(answer, Applied), answer
        assert answer.failed == {}, answer.failed
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    cpu = time.process_time() + sum(int(stat[11]) + int(stat[12]) for stat in stats) / ticks
    return cpu, float(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids))


def run_agent(sock: socket.socket) -> None:
    """A node: a netns with an eth0 that has the node's address, and an agent."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    netns.enter_new()
    home = netns.current()
    with Netlink() as links:
        check(links.send([netlink.add_veth("eth0", "uplink", home), netlink.set_link("uplink", up=True)]))
        index = links.index("eth0")
        address = Address("eth0", "192.168.100.254/24")
        check(links.send([netlink.set_link("eth0", up=True), netlink.add_address(address, index)]))
    agent.main(sock, "agent bench")


def cluster(pods: int, nodes: int) -> Snapshot:
    facts = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
    listed = tuple(
        Node(f"node-{k}", (f"192.168.100.{10 + k}",), (f"10.244.{k}.0/24",), networks=("192.168.100.0/24",))
        for k in range(1, nodes + 1)
    )
    containers = (Container("main", "nginx", ports=(ContainerPort(80),)),)
    made = tuple(
        Pod(
            uid=f"uid-{n}",
            namespace="default",
            name=f"pod-{n}",
            node=f"node-{1 + n % nodes}",
            ips=(f"10.244.{1 + n % nodes}.{2 + n // nodes}",),
            containers=containers,
        )
        for n in range(pods)
    )
    return Snapshot(facts, listed, made)


if __name__ == "__main__":
    main()
