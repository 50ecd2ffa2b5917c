"""The options of dataplane ``calico``, under the names that Calico's own resources give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal

from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.dataplane.calico.names import OVERHEAD, address
from testbed.dataplane.plugins import on_segment
from testbed.spec.fields import choice, flag
from testbed.spec.params import Param, integer, read
from testbed.units import parse_duration

Encapsulation = Literal["", "vxlan", "ipip"]
Mode = Literal["Never", "Always", "CrossSubnet"]
MODES = choice("Never", "Always", "CrossSubnet")


def _names(value: Any) -> tuple[str, ...]:
    """A list of names, or one."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item for item in items):
        raise ValueError("must be a list of nodes' names")
    return tuple(items)


PARAMETERS: Mapping[str, Param] = {
    "vxlanMode": Param(MODES, "Never"),
    "ipipMode": Param(MODES, "Never"),
    "natOutgoing": Param(flag, True),
    "blockSize": Param(integer(20, 32), 26),
    "blockSizeV6": Param(integer(116, 128), 122),
    "mtu": Param(integer(68, 65535)),
    "asNumber": Param(integer(1, 2**32 - 1), 64512),
    "routeReflectors": Param(_names, ()),
    "timers": Param(choice("calico", "fast"), "calico"),
    "endpointToHostAction": Param(choice("Accept", "Drop", "Return"), "Accept"),
    "iptablesRefreshInterval": Param(parse_duration, 180.0),
    "ipsetsRefreshInterval": Param(parse_duration, 90.0),
    "routeRefreshInterval": Param(parse_duration, 90.0),
}
"""vxlanMode, ipipMode, natOutgoing, blockSize: of the IPPool; mtu: of the underlay, where it is not the
links' own; asNumber: of the BGPConfiguration; routeReflectors: nodes that reflect, in place of the mesh;
timers: BGP's, as Calico leaves them or fast enough for a lesson; endpointToHostAction and the intervals
(seconds, 0: never): of the FelixConfiguration (``felix/config/config_params.go``)."""


@dataclass(frozen=True)
class Options:
    """The options of one cluster, every default filled in."""

    vxlan: Mode
    ipip: Mode
    nat_outgoing: bool
    block_sizes: tuple[int, int]
    underlay_mtu: int
    as_number: int
    reflectors: tuple[str, ...]
    fast: bool
    to_host: str
    versions: tuple[int, ...]

    @classmethod
    def of(cls, facts: ClusterFacts) -> Options:
        """Those of a cluster. Raises InputError."""
        values = read(PARAMETERS, facts.dataplane_options)
        return cls(
            vxlan=values["vxlanMode"],
            ipip=values["ipipMode"],
            nat_outgoing=values["natOutgoing"],
            block_sizes=(values["blockSize"], values["blockSizeV6"]),
            underlay_mtu=values["mtu"] or facts.link_mtu,
            as_number=values["asNumber"],
            reflectors=values["routeReflectors"],
            fast=values["timers"] == "fast",
            to_host=values["endpointToHostAction"],
            versions=tuple(ip_network(cidr).version for cidr in facts.pod_cidrs),
        )

    def encapsulation(self, version: int) -> Encapsulation:
        """What a pool of this family may be carried in; IPIP is for IPv4 alone."""
        if self.vxlan != "Never":
            return "vxlan"
        return "ipip" if self.ipip != "Never" and version == 4 else ""

    @property
    def plain(self) -> tuple[int, ...]:
        """The families whose pods go as they are, by routes that BGP tells."""
        return tuple(version for version in self.versions if not self.encapsulation(version))

    def tunnel_to(self, snapshot: Snapshot, node: Node, peer: Node, version: int) -> Encapsulation:
        """What packets from a node to pods of a peer are carried in; "" where they go as they are."""
        how = self.encapsulation(version)
        mode = self.vxlan if how == "vxlan" else self.ipip
        there = address(peer, version)
        if how and mode == "CrossSubnet" and there is not None and on_segment(snapshot, node, there):
            return ""
        return how

    @property
    def bgp(self) -> bool:
        """Whether nodes run BIRD: VXLAN needs no BGP (``calico_backend: vxlan``)."""
        return self.vxlan == "Never"

    def overhead(self, version: int) -> int:
        """Bytes that the encapsulation of a family adds, also where some packets go without."""
        how = self.encapsulation(version)
        return OVERHEAD[how][version] if how else 0

    @property
    def mtu(self) -> int:
        """Of pods: what the largest encapsulation leaves."""
        return self.underlay_mtu - max((self.overhead(version) for version in self.versions), default=0)
