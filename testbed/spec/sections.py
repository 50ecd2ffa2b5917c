"""Reads a cluster spec section by section: types, units, defaults, unknown keys.

What one section says is checked here; what depends on several of them is ``spec.load``'s.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from testbed.documents import MAX_BYTES, FieldPath
from testbed.errors import InputError
from testbed.registry import Registry
from testbed.spec.addressing import (
    Cutter,
)
from testbed.spec.fields import (
    Fields,
    Source,
    address,
    by_family,
    choice,
    dns_label,
    dns_name,
    flag,
    label_key,
    label_value,
    labels,
    network,
    number,
    text,
)
from testbed.spec.links import FIELDS, LINK_PARSERS, contradiction
from testbed.spec.model import (
    ControlPlaneSpec,
    DnsSpec,
    ExternalSpec,
    IPAddress,
    IPNetwork,
    LinkRule,
    LinkSpec,
    NetworkSpec,
    Taint,
    TopologySpec,
)
from testbed.spec.params import Param, problems, unknown
from testbed.spec.zone import ZoneRecord, circles, zone_records
from testbed.units import parse_duration

API_VERSION, KIND = "testbed/v1", "Cluster"
MAX_NODES = 1000

POD_CIDR = {4: "10.244.0.0/16"}  # IPv6 pods need a range of the user's own
WEAVE_POD_CIDR = {4: "10.32.0.0/12"}
SERVICE_CIDR = {4: "10.96.0.0/12", 6: "fd00:10:96::/112"}
NODE_CIDR = {4: "192.168.100.0/24", 6: "fd00:192:168:100::/64"}
NODE_MASK = {4: 24, 6: 64}
LOAD_BALANCER_CIDR = {4: "198.51.100.0/24"}
DNS_OFFSET = 10
"""kube-dns' ClusterIP is the tenth address of the service range (kubeadm, constants.GetDNSIP)."""
DEFAULT_NODES = 3
DEFAULT_PROXY = "iptables"

KUBELET_CLOCKS = (  # kubelet's and the node lifecycle controller's own names
    "nodeStatusUpdateFrequency",
    "nodeStatusReportFrequency",
    "nodeLeaseDurationSeconds",
    "nodeMonitorPeriod",
    "nodeMonitorGracePeriod",
    "defaultNotReadyTolerationSeconds",
    "defaultUnreachableTolerationSeconds",
    "syncFrequency",
    "shutdownGracePeriod",
    "initialContainerRestartPeriod",  # a constant of 10 s in a real kubelet
    "maxContainerRestartPeriod",  # its crashLoopBackOff.maxContainerRestartPeriod
)

SPEC: FieldPath = ("spec",)


