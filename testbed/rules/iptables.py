"""iptables chains as objects and as text: ``iptables-restore --noflush`` input, ``iptables-save`` output.

Our own chains are replaced as a whole. Built-in chains are shared with others: of them a state holds our own
rules only, and a change deletes, inserts and appends exactly those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from msgspec.structs import replace

from testbed.state import Chain, Family

ChainKey = tuple[str, str, str]

BUILT_IN: dict[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
"""Table → chains the kernel has by itself (iptables(8)); the tables in the order packets meet them."""

_TARGETS = """
    ACCEPT AUDIT CHECKSUM CLASSIFY CONNMARK CONNSECMARK CT DNAT DNPT DROP DSCP ECN HL HMARK LOG MARK
    MASQUERADE NETMAP NFLOG NFQUEUE NOTRACK QUEUE RATEEST REDIRECT REJECT RETURN SECMARK SET SNAT SNPT
    SYNPROXY TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL
"""
TARGETS = frozenset(_TARGETS.split())
"""What a rule may jump to besides chains: iptables(8) and iptables-extensions(8)."""


def is_built_in(chain: Chain) -> bool:
    """Whether the kernel made the chain, so that others may have rules in it."""
    return chain.name in BUILT_IN[chain.table]


def key(chain: Chain) -> ChainKey:
    """What identifies a chain in a ``NetnsState``."""
    return chain.family, chain.table, chain.name


def joined(there: Chain, more: Chain) -> Chain:
    """A chain that ``there`` is made of already and that ``more`` is put into, as ``iptables -C || -I`` does.

    Raises ValueError where both fill a chain of ours with different rules.
    """
    if not is_built_in(there):
        if there.rules and more.rules and there != more:
            raise ValueError(f"two different chains {there.name}")
        return more if more.rules else there
    front = tuple(rule for rule in more.rules[: more.inserted] if rule not in there.rules)
    behind = tuple(rule for rule in more.rules[more.inserted :] if rule not in there.rules)
    return replace(there, rules=front + there.rules + behind, inserted=len(front) + there.inserted)


_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_JUMP = re.compile(r"(?:^| )(?:-j|-g|--jump|--goto) (\S+)")


def jump(rule: str) -> str | None:
    """The user-defined chain a rule jumps or goes to, if any."""
    found = _JUMP.search(_QUOTED.sub('""', rule))
    return found[1] if found and found[1] not in TARGETS else None


def restore_input(add: Iterable[Chain], remove: Iterable[Chain], family: Family) -> str:
    """Input for ``iptables-restore --noflush`` (ipv6: ip6tables-restore) that makes the change, "" if none.

    add: whole new chains; remove: chains to delete, or for built-in ones the rules to delete, or what a chain
    in ``add`` holds now, which is then not filled anew but edited. One transaction per table: no packet sees
    a chain half filled.
    """
    wanted = [chain for chain in add if chain.family == family]
    unwanted = [chain for chain in remove if chain.family == family]
    return "".join(_table(table, *_of(table, wanted, unwanted)) for table in BUILT_IN)


def restore_inputs(add: Iterable[Chain], remove: Iterable[Chain], family: Family, most: int) -> list[str]:
    """The same, to be applied one after the other: several inputs of about ``most`` lines where it is long.

    A chain is there, filled, before a rule jumps to it; built-in chains change when all else is there;
    chains are deleted last. So a packet meets of each of our chains the old or the new one.
    """
    wanted = [chain for chain in add if chain.family == family]
    unwanted = [chain for chain in remove if chain.family == family]
    now = {key(chain) for chain in unwanted if not is_built_in(chain)}
    edited = {key(chain) for chain in wanted} & now
    filled = sum(len(chain.rules) + 1 for chain in wanted if key(chain) not in edited)
    if filled + len(edited) + len(unwanted) <= most:
        whole = restore_input(wanted, unwanted, family)
        return [whole] if whole else []
    return [
        text
        for table in BUILT_IN
        for parts in _parts(*_of(table, wanted, unwanted), most)
        if (text := _table(table, *parts))
    ]


Both = tuple[list[Chain], list[Chain]]
"""Chains to add and to remove."""


def _of(table: str, add: Iterable[Chain], remove: Iterable[Chain]) -> Both:
    return [chain for chain in add if chain.table == table], [
        chain for chain in remove if chain.table == table
    ]


def _parts(add: list[Chain], remove: list[Chain], most: int) -> Iterator[Both]:
    own = targets_first(chain for chain in add if not is_built_in(chain))
    now = {chain.name: chain for chain in remove}
    for some in _cut(own, most):
        yield some, [now[chain.name] for chain in some if chain.name in now]
    yield [chain for chain in add if is_built_in(chain)], [chain for chain in remove if is_built_in(chain)]
    kept = {chain.name for chain in add}
    gone = targets_first(chain for chain in remove if not is_built_in(chain) and chain.name not in kept)
    for some in _cut(reversed(gone), most):
        yield [], some


def targets_first(chains: Iterable[Chain]) -> list[Chain]:
    """Chains of one table, each after those of them that its rules jump to."""
    waiting = {chain.name: chain for chain in chains}
    ordered: list[Chain] = []

    def take(chain: Chain) -> None:
        for rule in chain.rules:
            target = jump(rule)
            if target is not None and (behind := waiting.pop(target, None)) is not None:
                take(behind)
        ordered.append(chain)

    while waiting:
        take(waiting.pop(next(iter(waiting))))
    return ordered


def _cut(chains: Iterable[Chain], most: int) -> Iterator[list[Chain]]:
    """Pieces of about ``most`` lines; a chain is never cut."""
    piece: list[Chain] = []
    size = 0
    for chain in chains:
        if piece and size + len(chain.rules) >= most:
            yield piece
            piece, size = [], 0
        piece.append(chain)
        size += len(chain.rules) + 1
    if piece:
        yield piece


def _table(table: str, add: list[Chain], remove: list[Chain]) -> str:
    if not add and not remove:
        return ""
    kept = {chain.name for chain in add}
    gone = [chain for chain in remove if not is_built_in(chain) and chain.name not in kept]
    now = {chain.name: chain for chain in remove if not is_built_in(chain) and chain.name in kept}
    edits = {name: edit for name, chain in now.items() if (edit := _edit(chain, add)) is not None}
    declared = [chain for chain in add if not is_built_in(chain) and chain.name not in edits] + gone
    lines = [f"*{table}", *(f":{chain.name} - [0:0]" for chain in declared)]
    for chain in remove:
        if is_built_in(chain):
            lines += [f"-D {chain.name} {rule}" for rule in chain.rules]
    for chain in add:
        lines += edits[chain.name] if chain.name in edits else _rule_lines(chain)
    lines += [f"-X {chain.name}" for chain in gone]
    return "\n".join([*lines, "COMMIT", ""])


def _rule_lines(chain: Chain) -> list[str]:
    name, inserted = chain.name, chain.inserted
    front = [f"-I {name} {number} {rule}" for number, rule in enumerate(chain.rules[:inserted], 1)]
    return front + [f"-A {name} {rule}" for rule in chain.rules[inserted:]]


EDITED_FROM = 64
"""Rules from which on a chain is edited where it changes: with fewer, filling it anew is as fast."""


def is_edited(now: Chain, new: Chain) -> bool:
    """Whether a changed chain of ours is so long that its few new rules are put between the others."""
    return min(len(now.rules), len(new.rules)) >= EDITED_FROM


def _edit(now: Chain, add: Iterable[Chain]) -> list[str] | None:
    """Lines that make one of ``add`` of the chain as it is now; None where filling it anew is shorter."""
    new = next(chain for chain in add if chain.name == now.name)
    if len(set(now.rules)) < len(now.rules):  # -D takes the first of two that are equal
        return None
    lines: list[str] = []
    # From the end, so that the numbers of the rules before stay right.
    for what, start, end, first, last in _differences(now.rules, new.rules):
        if what != "equal":
            lines += [f"-D {now.name} {rule}" for rule in now.rules[start:end]]
            lines += [f"-I {now.name} {start + 1} {rule}" for rule in reversed(new.rules[first:last])]
    return lines if len(lines) < len(new.rules) // 4 else None


def _differences(now: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """The stretches of the two that differ, and those between them, the last first."""
    shorter = min(len(now), len(new))
    front = next((i for i in range(shorter) if now[i] != new[i]), shorter)
    shorter -= front
    back = next((i for i in range(shorter) if now[-1 - i] != new[-1 - i]), shorter)
    middle = now[front : len(now) - back], new[front : len(new) - back]
    for what, *places in reversed(SequenceMatcher(None, *middle, autojunk=False).get_opcodes()):
        start, end, first, last = (place + front for place in places)
        yield what, start, end, first, last


def full_input(chains: Mapping[ChainKey, Chain], family: Family) -> str:
    """The same for a netns that has none of our chains yet: everything of one family."""
    return restore_input(chains.values(), (), family)


def leftovers(
    add: Mapping[ChainKey, Chain], remove: Mapping[ChainKey, Chain], present: Mapping[ChainKey, Chain]
) -> dict[ChainKey, Chain]:
    """What is to be removed where a change found, or left behind, something else than was thought.

    Chains in ``remove`` that are there and not made anew, and of built-in ones each rule that is there
    already of those that come or go.
    """
    found: dict[ChainKey, Chain] = {}
    for key in (*remove, *add):
        if key not in present:
            continue
        if is_built_in(present[key]):
            ours = {rule for change in (remove, add) if key in change for rule in change[key].rules}
            rules = tuple(rule for rule in present[key].rules if rule in ours)
            found[key] = replace(present[key], rules=rules)
        elif key not in add:
            found[key] = remove[key]
    return found


def parse_save(text: str, family: Family) -> dict[ChainKey, Chain]:
    """The chains in the output of ``iptables-save``, without policies and counters.

    Built-in chains are there only if they have rules. A line that is not understood is a ValueError.
    """
    rules: dict[tuple[str, str], list[str]] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        match line[:1]:
            case "" | "#":
                continue
            case "*":
                table = line[1:]
            case ":":
                rules[table, line[1:].split(" ", 1)[0]] = []
            case "-" if line.startswith("-A "):
                _, name, *rest = line.split(" ", 2)
                rules[table, name].append("".join(rest))
            case _ if line == "COMMIT":
                continue
            case _:
                raise ValueError(f"line {number} of iptables-save is not understood: {line}")
    chains = (
        Chain(family=family, table=table, name=name, rules=tuple(lines))  # type: ignore[arg-type]
        for (table, name), lines in rules.items()
        if table in BUILT_IN and (lines or name not in BUILT_IN[table])
    )
    return {key(chain): chain for chain in chains}


def with_numbers(rule: str) -> str:
    """A rule as it is printed where the machine has no /etc/protocols: IP in IP has no other name."""
    return rule.replace("-p ipencap ", "-p 4 ")


def rejected_lines(text: str, stderr: str) -> list[str]:
    """The lines of a restore input that an error message is about, as ``number: line``.

    Some messages give a line, some name a chain; nft's gives COMMIT's line for what it found out only there.
    """
    named = set(re.findall(r"[`']([^`']+)'", stderr))
    numbers = {int(number) for number in re.findall(r"\bline:? (\d+)", stderr)}
    return [
        f"{number}: {line}"
        for number, line in enumerate(text.splitlines(), 1)
        if number in numbers or named & set(line.split())
    ]
