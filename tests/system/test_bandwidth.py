"""Bandwidth limits, measured with real traffic: no more passes than a token bucket lets through.

The bound is the bucket's own: what it holds at first and its rate for as long as the transfer took. A slow
machine makes a transfer slower, never faster, so the bound holds at any load.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec
import pytest
from node_lab import Host, Lab, pod, running_lab

from testbed.dataplane import dataplanes
from testbed.wait import wait_until

RATE, BURST = 8_000_000, 400_000
"""Bits per second, bits."""
SENT = 1_500_000
"""Bytes of a transfer."""

LIMITS = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "8M"}
FREE, LIMITED, OTHER = pod("a1", "a", 2), pod("a1", "a", 2, annotations=LIMITS), pod("b1", "b", 2)

RECEIVE = """
import socket, time
with socket.create_server(("", 9999)) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    got, first = len(peer.recv(65536)), time.monotonic()
    while part := peer.recv(65536):
        got += len(part)
    print(got, time.monotonic() - first)
"""
SEND = f"""
import socket, sys
with socket.create_connection((sys.argv[1], 9999)) as peer:
    peer.sendall(bytes({SENT}))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


def wire(lab: Lab, *pods: object) -> None:
    """As annotated, but with a bucket small enough for a short transfer (upstream's is half a gigabyte)."""
    for name, state in lab.states(*pods, dataplane=dataplanes.get("bridge")).items():  # type: ignore[arg-type]
        shapers = {
            dev: msgspec.structs.replace(shaper, burst=BURST) for dev, shaper in state.netns.shapers.items()
        }
        netns = msgspec.structs.replace(state.netns, shapers=shapers)
        getattr(lab, name).become(msgspec.structs.replace(state, netns=netns))


def transfer(sender: Host, source: str, receiver: Host, target: str, address: str) -> tuple[int, float]:
    """Bytes that arrived, and seconds from the first to the last of them."""
    running = receiver.start([sys.executable, "-c", RECEIVE], target)
    wait_until(lambda: "ready" in running.so_far(), 10, "the receiver listens")
    sender.ok(sys.executable, "-c", SEND, address, where=source)
    got, seconds = running.wait().output.split()[1:]
    return int(got), float(seconds)


def passes(got: int, seconds: float) -> bool:
    """Whether a bucket could have let so much through in that time, with one socket buffer in hand."""
    return got * 8 <= BURST + RATE * seconds + 65536 * 8


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_no_more_passes_than_the_limit_lets_through_and_all_arrives(lab: Lab, way: str) -> None:
    def measured() -> tuple[int, float]:
        if way == "ingress":
            return transfer(lab.b, "uid-b1", lab.a, "uid-a1", "10.244.1.2")
        return transfer(lab.a, "uid-a1", lab.b, "uid-b1", "10.244.2.2")

    wire(lab, FREE, OTHER)
    got, seconds = measured()
    assert got == SENT
    assert not passes(got, seconds), "the transfer is too slow to tell a limit from none"
    wire(lab, LIMITED, OTHER)
    got, seconds = measured()
    assert got == SENT
    assert passes(got, seconds), f"{got} bytes in {seconds} s"


def test_limits_come_and_go_with_annotations_and_pods_and_leave_nothing(lab: Lab) -> None:
    wire(lab, LIMITED, OTHER)
    (host_end,) = [link.name for link in lab.a.state.netns.links.values() if link.kind == "peer"]
    kinds = {qdisc["kind"] for qdisc in lab.a.json("tc", "-json", "qdisc", "show", "dev", host_end)}
    assert kinds == {"tbf", "ingress"}
    assert len(lab.a.json("ip", "-json", "link", "show", "type", "ifb")) == 1
    wire(lab, FREE, OTHER)
    kinds = {qdisc["kind"] for qdisc in lab.a.json("tc", "-json", "qdisc", "show", "dev", host_end)}
    assert kinds == {"noqueue"}
    assert lab.a.json("ip", "-json", "link", "show", "type", "ifb") == []
    wire(lab, LIMITED, OTHER)
    wire(lab, OTHER)
    assert lab.a.json("ip", "-json", "link", "show", "type", "ifb") == []