@dataclass(frozen=True)
class DraftNode:
    """A node as written. zoned: its zone is given, be it "" for none."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    zone: str = ""
    zoned: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()


@dataclass(frozen=True)
class Draft:
    """A spec as written, section by section; addresses are not worked out yet.

    links: ``topology.link`` and ``links`` as written; defaulted: the ranges that are not.
    """

    name: str
    nodes: tuple[DraftNode, ...]
    zones: tuple[str, ...]
    control_plane: ControlPlaneSpec
    topology: TopologySpec
    builder: type[Cutter] | None
    links: dict[str, Any]
    network: NetworkSpec
    defaulted: frozenset[str]
    dns: DnsSpec
    kubelet: dict[str, Any]
    external: tuple[ExternalSpec, ...]
    manifests: tuple[Path, ...]


def read(source: Source, file: Path) -> Draft:
    """Every section of a spec; what is wrong is noted in ``source``, with a default in its place."""
    root = Fields(source, source.document.data, ())
    root.get("apiVersion", API_VERSION, choice(API_VERSION))
    root.get("kind", KIND, choice(KIND))
    for key in ("apiVersion", "kind"):
        if not root.has(key) and source.understood(()):
            root.note(key, f"is missing; must be {API_VERSION if key == 'apiVersion' else KIND}")
    name = _name(root.section("metadata"), file)
    spec = root.section("spec")
    nodes, zones = _nodes(spec.section("nodes"))
    network_fields = spec.section("network")
    network_spec = _network(network_fields, file)
    topology, builder, links = _topology(spec.section("topology"), file)
    if topology.link.mtu and topology.link.mtu < 1280 and any(c.version == 6 for c in network_spec.pod_cidrs):
        source.misreads((*SPEC, "topology", "link", "mtu"), "must be at least 1280 for IPv6")
    draft = Draft(
        name=name,
        nodes=nodes,
        zones=zones,
        control_plane=_control_plane(spec.section("controlPlane")),
        topology=topology,
        builder=builder,
        links=links,
        network=network_spec,
        defaulted=frozenset(
            key
            for key in ("podCIDR", "serviceCIDR", "nodeCIDR", "loadBalancerCIDR")
            if not network_fields.has(key)
        ),
        dns=_dns(spec.section("dns"), network_spec),
        kubelet=_kubelet(spec.section("kubelet")),
        external=tuple(_external(item) for item in spec.sections("external")),
        manifests=_manifests(spec, file),
    )
    spec.finish()
    root.finish()
    return draft


def _name(metadata: Fields, file: Path) -> str:
    name = metadata.get("name", "", dns_label)
    if not metadata.has("name"):
        name = file.stem
        try:
            dns_label(name)
        except ValueError:
            metadata.note("name", f"must be given: the file's name, {name!r}, is not a DNS label")
    metadata.finish()
    return name


def _nodes(nodes: Fields) -> tuple[tuple[DraftNode, ...], tuple[str, ...]]:
    zones = nodes.list("zones", label_value)
    if len(set(zones)) < len(zones) or "" in zones:
        nodes.note("zones", "must be different names")
    items = tuple(_node(item, index) for index, item in enumerate(nodes.sections("items"), 1))
    if nodes.has("items") and nodes.has("count"):
        nodes.note("items", "excludes count: give one of the two")
    count = nodes.get("count", DEFAULT_NODES, number(1, MAX_NODES))
    if nodes.has("items"):
        if not items and nodes.source.understood((*nodes.path, "items")):
            nodes.note("items", "must have at least one node")
        if len(items) > MAX_NODES:
            nodes.note("items", f"must have at most {MAX_NODES} nodes")
    else:
        items = tuple(DraftNode(f"node-{number}") for number in range(1, count + 1))
    if zones:
        items = tuple(
            node if node.zoned else replace(node, zone=zones[index % len(zones)])
            for index, node in enumerate(items)
        )
        for index, node in enumerate(items):
            if node.zone and node.zone not in zones:
                path = (*nodes.path, "items", index, "zone")
                nodes.source.misreads(path, f"{node.zone!r} is not one of the zones {', '.join(zones)}")
    nodes.finish()
    return items, zones


def _node(item: Fields, number: int) -> DraftNode:
    node = DraftNode(
        name=item.get("name", f"node-{number}", dns_label),
        addresses=item.each("address", address),
        pod_cidrs=item.each("podCIDR", network),
        zone=item.get("zone", "", label_value),
        zoned=item.has("zone"),
        labels=item.get("labels", {}, labels),
        taints=tuple(_taint(taint) for taint in item.sections("taints")),
    )
    item.finish()
    return node


def _taint(item: Fields) -> Taint:
    for key in ("key", "effect"):
        if not item.has(key):
            item.note(key, "is missing")
    effects = choice("NoSchedule", "PreferNoSchedule", "NoExecute")
    taint = Taint(
        key=item.get("key", "", label_key),
        effect=item.get("effect", "NoSchedule", effects),
        value=item.get("value", "", label_value),
    )
    item.finish()
    return taint


def _control_plane(fields: Fields) -> ControlPlaneSpec:
    spec = ControlPlaneSpec(fields.each("address", address), fields.get("port", 6443, number(1, 65535)))
    fields.finish()
    return spec


def _topology(fields: Fields, file: Path) -> tuple[TopologySpec, type[Cutter] | None, dict[str, Any]]:
    topologies = _registry("testbed.topology", "topologies")
    name = fields.get("builder", "single", text)
    if name.endswith(".py"):
        name = str((file.parent / name).absolute())
    builder: type[Cutter] | None = None
    if not name.endswith(".py") and name not in topologies:
        fields.note("builder", f"{name!r}: {unknown('topology', name, list(topologies))}")
    else:
        try:
            builder = _named_by_path(name) if name.endswith(".py") else topologies.get(name)
        except InputError as error:
            fields.note("builder", str(error))
    params = dict(fields.section("params").items())
    if builder:
        for key, message in problems(builder.parameters, params):
            fields.section("params").note(key, message)
        params = _with_defaults(builder, params)
    link_fields, rule_fields = fields.section("link"), list(fields.sections("links"))
    links = {"link": dict(link_fields.items()), "links": [dict(rule.items()) for rule in rule_fields]}
    topology = TopologySpec(name, params, _link(link_fields), tuple(map(_link_rule, rule_fields)))
    fields.finish()
    return topology, builder, links


def _with_defaults(builder: type[Cutter], params: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in params.items() if value is not None}
    defaults = {key: param.default for key, param in (builder.parameters or {}).items()}
    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in defaults.items()
        if value is not None
    }
    return plain | given


def _link(fields: Fields, *others: str) -> LinkSpec:
    """others: keys of the section that are not the link's."""
    given = {key: parse for key, parse in LINK_PARSERS.items() if fields.has(key)}
    link = LinkSpec(**{FIELDS.get(key, key): fields.get(key, None, parse) for key, parse in given.items()})
    if (complaint := contradiction(link)) and fields.source.understood(fields.path):
        fields.note(*complaint)
    for key, _ in fields.items():
        if key not in LINK_PARSERS and key not in others:
            fields.source.note((*fields.path, key), unknown("key", key, [*LINK_PARSERS, *others]))
    return link


