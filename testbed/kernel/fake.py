"""A kernel that does nothing but refuse what the real one refuses, and forget what the real one forgets.

It holds one node: its netns and its pods. Like the real one it carries out what it can of a change and
tells the rest; unlike it, it is strict about removals: what is removed must be there, so that a difference
that asks for too much does not go unnoticed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeVar

from msgspec.structs import replace

from testbed.errors import KernelRefused, TestbedError
from testbed.kernel import sysctl
from testbed.kernel.apply import Failure, Inside, has_gateway, peers
from testbed.kernel.fakenft import FakeNftables
from testbed.rules.ipset import named
from testbed.rules.iptables import BUILT_IN, ChainKey, is_built_in, jump
from testbed.state import (
    MADE_ALONE,
    NODE,
    Address,
    Chain,
    FdbEntry,
    IpSet,
    Link,
    Neighbour,
    NetnsState,
    Nexthop,
    Peer,
    PodState,
    RealServer,
    Redirect,
    Route,
    Shaper,
    UdpFlows,
    VirtualServer,
    Vxlan,
)

T = TypeVar("T")

MAX_SET_NAME = 31
"""Characters of an ipset's name: IPSET_MAXNAMELEN with its end."""

FLOOD = "00:00:00:00:00:00"
"""The mac of forwarding entries for what is sent to all; only it may have several destinations."""


def refuse(what: str, number: int, message: str) -> KernelRefused:
    """The error the kernel would answer with."""
    return KernelRefused(what, number, message)


