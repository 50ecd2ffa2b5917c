"""What has to change on a node to get from one state to another, and one state of several fragments; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from testbed.cluster.messages import (
    AddPods,
    Change,
    ChangeNetns,
    ChangeSandboxes,
    DeletePods,
    LoadPlugins,
    RunDaemons,
    ServeNode,
    UpdatePod,
    WriteFiles,
)
from testbed.errors import TestbedError
from testbed.kernel.sysctl import device as sysctl_device
from testbed.rules import nft
from testbed.rules.iptables import is_built_in, is_edited, joined
from testbed.state import (
    MADE_ALONE,
    NODE,
    Chain,
    Daemon,
    IpSet,
    Link,
    Listener,
    NetnsState,
    NftChain,
    NodeState,
    PluginList,
    PodState,
    Route,
    Sandbox,
)

K = TypeVar("K")
V = TypeVar("V")

NFT_PARTS = ("nft_tables", "nft_chains", "nft_sets", "nft_elements")
"""The parts of a ``NetnsState`` that one transaction of nft changes."""

RULE_PARTS = ("chains", "ipsets", "virtual_servers", "real_servers", *NFT_PARTS)
"""Parts that need no device to be there."""


FIXED = ("kind", "peer", "vxlan", "ipip", "wireguard")
"""What of a device is as it was made."""


class Conflict(TestbedError):
    """Two fragments claim the same key with different meanings."""

    def __init__(self, what: str, first: str, second: str) -> None:
        super().__init__(f"{what} is claimed by both {first} and {second}")


# --- merge --------------------------------------------------------------------------------------------


Merged = dict[str, tuple[list[tuple[str, PodState]], PodState]]
"""Pod uid → the parts that were merged, and what came out."""


def merge(fragments: Iterable[tuple[str, NodeState]], merged: Merged | None = None) -> NodeState:
    """One state of several named fragments.

    merged: what came of pods the last time, so that what is the same stays the same object.
    Two that claim one key are a Conflict naming both, with two exceptions: chains are put together where
    they can be, and a sysctl may be asked for twice with the same value. A pod may be described by
    several fragments, each of which fills in fields that the others leave empty.
    """
    netns: list[tuple[str, NetnsState]] = []
    pods: dict[str, list[tuple[str, PodState]]] = {}
    listeners: tuple[Listener, ...] = ()
    daemons: list[tuple[str, dict[str, Daemon]]] = []
    sandboxes: list[tuple[str, dict[str, Sandbox]]] = []
    files: list[tuple[str, dict[str, str]]] = []
    plugins: PluginList | None = None
    for name, fragment in fragments:
        netns.append((name, fragment.netns))
        listeners += fragment.listeners
        daemons.append((name, fragment.daemons))
        sandboxes.append((name, fragment.sandboxes))
        files.append((name, fragment.files))
        plugins = fragment.plugins or plugins
        for uid, pod in fragment.pods.items():
            pods.setdefault(uid, []).append((name, pod))
    before = dict(merged) if merged else {}
    whole = {uid: _merged(before.get(uid), uid, parts) for uid, parts in pods.items()}
    if merged is not None:
        merged.clear()
        merged |= {uid: (parts, whole[uid]) for uid, parts in pods.items()}
    return NodeState(
        merge_netns(netns),
        whole,
        listeners,
        _merge_part("daemons", daemons),
        _merge_part("sandboxes", sandboxes),
        _merge_part("files", files),
        plugins,
    )


def _merged(
    before: tuple[list[tuple[str, PodState]], PodState] | None, uid: str, parts: list[tuple[str, PodState]]
) -> PodState:
    if before is not None and len(before[0]) == len(parts):
        pairs = zip(before[0], parts, strict=True)
        if all(old is new for (_, old), (_, new) in pairs):
            return before[1]
    return _merge_pod(uid, parts)


def merge_netns(fragments: list[tuple[str, NetnsState]]) -> NetnsState:
    """One netns of several named fragments, as ``merge`` does it."""
    merged = {
        part: _merge_part(part, [(name, getattr(netns, part)) for name, netns in fragments])
        for part in NetnsState.__struct_fields__
    }
    return NetnsState(**merged)


def _merge_part(part: str, fragments: list[tuple[str, dict[Any, Any]]]) -> dict[Any, Any]:
    merged: dict[Any, Any] = {}
    filled: list[tuple[str, dict[Any, Any]]] = []
    for name, mapping in fragments:
        if not mapping:
            continue
        both = {key: merged[key] for key in merged.keys() & mapping.keys()} if merged else {}
        merged = {**merged, **mapping} if merged else dict(mapping)
        for key, value in both.items():
            try:
                merged[key] = _both(part, value, mapping[key])
            except ValueError as error:
                owner = next(owner for owner, earlier in filled if key in earlier)
                raise Conflict(f"{part} {key}", owner, name) from error
        filled.append((name, mapping))
    return merged


def _both(part: str, one: Any, other: Any) -> Any:
    """What two fragments that both claim it make of one thing. Raises ValueError."""
    if part == "chains":
        return joined(one, other)
    if part == "sysctls" and one == other:
        return one
    raise ValueError("two claims")


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(PodState)}


def _merge_pod(uid: str, parts: list[tuple[str, PodState]]) -> PodState:
    if len(parts) == 1:
        return parts[0][1]
    merged: dict[str, Any] = {}
    for field in PodState.__struct_fields__:
        if field == "netns":
            merged["netns"] = merge_netns([(name, pod.netns) for name, pod in parts])
            continue
        unsaid = _DEFAULTS[field]
        said = [(name, value) for name, pod in parts if (value := getattr(pod, field)) and value != unsaid]
        for (first, one), (second, other) in pairwise(said):
            if one != other:
                raise Conflict(f"{field} of pod {uid}", first, second)
        merged[field] = said[0][1] if said else getattr(parts[0][1], field)
    return PodState(**merged)


# --- diff ---------------------------------------------------------------------------------------------


def diff(old: NodeState | None, new: NodeState) -> tuple[Change, ...]:
    """The changes that make ``new`` of ``old`` (None: of an empty node), in an order the kernel accepts.

    Pods that go; then what goes from the node's netns, its new devices and rules; pods that come; what
    hangs on their host ends; changes inside pods that stay. What the kernel takes down by itself along
    with a device is neither removed nor, where it is still wanted, forgotten.
    """
    old = old or NodeState()
    same = {uid for uid, pod in old.pods.items() if new.pods.get(uid) is pod}
    stay = same | {
        uid
        for uid in old.pods
        if uid in new.pods and uid not in same and not _remade(old.pods[uid], new.pods[uid])
    }
    deleted = [pod for uid, pod in old.pods.items() if uid not in stay]
    added = tuple(pod for uid, pod in new.pods.items() if uid not in stay)
    comes = frozenset(_peers(added))
    add, remove = _netns_change(old.netns, new.netns, frozenset(_peers(deleted)), comes)
    before, after = _split(add, comes) if added else (add, NetnsState())
    changes: list[Change] = []
    if deleted:
        changes.append(DeletePods(tuple(pod.uid for pod in deleted)))
    if new.plugins is not None and old.plugins != new.plugins:
        changes.append(LoadPlugins(new.plugins))
    if old.sandboxes.keys() != new.sandboxes.keys():
        # What plugins were called with stays as it was until they are called to take it down.
        coming = tuple(each for uid, each in new.sandboxes.items() if uid not in old.sandboxes)
        changes.append(
            ChangeSandboxes(coming, tuple(uid for uid in old.sandboxes if uid not in new.sandboxes))
        )
    changes += _change(NODE, before, remove)
    if added:
        changes.append(AddPods(added))
    changes += _change(NODE, after, NetnsState())
    for uid in sorted(stay - same):
        changes += _pod_changes(old.pods[uid], new.pods[uid])
    if old.listeners != new.listeners:
        changes.append(ServeNode(new.listeners))
    if old.files != new.files:
        changes.append(WriteFiles(new.files))
    if old.daemons != new.daemons:
        changes.append(RunDaemons(new.daemons))
    return tuple(changes)


REPLACED = ("chains", *NFT_PARTS, "routes", "neighbours", "fdb", "sysctls")
"""Parts in which an entry can be set over one that is there."""
_KNOWN = ("links", "addresses", "peers", "virtual_servers", "real_servers")


def restarted(applied: NodeState, found: NetnsState) -> NodeState:
    """What of what was applied counts as still there when those who set it start anew, which set again all
    that they do not find. found: what the kernel has. Pods, and what shapes their traffic, are not theirs.
    """
    was = applied.netns
    parts: dict[str, Any] = {part: {} for part in REPLACED}
    for part in _KNOWN:
        there = getattr(found, part)
        parts[part] = {key: value for key, value in getattr(was, part).items() if key in there}
    parts["ipsets"] = {
        name: msgspec.structs.replace(found.ipsets[name], members=one.members)
        for name, one in was.ipsets.items()
        if name in found.ipsets
    }
    netns = msgspec.structs.replace(was, **parts)
    return msgspec.structs.replace(applied, netns=netns, daemons={}, files={})


def _change(where: str, add: NetnsState, remove: NetnsState) -> list[Change]:
    return [ChangeNetns(where, add, remove)] if add != NetnsState() or remove != NetnsState() else []


def _pod_changes(old: PodState, new: PodState) -> list[Change]:
    nothing = frozenset[str]()
    changes = _change(new.uid, *_netns_change(old.netns, new.netns, nothing, nothing))
    if msgspec.structs.replace(old, netns=new.netns) != new:
        changes.append(UpdatePod(new))
    return changes


def _peers(pods: Iterable[PodState]) -> Iterable[str]:
    """The host ends, in the node's netns, of these pods' veth pairs."""
    return (link.peer for pod in pods for link in pod.netns.links.values() if link.peer is not None)


def _remade(old: PodState, new: PodState) -> bool:
    """Whether a pod has to be made anew: to or from the host's network, with other veth pairs, or as its
    plugin no longer refuses it."""

    def veths(pod: PodState) -> dict[str, Link]:
        return {name: link for name, link in pod.netns.links.items() if link.kind == "veth"}

    before, after = veths(old), veths(new)
    return (
        old.host_network != new.host_network
        or old.refused != new.refused
        or before.keys() != after.keys()
        or any(_recreated(before[name], after[name]) for name in before)
    )


def _recreated(old: Link, new: Link) -> bool:
    """Whether a device must be deleted and made again: what cannot be changed, or unset, in place."""
    fixed = any(getattr(old, part) != getattr(new, part) for part in FIXED)
    unset = (old.mtu is not None and new.mtu is None) or (old.mac is not None and new.mac is None)
    return fixed or unset


def _split(add: NetnsState, peers: frozenset[str]) -> tuple[NetnsState, NetnsState]:
    """What can be done before the new pods are there, and what needs their host ends or comes after links."""
    empty = NetnsState()
    links = {name: link for name, link in add.links.items() if name not in peers}
    sysctls = {path: value for path, value in add.sysctls.items() if sysctl_device(path) not in peers}
    before = NetnsState(
        links=links,
        sysctls=sysctls,
        **{part: getattr(add, part) for part in RULE_PARTS},
    )
    after = msgspec.structs.replace(
        add,
        links=_without(add.links, links),
        sysctls=_without(add.sysctls, sysctls),
        **{part: getattr(empty, part) for part in RULE_PARTS},
    )
    return before, after


def _without(mapping: Mapping[K, V], other: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in mapping.items() if key not in other}


def _netns_change(
    old: NetnsState, new: NetnsState, leave: frozenset[str], come: frozenset[str]
) -> tuple[NetnsState, NetnsState]:
    """(add, remove) for one netns. leave, come: devices that go and come with pods' netns."""
    lost = leave | _lost(old.links, new.links)
    ends = _ends(old.links, lost)
    touched = come | _touched(old, new, lost)
    freed = {address.address.partition("/")[0] for address in _gone(old.addresses, new.addresses).values()}

    def again_on(dev: str | None) -> bool:
        return dev in touched

    def route_again(route: Route) -> bool:
        devices = _route_devices(route)
        unknown = not devices and route.kind == "unicast"
        return route.src in freed or bool(devices & touched) or (unknown and bool(touched))

    nft_add, nft_remove = _nft_change(old, new)
    sets_add, sets_remove = _sets_change(old.ipsets, new.ipsets)
    add = NetnsState(
        links=_wanted(old.links, new.links, lambda link: again_on(link.name) or again_on(link.master)),
        addresses=_wanted(old.addresses, new.addresses, lambda address: again_on(address.dev)),
        routes=_wanted(old.routes, new.routes, route_again),
        neighbours=_wanted(old.neighbours, new.neighbours, lambda entry: again_on(entry.dev)),
        fdb=_wanted(old.fdb, new.fdb, lambda entry: again_on(entry.dev)),
        peers=_wanted(old.peers, new.peers, lambda peer: again_on(peer.dev)),
        shapers=_wanted(old.shapers, new.shapers, lambda shaper: again_on(shaper.dev)),
        redirects=_wanted(old.redirects, new.redirects, lambda each: again_on(each.dev) or again_on(each.to)),
        sysctls={
            path: value
            for path, value in new.sysctls.items()
            if old.sysctls.get(path) != value or again_on(sysctl_device(path))
        },
        chains=_wanted(old.chains, new.chains, lambda chain: False),
        udp=_wanted(old.udp, new.udp, lambda flows: False),
        ipsets=sets_add,
        virtual_servers=_wanted(old.virtual_servers, new.virtual_servers, lambda server: False),
        real_servers=_wanted(old.real_servers, new.real_servers, lambda server: False),
        **nft_add,
    )
    remove = NetnsState(
        links={  # a vxlan before the device it stands on, which would take it along
            name: link
            for name, link in sorted(old.links.items(), key=lambda item: item[1].kind != "vxlan")
            if name not in leave | ends and (name not in new.links or name in lost)
        },
        addresses={
            key: gone for key, gone in _gone(old.addresses, new.addresses).items() if gone.dev not in lost
        },
        routes={
            dst: route
            for dst, route in old.routes.items()
            if dst not in new.routes and not _route_devices(route) & lost
        },
        neighbours={
            key: entry
            for key, entry in _gone(old.neighbours, new.neighbours).items()
            if entry.dev not in lost
            and (key not in new.neighbours or not (entry.mac and new.neighbours[key].mac))
        },
        fdb={key: entry for key, entry in _gone(old.fdb, new.fdb).items() if entry.dev not in lost},
        peers={key: peer for key, peer in old.peers.items() if key not in new.peers and peer.dev not in lost},
        shapers={
            dev: each for dev, each in old.shapers.items() if dev not in new.shapers and dev not in lost
        },
        redirects={
            dev: each for dev, each in old.redirects.items() if dev not in new.redirects and dev not in lost
        },
        sysctls={
            path: value
            for path, value in old.sysctls.items()
            if path not in new.sysctls and sysctl_device(path) not in lost
        },
        chains=_chains_to_remove(old.chains, new.chains),
        udp=_without(old.udp, new.udp),
        ipsets=sets_remove,
        virtual_servers=_without(old.virtual_servers, new.virtual_servers),
        real_servers=_without(old.real_servers, new.real_servers),
        **nft_remove,
    )
    return add, remove


