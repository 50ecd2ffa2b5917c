"""Hosts, routers and switches as Mininet node classes that configure themselves.

They work in two ways: in a ``ClusterNet``, which configures all of them at once, and in plain Mininet
(``mn --custom FILE --topo NAME``), which calls ``config`` on each. What has to be done is the same list
of commands, made by ``commands`` from the node's parameters; only who runs them differs.

Parameters of a host or router (``Topo.addHost``):

- ``ips``: addresses with prefix length of the first interface, ``["192.168.100.11/24", "fd00::b/64"]``;
- ``routes``: ``[("default", "192.168.100.1"), ("10.0.0.0/8", ["10.0.1.2", "10.0.2.2"])]``, several
  gateways make a multipath route;
- ``role``: ``node``, ``control-plane``, ``gateway``, ``external`` or ``router`` (see topology.plan).

Parameters of one end of a link (``Topo.addLink(a, b, params1=…, params2=…)``): ``ips``, ``mtu``.
"""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from mininet.link import Intf
from mininet.node import Host, Node, Switch
from mininet.nodelib import LinuxBridge

from testbed.errors import CommandFailed, InputError, NotConverged

PROMPT = chr(127)
"""What Mininet's node shells print when they wait for a command."""

SHELL_DEADLINE = 10.0
"""Seconds a node's shell may take to start; it takes about 0.02."""

Routes = Sequence[tuple[str, str | Sequence[str]]]


@dataclass(frozen=True)
class Command:
    """A program to run in a node's namespaces, with its standard input."""

    argv: tuple[str, ...]
    stdin: str = ""


# --- what has to be done: pure ------------------------------------------------------------------------


def batch(tool: str, lines: Iterable[str]) -> Command:
    """One ``ip`` or ``tc`` process that carries out all lines and stops at the first that fails."""
    return Command((tool, "-batch", "-"), "".join(f"{line}\n" for line in lines))


def ip_batch(lines: Iterable[str]) -> Command:
    """See ``batch``."""
    return batch("ip", lines)


def address_line(address: str, dev: str) -> str:
    """The ``ip`` line that sets an address. IPv6: usable at once, as nobody else can have it."""
    interface = ip_interface(address)
    if interface.version == 6:
        return f"address replace {interface} dev {dev} nodad"
    broadcast = " broadcast +" if interface.network.prefixlen < 31 else ""
    return f"address replace {interface}{broadcast} dev {dev}"


def route_line(dst: str, vias: str | Sequence[str]) -> str:
    """The ``ip`` line of a route. dst: CIDR or ``default``; several vias: equal-cost multipath."""
    gateways = [vias] if isinstance(vias, str) else list(vias)
    if dst == "default":
        dst = "::/0" if ":" in gateways[0] else "0.0.0.0/0"
    where = f"via {gateways[0]}" if len(gateways) == 1 else " ".join(f"nexthop via {via}" for via in gateways)
    return f"route replace {ip_network(dst)} {where}"


def no_route_lines(dst: str) -> list[str]:
    """The ``ip`` lines after which there is no route to ``dst`` (CIDR), whether there was one or not.

    A route that has gone by itself, with an interface say, could not be deleted.
    """
    return [f"route replace unreachable {ip_network(dst)}", f"route delete {ip_network(dst)}"]


def by_family(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str]]:
    """The addresses of two lists, paired by family. Raises InputError where these differ."""
    first, second = (sorted(many, key=lambda address: ip_interface(address).version) for many in (one, other))
    if [ip_interface(each).version for each in first] != [ip_interface(each).version for each in second]:
        raise InputError(f"{', '.join(other)}: must be of the families of {', '.join(one)}, one of each")
    return list(zip(first, second, strict=True))


def by_other_gateways(vias: str | Sequence[str], moved: Mapping[str, str]) -> str | list[str]:
    """A route's gateways where some have other addresses now. moved: old → new."""
    return moved.get(vias, vias) if isinstance(vias, str) else [moved.get(via, via) for via in vias]


