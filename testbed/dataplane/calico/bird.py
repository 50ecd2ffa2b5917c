"""The configuration of the BIRD 2 that runs on each node, as Calico's confd would write it for its BIRD 1.6.

Sources: projectcalico/calico ``confd/pkg/backends/calico/bgp_processor.go``,
``confd/tests/compiled_templates/mesh``, ``…/explicit_peering/route_reflector``; BIRD 2.0 user's guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_network

from testbed.control.snapshot import ClusterFacts, Node, Router, Snapshot
from testbed.dataplane.calico import fabric
from testbed.dataplane.calico.blocks import fnv32
from testbed.dataplane.calico.names import PROTO, address
from testbed.dataplane.calico.options import Options
from testbed.state import Daemon

NAME = "bird"
CONFIG, CONTROL = "bird.conf", "bird.ctl"
CLUSTER_ID = "244.0.0.1"
"""What Calico's documents give route reflectors as routeReflectorClusterID."""

CALICO_TIMERS = (
    "connect delay time 2;",
    "connect retry time 5;",
    "error wait time 5,30;",
    "graceful restart;",
)
FAST_TIMERS = (
    "connect delay time 1;",
    "connect retry time 1;",
    "error wait time 1,5;",
    "hold time 9;",
    "keepalive time 3;",
    "graceful restart off;",
)


def daemon(snapshot: Snapshot, node: Node, options: Options) -> Daemon:
    """The node's BIRD."""
    return Daemon(
        argv=_argv() if options.fast else _argv("-R"),
        files={CONFIG: config(snapshot, node, options)},
        reload=("birdc", "-s", f"@DIR@/{CONTROL}", "configure"),
    )


def _argv(*more: str) -> tuple[str, ...]:
    # As in calico-node: -d keeps it in the foreground and has it log to stderr; without, what it says goes to
    # syslog, and where there is none, as in a sandbox, to the console of the host.
    return ("bird", *more, "-d", "-c", f"@DIR@/{CONFIG}", "-s", f"@DIR@/{CONTROL}")


def config(snapshot: Snapshot, node: Node, options: Options) -> str:
    """``bird.conf`` of a node."""
    return "\n".join((*_lines(snapshot, node, options), ""))


def _lines(snapshot: Snapshot, node: Node, options: Options) -> Iterator[str]:
    router = address(node, 4) or str(IPv4Address(fnv32(node.name)))  # calico's CALICO_ROUTER_ID=hash
    yield f"router id {router};"
    yield ""
    yield "protocol device {"
    yield "  scan time 2;"
    yield "}"
    yield ""
    yield "protocol direct {"
    for version in options.versions:
        yield f"  ipv{version};"
    yield '  interface -"cali*", -"kube-ipvs*", "*";'
    yield "}"
    for version in options.versions:
        own = address(node, version)
        if own is None:
            continue
        yield from _tables(snapshot, node, options, version)
        yield from _template(options, version)
        leaf = None if options.encapsulation(version) else fabric.leaf_of(snapshot.facts, node, version)
        if leaf is not None:
            yield from _to_leaf(leaf, own)
            continue
        for peer in peers(snapshot, node, options):
            if (there := address(peer, version)) is not None:
                yield from _peer(node, peer, own, there, options)


def _tables(snapshot: Snapshot, node: Node, options: Options, version: int) -> Iterator[str]:
    """The own blocks, what goes to other routers, and what goes to the kernel."""
    blocks = [block for block in node.held.ranges if ip_network(block).version == version]
    pools = [pool for pool in snapshot.facts.pod_cidrs if ip_network(pool).version == version]
    yield ""
    yield f"protocol static blocks{version} {{"
    yield f"  ipv{version};"
    for block in blocks:
        yield f"  route {block} blackhole;"
    yield "}"
    yield ""
    yield f"filter calico_export_to_bgp_peers{version} {{"
    for block in blocks:
        yield f"  if ( net = {block} ) then accept;"
        yield f"  if ( net ~ {block} ) then reject;"
    yield f"  if ( defined(krt_source) && krt_source = {PROTO} ) then reject;  # felix's, through tunnels"
    for pool in pools:
        yield f"  if ( net ~ {pool} ) then accept;"
    yield "  reject;"
    yield "}"
    yield ""
    yield f"filter calico_kernel_programming{version} {{"
    if options.encapsulation(version):
        for pool in pools:
            yield f"  if ( source = RTS_BGP && net ~ {pool} ) then reject;  # felix routes the cluster"
    yield "  if ( source = RTS_DEVICE ) then reject;  # BIRD 1.6 leaves these out by itself"
    yield "  accept;"
    yield "}"
    yield ""
    yield f"protocol kernel kernel{version} {{"
    yield "  learn;"
    yield "  persist;"
    yield "  scan time 2;"
    if not options.fast:
        yield "  graceful restart;"
    yield "  merge paths on;"
    yield f"  ipv{version} {{"
    yield "    import all;"
    yield f"    export filter calico_kernel_programming{version};"
    yield "  };"
    yield "}"


