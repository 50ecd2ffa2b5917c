"""ipsets as objects and as text: ``ipset restore`` input, ``ipset save`` output.

A change of sets comes in three parts: what rules may need is made before the rules; whom they may refuse
from now on is told after them, and then what they no longer need goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from testbed.state import IpSet


def filling(add: Mapping[str, IpSet], remove: Mapping[str, IpSet]) -> str:
    """Input for ``ipset restore`` that makes new sets and changes the entries of those that stay.

    Sets only in ``remove`` are left alone: see ``destruction``. Of those that stay, which are in both,
    entries that isolate are left to ``isolation``; at a new set no rule looks yet.
    """
    return "".join(f"{line}\n" for line in _filling(add, remove))


def isolation(add: Mapping[str, IpSet], remove: Mapping[str, IpSet]) -> str:
    """Input for ``ipset restore`` after the rules: entries, of sets that stay, by which those may refuse."""
    staying = (each for each in _those("isolated", add) if each.name in remove)
    added = (line for each in staying for line in _adding(each))
    removed = (line for each in _those("spared", remove) if each.name in add for line in _deleting(each))
    return "".join(f"{line}\n" for line in (*added, *removed))


def _filling(add: Mapping[str, IpSet], remove: Mapping[str, IpSet]) -> Iterator[str]:
    for each in _those("isolated", remove):
        if each.name in add:
            yield from _deleting(each)
    for name in sorted(add):
        each = add[name]
        yield f"create {name} {each.type} {_attributes(each)} -exist"
        # What goes is taken before what comes is given: nobody is for a moment on both sides of a change.
        if name in remove and each.members == "any":
            yield from _deleting(remove[name])
        if each.members != "isolated" or name not in remove:
            yield from _adding(each)


def _those(members: str, sets: Mapping[str, IpSet]) -> list[IpSet]:
    return [each for _, each in sorted(sets.items()) if each.members == members]


def _adding(each: IpSet) -> Iterator[str]:
    yield from (f"add {each.name} {entry} -exist" for entry in sorted(each.entries))


def _deleting(each: IpSet) -> Iterator[str]:
    yield from (f"del {each.name} {entry.split()[0]} -exist" for entry in sorted(each.entries))


def _attributes(each: IpSet) -> str:
    """What a set is created with: a bitmap of ports has a range and no family."""
    return "range 0-65535" if each.type == "bitmap:port" else f"family {each.family}"


def destruction(add: Mapping[str, IpSet], remove: Mapping[str, IpSet]) -> str:
    """Input for ``ipset restore`` that destroys the sets that go."""
    return "".join(f"destroy {name}\n" for name in sorted(remove) if name not in add)


def full_input(sets: Mapping[str, IpSet]) -> str:
    """Input for ``ipset restore`` for a netns that has none of these sets yet."""
    return filling(sets, {})


_CREATE = re.compile(r"create (\S+) (?:(hash:\S+) family (inet6?)|(bitmap:port) range 0-65535)( .*)?")


def parse_save(text: str) -> dict[str, IpSet]:
    """The sets in the output of ``ipset save``, but those of kinds that nobody here makes.

    Raises ValueError where a line is not understood.
    """
    made: dict[str, tuple[str, str]] = {}
    entries: dict[str, set[str]] = {}
    for line in text.splitlines():
        if found := _CREATE.fullmatch(line):
            kind, family = found[2] or found[4], found[3] or _family(found[1])
            made[found[1]], entries[found[1]] = (kind, family), set()
        elif line.startswith("add "):
            _, name, entry = line.split(" ", 2)
            if name in entries:
                entries[name].add(entry)
        elif line.strip() and not line.startswith("create "):
            raise ValueError(f"a line of ipset save is not understood: {line}")
    return {
        name: IpSet(name, kind, family, frozenset(entries[name]))  # type: ignore[arg-type]
        for name, (kind, family) in made.items()
    }


def _family(name: str) -> str:
    """Of a bitmap, which the kernel keeps none of: whose rules look at it, as kube-proxy names them."""
    return "inet6" if name.startswith("KUBE-6-") else "inet"


def named(rule: str) -> list[str]:
    """The sets that an iptables rule looks at."""
    return re.findall(r"--match-set (\S+)", rule)
