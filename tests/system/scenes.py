"""For tests: what the real kube-proxy was given and made of it, in ``tests/golden/kube-proxy``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.control import view
from testbed.control.snapshot import ClusterFacts, EndpointSlice, Node, ServiceKey, Snapshot
from testbed.rules.iptables import ChainKey
from testbed.state import Chain, Family

GOLDEN = Path(__file__).parents[1] / "golden" / "kube-proxy"
CLUSTER_CIDR = "10.244.0.0/16"
"""Of the sequence of changes; scenes say theirs."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """Objects that kube-proxy saw, and how the names begin of the files that hold what it made of them."""

    name: str
    snapshot: Snapshot
    node: Node
    recorded: str

    def path(self, kind: str) -> Path:
        """Where a recorded dump is: ``nftables.txt``, ``iptables-save.txt`` …"""
        return Path(self.recorded + kind)

    def text(self, kind: str) -> str:
        """A recorded dump."""
        return self.path(kind).read_text()


def scenes() -> list[Scene]:
    """All but the sequence of changes."""
    return list(_scenes())


def _scenes() -> Iterator[Scene]:
    for path in sorted(GOLDEN.glob("*/scene.yaml")):
        read = yaml.load(path.read_text(), yaml.CSafeLoader)
        snapshot = snapshot_of(read["objects"], read["clusterCIDR"])
        yield Scene(path.parent.name, snapshot, snapshot.node[read["perspective"]], f"{path.parent}/")


def steps() -> Iterator[tuple[Scene, list[Snapshot]]]:
    """The sequence of changes: each step's scene, and what kube-proxy saw on the way, object by object."""
    objects: dict[tuple[str, str, str], Object] = {}
    for step in yaml.load((GOLDEN / "change-sequence" / "changes.yaml").read_text(), yaml.CSafeLoader)[
        "steps"
    ]:
        seen = []
        for each in step["apply"]:
            objects[_key(each)] = each
            seen.append(snapshot_of(objects.values(), CLUSTER_CIDR))
        for each in step["delete"]:
            del objects[_key(each)]
            seen.append(snapshot_of(objects.values(), CLUSTER_CIDR))
        stem = f"{GOLDEN}/change-sequence/{step['step']}."
        yield Scene(step["step"], seen[-1], seen[-1].node["node-1"], stem), seen


def _key(each: Object) -> tuple[str, str, str]:
    named = each.get("metadata", each)
    return each["kind"], named.get("namespace", ""), named["name"]


def snapshot_of(objects: Iterable[Object], cluster_cidr: str) -> Snapshot:
    """These Nodes, Services and EndpointSlices, and nothing else."""
    given = list(objects)
    services = [view.typed_service(each) for each in given if each["kind"] == "Service"]
    slices: dict[ServiceKey, list[EndpointSlice]] = {}
    for each in sorted((each for each in given if each["kind"] == "EndpointSlice"), key=_key):
        typed = view.typed_slice(each)
        slices.setdefault((typed.namespace, typed.service), []).append(typed)
    return Snapshot(
        ClusterFacts("cluster.local", tuple(cluster_cidr.split(",")), (), (), ()),
        nodes=tuple(view.typed_node(each) for each in given if each["kind"] == "Node"),
        services={(each.namespace, each.name): each for each in services},
        slices={key: tuple(found) for key, found in slices.items()},
    )


UNORDERED = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL")
"""Chains of which the README says that the order of Services in them means nothing."""


def comparable(chains: Mapping[ChainKey, Chain], family: Family) -> dict[ChainKey, list[str]]:
    """iptables rules by chain, as the README says to compare them (its points 3 and 5)."""
    found = {}
    for key, chain in chains.items():
        if chain.family != family:
            continue
        # iptables-save 1.8.9 prints two spaces before the name of a counter.
        rules = [re.sub(r" -m nfacct --nfacct-name +\S+", "", rule) for rule in chain.rules]
        if chain.name == "KUBE-NODEPORTS":
            rules = [rule for rule in rules if "-d 127.0.0.0/8" not in rule]
        if chain.name in UNORDERED:
            tail = [rule for rule in rules[-1:] if "must be the last rule" in rule]
            rules = sorted(rules[: len(rules) - len(tail)]) + tail
        found[key] = rules
    return found