def interface_sysctls(dev: str) -> dict[str, str]:
    """No duplicate address detection, no router advertisements: addresses are those of the plan."""
    base = f"net/ipv6/conf/{dev}"
    return {f"{base}/accept_dad": "0", f"{base}/accept_ra": "0", f"{base}/autoconf": "0"}


def plug_line(port: Intf, bridge: Node) -> str:
    """The ``ip`` line that makes an interface an active port of a bridge."""
    return f"link set {port.name} master {bridge.name} up"


def node_sysctls(ipv6: bool) -> dict[str, str]:
    """What kubelet and the container runtime need on a node: forwarding, bridged traffic in iptables.

    Source: kubernetes.io, setup/production-environment/container-runtimes, "Network configuration".
    """
    wanted = {
        "net/ipv4/ip_forward": "1",
        "net/bridge/bridge-nf-call-iptables": "1",
        "net/bridge/bridge-nf-call-ip6tables": "1",
    }
    return wanted | ({"net/ipv6/conf/all/forwarding": "1"} if ipv6 else {})


HASH_SEED = "net/ipv4/fib_multipath_hash_seed"
"""Of both families."""

HASH_FIELDS = 0x37
"""Both addresses, the protocol and both ports (``ip-sysctl.rst``, fib_multipath_hash_fields)."""


def router_sysctls(ipv6: bool, seed: int = 0) -> dict[str, str]:
    """Forwarding; equal-cost paths chosen by the 5-tuple, as switches in data centres do.

    seed: of the hash, each router's own, or routers in a row make the same choice and some paths stay empty;
    0 where the kernel knows none (before Linux 6.11). Not policy 1 then: it takes the hash that a packet
    carries from the socket it comes from, which is the same in every router of one machine.
    """
    wanted = {"net/ipv4/ip_forward": "1"}
    families = ["ipv4"]
    if ipv6:
        wanted["net/ipv6/conf/all/forwarding"] = "1"
        families.append("ipv6")
    for family in families:
        base = f"net/{family}/fib_multipath_hash"
        if seed:
            wanted |= {f"{base}_policy": "3", f"{base}_fields": str(HASH_FIELDS)}
        else:
            wanted[f"{base}_policy"] = "1"
    return wanted | ({HASH_SEED: str(seed)} if seed else {})


def switch_sysctls() -> dict[str, str]:
    """For the namespace of the switches, before any is made: they pass frames and nothing else."""
    tables = ("arptables", "iptables", "ip6tables")
    return {f"net/bridge/bridge-nf-call-{table}": "0" for table in tables} | {
        "net/ipv6/conf/default/disable_ipv6": "1"
    }


def default_dpid(name: str) -> str:
    """A datapath id for a switch whose name has no number in it; bridges have no use for it."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


# --- running it ---------------------------------------------------------------------------------------


def start(command: Command, node: Node | None = None) -> subprocess.Popen[str]:
    """Start a command in the node's namespaces (None: in ours); ``finish`` waits for it."""
    with os.fdopen(os.memfd_create("stdin", os.MFD_CLOEXEC), "w+") as stdin:
        stdin.write(command.stdin)
        stdin.seek(0)
        inside = () if node is None else ("mnexec", "-da", str(node.pid))
        return subprocess.Popen(
            [*inside, *command.argv],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str], command: Command, node: Node | None = None) -> None:
    """Wait for a started command. Raises CommandFailed, with the line of its input that was refused."""
    _, stderr = process.communicate()
    if process.returncode:
        raise CommandFailed(
            command.argv, process.returncode, explain(stderr, command.stdin), node.name if node else ""
        )


