"""The vocabulary below the compilers: what one node should look like, as plain immutable data.

A compiler returns these, ``cluster.reconcile`` takes the difference of two of them, a kernel (real or
fake) applies it. Everything is text or numbers as the tools print them (``10.244.1.1/24``), so that a
state can be read, compared, sent and stored as it is. Every collection is a dict keyed by what
identifies the thing in the kernel; two fragments that claim one key are an error in the merge.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Family = Literal["ipv4", "ipv6"]
Table = Literal["raw", "mangle", "nat", "filter"]

NftFamily = Literal["ip", "ip6", "inet", "arp", "bridge", "netdev"]

NODE = "node"
"""The name of a node's own netns where a change says which netns it is for; a pod's is its uid."""


MADE_ALONE = ("veth", "bridge", "vxlan", "ipip", "wireguard", "dummy", "ifb")
"""Kinds of links that a change of a netns makes and deletes, a veth with its other end; the others come with
pods, as a veth's other end, or with the fabric."""


class Vxlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of a vxlan link: network id, UDP port, underlay device and address, learning; df: that
    the outer packets may not be fragmented; checksum: whether they have one of UDP."""

    vni: int
    port: int
    dev: str
    local: str
    learning: bool = False
    df: bool = False
    checksum: bool = True


class Ipip(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of an ipip link without a peer of its own: underlay device and address."""

    dev: str
    local: str


