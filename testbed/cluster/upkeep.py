"""What a node's daemons look after: what of it was made, and what has to be done where it is not so; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

import msgspec

from testbed.cluster.messages import AddPods, Change, ChangeNetns, DeletePods
from testbed.kernel.apply import peers
from testbed.rules.iptables import ChainKey, is_built_in, with_numbers
from testbed.state import NODE, Chain, FdbEntry, IpSet, Neighbour, NetnsState, Route, Upkeep

K = TypeVar("K")
E = TypeVar("E", Neighbour, FdbEntry)

ON_DEVICES = ("routes", "neighbours", "fdb")
"""Parts of a netns that go with the device they are on."""

Wish = tuple[NetnsState, NetnsState]
"""What to add to a netns and what to remove from it."""


class Made:
    """What was made in a node's own netns of what these upkeeps look after."""

    def __init__(self, upkeeps: Iterable[Upkeep]) -> None:
        self._upkeeps = {each.part: each for each in upkeeps}
        self.chains: dict[ChainKey, Chain] = {}
        self.ipsets: dict[str, IpSet] = {}
        self.on_devices: dict[str, dict[Any, Any]] = {part: {} for part in ON_DEVICES}
        self._ends: dict[str, list[str]] = {}  # pod uid → host ends of its links

    def applied(self, changes: Iterable[Change]) -> None:
        """Take note of a change."""
        for change in changes if self._upkeeps else ():
            match change:
                case AddPods(pods):
                    self._ends |= {pod.uid: peers(pod) for pod in pods}
                case DeletePods(uids):
                    self._drop_devices({end for uid in uids for end in self._ends.pop(uid, ())})
                case ChangeNetns(where, add, remove) if where == NODE:
                    self._drop_devices(remove.links.keys())
                    self._applied(add, remove)

    def _drop_devices(self, devices: Iterable[str]) -> None:
        if gone := set(devices):
            for part, kept in self.on_devices.items():
                self.on_devices[part] = {key: each for key, each in kept.items() if each.dev not in gone}

    def _applied(self, add: NetnsState, remove: NetnsState) -> None:
        if chains := self._upkeeps.get("chains"):
            for key in (*remove.chains, *add.chains):
                self.chains.pop(key, None)
            self.chains |= {key: each for key, each in add.chains.items() if _concerns(chains, each)}
        for part in self._upkeeps.keys() & ON_DEVICES:
            kept, come = self.on_devices[part], getattr(add, part)
            for key in (*getattr(remove, part), *come):
                kept.pop(key, None)
            kept |= {key: each for key, each in come.items() if is_own(self._upkeeps[part], each)}
        if ipsets := self._upkeeps.get("ipsets"):
            for name in remove.ipsets.keys() - add.ipsets.keys():
                self.ipsets.pop(name, None)
            for name, each in add.ipsets.items():
                if name.startswith(ipsets.names):
                    before = self.ipsets[name].entries if name in self.ipsets else frozenset()
                    gone = remove.ipsets[name].entries if name in remove.ipsets else frozenset()
                    self.ipsets[name] = msgspec.structs.replace(each, entries=before - gone | each.entries)


# --- chains ---------------------------------------------------------------------------------------------


def chains_to_make(
    upkeep: Upkeep, made: Mapping[ChainKey, Chain], there: Mapping[ChainKey, Chain]
) -> dict[ChainKey, Chain]:
    """The chains of which rules are missing or, of its own, are not in their order.

    Strange rules in its own chains go if it is ``exclusive``, else stay, in front of what is made again.
    """
    wrong = {}
    for key, chain in made.items():
        found = tuple(map(with_numbers, there[key].rules)) if key in there else ()
        if is_built_in(chain):
            if not _holds(upkeep, chain, found):
                wrong[key] = chain
        elif key not in there or not _is_whole(upkeep, chain, found):
            wrong[key] = chain if upkeep.exclusive else _behind_strange(chain, found)
    return wrong


def alone(upkeep: Upkeep, chains: Mapping[ChainKey, Chain]) -> dict[ChainKey, Chain]:
    """The chains with the daemon's own rules only, for where what rules of others lead to is gone."""
    return {key: _alone(upkeep, each) if is_built_in(each) else each for key, each in chains.items()}


def _alone(upkeep: Upkeep, chain: Chain) -> Chain:
    front, behind = chain.rules[: chain.inserted], chain.rules[chain.inserted :]
    own = [[rule for rule in part if _says(upkeep, rule)] for part in (front, behind)]
    return msgspec.structs.replace(chain, rules=(*own[0], *own[1]), inserted=len(own[0]))


def _concerns(upkeep: Upkeep, chain: Chain) -> bool:
    if is_built_in(chain):
        return any(_says(upkeep, rule) for rule in chain.rules)
    return chain.name.startswith(upkeep.names)


