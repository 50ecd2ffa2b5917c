"""The cluster spec as types, every default filled in (the contract of the ``kind: Cluster`` file).

Reading and checking a file is ``spec.load``; this module only says what a valid spec is made of.
Addresses and ranges are ``ipaddress`` objects; rates are bit/s, times seconds, sizes bytes, loss is 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Literal

from testbed.spec.zone import ZoneRecord

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Taint:
    """A node taint; effect NoSchedule, PreferNoSchedule or NoExecute."""

    key: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    value: str = ""


@dataclass(frozen=True)
class NodeSpec:
    """One node. addresses and pod_cidrs: one per family, in the order of ``network.podCIDR``; subnets:
    the range of the segment that each address is on (a routed topology has several)."""

    name: str
    addresses: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...]
    zone: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    subnets: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True)
class BurstLoss:
    """Losses that come in bursts, after Gilbert and Elliott: per packet, the chance that a burst begins and
    that it ends, and the chance of being lost within one and between two."""

    enter: float
    leave: float
    loss_in_burst: float = 1.0
    loss_between_bursts: float = 0.0


@dataclass(frozen=True)
class LinkSpec:
    """What a fabric link is like, each way. None: not limited, not shaped.

    distribution: how the jitter is spread; duplicate, corrupt, reorder: shares of the packets; reordered are
    those sent without the delay. flows: other values for some packets, the first that matches counts.
    """

    bandwidth: float | None = None
    delay: float | None = None
    jitter: float | None = None
    loss: float | None = None
    mtu: int | None = None
    distribution: str | None = None
    burst_loss: BurstLoss | None = None
    duplicate: float | None = None
    corrupt: float | None = None
    reorder: float | None = None
    flows: tuple[FlowSpec, ...] = ()


@dataclass(frozen=True)
class FlowMatch:
    """Packets by their outer header. None: any. source, destination: ranges; port: the destination's."""

    protocol: str | None = None
    source: str | None = None
    destination: str | None = None
    port: int | None = None
    source_port: int | None = None
    dscp: int | None = None


@dataclass(frozen=True)
class FlowSpec:
    """What happens to the packets that match."""

    match: FlowMatch
    link: LinkSpec


@dataclass(frozen=True)
class LinkRule:
    """Other values for some links. between: two neighbours, or one thing whose links are all meant;
    direction: of what travels on them, as the first of the two sees it."""

    between: tuple[str, ...]
    direction: Literal["both", "out", "in"]
    link: LinkSpec


@dataclass(frozen=True)
class ControlPlaneSpec:
    """The fabric host where pods reach the API."""

    addresses: tuple[IPAddress, ...]
    port: int = 6443


@dataclass(frozen=True)
class TopologySpec:
    """Which builder lays the fabric out: a registered name or the path of a .py file with a Topo.

    params: as written, the builder reads them; gateway: the default router's addresses on the control
    plane's segment, with prefix length.
    """

    builder: str = "single"
    params: dict[str, Any] = field(default_factory=dict)
    link: LinkSpec = LinkSpec()
    links: tuple[LinkRule, ...] = ()
    gateway: tuple[str, ...] = ()
    gateway_name: str = "gateway"


@dataclass(frozen=True)
class NetworkSpec:
    """Ranges and the systems that wire them; each tuple of ranges has one entry per family."""

    pod_cidrs: tuple[IPNetwork, ...]
    service_cidrs: tuple[IPNetwork, ...]
    node_cidrs: tuple[IPNetwork, ...]
    node_masks: tuple[int, ...]
    load_balancer_cidrs: tuple[IPNetwork, ...]
    cluster_domain: str
    dataplane: str
    dataplane_options: dict[str, Any]
    proxy_mode: str
    proxy_options: dict[str, Any]
    policy_on_change: Literal["cut", "keep"]


@dataclass(frozen=True)
class DnsSpec:
    """Cluster DNS. address: kube-dns' ClusterIPs, the tenth of each service range."""

    enabled: bool
    replicas: int
    node_local: bool
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True)
class ExternalSpec:
    """A host outside the cluster; attach: behind the gateway router or on the nodes' segment.

    dns_zone: as written; zone: its records. With some the host is a DNS server.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    attach: Literal["gateway", "nodes"] = "gateway"
    dns_zone: dict[str, Any] = field(default_factory=dict)
    zone: tuple[ZoneRecord, ...] = ()


@dataclass(frozen=True)
class ClusterSpec:
    """A whole cluster. manifests: absolute paths; source: the file it came from; document: the spec as
    plain data with every default filled in, for ``environment.json``; zones: their names, in order."""

    name: str
    nodes: tuple[NodeSpec, ...]
    control_plane: ControlPlaneSpec
    topology: TopologySpec
    network: NetworkSpec
    dns: DnsSpec
    kubelet: dict[str, Any]
    external: tuple[ExternalSpec, ...]
    manifests: tuple[Path, ...]
    source: str
    document: dict[str, Any]
    zones: tuple[str, ...] = ()
