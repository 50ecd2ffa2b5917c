"""Making it so: the kernel of one node, as something that pods and parts of a netns are added to.

``RealKernel`` acts; ``fake.FakeKernel`` only refuses what the real one would. Nothing here decides what
should be.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from testbed.errors import CommandFailed, KernelRefused, TestbedError
from testbed.kernel import conntrack, ethtool, ipip, netfilter, netlink, netns, readback, sysctl, wireguard
from testbed.kernel.ipvs import Ipvs
from testbed.kernel.netlink import Netlink, Request
from testbed.kernel.nftables import Nftables
from testbed.rules import ipset, iptables
from testbed.state import (
    MADE_ALONE,
    NODE,
    Address,
    Chain,
    Family,
    FdbEntry,
    Link,
    Neighbour,
    NetnsState,
    PodState,
    Redirect,
    Route,
    Shaper,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
D = TypeVar("D", Address, Neighbour, FdbEntry, Shaper, Redirect)

Inside = Callable[[PodState], None]
"""Called for a pod in the pod's netns, which is complete; what it raises fails the pod."""


@dataclass(frozen=True)
class Failure:
    """One part of a change that could not be made; dev: the device it is about, "" if about none."""

    dev: str
    message: str


class Kernel(Protocol):
    """What a node's changes are applied to."""

    def add_pods(self, pods: Sequence[PodState], inside: Inside) -> dict[str, str]:
        """Make pods; uid → message of those that could not be made, of which nothing is left."""
        ...

    def delete_pods(self, uids: Iterable[str]) -> None:
        """Remove pods with their links; those not there are skipped."""
        ...

    def change(self, where: str, add: NetnsState, remove: NetnsState) -> list[Failure]:
        """Remove and then add or set parts of a netns; the rest is done even if one part fails."""
        ...

    def enter(self, where: str, inside: Callable[[], T]) -> T:
        """What ``inside`` returns, called in a netns."""
        ...

    def read(self, where: str) -> NetnsState:
        """What is in a netns."""
        ...


def peers(pod: PodState) -> list[str]:
    """The host ends of a pod's veth pairs."""
    return [link.peer for link in pod.netns.links.values() if link.peer is not None]


# --- the real kernel ----------------------------------------------------------------------------------

ALREADY_GONE = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENXIO})
"""Errors of a removal that mean it is not there any more, which is what was wanted."""

MADE_BY_NETLINK = ("veth", "bridge", "dummy", "ifb", "wireguard", "vxlan")
"""In the order in which they are made: a vxlan may stand on a bridge."""

LEAVING_GROUP = 0x7E57
"""The link group that host ends are put into to be deleted in one go."""


@dataclass
class _Pod:
    """A pod as the kernel has it. netns: a descriptor; None for hostNetwork."""

    netns: int | None
    links: dict[str, Link]
    peers: list[str]


class _Writer:
    """Requests for the netns this thread is in, sent together, with what failed of them."""

    def __init__(self, socket: Netlink) -> None:
        self._socket = socket
        self._index: dict[str, int] = {}
        self._requests: list[Request] = []
        self.failures: list[Failure] = []

    def index(self, name: str) -> int:
        """The index of a device here. Raises KernelRefused."""
        if name not in self._index:
            self._index[name] = self._socket.index(name)
        return self._index[name]

    def exists(self, name: str) -> bool:
        """Whether there is such a device here."""
        try:
            return bool(self.index(name))
        except KernelRefused:
            return False

    def forget_indexes(self) -> None:
        """Devices may have gone: look them up again."""
        self._index.clear()

    def indexes(self, names: Iterable[str | None]) -> dict[str, int]:
        """The indexes of several devices; None among them is skipped. Raises KernelRefused."""
        return {name: self.index(name) for name in names if name is not None}

    def ask(self, dev: str, encode: Callable[[], Request], tolerated: frozenset[int] = frozenset()) -> None:
        """Have a request sent with the next ``flush``; a device it needs that is missing is its failure."""
        try:
            self._requests.append(encode())
        except KernelRefused as error:
            if error.errno not in tolerated:
                self.failures.append(Failure(dev, str(error)))

    def send(self, request: Request) -> list[netlink.Refusal]:
        """Send one request now."""
        return self._socket.send([request])

    def make_tunnel(self, link: Link, home: int) -> ipip.Tunnel:
        """See ``ipip.make``."""
        try:
            return ipip.make(link, home, self._socket)
        finally:
            self.forget_indexes()

    def unmake_tunnel(self, tunnel: ipip.Tunnel) -> None:
        """See ``ipip.unmake``."""
        ipip.unmake(tunnel, self._socket)

    def flush(self, tolerated: frozenset[int] = frozenset()) -> None:
        """Send what was asked for; errors in ``tolerated`` are none."""
        requests, self._requests = self._requests, []
        for refusal in self._socket.send(requests) if requests else ():
            if refusal.number not in tolerated:
                self.failures.append(Failure(refusal.request.dev, str(refusal.error)))

    def attempt(self, dev: str, step: Callable[[], None]) -> None:
        """Do something outside netlink now; what it raises is its failure."""
        try:
            step()
        except TestbedError as error:
            self.fail(dev, error)

    def fail(self, dev: str, error: TestbedError) -> None:
        """Note a failure outside netlink."""
        self.failures.append(Failure(dev, str(error)))