def _link_rule(fields: Fields) -> LinkRule:
    between = tuple(fields.list("between", text))
    if not 1 <= len(between) <= 2 and fields.source.understood((*fields.path, "between")):
        fields.note("between", "must be two neighbours, or one name for all its links")
    direction: Any = fields.get("direction", "both", choice("both", "out", "in"))
    return LinkRule(between, direction, _link(fields, "between", "direction"))


def _network(fields: Fields, file: Path) -> NetworkSpec:
    dataplane, dataplane_options = _dataplane(fields.section("dataplane"), file)
    mode, proxy_options = _proxy(fields.section("proxy"))
    pods = _pod_cidrs(fields, WEAVE_POD_CIDR if dataplane == "weave" else POD_CIDR)
    families = tuple(cidr.version for cidr in pods)
    policy = fields.section("policy")
    spec = NetworkSpec(
        pod_cidrs=pods,
        service_cidrs=_per_family(fields, "serviceCIDR", families, SERVICE_CIDR),
        node_cidrs=_per_family(fields, "nodeCIDR", families, NODE_CIDR),
        node_masks=_node_masks(fields, pods, pooled=pools_addresses(dataplane)),
        load_balancer_cidrs=_load_balancer_cidrs(fields, families),
        cluster_domain=fields.get("clusterDomain", "cluster.local", dns_name),
        dataplane=dataplane,
        dataplane_options=dataplane_options,
        proxy_mode=mode,
        proxy_options=proxy_options,
        policy_on_change=policy.get("onChange", "cut", choice("cut", "keep")),
    )
    policy.finish()
    fields.finish()
    for cidr in spec.service_cidrs:
        if cidr.num_addresses < 16:
            fields.note("serviceCIDR", f"{cidr} is too small: cluster DNS has the tenth address of it")
    for cidr in spec.node_cidrs:
        if cidr.num_addresses < 8:
            fields.note("nodeCIDR", f"{cidr} is too small for a gateway, a control plane and nodes")
    return spec


def _pod_cidrs(fields: Fields, default: dict[int, str]) -> tuple[IPNetwork, ...]:
    given = fields.each("podCIDR", network)
    if len({cidr.version for cidr in given}) < len(given):
        fields.note("podCIDR", "must be one range, or one IPv4 and one IPv6 range")
    if fields.has("podCIDR") and not given and fields.source.understood((*fields.path, "podCIDR")):
        fields.note("podCIDR", "must have at least one range")
    return tuple(by_family(given, lambda cidr: cidr.version).values()) or (ip_network(default[4]),)


