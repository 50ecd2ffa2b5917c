"""Walks a packet through iptables rules: where does it come out, by which rule, with what chance?

It knows the forms of rules that are written here, as iptables-save prints them, and refuses every other one.
The hooks are passed in the kernel's order (``linux/netfilter_ipv4.h``, ``NF_IP_PRI_*``); the connection is
new, and what iptables itself remembers of others (``recent``) is empty.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from testbed.rules.flows import Flow, Host, Verdict, Verdicts, endpoint, together
from testbed.rules.iptables import ChainKey
from testbed.state import Chain, Family

Sets = Mapping[str, frozenset[str]]
"""ipset name → its entries as ``ipset save`` prints them: addresses, ranges, or ``address,protocol:port``."""


class UnknownRule(ValueError):
    """A rule has a form that the walker does not know."""


def walk(chains: Mapping[ChainKey, Chain], flow: Flow, host: Host, sets: Sets | None = None) -> Verdicts:
    """What becomes of a flow's first packet on a node with these chains. Raises UnknownRule."""
    family: Family = "ipv6" if ":" in flow.destination else "ipv4"
    return together(_Walk(chains, family, host, sets or {}).through(flow))


# --- rules as data ------------------------------------------------------------------------------------


class Match(NamedTuple):
    """One condition of a rule: what it looks at, whether it is turned round, and its value."""

    what: str
    negated: bool
    value: str


class Rule(NamedTuple):
    """A rule as it is walked. target: "" where it has none; goto: it is not returned from to this chain.

    argument: the target's own value.
    """

    matches: tuple[Match, ...]
    target: str
    goto: bool
    argument: str
    text: str


VALUED = {
    "-s", "-d", "-p", "-i", "-o", "--ctstate", "--mark", "--src-type", "--dst-type", "--probability",
    "--dport", "--sport", "--dports", "--match-set", "--icmpv6-type", "--state",
    "--physdev-in", "--physdev-out",
}  # fmt: skip
"""Options that are conditions with one value (``--match-set`` takes two)."""

BARE = {"--rcheck", "--set", "--physdev-is-bridged", "--invert"}
"""Options that are conditions without a value."""

SILENT = {
    "--comment": 1, "--mode": 1, "--name": 1, "--mask": 1, "--seconds": 1, "--rsource": 0, "--reap": 0,
    "--limit": 1, "--limit-burst": 1, "--validmark": 0, "--limit-iface-out": 0,
}  # fmt: skip
"""Options that decide nothing about a first packet, and how many values they have."""

MODULES = frozenset(
    {
        *("comment", "conntrack", "mark", "connmark", "addrtype", "statistic", "recent", "set", "multiport"),
        *("physdev", "limit", "state", "tcp", "udp", "sctp", "icmp", "icmp6", "rpfilter"),
    }
)

TARGETS = {
    "ACCEPT": {},
    "DROP": {},
    "RETURN": {},
    "REJECT": {"--reject-with": 1},
    "DNAT": {"--to-destination": 1},
    "MASQUERADE": {"--random-fully": 0},
    "MARK": {"--set-xmark": 1},
    "NFLOG": {"--nflog-group": 1},
    "CT": {"--notrack": 0},
}
"""Targets, and the options each has, with how many values."""


@lru_cache(100_000)
def parse(text: str) -> Rule:
    """A rule as data. Raises UnknownRule."""
    words = iter(shlex.split(text))
    matches: list[Match] = []
    module = target = argument = ""
    negated = goto = False
    for word in words:
        if word == "!":
            negated = True
            continue
        if word == "-m":
            module = next(words)
            if module not in MODULES:
                raise UnknownRule(f"match {module}: {text}")
        elif word in VALUED:
            value = next(words)
            what = "--connmark" if (module, word) == ("connmark", "--mark") else word
            matches.append(Match(what, negated, f"{value} {next(words)}" if what == "--match-set" else value))
        elif word in BARE:
            matches.append(Match(word, negated, ""))
        elif word in SILENT:
            for _ in range(SILENT[word]):
                next(words)
        elif word in ("-j", "-g"):
            target, goto = next(words), word == "-g"
        elif target in TARGETS and word in TARGETS[target]:
            argument = next(words) if TARGETS[target][word] else argument
        else:
            raise UnknownRule(f"{word}: {text}")
        negated = False
    return Rule(tuple(matches), target, goto, argument, text)