def _holds(upkeep: Upkeep, chain: Chain, found: tuple[str, ...]) -> bool:
    """Whether a built-in chain has the daemon's own rules and, where it wants so, before strange ones."""
    if any(_says(upkeep, rule) and rule not in found for rule in chain.rules):
        return False
    own = [place for place in range(chain.inserted) if _says(upkeep, chain.rules[place])]
    front = own[-1] + 1 if own and upkeep.exclusive else 0
    return found[:front] == chain.rules[:front]


def _is_whole(upkeep: Upkeep, chain: Chain, found: tuple[str, ...]) -> bool:
    """Whether a chain of the daemon's own has its rules in their order; ``exclusive``: and nothing else."""
    if upkeep.exclusive:
        return found == chain.rules
    return tuple(rule for rule in dict.fromkeys(found) if rule in chain.rules) == chain.rules


def _behind_strange(chain: Chain, found: tuple[str, ...]) -> Chain:
    """As flanneld makes its rules again: it deletes those and appends them, one after the other."""
    strange = tuple(rule for rule in found if rule not in chain.rules)
    return msgspec.structs.replace(chain, rules=strange + chain.rules)


def _says(upkeep: Upkeep, rule: str) -> bool:
    return f'--comment "{upkeep.comment}' in rule


# --- ipsets ---------------------------------------------------------------------------------------------


def sets_to_change(made: Mapping[str, IpSet], there: Mapping[str, IpSet]) -> Wish:
    """Sets that are missing, and of the others the entries that are missing, and those that nobody made."""
    add, remove = {}, {}
    for name, each in made.items():
        found = there[name].entries if name in there else frozenset()
        if name in there and found == each.entries:
            continue
        add[name] = msgspec.structs.replace(each, entries=each.entries - found)
        if strange := found - each.entries:
            remove[name] = msgspec.structs.replace(each, entries=strange)
    return NetnsState(ipsets=add), NetnsState(ipsets=remove)


# --- what is on devices ---------------------------------------------------------------------------------


def routes_to_change(upkeep: Upkeep, made: Mapping[str, Route], there: Iterable[Route]) -> Wish:
    """Routes to where none leads any more; ``exclusive``: or only others do; and strange ones, which go.

    Who is not ``exclusive`` adds its own beside one of another metric: the kernel keeps both.
    """
    found: dict[str, list[Route]] = {}
    for route in there:
        found.setdefault(route.dst, []).append(route)
    if not upkeep.exclusive:
        missing = {
            dst: each
            for dst, each in made.items()
            if not any(_in_place_of(each, other) for other in found.get(dst, ()))
        }
        return NetnsState(routes=missing), NetnsState()
    add = {
        dst: each for dst, each in made.items() if not any(_same(each, other) for other in found.get(dst, ()))
    }
    strange = {
        dst: each
        for dst, several in found.items()
        if dst not in made
        for each in several
        if is_own(upkeep, each)
    }
    return NetnsState(routes=add), NetnsState(routes=strange)


def entries_to_change(
    upkeep: Upkeep, made: Mapping[K, E], there: Mapping[K, E]
) -> tuple[dict[K, E], dict[K, E]]:
    """Neighbours or forwarding entries to add, and strange ones on the daemon's own devices to remove."""
    add = {key: each for key, each in made.items() if there.get(key) != each}
    return add, {key: each for key, each in there.items() if key not in made and is_own(upkeep, each)}


def is_own(upkeep: Upkeep, thing: Route | Neighbour | FdbEntry) -> bool:
    """Whether something is the daemon's: by its device or, of a route, by its protocol."""
    if isinstance(thing, Route) and thing.proto in upkeep.protocols:
        return True
    return thing.dev is not None and thing.dev.startswith(upkeep.names)


def versions(made: Iterable[str]) -> list[int]:
    """The IP versions of routes, by their destinations."""
    return sorted({ip_network(dst).version for dst in made})


def _same(made: Route, there: Route) -> bool:
    """Whether both lead to the same; the kernel says of IPv6's black holes that they are on lo."""
    if (made.kind, made.proto, _address(made.via)) != (there.kind, there.proto, _address(there.via)):
        return False
    return made.kind != "unicast" or made.dev in (None, there.dev)


def _in_place_of(made: Route, there: Route) -> bool:
    """Whether another route leads to the same, or has the place of this one, which can then not be added.

    Source: flannel ``pkg/backend/route_network.go``: routeEqual, RouteAdd.
    """
    to, leads = ((_address(route.via), route.dev) for route in (made, there))
    return to == leads or made.metric == there.metric


def _address(text: str | None) -> object:
    return None if text is None else ip_address(text)
