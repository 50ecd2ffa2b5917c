"""The bandwidth annotations by what the plugin bandwidth makes, beside every dataplane.

What a pod receives is shaped at the root of the host end of its veth pair; what it sends comes in there and
is redirected to an IFB device of its own, which shapes it. Source: containernetworking plugins 1.1.1
``plugins/meta/bandwidth/{main,ifb_creator}.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha512

from testbed.control.bandwidth import bandwidth
from testbed.control.snapshot import Pod
from testbed.dataplane.portmap import NETWORK, container_id
from testbed.state import Link, NetnsState, NodeState, Redirect, Shaper

BURST = 2**32 - 1
"""Bits: what the kubelet and containerd ask for (math.MaxUint32)."""


def compile_bandwidth(wiring: NodeState, pods: Iterable[Pod]) -> NetnsState:
    """The shapers of a node's pods. wiring: what the dataplane made of the node."""
    links: dict[str, Link] = {}
    shapers: dict[str, Shaper] = {}
    redirects: dict[str, Redirect] = {}
    for pod in pods:
        limits = bandwidth(pod.annotations)
        host_end = _host_end(wiring, pod)
        if host_end is None or pod.host_network:
            continue
        if limits.ingress:
            shapers[host_end.name] = Shaper(host_end.name, limits.ingress, BURST)
        if limits.egress:
            ifb = Link(ifb_name(pod), "ifb", mtu=host_end.mtu)
            links[ifb.name] = ifb
            shapers[ifb.name] = Shaper(ifb.name, limits.egress, BURST)
            redirects[host_end.name] = Redirect(host_end.name, ifb.name)
    return NetnsState(links=links, shapers=shapers, redirects=redirects)


def ifb_name(pod: Pod) -> str:
    """The name of a pod's IFB device, 15 characters."""
    return ("bwp" + sha512((NETWORK + container_id(pod)).encode()).hexdigest())[:15]


def _host_end(wiring: NodeState, pod: Pod) -> Link | None:
    """The node's end of the pod's veth pair."""
    state = wiring.pods.get(pod.uid)
    peers = [link.peer for link in state.netns.links.values() if link.peer] if state else []
    return wiring.netns.links.get(peers[0], Link(peers[0], "peer")) if peers else None