def _per_family(
    fields: Fields, key: str, families: Sequence[int], default: dict[int, str]
) -> tuple[IPNetwork, ...]:
    """One range per family of the pods, in their order."""
    given = fields.each(key, network)
    if not fields.has(key) or not fields.source.understood((*fields.path, key)):
        return tuple(ip_network(default[version]) for version in families)
    found = by_family(given, lambda cidr: cidr.version)
    if set(found) != set(families) or len(given) != len(families):
        if fields.source.understood((*fields.path, "podCIDR")):
            fields.note(key, f"must be one range per family of podCIDR: {named(families)}")
        return tuple(ip_network(default[version]) for version in families)
    return tuple(found[version] for version in families)


def _load_balancer_cidrs(fields: Fields, families: Sequence[int]) -> tuple[IPNetwork, ...]:
    given = fields.each("loadBalancerCIDR", network)
    if not fields.has("loadBalancerCIDR"):
        return tuple(ip_network(LOAD_BALANCER_CIDR[v]) for v in families if v in LOAD_BALANCER_CIDR)
    found = by_family(given, lambda cidr: cidr.version)
    if not set(found) <= set(families) or len(found) < len(given):
        fields.note("loadBalancerCIDR", f"must be at most one range per family of podCIDR: {named(families)}")
    return tuple(found[version] for version in families if version in found)


def pools_addresses(dataplane: str) -> bool:
    """Whether nodes need no pod ranges of their own: pods have their addresses from podCIDR as a whole."""
    known = _registry("testbed.dataplane", "dataplanes")
    return dataplane in known and getattr(known.get(dataplane), "pools_addresses", False)


def _node_masks(fields: Fields, pods: Sequence[IPNetwork], *, pooled: bool) -> tuple[int, ...]:
    """The prefix length of a node's block per family; a single number is IPv4's where there is IPv4.

    pooled: nobody needs the blocks, so that they may be larger than podCIDR, and there are none then.
    """
    given = fields.each("nodeMask", number(1, 128))
    versions = [cidr.version for cidr in pods]
    masks: dict[int, int] = dict(NODE_MASK)
    if len(given) == len(versions):
        masks |= dict(zip(versions, given, strict=True))
    elif len(given) == 1:
        masks[min(versions)] = given[0]
    elif given:
        fields.note("nodeMask", f"must be one number per family of podCIDR: {named(versions)}")
    for cidr in pods:
        mask = masks[cidr.version]
        largest = cidr.max_prefixlen - (0 if pooled else 2)
        if not fields.source.understood((*fields.path, "nodeMask"), (*fields.path, "podCIDR")):
            continue
        if mask > largest:
            fields.note("nodeMask", f"/{mask} leaves no room for pods: must be at most {largest}")
        elif mask < cidr.prefixlen and not pooled:
            fields.note("nodeMask", f"/{mask} is larger than podCIDR {cidr}")
    return tuple(masks[version] for version in versions)


def named(families: Sequence[int]) -> str:
    """IP versions in words: ``IPv4 and IPv6``."""
    return " and ".join(f"IPv{version}" for version in families)


def _dataplane(fields: Fields, file: Path) -> tuple[str, dict[str, Any]]:
    """The name and the options as written, but for files, whose text takes the place of their paths."""
    known = _registry("testbed.dataplane", "dataplanes")
    name = fields.get("name", "bridge", _registered("dataplane", known))
    options = {key: value for key, value in fields.items() if key != "name" and value is not None}
    parameters: Mapping[str, Param] = known.get(name).parameters if name in known else {}
    named = {key: param for key, param in parameters.items() if param.file and key in options}
    for key, param in named.items():
        try:
            options[key] = _from_files(options[key], param.file, file)
        except ValueError as error:
            fields.note(key, str(error))
            options[key] = None  # one word about it is enough
    _options(fields.having({key: options[key] for key in named}), "name", known, name)
    return name, options


