"""A control plane without a cluster: a clock turned by hand, and nodes that make whatever they should."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_network
from typing import Any

from testbed.cluster.clock import ManualClock
from testbed.cluster.controlplane import ControlPlane
from testbed.control.snapshot import ClusterFacts
from testbed.dataplane import dataplanes
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store
from testbed.proxy import proxiers

Object = dict[str, Any]

FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"),
    node_cidrs=("192.168.100.0/24",),
    dns_addresses=("10.96.0.10",),
)
STARTED = 1_800_000_000.0
"""Where the clock stands at first: seconds since 1970."""
ZONES = ("zone-a", "zone-b", "zone-a")


def make_node(number: int, prefix: int = 24) -> Object:
    name, zone = f"node-{number}", ZONES[(number - 1) % len(ZONES)]
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": zone,
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": f"10.244.{number}.0/{prefix}", "podCIDRs": [f"10.244.{number}.0/{prefix}"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"192.168.100.{10 + number}"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def make_plane(
    objects: Iterable[Object] = (),
    *,
    nodes: int = 3,
    prefix: int = 24,
    seed: int = 1,
    clock: ManualClock | None = None,
) -> ControlPlane:
    """A plane over a store with a namespace, nodes and ``objects``. prefix: of each node's pod range."""
    clock = clock or ManualClock(STARTED)
    ranges = ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112")))
    store = Store(ranges, seed=seed, now=clock.now)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    for number in range(1, nodes + 1):
        store.create(make_node(number, prefix), trusted=True)
    for obj in objects:
        store.create(obj)
    return ControlPlane(store, FACTS, dataplanes.get("bridge"), proxiers.get("none"), {}, clock)


def drive(plane: ControlPlane, held: Collection[str] = ()) -> None:
    """Decide, and have every node make what it should and remove the rest, until nothing changes.

    held: names of pods that take their time to end.
    """
    while True:
        version = plane.store.resource_version
        plane.step()
        plane.pods_made(plane.not_running())
        staying = []
        for pod in plane.store.list("Pod"):
            metadata = pod["metadata"]
            if metadata["name"] in held:
                staying.append(metadata["uid"])
            elif "deletionTimestamp" in metadata:
                plane.pod_ended(metadata["uid"])
        for node in plane.store.list("Node"):
            name = node["metadata"]["name"]
            plane.pods_removed(name, [*plane.desired(name).pods, *staying])
        plane.step()
        if plane.store.resource_version == version:
            return
