"""Links: how a wire between two nodes is named, made and shaped.

Mininet's Link and Intf objects describe the wires; the kernel's veth pairs are made all at once from the
``ip`` lines given here, each end directly in its own namespace. A host's end is ``eth0``, ``eth1`` … (its
port number), a switch's end ``s1-eth3``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

from mininet.link import Intf, Link
from mininet.node import Node, Switch

from testbed.errors import InputError, Lack, MissingCapability

MAX_NAME = 15
"""Longest interface name (IFNAMSIZ - 1)."""

FIRST_INDEX = 1000
"""Interface indices from here on are chosen by us, far above those that the kernel counts up."""

HTB_BURST = 15_000
"""Bytes that may leave at once, as Mininet's TCIntf has it; more where 1 ms at the rate is more."""

NETEM_QUEUE = 1000
"""Packets that queue at a link with delay, beside those under way: netem's own default for both together."""
UNLIMITED = 10_000
"""Mbit/s that are reckoned with where a link has no bandwidth of its own."""
FULL_FRAME = 1500
"""Bytes."""

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
ICMP6 = 58

NETEM = Lack("netem", "a link has delay, loss or the like", "load the kernel module sch_netem")


def switch_port(switch: str, port: int) -> str:
    """The name of a switch's end of a link: ``s1-eth3``, with the switch's name hashed where too long."""
    suffix = f"-eth{port}"
    if len(switch + suffix) <= MAX_NAME:
        return switch + suffix
    digest = hashlib.sha256(switch.encode()).hexdigest()[:4]
    return switch[: MAX_NAME - len(suffix) - len(digest)] + digest + suffix


