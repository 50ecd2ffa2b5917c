"""What every fabric has, added to a ``Topo``: hosts, routers, the gateway with the hosts behind it.

Ports keep Mininet's names (``leaf1-eth0``); the fabric calls the interfaces of cluster hosts ``eth0``,
``eth1`` … inside their own netns, as on a real node.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

from testbed.spec.addressing import outside_segments
from testbed.topology import routing
from testbed.topology.plan import FabricPlan, PlannedHost

if TYPE_CHECKING:
    from mininet.topo import Topo


def add_host(topo: Topo, host: PlannedHost, switch: str, plan: FabricPlan) -> None:
    """Add a host with its addresses and link it to a switch."""
    from testbed.fabric.nodes import ClusterHost  # here: it brings mininet.node, which planning needs not

    topo.addHost(host.name, cls=ClusterHost, **host_options(host))
    join(topo, host.name, switch, plan.link)


def host_options(host: PlannedHost) -> dict[str, Any]:
    """A host's parameters on the graph. ip: the IPv4 address, which is all that plain Mininet knows."""
    ipv4 = next((address for address in host.addresses if ":" not in address), None)
    return {"ip": ipv4, "ips": list(host.addresses), "role": host.role, "zone": host.zone, "routes": []}


def add_router(topo: Topo, name: str, role: str = "router") -> str:
    """Add a router; its addresses come with its links, its routes with ``complete``."""
    from testbed.fabric.nodes import Router

    topo.addNode(name, cls=Router, role=role, ip=None, routes=[])
    return name


def join(
    topo: Topo,
    node: str,
    other: str,
    link: dict[str, object],
    ips: Sequence[str] = (),
    other_ips: Sequence[str] = (),
) -> None:
    """Link two things. ips, other_ips: addresses that their ends of the link get."""
    ends = {
        f"params{side}": {"ips": list(given)} for side, given in ((1, ips), (2, other_ips)) if len(given) > 0
    }
    topo.addLink(node, other, port1=_free_port(topo, node), port2=_free_port(topo, other), **ends, **link)


def _free_port(topo: Topo, name: str) -> int:
    """The next port: Mininet counts ports, which goes wrong where somebody chose numbers of their own."""
    return max(topo.ports.get(name, {}), default=0 if topo.isSwitch(name) else -1) + 1


def add_core(topo: Topo, plan: FabricPlan, switch: str) -> None:
    """Join to ``switch`` what is not a node: gateway, control plane and the hosts outside the cluster."""
    gateway = add_router(topo, plan.gateway.name, role="gateway")
    join(topo, gateway, switch, plan.link, ips=plan.gateway.addresses)
    add_host(topo, plan.control_plane, switch, plan)
    for host in plan.external:
        if host.attach == "nodes":
            add_host(topo, host, switch, plan)
    behind = [host for host in plan.external if host.attach == "gateway"]
    addresses = [[ip_interface(text).ip for text in host.addresses] for host in behind]
    for number, outside in enumerate(outside_segments(addresses), 1):
        outside_switch = topo.addSwitch(f"outside{number}")
        join(topo, gateway, outside_switch, plan.link, ips=outside.gateway)
        for position in outside.hosts:
            add_host(topo, behind[position], outside_switch, plan)


def complete(topo: Topo, plan: FabricPlan) -> None:
    """The last step of every builder: routes for all."""
    routing.install(topo, plan.pod_cidrs)
