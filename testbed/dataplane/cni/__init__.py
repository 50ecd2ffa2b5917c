"""Dataplane ``cni``: pods are wired by real plugins, run by the CNI specification, which give them addresses.

The node's runtime (``cluster.sandboxes``) does what containerd does: it makes a pod's network namespace, runs
the plugins of the configuration list, and reports the addresses that they gave. Only what no plugin does is
compiled: sysctls that a kubelet asks for, routes to the other nodes' podCIDRs as a cloud's route table has
them, and, where it is asked for, kubenet's rule for traffic that leaves the cluster.

Sources: the CNI specification 1.1.0; containerd 2.0 ``internal/cri/server/sandbox_run.go`` (arguments and
capabilities), ``internal/cri/server/service_linux.go`` (the template's placeholders).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from testbed.control.bandwidth import bandwidth
from testbed.control.ipam import ASKED, GivenByNodes, Ipam
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.cni import protocol
from testbed.dataplane.plugins import kubenet_masquerade, node_sysctls, peer_routes
from testbed.dataplane.portmap import container_id
from testbed.spec.fields import choice
from testbed.spec.params import Param
from testbed.state import NetnsState, NodeState, PluginList, PodState, Sandbox

PLUGIN_DIRECTORIES = ("/usr/lib/cni", "/opt/cni/bin")
"""Where Debian and everybody else have plugins."""

DIRECTORY = "@DIR@"
"""Stands for the node's own directory, which only the node knows."""

INTERFACE = "eth0"

UNLIMITED_BURST = 2**32 - 1
"""Bits; what containerd gives the plugin bandwidth as both bursts (math.MaxUint32)."""

DEFAULT = {
    "cniVersion": "1.0.0",
    "name": "testbed",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "capabilities": {"ipRanges": True, "ips": True},
            "ipam": {"type": "host-local"},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}
"""bridge and host-local in the node's podCIDRs, hostPorts and the bandwidth annotations."""


ANYTHING = dict.fromkeys(("PodCIDR", "PodCIDR6", "NodeName", "NodeIP", "Dir"), "text") | {"MTU": "1500"}
"""Every placeholder, filled with something of its kind: only the MTU may stand without quotes."""


def _conflist(value: Any) -> Any:
    # Placeholders may stand where only a value would be JSON.
    protocol.parse(protocol.fill(value if isinstance(value, str) else json.dumps(value), ANYTHING))
    return value


def _directories(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item and ":" not in item for item in items):
        raise ValueError("must be a directory of plugins, or a list of them")
    return value


class Cni:
    """Compiles what plugins are called with.

    Options: ``conflist``: a network configuration list, as a file's path or in place, in which
    ``{{.PodCIDR}}`` and ``{{.PodCIDR6}}`` (the node's), ``{{.NodeName}}``, ``{{.NodeIP}}``, ``{{.MTU}}``
    (the links') and ``{{.Dir}}`` (the node's own directory) are filled in; ``path``: directories of plugins
    beside PLUGIN_DIRECTORIES, before them; ``routes``: podCIDR (default), or none where plugins make them;
    ``nonMasqueradeCIDR``: where pods keep their own address, by kubenet's rule; without it there is no rule.
    """

    needs: frozenset[str] = frozenset({"veth", "bridge", "br_netfilter", "iptables"})
    parameters: Mapping[str, Param] = {
        "conflist": Param(_conflist, file="text"),
        "path": Param(_directories, file="paths"),
        "routes": Param(choice("podCIDR", "none"), "podCIDR"),
        "nonMasqueradeCIDR": Param(ip_network),
    }
    enforces_policy = False
    underlay_routes = True

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """The programs of the list's plugins that are not looked for in directories of the user's own."""
        return frozenset() if options.get("path") else frozenset({"cni-plugins"})

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """The node's sandboxes, and what of the node no plugin makes."""
        options = snapshot.facts.dataplane_options
        placed = tuple(pod for pod in snapshot.pods_by_node.get(node.name, ()) if not pod.host_network)
        pods = (*placed, *snapshot.unaddressed.get(node.name, ()))
        routes = peer_routes(snapshot, node) if options.get("routes", "podCIDR") == "podCIDR" else ()
        rules = kubenet_masquerade(snapshot.facts) if "nonMasqueradeCIDR" in options else ()
        network, path = _network(snapshot.facts, node), _path(options)
        return NodeState(
            NetnsState(
                routes={route.dst: route for route in routes},
                sysctls=node_sysctls(tuple(map(ip_network, node.pod_cidrs))),
                chains={(chain.family, chain.table, chain.name): chain for chain in rules},
            ),
            {pod.uid: _pod(pod) for pod in placed},
            sandboxes={pod.uid: _sandbox(pod, node, network, path) for pod in pods},
            plugins=PluginList(network, path),
        )

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """The plugins, which only nodes can ask."""
        return GivenByNodes()

    def interface_names(self) -> tuple[str, ...]:
        """What plugins usually make."""
        return "cni0", "veth", "bwp"