@dataclass
class FakeNetns:
    """One netns. lo and what the fabric made (``existing``) are there from the start."""

    existing: frozenset[str] = frozenset({"lo"})
    links: dict[str, Link] = field(default_factory=dict)
    addresses: dict[tuple[str, str], Address] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    neighbours: dict[tuple[str, str], Neighbour] = field(default_factory=dict)
    fdb: dict[tuple[str, str, str], FdbEntry] = field(default_factory=dict)
    peers: dict[tuple[str, str], Peer] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    chains: dict[ChainKey, Chain] = field(default_factory=dict)
    ipsets: dict[str, IpSet] = field(default_factory=dict)
    nftables: FakeNftables = field(default_factory=FakeNftables)
    virtual_servers: dict[tuple[str, str], VirtualServer] = field(default_factory=dict)
    real_servers: dict[tuple[str, str, str], RealServer] = field(default_factory=dict)
    udp: dict[tuple[str, str, int], UdpFlows] = field(default_factory=dict)
    shapers: dict[str, Shaper] = field(default_factory=dict)
    redirects: dict[str, Redirect] = field(default_factory=dict)

    def state(self) -> NetnsState:
        """What was asked for and is there."""
        return NetnsState(
            links=dict(self.links),
            addresses=dict(self.addresses),
            routes=dict(self.routes),
            neighbours=dict(self.neighbours),
            fdb=dict(self.fdb),
            peers=dict(self.peers),
            sysctls=dict(self.sysctls),
            chains=dict(self.chains),
            ipsets=dict(self.ipsets),
            virtual_servers=dict(self.virtual_servers),
            real_servers=dict(self.real_servers),
            **self.nftables.parts(),
            udp=dict(self.udp),
            shapers=dict(self.shapers),
            redirects=dict(self.redirects),
        )

    # --- devices

    def need(self, what: str, dev: str) -> None:
        """Refuse where there is no such device."""
        if dev not in self.links and dev not in self.existing:
            raise refuse(what, errno.ENODEV, f"no device {dev}")

    def is_up(self, dev: str) -> bool:
        """Whether a device is up; the fabric's are, unless a state says otherwise."""
        return self.links[dev].up if dev in self.links else dev in self.existing and dev != "lo"

    def set_link(self, link: Link) -> None:
        """Make or change a device."""
        what = f"set link {link.name}"
        if link.kind in ("existing", "peer"):
            self.need(what, link.name)
        if link.vxlan is not None:
            self._check_vxlan(what, link)
        if link.master is not None:
            self.need(what, link.master)
            if link.master in self.links and self.links[link.master].kind != "bridge":
                raise refuse(what, errno.EOPNOTSUPP, f"{link.master} is not a bridge")
        elif link.hairpin:
            raise refuse(what, errno.EOPNOTSUPP, "hairpin on what is no bridge port")
        old = self.links.get(link.name)
        if (
            old is not None
            and link.kind in MADE_ALONE
            and any(getattr(old, part) != getattr(link, part) for part in ("kind", "vxlan", "peer"))
        ):
            raise refuse(what, errno.EEXIST, "there is one, and it is different")
        kept = link if old is None else replace(link, mtu=link.mtu or old.mtu, mac=link.mac or old.mac)
        self.links[link.name] = kept
        if link.kind == "veth" and link.peer is not None:
            self.existing |= {link.peer}
        if old is not None and old.up and not link.up:
            self._forget_ipv4_routes(link.name)
            self.neighbours = {key: entry for key, entry in self.neighbours.items() if entry.dev != link.name}

    def _check_vxlan(self, what: str, link: Link) -> None:
        vxlan = link.vxlan
        if vxlan is None:
            return
        self.need(what, vxlan.dev)
        for other in self.links.values():
            same = other.vxlan is not None and _identity(other.vxlan) == _identity(vxlan)
            if same and other.name != link.name:
                raise refuse(what, errno.EEXIST, f"{other.name} has vni {vxlan.vni}")

    def drop_link(self, name: str) -> None:
        """A device goes, and with it what stands on it, and a veth's other end."""
        gone = self.links.pop(name, None)
        if gone is not None and gone.kind == "veth" and gone.peer in self.existing:
            self.existing -= {gone.peer}
            self.drop_link(gone.peer)
        self.addresses = {key: address for key, address in self.addresses.items() if address.dev != name}
        self.routes = {dst: route for dst, route in self.routes.items() if name not in _devices(route)}
        self.neighbours = {key: entry for key, entry in self.neighbours.items() if entry.dev != name}
        self.fdb = {key: entry for key, entry in self.fdb.items() if entry.dev != name}
        self.peers = {key: peer for key, peer in self.peers.items() if peer.dev != name}
        self.shapers.pop(name, None)
        self.redirects = {dev: each for dev, each in self.redirects.items() if name not in (dev, each.to)}
        self.sysctls = {path: value for path, value in self.sysctls.items() if sysctl.device(path) != name}
        for port in [link for link in self.links.values() if link.master == name]:
            self.links[port.name] = replace(port, master=None, hairpin=False)
        for carried in [link.name for link in self.links.values() if link.vxlan and link.vxlan.dev == name]:
            self.drop_link(carried)

    def remove_link(self, link: Link) -> None:
        """Delete a device of ours; let go of one that is not."""
        if link.name not in self.links:
            raise refuse(f"delete {link.name}", errno.ENODEV, "no such device")
        if link.kind in MADE_ALONE:
            self.drop_link(link.name)
        else:
            del self.links[link.name]

    # --- addresses, routes, neighbours

    def set_address(self, address: Address) -> None:
        """Give a device an address."""
        what = f"add address {address.address} on {address.dev}"
        self.need(what, address.dev)
        host = ip_interface(address.address)
        for key in self.addresses:
            other = ip_interface(key[1])
            if key != (address.dev, address.address) and key[0] == address.dev and other.ip == host.ip:
                raise refuse(what, errno.EEXIST, f"it has {other}")
        self.addresses[address.dev, address.address] = address

    def remove_address(self, address: Address) -> None:
        """Take an address; the last IPv4 one takes the device's routes, each those that name it as source."""
        if self.addresses.pop((address.dev, address.address), None) is None:
            raise refuse(
                f"delete address {address.address} on {address.dev}", errno.EADDRNOTAVAIL, "not there"
            )
        ip = str(ip_interface(address.address).ip)
        self.routes = {dst: route for dst, route in self.routes.items() if route.src != ip}
        left = [key for key in self.addresses if key[0] == address.dev and ":" not in key[1]]
        if ":" not in ip and not left:
            self._forget_ipv4_routes(address.dev)

    def _forget_ipv4_routes(self, dev: str) -> None:
        self.routes = {
            dst: route
            for dst, route in self.routes.items()
            if dev not in _devices(route) or ":" in dst or dst == "default6"
        }

    def set_route(self, route: Route) -> None:
        """Set a route whose devices are up and whose gateways are reachable."""
        what = f"add route {route.dst}"
        for dev in _devices(route):
            self.need(what, dev)
            if not self.is_up(dev):
                raise refuse(what, errno.ENETDOWN, f"{dev} is down")
        if route.src is not None and all(
            ip_interface(key[1]).ip != ip_address(route.src) for key in self.addresses
        ):
            raise refuse(what, errno.EINVAL, f"{route.src} is not an address here")
        if route.kind == "unicast" and not _devices(route) and route.via is None and not route.nexthops:
            raise refuse(what, errno.ENODEV, "no device and no gateway")
        hops = route.nexthops if route.via is None else (Nexthop(route.via, route.dev),)
        for hop in hops:
            if not route.onlink and not self._reachable(hop.via, hop.dev):
                raise refuse(what, errno.ENETUNREACH, f"gateway {hop.via} is not reachable")
        self.routes[route.dst] = route

    def _reachable(self, via: str, dev: str | None) -> bool:
        """Whether an address is on an up device's link, by the device's own network or a direct route."""
        target = ip_address(via)
        if target.version == 6 and target.is_link_local and dev is not None:
            return True
        connected = [(key[0], ip_interface(key[1]).network) for key in self.addresses if self.is_up(key[0])]
        direct = [
            (route.dev, ip_network(route.dst))
            for route in self.routes.values()
            if route.dev and not route.via and not route.nexthops and not route.dst.startswith("default")
        ]
        return any(dev in (None, at) and target in network for at, network in [*connected, *direct])

    def remove_route(self, route: Route) -> None:
        """Delete a route."""
        if self.routes.get(route.dst) != route:
            raise refuse(f"delete route {route.dst}", errno.ESRCH, "no such route")
        del self.routes[route.dst]

    def set_neighbour(self, entry: Neighbour) -> None:
        """Set a neighbour entry."""
        self.need(f"add neighbour {entry.dst}", entry.dev)
        old = self.neighbours.get((entry.dev, entry.dst))
        if old is not None and (old.mac is None) != (entry.mac is None):
            raise refuse(f"add neighbour {entry.dst}", errno.EEXIST, "the other kind of entry would stay")
        self.neighbours[entry.dev, entry.dst] = entry

    def remove_neighbour(self, entry: Neighbour) -> None:
        """Delete a neighbour entry."""
        if self.neighbours.pop((entry.dev, entry.dst), None) is None:
            raise refuse(f"delete neighbour {entry.dst}", errno.ENOENT, "not there")

    def set_fdb(self, entry: FdbEntry) -> None:
        """Set a forwarding entry of a vxlan device; on a bridge the kernel would ignore where it leads."""
        what = f"add fdb entry {entry.mac}"
        self.need(what, entry.dev)
        if entry.dev not in self.links or self.links[entry.dev].vxlan is None:
            raise refuse(what, errno.EOPNOTSUPP, f"{entry.dev} is not a vxlan")
        for dev, mac, dst in self.fdb:
            if (dev, mac) == (entry.dev, entry.mac) != (dev, FLOOD) and dst != entry.dst:
                raise refuse(what, errno.EEXIST, f"{mac} is at {dst}, which the kernel would replace")
        self.fdb[entry.dev, entry.mac, entry.dst] = entry

    def remove_fdb(self, entry: FdbEntry) -> None:
        """Delete a forwarding entry."""
        if self.fdb.pop((entry.dev, entry.mac, entry.dst), None) is None:
            raise refuse(f"delete fdb entry {entry.mac}", errno.ENOENT, "not there")

    def set_peer(self, peer: Peer) -> None:
        """Set a peer of a WireGuard device; what it is allowed is taken from the others."""
        what = f"set peer {peer.key}"
        self.need(what, peer.dev)
        if peer.dev not in self.links or self.links[peer.dev].wireguard is None:
            raise refuse(what, errno.EOPNOTSUPP, f"{peer.dev} is no WireGuard device")
        for key, other in self.peers.items():
            if other.dev == peer.dev and other.key != peer.key:
                allowed = tuple(each for each in other.allowed if each not in peer.allowed)
                self.peers[key] = replace(other, allowed=allowed)
        self.peers[peer.dev, peer.key] = peer

    def remove_peer(self, peer: Peer) -> None:
        """Remove a peer; wg does not mind if it is not there."""
        self.need(f"remove peer {peer.key}", peer.dev)
        self.peers.pop((peer.dev, peer.key), None)

    def set_shaper(self, shaper: Shaper) -> None:
        """Put a token bucket at a device's root."""
        self.need(f"set tbf on {shaper.dev}", shaper.dev)
        self.shapers[shaper.dev] = shaper

    def remove_shaper(self, shaper: Shaper) -> None:
        """Take it away."""
        if self.shapers.pop(shaper.dev, None) is None:
            raise refuse(f"delete tbf on {shaper.dev}", errno.ENOENT, "not there")

    def set_redirect(self, redirect: Redirect) -> None:
        """Redirect what comes in on a device to another one."""
        self.need(f"redirect what comes in on {redirect.dev}", redirect.dev)
        self.need(f"redirect what comes in on {redirect.dev}", redirect.to)
        self.redirects[redirect.dev] = redirect

    def remove_redirect(self, redirect: Redirect) -> None:
        """Let it come in as before."""
        if self.redirects.pop(redirect.dev, None) is None:
            raise refuse(f"delete ingress qdisc on {redirect.dev}", errno.ENOENT, "not there")

    def set_sysctl(self, path: str, value: str) -> None:
        """Set a sysctl; a device's is there with the device."""
        if (dev := sysctl.device(path)) is not None:
            self.need(f"set sysctl {path}", dev)
        self.sysctls[path] = value

    def remove_sysctl(self, path: str) -> None:
        """Give a sysctl its own value back."""
        if self.sysctls.pop(path, None) is None:
            raise refuse(f"reset sysctl {path}", errno.ENOENT, "was not set")

    # --- what is known of UDP connections

    def know_flows(self, flows: UdpFlows) -> None:
        """Hold the connections of an address to what it says; there must be somebody to answer."""
        if not flows.serving:
            raise refuse(f"end flows to {flows.address}:{flows.port}", errno.EINVAL, "nobody answers")
        self.udp[flows.family, flows.address, flows.port] = flows

    def forget_flows(self, key: tuple[str, str, int]) -> None:
        """Leave the connections of an address alone."""
        if self.udp.pop(key, None) is None:
            raise refuse(f"forget flows to {key}", errno.ENOENT, "not known")

    # --- nftables: all or nothing

    def change_nftables(self, add: NetnsState, remove: NetnsState) -> None:
        """Change tables as one transaction of nft."""
        self.nftables = self.nftables.changed(add, remove)

    # --- IPVS

    def change_servers(self, add: NetnsState, remove: NetnsState) -> None:
        """Add or set servers, delete others; a virtual server takes its real ones along."""
        self.virtual_servers |= add.virtual_servers
        for key, server in add.real_servers.items():
            if key[:2] not in self.virtual_servers:
                raise refuse(f"add real server {key[2]}", errno.ESRCH, f"no virtual server {key[1]}")
            self.real_servers[key] = server
        for real in remove.real_servers.keys() - add.real_servers.keys():
            if self.real_servers.pop(real, None) is None:
                raise refuse(f"delete real server {real[2]}", errno.ENOENT, "no such real server")
        for virtual in remove.virtual_servers.keys() - add.virtual_servers.keys():
            if self.virtual_servers.pop(virtual, None) is None:
                raise refuse(f"delete virtual server {virtual[1]}", errno.ESRCH, "no such virtual server")
            self.real_servers = {key: one for key, one in self.real_servers.items() if key[:2] != virtual}

    # --- ipsets

    def fill(self, add: Mapping[str, IpSet], remove: Mapping[str, IpSet]) -> None:
        """Make sets, change the entries of those that stay; names, types and entries must be possible."""
        for name, each in add.items():
            what = f"create {name}"
            there = self.ipsets.get(name, replace(each, entries=frozenset()))
            if len(name) > MAX_SET_NAME:
                raise refuse(what, errno.EINVAL, f"a name has at most {MAX_SET_NAME} characters")
            if (there.type, there.family) != (each.type, each.family):
                raise refuse(what, errno.EEXIST, "there is one of another type")
            gone = remove[name].entries if name in remove else frozenset[str]()
            if gone - there.entries:
                raise refuse(f"del {name}", errno.ENOENT, f"{min(gone - there.entries)} is not in it")
            for entry in each.entries:
                _check_entry(each, entry)
            self.ipsets[name] = replace(there, entries=there.entries - gone | each.entries)

    def destroy(self, names: Iterable[str]) -> None:
        """Destroy sets; one that a rule looks at stays, as the kernel has it."""
        used = {name for chain in self.chains.values() for rule in chain.rules for name in named(rule)}
        for name in names:
            if name not in self.ipsets:
                raise refuse(f"destroy {name}", errno.ENOENT, "no such set")
            if name in used:
                raise refuse(f"destroy {name}", errno.EBUSY, "a rule looks at it")
            del self.ipsets[name]

    # --- chains: all or nothing, as one transaction of the restore tool

    def restore(self, add: Iterable[Chain], remove: Iterable[Chain]) -> None:
        """Set whole chains and delete others; a rule that jumps to a missing chain undoes it all."""
        chains = dict(self.chains)
        for chain in remove:
            key = (chain.family, chain.table, chain.name)
            if chains.pop(key, None) is None:
                raise refuse(f"delete chain {chain.name}", errno.ENOENT, "no such chain")
        for chain in add:
            if chain.table not in BUILT_IN:
                raise refuse(f"set chain {chain.name}", errno.EINVAL, f"no table {chain.table}")
            chains[chain.family, chain.table, chain.name] = chain
        for chain in chains.values():
            for rule in chain.rules:
                self._check_jump(chain, rule, chains)
                self._check_sets(chain, rule)
        self.chains = chains

    def _check_sets(self, chain: Chain, rule: str) -> None:
        for name in named(rule):
            if name not in self.ipsets:
                raise refuse(f"-A {chain.name} {rule}", errno.ENOENT, f"no set {name}")
            if (self.ipsets[name].family == "inet") != (chain.family == "ipv4"):
                raise refuse(f"-A {chain.name} {rule}", errno.EINVAL, f"set {name} is of another family")

    @staticmethod
    def _check_jump(chain: Chain, rule: str, chains: dict[ChainKey, Chain]) -> None:
        target = jump(rule)
        if target is None:
            return
        key = (chain.family, chain.table, target)
        if key not in chains or is_built_in(chains[key]):
            raise refuse(f"-A {chain.name} {rule}", errno.ENOENT, f"no chain {target} in table {chain.table}")


