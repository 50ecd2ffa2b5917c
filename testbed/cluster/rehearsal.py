"""What the process that forks agents does first: be one for a moment, with a few pods that nobody asked for.

Python writes to memory wherever code runs: reference counts, caches of attributes, the code itself, which it
makes faster where it runs often. What agents no longer have to write stays shared among them.
"""

from __future__ import annotations

import gc
import logging
import os
import socket

from testbed.cluster import agent
from testbed.cluster.messages import AddPods, AnyMessage, Apply, ChangeNetns
from testbed.kernel import netns
from testbed.kernel.channel import Channel, socket_pair
from testbed.state import NODE, Address, Link, Listener, NetnsState, PodState, Route

log = logging.getLogger(__name__)

PODS = 4


def preload() -> None:
    """Load what agents need, and rehearse. Raises OSError."""
    agent.preload()
    log.info("rehearsed: %s", rehearse())
    gc.collect()


def rehearse() -> AnyMessage:
    """What an agent answers to a daemon that asks for a few pods, in a netns that is gone afterwards."""
    ours, theirs = socket_pair()
    daemon = Channel[AnyMessage](ours, AnyMessage)
    daemon.send(Apply(1, _changes()))
    ours.shutdown(socket.SHUT_WR)  # so that the agent ends when it has done that
    stage = netns.create()
    try:
        with netns.inside(stage):
            agent.main(theirs, "rehearsal")
        answer, _ = daemon.receive()
    finally:
        os.close(stage)
        ours.close()
    return answer


def _changes() -> tuple[ChangeNetns | AddPods, ...]:
    """A node's bridge, its pods, and their host ends as the bridge's ports."""
    nothing = NetnsState()
    bridge = NetnsState(links={"cni0": Link("cni0", "bridge", mtu=1500)})
    ports = NetnsState(
        links={f"veth{n}": Link(f"veth{n}", "peer", master="cni0", hairpin=True) for n in range(PODS)},
        addresses={("cni0", "10.244.0.1/24"): Address("cni0", "10.244.0.1/24")},
    )
    pods = tuple(map(_pod, range(PODS)))
    return ChangeNetns(NODE, bridge, nothing), AddPods(pods), ChangeNetns(NODE, ports, nothing)


def _pod(number: int) -> PodState:
    address = Address("eth0", f"10.244.0.{2 + number}/24")
    return PodState(
        uid=str(number),
        namespace="default",
        name="pod",
        hostname="pod",
        listeners=(Listener("main", "TCP", 80, "http"),),
        netns=NetnsState(
            links={
                "lo": Link("lo", "existing"),
                "eth0": Link("eth0", "veth", mtu=1500, peer=f"veth{number}"),
            },
            addresses={("eth0", address.address): address},
            routes={"default": Route("default", via="10.244.0.1", dev="eth0")},
            sysctls={"net/ipv4/conf/eth0/arp_notify": "1"},
        ),
    )
