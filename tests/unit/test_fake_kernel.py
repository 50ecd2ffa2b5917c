"""The fake kernel refuses what the real one does; tests/system/test_agent.py asks the real one the same."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.kernel.fake import FakeKernel
from testbed.state import (
    NODE,
    Address,
    Chain,
    FdbEntry,
    Link,
    Neighbour,
    NetnsState,
    Peer,
    PodState,
    Route,
    Vxlan,
)

BRIDGE = Link("cni0", "bridge")
VXLAN = Link("vx", "vxlan", vxlan=Vxlan(1, 8472, "eth0", "172.18.0.2"))


def part(*things: Any, sysctls: dict[str, str] | None = None) -> NetnsState:
    """A state of these things, each under its own key."""
    state = NetnsState(sysctls=sysctls or {})
    for thing in things:
        match thing:
            case Link():
                state.links[thing.name] = thing
            case Address():
                state.addresses[thing.dev, thing.address] = thing
            case Route():
                state.routes[thing.dst] = thing
            case Neighbour():
                state.neighbours[thing.dev, thing.dst] = thing
            case FdbEntry():
                state.fdb[thing.dev, thing.mac, thing.dst] = thing
            case Peer():
                state.peers[thing.dev, thing.key] = thing
            case Chain():
                state.chains[thing.family, thing.table, thing.name] = thing
    return state


def pod(uid: str, peer: str = "", **more: Any) -> PodState:
    netns = part(Link("eth0", "veth", peer=peer or f"veth{uid}"), *more.pop("things", ()))
    return PodState(uid, "default", uid, uid, netns=netns, **more)


def nothing(pod: PodState) -> None: ...


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


def refused(kernel: FakeKernel, *things: Any, **more: Any) -> str:
    """Why the one thing among these that is refused is."""
    (failure,) = kernel.change(NODE, part(*things, **more), NetnsState())
    return failure.message


def accept(kernel: FakeKernel, *things: Any) -> None:
    assert kernel.change(NODE, part(*things), NetnsState()) == []


@pytest.mark.parametrize(
    ("things", "reason"),
    [
        ([Address("cni0", "10.1.0.1/24")], "no device cni0"),
        ([Link("veth1", "peer")], "no device veth1"),
        ([Link("eth0", "existing", master="cni0")], "no device cni0"),
        ([VXLAN, Link("eth0", "existing", master="vx")], "vx is not a bridge"),
        ([VXLAN, Link("vy", "vxlan", vxlan=VXLAN.vxlan)], "vx has vni 1"),
        ([Link("vx", "vxlan", vxlan=Vxlan(1, 8472, "eth9", "172.18.0.2"))], "no device eth9"),
        ([Link("eth0", "existing", hairpin=True)], "no bridge port"),
        ([Route("10.2.0.0/24", via="172.18.0.3")], "gateway 172.18.0.3 is not reachable"),
        ([Route("10.2.0.0/24", dev="cni0", scope="link")], "no device cni0"),
        ([Link("cni0", "bridge", up=False), Route("10.2.0.0/24", dev="cni0")], "cni0 is down"),
        ([Route("10.2.0.0/24", dev="eth0", src="10.1.0.1")], "10.1.0.1 is not an address here"),
        ([BRIDGE, Address("cni0", "fd00::1/64"), Address("cni0", "fd00::1/48")], "it has fd00::1/64"),
        ([Neighbour("vx", "10.2.0.0", "0a:00:00:00:00:01")], "no device vx"),
        ([BRIDGE, FdbEntry("cni0", "0a:00:00:00:00:01", "172.18.0.3")], "cni0 is not a vxlan"),
        (
            [VXLAN, *(FdbEntry("vx", "0a:00:00:00:00:01", f"172.18.0.{k}") for k in (3, 4))],
            "0a:00:00:00:00:01 is at 172.18.0.3",
        ),
        ([VXLAN, Peer("vx", "key", "172.18.0.3:51820", ())], "vx is no WireGuard device"),
        ([Chain("ipv4", "nat", "POSTROUTING", ("-j KUBE-X",))], "no chain KUBE-X in table nat"),
        (
            [Chain("ipv4", "filter", "KUBE-X"), Chain("ipv4", "nat", "KUBE-Y", ("-g KUBE-X",))],
            "no chain KUBE-X in table nat",
        ),
        ([Chain("ipv6", "nat", "KUBE-X"), Chain("ipv4", "nat", "A", ("-j KUBE-X",))], "no chain KUBE-X"),
    ],
)
def test_refused(kernel: FakeKernel, things: list[Any], reason: str):
    assert reason in refused(kernel, *things)


def test_sysctl_of_a_missing_device_is_refused(kernel: FakeKernel):
    assert "no device cni0" in refused(kernel, sysctls={"net/ipv4/conf/cni0/proxy_arp": "1"})


def test_one_refusal_does_not_stop_the_rest(kernel: FakeKernel):
    refused(kernel, Address("nowhere", "10.1.0.1/24"), BRIDGE, Address("cni0", "10.1.0.1/24"))
    assert list(kernel.read(NODE).addresses) == [("cni0", "10.1.0.1/24")]


def test_route_is_accepted_once_its_gateway_is_reachable(kernel: FakeKernel):
    accept(kernel, Address("eth0", "172.18.0.2/16"), Route("10.2.0.0/24", via="172.18.0.3"))
    accept(kernel, Route("169.254.1.1/32", dev="eth0", scope="link"), Route("default", via="169.254.1.1"))
    accept(kernel, VXLAN, Route("10.3.0.0/24", via="10.3.0.0", dev="vx", onlink=True))


def test_removing_what_is_not_there_is_refused(kernel: FakeKernel):
    gone = part(
        BRIDGE, Address("eth0", "10.1.0.1/24"), Route("default", via="1.1.1.1"), Chain("ipv4", "nat", "X")
    )
    assert len(kernel.change(NODE, NetnsState(), gone)) == 4


def test_chain_that_is_still_jumped_to_cannot_be_deleted(kernel: FakeKernel):
    own = Chain("ipv4", "nat", "KUBE-X")
    accept(kernel, own, Chain("ipv4", "nat", "POSTROUTING", ("-j KUBE-X",)))
    assert kernel.change(NODE, NetnsState(), part(own)) != []
    assert len(kernel.read(NODE).chains) == 2


def test_deleted_device_takes_along_what_stands_on_it(kernel: FakeKernel):
    stands = [
        Address("vx", "10.3.0.0/32"),
        Route("10.4.0.0/24", via="10.4.0.0", dev="vx", onlink=True),
        Neighbour("vx", "10.4.0.0", "0a:00:00:00:00:01"),
        FdbEntry("vx", "0a:00:00:00:00:01", "172.18.0.3"),
    ]
    accept(kernel, VXLAN, *stands)
    kernel.change(NODE, NetnsState(), part(VXLAN))
    assert kernel.read(NODE) == NetnsState()


def test_last_ipv4_address_takes_the_routes_of_its_device(kernel: FakeKernel):
    address, route = Address("eth0", "172.18.0.2/16"), Route("10.2.0.0/24", via="172.18.0.3", dev="eth0")
    accept(kernel, address, route)
    kernel.change(NODE, NetnsState(), part(address))
    assert kernel.read(NODE).routes == {}


def test_device_set_down_loses_its_ipv4_routes(kernel: FakeKernel):
    accept(kernel, BRIDGE, Address("cni0", "10.1.0.1/24"), Route("10.2.0.0/24", via="10.1.0.2", dev="cni0"))
    accept(kernel, Link("cni0", "bridge", up=False))
    assert kernel.read(NODE).routes == {}


def test_pod_whose_peer_name_is_taken_is_refused_and_leaves_nothing(kernel: FakeKernel):
    failed = kernel.add_pods([pod("a", "veth0"), pod("b", "veth0"), pod("c")], nothing)
    assert list(failed) == ["b"]
    assert "the peer exists" in failed["b"]
    assert set(kernel.pods) == {"a", "c"}


def test_pod_with_a_bad_route_leaves_no_host_end(kernel: FakeKernel):
    failed = kernel.add_pods([pod("a", things=[Route("default", via="10.1.0.1", dev="eth0")])], nothing)
    assert "not reachable" in failed["a"]
    assert "no device vetha" in refused(kernel, Link("vetha", "peer"))


def test_pod_whose_sockets_cannot_be_opened_is_not_there(kernel: FakeKernel):
    def fail(pod: PodState) -> None:
        raise OSError(98, "Address already in use")

    assert list(kernel.add_pods([pod("a")], fail)) == ["a"]
    assert kernel.pods == {}


def test_deleted_pod_takes_its_host_end_along(kernel: FakeKernel):
    kernel.add_pods([pod("a")], nothing)
    accept(kernel, BRIDGE, Link("vetha", "peer", master="cni0", hairpin=True))
    kernel.delete_pods(["a"])
    assert list(kernel.read(NODE).links) == ["cni0"]


def test_pod_cannot_be_added_twice(kernel: FakeKernel):
    assert kernel.add_pods([pod("a")], nothing) == {}
    assert "there already" in kernel.add_pods([pod("a", "other")], nothing)["a"]