def _check_entry(each: IpSet, entry: str) -> None:
    """Refuse what ``ipset add`` refuses: what is no such entry, another family, 0.0.0.0/0."""
    what = f"add {each.name} {entry}"
    text, _, option = entry.partition(" ")
    if each.type == "bitmap:port":
        if not text.isdecimal() or int(text) > 65535:
            raise refuse(what, errno.EINVAL, "no port")
        return
    parts = text.split(",")
    if len(parts) != len(each.type.split(",")):
        raise refuse(what, errno.EINVAL, f"an entry of {each.type} has other parts")
    text = parts[0]
    try:
        network = ip_network(text)
    except ValueError as error:
        raise refuse(what, errno.EINVAL, str(error)) from error
    if (network.version == 4) != (each.family == "inet"):
        raise refuse(what, errno.EAFNOSUPPORT, "an address of the other family")
    if network.prefixlen == 0 or option not in ("", "nomatch"):
        raise refuse(what, errno.EINVAL, "the kernel has no such entry")


def _identity(vxlan: Vxlan) -> tuple[int, int, bool]:
    """What two vxlan devices of one netns cannot share; each family has its own."""
    return vxlan.vni, vxlan.port, ":" in vxlan.local


def _devices(route: Route) -> set[str]:
    return {dev for dev in (route.dev, *(hop.dev for hop in route.nexthops)) if dev is not None}


