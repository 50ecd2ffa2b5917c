"""Reading a netns back into the type it is described with: iproute2's JSON and the rules' own text, parsed.

Only what a state can hold is read: no routes and addresses of the kernel's own making, only permanent and
proxy neighbours and the vxlan devices' own forwarding entries. What a state leaves to the kernel (None) is
read as it is, so compare by what was wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from testbed.kernel import ipvs, netfilter, nftables, wireguard
from testbed.kernel.run import run
from testbed.rules import ipset
from testbed.rules.iptables import ChainKey, parse_save
from testbed.rules.ipvs import parse_save as parse_servers
from testbed.rules.nft import parse_ruleset
from testbed.rules.wireguard import parse_dump
from testbed.state import (
    Address,
    Chain,
    FdbEntry,
    Link,
    Neighbour,
    NetnsState,
    Nexthop,
    Redirect,
    Route,
    Shaper,
    Vxlan,
)

IPV6_METRIC = 1024
"""Of an IPv6 route for which none was asked."""

KERNEL_PROTOCOLS = frozenset({"kernel", "ra"})


def read(backend: netfilter.Backend = "nft") -> NetnsState:
    """The netns this thread is in. Raises CommandFailed."""
    devices = _ip("-details", "address", "show")
    chains: dict[ChainKey, Chain] = {}
    for family in netfilter.FAMILIES:
        chains |= parse_save(netfilter.save(family, backend), family)
    virtual, real = parse_servers(ipvs.listing())
    tables = parse_ruleset(nftables.listing())
    qdiscs = _json("tc", "-json", "qdisc", "show")
    links = {link.name: link for link in parse_links(devices)}
    encrypted = [name for name, link in links.items() if link.kind == "wireguard"]
    guards, peers = parse_dump(wireguard.listing() if encrypted else "")
    return NetnsState(
        links=links | {name: replace(links[name], wireguard=guards[name]) for name in encrypted},
        addresses={(found.dev, found.address): found for found in parse_addresses(devices)},
        routes={route.dst: route for route in routes((4, 6))},
        neighbours=neighbours(proxies=True),
        fdb=fdb(),
        peers={(peer.dev, peer.key): peer for peer in peers},
        chains=chains,
        nft_tables=tables.nft_tables,
        nft_chains=tables.nft_chains,
        nft_sets=tables.nft_sets,
        nft_elements=tables.nft_elements,
        virtual_servers=virtual,
        real_servers=real,
        ipsets=ipset.parse_save(netfilter.save_sets()),
        shapers={shaper.dev: shaper for shaper in parse_shapers(qdiscs)},
        redirects={
            qdisc["dev"]: Redirect(qdisc["dev"], to)
            for qdisc in qdiscs
            if qdisc["kind"] == "ingress"
            if (to := parse_redirect(_json("tc", "-json", "filter", "show", "dev", qdisc["dev"], "ingress")))
        },
    )


def routes(versions: Iterable[int]) -> list[Route]:
    """Those of the main table, of these IP versions, without the kernel's own. Raises CommandFailed."""
    return [
        route
        for version in versions
        for route in parse_routes(
            _ip(f"-{version}", "-details", "route", "show", "table", "main"), version == 6
        )
    ]


def neighbours(*, proxies: bool) -> dict[tuple[str, str], Neighbour]:
    """Permanent entries; proxies: and these. Raises CommandFailed."""
    shown = _ip("neighbour", "show", "nud", "permanent")
    if proxies:
        shown += _ip("neighbour", "show", "proxy")
    return {(entry.dev, entry.dst): entry for entry in parse_neighbours(shown)}


def fdb() -> dict[tuple[str, str, str], FdbEntry]:
    """The vxlan devices' permanent entries. Raises CommandFailed."""
    shown = _json("bridge", "-json", "fdb", "show")
    return {(entry.dev, entry.mac, entry.dst): entry for entry in parse_fdb(shown)}


def _ip(*arguments: str) -> list[dict[str, Any]]:
    return _json("ip", "-json", *arguments)


def _json(*argv: str) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(run(argv).stdout or "[]")
    return [entry for entry in parsed if entry]


def parse_links(devices: Iterable[dict[str, Any]]) -> list[Link]:
    """``ip -json -details address show`` → links; a veth with its other end elsewhere is a ``peer``."""
    return [
        Link(
            name=device["ifname"],
            kind=_kind(device),
            up="UP" in device["flags"],
            mtu=device["mtu"],
            mac=device.get("address"),
            master=device.get("master"),
            hairpin=bool(device.get("linkinfo", {}).get("info_slave_data", {}).get("hairpin")),
            vxlan=_vxlan(device),
            nf_call_iptables=bool(_bridge(device).get("nf_call_iptables")),
        )
        for device in devices
    ]