dataplanes.register("cni")(Cni())


def _path(options: Mapping[str, Any]) -> tuple[str, ...]:
    own = options.get("path") or []
    return (*(own if isinstance(own, list | tuple) else [own]), *PLUGIN_DIRECTORIES)


def _network(facts: ClusterFacts, node: Node) -> str:
    """The list for one node: filled in, and with what it keeps on disk in a directory of the node's own."""
    given = facts.dataplane_options.get("conflist", DEFAULT)
    ranges = {ip_network(cidr).version: cidr for cidr in reversed(node.pod_cidrs)}
    values = {
        "PodCIDR": node.pod_cidrs[0] if node.pod_cidrs else "",
        "PodCIDR6": ranges.get(6, ""),
        "NodeName": node.name,
        "NodeIP": node.addresses[0] if node.addresses else "",
        "MTU": str(facts.link_mtu),
        "Dir": DIRECTORY,
    }
    filled = json.loads(protocol.fill(given if isinstance(given, str) else json.dumps(given), values))
    for plugin in filled["plugins"]:
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and ipam.get("type") == "host-local":
            ipam.setdefault("dataDir", f"{DIRECTORY}/networks")
    return json.dumps(filled)


def _pod(pod: Pod) -> PodState:
    return PodState(uid=pod.uid, namespace=pod.namespace, name=pod.name, hostname="", sandboxed=True)


def _sandbox(pod: Pod, node: Node, network: str, path: tuple[str, ...]) -> Sandbox:
    return Sandbox(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        container=container_id(pod),
        network=network,
        path=path,
        ifname=INTERFACE,
        capabilities=_capabilities(pod, node),
    )


def _capabilities(pod: Pod, node: Node) -> dict[str, Any]:
    """What containerd has to offer to plugins that declare it, and the address that was asked for."""
    offered: dict[str, Any] = {"ipRanges": [[{"subnet": cidr}] for cidr in node.pod_cidrs]}
    ports = [port for container in pod.containers for port in container.ports if port.host_port]
    offered["portMappings"] = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol.lower(),
            **({"hostIP": port.host_ip} if port.host_ip else {}),
        }
        for port in ports
    ]
    limits = bandwidth(pod.annotations)
    if limits.ingress or limits.egress:
        offered["bandwidth"] = {
            key: value
            for name, rate in (("ingress", limits.ingress), ("egress", limits.egress))
            if rate
            for key, value in ((f"{name}Rate", rate), (f"{name}Burst", UNLIMITED_BURST))
        }
    if asked := _asked(pod, node):
        offered["ips"] = asked
    return {key: value for key, value in offered.items() if value}


def _asked(pod: Pod, node: Node) -> list[str]:
    """The addresses that a pod wants (``testbed/ip``), with the length of the node's range."""
    texts = [text.strip() for text in pod.annotations.get(ASKED, "").split(",") if text.strip()]
    found = []
    for text in texts:
        try:
            asked = ip_address(text)
        except ValueError:
            continue  # the plugin's own choice stands; admission tells of addresses that are none
        length = next(
            (ip_network(cidr).prefixlen for cidr in node.pod_cidrs if asked in ip_network(cidr)),
            asked.max_prefixlen,
        )
        found.append(f"{asked}/{length}")
    return found