def _lost(old: Mapping[str, Link], new: Mapping[str, Link]) -> frozenset[str]:
    """Devices that are deleted, or deleted and made again; a vxlan goes with the device it stands on, a veth
    with its other end."""
    lost = {
        name
        for name, link in old.items()
        if link.kind in MADE_ALONE and (name not in new or _recreated(link, new[name]))
    }
    carried = {name for name, link in old.items() if link.vxlan is not None and link.vxlan.dev in lost}
    return frozenset(lost | carried | _ends(old, lost))


def _ends(links: Mapping[str, Link], veths: Iterable[str]) -> frozenset[str]:
    """The other ends, in the same netns, of those of the devices that are veths."""
    return frozenset(links[name].peer or "" for name in veths if name in links) & links.keys()


def _touched(old: NetnsState, new: NetnsState, lost: frozenset[str]) -> frozenset[str]:
    """Devices on which the kernel drops more than is asked of it, so that what they carry is set again.

    A device going down, or losing its last IPv4 address, loses its routes; a primary address takes its
    secondary ones along; an MTU below IPv6's minimum takes all of IPv6.
    """
    changed = {
        name
        for name, link in new.links.items()
        if name in old.links and _itself(old.links[name]) != _itself(link)
    }
    return lost | changed | {dev for dev, _ in _gone(old.addresses, new.addresses)}


