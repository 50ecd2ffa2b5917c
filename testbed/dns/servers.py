"""What of cluster DNS is in a node's desired state: its pods' DNS servers and the cache's device. Pure."""

from __future__ import annotations

from testbed.control.containers import nameserver
from testbed.control.snapshot import ClusterFacts, Pod
from testbed.dns.dnsmasq import node_cache
from testbed.dns.objects import CACHE_DEVICE
from testbed.state import Address, Link, NameFiles, NetnsState


def nameservers(facts: ClusterFacts, pod: Pod) -> dict[str, NameFiles]:
    """The containers of a pod that are DNS servers, with what they read.

    Nothing yet for the cluster's own: it is told of every change by itself, as CoreDNS watches the API.
    """
    return {
        container.name: node_cache_files(facts) if kind == "node" else NameFiles()
        for container in pod.containers
        if (kind := nameserver(container))
    }


def node_cache_files(facts: ClusterFacts) -> NameFiles:
    """What a node's cache reads."""
    return node_cache(facts.cluster_domain, facts.node_dns, facts.dns_addresses[0], facts.upstream_dns)


def node_device(facts: ClusterFacts) -> NetnsState:
    """The device with the cache's address on every node. Upstream's is a dummy; a bridge without ports does
    the same, and no kernel lacks it."""
    if not facts.node_dns:
        return NetnsState()
    address = Address(CACHE_DEVICE, f"{facts.node_dns}/32", broadcast=False)
    return NetnsState(
        links={CACHE_DEVICE: Link(CACHE_DEVICE, "bridge")},
        addresses={(CACHE_DEVICE, address.address): address},
    )
