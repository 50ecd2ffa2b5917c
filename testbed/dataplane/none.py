"""Dataplane ``none``: nodes without a CNI plugin. Pods get a network namespace with nothing but ``lo``.

What a cluster is like before anybody has wired it; for those who wire it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from testbed.control.ipam import HostLocal, Ipam
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.dataplane import dataplanes
from testbed.spec.params import Param
from testbed.state import NodeState


class NoDataplane:
    """Wires nothing."""

    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Param] = MappingProxyType({})
    enforces_policy = False
    underlay_routes = False

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """An empty fragment."""
        return NodeState()

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """Each node for itself."""
        return HostLocal()

    def interface_names(self) -> tuple[str, ...]:
        """None."""
        return ()


dataplanes.register("none")(NoDataplane())
