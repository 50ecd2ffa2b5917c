"""A packet's way through nftables rules: which verdicts it may get, and with what chance.

It knows the rules that we write and no others: what it does not know is a ValueError. Sets that packets add
to are taken to be empty, as they are for a client that comes for the first time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network, summarize_address_range

from testbed.rules.flows import Flow, Host, Verdict, endpoint, together
from testbed.rules.nft import Key, is_base
from testbed.state import NetnsState, NftChain

PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
"""Names of priorities, nft(8)."""

_WORD = re.compile(r'"[^"]*"|\{[^}]*\}|[^\s]+')


@dataclass(frozen=True)
class _Packet:
    """What rules see of the packet, and what they made of it."""

    source: str
    destination: str
    protocol: str
    port: int
    mark: int = 0
    translated: bool = False
    masqueraded: bool = False


@dataclass(frozen=True)
class _End:
    """How a rule or a chain ended: with a verdict of nft's, or ``next``: with nothing for the next rule."""

    how: str
    packet: _Packet
    chance: float = 1.0
    chain: str = ""
    rule: str = ""


def walk(state: NetnsState, flow: Flow, host: Host) -> dict[Verdict, float]:
    """What becomes of the first packet of a flow on a node with these tables."""
    walker = _Walker(state, flow, host)
    packet = _Packet(flow.source, flow.destination, flow.protocol, flow.port)
    return together(walker.verdicts(packet))


