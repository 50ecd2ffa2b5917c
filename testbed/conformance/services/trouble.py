"""When something interferes: rules that are flushed, packets that belong to no connection."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from testbed.api.cluster import Completed
from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import PORT, answers, client, cluster_ip, node_port, server, service

REBUILT_WITHIN = 45.0
"""Seconds: the canaries are looked at every syncPeriod, 30 s."""


@services.case("mode:iptables", alone=True)
def flushed_rules_come_back(lab: Lab) -> None:
    """When somebody flushes a node's iptables, its Services are served again by themselves."""
    node = lab.node_name(0)
    *_, made = lab.apply(server("web"), client(node=node), service(type="NodePort"))
    answers(lab, "client", cluster_ip(made), PORT, {"web"})
    lab.step("flushed")
    # At once: rules that are back between two commands hinder the second.
    empty = "".join(f"*{table}\nCOMMIT\n" for table in ("nat", "filter", "mangle"))
    done = lab.cluster.node(node).run(["iptables-restore"], stdin=empty)
    lab.check(done.code == 0, f"iptables-restore of empty tables: {done.stderr.strip()}")
    answers(lab, "client", cluster_ip(made), PORT, {"web"}, within=REBUILT_WITHIN)
    answers(lab, "client", lab.node_ip(0), node_port(made), {"web"})


SERVER = """
import socket, struct
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
listening = socket.create_server(("", 9000))
listening.settimeout(20)
connection, (peer, port) = listening.accept()
connection.settimeout(3)
while True:  # the client's own packets: what it has sent last says what is acknowledged to it
    segment = raw.recv(65535)[20:]
    source, _, sequence, _, _, flags = struct.unpack_from("!HHIIBB", segment)
    if source == port and not flags & 2:
        break
own = connection.getsockname()[0]
ends = socket.inet_aton(own) + socket.inet_aton(peer)
for far in (1, 0x40000000, 0x80000000, 0xC0000000):
    head = struct.pack("!HHIIBBHHH", 9000, port, far, sequence, 5 << 4, 0x10, 1, 0, 0)
    sum_of = checksum(ends + struct.pack("!BBH", 0, 6, len(head)) + head)
    raw.sendto(head[:16] + struct.pack("!H", sum_of) + head[18:], (peer, 0))
try:
    connection.sendall(b"hello")
    print("heard", connection.recv(100).decode())
except OSError as error:
    print("lost", error.strerror or error)
"""
"""Takes a connection, sends packets of it that are far outside its window, and then goes on as usual."""

CLIENT = """
import socket, sys, time
deadline = time.monotonic() + 15
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 80), timeout=5)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.1)
try:
    heard = connection.recv(100)
    time.sleep(0.5)  # what disturbs the connection has come by then
    connection.sendall(b"hello too")
    print("heard", heard.decode())
except OSError as error:
    print("lost", error.strerror or error)
"""


@services.case("mode:iptables", "nodes:2")
def packets_of_no_connection_do_not_end_one(lab: Lab) -> None:
    """Packets that conntrack finds INVALID do not get a connection through a Service reset."""
    _survives(lab)


@services.case("mode:nftables", "nodes:2", alone=True)
def packets_of_no_connection_do_not_end_one_where_conntrack_is_liberal(lab: Lab) -> None:
    """The same in nftables mode, which drops nothing INVALID, with kube-proxy's conntrack.tcpBeLiberal."""
    with contextlib.ExitStack() as undo:
        for number in range(2):
            _set(lab, number, "1")
            undo.callback(_set, lab, number, "0")
        _survives(lab)


def _set(lab: Lab, node: int, value: str) -> None:
    argv = ["sysctl", "-q", "-w", f"net.netfilter.nf_conntrack_tcp_be_liberal={value}"]
    done = lab.cluster.node(lab.node_name(node)).run(argv)
    lab.check(done.code == 0, f"{' '.join(argv)}: {done.stderr.strip()}")


def _survives(lab: Lab) -> None:
    """Check that a connection through a Service outlives what SERVER does to it."""
    ports = [{"name": "it", "port": PORT, "targetPort": 9000}]
    pods = (client("web", node=lab.node_name(1)), client(node=lab.node_name(0)))
    *_, made = lab.apply(*pods, service(ports=ports))
    lab.ready()
    with ThreadPoolExecutor(1) as beside:
        serving = beside.submit(lab.pod("web").run, ["python3", "-c", SERVER])
        asked = lab.pod("client").run(["python3", "-c", CLIENT, cluster_ip(made)])
        served = serving.result()
    said = f"client {_end(asked)}; server {_end(served)}"
    lab.check("heard hello" in asked.stdout and "heard hello too" in served.stdout, said)


def _end(done: Completed) -> str:
    return (done.stdout + done.stderr)[-200:].strip()
