"""ClusterNet: a Mininet network built from any Topo, quickly and without touching the host.

What Mininet does one shell command at a time is done here in batches: all shells start side by side, one
``ip`` process makes every switch and link, then each host configures itself, all at the same time.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from mininet.link import Link, TCLink
from mininet.net import Mininet
from mininet.node import Node
from mininet.topo import Topo

from testbed.errors import CommandFailed, InputError, Lack, MissingCapability
from testbed.fabric import nodes
from testbed.fabric.links import MAX_NAME, Port, Shaping, Wire, netem_error
from testbed.fabric.nodes import Bridge, ClusterHost, Router
from testbed.fabric.verify import End, verify

SHELL_FILE_LIMIT = 1024
"""Soft limit of open files while shells start: ``mnexec -c`` tries to close every descriptor below it."""

DEFAULT_MTU, GSO_MAX_SEGS = 1500, 65535
"""What the kernel gives a veth pair (linux/if_ether.h, linux/netdevice.h)."""

PROC_SYS = Path("/proc/sys")
BR_NETFILTER = Lack(
    "br_netfilter", "nodes pass bridged traffic through iptables", "load the kernel module br_netfilter"
)


class ClusterNet(Mininet):  # type: ignore[misc]
    """The fabric of a cluster. Give it a network namespace of its own: switches live in the current one.

    seconds: step → how long it took, in the order of the steps.
    """

    def __init__(self, topo: Topo) -> None:
        # Instead of Mininet.init(), which writes host-wide sysctls, and of the classes' checks for tools.
        Mininet.inited = ClusterHost.isSetup = Router.isSetup = Bridge.isSetup = True
        self.seconds: dict[str, float] = {}
        self._numbers = count()
        self._routes: dict[str, dict[str, tuple[str, ...]]] = {}
        self._cut: set[Port] = set()
        self._short: dict[Port, int] = {}
        self._reshaped: set[Port] = set()
        super().__init__(topo, switch=Bridge, host=ClusterHost, controller=None, link=Wire, build=False)

    def build(self) -> None:
        """Make and configure everything. Raises CommandFailed, MissingCapability, InputError."""
        with self._step("shells"), low_file_limit():
            self.buildFromTopo(self.topo)
            for node in self.values():
                if node.pid is None:
                    raise InputError(f"{node.name}: its class {type(node).__name__} starts no shell")
        with self._step("links"):
            self._check()
            self._quiet_switches()
            nodes.run(nodes.ip_batch(self._wiring()))
        with self._step("hosts"):
            self.configHosts()
        with self._step("shaping"):
            self._shape(self.links)
        self.built = True

    def start(self) -> None:
        """Build, start what switches are not ours, and make sure that a frame crosses every link."""
        if not self.built:
            self.build()
        for switch in self.switches:
            if not isinstance(switch, Bridge):
                switch.start(self.controllers)
        with self._step("verify"):
            self.verify_links()

    def addLink(self, node1: Any, node2: Any, *args: Any, cls: Any = None, **params: Any) -> Wire:
        """Describe a link; after ``build`` also make it, as Mininet does."""
        if cls not in (None, Link, TCLink, Wire):
            raise InputError(f"link {node1} - {node2}: class {cls.__name__} is not supported")
        wire: Wire = super().addLink(node1, node2, *args, cls=Wire, **params)
        if self.built:
            plugs = [nodes.plug_line(end, end.node) for end in wire.ends if isinstance(end.node, Bridge)]
            nodes.run(nodes.ip_batch([wire.ip_line(next(self._numbers)), *plugs]))
            for node in {end.node for end in wire.ends if isinstance(end.node, ClusterHost)}:
                self._reconfigure(node)
            self._shape([wire])
        return wire

    def configHosts(self) -> None:
        """Configure all hosts at once: first their sysctls, then addresses and routes."""
        ours = [host for host in self.hosts if isinstance(host, ClusterHost)]
        work = {host: nodes.commands(host) for host in ours}
        for step in range(max(map(len, work.values()), default=0)):
            nodes.run_all((host, todo[step]) for host, todo in work.items() if step < len(todo))
        for host in ours:
            nodes.remember_addresses(host)
        for host in self.hosts:
            if host not in work:
                host.configDefault()

    def set_routes(self, routes: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        """Set the routes of some routers: host → destination → gateways.

        For the hosts named, routes set before and not named again are removed. Raises CommandFailed.
        """
        unknown = sorted(set(routes) - set(self.nameToNode))
        if unknown:
            raise InputError(f"no such host in the fabric: {', '.join(unknown)}")
        work = []
        for host, wanted in routes.items():
            gone = [dst for dst in self._routes.get(host, {}) if dst not in wanted]
            lines = [line for dst in gone for line in nodes.no_route_lines(dst)]
            lines += [nodes.route_line(dst, vias) for dst, vias in wanted.items()]
            work.append((self[host], nodes.ip_batch(lines)))
        nodes.run_all(work)
        self._routes |= {host: dict(wanted) for host, wanted in routes.items()}

    def readdress(self, name: str, addresses: Sequence[str]) -> None:
        """Give a host's first interface other addresses, each instead of the one of its family; routes of
        others that lead by the old ones lead by the new. addresses: with prefix length.

        Raises InputError, CommandFailed.
        """
        if name not in self or not isinstance(self[name], ClusterHost):
            raise InputError(f"no such host in the fabric: {name}")
        host = self[name]
        old = tuple(host.params.get("ips") or ())
        moved = {_ip(before): _ip(after) for before, after in nodes.by_family(old, addresses)}
        try:
            self._set_addresses(host, addresses)
        except CommandFailed:
            self._set_addresses(host, old)
            raise
        work = []
        for other in self.hosts:
            routes = other.params.get("routes") or ()
            led = [(dst, nodes.by_other_gateways(vias, moved)) for dst, vias in routes]
            lines = [nodes.route_line(*new) for new, before in zip(led, routes, strict=True) if new != before]
            if lines:
                other.params["routes"] = led
                work.append((other, nodes.ip_batch(lines)))
        nodes.run_all(work)

    def _set_addresses(self, host: Node, addresses: Sequence[str]) -> None:
        """Have a host's first interface have these and no others, whatever somebody made of it."""
        dev = host.intfList()[0].name
        nodes.run(nodes.ip_batch([f"address flush dev {dev} scope global"]), host)
        host.params["ips"] = list(addresses)
        self._reconfigure(host)

    def configLinkStatus(self, src: str, dst: str, status: str) -> None:
        """Bring the links between two nodes up or down (the CLI's ``link``).

        Where one end is a switch's only that one is switched: the other sees its cable pulled, and keeps
        its addresses and routes, as with a real cable.
        """
        unknown = [name for name in (src, dst) if name not in self]
        if unknown:
            raise InputError(f"no such node: {', '.join(unknown)}")
        wires = self.linksBetween(self[src], self[dst])
        if not wires:
            raise InputError(f"{src} and {dst} are not linked")
        for wire in wires:
            self.set_link(wire, up=status == "up")

    def set_link(self, wire: Wire, *, up: bool) -> None:
        """Switch a link on or off; a host that lost routes with its interface gets them back."""
        status = "up" if up else "down"
        switched = [end for end in wire.ends if isinstance(end.node, Bridge)] or list(wire.ends)
        for end in switched:
            nodes.run(nodes.ip_batch([f"link set {end.name} {status}"]), end.node)
        self._cut = self._cut - set(wire.ends) if up else self._cut | set(wire.ends)
        for end in switched:
            if up and isinstance(end.node, ClusterHost):
                self._reconfigure(end.node)

    def change_end(self, host: str, port: str, *, up: bool, mtu: int, shaping: Mapping[str, Any]) -> None:
        """Make one end of a link so; what is "", 0 or empty is as the topology has it.

        Raises InputError, CommandFailed, MissingCapability.
        """
        found = [
            (wire, end)
            for wire in self.links
            for end in wire.ends
            if (end.node.name, end.name) == (host, port)
        ]
        if not found:
            raise InputError(f"{host} has no link {port}")
        wire, end = found[0]
        if up != self._is_up(end):
            self.set_link(wire, up=up)
        self._set_mtu(end, mtu)
        self._reshape(end, shaping)

    def _is_up(self, end: Port) -> bool:
        """Whether this end's link was left switched on: one end of a cable that is out is enough."""
        return end not in self._cut

    def _set_mtu(self, end: Port, mtu: int) -> None:
        """The longest packet that this end takes from its wire, and puts on it; 0: as the topology has it.

        The kernel lets packets that are still to be segmented pass at any length (is_skb_forwardable), which
        no wire would carry: so while any end is short, all hosts cut up what they send (gso_max_segs 1).
        """
        if mtu == self._short.get(end, 0):
            return
        nodes.run(nodes.ip_batch([f"link set {end.name} mtu {mtu or self._true_mtu(end)}"]), end.node)
        cutting = bool(self._short)
        self._short = {port: short for port, short in {**self._short, end: mtu}.items() if short}
        if bool(self._short) != cutting:
            segments = 1 if self._short else GSO_MAX_SEGS
            hosts = [each for wire in self.links for each in wire.ends if each.node.inNamespace]
            nodes.run_all(
                (each.node, nodes.ip_batch([f"link set {each.name} gso_max_segs {segments}"]))
                for each in hosts
            )

    @staticmethod
    def _true_mtu(end: Port) -> int:
        return int(end.params.get("mtu") or DEFAULT_MTU)

    def _reshape(self, end: Port, shaping: Mapping[str, Any]) -> None:
        """Shape what leaves this end as the topology does, but for what is named."""
        if not shaping and end not in self._reshaped:
            return
        if end in self._reshaped or end.shaping.tc_lines(end.name):
            nodes.run(nodes.batch("tc", [f"qdisc del dev {end.name} root"]), end.node)
            self._reshaped.discard(end)
        lines = Shaping.of({**end.params, **shaping}).tc_lines(end.name)
        try:
            nodes.run(nodes.batch("tc", lines), end.node)
        except CommandFailed as error:
            nodes.run(nodes.batch("tc", end.shaping.tc_lines(end.name)), end.node)
            raise netem_error(str(error)) or error from error
        if shaping:
            self._reshaped.add(end)

    def verify_links(self, deadline: float = 5.0) -> None:
        """Send a frame each way over every link. deadline: seconds. Raises NotConverged."""
        verify([(_end(a), _end(b)) for a, b in (wire.ends for wire in self.links)], deadline)

    def stop(self) -> None:
        """Remove everything: switches and their links by name, the hosts and the rest with their shells."""
        existing = {name for _, name in socket.if_nameindex()}
        ours = [switch.name for switch in self.switches]
        for wire in self.links:
            # A pair goes with either of its ends.
            ours += [end.name for end in wire.ends if not end.node.inNamespace][:1]
        nodes.run(nodes.ip_batch(f"link delete {name}" for name in ours if name in existing))
        for node in self.values():
            node.terminate()
        self.built = False

    # --- steps ------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin

    def _check(self) -> None:
        """Refuse what the kernel would refuse, with a better message."""
        long = [switch.name for switch in self.switches if len(switch.name) > MAX_NAME]
        if long:
            raise InputError(
                f"switch names are interface names of at most {MAX_NAME} letters: {', '.join(long)}"
            )
        if any(nodes.role(host) == "node" for host in self.hosts) and not (PROC_SYS / "net/bridge").exists():
            raise MissingCapability([BR_NETFILTER])

    def _quiet_switches(self) -> None:
        """Switches switch: bridged traffic passes no iptables, and they speak no IPv6 themselves."""
        for key, value in nodes.switch_sysctls().items():
            path = PROC_SYS / key
            if path.exists():
                path.write_text(value)

    def _wiring(self) -> list[str]:
        """The ``ip`` lines that make all links and switches."""
        bridges = [switch for switch in self.switches if isinstance(switch, Bridge)]
        return [wire.ip_line(next(self._numbers)) for wire in self.links] + [
            line for bridge in bridges for line in bridge.start_lines()
        ]

    @staticmethod
    def _shape(wires: Iterable[Wire]) -> None:
        """Set rate, delay, jitter and loss at both ends of every link that has any."""
        lines: dict[Node | None, list[str]] = {}
        for wire in wires:
            for end in wire.ends:
                # All switches are in one namespace: one tc process for all of them.
                place = end.node if end.node.inNamespace else None
                if shaping := end.shaping.tc_lines(end.name):
                    lines.setdefault(place, []).extend(shaping)
        try:
            nodes.run_all((node, nodes.batch("tc", many)) for node, many in lines.items())
        except CommandFailed as error:
            raise netem_error(str(error)) or error from error

    def _reconfigure(self, node: Node) -> None:
        """Set a host's addresses and routes again, after its interfaces changed."""
        for command in nodes.commands(node):
            nodes.run(command, node)
        nodes.remember_addresses(node)
        routes = [nodes.route_line(dst, vias) for dst, vias in self._routes.get(node.name, {}).items()]
        nodes.run(nodes.ip_batch(routes), node)


def _ip(address: str) -> str:
    return address.partition("/")[0]


def _end(port: Port) -> End:
    netns = f"/proc/{port.node.pid}/ns/net" if port.node.inNamespace else ""
    return End(port.label, netns, port.name, port.mac)


@contextmanager
def low_file_limit() -> Iterator[None]:
    """Keep this process's soft limit of open files low for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, SHELL_FILE_LIMIT), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