def _itself(link: Link) -> Link:
    """A link apart from the bridge it is a port of."""
    return msgspec.structs.replace(link, master=None, hairpin=False)


def _route_devices(route: Route) -> set[str]:
    return {dev for dev in (route.dev, *(hop.dev for hop in route.nexthops)) if dev is not None}


def _wanted(old: Mapping[K, V], new: Mapping[K, V], again: Callable[[V], bool]) -> dict[K, V]:
    """What of ``new`` is not in ``old`` as it is, or has to be set again."""
    return {
        key: value
        for key, value in new.items()
        if ((before := old.get(key)) is not value and before != value) or again(value)
    }


def _gone(old: Mapping[K, V], new: Mapping[K, V]) -> dict[K, V]:
    """What of ``old`` is not in ``new`` as it is."""
    return {
        key: value for key, value in old.items() if (after := new.get(key)) is not value and after != value
    }


def _chains_to_remove(
    old: Mapping[tuple[str, str, str], Chain], new: Mapping[tuple[str, str, str], Chain]
) -> dict[tuple[str, str, str], Chain]:
    """Chains that go; and what changed ones hold now, of built-in ones, which others share, and long ones."""
    return {
        key: chain
        for key, chain in _gone(old, new).items()
        if key not in new or is_built_in(chain) or is_edited(chain, new[key])
    }


