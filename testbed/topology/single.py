"""One switch: every node on one segment, as in most labs and small clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mininet.topo import Topo

from testbed.spec.addressing import GATEWAY, Cut, Request, flat
from testbed.spec.params import Param, addresses, name, read
from testbed.topology import topologies
from testbed.topology.parts import add_core, add_host, complete
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import planned


@topologies.register("single")
class Single(Topo):  # type: ignore[misc]
    """Switch ``s1`` with everything on it.

    gateway: address of the nodes' default router, one per family (default: the first of nodeCIDR);
    gatewayName: what that router is called.
    """

    parameters: ClassVar[Mapping[str, Param]] = {
        "gateway": Param(addresses),
        "gatewayName": Param(name, GATEWAY),
    }

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """One segment."""
        values = read(cls.parameters, request.params)
        return flat(request, values["gateway"] or (), values["gatewayName"])

    def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """Lay the plan out."""
        plan, _ = planned(Single, plan, params)
        switch = self.addSwitch("s1")
        add_core(self, plan, switch)
        for node in plan.nodes:
            add_host(self, node, switch, plan)
        complete(self, plan)


topos = {"single": Single}
