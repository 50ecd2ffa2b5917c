"""Reads a cluster spec: every rule of the ``kind: Cluster`` file, all its problems at once.

First each section is read by itself (types, units, unknown keys), then what depends on several of them
is worked out: zones, segments, addresses, pod ranges, overlaps. Nothing but the spec's own files is read
and nothing is changed; a topology from a ``.py`` file is the one thing that is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

from testbed.documents import Document, FieldPath, read_documents, read_file
from testbed.errors import InputError, Problem
from testbed.spec import render
from testbed.spec.addressing import (
    CONTROL_PLANE,
    GATEWAY,
    Assigned,
    Cut,
    CutError,
    Request,
    Wanted,
    assign,
    is_host,
    outside_network,
    outside_segments,
)
from testbed.spec.fields import (
    Source,
    by_family,
    overlapping,
    override,
)
from testbed.spec.model import (
    ClusterSpec,
    IPAddress,
    IPNetwork,
    NodeSpec,
)
from testbed.spec.sections import SPEC, Draft, named, pools_addresses, read

FABRIC_NAME = re.compile(r"(s|core|outside|spine|leaf|rack|zone|router)[0-9]+")
"""What builders call their switches and routers; nobody else may."""


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> ClusterSpec:
    """The cluster spec of a file. overrides: ``nodes.count=5``, as of ``--set``. Raises InputError."""
    return _parse(read_file(Path(path)), str(path), overrides)


def parse_spec(text: str | bytes, file: str = "", overrides: Sequence[str] = ()) -> ClusterSpec:
    """The cluster spec of a text. file: what errors call it, and what its paths are relative to."""
    return _parse(read_documents(text, file), file, overrides)


def _parse(documents: Sequence[Document], file: str, overrides: Sequence[str]) -> ClusterSpec:
    if len(documents) != 1:
        what = "is empty" if not documents else f"holds {len(documents)} documents"
        raise InputError([Problem(f"{what}; a cluster spec is one document", file)])
    source = Source(documents[0])
    if isinstance(source.document.data, dict):
        for argument in overrides:
            override(source, argument)
    draft = read(source, Path(file))
    spec = _resolve(draft, source, file)
    if spec is None or source.problems:
        raise InputError(sorted(dict.fromkeys(source.problems), key=lambda problem: problem.line))
    return replace(spec, document=render.document(spec, draft.links))


def _resolve(draft: Draft, source: Source, file: str) -> ClusterSpec | None:
    """The finished spec, its document aside; None, with the problems noted, where it cannot be had."""
    _check_names(draft, source)
    if not source.understood((*SPEC, "network"), (*SPEC, "nodes"), (*SPEC, "external")):
        return None
    pod_cidrs = _pod_blocks(draft, source)
    cut = _cut(draft, source)
    if cut is None:
        return None
    _check_externals(draft, cut, source)
    _check_overlaps(draft, cut, source)
    assigned = _assign(draft, cut, source)
    if source.problems:
        return None
    return ClusterSpec(
        name=draft.name,
        nodes=tuple(
            NodeSpec(
                node.name,
                assigned.nodes[index],
                pod_cidrs[index],
                cut.zones[index],
                node.labels,
                node.taints,
                cut.nodes[index].subnets,
            )
            for index, node in enumerate(draft.nodes)
        ),
        control_plane=replace(draft.control_plane, addresses=assigned.control_plane),
        topology=replace(draft.topology, gateway=cut.core.interfaces(), gateway_name=cut.gateway_name),
        network=draft.network,
        dns=draft.dns,
        kubelet=draft.kubelet,
        external=draft.external,
        manifests=draft.manifests,
        source=file,
        document={},
        zones=draft.zones or cut.all_zones(),
    )


def _check_names(draft: Draft, source: Source) -> None:
    """Everything on the fabric has a name of its own."""
    named = [((*SPEC, "nodes", "items", i, "name"), node.name) for i, node in enumerate(draft.nodes)]
    named += [((*SPEC, "external", i, "name"), host.name) for i, host in enumerate(draft.external)]
    seen: set[str] = set()
    gateway = str(draft.topology.params.get("gatewayName", GATEWAY))
    if gateway == CONTROL_PLANE or FABRIC_NAME.fullmatch(gateway):
        path = (*SPEC, "topology", "params", "gatewayName")
        source.note(path, f"{gateway!r} is the name of a part of the fabric")
    for path, name in named:
        if name in seen:
            source.note(path, f"{name!r} is already the name of another node or host")
        elif name in (CONTROL_PLANE, gateway) or FABRIC_NAME.fullmatch(name):
            source.note(path, f"{name!r} is the name of a part of the fabric")
        if name:
            seen.add(name)


def _pod_blocks(draft: Draft, source: Source) -> list[tuple[IPNetwork, ...]]:
    """Each node's pod ranges: those given, else the k-th block for node k; block 0 is the control plane's.

    Where pods have their addresses from podCIDR as a whole, nodes for which it has no block have none.
    """
    pooled = pools_addresses(draft.network.dataplane)
    found: list[list[IPNetwork]] = [[] for _ in draft.nodes]
    for cidr, mask in zip(draft.network.pod_cidrs, draft.network.node_masks, strict=True):
        blocks = 1 << max(mask - cidr.prefixlen, 0)
        size = 1 << (cidr.max_prefixlen - mask)
        used: list[tuple[int, IPNetwork]] = []
        lacking = False
        for index, node in enumerate(draft.nodes):
            given = by_family(node.pod_cidrs, lambda one: one.version).get(cidr.version)
            if given is not None:
                _check_pod_cidr(source, index, given, cidr, used=not pooled)
            elif index + 1 >= blocks:
                lacking = not pooled
                continue
            else:
                given = ip_network((int(cidr.network_address) + (index + 1) * size, mask))
            found[index].append(given)
            used.append((index, given))
        if lacking:
            message = (
                f"is too small: {cidr} has {blocks} blocks of /{mask} (nodeMask), and the control plane and "
                f"{len(draft.nodes)} nodes need {len(draft.nodes) + 1}"
            )
            source.note((*SPEC, "network", "podCIDR"), message)
        for one, range_, other, its in overlapping(used):
            first, second = sorted([(one, range_), (other, its)])
            explicit = second if draft.nodes[second[0]].pod_cidrs else first
            rest = first if explicit is second else second
            source.note(
                (*SPEC, "nodes", "items", explicit[0], "podCIDR"),
                f"{explicit[1]} overlaps {rest[1]} of {draft.nodes[rest[0]].name}",
            )
    for index, node in enumerate(draft.nodes):
        families = [one.version for one in node.pod_cidrs]
        known = {cidr.version for cidr in draft.network.pod_cidrs}
        if len(set(families)) < len(families) or not set(families) <= known:
            path = (*SPEC, "nodes", "items", index, "podCIDR")
            source.note(path, f"must be one range per family of podCIDR: {named(sorted(known))}")
    return [tuple(blocks_of_node) for blocks_of_node in found]


def _check_pod_cidr(source: Source, index: int, given: IPNetwork, cidr: IPNetwork, *, used: bool) -> None:
    """used: whether pods have addresses of it."""
    path = (*SPEC, "nodes", "items", index, "podCIDR")
    if not _inside(given, cidr):
        source.note(path, f"{given} is not inside podCIDR {cidr}")
    elif used and given.prefixlen > given.max_prefixlen - 2:
        source.note(path, f"{given} leaves no room for pods")


def _inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.version == outer.version and (
        outer.network_address <= inner.network_address  # type: ignore[operator]
        and inner.broadcast_address <= outer.broadcast_address  # type: ignore[operator]
    )


def _cut(draft: Draft, source: Source) -> Cut | None:
    """The nodes' range, cut by the builder."""
    if draft.builder is None or not source.understood((*SPEC, "topology")):
        return None
    wanted = tuple(Wanted(node.name, node.zone, node.addresses) for node in draft.nodes)
    request = Request(draft.network.node_cidrs, wanted, draft.zones, draft.topology.params)
    try:
        return draft.builder.cut(request)
    except CutError as error:
        source.note((*SPEC, *error.path), error.message)
        return None