def explain(stderr: str, stdin: str) -> str:
    """What a batch tool said, with the input line in place of its number ("Command failed -:3")."""
    lines = stdin.splitlines()

    def line(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"in line: {lines[number - 1]}" if 0 < number <= len(lines) else match[0]

    return re.sub(r"Command failed -:(\d+)", line, stderr)


def run(command: Command, node: Node | None = None) -> None:
    """Run a command to its end. Raises CommandFailed."""
    finish(start(command, node), command, node)


def run_all(work: Iterable[tuple[Node | None, Command]]) -> None:
    """Run one command on each of many nodes (None: here), all at the same time. Raises CommandFailed."""
    started = [(start(command, node), command, node) for node, command in work]
    for process, command, node in started:
        finish(process, command, node)


# --- the node classes ---------------------------------------------------------------------------------


class QuickShell(Node):  # type: ignore[misc]
    """A node whose shell is started without waiting for it.

    Mininet waits for each shell in turn (15 to 30 ms each). Here the shells of all nodes start side by
    side, and the first who needs one (asks for ``pid`` or sends a command) waits for its prompt.
    """

    _pid: int | None = None
    _starting = False

    @property
    def pid(self) -> int | None:
        """The process that holds the node's namespaces; they exist when this returns."""
        if self._starting:
            self._await_prompt()
        return self._pid

    @pid.setter
    def pid(self, value: int | None) -> None:
        self._pid = value

    def startShell(self, mnopts: str | None = None) -> None:
        """Start the node's shell on a terminal of its own; see Mininet's Node.startShell."""
        options = ("-d" if mnopts is None else mnopts) + ("n" if self.inNamespace else "")
        self.master, self.slave = pty.openpty()
        _echo_off(self.slave)
        # Python closes the other descriptors; mnexec -c would try each up to the limit.
        self.shell = subprocess.Popen(
            [
                *("mnexec", options, "env", f"PS1={PROMPT}"),
                *("bash", "--norc", "--noediting", "-is", f"mininet:{self.name}"),
            ],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )
        self.stdin = self.stdout = os.fdopen(self.master)
        self.pid = self.shell.pid
        self.pollOut = select.poll()
        self.pollOut.register(self.stdout, select.POLLIN)
        self.outToNode[self.master] = self.inToNode[self.master] = self
        self.readbuf = ""
        self._starting = True
        self.write("unset HISTFILE; set +m\n")

    def _await_prompt(self) -> None:
        """Wait until the shell has taken its first line: one prompt before it, one after."""
        begin = time.monotonic()
        seen = ""
        while seen.count(PROMPT) < 2:
            waited = time.monotonic() - begin
            if self.shell.poll() is not None or waited > SHELL_DEADLINE:
                raise NotConverged(f"shell of {self.name} starts", waited, seen.replace(PROMPT, "").strip())
            if self.pollOut.poll(100):
                seen += self.read(1024)
        self._starting = False
        self.waiting = False

    def sendCmd(self, *args: Any, **kwargs: Any) -> Any:
        """Send a command to the shell, once it has started."""
        if self._starting:
            self._await_prompt()
        return super().sendCmd(*args, **kwargs)

    def terminate(self) -> None:
        """End the shell and, with it, the node's namespaces."""
        if self.shell and self.shell.poll() is None:
            os.kill(self.shell.pid, signal.SIGKILL)
        self.cleanup()


class ClusterHost(QuickShell, Host):  # type: ignore[misc]
    """A cluster node, the control plane's host or a host outside the cluster."""

    def config(self, **params: Any) -> dict[str, Any]:
        """Configure the host (plain Mininet calls this): addresses, sysctls, routes."""
        for command in commands(self):
            run(command, self)
        remember_addresses(self)
        return {}


class Router(ClusterHost):
    """A Linux router: forwards both families; addresses are given per link, routes to the router."""


class Bridge(QuickShell, LinuxBridge):  # type: ignore[misc]
    """A switch: a Linux bridge without spanning tree, so that a port forwards at once."""

    def __init__(self, name: str, **params: Any) -> None:
        # Not Switch.__init__: it needs a number in the name and runs ifconfig in the shell.
        Node.__init__(self, name, **params)
        self.stp, self.prio = False, 0
        self.dpid, self.opts, self.listenPort = default_dpid(name), "", None
        self.controlIntf = Loopback("lo", self, port=0)

    def start_lines(self) -> list[str]:
        """The ``ip`` lines that make the bridge and plug its ports in."""
        return [
            f"link add {self.name} type bridge stp_state 0",
            *(plug_line(port, self) for port in self.intfList() if port is not self.controlIntf),
            f"link set {self.name} up",
        ]

    def start(self, _controllers: object) -> None:
        """Make the bridge (plain Mininet, and the command line's ``switch``)."""
        run(ip_batch(self.start_lines()), self)

    def stop(self, deleteIntfs: bool = True) -> None:
        """Remove the bridge and, if asked, the ends of its links."""
        run(ip_batch([f"link delete {self.name}"]), self)
        Switch.stop(self, deleteIntfs)


class Loopback(Intf):  # type: ignore[misc]
    """The ``lo`` of the switches' namespace, which is not ours to configure."""

    def config(self, **params: Any) -> dict[str, Any]:
        """Do nothing."""
        return {}


def role(node: Node) -> str:
    """What the node is in the cluster, as ``topology.plan.Role``; "router" or "external" by its class."""
    return str(node.params.get("role") or ("router" if isinstance(node, Router) else "external"))


def addresses(node: Node) -> dict[str, tuple[str, ...]]:
    """Interface name → its addresses with prefix length, in the order of ports.

    A host for which nobody gave ``ips`` gets the one address Mininet gave it (``ip``).
    """
    interfaces = node.intfList()
    found = {intf.name: tuple(intf.params.get("ips") or ()) for intf in interfaces}
    if interfaces:
        first = interfaces[0].name
        found[first] = tuple(node.params.get("ips") or ()) + found[first]
        if not any(found.values()) and not isinstance(node, Router) and node.params.get("ip"):
            found[first] = (node.params["ip"],)
    return found


def commands(node: Node) -> tuple[Command, ...]:
    """Everything that configures a host or router whose interfaces exist, in order."""
    given = addresses(node)
    has_ipv6 = any(":" in address for many in given.values() for address in many)
    sysctls: dict[str, str] = {}
    if Path("/proc/sys/net/ipv6").exists():
        for name in given:
            sysctls |= interface_sysctls(name)
    if isinstance(node, Router) or role(node) in ("router", "gateway"):
        seeded = Path("/proc/sys", HASH_SEED).exists()
        sysctls |= router_sysctls(has_ipv6, zlib.crc32(node.name.encode()) if seeded else 0)
    elif role(node) == "node":
        sysctls |= node_sysctls(has_ipv6)

    lines = ["link set lo up"]
    for intf in node.intfList():
        lines += [address_line(address, intf.name) for address in given[intf.name]]
        mtu = intf.params.get("mtu")
        lines.append(f"link set {intf.name} up" + (f" mtu {mtu}" if mtu else ""))
    lines += [route_line(dst, vias) for dst, vias in node.params.get("routes") or ()]
    if node.params.get("defaultRoute"):
        lines.append(f"route replace default {node.params['defaultRoute']}")
    write_sysctls = [Command(("sysctl", "-q", "-w", *(f"{key}={value}" for key, value in sysctls.items())))]
    return (*(write_sysctls if sysctls else ()), ip_batch(lines))


def remember_addresses(node: Node) -> None:
    """Tell Mininet's interface objects their address, IPv4 before IPv6, for ``IP()`` and ``dump``."""
    for intf in node.intfList():
        for address in sorted(addresses(node)[intf.name], key=lambda text: ":" in text)[:1]:
            ip, _, prefix = address.partition("/")
            intf.ip, intf.prefixLen = ip, int(prefix)


def _echo_off(terminal: int) -> None:
    attributes = termios.tcgetattr(terminal)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
