"""nftables as objects and as text: ``nft -f`` input, ``nft list ruleset`` output.

Tables are ours alone, so a state holds everything in them but what the kernel puts into dynamic sets. A
change names objects and elements one by one: nft then reads no rules before it, and takes about as long
for a big table as for a small one.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from msgspec.structs import replace

from testbed.state import NetnsState, NftChain, NftElement, NftSet, NftTable

T = TypeVar("T")

TableKey = tuple[str, str]
Key = tuple[str, str, str]
"""What identifies a chain or a set: family, table, name."""
ElementKey = tuple[str, str, str, str]

_QUOTED = re.compile(r'"[^"]*"')
_TARGET = re.compile(r"\b(?:jump|goto) ([\w./-]+)")
_SET = re.compile(r"@([A-Za-z_][\w./-]*)")


# --- keys and references ------------------------------------------------------------------------------


def table_key(thing: NftTable | NftChain | NftSet | NftElement) -> TableKey:
    """The key of the table that a thing is, or is in."""
    return (thing.family, thing.name) if isinstance(thing, NftTable) else (thing.family, thing.table)


def key(thing: NftChain | NftSet) -> Key:
    """The key of a chain or a set in a ``NetnsState``."""
    return thing.family, thing.table, thing.name


def element_key(element: NftElement) -> ElementKey:
    """The key of an element in a ``NetnsState``."""
    return element.family, element.table, element.set, element.key


def element_set(element: NftElement) -> Key:
    """The key of the set or map that an element is in."""
    return element.family, element.table, element.set


def fragment(
    tables: Iterable[NftTable] = (),
    chains: Iterable[NftChain] = (),
    sets: Iterable[NftSet] = (),
    elements: Iterable[NftElement] = (),
) -> NetnsState:
    """A state of these objects, each under its key."""
    return NetnsState(
        nft_tables={table_key(table): table for table in tables},
        nft_chains={key(chain): chain for chain in chains},
        nft_sets={key(each): each for each in sets},
        nft_elements={element_key(element): element for element in elements},
    )


def targets(text: str) -> list[str]:
    """The chains that a rule, or the value of an element, jumps or goes to."""
    return _TARGET.findall(_QUOTED.sub("", text))


def sets_of(rule: str) -> list[str]:
    """The named sets and maps that a rule looks at or writes to."""
    return _SET.findall(_QUOTED.sub("", rule))


def is_base(chain: NftChain) -> bool:
    """Whether a chain hangs on a netfilter hook, so that nothing can jump to it."""
    return bool(chain.hook)


def same_place(one: NftChain, other: NftChain) -> bool:
    """Whether one chain becomes the other in place: only rules and the policy of a base chain may differ."""
    return replace(one, rules=(), policy="accept") == replace(other, rules=(), policy="accept")


# --- a change as text ---------------------------------------------------------------------------------


def script(add: NetnsState, remove: NetnsState | None = None) -> str:
    """Input for ``nft -f`` that makes the change in one transaction, "" if it is none.

    add: new things and, as a whole, changed ones; a table among them is made anew. remove: what goes, and
    what cannot become what ``add`` has under its key in place (sets, elements, chains hooked elsewhere); a
    table goes with all that is in it. A regular chain is only emptied, see ``deletion``.
    """
    remove = without_tables(remove or NetnsState(), add.nft_tables)
    fresh, again = add.nft_tables.keys(), remove.nft_chains.keys() & add.nft_chains.keys()
    gone = without_tables(remove, remove.nft_tables)
    lines = [
        *(line for table in add.nft_tables.values() for line in _remake(table)),
        *(
            f"{verb} table {table.family} {table.name}"
            for table in remove.nft_tables.values()
            for verb in ("add", "delete")
        ),
        *_elements("delete", gone.nft_elements.values()),
    ]
    for chain in gone.nft_chains.values():
        lines.append(f"flush chain {_name(chain)}")
        if is_base(chain) or key(chain) in again:
            lines.append(f"delete chain {_name(chain)}")
    for chain in add.nft_chains.values():
        lines.append(f"add chain {_name(chain)}{_chain_body(chain)}")
        if table_key(chain) not in fresh and key(chain) not in again:
            lines.append(f"flush chain {_name(chain)}")
    lines += [f"delete {_kind(each)} {_name(each)}" for each in gone.nft_sets.values()]
    lines += [f"add {_kind(each)} {_name(each)} {_set_body(each)}" for each in add.nft_sets.values()]
    lines += [f"add rule {_name(chain)} {rule}" for chain in add.nft_chains.values() for rule in chain.rules]
    lines += _elements("add", add.nft_elements.values())
    return "".join(f"{line}\n" for line in lines)


def in_bulk(
    add: NetnsState, remove: NetnsState, known: Container[Key], size: int, most: int | None = None
) -> list[NetnsState]:
    """Parts of ``add``, to be scripted one after the other; the last one, with ``remove``, is what counts.

    The kernel's time for a transaction grows with the square of its rules, so the rules of new regular
    chains, which no packet meets before the last part leads to them, go into parts of about ``size`` rules.
    known: the chains that are there. most: how many new chains, or elements, a part may have, where that is
    limited; elements beyond it count before the last part does, with whole chains behind them.
    """
    new = [
        chain
        for name, chain in add.nft_chains.items()
        if not is_base(chain) and (table_key(chain) in add.nft_tables or name not in known)
    ]
    early = _beyond(most, [name for name in add.nft_elements if name not in remove.nft_elements])
    many = sum(len(chain.rules) for chain in new) > size or bool(early) or len(new) > (most or len(new))
    if not many or remove.nft_sets:
        return [add]
    first, *further = _pieces([replace(chain, rules=()) for chain in new], most) or [[]]
    parts = [
        NetnsState(
            nft_tables=add.nft_tables,
            nft_sets=add.nft_sets,
            nft_chains={key(chain): chain for chain in first},
        ),
        *(NetnsState(nft_chains={key(chain): chain for chain in piece}) for piece in further),
    ]
    batch: dict[Key, NftChain] = {}
    rules = 0
    for chain in new:
        batch[key(chain)] = chain
        rules += len(chain.rules)
        if rules >= size:
            parts.append(NetnsState(nft_chains=batch))
            batch, rules = {}, 0
    done = {key(chain) for chain in new}
    rest = {name: chain for name, chain in add.nft_chains.items() if name not in done}
    late = add.nft_elements.keys() - set(early)
    elements = {name: one for name, one in add.nft_elements.items() if name in late}
    return [
        *parts,
        *([NetnsState(nft_chains=batch)] if batch else []),
        *(
            NetnsState(nft_elements={name: add.nft_elements[name] for name in piece})
            for piece in _pieces(early, most)
        ),
        NetnsState(nft_chains=rest, nft_elements=elements),
    ]


def _pieces(things: Sequence[T], most: int | None) -> list[Sequence[T]]:
    step = most or max(len(things), 1)
    return [things[first : first + step] for first in range(0, len(things), step)]


def _beyond(most: int | None, things: Sequence[T]) -> Sequence[T]:
    """All but the last ``most``, which fit into the last part."""
    return things[: max(0, len(things) - most)] if most is not None else ()


def deletion(chains: Iterable[Key]) -> str:
    """Input for ``nft -f`` that deletes regular chains that a change has emptied before.

    Apart from the change because kernels before 6.2 notice late that an element no longer leads to a chain.
    Source: kubernetes ``pkg/proxy/nftables/proxier.go``, staleChains.
    """
    return "".join(f"delete chain {family} {table} {name}\n" for family, table, name in chains)


def without_tables(state: NetnsState, tables: Iterable[TableKey]) -> NetnsState:
    """The nftables part of a state without what is in these tables, which themselves stay if there."""
    doomed = frozenset(tables)
    if not doomed:
        return state

    def left(things: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: thing for key, thing in things.items() if key[:2] not in doomed}

    return replace(
        state,
        nft_chains=left(state.nft_chains),
        nft_sets=left(state.nft_sets),
        nft_elements=left(state.nft_elements),
    )


def _remake(table: NftTable) -> Iterator[str]:
    """Adding it first lets a table be deleted that may not be there; so do the tables that go."""
    name = f"table {table.family} {table.name}"
    body = f" {{ {_comment(table.comment)} }}" if table.comment else ""
    yield from (f"add {name}", f"delete {name}", f"add {name}{body}")


def _name(thing: NftChain | NftSet) -> str:
    return f"{thing.family} {thing.table} {thing.name}"


def _comment(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ValueError(f"nft has no way to write this comment: {text}")
    return f'comment "{text}";'


def _chain_body(chain: NftChain) -> str:
    words = []
    if is_base(chain):
        device = f' device "{chain.device}"' if chain.device else ""
        words.append(f"type {chain.type} hook {chain.hook}{device} priority {chain.priority};")
        words.append(f"policy {chain.policy};")
    if chain.comment:
        words.append(_comment(chain.comment))
    return f" {{ {' '.join(words)} }}" if words else ""


def _kind(each: NftSet) -> str:
    return "map" if each.value else "set"


def _set_body(each: NftSet) -> str:
    words = [f"type {each.type}" + (f" : {each.value};" if each.value else ";")]
    if each.size:
        words.append(f"size {each.size};")
    if each.flags:
        words.append(f"flags {','.join(each.flags)};")
    if each.timeout:
        words.append(f"timeout {each.timeout}s;")
    if each.comment:
        words.append(_comment(each.comment))
    return f"{{ {' '.join(words)} }}"


def _elements(verb: str, elements: Iterable[NftElement]) -> Iterator[str]:
    """A command per set, an element per line; what is deleted is named by its key alone."""
    ordered = sorted(elements, key=lambda each: (each.family, each.table, each.set))
    for (family, table, name), members in groupby(ordered, lambda each: (each.family, each.table, each.set)):
        body = ",\n\t".join(_element(each, verb) for each in members)
        yield f"{verb} element {family} {table} {name} {{ {body} }}"


def _element(element: NftElement, verb: str) -> str:
    comment = f" {_comment(element.comment)[:-1]}" if element.comment and verb == "add" else ""
    return f"{element.key}{comment}" + (f" : {element.value}" if element.value else "")


# --- nft list ruleset ---------------------------------------------------------------------------------

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_HOOK = re.compile(
    r'type (?P<type>\w+) hook (?P<hook>\w+)(?: device "(?P<device>[^"]*)")? priority (?P<priority>[^;]+);'
    r"(?: policy (?P<policy>\w+);)?"
)


def parse_ruleset(text: str) -> NetnsState:
    """The tables in the output of ``nft list ruleset``. A line that is not understood is a ValueError.

    Elements of dynamic sets, which the kernel keeps by itself, are left out.
    """
    tables: list[NftTable] = []
    chains: list[NftChain] = []
    sets: list[NftSet] = []
    elements: list[NftElement] = []
    lines = iter(text.splitlines())
    for line in lines:
        match line.split():
            case ["table", family, name, "{"]:
                tables.append(NftTable(family, name))  # type: ignore[arg-type]
            case ["set" | "map" as kind, name, "{"]:
                each, members = _parse_set(kind, name, tables[-1], _block(lines))
                sets.append(each)
                elements += members
            case ["chain", name, "{"]:
                chains.append(_parse_chain(name, tables[-1], _block(lines)))
            case ["comment", *_]:
                tables[-1] = replace(tables[-1], comment=_unquoted(line))
            case [] | ["}"]:
                continue
            case _:
                raise ValueError(f"a line of nft list ruleset is not understood: {line}")
    return fragment(tables, chains, sets, elements)


def _block(lines: Iterator[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if line.strip() == "}":
            break
        found.append(line.strip())
    return found


def _unquoted(text: str) -> str:
    return text[text.index('"') + 1 : text.rindex('"')]


def _parse_chain(name: str, table: NftTable, lines: list[str]) -> NftChain:
    chain = NftChain(table.family, table.name, name)
    rules: list[str] = []
    for line in lines:
        if hook := _HOOK.fullmatch(line):
            said = {field: value for field, value in hook.groupdict().items() if value}
            said["priority"] = _priority(said["hook"], said["priority"])
            chain = replace(chain, **said)
        elif line.startswith('comment "') and not rules:
            chain = replace(chain, comment=_unquoted(line))
        else:
            rules.append(line)
    return replace(chain, rules=tuple(rules))


def _priority(hook: str, text: str) -> str:
    """As nft 1.0.6 prints it, which has the name ``dstnat`` (-100) at no output hook; later ones do."""
    name, _, offset = text.partition(" ")
    if hook != "output" or name != "dstnat":
        return text
    return str(-100 + int(offset.replace(" ", "") or 0))


def _parse_set(kind: str, name: str, table: NftTable, lines: list[str]) -> tuple[NftSet, list[NftElement]]:
    fields: dict[str, Any] = {}
    members = ""
    for number, line in enumerate(lines):
        word, _, rest = line.partition(" ")
        match word:
            case "type":
                keys, _, value = rest.partition(" : ")
                fields |= {"type": keys, "value": value}
            case "flags":
                fields["flags"] = tuple(rest.split(","))
            case "timeout":
                fields["timeout"] = _seconds(rest)
            case "size":
                fields["size"] = int(rest)
            case "comment":
                fields["comment"] = _unquoted(rest)
            case "elements":
                members = " ".join(lines[number:]).removeprefix("elements = {").removesuffix("}")
                break
            case _:
                raise ValueError(f"a line of {kind} {name} is not understood: {line}")
    each = NftSet(table.family, table.name, name, **fields)
    if "dynamic" in each.flags:
        return each, []
    return each, [_parse_element(each, text) for text in _split(members)]


def _split(members: str) -> list[str]:
    """At commas, but for those in comments."""
    return [part.strip() for part in re.findall(r'(?:"[^"]*"|[^,"])+', members) if part.strip()]


def _parse_element(each: NftSet, text: str) -> NftElement:
    name, _, value = text.partition(" : ")
    comment = ""
    if quoted := _QUOTED.search(name):
        comment = quoted.group()[1:-1]
        name = name[: quoted.start()].removesuffix(" comment ")
    return NftElement(each.family, each.table, each.name, name.strip(), value, comment)


def _seconds(text: str) -> int:
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))