@lru_cache(100_000)
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


@lru_cache(100_000)
def _within(address: str, network: str) -> bool:
    return ip_address(address) in _network(network)


# --- the walk -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packet:
    """The packet on its way. rule: the last one that decided something about it."""

    source: str
    destination: str
    protocol: str
    port: int
    source_port: int
    came_in: str
    goes_out: str = ""
    mark: int = 0
    translated: bool = False
    masqueraded: bool = False
    rule: str = ""


class _Way(NamedTuple):
    """One way a packet may go through a chain. end: how it ended, "" where it ran off the chain's end."""

    chance: float
    packet: _Packet
    end: str = ""


@dataclass(frozen=True)
class _Walk:
    chains: Mapping[ChainKey, Chain]
    family: Family
    host: Host
    sets: Sets

    def through(self, flow: Flow) -> Iterator[tuple[Verdict, float]]:
        """Every verdict, with its chance."""
        packet = _Packet(
            flow.source, flow.destination, flow.protocol, flow.port, flow.source_port, came_in=flow.device
        )
        ways = [_Way(1.0, packet if flow.device else replace(packet, goes_out=self._device_to(packet)))]
        for hook in ("PREROUTING",) if flow.device else ("OUTPUT",):
            ways = self._hook(hook, ways)
        ways = [each if each.end else self._routed(each, flow) for each in ways]
        if flow.device:
            stays = [each for each in ways if not each.end and self._stays(each.packet)]
            leaves = [each for each in ways if each.end or not self._stays(each.packet)]
            ways = self._hook("INPUT", stays) + self._hook("POSTROUTING", self._hook("FORWARD", leaves))
        else:
            ways = self._hook("POSTROUTING", ways)
            stays = [each for each in ways if not each.end and self._stays(each.packet)]
            leaves = [each for each in ways if each.end or not self._stays(each.packet)]
            ways = leaves + self._hook("INPUT", stays)
        for chance, last, end in ways:
            yield self._verdict(last, end), chance

    def _device_to(self, packet: _Packet) -> str:
        return self.host.device_to(packet.destination)

    def _stays(self, packet: _Packet) -> bool:
        return self.host.is_local(packet.destination)

    def _routed(self, way: _Way, flow: Flow) -> _Way:
        out = "" if flow.device and self._stays(way.packet) else self._device_to(way.packet)
        return way._replace(packet=replace(way.packet, goes_out=out))

    @staticmethod
    def _verdict(packet: _Packet, end: str) -> Verdict:
        if end == "REJECT":
            return Verdict("reject", rule=packet.rule)
        if end == "DROP":
            return Verdict("drop", rule=packet.rule)
        to = endpoint(packet.destination, packet.port)
        return Verdict("pass", to, packet.masqueraded, packet.rule)

    def _hook(self, hook: str, ways: Iterable[_Way]) -> list[_Way]:
        """All tables of a hook, in their order; the nat table sees a packet until it is translated there."""
        for table in ("raw", "mangle", "nat", "filter"):
            passed: list[_Way] = []
            for way in ways:
                if way.end:
                    passed.append(way)
                    continue
                for each in self._chain(table, hook, way):
                    # What a table accepts goes on to the next one; INPUT's policy and such are ACCEPT.
                    passed.append(each if each.end in ("DROP", "REJECT") else each._replace(end=""))
            ways = passed
        return list(ways)

    def _chain(self, table: str, name: str, start: _Way) -> Iterator[_Way]:
        chain = self.chains.get((self.family, table, name))
        ways = [start]
        for text in chain.rules if chain else ():
            rule = parse(text)
            onward: list[_Way] = []
            for way in ways:
                hit = self._chance(rule, way.packet)
                if hit < 1.0:
                    onward.append(way._replace(chance=way.chance * (1.0 - hit)))
                if hit > 0.0:
                    for each in self._act(table, name, rule, way._replace(chance=way.chance * hit)):
                        if each.end:
                            yield each._replace(end="") if each.end == "RETURN" else each
                        else:
                            onward.append(each)
            ways = onward
            if not ways:
                return
        yield from ways

    def _act(self, table: str, name: str, rule: Rule, way: _Way) -> Iterator[_Way]:
        packet, text = way.packet, f"{table} {name}: {rule.text}"
        match rule.target:
            case "" | "NFLOG" | "CT":
                yield way
            case "RETURN":
                yield way._replace(end="RETURN")
            case "ACCEPT" | "DROP" | "REJECT" as end:
                yield way._replace(packet=replace(packet, rule=text), end=end)
            case "MARK":
                value, _, mask = rule.argument.partition("/")
                mark = packet.mark & ~int(mask, 0) ^ int(value, 0)
                yield way._replace(packet=replace(packet, mark=mark))
            case "DNAT":
                address, _, port = rule.argument.rpartition(":")
                translated = replace(
                    packet, destination=address.strip("[]"), port=int(port), translated=True, rule=text
                )
                yield way._replace(packet=translated, end="ACCEPT")
            case "MASQUERADE":
                yield way._replace(packet=replace(packet, masqueraded=True), end="ACCEPT")
            case _:
                if (self.family, table, rule.target) not in self.chains:
                    raise UnknownRule(f"no chain {rule.target}: {text}")
                for each in self._chain(table, rule.target, way):
                    yield each if each.end or not rule.goto else each._replace(end="RETURN")

    # --- conditions

    def _chance(self, rule: Rule, packet: _Packet) -> float:
        """With what chance the rule applies to the packet."""
        chance = 1.0
        for match in rule.matches:
            if match.what == "--probability":
                chance *= float(match.value)
            elif self._holds(match, packet) == match.negated:
                return 0.0
        return chance

    def _holds(self, match: Match, packet: _Packet) -> bool:
        value = match.value
        match match.what:
            case "-s":
                return _within(packet.source, value)
            case "-d":
                return _within(packet.destination, value)
            case "-p":
                return packet.protocol == value
            case "-i":
                return _is_device(packet.came_in, value)
            case "-o":
                return _is_device(packet.goes_out, value)
            case "--ctstate" | "--state":
                return bool(({"NEW", "DNAT"} if packet.translated else {"NEW"}) & set(value.split(",")))
            case "--mark" | "--connmark":  # the connection is new and has none
                wanted, _, mask = value.partition("/")
                mark = packet.mark if match.what == "--mark" else 0
                return mark & int(mask or "0xffffffff", 0) == int(wanted, 0)
            case "--src-type" | "--dst-type":
                if value != "LOCAL":
                    raise UnknownRule(f"address type {value}")
                return self.host.is_local(packet.source if match.what == "--src-type" else packet.destination)
            case "--dport":
                return _is_port(packet.port, value)
            case "--sport":
                return _is_port(packet.source_port, value)
            case "--dports":
                return any(_is_port(packet.port, part) for part in value.split(","))
            case "--match-set":
                name, directions = value.split(" ")
                return self._in_set(name, directions.split(","), packet)
            case "--set":
                return True
            case _:  # nobody is remembered; what we walk is routed, no neighbour discovery, and not spoofed
                return False

    def _in_set(self, name: str, directions: list[str], packet: _Packet) -> bool:
        address = packet.source if directions[0] == "src" else packet.destination
        port = packet.port if directions[-1] == "dst" else packet.source_port
        if name not in self.sets:
            raise UnknownRule(f"no set {name}")
        found: list[tuple[int, bool]] = []
        for entry in self.sets[name]:
            text, _, option = entry.partition(" ")
            range_, _, service = text.partition(",")
            if _within(address, range_) and service in ("", f"{packet.protocol}:{port}"):
                found.append((_network(range_).prefixlen, option != "nomatch"))
        return max(found, default=(0, False))[1]


def _is_device(device: str, pattern: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern


def _is_port(port: int, pattern: str) -> bool:
    first, _, last = pattern.partition(":")
    return int(first) <= port <= int(last or first)
