"""What a topology builder is asked to lay out: hosts with their addresses, as plain data.

Pure, and made from the spec; a builder turns it into a ``mininet.topo.Topo``, the fabric builds that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["node", "control-plane", "gateway", "external", "router"]


@dataclass(frozen=True)
class PlannedHost:
    """A host to place. addresses: with prefix length, ``192.168.100.11/24``, one per family."""

    name: str
    role: Role
    addresses: tuple[str, ...]
    zone: str = ""
    attach: Literal["gateway", "nodes"] = "nodes"


@dataclass(frozen=True)
class FabricPlan:
    """Everything a builder needs. node_cidrs: the ranges a routed topology cuts its subnets from;
    link: keyword arguments for every link (``bw`` in Mbit/s, ``delay``, ``jitter``, ``loss``, ``mtu``)
    in Mininet's own units; pod_cidrs: node name → its pod ranges, where the underlay itself
    must route them (empty: the dataplane does not ask for it); zones: all zones, in order."""

    nodes: tuple[PlannedHost, ...]
    control_plane: PlannedHost
    gateway: PlannedHost
    external: tuple[PlannedHost, ...] = ()
    node_cidrs: tuple[str, ...] = ("192.168.100.0/24",)
    link: dict[str, object] = field(default_factory=dict)
    pod_cidrs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    zones: tuple[str, ...] = ()