def _timers(options: Options) -> Iterator[str]:
    for line in FAST_TIMERS if options.fast else CALICO_TIMERS:
        yield f"  {line}"


def _template(options: Options, version: int) -> Iterator[str]:
    yield ""
    yield f"template bgp bgp_template{version} {{"
    yield '  description "Connection to BGP peer";'
    yield f"  local as {options.as_number};"
    yield from _timers(options)
    yield f"  ipv{version} {{"
    yield "    gateway recursive;"
    yield "    import all;"
    yield f"    export filter calico_export_to_bgp_peers{version};"
    yield "    add paths on;"
    yield "  };"
    yield "}"


def peers(snapshot: Snapshot, node: Node, options: Options) -> Iterator[Node]:
    """The nodes that a node speaks BGP with: all of them, or with reflectors those, each way."""
    reflects = node.name in options.reflectors
    for other in snapshot.nodes:
        if other.name != node.name and (
            not options.reflectors or reflects or other.name in options.reflectors
        ):
            yield other


def _to_leaf(leaf: fabric.Leaf, own: str) -> Iterator[str]:
    """The router of the rack reflects the routes of its nodes and tells those of other racks."""
    version = ip_address(own).version
    yield ""
    yield f"# {leaf.router.name}"
    yield f"protocol bgp Leaf{version} from bgp_template{version} {{"
    yield f"  local {own} as {leaf.number};"
    yield f"  neighbor {leaf.address} as {leaf.number};"
    yield "}"


def router_daemon(facts: ClusterFacts, router: Router, options: Options) -> Daemon:
    """The BIRD of a router of the fabric."""
    return Daemon(
        argv=_argv(),
        files={CONFIG: "\n".join((*_router_lines(facts, router, options), ""))},
        reload=("birdc", "-s", f"@DIR@/{CONTROL}", "configure"),
    )


def _router_lines(facts: ClusterFacts, router: Router, options: Options) -> Iterator[str]:
    """Pods' ranges by eBGP between routers, by iBGP with the nodes of a rack, which the router reflects.

    A family that nodes carry in a tunnel is nothing to the fabric."""
    own = fabric.number(facts, router)
    router_id = next(
        (each.partition("/")[0] for each in router.addresses if ":" not in each),
        str(IPv4Address(fnv32(router.name))),
    )
    yield f"router id {router_id};"
    yield ""
    yield "protocol device {"
    yield "  scan time 2;"
    yield "}"
    yield ""
    yield "protocol direct {"
    for version in options.plain:
        yield f"  ipv{version};"
    yield "}"
    for version in options.plain:
        pools = [pool for pool in facts.pod_cidrs if ip_network(pool).version == version]
        yield ""
        yield f"filter pods{version} {{"
        for pool in pools:
            yield f"  if ( net ~ {pool} ) then accept;"
        yield "  reject;"
        yield "}"
        yield ""
        yield f"protocol kernel kernel{version} {{"
        yield "  scan time 2;"
        yield "  merge paths on;"
        yield f"  ipv{version} {{"
        yield "    import none;"
        yield f"    export filter pods{version};"
        yield "  };"
        yield "}"
        for name, mine, theirs in router.neighbours:
            if ip_address(mine).version == version:
                other = next(each for each in facts.routers if each.name == name)
                there = theirs, fabric.number(facts, other)
                yield from _session(options, f"{name}_{theirs}", (mine, own), there)
        for node, mine, theirs in fabric.nodes_of(router, version):
            yield from _session(options, node, (mine, own), (theirs, own))


def _session(options: Options, name: str, here: tuple[str, int], there: tuple[str, int]) -> Iterator[str]:
    """here, there: address and autonomous system; within one, the other side is a node of the rack."""
    version = ip_address(here[0]).version
    label = "".join(letter if letter.isalnum() else "_" for letter in name)
    yield ""
    yield f"protocol bgp {label}_v{version} {{"
    yield f"  local {here[0]} as {here[1]};"
    yield f"  neighbor {there[0]} as {there[1]};"
    inside = here[1] == there[1]
    if inside:
        yield "  rr client;"
    yield from _timers(options)
    yield f"  ipv{version} {{"
    yield f"    import filter pods{version};"
    yield f"    export filter pods{version};"
    if inside:
        yield "    next hop self ebgp;"
    yield "  };"
    yield "}"


def _peer(node: Node, peer: Node, own: str, there: str, options: Options) -> Iterator[str]:
    version = ip_address(own).version
    kind = "Node" if options.reflectors else "Mesh"
    yield ""
    yield f"# {peer.name}"
    yield f"protocol bgp {kind}_{there.replace('.', '_').replace(':', '_')} from bgp_template{version} {{"
    yield "  multihop;"
    yield "  ttl security off;"
    yield f"  neighbor {there} as {options.as_number};"
    yield f"  source address {own};"
    if not options.reflectors and there > own:
        yield "  passive on;  # the mesh is unidirectional: the peer connects"
    if node.name in options.reflectors and peer.name not in options.reflectors:
        yield "  rr client;"
        yield f"  rr cluster id {CLUSTER_ID};"
    yield "}"