def _from_files(value: Any, kind: str, file: Path) -> Any:
    """A parameter that names files, read or made absolute. Raises ValueError."""
    if kind == "paths":
        items = value if isinstance(value, list) else [value]
        return [str((file.parent / item).absolute()) if isinstance(item, str) else item for item in items]
    if not isinstance(value, str) or value.lstrip().startswith("{"):
        return value
    try:
        with (file.parent / value).open("rb") as stream:
            return _decoded(stream.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(f"{value!r} cannot be read: {reason}") from error


def _decoded(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES // 2**20} MiB")
    return data.decode("utf-8-sig")


def _proxy(fields: Fields) -> tuple[str, dict[str, Any]]:
    """The mode and its options, every default filled in, as plain data."""
    known = _registry("testbed.proxy", "proxiers")
    mode = fields.get("mode", DEFAULT_PROXY, _registered("proxy mode", known))
    options = _options(fields, "mode", known, mode)
    return mode, {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def _options(fields: Fields, chosen_by: str, known: Registry[Any], chosen: str) -> dict[str, Any]:
    """What stands beside the name of a registered thing, by that thing's own parameters."""
    if chosen not in known:
        return {}
    parameters: Mapping[str, Param] = known.get(chosen).parameters
    for key, _ in fields.items():
        if key != chosen_by and key not in parameters:
            fields.source.note((*fields.path, key), unknown("key", key, [chosen_by, *parameters]))
    return {key: fields.get(key, param.default, param.parse) for key, param in parameters.items()}


def _registry(package: str, name: str) -> Registry[Any]:
    """A registry of a layer above this one, by name: the spec asks which things exist, not what they are."""
    registry: Registry[Any] = getattr(importlib.import_module(package), name)
    return registry


def _named_by_path(path: str) -> type[Cutter]:
    """The builder of a user's file. Raises InputError."""
    builder: type[Cutter] = importlib.import_module("testbed.topology.adapt").load_file(path)
    return builder


def _registered(kind: str, known: Registry[Any]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if text(value) not in known:
            raise ValueError(f"{value!r}: {unknown(kind, value, list(known))}")
        return str(value)

    return parse


def _dns(fields: Fields, network_spec: NetworkSpec) -> DnsSpec:
    addresses = tuple(
        cidr.network_address + DNS_OFFSET for cidr in network_spec.service_cidrs if cidr.num_addresses >= 16
    )
    spec = DnsSpec(
        enabled=fields.get("enabled", True, flag),
        replicas=fields.get("replicas", 2, number(1, 100)),
        node_local=fields.get("nodeLocal", False, flag),
        addresses=addresses,
    )
    fields.finish()
    return spec


def _kubelet(fields: Fields) -> dict[str, Any]:
    clocks = {key: fields.get(key, 0.0, parse_duration) for key in KUBELET_CLOCKS if fields.has(key)}
    for key in KUBELET_CLOCKS:
        fields.raw(key)
    fields.finish()
    return clocks


def _external(fields: Fields) -> ExternalSpec:
    for key in ("name", "address"):
        if not fields.has(key):
            fields.note(key, "is missing")
    addresses = fields.each("address", address)
    if len({item.version for item in addresses}) < len(addresses):
        fields.note("address", "must be one address per family")
    dns = fields.section("dns")
    spec = ExternalSpec(
        name=fields.get("name", "", dns_label),
        addresses=addresses,
        attach=fields.get("attach", "gateway", choice("gateway", "nodes")),
        dns_zone=dict(dns.section("zone").items()),
        zone=_zone(dns.section("zone")),
    )
    dns.finish()
    fields.finish()
    return spec


def _zone(fields: Fields) -> tuple[ZoneRecord, ...]:
    records: list[ZoneRecord] = []
    for name, value in fields.items():
        try:
            records += zone_records(name, value)
        except ValueError as error:
            fields.note(str(name), str(error))
    for name in circles(records):
        fields.note(name, "is an alias that goes in circles")
    return tuple(records)


def _manifests(spec: Fields, file: Path) -> tuple[Path, ...]:
    found = []
    for index, name in enumerate(spec.list("manifests", text)):
        path = (file.parent / name).absolute()
        found.append(path)
        if "\0" in name or not path.exists():
            spec.source.note((*SPEC, "manifests", index), f"{name!r}: no such file or directory")
    return tuple(found)
