"""Whether a dataplane can do what a spec asks of it: found before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import Dataplane
from testbed.errors import InputError, Problem

LEAST_MTU = {4: 68, 6: 1280}
"""Bytes (RFC 791, RFC 8200): Linux has no IPv6 on a device below, and none of its tunnels below IPv4's."""


def check(dataplane: Dataplane, facts: ClusterFacts) -> None:
    """Raises InputError for ranges and sizes that the dataplane cannot do, naming the field."""
    dataplane.ipam(facts)  # refuses ranges that pods cannot have their addresses of
    versions = {ip_network(cidr).version for cidr in facts.pod_cidrs}
    needed = max(LEAST_MTU[version] for version in versions)
    smallest = _smallest_mtu(dataplane, facts)
    if smallest < needed:
        own = facts.dataplane_options.get("mtu") is not None
        path = "spec.network.dataplane.mtu" if own else "spec.topology.link.mtu"
        family = "IPv6" if 6 in versions else "IPv4"
        raise InputError([Problem(f"leaves pods {smallest} bytes, and {family} needs {needed}", path=path)])


def refuse_unknown(names: Iterable[str], facts: ClusterFacts, path: str) -> None:
    """Raises InputError where the field at ``path`` names nodes that the spec has not."""
    unknown = sorted(set(names) - set(facts.node_names))
    if unknown:
        there = ", ".join(facts.node_names)
        raise InputError([Problem(f"no node is called {', '.join(unknown)}; nodes are {there}", path=path)])


def _smallest_mtu(dataplane: Dataplane, facts: ClusterFacts) -> int:
    """That of all devices which a node with one pod would have."""
    ranges = [ip_network(cidr) for cidr in facts.pod_cidrs]
    addresses = tuple(str(ip_network(cidr)[1]) for cidr in facts.node_cidrs)
    node = Node("node", addresses, facts.pod_cidrs)
    pod = Pod("uid", "default", "pod", node.name, tuple(str(network[-1]) for network in ranges))
    state = dataplane.compile(Snapshot(facts, (node,), (pod,)), node)
    links = [
        link
        for netns in (state.netns, *(each.netns for each in state.pods.values()))
        for link in netns.links.values()
    ]
    return min((link.mtu for link in links if link.mtu), default=facts.link_mtu)
