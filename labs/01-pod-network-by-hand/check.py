"""The checks of this lab, in the order in which a student gets there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from testbed.api.cluster import Cluster, Completed
from testbed.labs import Finding


@dataclass(frozen=True)
class Pod:
    """One pod of the task."""

    name: str
    node: str
    address: str


PODS = (
    Pod("red", "node-1", "10.244.1.2"),
    Pod("blue", "node-1", "10.244.1.3"),
    Pod("green", "node-2", "10.244.2.2"),
    Pod("gold", "node-2", "10.244.2.3"),
)
NODES = {"node-1": "10.244.1.1", "node-2": "10.244.2.1"}
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 7)) as server:
    server.settimeout(5)
    print("ready", flush=True)
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), timeout=4) as sock:
    print(sock.recv(100).decode())
"""
EXCHANGE = """
import subprocess, sys
server, listen, address, client, ask = sys.argv[1:]
def argv(pod, program):
    return ["ip", "netns", "exec", pod, sys.executable, "-c", program, address]
with subprocess.Popen(argv(server, listen), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as listening:
    if listening.stdout.readline():
        subprocess.run(argv(client, ask), stderr=subprocess.DEVNULL)
    listening.terminate()
"""


def run(cluster: Cluster, node: str, *argv: str) -> Completed:
    """A program on a node."""
    return cluster.node(node).run(argv)


def ip(cluster: Cluster, pod: Pod, *words: str) -> Completed:
    """``ip`` in a pod."""
    return run(cluster, pod.node, "ip", "-n", pod.name, *words)


def first_line(done: Completed) -> str:
    return ((done.stdout or done.stderr).splitlines() or ["nothing"])[0].strip()


def listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def pods_exist(cluster: Cluster) -> Finding:
    there = [line.split()[0] for line in run(cluster, "node-1", "ip", "netns", "list").stdout.splitlines()]
    lacking = [pod.name for pod in PODS if pod.name not in there]
    return Finding(
        "the four pods exist",
        not lacking,
        "network namespaces named " + listed([pod.name for pod in PODS]),
        "there are: " + listed(there),
    )


def addresses(cluster: Cluster, pod: Pod) -> list[str]:
    """Of the pod's devices that are up, but for lo: ``eth0 10.244.1.2/24``."""
    done = ip(cluster, pod, "-json", "-4", "address", "show", "up")
    links = json.loads(done.stdout or "[]") if done.code == 0 else []
    return [
        f"{link['ifname']} {info['local']}/{info['prefixlen']}"
        for link in links
        if link.get("ifname") not in (None, "lo")
        for info in link["addr_info"]
    ]


def pods_have_addresses(cluster: Cluster) -> Finding:
    found = {pod: addresses(cluster, pod) for pod in PODS}
    wrong = [
        f"{pod.name}: {listed(there)}"
        for pod, there in found.items()
        if not any(each.startswith(f"eth0 {pod.address}/") for each in there)
    ]
    return Finding(
        "each pod has an eth0 that is up, with the pod's address",
        not wrong,
        "on eth0: " + listed([f"{pod.name} {pod.address}" for pod in PODS]),
        "addresses of devices that are up: " + "; ".join(wrong),
    )


def bridges(cluster: Cluster, node: str) -> Iterator[tuple[str, list[str], int]]:
    """Each bridge of a node that is up: name, addresses, how many veths hang on it."""
    links = json.loads(run(cluster, node, "ip", "-json", "-details", "address", "show").stdout)
    for link in links:
        if link.get("linkinfo", {}).get("info_kind") == "bridge" and "UP" in link["flags"]:
            ports = [
                other for other in links if other.get("master") == link["ifname"] and "UP" in other["flags"]
            ]
            yield link["ifname"], [info["local"] for info in link["addr_info"]], len(ports)