class FakeKernel:
    """One node. existing: devices that the fabric has made in it."""

    def __init__(self, existing: Iterable[str] = ("lo", "eth0")) -> None:
        self.node = FakeNetns(frozenset(existing))
        self.pods: dict[str, FakeNetns] = {}
        self._states: dict[str, PodState] = {}

    def _netns(self, where: str) -> FakeNetns:
        if where == NODE:
            return self.node
        if where not in self.pods:
            raise refuse(f"find pod {where}", errno.ENOENT, "no such pod")
        return self.node if self._states[where].host_network else self.pods[where]

    def enter(self, where: str, inside: Callable[[], T]) -> T:
        """What ``inside`` returns, if there is such a netns."""
        self._netns(where)
        return inside()

    def read(self, where: str) -> NetnsState:
        """What is in a netns; a hostNetwork pod has nothing of its own."""
        if where in self._states and self._states[where].host_network:
            return NetnsState()
        return self._netns(where).state()

    def add_pods(self, pods: Sequence[PodState], inside: Inside) -> dict[str, str]:
        """Make pods; see apply.Kernel."""
        failed = {}
        for pod in pods:
            try:
                self._add_pod(pod, inside)
            except (TestbedError, OSError) as error:
                failed[pod.uid] = str(error)
        return failed

    def _add_pod(self, pod: PodState, inside: Inside) -> None:
        if pod.uid in self.pods:
            raise refuse(f"add pod {pod.uid}", errno.EEXIST, "the pod is there already")
        fresh = FakeNetns()
        for link in pod.netns.links.values():
            if link.kind == "veth" and not link.peer:
                raise refuse(f"add veth {link.name}", errno.EINVAL, "no peer")
            if link.peer in self.node.links or link.peer in self.node.existing:
                raise refuse(f"add veth {link.name} with peer {link.peer}", errno.EEXIST, "the peer exists")
        failures = _restore(fresh, pod.netns, NetnsState()) + _add(fresh, pod.netns)
        if failures:
            raise refuse("; ".join(failure.message for failure in failures), 0, "")
        inside(pod)
        self.node.existing |= set(peers(pod))
        self.pods[pod.uid], self._states[pod.uid] = fresh, pod

    def delete_pods(self, uids: Iterable[str]) -> None:
        """Remove pods; their host ends take along what stands on them."""
        for uid in [uid for uid in uids if uid in self.pods]:
            del self.pods[uid]
            for peer in peers(self._states.pop(uid)):
                self.node.existing -= {peer}
                self.node.drop_link(peer)

    def change(self, where: str, add: NetnsState, remove: NetnsState) -> list[Failure]:
        """Remove, then add; see apply.Kernel."""
        try:
            netns = self._netns(where)
        except KernelRefused as error:
            return [Failure("", str(error))]
        return _restore(netns, add, remove) + _remove(netns, remove) + _add(netns, add)