def _kind(device: dict[str, Any]) -> Any:
    kind = device.get("linkinfo", {}).get("info_kind")
    if kind == "veth":
        return "peer"
    return kind if kind in ("bridge", "vxlan", "ipip", "wireguard", "dummy", "ifb") else "existing"


def _bridge(device: dict[str, Any]) -> dict[str, Any]:
    info = device.get("linkinfo", {})
    data: dict[str, Any] = info.get("info_data", {}) if info.get("info_kind") == "bridge" else {}
    return data


def _vxlan(device: dict[str, Any]) -> Vxlan | None:
    info = device.get("linkinfo", {})
    if info.get("info_kind") != "vxlan":
        return None
    data = info["info_data"]
    local = data.get("local", data.get("local6", ""))
    return Vxlan(
        data["id"],
        data["port"],
        data.get("link", ""),
        local,
        data.get("learning", False),
        data.get("df") == "set",
        bool(data.get("udp_csum", True)),
    )


def parse_shapers(qdiscs: Iterable[dict[str, Any]]) -> list[Shaper]:
    """``tc -json qdisc show`` → token buckets; the burst is what the kernel made of it, which rounds."""
    return [
        Shaper(qdisc["dev"], qdisc["options"]["rate"] * 8, qdisc["options"]["burst"] * 8)
        for qdisc in qdiscs
        if qdisc["kind"] == "tbf" and qdisc.get("root")
    ]


def parse_redirect(filters: Iterable[dict[str, Any]]) -> str:
    """``tc -json filter show … ingress`` → the device that all is redirected to, "" where none."""
    for each in filters:
        for action in each.get("options", {}).get("actions", ()):
            if action.get("kind") == "mirred" and action.get("mirred_action") == "redirect":
                return str(action["to_dev"])
    return ""


def parse_addresses(devices: Iterable[dict[str, Any]]) -> list[Address]:
    """``ip -json address show`` → addresses, without those the kernel gives by itself (lo's, fe80::)."""
    return [
        Address(device["ifname"], f"{info['local']}/{info['prefixlen']}", "broadcast" in info, info["scope"])
        for device in devices
        for info in device.get("addr_info", ())
        if "local" in info and device["ifname"] != "lo" and not info["local"].startswith("fe80:")
    ]


def parse_routes(routes: Iterable[dict[str, Any]], ipv6: bool) -> list[Route]:
    """``ip -json -details route show`` → routes, without the kernel's own."""
    return [_route(route, ipv6) for route in routes if route.get("protocol") not in KERNEL_PROTOCOLS]


def _route(route: dict[str, Any], ipv6: bool) -> Route:
    hops = tuple(Nexthop(_via(hop) or "", hop.get("dev")) for hop in route.get("nexthops", ()))
    metrics = route.get("metrics") or [{}]
    metric = route.get("metric", 0)
    return Route(
        dst=_destination(route["dst"], ipv6),
        via=_via(route),
        dev=route.get("dev"),
        src=route.get("prefsrc"),
        scope=route.get("scope", "global"),
        proto=route.get("protocol", "boot"),
        onlink="onlink" in route.get("flags", ()),
        kind=route.get("type", "unicast"),
        mtu=metrics[0].get("mtu"),
        nexthops=hops,
        metric=0 if ipv6 and metric == IPV6_METRIC else metric,
    )


def _via(route: dict[str, Any]) -> str | None:
    via: str | None = route.get("gateway") or route.get("via", {}).get("host")
    return via


def _destination(dst: str, ipv6: bool) -> str:
    if dst == "default":
        return "default6" if ipv6 else "default"
    return dst if "/" in dst else f"{dst}/{128 if ipv6 else 32}"


def parse_neighbours(entries: Iterable[dict[str, Any]]) -> list[Neighbour]:
    """``ip -json neighbour show`` of permanent and proxy entries; multicast and such are not ours."""
    return [
        Neighbour(entry["dev"], entry["dst"], entry.get("lladdr"))
        for entry in entries
        if entry.get("lladdr") or "proxy" in entry or entry.get("state") is None
    ]


def parse_fdb(entries: Iterable[dict[str, Any]]) -> list[FdbEntry]:
    """``bridge -json fdb show`` → permanent entries with a destination: those of vxlan devices."""
    return [
        FdbEntry(entry["ifname"], entry["mac"], entry["dst"])
        for entry in entries
        if "dst" in entry and entry.get("state") == "permanent"
    ]