def _sets_change(
    old: Mapping[str, IpSet], new: Mapping[str, IpSet]
) -> tuple[dict[str, IpSet], dict[str, IpSet]]:
    """The ipsets of (add, remove): of a set that stays, the entries that come and those that go.

    One whose entries come and go at a time of their own is in both, so that it can be told from a new one.
    """
    add, remove = {}, {}
    for name, after in _wanted(old, new, lambda each: False).items():
        before = old[name].entries if name in old else frozenset()
        add[name] = msgspec.structs.replace(after, entries=after.entries - before)
        left = before - after.entries
        if left or (name in old and after.members != "any"):
            remove[name] = msgspec.structs.replace(after, entries=left)
    return add, {**remove, **{name: each for name, each in old.items() if name not in new}}


# --- nftables -----------------------------------------------------------------------------------------


def _nft_change(
    old: NetnsState, new: NetnsState
) -> tuple[dict[str, dict[Any, Any]], dict[str, dict[Any, Any]]]:
    """The nftables parts of (add, remove).

    A set cannot change in place, nor while rules look at it: their chains are written again. A chain that
    others lead to cannot get another comment or become a base chain: then its table is made anew.
    """
    if all(getattr(old, part) is getattr(new, part) for part in NFT_PARTS):
        return {}, {}
    remade = _remade_tables(old, new)
    sets = _gone(old.nft_sets, new.nft_sets)
    changed = {each for each in sets if each in new.nft_sets}

    def in_remade(thing: Any) -> bool:
        return nft.table_key(thing) in remade

    def chain_again(chain: NftChain) -> bool:
        return in_remade(chain) or bool(
            changed
            and any(
                (chain.family, chain.table, name) in changed
                for rule in chain.rules
                for name in nft.sets_of(rule)
            )
        )

    add: dict[str, dict[Any, Any]] = {
        "nft_tables": {key: table for key, table in new.nft_tables.items() if key in remade},
        "nft_chains": _wanted(old.nft_chains, new.nft_chains, chain_again),
        "nft_sets": _wanted(old.nft_sets, new.nft_sets, in_remade),
        "nft_elements": _wanted(
            old.nft_elements,
            new.nft_elements,
            lambda each: in_remade(each) or nft.element_set(each) in changed,
        ),
    }
    remove: dict[str, dict[Any, Any]] = {
        "nft_tables": {key: table for key, table in old.nft_tables.items() if key not in new.nft_tables},
        "nft_chains": {
            key: chain
            for key, chain in _gone(old.nft_chains, new.nft_chains).items()
            if key not in new.nft_chains or not nft.same_place(chain, new.nft_chains[key])
        },
        "nft_sets": sets,
        "nft_elements": {
            key: each
            for key, each in _gone(old.nft_elements, new.nft_elements).items()
            if nft.element_set(each) not in sets
        },
    }
    void = remade | remove["nft_tables"].keys()
    return add, {
        part: things
        if part == "nft_tables"
        else {key: thing for key, thing in things.items() if key[:2] not in void}
        for part, things in remove.items()
    }


def _remade_tables(old: NetnsState, new: NetnsState) -> set[tuple[str, str]]:
    """Tables that are new or made anew."""
    remade = {key for key, table in new.nft_tables.items() if old.nft_tables.get(key) != table}
    return remade | {
        nft.table_key(chain)
        for key, chain in new.nft_chains.items()
        if (before := old.nft_chains.get(key, chain)) is not chain
        and not (nft.is_base(before) and nft.is_base(chain))
        and not nft.same_place(before, chain)
    }
