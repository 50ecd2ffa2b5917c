"""Topology builders: how nodes are joined, one file per topology.

A builder is a plain ``mininet.topo.Topo`` subclass (see ``Builder``), so ``mn --custom FILE --topo NAME``
runs each of them too, with a plan of its own (``sudo PYTHONPATH=. mn --custom
testbed/topology/racks.py --topo racks,racks=3 --switch lxbr``). A user's file needs none of this: any
``Topo`` becomes a fabric by ``adapt.adapt``.

Addresses are decided before anything is laid out: ``cut`` divides the nodes' range into segments,
``spec.addressing.assign`` gives every host its address, and ``build`` turns the resulting plan into a graph.
"""

from __future__ import annotations

from typing import Any, Protocol

from testbed.registry import Registry
from testbed.spec.addressing import Cutter
from testbed.topology.plan import FabricPlan


class Builder(Cutter, Protocol):
    """What a builder class offers beyond ``Topo``'s own methods."""

    def __init__(self, plan: FabricPlan | None = None, **params: Any) -> None:
        """The graph of a plan (default: three nodes)."""


topologies: Registry[type[Builder]] = Registry("topology", "testbed.topology")