class RealKernel:
    """The kernel of the node in whose netns this single-threaded process lives. backend: of iptables.

    Pods are held by descriptors alone; when this process ends they are gone.
    """

    def __init__(self, backend: netfilter.Backend = "nft") -> None:
        self._backend = backend
        self._home = netns.current()
        self._netlink = Netlink()
        self._nftables = Nftables()
        self._ipvs = Ipvs()
        self._pods: dict[str, _Pod] = {}
        self._original: dict[tuple[str, str], str] = {}
        self._in_built_in: dict[tuple[str, iptables.ChainKey], Chain] = {}
        self._tunnels: dict[str, ipip.Tunnel] = {}  # of IP in IP, made of programs
        self._torn: set[tuple[str, Family]] = set()  # where a change of rules may be half done
        self.sandbox: Callable[[str], int] = _no_sandbox
        """A pod's uid → the netns that plugins made for it; the descriptor stays theirs."""

    def use(self, backend: netfilter.Backend) -> None:
        """Make rules with this backend of iptables from now on; before any is made."""
        self._backend = backend

    def close(self) -> None:
        """Let go of everything; the pods' netns end, the node's own stays as it is."""
        self.delete_pods(list(self._pods))
        self._netlink.close()
        os.close(self._home)

    def netns(self, where: str) -> int:
        """The descriptor of a netns: ``node`` or a pod's uid. It stays ours. Raises KernelRefused."""
        if where == NODE:
            return self._home
        if where not in self._pods:
            raise KernelRefused(f"find pod {where}", errno.ENOENT, "no such pod")
        held = self._pods[where].netns
        return self._home if held is None else held

    def enter(self, where: str, inside: Callable[[], T]) -> T:
        """What ``inside`` returns, called in a netns. Raises KernelRefused if there is none."""
        target = self.netns(where)
        if target == self._home:
            return inside()
        netns.enter(target)
        try:
            return inside()
        finally:
            netns.enter(self._home)

    # --- pods

    def add_pods(self, pods: Sequence[PodState], inside: Inside) -> dict[str, str]:
        """Make pods; see Kernel."""
        failed = {}
        for pod in pods:
            try:
                self._add_pod(pod, inside)
            except (TestbedError, OSError) as error:
                failed[pod.uid] = str(error)
        return failed

    def _add_pod(self, pod: PodState, inside: Inside) -> None:
        if pod.uid in self._pods:
            raise KernelRefused(f"add pod {pod.uid}", errno.EEXIST, "the pod is there already")
        held = None if pod.host_network else self._make(pod)
        self._pods[pod.uid] = _Pod(held, pod.netns.links, peers(pod))
        try:
            self.enter(pod.uid, lambda: inside(pod))
        except BaseException:
            self.delete_pods([pod.uid])
            raise

    def _make(self, pod: PodState) -> int:
        """A netns with what the pod's should hold; nothing of it is left if that fails. One that plugins made
        is taken as it is."""
        held = -1
        try:
            if pod.sandboxed:
                held = os.dup(self.sandbox(pod.uid))
                netns.enter(held)
                return held
            held = netns.enter_new()
            with Netlink() as socket:
                writer = _Writer(socket)
                self._add(pod.uid, writer, pod.netns)
                self._restore(pod.uid, writer, pod.netns, NetnsState())
                if writer.failures:
                    _remove_veths(_Writer(socket), pod.netns)
                    refused = "; ".join(failure.message for failure in writer.failures)
                    raise KernelRefused(refused, 0, where=f"pod {pod.name}")
        except BaseException:
            if held >= 0:
                os.close(held)
            raise
        finally:
            netns.enter(self._home)
        return held

    def delete_pods(self, uids: Iterable[str]) -> None:
        """Remove pods; see Kernel. All links go in one request."""
        known = [uid for uid in uids if uid in self._pods]
        leaving = [self._pods.pop(uid) for uid in known]
        self._nftables.forget(known)
        self._ipvs.forget(known)
        names = [name for pod in leaving for name in pod.peers]
        writer = _Writer(self._netlink)
        for name in names:
            writer.ask(name, partial(netlink.set_group, name, LEAVING_GROUP))
        if names:
            writer.ask("", partial(netlink.delete_group, LEAVING_GROUP))
        writer.flush(ALREADY_GONE)
        for pod in leaving:
            if pod.netns is not None:
                os.close(pod.netns)
        if writer.failures:
            raise KernelRefused("; ".join(failure.message for failure in writer.failures), 0)

    # --- parts of a netns

    def change(self, where: str, add: NetnsState, remove: NetnsState) -> list[Failure]:
        """Change a netns; see Kernel. Adding what is there already sets it."""
        failures: list[Failure] = []

        def inside() -> None:
            with self._socket(where) as socket:
                writer = _Writer(socket)
                self._restore(where, writer, add, remove)
                self._remove(where, writer, remove)
                self._add(where, writer, add)
                self._end_flows(writer, add)
                failures.extend(writer.failures)

        try:
            self.enter(where, inside)
        except KernelRefused as error:
            return [Failure("", str(error))]
        return failures

    @staticmethod
    def _end_flows(writer: _Writer, add: NetnsState) -> None:
        """End the UDP connections that the rules, which are in force now, would send elsewhere."""
        if not add.udp:
            return
        try:
            conntrack.end_udp(add.udp.values())
        except KernelRefused as error:
            writer.fail("", error)

    @contextmanager
    def _socket(self, where: str) -> Iterator[Netlink]:
        """A netlink socket of the netns this thread has just entered: the node's own is kept open."""
        if self.netns(where) == self._home:
            yield self._netlink
        else:
            with Netlink() as socket:
                yield socket

    def _remove(self, where: str, writer: _Writer, gone: NetnsState) -> None:
        """Remove what depends before what it depends on."""
        for route in gone.routes.values():
            writer.ask(route.dev or "", partial(_route, writer, netlink.delete_route, route), ALREADY_GONE)
        for entry in gone.fdb.values():
            writer.ask(entry.dev, partial(_on, writer, netlink.delete_fdb, entry), ALREADY_GONE)
        for neighbour in gone.neighbours.values():
            writer.ask(neighbour.dev, partial(_on, writer, netlink.delete_neighbour, neighbour), ALREADY_GONE)
        for address in gone.addresses.values():
            writer.ask(address.dev, partial(_on, writer, netlink.delete_address, address), ALREADY_GONE)
        for redirect in gone.redirects.values():
            writer.ask(redirect.dev, partial(_on, writer, netlink.delete_ingress, redirect), ALREADY_GONE)
        for shaper in gone.shapers.values():
            writer.ask(shaper.dev, partial(_on, writer, netlink.delete_shaper, shaper), ALREADY_GONE)
        for link in gone.links.values():
            if link.name in self._tunnels:
                continue  # goes with its programs
            if link.kind == "ipip" and link.name == ipip.OF_NETNS:  # it stays as long as the netns
                writer.ask(link.name, partial(netlink.set_link, link.name, up=False))
            elif link.kind in MADE_ALONE:
                writer.ask(link.name, partial(netlink.delete_link, link.name))
            elif link.master is not None:
                writer.ask(link.name, partial(netlink.set_link, link.name, master=0))
        writer.flush(ALREADY_GONE)
        self._remove_tunnels(writer, gone)
        for dev, peers in wireguard.by_device(gone.peers).items():
            if writer.exists(dev):
                writer.attempt(dev, partial(wireguard.remove_peers, dev, peers))
        for path in gone.sysctls:
            original = self._original.pop((where, path), None)
            if original is not None:
                _write_sysctl(writer, path, original)
        writer.forget_indexes()

    def _add(self, where: str, writer: _Writer, new: NetnsState) -> None:
        """Make devices, set their sysctls while they are down, bring them up, then what stands on them."""
        made = self._make_links(writer, new.links)
        self._make_tunnels(writer, new.links)
        for path, value in new.sysctls.items():
            self._set_sysctl(where, writer, path, value)
        for link in new.links.values():
            writer.ask(link.name, partial(_set_link, writer, link, fresh=link.name in made))
            if link.master is not None and link.kind != "bridge":
                writer.ask(link.name, partial(netlink.set_hairpin, link.name, link.hairpin))
            if link.kind == "bridge" and (link.nf_call_iptables or link.name not in made):
                writer.ask(link.name, partial(netlink.set_nf_call_iptables, link.name, link.nf_call_iptables))
        for address in new.addresses.values():
            writer.ask(address.dev, partial(_on, writer, netlink.add_address, address))
        for neighbour in new.neighbours.values():
            writer.ask(neighbour.dev, partial(_on, writer, netlink.add_neighbour, neighbour))
        for entry in new.fdb.values():
            writer.ask(entry.dev, partial(_on, writer, netlink.add_fdb, entry))
        for route in sorted(new.routes.values(), key=has_gateway):
            writer.ask(route.dev or "", partial(_route, writer, netlink.add_route, route))
        for shaper in new.shapers.values():
            writer.ask(shaper.dev, partial(_on, writer, netlink.set_shaper, shaper))
        writer.flush()
        self._lead_through_tunnels(writer, new.routes.values())
        peers = wireguard.by_device(new.peers)
        keyed = [link.name for link in new.links.values() if link.wireguard is not None]
        for dev in dict.fromkeys((*keyed, *peers)):
            given = partial(wireguard.configure, dev, new.links.get(dev), peers.get(dev, ()))
            writer.attempt(dev, given)
        self._redirect(writer, new.redirects.values())
        for link in new.links.values():
            if not link.tx_checksum or (link.kind in ("veth", "bridge") and link.name not in made):
                _set_tx_checksum(writer, link)

    @staticmethod
    def _redirect(writer: _Writer, redirects: Iterable[Redirect]) -> None:
        """Redirect what comes in, in place of what was done with it before."""
        for redirect in redirects:
            writer.ask(redirect.dev, partial(_on, writer, netlink.delete_ingress, redirect))
        writer.flush(ALREADY_GONE | {errno.EINVAL})  # there is none on a new device
        for redirect in redirects:
            writer.ask(redirect.dev, partial(_on, writer, netlink.add_ingress, redirect))
            writer.ask(redirect.dev, partial(_filter, writer, redirect))
        writer.flush()

    def _make_links(self, writer: _Writer, links: Mapping[str, Link]) -> set[str]:
        """Make the devices that are ours to make, down; returns those that were not there before."""
        making = [link for link in links.values() if link.kind in MADE_BY_NETLINK]
        present = {link.name for link in making if writer.exists(link.name)}
        for kind in MADE_BY_NETLINK:
            for link in making:
                if link.kind == kind and link.name not in present:
                    writer.ask(link.name, partial(self._new_link, writer, link))
            writer.flush()
        return {link.name for link in making} - present

    def _make_tunnels(self, writer: _Writer, links: Mapping[str, Link]) -> None:
        """Tunnels of IP in IP: the kernel's own or, where it has none, made of programs (``ipip``)."""
        for link in links.values():
            if link.kind != "ipip":
                continue
            try:
                if writer.exists(link.name):
                    if link.name not in self._tunnels and writer.exists(ipip.OTHER_END):
                        # Of an agent that was killed: the map of its routes is nobody's any more.
                        self._tunnels[link.name] = writer.make_tunnel(link, self._home)
                    continue
                local = link.ipip.local if link.ipip and link.name != ipip.OF_NETNS else ""
                refused = [
                    each
                    for each in writer.send(netlink.add_ipip(link.name, local))
                    if (link.name, each.number) != (ipip.OF_NETNS, errno.EEXIST)  # comes with the module
                ]
                if refused and refused[0].number == errno.EOPNOTSUPP:
                    self._tunnels[link.name] = writer.make_tunnel(link, self._home)
                elif refused:
                    raise refused[0].error
            except KernelRefused as error:
                writer.fail(link.name, error)

    def _remove_tunnels(self, writer: _Writer, gone: NetnsState) -> None:
        try:
            for route in gone.routes.values():
                for tunnel in self._tunnels.values():
                    tunnel.delete(route)
            for name in gone.links.keys() & self._tunnels.keys():
                writer.unmake_tunnel(self._tunnels.pop(name))
        except KernelRefused as error:
            writer.fail("", error)

    def _lead_through_tunnels(self, writer: _Writer, routes: Iterable[Route]) -> None:
        for route in routes:
            for name, tunnel in self._tunnels.items():
                try:
                    if route.dev == name:
                        tunnel.set(route)
                    else:  # it may have led through the tunnel before
                        tunnel.delete(route)
                except KernelRefused as error:
                    writer.fail(route.dev or "", error)

    def _new_link(self, writer: _Writer, link: Link) -> Request:
        if link.kind == "bridge":
            # An MTU given at birth still follows the ports; one that is changed later stays (br_change_mtu).
            return netlink.add_bridge(link.name, None if link.mtu is None else link.mtu - 1, link.mac)
        if link.kind == "dummy":
            return netlink.add_dummy(link.name, link.mtu, link.mac)
        if link.kind == "ifb":
            return netlink.add_ifb(link.name, link.mtu, link.mac)
        if link.kind == "wireguard":
            return netlink.add_wireguard(link.name, link.mtu)
        if link.vxlan is not None:
            return netlink.add_vxlan(link.name, link.vxlan, writer.index(link.vxlan.dev), link.mtu, link.mac)
        return netlink.add_veth(link.name, link.peer or "", self._home, link.mtu, link.mac)

    def _set_sysctl(self, where: str, writer: _Writer, path: str, value: str) -> None:
        """Set a sysctl; its value from before we first set it is kept, to give it back."""
        if (where, path) not in self._original and not sysctl.device(path):
            try:
                self._original[where, path] = sysctl.exchange(path, value)
                return
            except KernelRefused as error:
                log.debug("%s", error)  # write-only or missing: setting it will tell
        _write_sysctl(writer, path, value)

    def _restore(self, where: str, writer: _Writer, add: NetnsState, remove: NetnsState) -> None:
        """Apply the sets that rules look at, the rules, and let go of sets that none looks at any more."""
        for change in (self._nftables.change, self._ipvs.change):
            try:
                change(where, add, remove)
            except TestbedError as error:
                writer.fail("", error)
        try:
            netfilter.restore_sets(ipset.filling(add.ipsets, remove.ipsets))
        except TestbedError as error:
            writer.fail("", error)
            return
        self._restore_chains(where, writer, add, remove)
        try:  # even where the chains failed: rather refused what is allowed than let in what is not
            netfilter.restore_sets(ipset.isolation(add.ipsets, remove.ipsets))
            self._destroy_sets(ipset.destruction(add.ipsets, remove.ipsets))
        except TestbedError as error:
            writer.fail("", error)

    @staticmethod
    def _destroy_sets(text: str) -> None:
        if not text:
            return
        # Somebody may have destroyed some behind our back; then there is less to do.
        there = ipset.parse_save(netfilter.save_sets())
        lines = [line for line in text.splitlines(keepends=True) if line.split()[1] in there]
        netfilter.restore_sets("".join(lines))

    def _restore_chains(self, where: str, writer: _Writer, add: NetnsState, remove: NetnsState) -> None:
        """Apply the chains. Of built-in chains exactly the rules that we added before are deleted."""
        mine = {
            key: chain
            for (place, key), chain in self._in_built_in.items()
            if place == where and (key in add.chains or key in remove.chains)
        }
        stale = {key: chain for key, chain in remove.chains.items() if not iptables.is_built_in(chain)} | mine
        for family in netfilter.FAMILIES:
            try:
                self._restore_family(where, family, _of(family, add.chains), _of(family, stale))
            except TestbedError as error:
                writer.fail("", error)
                continue
            for key in _of(family, stale):
                self._in_built_in.pop((where, key), None)
            for key, chain in _of(family, add.chains).items():
                if iptables.is_built_in(chain):
                    self._in_built_in[where, key] = chain

    def _restore_family(
        self,
        where: str,
        family: Family,
        add: Mapping[iptables.ChainKey, Chain],
        stale: Mapping[iptables.ChainKey, Chain],
    ) -> None:
        if not add and not stale:
            return
        if (where, family) not in self._torn:
            try:
                netfilter.change(add.values(), stale.values(), family, self._backend)
                return
            except CommandFailed as error:
                log.info("the rules are not as they were left, so they are read: %s", error)
        # A change that failed may be half done, and others may have removed something behind our back.
        self._torn.add((where, family))
        present = iptables.parse_save(netfilter.save(family, self._backend), family)
        left = iptables.leftovers(add, stale, present)
        netfilter.change(add.values(), left.values(), family, self._backend)
        self._torn.discard((where, family))

    def read(self, where: str) -> NetnsState:
        """What is in a netns. Raises CommandFailed."""
        found: list[NetnsState] = []
        self.enter(where, lambda: found.append(readback.read(self._backend)))
        return found[0]


