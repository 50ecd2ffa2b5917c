"""Rules as felix writes them: parts of a rule, its hash, and the same rule as iptables-save prints it.

A rule carries ``cali:`` and 16 characters that stand for the chain, all rules before it and itself, as felix
renders them; what the kernel prints of a rule is not the text that felix hashes, so both are made here.
Sources: projectcalico/calico ``felix/iptables/{match_builder,actions,render}.go``,
``felix/generictables/rules.go``, ``felix/hashutils``.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha224, sha256

from testbed.state import Chain, Family, Table

CHAIN_PREFIX, HASH_PREFIX, SET_PREFIXES = "cali-", "cali:", ("cali40", "cali60")
"""What names of felix's chains, comments of its rules and names of its sets of either family begin with."""

HASH_LENGTH, MAX_CHAIN, MAX_SET = 16, 28, 31

ACCEPT_MARK, PASS_MARK, DROP_MARK = 0x10000, 0x20000, 0x40000
SCRATCH0, SCRATCH1 = 0x80000, 0x100000
ALL_MARKS = ACCEPT_MARK | PASS_MARK | DROP_MARK | SCRATCH0 | SCRATCH1
"""Of the mask 0xffff0000, the lowest first (``felix/markbits``, ``felix/dataplane/driver.go``)."""


def encoded(digest: bytes) -> str:
    """Base64 with the characters of URLs, unpadded."""
    return urlsafe_b64encode(digest).decode().rstrip("=")


def limited(prefix: str, name: str, most: int = MAX_CHAIN) -> str:
    """A chain's name: prefix and name, or where that is too long ``_`` and of its hash what fits."""
    whole = len(prefix) + len(name)
    if whole > most or (whole == most and name.startswith("_")):
        return f"{prefix}_{encoded(sha256(name.encode()).digest())[: most - 1 - len(prefix)]}"
    return prefix + name


def unique_id(prefix: str, content: str) -> str:
    """``s:`` and a hash (libcalico-go ``hash.MakeUniqueID``)."""
    return f"{prefix}:{encoded(sha224(f'{prefix}:{content}'.encode()).digest())}"


def set_name(family: Family, identity: str) -> str:
    """An ipset's name: ``cali40`` or ``cali60`` and its id, 31 characters at most."""
    return (SET_PREFIXES[family == "ipv6"] + identity)[:MAX_SET]


@dataclass(frozen=True)
class Part:
    """One condition. felix: as felix writes it; head, tail: as iptables-save does, before and after matches
    (-s, -d, -i, -o and -p come first there, in this order)."""

    felix: str
    head: str = ""
    tail: str = ""


HEADS = ("-s", "-d", "-i", "-o", "-p")


def comes_in(device: str) -> Part:
    """By this device, or ``cali+``."""
    return Part(f"--in-interface {device}", f"-i {device}")


def goes_out(device: str) -> Part:
    """As ``comes_in``."""
    return Part(f"--out-interface {device}", f"-o {device}")


def is_protocol(protocol: str) -> Part:
    """By name or number."""
    return Part(f"-p {protocol}", f"-p {protocol}")


def net(side: str, cidr: str) -> Part:
    """side: src or dst. All of a family is not printed."""
    word = "source" if side == "src" else "destination"
    return Part(f"--{word} {cidr}", "" if cidr.endswith("/0") else f"-{word[0]} {cidr}")


def marked(mark: int) -> Part:
    """All of these bits are set."""
    return Part(f"-m mark --mark {mark:#x}/{mark:#x}", tail=f"-m mark --mark {mark:#x}/{mark:#x}")


def unmarked(mark: int) -> Part:
    """None of these bits is set."""
    return Part(f"-m mark --mark 0/{mark:#x}", tail=f"-m mark --mark 0x0/{mark:#x}")


def any_mark(mark: int) -> Part:
    """At least one of these bits is set."""
    return Part(f"-m mark ! --mark 0/{mark:#x}", tail=f"-m mark ! --mark 0x0/{mark:#x}")


def state(states: str) -> Part:
    """Of the connection, as it is asked for; printed in the kernel's order."""
    return _same(f"-m conntrack --ctstate {states}")


def not_state(states: str) -> Part:
    """See ``state``."""
    return _same(f"-m conntrack ! --ctstate {states}")


def in_set(name: str, side: str) -> Part:
    """side: src, dst, or dst,dst for address and port."""
    return _same(f"-m set --match-set {name} {side}")


def not_in_set(name: str, side: str) -> Part:
    """See ``in_set``."""
    return _same(f"-m set ! --match-set {name} {side}")


def to_ports(ports: str) -> Part:
    """One or many: ``80``, ``80:90,443``."""
    return Part(f"-m multiport --destination-ports {ports}", tail=f"-m multiport --dports {ports}")