def _try(failures: list[Failure], dev: str | None, step: Callable[[], None]) -> None:
    try:
        step()
    except KernelRefused as error:
        failures.append(Failure(dev or "", str(error)))


def _restore(netns: FakeNetns, add: NetnsState, remove: NetnsState) -> list[Failure]:
    failures: list[Failure] = []
    _try(failures, None, partial(netns.change_nftables, add, remove))
    _try(failures, None, partial(netns.change_servers, add, remove))
    if failures:
        return failures
    _try(failures, None, partial(netns.fill, add.ipsets, remove.ipsets))
    if failures:
        return failures
    _try(failures, None, partial(netns.restore, add.chains.values(), remove.chains.values()))
    _try(failures, None, partial(netns.destroy, [name for name in remove.ipsets if name not in add.ipsets]))
    return failures


def _remove(netns: FakeNetns, gone: NetnsState) -> list[Failure]:
    failures: list[Failure] = []
    for route in gone.routes.values():
        _try(failures, route.dev, partial(netns.remove_route, route))
    for entry in gone.fdb.values():
        _try(failures, entry.dev, partial(netns.remove_fdb, entry))
    for neighbour in gone.neighbours.values():
        _try(failures, neighbour.dev, partial(netns.remove_neighbour, neighbour))
    for address in gone.addresses.values():
        _try(failures, address.dev, partial(netns.remove_address, address))
    for redirect in gone.redirects.values():
        _try(failures, redirect.dev, partial(netns.remove_redirect, redirect))
    for shaper in gone.shapers.values():
        _try(failures, shaper.dev, partial(netns.remove_shaper, shaper))
    for link in gone.links.values():
        _try(failures, link.name, partial(netns.remove_link, link))
    for peer in gone.peers.values():
        _try(failures, peer.dev, partial(netns.remove_peer, peer))
    for path in gone.sysctls:
        _try(failures, None, partial(netns.remove_sysctl, path))
    for key in gone.udp:
        _try(failures, None, partial(netns.forget_flows, key))
    return failures