def _no_sandbox(uid: str) -> int:
    raise KernelRefused(f"find the sandbox of pod {uid}", errno.ENOENT, "no such sandbox")


def _of(family: Family, chains: Mapping[iptables.ChainKey, Chain]) -> dict[iptables.ChainKey, Chain]:
    return {key: chain for key, chain in chains.items() if chain.family == family}


def _remove_veths(writer: _Writer, half_made: NetnsState) -> None:
    for link in half_made.links.values():
        if link.kind == "veth":
            writer.ask(link.name, partial(netlink.delete_link, link.name))
    writer.flush(ALREADY_GONE)


def _set_link(writer: _Writer, link: Link, fresh: bool) -> Request:
    """What a device should be; one just made has its mtu and mac already."""
    master = None if link.kind == "bridge" else 0 if link.master is None else writer.index(link.master)
    if fresh:
        mtu = link.mtu if link.kind == "bridge" else None
        return netlink.set_link(link.name, up=link.up, mtu=mtu, master=master or None)
    return netlink.set_link(link.name, up=link.up, mtu=link.mtu, mac=link.mac, master=master)


def _set_tx_checksum(writer: _Writer, link: Link) -> None:
    try:
        ethtool.set_tx_checksum(link.name, link.tx_checksum)
    except KernelRefused as error:
        writer.fail(link.name, error)


