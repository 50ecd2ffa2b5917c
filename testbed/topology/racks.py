"""Leaf-spine: racks with a subnet and a Linux router each, every leaf joined to every spine, ECMP.

::

    control-plane - core1 - gateway - outside1 ...
                    every spine to the gateway
                    spine1 spine2 ...
                    every leaf to every spine
                    leaf1  leaf2 ...
                      |      |
                    rack1  rack2 ...      switches with the nodes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mininet.topo import Topo

from testbed.spec.addressing import Cut, Request, Segment, Wanted, is_host, link_addresses, link_ranges
from testbed.spec.addressing import segments as cut_segments
from testbed.spec.params import LINK_CIDRS, Param, integer, networks, prefix_lengths, read
from testbed.topology import topologies
from testbed.topology.parts import add_core, add_host, add_router, complete, join
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import planned, request_of


@topologies.register("racks")
class Racks(Topo):  # type: ignore[misc]
    """Routed racks.

    racks, spines: how many; mask: prefix length of a rack's subnet (default: the largest that fits);
    linkCIDR: range of the links between routers. Nodes fill the racks in order and evenly; one with an
    address of its own stands in that rack. A node without a zone has its rack as zone.
    """

    parameters: ClassVar[Mapping[str, Param]] = {
        "racks": Param(integer(1, 250), 2),
        "spines": Param(integer(1, 64), 2),
        "mask": Param(prefix_lengths),
        "linkCIDR": Param(networks, LINK_CIDRS),
    }

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """Block 0 for the core, block r for rack r."""
        values = read(cls.parameters, request.params)
        racks, spines = values["racks"], values["spines"]
        names = ["core", *(f"rack-{number}" for number in range(1, racks + 1))]
        core, *blocks = cut_segments(request.node_cidrs, names, values["mask"])
        placed = tuple(
            _rack_of(node, blocks) or blocks[index * racks // len(request.nodes)]
            for index, node in enumerate(request.nodes)
        )
        families = [cidr.version for cidr in request.node_cidrs]
        links = link_ranges(families, values["linkCIDR"], (racks + 1) * spines)
        zones = tuple(node.zone or segment.name for node, segment in zip(request.nodes, placed, strict=True))
        return Cut(core, placed, zones, links=links)

    def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """Lay the plan out."""
        plan, values = planned(Racks, plan, params)
        request = request_of(plan, {key: value for key, value in params.items() if key != "nodes"})
        cut = Racks.cut(request)
        add_core(self, plan, self.addSwitch("core1"))
        spines = [add_router(self, f"spine{number}") for number in range(1, values["spines"] + 1)]
        names = [f"rack-{number}" for number in range(1, values["racks"] + 1)]
        _, *blocks = cut_segments(request.node_cidrs, ["core", *names], values["mask"])
        uplinks = [plan.gateway.name]
        for number, block in enumerate(blocks, 1):
            uplinks.append(self._add_rack(plan, cut, block, number))
        for number, (router, spine) in enumerate((router, spine) for router in uplinks for spine in spines):
            lower, upper = link_addresses(cut.links, number)
            join(self, router, spine, plan.link, lower, upper)
        complete(self, plan)

    def _add_rack(self, plan: FabricPlan, cut: Cut, block: Segment, number: int) -> str:
        switch = self.addSwitch(f"rack{number}")
        leaf = add_router(self, f"leaf{number}")
        join(self, leaf, switch, plan.link, block.interfaces())
        for node, segment in zip(plan.nodes, cut.nodes, strict=True):
            if segment == block:
                add_host(self, node, switch, plan)
        return leaf


def _rack_of(node: Wanted, racks: list[Segment]) -> Segment | None:
    """The rack in which an address of the node's own puts it."""
    return next(
        (
            rack
            for rack in racks
            for address in node.addresses
            if any(is_host(address, subnet) for subnet in rack.subnets)
        ),
        None,
    )


topos = {"racks": Racks}
