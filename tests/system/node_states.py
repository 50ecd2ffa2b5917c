"""Node states that the kernel accepts, any to any other: made by hypothesis, for tests of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from testbed.state import (
    Address,
    Chain,
    FdbEntry,
    Link,
    Neighbour,
    NetnsState,
    Nexthop,
    NodeState,
    PodState,
    Route,
    Vxlan,
)


class NoTenants:
    """Nobody lives in the pods."""

    def open(self, pod: PodState) -> None: ...

    def start(self, pod: PodState) -> None: ...

    def update(self, pod: PodState) -> None: ...

    def run_daemons(self, daemons: Any) -> None: ...

    def load_plugins(self, plugins: Any) -> None: ...

    def change_sandboxes(self, add: Any, remove: Any) -> None: ...

    def write_files(self, files: Any) -> None: ...

    def stop(self, uid: str) -> None: ...


def keyed(items: Sequence[Any], *fields: str) -> dict[Any, Any]:
    values = [(tuple(getattr(item, field) for field in fields), item) for item in items]
    return {key if len(fields) > 1 else key[0]: item for key, item in values}


def netns(
    links: Sequence[Link] = (),
    addresses: Sequence[Address] = (),
    routes: Sequence[Route] = (),
    neighbours: Sequence[Neighbour] = (),
    fdb: Sequence[FdbEntry] = (),
    sysctls: Mapping[str, str] = MappingProxyType({}),
    chains: Sequence[Chain] = (),
) -> NetnsState:
    return NetnsState(
        links=keyed(links, "name"),
        addresses=keyed(addresses, "dev", "address"),
        routes=keyed(routes, "dst"),
        neighbours=keyed(neighbours, "dev", "dst"),
        fdb=keyed(fdb, "dev", "mac", "dst"),
        sysctls=dict(sysctls),
        chains=keyed(chains, "family", "table", "name"),
    )


def pod(uid: str, number: int = 2, gateway: int = 1, **more: Any) -> PodState:
    inside = netns(
        links=[Link("lo", "existing"), Link("eth0", "veth", mtu=1500, peer=f"veth{uid}")],
        addresses=[Address("eth0", f"10.1.0.{number}/24")],
        routes=[Route("default", via=f"10.1.0.{gateway}", dev="eth0")],
    )
    return PodState(
        **{"uid": uid, "namespace": "default", "name": uid, "hostname": uid, "netns": inside, **more}
    )


def host_end(uid: str, master: str | None = "cni0") -> Link:
    return Link(f"veth{uid}", "peer", mtu=1500, master=master, hairpin=master is not None)


@st.composite
def nodes(draw: st.DrawFn) -> NodeState:
    """A node the kernel accepts: bridge or not, vxlan or not, pods on the bridge or routed, rules."""
    bridge = draw(st.booleans())
    links: list[Link] = []
    addresses: list[Address] = []
    routes: list[Route] = []
    neighbours: list[Neighbour] = []
    fdb: list[FdbEntry] = []
    sysctls: dict[str, str] = {}
    if draw(st.booleans()):
        addresses.append(Address("eth0", "172.18.0.2/16", broadcast=draw(st.booleans())))
        for k in draw(st.sets(st.integers(5, 7))):
            routes.append(Route(f"10.{k}.0.0/24", via=f"172.18.0.{draw(st.integers(3, 4))}", dev="eth0"))
        if draw(st.booleans()):
            hops = (Nexthop("172.18.0.3", "eth0"), Nexthop("172.18.0.4"))
            routes.append(
                Route("10.8.0.0/24", nexthops=hops, src=draw(st.sampled_from([None, "172.18.0.2"])))
            )
        if draw(st.booleans()):
            routes.append(Route("10.10.0.0/24", via="172.18.0.9"))
    if draw(st.booleans()):
        routes.append(
            Route("10.9.0.0/26", kind=draw(st.sampled_from(["blackhole", "unreachable"])), proto="80")
        )
    if bridge:
        mtu = draw(st.sampled_from([None, 1400, 1500]))
        mac = draw(st.sampled_from([None, "0a:58:00:00:00:01", "0a:58:00:00:00:02"]))
        links.append(Link("cni0", "bridge", mtu=mtu, mac=mac))
        addresses += [Address("cni0", f"10.{k}.0.1/24") for k in draw(st.sets(st.integers(1, 2), min_size=1))]
        if draw(st.booleans()):
            sysctls["net/ipv6/conf/cni0/accept_dad"] = draw(st.sampled_from("01"))
    if draw(st.booleans()):
        vni, up = draw(st.integers(1, 2)), draw(st.booleans())
        links.append(Link("flannel.1", "vxlan", up=up, vxlan=Vxlan(vni, 8472, "eth0", "172.18.0.2")))
        for k in draw(st.sets(st.integers(3, 4))):
            mac = f"0a:00:00:00:00:{k}{draw(st.integers(1, 2))}"  # one VTEP per mac, or the last one wins
            fdb.append(FdbEntry("flannel.1", mac, f"172.18.0.{k}"))
            neighbours.append(Neighbour("flannel.1", f"10.{k}.0.0", draw(st.sampled_from([mac, None]))))
            if up:
                routes.append(Route(f"10.{k}.0.0/24", via=f"10.{k}.0.0", dev="flannel.1", onlink=True))
    pods = {}
    for uid in sorted(draw(st.sets(st.sampled_from("abc")))):
        on_bridge = bridge and draw(st.booleans())
        links.append(host_end(uid, "cni0" if on_bridge else None))
        number = draw(st.integers(2, 5))
        if not on_bridge:
            # one /32 per pod, on its own host end; pods may have the same address as a pod before
            routes.append(Route(f"10.250.{ord(uid)}.{number}/32", dev=f"veth{uid}", scope="link"))
            sysctls[f"net/ipv4/conf/veth{uid}/proxy_arp"] = "1"
        files = draw(st.sampled_from([{}, {"/etc/hosts": "one"}, {"/etc/hosts": "two"}]))
        pods[uid] = pod(uid, number, gateway=draw(st.sampled_from([1, 254])), files=files)
    if draw(st.booleans()):
        sysctls["net/ipv4/ip_forward"] = draw(st.sampled_from("01"))
    return NodeState(netns(links, addresses, routes, neighbours, fdb, sysctls, draw(chains())), pods)


@st.composite
def chains(draw: st.DrawFn) -> list[Chain]:
    own = sorted(draw(st.sets(st.sampled_from(["KUBE-A", "KUBE-B", "KUBE-C"]))))
    rules = st.lists(
        st.sampled_from(["-j RETURN", "-s 10.0.0.0/8 -j ACCEPT", *(f"-j {name}" for name in own)]), max_size=3
    )
    # chains jump only to later ones: the kernel refuses loops
    made = [Chain("ipv4", "nat", name, ("-j RETURN",) * draw(st.integers(0, 2))) for name in own]
    if draw(st.booleans()):
        made.append(Chain("ipv4", "nat", "POSTROUTING", tuple(draw(rules))))
    return made
