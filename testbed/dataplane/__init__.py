"""Dataplanes: how pods are wired on a node and reach each other across nodes, one file per system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from testbed.control.ipam import Ipam
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.policy import Enforcer
from testbed.registry import Registry
from testbed.spec.params import Param
from testbed.state import Daemon, NodeState, Upkeep


class Dataplane(Protocol):
    """A pure compiler. needs: capabilities of the kernel or machine (names of ``kernel.capabilities``).

    parameters: the keys beside ``name`` in ``spec.network.dataplane`` and how each is read.

    underlay_routes: True where the fabric's routers must know the pod ranges themselves, as a cloud's
    route table does; False for overlays and routing daemons.
    """

    needs: frozenset[str]
    parameters: Mapping[str, Param]
    enforces_policy: bool
    underlay_routes: bool

    def compile(self, snapshot: Snapshot, node: Node) -> NodeState:
        """Pod links, addresses, routes and the node's own part of them for one node.

        Of the snapshot it may read the facts, all nodes, and of the pods (with and without an address) those
        of ``node``: as long as these are the same objects it is not asked again.

        The pods of the result hold only ``netns``; names, files and listeners come from
        ``control.podfiles`` and ``control.containers`` and are merged in ``cluster.compile``.
        """
        ...

    def ipam(self, facts: ClusterFacts) -> Ipam:
        """What gives the pods of a cluster their addresses; called once per cluster."""
        ...

    def interface_names(self) -> tuple[str, ...]:
        """Names or prefixes of the devices it makes on a node, by which a sweep knows them as ours."""
        ...


@runtime_checkable
class Pooling(Protocol):
    """A dataplane whose nodes take their pods' addresses from podCIDR as a whole.

    pools_addresses: True; ranges of the nodes' own, and ``nodeMask``, mean nothing to it.
    """

    pools_addresses: bool


@runtime_checkable
class Enforces(Protocol):
    """What a dataplane with ``enforces_policy`` has beside: the compiler of its own policy rules.

    names_all_pods: its rules speak of every pod of the cluster, also where there is no policy.
    spares_own_node: what a pod sends to its own node meets none of them.
    """

    names_all_pods: bool
    spares_own_node: bool

    def enforcer(self) -> Enforcer:
        """A compiler of policy rules, which keeps what stays the same; called once per cluster."""
        ...


@runtime_checkable
class Demanding(Protocol):
    """A dataplane that needs more with some of its options."""

    def more_needs(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Capabilities beside ``needs``; options: as in the spec."""
        ...


@runtime_checkable
class Repairing(Protocol):
    """A dataplane whose daemons look, again and again, whether what they made is still there."""

    def upkeep(self, options: Mapping[str, Any]) -> tuple[Upkeep, ...]:
        """At what, and how often; options: as in the spec."""
        ...


def needs_of(dataplane: Dataplane, options: Mapping[str, Any]) -> frozenset[str]:
    """All capabilities that a dataplane needs with these options."""
    more = dataplane.more_needs(options) if isinstance(dataplane, Demanding) else frozenset()
    return dataplane.needs | more


@runtime_checkable
class Routing(Protocol):
    """A dataplane that has routers of the fabric run routing daemons."""

    def routers(self, snapshot: Snapshot) -> Mapping[str, Mapping[str, Daemon]]:
        """Router → its daemons; asked once, when the cluster starts."""
        ...


dataplanes: Registry[Dataplane] = Registry("dataplane", "testbed.dataplane")
