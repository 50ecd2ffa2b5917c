"""Mininet's own tree of switches, with the cluster's nodes as its leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mininet.topo import Topo

from testbed.spec.addressing import Cut, CutError, Request, flat
from testbed.spec.params import Param, integer, read
from testbed.topology import topologies
from testbed.topology.adapt import adapt_into
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import planned


@topologies.register("tree")
class Tree(Topo):  # type: ignore[misc]
    """``mininet.topolib.TreeTopo``. fanout: children per switch; depth: levels of switches (default: as
    many as the nodes need). Leaves beyond the number of nodes stay empty."""

    parameters: ClassVar[Mapping[str, Param]] = {
        "depth": Param(integer(1, 8)),
        "fanout": Param(integer(2, 64), 2),
    }

    @classmethod
    def cut(cls, request: Request) -> Cut:
        """One segment; the leaves have to do for the nodes."""
        values = read(cls.parameters, request.params)
        room = values["fanout"] ** _depth(values, len(request.nodes))
        if room < len(request.nodes):
            raise CutError(
                ("topology", "params", "depth"),
                f"a tree of depth {values['depth']} and fanout {values['fanout']} has {room} leaves "
                f"for {len(request.nodes)} nodes",
            )
        if room > 4096:
            raise CutError(("topology", "params"), f"a tree of {room} leaves is too large")
        return flat(request)

    def build(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """Lay the plan out on the tree."""
        from mininet.topolib import TreeTopo  # here: it brings the whole of mininet.net

        plan, values = planned(Tree, plan, params)
        base = TreeTopo(depth=_depth(values, len(plan.nodes)), fanout=values["fanout"])
        adapt_into(self, base, plan)


def _depth(values: Mapping[str, Any], nodes: int) -> int:
    if values["depth"] is not None:
        return int(values["depth"])
    depth = 1
    while values["fanout"] ** depth < nodes:
        depth += 1
    return depth


topos = {"tree": Tree}
