"""What goes wrong with Calico beside its BGP: a pool that covers the nodes' own network, a borrowed address
that nobody is told of, IP in IP that is dropped on the way.

The sources are those of the dataplane; what each does to routes, sets and BIRD stands in ``docs/faults.md``.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, ClassVar

import msgspec

from testbed.dataplane.calico.felix import ALL_POOLS, MASQ_POOLS
from testbed.dataplane.calico.names import PROTO, address
from testbed.dataplane.calico.rules import set_name
from testbed.errors import InputError
from testbed.faults.bgp import EXPORT, PROGRAM, asked, rewritten, with_line
from testbed.faults.model import Fault, States, fault, told
from testbed.faults.target import Aim, Link, Scene, Target, other_nodes
from testbed.state import IpSet, NodeState, Route

if TYPE_CHECKING:
    from testbed.faults.hands import Hands

POOLS = tuple(set_name("ipv4", name) for name in (ALL_POOLS, MASQ_POOLS))
TABLE = "testbed-ipip"


@fault("pool-overlap")
class PoolOverlap(Fault, frozen=True, kw_only=True):
    """An IPPool covers the nodes' own network: pods are no longer masqueraded towards it.

    pool: that range; without, the /16 around the node's address, which is Calico's stock pool for nodes in
    192.168.0.0/16. BIRD also announces the nodes' network. Usually asked of all nodes.
    """

    aim: ClassVar[Aim] = "node"

    pool: str = ""

    def resolve(self, target: Target, scene: Scene) -> Target:
        """The pool covers the node's address."""
        nodes = {node.name: address(node, 4) for node in target.nodes}
        own = [ip_address(ip) for ip in nodes.values() if ip is not None]
        if not own:
            raise InputError(f"{', '.join(nodes)}: no IPv4 address")
        try:
            pool = ip_network(self.pool or f"{own[0]}/16", strict=bool(self.pool))
        except ValueError as error:
            raise InputError(f"pool: {error}") from error
        if any(ip not in pool for ip in own):
            raise InputError(f"pool: {pool} does not cover {', '.join(map(str, own))}")
        return msgspec.structs.replace(target, addresses=(str(pool),))

    def perturb(self, states: States, target: Target) -> States:
        """The pool is in felix's sets and in BIRD's filters."""
        (pool,) = target.addresses

        def change(state: NodeState) -> NodeState:
            if POOLS[0] not in state.netns.ipsets:
                return state
            sets = {name: _with(state.netns.ipsets[name], pool) for name in POOLS}
            netns = msgspec.structs.replace(state.netns, ipsets={**state.netns.ipsets, **sets})
            state = msgspec.structs.replace(state, netns=netns)
            return rewritten(state, lambda text: _with_pool(text, pool))

        names = {node.name for node in target.nodes}
        return {name: change(state) if name in names else state for name, state in states.items()}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """BIRD itself says whether it tells others of the nodes' network."""
        pool = ip_network(target.addresses[0])
        for node in target.nodes:
            if not await asked(hands, node.name, "status"):
                continue  # no BIRD, as with VXLAN
            for network in (each for each in map(ip_network, node.networks) if each.version == 4):
                shown = await asked(hands, node.name, "route", str(network), "filter", f"{EXPORT}4")
                if network.subnet_of(pool) and (str(network) in shown) != on:  # type: ignore[arg-type]
                    return f"{node.name}: {network} is {'not' if on else 'still'} announced"
        return ""


def _with(pools: IpSet, pool: str) -> IpSet:
    """One of felix's sets; the one of pools that are masqueraded is empty without natOutgoing."""
    return msgspec.structs.replace(pools, entries=pools.entries | {pool}) if pools.entries else pools


def _with_pool(text: str, pool: str) -> str:
    """``bird.conf`` with one more pool: told to others, and through a tunnel left to felix like the rest."""
    text = with_line(text, f"filter {EXPORT}4", "  reject;", f"  if ( net ~ {pool} ) then accept;")
    felixs = "  if ( source = RTS_BGP && net ~ "
    return with_line(text, f"filter {PROGRAM}4", felixs, f"{felixs}{pool} ) then reject;")


