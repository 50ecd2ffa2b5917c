"""Proxy mode ``none``: services are objects only, no rule is written."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from testbed.control.snapshot import Node, Snapshot
from testbed.proxy import proxiers
from testbed.spec.params import Param
from testbed.state import NetnsState


class NoProxier:
    """Writes nothing."""

    needs: frozenset[str] = frozenset()
    parameters: Mapping[str, Param] = MappingProxyType({})

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """An empty fragment."""
        return NetnsState()


proxiers.register("none")(NoProxier())
