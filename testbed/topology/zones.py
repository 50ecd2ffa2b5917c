"""Sites joined by WAN links: a switch, a router and a subnet per zone, routers in a full mesh.

The gateway, with the control plane and what lies outside, is one more site of the mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar

from mininet.topo import Topo

from testbed.spec.addressing import Cut, CutError, Request, link_addresses, link_ranges
from testbed.spec.addressing import segments as cut_segments
from testbed.spec.links import link
from testbed.spec.params import LINK_CIDRS, Param, integer, networks, prefix_lengths, read
from testbed.topology import topologies
from testbed.topology.parts import add_core, add_host, add_router, complete, join
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import planned, request_of


@topologies.register("zones")
class Zones(Topo):  # type: ignore[misc]
    """Routed sites.

    A node's zone is its site; nodes without one are spread over the zones in turn. zones: how many,
    where the nodes name none (``zone-1`` …); wan: bandwidth, delay, jitter, loss and mtu of the links
    between sites, over those of ``topology.link``; mask, linkCIDR: as for ``racks``.
    """

    parameters: ClassVar[Mapping[str, Param]] = {
        "zones": Param(integer(1, 32)),
        "wan": Param(link),
        "mask": Param(prefix_lengths),
        "linkCIDR": Param(networks, LINK_CIDRS),
    }

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """Block 0 for the core, block z for the z-th zone."""
        values = read(cls.parameters, request.params)
        names = _names(request, values["zones"])
        core, *blocks = cut_segments(request.node_cidrs, ["core", *names], values["mask"])
        zones = tuple(node.zone or names[index % len(names)] for index, node in enumerate(request.nodes))
        of_zone = dict(zip(names, blocks, strict=True))
        families = [cidr.version for cidr in request.node_cidrs]
        links = link_ranges(families, values["linkCIDR"], (len(names) + 1) * len(names) // 2)
        placed = tuple(of_zone[zone] for zone in zones)
        return Cut(core, placed, zones, links=links, zone_names=tuple(names))

    def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """Lay the plan out."""
        plan, values = planned(Zones, plan, params)
        request = request_of(plan, {key: value for key, value in params.items() if key != "nodes"})
        cut, names = Zones.cut(request), _names(request, values["zones"])
        add_core(self, plan, self.addSwitch("core1"))
        _, *blocks = cut_segments(request.node_cidrs, ["core", *names], values["mask"])
        sites = [plan.gateway.name]
        for number, (zone, block) in enumerate(zip(names, blocks, strict=True), 1):
            switch, router = self.addSwitch(f"zone{number}"), add_router(self, f"router{number}")
            join(self, router, switch, plan.link, block.interfaces())
            for node, its_zone in zip(plan.nodes, cut.zones, strict=True):
                if its_zone == zone:
                    add_host(self, node, switch, plan)
            sites.append(router)
        wan = plan.link | (values["wan"] or {})
        for number, (site, other) in enumerate(combinations(sites, 2)):
            near, far = link_addresses(cut.links, number)
            join(self, site, other, wan, near, far)
        complete(self, plan)


def _names(request: Request, count: int | None) -> list[str]:
    """The zones in order: those the spec names, else ``count`` of our own."""
    named = list(dict.fromkeys([*request.zones, *(node.zone for node in request.nodes if node.zone)]))
    if named and count is not None and count != len(named):
        raise CutError(
            ("topology", "params", "zones"), f"is {count}, but the nodes are in {len(named)} zones"
        )
    return named or [f"zone-{number}" for number in range(1, (count or 2) + 1)]


topos = {"zones": Zones}
