"""Network policy: what it means (``meaning``), and the rules that enforce it on a node.

A dataplane that brings no enforcement of its own has it compiled here, in the shape of kube-router's
(``iptables``) or natively for nft (``nft``), whichever the proxier's own rules are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from testbed.control.snapshot import Node, Snapshot
from testbed.registry import Registry
from testbed.state import NetnsState


class Enforcer(Protocol):
    """A pure compiler of one node's policy rules. needs: capabilities, as for a dataplane."""

    needs: frozenset[str]

    def compile(self, snapshot: Snapshot, node: Node) -> NetnsState:
        """The fragment of the node's own netns that enforces policy, the same as of a fresh compiler."""
        ...


enforcers: Registry[Callable[[], Enforcer]] = Registry("policy enforcer", "testbed.policy")
"""Each makes a compiler of its own, which keeps what stays the same from one compile to the next."""


def enforcer_beside(needs: frozenset[str]) -> Enforcer:
    """The enforcer whose rules are of the kind that a proxier with these needs writes."""
    if "ipvs" in needs:
        return enforcers.get("ipvs")()
    return enforcers.get("nft" if "nf_tables" in needs and "nft" in enforcers else "iptables")()