def _add(netns: FakeNetns, new: NetnsState) -> list[Failure]:
    failures: list[Failure] = []
    for link in sorted(new.links.values(), key=_making_order):
        _try(failures, link.name, partial(netns.set_link, link))
    for path, value in new.sysctls.items():
        _try(failures, sysctl.device(path), partial(netns.set_sysctl, path, value))
    for address in new.addresses.values():
        _try(failures, address.dev, partial(netns.set_address, address))
    for neighbour in new.neighbours.values():
        _try(failures, neighbour.dev, partial(netns.set_neighbour, neighbour))
    for entry in new.fdb.values():
        _try(failures, entry.dev, partial(netns.set_fdb, entry))
    for route in sorted(new.routes.values(), key=has_gateway):
        _try(failures, route.dev, partial(netns.set_route, route))
    for peer in new.peers.values():
        _try(failures, peer.dev, partial(netns.set_peer, peer))
    for shaper in new.shapers.values():
        _try(failures, shaper.dev, partial(netns.set_shaper, shaper))
    for redirect in new.redirects.values():
        _try(failures, redirect.dev, partial(netns.set_redirect, redirect))
    for flows in new.udp.values():
        _try(failures, None, partial(netns.know_flows, flows))
    return failures


def _making_order(link: Link) -> int:
    """As the real kernel is asked: bridges first, what stands on or hangs on other devices after them."""
    return ("bridge", "veth", "dummy", "ifb", "vxlan", "ipip", "wireguard", "existing", "peer").index(
        link.kind
    )