@dataclass(frozen=True)
class _Walker:
    state: NetnsState
    flow: Flow
    host: Host

    def verdicts(self, packet: _Packet) -> Iterator[tuple[Verdict, float]]:
        """Hook by hook."""
        first = "prerouting" if self.flow.device else "output"
        for end in self._hook(first, packet):
            if end.how != "accept":
                yield Verdict(end.how, rule=end.rule), end.chance  # type: ignore[arg-type]
                continue
            yield from self._after(self._onward(end.packet), end)

    def _onward(self, packet: _Packet) -> tuple[str, ...]:
        """The hooks after the first; what a node sends to itself comes in by lo, its translation done."""
        local = self.host.is_local(packet.destination)
        if self.flow.device:
            return ("input",) if local else ("forward", "postrouting")
        return ("postrouting", "input") if local else ("postrouting",)

    def _after(self, hooks: Sequence[str], before: _End) -> Iterator[tuple[Verdict, float]]:
        if not hooks:
            packet = before.packet
            to = endpoint(packet.destination, packet.port)
            yield Verdict("pass", to, packet.masqueraded, before.rule), before.chance
            return
        for end in self._hook(hooks[0], before.packet):
            chance = before.chance * end.chance
            if end.how == "accept":
                yield from self._after(hooks[1:], replace(end, chance=chance, rule=end.rule or before.rule))
            else:
                yield Verdict(end.how, rule=end.rule), chance  # type: ignore[arg-type]

    def _hook(self, hook: str, packet: _Packet) -> Iterator[_End]:
        family = "ip6" if ":" in packet.source else "ip"
        chains = [
            chain
            for chain in self.state.nft_chains.values()
            if is_base(chain) and chain.hook == hook and chain.family in (family, "inet")
        ]
        yield from self._bases(sorted(chains, key=_priority), _End("accept", packet))

    def _bases(self, chains: Sequence[NftChain], before: _End) -> Iterator[_End]:
        if not chains:
            yield before
            return
        first = chains[0]
        for end in self._chain(first, before.packet):
            chance = before.chance * end.chance
            how = first.policy if end.how in ("next", "return") else end.how
            after = replace(end, how=how, chance=chance, rule=end.rule or before.rule)
            if how == "accept":
                yield from self._bases(chains[1:], after)
            else:
                yield replace(after, rule=after.rule or f"the policy of {first.name}")

    def _chain(self, chain: NftChain, packet: _Packet, start: int = 0) -> Iterator[_End]:
        """From a rule on to the chain's end."""
        if start == len(chain.rules):
            yield _End("return", packet)
            return
        for end in self._rule(chain, chain.rules[start], packet):
            yield from self._follow(chain, start, end)

    def _follow(self, chain: NftChain, number: int, end: _End) -> Iterator[_End]:
        """What comes after a rule: the next one, or the chain that it leads to and perhaps the next one."""
        if end.how == "next":
            afters = self._chain(chain, end.packet, number + 1)
        elif end.how in ("jump", "goto"):
            target = self._find(chain, end.chain)
            afters = self._return(chain, number, self._chain(target, end.packet), back=end.how == "jump")
        else:
            yield end
            return
        for after in afters:
            yield replace(after, chance=after.chance * end.chance, rule=after.rule or end.rule)

    def _return(self, chain: NftChain, number: int, ends: Iterator[_End], *, back: bool) -> Iterator[_End]:
        for end in ends:
            if end.how == "return" and back:
                for after in self._chain(chain, end.packet, number + 1):
                    yield replace(after, chance=after.chance * end.chance, rule=after.rule or end.rule)
            else:
                yield end

    def _find(self, chain: NftChain, name: str) -> NftChain:
        key: Key = (chain.family, chain.table, name)
        if key not in self.state.nft_chains:
            raise ValueError(f"{chain.name} leads to {name}, which is not there")
        return self.state.nft_chains[key]

    # --- rules

    def _rule(self, chain: NftChain, rule: str, packet: _Packet) -> Iterator[_End]:
        words = _WORD.findall(rule)
        if words[-2:-1] == ["comment"]:
            words = words[:-2]
        said = f"{chain.name}: {rule}"
        for end in self._statements(chain, words, packet):
            decided = end.how in ("accept", "drop", "reject")
            yield replace(end, rule=said) if decided or end.packet is not packet else end

    def _statements(self, chain: NftChain, words: list[str], packet: _Packet) -> Iterator[_End]:
        """The rest of a rule: a match that fails ends it, a verdict ends it, all else goes on."""
        match words:
            case []:
                yield _End("next", packet)
            case ["ct", "state", "new", *rest]:
                yield from self._statements(chain, rest, packet)
            case ["ct", "state", "established,related", *_] | ["ct", "mark", "&", _, "==", _, *_]:
                yield _End("next", packet)  # the connection is new, and has no mark
            case ["icmpv6", "type", _, *_]:
                yield _End("next", packet)  # what we walk is no neighbour discovery
            case ["tcp" | "udp" | "sctp" as name, "dport", ports, *rest]:
                first, _, last = ports.partition("-")
                hit = packet.protocol == name and int(first) <= packet.port <= int(last or first)
                yield from self._if(hit, chain, rest, packet)
            case ["ct", "status", "dnat", *rest]:
                yield from self._if(packet.translated, chain, rest, packet)
            case ["meta", "l4proto", name, *rest] if name not in (".",):
                yield from self._if(packet.protocol == name, chain, rest, packet)
            case ["meta", "mark", "&", mask, "!=", none, *rest]:
                marked = packet.mark & int(mask, 16) != int(none, 16)
                yield from self._if(marked, chain, rest, packet)
            case ["meta", "mark", "set", "meta", "mark", "|" | "^" as operator, value, *rest]:
                number = int(value, 16)
                mark = packet.mark | number if operator == "|" else packet.mark ^ number
                yield from self._statements(chain, rest, replace(packet, mark=mark))
            case ["fib", "saddr" | "daddr" as which, "type", "local", *rest]:
                address = packet.source if which == "saddr" else packet.destination
                yield from self._if(self.host.is_local(address), chain, rest, packet)
            case ["update", _, _, *rest]:
                yield from self._statements(chain, rest, packet)
            case ["numgen", "random", "mod", _, "vmap", choices]:
                entries = _entries(choices)
                for verdict in entries:
                    yield replace(_verdict(verdict, packet), chance=1 / len(entries))
            case ["dnat", "ip" | "ip6", "to", "numgen", "random", "mod", _, "map", choices]:
                entries = _entries(choices)
                for entry in entries:
                    ip, port = entry.rsplit(" . ", 1)
                    yield _End("accept", _translated(packet, ip, int(port)), 1 / len(entries))
            case ["dnat", "to", to]:
                ip, _, port = to.rpartition(":")
                yield _End("accept", _translated(packet, ip.strip("[]"), int(port)))
            case ["masquerade", "fully-random"]:
                yield _End("accept", replace(packet, masqueraded=True))
            case ["jump" | "goto" | "accept" | "drop" | "reject" | "return", *_] if len(words) < 3:
                yield _verdict(" ".join(words), packet)
            case _:
                yield from self._selected(chain, words, packet)

    def _if(self, holds: bool, chain: NftChain, rest: list[str], packet: _Packet) -> Iterator[_End]:
        if holds:
            yield from self._statements(chain, rest, packet)
        else:
            yield _End("next", packet)

    def _selected(self, chain: NftChain, words: list[str], packet: _Packet) -> Iterator[_End]:
        """A match, or a look into a map, by fields of the packet."""
        fields, rest = _fields(words)
        values = [value(packet) for value in fields]
        match rest:
            case ["vmap", name, *more] if not more:
                key = (chain.family, chain.table, name.removeprefix("@"), " . ".join(values))
                element = self.state.nft_elements.get(key)
                yield _verdict(element.value, packet) if element else _End("next", packet)
            case ["!=", operand, *more] if len(values) == 1:
                yield from self._if(not self._holds(chain, operand, values), chain, more, packet)
            case [operand, *more]:
                yield from self._if(self._holds(chain, operand, values), chain, more, packet)
            case _:
                raise ValueError(f"a rule of {chain.name} is not known: {' '.join(words)}")

    def _holds(self, chain: NftChain, operand: str, values: list[str]) -> bool:
        if operand.startswith("@"):
            name = operand.removeprefix("@")
            if (chain.family, chain.table, name) not in self.state.nft_sets:
                raise ValueError(f"{chain.name} looks at {name}, which is not there")
            return (chain.family, chain.table, name, " . ".join(values)) in self.state.nft_elements
        members = operand.strip("{} ").split(", ")
        return any(_within(values[0], member) for member in members)


