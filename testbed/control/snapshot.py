"""Snapshot: the cluster's objects at one moment, typed, immutable and indexed, as compilers see them.

Made from the store's plain Kubernetes objects by ``control.view``; it knows nothing of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from testbed.control.ipam import NOTHING, Held
from testbed.control.policies import Namespace, Policy


@dataclass(frozen=True)
class Node:
    """A node. addresses, pod_cidrs: text, one per family, in the spec's order.

    networks: the subnets its own interface is in (``192.168.100.0/24``): what it reaches without a router.
    had_pods: whether a pod of the pod network ever came to it; plugins leave their bridge behind.
    to_be_deleted: an autoscaler or somebody is about to delete it. balanced: load balancers may use it.
    pooled: whether its pods have their addresses of a pool that nodes share (``dataplane.Pooling``): then
    held is what it has of that, and pod_cidrs say nothing of where its pods are.
    """

    name: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    networks: tuple[str, ...] = ()
    had_pods: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    zone: str = ""
    ready: bool = True
    to_be_deleted: bool = False
    balanced: bool = True
    pooled: bool = False
    held: Held = NOTHING

    @property
    def pod_ranges(self) -> tuple[str, ...]:
        """Where its pods are, as CIDRs: its podCIDRs, or what it holds and has borrowed of a pool."""
        if not self.pooled:
            return self.pod_cidrs
        return (*self.held.ranges, *(f"{ip}/{128 if ':' in ip else 32}" for ip in self.held.borrowed))


@dataclass(frozen=True)
class ContainerPort:
    """A declared port of a container."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True)
class Container:
    """What of a container matters to the network. env: name → value after expansion is not done here.

    probes: as in the manifest, by ``startup``, ``readiness`` and ``liveness``.
    """

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pod:
    """A pod that is bound to a node and has addresses (``ips``; the node's for hostNetwork).

    sidecars: its init containers that go on running (restartPolicy Always); of these only ports count.
    stop_seconds: its terminationGracePeriodSeconds; grace: None, or what of it counts once it is being
    deleted; linger: what its built-in servers take of that time.
    """

    uid: str
    namespace: str
    name: str
    node: str
    ips: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    token: bool = False
    set_hostname_as_fqdn: bool = False
    service_account: str = "default"
    enable_service_links: bool = True
    dns_policy: str = "ClusterFirst"
    dns_config: dict[str, Any] = field(default_factory=dict)
    host_aliases: tuple[dict[str, Any], ...] = ()
    containers: tuple[Container, ...] = ()
    sidecars: tuple[Container, ...] = ()
    restart_policy: str = "Always"
    stop_seconds: float = 30.0
    grace: float | None = None
    linger: float = 0.0


@dataclass(frozen=True)
class ServicePort:
    """One port of a Service. target: number or name of the pods' port; node_port: 0 where there is none."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target: int | str = 0
    node_port: int = 0


@dataclass(frozen=True)
class Service:
    """A Service as it is stored, with every default and address filled in.

    cluster_ips: one per family, none of a headless one or an ExternalName. vips: load balancer addresses
    that proxies answer for (status, ipMode VIP). affinity_seconds: of ClientIP affinity, 0 without.
    """

    namespace: str
    name: str
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    headless: bool = False
    families: tuple[str, ...] = ("IPv4",)
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    external_ips: tuple[str, ...] = ()
    external_name: str = ""
    vips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_check_node_port: int = 0
    publish_not_ready: bool = False


@dataclass(frozen=True)
class EndpointPort:
    """A port of an EndpointSlice; number None: every port."""

    number: int | None
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True)
class Endpoint:
    """One endpoint of an EndpointSlice. pod: the pod's (namespace, name), None where it stands for no pod."""

    addresses: tuple[str, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    hostname: str = ""
    node: str = ""
    zone: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()
    pod: tuple[str, str] | None = None


@dataclass(frozen=True)
class EndpointSlice:
    """Endpoints of the Service that its label names. address_type: IPv4, IPv6 or FQDN."""

    namespace: str
    name: str
    service: str
    address_type: str
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


ServiceKey = tuple[str, str]
"""What identifies a Service: its namespace and its name."""


@dataclass(frozen=True)
class Router:
    """A router of the fabric. addresses: its own, with prefix length; neighbours: other routers on its links,
    as (name, own address, the other's), without length; nodes: the machines on its subnets, likewise, be they
    nodes now or not."""

    name: str
    gateway: bool
    addresses: tuple[str, ...]
    neighbours: tuple[tuple[str, str, str], ...] = ()
    nodes: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class ClusterFacts:
    """What compilers need of the spec: ranges as text, names, addresses; kubelet: clocks that were set.

    node_names: the nodes that the spec begins with. spares_own_node: what a pod sends to its own node is not
    judged by policies.
    dns_addresses: of Service kube-dns; node_dns: of NodeLocal DNSCache, "" without; upstream_dns: of the DNS
    hosts outside.
    """

    cluster_domain: str
    pod_cidrs: tuple[str, ...]
    service_cidrs: tuple[str, ...]
    node_cidrs: tuple[str, ...]
    dns_addresses: tuple[str, ...]
    dataplane: str = ""
    dataplane_options: dict[str, Any] = field(default_factory=dict)
    link_mtu: int = 1500
    host_resolv_conf: str = ""
    allow_commands: bool = False
    kubelet: dict[str, float] = field(default_factory=dict)
    proxy_options: dict[str, Any] = field(default_factory=dict)
    load_balancer_cidrs: tuple[str, ...] = ()
    api_ca: str = ""
    token_key: str = ""
    policy_on_change: Literal["cut", "keep"] = "cut"
    upstream_dns: tuple[str, ...] = ()
    routers: tuple[Router, ...] = ()
    node_names: tuple[str, ...] = ()
    node_dns: str = ""
    spares_own_node: bool = False


@dataclass(frozen=True)
class Snapshot:
    """All objects that compilers read. Later systems add their kinds here.

    An object that did not change between two snapshots is the same Python object in both, so that what was
    compiled of it may be kept by identity. slices: by the Service they belong to, in order of their names.
    service_cidrs: those of the ServiceCIDR objects. policies: of every kind, in the order they are asked.
    unaddressed: by node, bound pods without an address (``ips`` is empty) that wait for their node to give
    one, where the dataplane's nodes do.
    """

    facts: ClusterFacts
    nodes: tuple[Node, ...] = ()
    pods: tuple[Pod, ...] = ()
    services: dict[ServiceKey, Service] = field(default_factory=dict)
    slices: dict[ServiceKey, tuple[EndpointSlice, ...]] = field(default_factory=dict)
    service_cidrs: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    unaddressed: dict[str, tuple[Pod, ...]] = field(default_factory=dict)

    @cached_property
    def pods_by_node(self) -> dict[str, tuple[Pod, ...]]:
        """Node name → its pods, in the snapshot's order."""
        grouped: dict[str, list[Pod]] = {node.name: [] for node in self.nodes}
        for pod in self.pods:
            grouped.setdefault(pod.node, []).append(pod)
        return {name: tuple(pods) for name, pods in grouped.items()}

    @cached_property
    def node(self) -> dict[str, Node]:
        """Node by name."""
        return {node.name: node for node in self.nodes}