def _assign(draft: Draft, cut: Cut, source: Source) -> Assigned:
    wanted = tuple(Wanted(node.name, node.zone, node.addresses) for node in draft.nodes)
    others = [item for host in draft.external if host.attach == "nodes" for item in host.addresses]
    assigned = assign(cut, wanted, draft.control_plane.addresses, others)
    for path, message in assigned.problems:
        source.note((*SPEC, *path), message)
    return assigned


def _check_externals(draft: Draft, cut: Cut, source: Source) -> None:
    seen: dict[IPAddress, str] = dict.fromkeys(cut.core.gateway, cut.gateway_name)
    for index, host in enumerate(draft.external):
        path = (*SPEC, "external", index, "address")
        for item in host.addresses:
            subnets = cut.core.subnets if host.attach == "nodes" else (outside_network(item),)
            if item in seen:
                source.note(path, f"{item} is already that of {seen[item]}")
            elif not any(is_host(item, subnet) for subnet in subnets):
                where = " or ".join(map(str, subnets))
                source.note(path, f"{item} is not a host address of {where}")
            seen.setdefault(item, host.name)


def _check_overlaps(draft: Draft, cut: Cut, source: Source) -> None:
    """No two ranges share an address: pods, services, nodes, load balancers, links, outside."""
    net = draft.network
    ranges: list[tuple[tuple[FieldPath, str], IPNetwork]] = []
    for key, cidrs in (
        ("podCIDR", net.pod_cidrs),
        ("serviceCIDR", net.service_cidrs),
        ("nodeCIDR", net.node_cidrs),
        ("loadBalancerCIDR", net.load_balancer_cidrs),
    ):
        ranges += [(((*SPEC, "network", key), key), cidr) for cidr in cidrs]
    ranges += [(((*SPEC, "topology", "params", "linkCIDR"), "linkCIDR"), cidr) for cidr in cut.links]
    outside: dict[IPNetwork, tuple[FieldPath, str]] = {}
    for index, host in enumerate(draft.external):
        if host.attach == "gateway":
            for item in host.addresses:
                where = ((*SPEC, "external", index, "address"), f"the segment of {host.name}")
                outside.setdefault(outside_network(item), where)
    ranges += [(where, cidr) for cidr, where in outside.items()]
    order = {where: position for position, (where, _) in enumerate(ranges)}
    for one, its, other, others in overlapping(ranges):
        # Blame what the user wrote, and of two such the later.
        blamed, rest = sorted(
            [(one, its), (other, others)],
            key=lambda item: (item[0][1] in draft.defaulted, -order[item[0]]),
        )
        subject = f"{blamed[0][1]}, {blamed[1]}," if blamed[0][1].startswith("the ") else str(blamed[1])
        source.note(blamed[0][0], f"{subject} overlaps {rest[0][1]} {rest[1]}")
    try:
        outside_segments([host.addresses for host in draft.external if host.attach == "gateway"])
    except CutError as error:
        source.note((*SPEC, *error.path), error.message)