def _priority(chain: NftChain) -> int:
    name, *shift = chain.priority.split()
    base = PRIORITIES[name] if name in PRIORITIES else int(name)
    return base + int("".join(shift) or 0)


FIELDS: dict[tuple[str, ...], Callable[[_Packet], str]] = {
    ("ip", "saddr"): lambda packet: packet.source,
    ("ip", "daddr"): lambda packet: packet.destination,
    ("ip6", "saddr"): lambda packet: packet.source,
    ("ip6", "daddr"): lambda packet: packet.destination,
    ("meta", "l4proto"): lambda packet: packet.protocol,
    ("th", "dport"): lambda packet: str(packet.port),
}
"""What of a packet a rule may look at."""


def _fields(words: list[str]) -> tuple[list[Callable[[_Packet], str]], list[str]]:
    """The fields at the head of a rule, joined by dots, and the rest of it."""
    fields = []
    while True:
        name = tuple(words[:2])
        if name not in FIELDS:
            raise ValueError(f"a rule is not known: {' '.join(words)}")
        fields.append(FIELDS[name])
        words = words[2:]
        if words[:1] != ["."]:
            return fields, words
        words = words[1:]


def _entries(choices: str) -> list[str]:
    """What an anonymous map leads to, in order: ``{ 0 : a, 1 : b }``."""
    return [entry.split(" : ", 1)[1] for entry in choices.strip("{} ").split(", ")]


def _verdict(text: str, packet: _Packet) -> _End:
    how, _, chain = text.partition(" ")
    if how not in ("jump", "goto", "accept", "drop", "reject", "return"):
        raise ValueError(f"a verdict is not known: {text}")
    return _End(how, packet, chain=chain)


def _translated(packet: _Packet, ip: str, port: int) -> _Packet:
    return replace(packet, destination=ip, port=port, translated=True)


def _within(address: str, member: str) -> bool:
    there = ip_address(address)
    first, dash, last = member.partition("-")
    if dash:
        return any(there in each for each in summarize_address_range(ip_address(first), ip_address(last)))
    return there in ip_network(member)