def to_udp_port(port: int) -> Part:
    """Without multiport, as raw rules have it; after ``is_protocol("udp")``."""
    return Part(f"--dport {port}", tail=f"-m udp --dport {port}")


def to_local() -> Part:
    """An address of the node itself."""
    return _same("-m addrtype --dst-type LOCAL")


def from_local() -> Part:
    """See ``to_local``."""
    return _same("-m addrtype --src-type LOCAL")


def not_from_local_of_device() -> Part:
    """Not an address of the device that it goes out by."""
    return _same("-m addrtype ! --src-type LOCAL --limit-iface-out")


def icmpv6_type(number: int) -> Part:
    """After ``is_protocol("58")``."""
    return _same(f"-m icmp6 --icmpv6-type {number}")


def spoofed() -> Part:
    """The way back to the source is not the way it came."""
    return Part("-m rpfilter --invert --validmark", tail="-m rpfilter --validmark --invert")


def _same(text: str) -> Part:
    return Part(text, tail=text)


@dataclass(frozen=True)
class Action:
    """What is done. felix, saved: as in ``Part``."""

    felix: str = ""
    saved: str = ""

    @property
    def returns(self) -> bool:
        """Whether it only ends the chain."""
        return self.felix == "--jump RETURN"


def jump(target: str) -> Action:
    """To a chain, or ACCEPT, DROP, RETURN."""
    return Action(f"--jump {target}", f"-j {target}")


def goto(chain: str) -> Action:
    """Not to come back."""
    return Action(f"--goto {chain}", f"-g {chain}")


def set_mark(mark: int) -> Action:
    """These bits, and no others."""
    return _mark(mark, mark)


def clear_mark(mark: int) -> Action:
    """See ``set_mark``."""
    return _mark(0, mark)


def _mark(value: int, mask: int) -> Action:
    shown = f"{value:#x}" if value else "0"
    return Action(f"--jump MARK --set-mark {shown}/{mask:#x}", f"-j MARK --set-xmark {value:#x}/{mask:#x}")


def set_masked_mark(value: int, mask: int) -> Action:
    """The bits of a mask to a value."""
    return _mark(value, mask)


ACCEPT, DROP, RETURN = jump("ACCEPT"), jump("DROP"), jump("RETURN")
NOTRACK = Action("--jump NOTRACK", "-j CT --notrack")
MASQUERADE = Action("--jump MASQUERADE --random-fully", "-j MASQUERADE --random-fully")


@dataclass(frozen=True)
class Rule:
    """One rule before it has its hash."""

    match: tuple[Part, ...] = ()
    action: Action = Action()
    comments: tuple[str, ...] = ()

    @cached_property
    def felix(self) -> str:
        """What felix hashes of it: a match's own parts, and the fragments, are joined by single spaces."""
        fragments = [*map(_comment, self.comments), *(part.felix for part in self.match), self.action.felix]
        return " ".join(fragment for fragment in fragments if fragment)

    @cached_property
    def saved(self) -> tuple[str, str]:
        """What iptables-save prints of it before and after the hash."""
        heads = sorted((part.head for part in self.match if part.head), key=_place)
        tails = [part.tail for part in self.match if part.tail]
        rest = [*map(_comment, self.comments), *tails, self.action.saved]
        return "".join(f"{head} " for head in heads), "".join(f" {text}" for text in rest if text)


def when(*match: Part, do: Action, say: str = "") -> Rule:
    """A rule."""
    return Rule(match, do, (say,) if say else ())


def hashes(chain: str, rules: Sequence[Rule]) -> list[str]:
    """Of each rule of a chain, each depending on those before it (``Chain.RuleHashes``)."""
    digest = sha224(chain.encode()).digest()
    found = []
    for rule in rules:
        text = f"-A {chain} HASH {rule.felix}" if rule.felix else f"-A {chain} HASH"
        digest = sha224(digest + text.encode()).digest()
        found.append(encoded(digest)[:HASH_LENGTH])
    return found


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


def saved(chain: str, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The rules of a chain as iptables-save prints them."""
    return tuple(map(_saved, rules, hashes(chain, rules)))


def _saved(rule: Rule, digest: str) -> str:
    before, after = rule.saved
    return f"{before}{_comment(f'{HASH_PREFIX}{digest}')}{after}"


def _place(head: str) -> int:
    return HEADS.index(head.removeprefix("! ")[:2])


def chain(family: Family, table: Table, name: str, rules: Iterable[Rule]) -> Chain:
    """A chain of felix's own."""
    return Chain(family, table, name, saved(name, list(rules)))


def built_in(
    family: Family, table: Table, name: str, first: Sequence[Rule], last: Sequence[Rule] = ()
) -> Chain:
    """Felix's rules in a chain of the kernel's: those in front of all others, and those behind."""
    rules = (*saved(name, first), *saved(name, last))
    return Chain(family, table, name, rules, inserted=len(first))
