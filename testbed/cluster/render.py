"""A node's desired state as text a person reads and the tools take: restore files and ``ip`` commands.

Pure. Sections are headed by comments, so that the whole of it stays valid input (``ip -batch``,
``iptables-restore``, ``nft -f``) once a section is cut out.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from msgspec.structs import replace

from testbed.dns.dnsmasq import FIRST_PORT, HOSTS, with_ports
from testbed.errors import InputError
from testbed.rules import ipset, ipvs, nft, wireguard
from testbed.rules.iptables import full_input
from testbed.state import Family, Link, NameFiles, NetnsState, NftFamily, NodeState, Route, Vxlan

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")
NFT_FAMILIES: Mapping[Family, NftFamily] = {"ipv4": "ip", "ipv6": "ip6"}
"""Families of nftables tables that hold rules of one family only."""


def render(
    state: NodeState, fragments: Mapping[str, NetnsState], what: str, families: tuple[Family, ...]
) -> str:
    """The part ``what`` (routes, all, or one of the fragments) of a node's state.

    fragments: rules of one origin, by its name (services, policy). Raises InputError for an unknown part.
    """
    parts: dict[str, Callable[[], str]] = {
        **{name: partial(_rules, fragment, families) for name, fragment in fragments.items()},
        "routes": lambda: _wiring(state) + _daemons(state),
        "all": lambda: _wiring(state) + _daemons(state) + _rules(state.netns, families),
    }
    if what not in parts:
        raise InputError(f"--what {what}: known are {', '.join((*parts, 'dns'))}")
    return parts[what]()


def render_names(servers: Mapping[str, NameFiles]) -> str:
    """What DNS servers read, as dnsmasq takes it: each configuration, then each hosts file."""
    text = ""
    for name, files in servers.items():
        for role, config in files.servers.items():
            text += f"# {name}: configuration of {role}\n{with_ports(config, FIRST_PORT)}"
        for file, hosts in sorted(files.hosts.items()):
            text += f"# {name}: {HOSTS}/{file}\n{hosts}"
    return text


def _rules(netns: NetnsState, families: tuple[Family, ...]) -> str:
    text = ""
    kinds = {"inet6" if family == "ipv6" else "inet" for family in families}
    if sets := ipset.full_input({n: each for n, each in netns.ipsets.items() if each.family in kinds}):
        text += f"# ipset restore\n{sets}"
    for family in families:
        tool = "iptables-restore" if family == "ipv4" else "ip6tables-restore"
        rules = full_input(netns.chains, family)
        text += f"# {tool}\n{rules}" if rules else ""
    virtual = {key: each for key, each in netns.virtual_servers.items() if _family(each.address) in families}
    real = {key: each for key, each in netns.real_servers.items() if _family(each.address) in families}
    if lines := ipvs.edit_input(virtual, real, {}, {}):
        text += f"# ipvsadm --restore\n{lines}"
    left_out = {each for family, each in NFT_FAMILIES.items() if family not in families}
    wanted = {key: table for key, table in netns.nft_tables.items() if key[0] not in left_out}
    others = netns.nft_tables.keys() - wanted.keys()
    tables = nft.script(replace(nft.without_tables(netns, others), nft_tables=wanted))
    return text + (f"# nft -f\n{tables}" if tables else "")


def _family(address: str) -> Family:
    return "ipv6" if ":" in address else "ipv4"


def _wiring(state: NodeState) -> str:
    sections = ["# node\n" + "".join(f"{line}\n" for line in _netns(state.netns))]
    for pod in sorted(state.pods.values(), key=lambda pod: (pod.namespace, pod.name)):
        lines = "".join(f"{line}\n" for line in _netns(pod.netns))
        sections.append(f"# pod {pod.namespace}/{pod.name}\n{lines}")
    return "\n".join(sections)


def _daemons(state: NodeState) -> str:
    """What each daemon is run as, and its files."""
    text = ""
    for name, daemon in sorted(state.daemons.items()):
        text += f"# daemon {name}: {shlex.join(daemon.argv)}\n"
        for file, content in sorted(daemon.files.items()):
            text += f"# {name}: {file}\n{content}"
    return text


def _netns(netns: NetnsState) -> Iterator[str]:
    """Lines of ``ip -batch`` (and ``sysctl``, commented, which that does not take)."""
    for path, value in sorted(netns.sysctls.items()):
        yield f"# sysctl {path.replace('/', '.')}={value}"
    for link in netns.links.values():
        mtu = f" mtu {link.mtu}" if link.mtu else ""
        mac = f" address {link.mac}" if link.mac else ""
        if link.kind == "veth":
            where = "" if link.peer in netns.links else " netns node"
            yield f"link add {link.name}{mac}{mtu} type veth peer name {link.peer}{mtu}{where}"
        elif link.kind in ("bridge", "vxlan", "ipip", "wireguard", "dummy"):
            hooked = " nf_call_iptables 1" if link.nf_call_iptables else ""
            yield f"link add {link.name}{mac}{mtu} type {link.kind}{_vxlan(link.vxlan)}{_ipip(link)}{hooked}"
        if link.wireguard is not None:
            yield f"# wg set {link.name} {shlex.join(wireguard.device_words(link.wireguard))}"
        if link.master:
            yield f"link set {link.name} master {link.master}"
        if link.hairpin:
            yield f"link set {link.name} type bridge_slave hairpin on"
        if not link.tx_checksum:
            yield f"# ethtool -K {link.name} tx off"
        if link.up:
            yield f"link set {link.name} up"
    for address in netns.addresses.values():
        broadcast = " brd +" if address.broadcast and ":" not in address.address else ""
        yield f"address add {address.address}{broadcast} dev {address.dev}"
    for route in netns.routes.values():
        yield _route(route)
    for neighbour in netns.neighbours.values():
        entry = f"lladdr {neighbour.mac} nud permanent " if neighbour.mac else "proxy "
        yield f"neighbour replace {entry}{neighbour.dst} dev {neighbour.dev}"
    for fdb in netns.fdb.values():
        yield f"# bridge fdb append {fdb.mac} dev {fdb.dev} dst {fdb.dst} self permanent"
    for peer in netns.peers.values():
        yield f"# wg set {peer.dev} {shlex.join(wireguard.peer_words([peer]))}"


def _ipip(link: Link) -> str:
    """Of a tunnel beside the netns's own, which has no address."""
    return f" local {link.ipip.local}" if link.ipip is not None and link.name != "tunl0" else ""


def _vxlan(vxlan: Vxlan | None) -> str:
    if vxlan is None:
        return ""
    learning = "" if vxlan.learning else " nolearning"
    more = f"{' df set' if vxlan.df else ''}{'' if vxlan.checksum else ' noudpcsum'}"
    return f" id {vxlan.vni} dev {vxlan.dev} local {vxlan.local} dstport {vxlan.port}{learning}{more}"


def _route(route: Route) -> str:
    family = "-6 " if route.dst == "default6" or ":" in route.dst else ""
    words = [f"{family}route replace", "" if route.kind == "unicast" else route.kind]
    words.append("default" if route.dst == "default6" else route.dst)
    for name in ("via", "dev", "src"):
        if value := getattr(route, name):
            words.append(f"{name} {value}")
    if route.mtu:
        words.append(f"mtu {route.mtu}")
    if route.metric:
        words.append(f"metric {route.metric}")
    if route.proto != "boot":
        words.append(f"proto {route.proto}")
    if route.scope != "global":
        words.append(f"scope {route.scope}")
    if route.onlink:
        words.append("onlink")
    words += [f"nexthop via {hop.via}" + (f" dev {hop.dev}" if hop.dev else "") for hop in route.nexthops]
    return " ".join(word for word in words if word)
