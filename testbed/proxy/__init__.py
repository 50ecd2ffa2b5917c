"""Proxiers: service rules on a node, one file per mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from testbed.control.snapshot import Node, Snapshot
from testbed.registry import Registry
from testbed.spec.params import Param
from testbed.state import NetnsState


class Proxier(Protocol):
    """A pure compiler of one node's service rules. needs: capabilities, as for a dataplane.

    parameters: the keys beside ``mode`` in ``spec.network.proxy`` and how each is read; those that several
    modes share are in ``proxy.parameters``.
    """

    needs: frozenset[str]
    parameters: Mapping[str, Param]

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The fragment of the node's own netns that carries the services.

        Of the snapshot it may read the facts, Services, slices and service ranges, and of the nodes ``node``
        alone: as long as these are the same objects it is not asked again.
        """
        ...


proxiers: Registry[Proxier] = Registry("proxy mode", "testbed.proxy")
