"""Names and numbers that Calico's parts share.

Sources: projectcalico/calico ``libcalico-go/lib/backend/k8s/conversion/workload_endpoint_default.go``,
``cni-plugin/pkg/dataplane/linux/dataplane_linux.go``, ``felix/rules/rule_defs.go``, ``felix/config``.
"""

from __future__ import annotations

from hashlib import sha1

from testbed.control.snapshot import Node
from testbed.state import Family

PREFIX = "cali"
"""Of the pods' host ends; felix knows workloads by it."""
HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""Of every host end: a pod's neighbour table never has to change."""
GATEWAY4 = "169.254.1.1"
"""On no device: answered for by proxy ARP."""
GATEWAY6 = "fe80::ecee:eeff:feee:eeee"
"""The link-local address that the kernel makes of HOST_MAC."""

VXLAN_PORT, VNI = 4789, 4096
VXLAN = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
TUNNEL = "tunl0"
OVERHEAD = {"vxlan": {4: 50, 6: 70}, "ipip": {4: 20, 6: 0}}
"""Bytes an encapsulation adds, by family."""
PROTO = "80"
"""Route protocol of felix's routes through tunnels and to blocks (DeviceRouteProtocol)."""


def host_end(namespace: str, pod: str) -> str:
    """The host end of a pod's veth pair: ``cali`` and 11 hex digits."""
    return PREFIX + sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()[:11]


def vtep_mac(node: str, version: int) -> str:
    """The tunnel device's MAC: ``f`` and SHA-1 of the node's name (felix ``calc/vxlan_resolver.go``)."""
    name = node if version == 4 else f"{node}-v6"
    digest = b"f" + sha1(name.encode(), usedforsecurity=False).digest()[:5]
    return ":".join(f"{byte:02x}" for byte in digest)


def address(node: Node, version: int) -> str | None:
    """The node's first address of a family."""
    return next((text for text in node.addresses if (":" in text) == (version == 6)), None)


def version_of(family: Family) -> int:
    """4 or 6."""
    return 4 if family == "ipv4" else 6