def nodes_have_bridges(cluster: Cluster) -> Finding:
    wrong = []
    for node, gateway in NODES.items():
        found = list(bridges(cluster, node))
        if not any(gateway in own and ports >= 2 for _, own, ports in found):
            seen = [f"{name} with {listed(own)} and {ports} ports up" for name, own, ports in found]
            wrong.append(f"{node}: {listed(seen)}")
    return Finding(
        "each node has a bridge with its pods on it",
        not wrong,
        "a bridge that is up, has the first address of the node's range, and two ports that are up",
        "bridges that are up: " + "; ".join(wrong),
    )


def reached(cluster: Cluster, pod: Pod, address: str) -> bool:
    argv = ("ip", "netns", "exec", pod.name, "ping", "-c2", "-i0.2", "-W1", address)
    return run(cluster, pod.node, *argv).code == 0


def unreached(cluster: Cluster, pairs: list[tuple[Pod, Pod]]) -> list[str]:
    with ThreadPoolExecutor(len(pairs)) as pool:
        answered = pool.map(lambda pair: reached(cluster, pair[0], pair[1].address), pairs)
        return [f"{a.name} -> {b.name}" for (a, b), ok in zip(pairs, answered, strict=True) if not ok]


def neighbours_talk(cluster: Cluster) -> Finding:
    pairs = [(a, b) for a in PODS for b in PODS if a != b and a.node == b.node]
    silent = unreached(cluster, pairs)
    return Finding(
        "pods of one node reach each other",
        not silent,
        "an answer to a ping from each to its neighbour on the same node",
        "no answer: " + listed(silent),
    )


def pods_know_the_way(cluster: Cluster) -> Finding:
    lost = []
    for pod in PODS:
        other = next(each for each in PODS if each.node != pod.node)
        done = ip(cluster, pod, "route", "get", other.address)
        if f"via {NODES[pod.node]} " not in done.stdout:
            lost.append(f"{pod.name}: {first_line(done)}")
    return Finding(
        "each pod hands packets for other ranges to its node",
        not lost,
        "ip route get ADDRESS, for one on the other node, leads via the node's address in the pods' range",
        "; ".join(lost),
    )


def nodes_know_the_way(cluster: Cluster) -> Finding:
    others = {"node-1": ("10.244.2.2", "192.168.100.12"), "node-2": ("10.244.1.2", "192.168.100.11")}
    lost = []
    for node, (address, via) in others.items():
        done = run(cluster, node, "ip", "route", "get", address)
        if f"via {via} " not in done.stdout:
            lost.append(
                f"{node}, asked for {address}: {(done.stdout or done.stderr).splitlines()[0].strip()}"
            )
    return Finding(
        "each node knows where the other's pods are",
        not lost,
        "ip route get ADDRESS, for a pod of the other node, leads to that node",
        "; ".join(lost),
    )


def strangers_talk(cluster: Cluster) -> Finding:
    silent = unreached(cluster, [(a, b) for a in PODS for b in PODS if a.node != b.node])
    return Finding(
        "pods of different nodes reach each other",
        not silent,
        "an answer to a ping from each to each of the other node",
        "no answer: " + listed(silent),
    )


def addresses_arrive_as_they_left(cluster: Cluster) -> Finding:
    wrong = []
    for client, server in ((PODS[0], PODS[2]), (PODS[3], PODS[1])):
        argv = ("python3", "-c", EXCHANGE, server.name, LISTEN, server.address, client.name, ASK)
        done = run(cluster, client.node, *argv)
        seen = done.stdout.strip() or "no connection"
        if seen != client.address:
            wrong.append(f"{client.name} connects to {server.name}, which sees {seen}")
    return Finding(
        "a pod is seen under its own address",
        not wrong,
        "the other end of a TCP connection sees the address of the pod that opened it",
        "; ".join(wrong),
    )


CHECKS = (
    pods_exist,
    pods_have_addresses,
    nodes_have_bridges,
    neighbours_talk,
    pods_know_the_way,
    nodes_know_the_way,
    strangers_talk,
    addresses_arrive_as_they_left,
)
