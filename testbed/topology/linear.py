"""Mininet's own row of switches, with the cluster's nodes on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mininet.topo import LinearTopo, Topo

from testbed.spec.addressing import Cut, CutError, Request, flat
from testbed.spec.params import Param, integer, read
from testbed.topology import topologies
from testbed.topology.adapt import adapt_into
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import planned


@topologies.register("linear")
class Linear(Topo):  # type: ignore[misc]
    """``mininet.topo.LinearTopo``. hosts: how many per switch; switches: how many (default: as the nodes
    need). Places beyond the number of nodes stay empty. (Mininet's own names for these, n and k, will not
    do: YAML 1.1 takes n for false.)"""

    parameters: ClassVar[Mapping[str, Param]] = {
        "switches": Param(integer(1, 1000)),
        "hosts": Param(integer(1, 1000), 1),
    }

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """One segment; the switches have to have room for the nodes."""
        values = read(cls.parameters, request.params)
        room = _switches(values, len(request.nodes)) * values["hosts"]
        if room < len(request.nodes):
            raise CutError(
                ("topology", "params", "switches"),
                f"{values['switches']} switches of {values['hosts']} hosts have room for {room} nodes, "
                f"not for {len(request.nodes)}",
            )
        return flat(request)

    def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """Lay the plan out on the row."""
        plan, values = planned(Linear, plan, params)
        adapt_into(self, LinearTopo(k=_switches(values, len(plan.nodes)), n=values["hosts"]), plan)


def _switches(values: Mapping[str, Any], nodes: int) -> int:
    asked = values["switches"]
    return int(asked) if asked is not None else -(-nodes // int(values["hosts"]))


topos = {"linear": Linear}