class Wireguard(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of a WireGuard link: the UDP port it listens on, its private key in base64."""

    port: int
    key: str


class Link(msgspec.Struct, frozen=True, omit_defaults=True):
    """One network device.

    kind ``veth`` in a pod's netns: made there together with its other end ``peer``, which is put into
    the node's netns; that end appears in the node's own state as kind ``peer`` (never created by
    itself). kind ``veth`` in the node's netns: both ends are there. kind ``existing``: made by the fabric
    (``eth0``) or the kernel (``lo``); only its attributes are set. mtu, mac: None leaves the kernel's choice.
    nf_call_iptables: of a bridge, whether its frames meet iptables where the sysctl leaves it to each bridge.
    tx_checksum False: what is sent has whole checksums, for who reads it in user space.
    """

    name: str
    kind: Literal["veth", "peer", "bridge", "vxlan", "ipip", "wireguard", "dummy", "ifb", "existing"]
    up: bool = True
    mtu: int | None = None
    mac: str | None = None
    master: str | None = None
    hairpin: bool = False
    peer: str | None = None
    vxlan: Vxlan | None = None
    ipip: Ipip | None = None
    wireguard: Wireguard | None = None
    nf_call_iptables: bool = False
    tx_checksum: bool = True


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address on a device. address: CIDR with the host part, as ``ip addr`` prints it."""

    dev: str
    address: str
    broadcast: bool = True
    scope: Literal["global", "link", "host"] = "global"


class Nexthop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One gateway of a multipath route; dev None: found by the gateway's own route."""

    via: str
    dev: str | None = None


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route of the main table. dst: CIDR, ``default`` or ``default6``; dev, via or nexthops say where to.

    metric: the kernel keeps one route to a place of each; 0: the one it gives where none is asked for.
    The kernel's own routes (``proto kernel``, of addresses) are never listed.
    """

    dst: str
    via: str | None = None
    dev: str | None = None
    src: str | None = None
    scope: Literal["global", "link", "host"] = "global"
    proto: str = "boot"
    onlink: bool = False
    kind: Literal["unicast", "blackhole", "unreachable", "prohibit"] = "unicast"
    mtu: int | None = None
    nexthops: tuple[Nexthop, ...] = ()
    metric: int = 0


class Neighbour(msgspec.Struct, frozen=True, omit_defaults=True):
    """A permanent neighbour entry, or a proxy entry where mac is None."""

    dev: str
    dst: str
    mac: str | None = None


class FdbEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A permanent ``self`` forwarding entry of a vxlan device: frames for mac go to the VTEP dst."""

    dev: str
    mac: str
    dst: str


class Peer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A peer of a WireGuard device. key: its public key in base64; endpoint: ``172.18.0.3:51820``, IPv6 in
    brackets; allowed: ranges whose addresses are there, and may come from there; keepalive: seconds, 0: none;
    psk: the preshared key in base64, "": none.
    """

    dev: str
    key: str
    endpoint: str
    allowed: tuple[str, ...]
    keepalive: int = 0
    psk: str = ""


class Shaper(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token bucket (tbf) at the root of a device: what is sent on it. rate: bit/s; burst: bits; latency:
    seconds that a packet waits at most before it is dropped."""

    dev: str
    rate: int
    burst: int
    latency: float = 0.025


class Redirect(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that comes in on ``dev`` is sent on device ``to`` first, where it can be shaped."""

    dev: str
    to: str


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """An iptables chain with its rules, in order, as ``iptables-save`` prints them without ``-A NAME``.

    inserted: how many of the first rules stand in front of all others in a built-in chain, as what was put
    there with ``-I``; the others are appended. Several fragments' rules of one built-in chain are put there
    in the order of the fragments, and a rule that is there already is not put there again.
    """

    family: Family
    table: Table
    name: str
    rules: tuple[str, ...] = ()
    inserted: int = 0


class IpSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """An ipset with its entries as ``ipset save`` prints them (``10.244.1.2``, ``10.1.0.0/16 nomatch``).

    A name always means a set of one type and family: no set becomes one of another in place. In a change,
    a set that is both added to and removed from stays; one that is only in what is removed goes.
    members: what rules do with those in it. Who is "isolated", or no longer "spared", may be refused: that
    comes after a change's chains, which say what is allowed, and its contrary before them; such a set, if it
    stays, is in both parts of a change. The kernel knows nothing of this: of a set that was read it is "any".
    """

    name: str
    type: Literal["hash:ip", "hash:net", "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net", "bitmap:port"]
    family: Literal["inet", "inet6"] = "inet"
    entries: frozenset[str] = frozenset()
    members: Literal["any", "isolated", "spared"] = "any"


class UdpFlows(msgspec.Struct, frozen=True, omit_defaults=True):
    """UDP connections through a Service: which may go on once the rules have changed.

    Sent to ``address`` (any where it is "": a node port) and ``port``, they go on where one of ``serving``
    (``address:port``, IPv6 in brackets) answers them; the kernel would keep all others where they were going.
    """

    family: Family
    address: str
    port: int
    serving: tuple[str, ...]


class NftTable(msgspec.Struct, frozen=True, omit_defaults=True):
    """An nftables table. It is ours alone: a change of its comment makes it, and all in it, anew."""

    family: NftFamily
    name: str
    comment: str = ""


class NftChain(msgspec.Struct, frozen=True, omit_defaults=True):
    """An nftables chain with its rules in order, as ``nft list ruleset`` prints them.

    type, hook, priority (``filter``, ``dstnat - 10``, as printed), policy, device: of a base chain only.
    """

    family: NftFamily
    table: str
    name: str
    rules: tuple[str, ...] = ()
    type: Literal["", "filter", "nat", "route"] = ""
    hook: str = ""
    priority: str = ""
    policy: Literal["accept", "drop"] = "accept"
    device: str = ""
    comment: str = ""


class NftSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named set or, with a ``value`` (``verdict``, ``ipv4_addr . inet_service``), a map; not its elements.

    type: of its keys (``ipv4_addr . inet_proto``); flags: in the order nft prints them (``dynamic``,
    ``timeout``, ``interval``); timeout: seconds, 0 without; size: 0 for the kernel's own choice.
    """

    family: NftFamily
    table: str
    name: str
    type: str
    value: str = ""
    flags: tuple[str, ...] = ()
    timeout: int = 0
    size: int = 0
    comment: str = ""


class NftElement(msgspec.Struct, frozen=True, omit_defaults=True):
    """An element of a named set or, with a ``value`` (``goto somewhere``), of a map, as nft prints it.

    What the kernel puts into a set by itself (flag ``dynamic``) is never listed.
    """

    family: NftFamily
    table: str
    set: str
    key: str
    value: str = ""
    comment: str = ""


class VirtualServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A virtual server of IPVS. persistence: seconds a client stays with its real server, 0: no longer than
    a connection; flags: of the scheduler, as ipvsadm names them (``mh-port``)."""

    protocol: Literal["TCP", "UDP", "SCTP"]
    address: str
    port: int
    scheduler: str = "rr"
    persistence: int = 0
    flags: tuple[str, ...] = ()


class RealServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a virtual server, named by protocol and ``address:port``, sends connections, by masquerading."""

    protocol: Literal["TCP", "UDP", "SCTP"]
    server: str
    address: str
    port: int
    weight: int = 1


class NetnsState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in one network namespace. Keys: links by name, addresses by (dev, address), routes by dst,
    neighbours by (dev, dst), fdb by (dev, mac, dst), peers by (dev, key), shapers and redirects by dev,
    sysctls by path below /proc/sys with slashes, chains by (family, table, name), ipsets by name, nft_tables
    by (family, name), nft_chains and nft_sets by (family, table, name), nft_elements by (family, table, set,
    key), udp by (family, address, port), virtual_servers by (protocol, address:port), real_servers by
    (protocol, address:port of the virtual server, address:port)."""

    links: dict[str, Link] = {}
    addresses: dict[tuple[str, str], Address] = {}
    routes: dict[str, Route] = {}
    neighbours: dict[tuple[str, str], Neighbour] = {}
    fdb: dict[tuple[str, str, str], FdbEntry] = {}
    peers: dict[tuple[str, str], Peer] = {}
    sysctls: dict[str, str] = {}
    chains: dict[tuple[str, str, str], Chain] = {}
    ipsets: dict[str, IpSet] = {}
    nft_tables: dict[tuple[str, str], NftTable] = {}
    nft_chains: dict[tuple[str, str, str], NftChain] = {}
    nft_sets: dict[tuple[str, str, str], NftSet] = {}
    nft_elements: dict[tuple[str, str, str, str], NftElement] = {}
    virtual_servers: dict[tuple[str, str], VirtualServer] = {}
    real_servers: dict[tuple[str, str, str], RealServer] = {}
    udp: dict[tuple[str, str, int], UdpFlows] = {}
    shapers: dict[str, Shaper] = {}
    redirects: dict[str, Redirect] = {}


class Upkeep(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a daemon on a node looks at again every ``period`` seconds (0: never), of one part of the node's
    own netns: what is not there as it was made is made again.

    names: prefixes of what is its own: chains, ipsets, devices that the others are on. comment: of chains,
    what its rules in built-in ones have in their comment; protocols: of routes, those that are its own on any
    device. exclusive: of chains, its rules have to be in front of all others, and strange ones in its own
    go; of routes, those that lead elsewhere are led back, and strange ones of its own go; else only what is
    missing, or a rule out of its order, comes back.
    """

    part: Literal["chains", "ipsets", "routes", "neighbours", "fdb"]
    period: float
    names: tuple[str, ...]
    comment: str = ""
    protocols: tuple[str, ...] = ()
    exclusive: bool = False


class Listener(msgspec.Struct, frozen=True, omit_defaults=True):
    """One port the built-in application server answers on inside a pod, or on a node itself.

    app: a name in ``testbed.apps`` (``http``, ``echo``, ``grpc``, ``redis`` …); options: that app's own;
    address: the only one it answers on, "": every one.
    """

    container: str
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: int
    app: str
    options: dict[str, str] = {}
    address: str = ""


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """One probe of a container, ready to run: names are resolved, defaults filled in, times in seconds.

    host, port: where ``http``, ``tcp`` and ``grpc`` connect to; target: the path, or gRPC's service name;
    grace: what the container gets to end where this probe asks for it; problem: why the probe cannot be
    run at all (a port name that no port has, say).
    """

    kind: Literal["startup", "readiness", "liveness"]
    how: Literal["http", "https", "tcp", "grpc", "exec"]
    host: str = ""
    port: int = 0
    target: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    successes: int = 1
    failures: int = 3
    grace: float = 30.0
    problem: str = ""


class ContainerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of one container; times: seconds since 1970, those of the current state.

    reason, message: of a waiting or terminated state; last: the terminated state before this one.
    """

    name: str
    state: Literal["waiting", "running", "terminated"] = "running"
    ready: bool = True
    started: bool = True
    restarts: int = 0
    begun: float = 0.0
    ended: float = 0.0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    last: ContainerState | None = None


class NameFiles(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the DNS servers of one pod read (``dns.dnsmasq``).

    hosts: name → hosts file, noticed when it changes; servers: role → configuration, read at the start, in
    which ``@ROLE@`` stands for a role's port; externals: names whose addresses are asked for and served too.
    """

    hosts: dict[str, str] = {}
    servers: dict[str, str] = {}
    externals: tuple[str, ...] = ()


class PodState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One pod on its node: its netns, its files and environment, and what answers in it.

    netns is empty for a hostNetwork pod, which lives in the node's. sandboxed: its netns is that of the
    node's sandbox of the same uid, which plugins wired, and is changed no further. refused: why its plugin
    did not wire it, as the kubelet tells it: nothing of it runs. files: absolute path → content. env: per
    container the environment of its processes. identity: what the application server says of itself (pod,
    namespace, node, ips). probes: by container. nameservers: containers that are DNS servers, with what they
    read; with nothing, what the control plane feeds them. backoff: seconds before a second and, at most, any
    later restart. grace: None while it is wanted; then the seconds that its programs have to end; linger: how
    many of these its built-in servers take.
    """

    uid: str
    namespace: str
    name: str
    hostname: str
    host_network: bool = False
    domainname: str = ""
    netns: NetnsState = NetnsState()
    files: dict[str, str] = {}
    env: dict[str, dict[str, str]] = {}
    listeners: tuple[Listener, ...] = ()
    commands: dict[str, tuple[str, ...]] = {}
    ips: tuple[str, ...] = ()
    node: str = ""
    nameservers: dict[str, NameFiles] = {}
    probes: dict[str, tuple[Probe, ...]] = {}
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    backoff: tuple[float, float] = (10.0, 300.0)
    grace: float | None = None
    linger: float = 0.0
    sandboxed: bool = False
    refused: str = ""


class Sandbox(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network namespace that CNI plugins wire before there is a pod in it.

    container: the id plugins know it by; network: the configuration list in JSON, in which ``@DIR@`` is the
    node's own directory; path: where plugins are; capabilities: what the runtime offers, by capability.
    """

    uid: str
    namespace: str
    name: str
    container: str
    network: str
    path: tuple[str, ...]
    ifname: str = "eth0"
    capabilities: dict[str, Any] = {}


class PluginList(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node's container runtime has loaded. network, path: as of a ``Sandbox``."""

    network: str
    path: tuple[str, ...]


class Daemon(msgspec.Struct, frozen=True, omit_defaults=True):
    """A program that runs on a node beside its pods for as long as it is wanted; if it ends it is run again.

    argv: its command line; ``@DIR@`` in a word, or in a file, is the directory of its own that it starts in,
    ``@PYTHON@`` this Python. files: name in that directory → content. reload: the command that makes it read
    changed files; without one it is run anew. A change of argv runs it anew.
    """

    argv: tuple[str, ...]
    files: dict[str, str] = {}
    reload: tuple[str, ...] = ()


class NodeState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything on one node: its own netns, its pods by uid, what answers on the node itself, its daemons by
    name, its sandboxes by uid, files (path in a directory below /run → content) that its programs see, and
    the CNI plugins of its runtime, where it has such."""

    netns: NetnsState = NetnsState()
    pods: dict[str, PodState] = {}
    listeners: tuple[Listener, ...] = ()
    daemons: dict[str, Daemon] = {}
    sandboxes: dict[str, Sandbox] = {}
    files: dict[str, str] = {}
    plugins: PluginList | None = None