def _on(writer: _Writer, encode: Callable[[D, int], Request], thing: D) -> Request:
    return encode(thing, writer.index(thing.dev))


def _filter(writer: _Writer, redirect: Redirect) -> Request:
    return netlink.set_redirect(redirect, writer.index(redirect.dev), writer.index(redirect.to))


def _route(writer: _Writer, encode: Callable[[Route, dict[str, int]], Request], route: Route) -> Request:
    return encode(route, writer.indexes((route.dev, *(hop.dev for hop in route.nexthops))))


def has_gateway(route: Route) -> bool:
    """Whether a route needs another one, to its gateway, before it."""
    return route.via is not None or bool(route.nexthops)


def _write_sysctl(writer: _Writer, path: str, value: str) -> None:
    dev = sysctl.device(path)
    if dev and value.isdecimal():
        # Below /proc the kernel looks a name up among those of all netns: slower with every pod.
        directory, _, setting = path.rpartition("/")
        if directory == f"net/ipv4/conf/{dev}" and setting in netlink.IPV4_SETTINGS:
            writer.ask(dev, partial(netlink.set_ipv4, dev, setting, int(value)))
            return
        if path == f"net/ipv4/neigh/{dev}/proxy_delay":
            writer.ask(dev, partial(_proxy_delay, writer, dev, int(value) * sysctl.TICK_MILLISECONDS))
            return
    try:
        sysctl.write(path, value)
    except KernelRefused as error:
        writer.fail(dev or "", error)


def _proxy_delay(writer: _Writer, dev: str, milliseconds: int) -> Request:
    return netlink.set_proxy_delay(dev, writer.index(dev), milliseconds)