@fault("missing-borrowed-route")
class MissingBorrowedRoute(Fault, frozen=True, kw_only=True):
    """Other nodes have no route to the addresses that the node has borrowed of another's block.

    They send to the block's owner, whose black hole swallows the packets. In BGP a filter of the node keeps
    its routes back; through tunnels felix lacks them. It is about what is borrowed when the fault comes.
    """

    aim: ClassVar[Aim] = "node"

    def resolve(self, target: Target, scene: Scene) -> Target:
        """What is borrowed at this moment."""
        borrowed = [ip for node in target.nodes for ip in node.held.borrowed if ":" not in ip]
        if not borrowed:
            raise InputError(f"{', '.join(target.names)}: has no IPv4 address of another node's block")
        singles = tuple(f"{ip}/32" for ip in borrowed)
        return msgspec.structs.replace(target, peers=other_nodes(scene, target), addresses=singles)

    def perturb(self, states: States, target: Target) -> States:
        """At the node its filter, at the others felix's routes."""
        names = {node.name for node in target.nodes}

        def untold(text: str) -> str:
            for single in target.addresses:
                line = f"  if ( net = {single} ) then reject;"
                text = with_line(text, f"filter {EXPORT}4", "  if ( defined(krt_source)", line)
            return text

        def change(name: str, state: NodeState) -> NodeState:
            if name in names:
                return rewritten(state, untold)
            gone = [dst for dst in target.addresses if _is_felixs(state.netns.routes.get(dst))]
            routes = {dst: each for dst, each in state.netns.routes.items() if dst not in gone}
            netns = msgspec.structs.replace(state.netns, routes=routes)
            return msgspec.structs.replace(state, netns=netns) if gone else state

        return {name: change(name, state) for name, state in states.items()}

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """Asked of the kernel, as in BGP BIRD withdraws them; to a pod that is gone no route comes back."""
        there = {f"{ip}/32" for pod in hands.plane.running() for ip in pod.ips}
        for peer in (each for each in target.peers if hands.alive(each.name)):
            for single in (each for each in target.addresses if each in there):
                shown = await hands.json(peer.name, ["ip", "-json", "route", "show", "exact", single])
                if bool(shown) == on:
                    return f"{peer.name}: {'still a' if on else 'no'} route to {single}"
        return ""


def _is_felixs(route: Route | None) -> bool:
    """Whether it is a route of felix, that is of another node's pod."""
    return route is not None and route.proto == PROTO


@fault("ipip-filtered")
class IpipFiltered(Fault, frozen=True, kw_only=True):
    """A firewall between the node and the others drops IP protocol 4: BGP goes on, and no pod is reached.

    It stands in the network, at the far end of the node's cable, so that it makes no difference whether the
    tunnel is the kernel's device or made of programs.
    """

    aim: ClassVar[Aim] = "node"
    needs: ClassVar[frozenset[str]] = frozenset({"nf_tables"})
    outlives_nodes: ClassVar[bool] = True

    def resolve(self, target: Target, scene: Scene) -> Target:
        """With the nodes' own links."""
        options = scene.snapshot.facts.dataplane_options
        calicos = options.get("ipipMode", "Never") != "Never" and options.get("vxlanMode", "Never") == "Never"
        if not calicos and options.get("backend") != "ipip":
            raise InputError("nothing goes in IP in IP here")
        return msgspec.structs.replace(target, links=tuple(scene.link(node.name) for node in target.nodes))

    async def inject(self, hands: Hands, target: Target) -> None:
        """Both ways at the port."""
        for link in target.links:
            where, port = link.ends[1]
            chains = "".join(
                f'chain {hook} {{ type filter hook {hook} device "{port}" priority 0; '
                f"ip protocol 4 counter drop; }}\n"
                for hook in ("ingress", "egress")
            )
            await hands.run(where, ["nft", "-f", "-"], f"table netdev {_table(link)} {{\n{chains}}}\n")

    async def lift(self, hands: Hands, target: Target) -> None:
        """The table goes, if it was made."""
        for link in target.links:
            if await _there(hands, link):
                await hands.run(link.ends[1][0], ["nft", "delete", "table", "netdev", _table(link)])

    async def amiss(self, hands: Hands, target: Target, on: bool) -> str:
        """nft lists it."""
        shown = _filtered if on else _there
        wrong = [link.name for link in target.links if await shown(hands, link) != on]
        return told(wrong, "not filtered" if on else "still filtered")


def _table(link: Link) -> str:
    return f"{TABLE}-{link.ends[1][1]}"


async def _there(hands: Hands, link: Link) -> bool:
    listed = await hands.run(link.ends[1][0], ["nft", "list", "tables", "netdev"])
    return f"table netdev {_table(link)}" in listed.splitlines()


async def _filtered(hands: Hands, link: Link) -> bool:
    if not await _there(hands, link):
        return False
    shown = await hands.run(link.ends[1][0], ["nft", "list", "table", "netdev", _table(link)])
    return shown.count("ipencap") == 2 or shown.count("ip protocol 4") == 2