def mac_address(node: str, port: int) -> str:
    """A unicast, locally administered MAC, the same each time for the same port of the same node."""
    digest = hashlib.sha256(f"{node}/{port}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


@dataclass(frozen=True)
class Shaping:
    """What slows a link down or harms its packets, in Mininet's units where Mininet has it.

    bw: Mbit/s; delay, jitter: text with a unit (``10ms``); distribution: of the jitter; loss, duplicate,
    corrupt, reorder: percent; burst_loss: percent p, r, 1-h, 1-k of tc-netem(8)'s gemodel; max_queue_size:
    packets; flows: other values for the packets that match, the first match counts.
    """

    bw: float | None = None
    delay: str | None = None
    jitter: str | None = None
    loss: float | None = None
    max_queue_size: int | None = None
    distribution: str | None = None
    burst_loss: tuple[float, float, float, float] | None = None
    duplicate: float | None = None
    corrupt: float | None = None
    reorder: float | None = None
    flows: tuple[FlowShaping, ...] = ()

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Shaping:
        """The shaping among the parameters of an interface; zero delay, jitter and shares are none."""
        kept = ("bw", "max_queue_size", "distribution")
        shares = ("loss", "duplicate", "corrupt", "reorder", "burst_loss")
        return cls(
            delay=_duration(params.get("delay")),
            jitter=_duration(params.get("jitter")),
            flows=tuple(FlowShaping(flow["match"], cls.of(flow)) for flow in params.get("flows") or ()),
            **{key: params.get(key) for key in kept},
            **{key: params.get(key) or None for key in shares},
        )

    @property
    def needs_netem(self) -> bool:
        """Whether the kernel needs netem for it."""
        harms = (self.delay, self.jitter, self.loss, self.burst_loss, self.duplicate, self.corrupt)
        return any((*harms, self.reorder, self.flows))

    def tc_lines(self, dev: str) -> list[str]:
        """The ``tc`` lines for what leaves ``dev``: rate by htb, flows by prio, the rest by netem."""
        lines, parent = [], "root"
        if self.bw is not None:
            burst = max(HTB_BURST, int(self.bw * 1e6 / 8 / 1000))
            lines.append(f"qdisc add dev {dev} root handle 5: htb default 1")
            lines.append(
                f"class add dev {dev} parent 5: classid 5:1 htb rate {round(self.bw * 1e6)}bit burst {burst}b"
            )
            parent = "parent 5:1"
        if self.flows:
            # A band per class and the last for the rest, whatever the packets' priority.
            last = len(self.flows)
            priomap = " ".join([str(last)] * 16)
            lines.append(f"qdisc add dev {dev} {parent} handle 6: prio bands {last + 1} priomap {priomap}")
            for band, flow in enumerate(self.flows, 1):
                place = f"parent 6:{band:x}", f"{0x10 + band:x}:"
                lines.append(flow.shaping.netem_line(dev, *place, rate=True))
                lines += flow.filter_lines(dev, band)
            parent = f"parent 6:{last + 1:x}"
        if replace(self, flows=()).needs_netem:
            lines.append(self.netem_line(dev, parent, "10:"))
        elif self.max_queue_size is not None:
            lines.append(f"qdisc add dev {dev} {parent} handle 10: pfifo limit {self.max_queue_size}")
        return lines

    def netem_line(self, dev: str, parent: str, handle: str, *, rate: bool = False) -> str:
        """The netem; rate: with the bandwidth, where no htb above it has that."""
        words = [f"qdisc add dev {dev} {parent} handle {handle} netem"]
        if self.delay or self.jitter:  # tc takes jitter only after a delay
            words += ["delay", self.delay or "0ms", *filter(None, [self.jitter])]
            if self.jitter and self.distribution not in (None, "uniform"):  # which is what netem does itself
                words += ["distribution", str(self.distribution)]
        if self.loss:
            words.append(f"loss {self.loss:.5f}%")
        if self.burst_loss:
            words.append("loss gemodel " + " ".join(f"{share:.5f}%" for share in self.burst_loss))
        words += [
            f"{word} {share:.5f}%"
            for word, share in (
                ("duplicate", self.duplicate),
                ("corrupt", self.corrupt),
                ("reorder", self.reorder),
            )
            if share
        ]
        if rate and self.bw is not None:
            words.append(f"rate {round(self.bw * 1e6)}bit")
        if limit := self._limit():
            words.append(f"limit {limit}")
        return " ".join(words)

    def _limit(self) -> int | None:
        """Packets netem may hold: those under way, which its own limit of 1,000 would drop, and a queue."""
        if self.max_queue_size is not None or not self.delay:
            return self.max_queue_size
        longest = seconds(self.delay) + 4 * seconds(self.jitter or "0s")
        rate = (self.bw or UNLIMITED) * 1e6
        return NETEM_QUEUE + int(longest * rate / 8 / FULL_FRAME)


@dataclass(frozen=True)
class FlowShaping:
    """What happens to some packets.

    match: any of protocol, source and destination (ranges), port, source_port, dscp.
    """

    match: Mapping[str, Any]
    shaping: Shaping

    def filter_lines(self, dev: str, band: int) -> list[str]:
        """The filters that lead into the band: one per family that the match may mean."""
        ranges = [ip_network(self.match[key]) for key in ("source", "destination") if key in self.match]
        return [
            f"filter add dev {dev} parent 6: protocol {'ip' if version == 4 else 'ipv6'} "
            f"prio {2 * band + (version == 6)} u32 {' '.join(self._matches(version))} flowid 6:{band:x}"
            for version in (4, 6)
            if all(each.version == version for each in ranges)
        ]

    def _matches(self, version: int) -> list[str]:
        family = "ip" if version == 4 else "ip6"
        words = []
        if protocol := self.match.get("protocol"):
            number = PROTOCOLS[protocol] if (protocol, version) != ("icmp", 6) else ICMP6
            words.append(f"match {family} protocol {number} 0xff")
        for key, word in (("source", "src"), ("destination", "dst")):
            if key in self.match:
                words.append(f"match {family} {word} {self.match[key]}")
        for key, word in (("source_port", "sport"), ("port", "dport")):
            if key in self.match:
                words.append(f"match {family} {word} {self.match[key]} 0xffff")
        if "dscp" in self.match:
            field = "dsfield" if version == 4 else "priority"
            words.append(f"match {family} {field} {self.match['dscp'] << 2:#x} 0xfc")
        return words


def seconds(text: str) -> float:
    """A time as tc takes it (``10ms``; a bare number is in µs, as tc has it) in seconds."""
    found = re.fullmatch(r"([0-9.]+)(us|usecs?|ms|msecs?|s|secs?)?", text)
    if not found:
        raise InputError(f"{text!r} is no time that tc takes, such as 10ms")
    return float(found[1]) * {"m": 1e-3, "s": 1.0}.get((found[2] or "u")[0], 1e-6)


def _duration(value: object) -> str | None:
    """``10ms`` as it is; nothing for None and for zero of any unit."""
    text = "" if value is None else str(value)
    return text if text.strip("0.msun ") else None


def netem_error(stderr: str) -> MissingCapability | None:
    """The error for a ``tc`` that failed because this kernel has no netem."""
    return MissingCapability([NETEM]) if "qdisc kind is unknown" in stderr else None


class Port(Intf):  # type: ignore[misc]
    """One end of a wire. Making it does nothing: the fabric configures all devices at once."""

    def config(self, **params: Any) -> dict[str, Any]:
        """Do nothing."""
        return {}

    @property
    def shaping(self) -> Shaping:
        """How what leaves this end is shaped."""
        return Shaping.of(self.params)

    @property
    def label(self) -> str:
        """The name with its node's, unique in the network: ``node-1-eth0``."""
        return str(self.name) if isinstance(self.node, Switch) else f"{self.node.name}-{self.name}"

    def status(self) -> str:
        """``OK``, ``DOWN`` (switched off, or nothing at the other end) or ``MISSING``."""
        out, _, code = self.node.pexec("ip", "-json", "link", "show", "dev", self.name)
        if code:
            return "MISSING"
        return "OK" if {"UP", "LOWER_UP"} <= set(json.loads(out)[0]["flags"]) else "DOWN"

    def updateIP(self) -> str | None:
        """The address the CLI puts in place of the node's name; IPv6 where there is no IPv4."""
        ip: str | None = super().updateIP()
        if ip is None:
            out, _, _ = self.node.pexec(
                "ip", "-json", "-6", "address", "show", "dev", self.name, "scope", "global"
            )
            found = [entry["local"] for dev in json.loads(out or "[]") for entry in dev.get("addr_info", ())]
            self.ip = ip = found[0] if found else None
        return ip


class Wire(Link):  # type: ignore[misc]
    """A veth pair between two nodes, made by the fabric from ``ip_line``."""

    def __init__(self, node1: Node, node2: Node, **params: Any) -> None:
        for ours in ("intf", "cls1", "cls2", "intfName1", "intfName2", "addr1", "addr2"):
            params.pop(ours, None)
        port1, port2 = (
            node.newPort() if params.get(key) is None else params[key]
            for node, key in ((node1, "port1"), (node2, "port2"))
        )
        params |= {"port1": port1, "port2": port2}
        macs = {"addr1": mac_address(node1.name, port1), "addr2": mac_address(node2.name, port2)}
        Link.__init__(self, node1, node2, intf=Port, **macs, **params)

    def intfName(self, node: Node, n: int) -> str:
        """The name of the end at ``node``'s port ``n``."""
        return switch_port(node.name, n) if isinstance(node, Switch) else f"eth{n}"

    @classmethod
    def makeIntfPair(cls, *args: object, **kwargs: object) -> None:
        """Do nothing: see ``ip_line``."""

    @property
    def ends(self) -> tuple[Port, Port]:
        """Both ends."""
        return self.intf1, self.intf2

    def ip_line(self, number: int) -> str:
        """The ``ip`` line, for the switches' namespace, that makes the pair with each end in its place.

        number: a different one for each link of the network.
        """
        # Two ends with one index look to the kernel like no pair, and it notes their carrier up to a second
        # late (link_watch.c, linkwatch_urgent_event). IPv6 does not work until then.
        # A host's end towards a switch keeps the kernel's small number, as on a real machine; the other end
        # is named first, as veth takes a peer's index only beside that of its pair.
        between_hosts = all(end.node.inNamespace for end in self.ends)
        first, second = (
            f"name {end.name} address {end.mac}"
            + (
                f" index {FIRST_INDEX + 2 * number + side}"
                if between_hosts or not end.node.inNamespace
                else ""
            )
            + (f" mtu {end.params['mtu']}" if end.params.get("mtu") else "")
            + (f" netns {end.node.pid}" if end.node.inNamespace else "")
            for side, end in enumerate(sorted(self.ends, key=lambda end: bool(end.node.inNamespace)))
        )
        return f"link add {first} type veth peer {second}"

    def __str__(self) -> str:
        return f"{self.intf1.label}<->{self.intf2.label}"
