"""flannel's backends, compiled: devices, peers and routes of each, as their sources say."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from node_states import NoTenants

from testbed.cluster.apply import apply
from testbed.cluster.reconcile import diff
from testbed.cluster.render import render
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes, needs_of
from testbed.dataplane.flannel import BACKENDS, keys
from testbed.errors import InputError
from testbed.kernel import wireguard
from testbed.kernel.fake import FakeKernel
from testbed.rules.wireguard import parse_dump, peer_words
from testbed.state import NODE, Address, Link, NetnsState, NodeState, Peer, Route, Wireguard

FLANNEL = dataplanes.get("flannel")
PSK = "iRd2fJAzGRhfHpZJ0ZC9kY0cN5NZqz0ePCnZ8QF2xA0="
A1 = Pod("uid-a1", "default", "a1", "node-1", ("10.244.1.2",))
B1 = Pod("uid-b1", "default", "b1", "node-2", ("10.244.2.2",))


def node(k: int) -> Node:
    return Node(f"node-{k}", (f"172.18.0.{k + 1}",), (f"10.244.{k}.0/24",), networks=("172.18.0.0/16",))


def both(k: int, v6: str = "fd18::") -> Node:
    """A node of both families."""
    addresses = (f"172.18.0.{k + 1}", f"{v6}{k + 1}")
    ranges = (f"10.244.{k}.0/24", f"fd24:0:0:{k}::/64")
    return Node(f"node-{k}", addresses, ranges, networks=("172.18.0.0/16", f"{v6}/64"))


def cluster(backend: str, *nodes: Node, **options: Any) -> Snapshot:
    nodes = nodes or (node(1), node(2))
    facts = ClusterFacts(
        cluster_domain="cluster.local",
        pod_cidrs=("10.244.0.0/16", "fd24::/48")[: len(nodes[0].pod_cidrs)],
        service_cidrs=("10.96.0.0/16",),
        node_cidrs=("172.18.0.0/16",),
        dns_addresses=(),
        dataplane_options={"backend": backend, **options},
    )
    return Snapshot(facts, nodes, (A1, B1))


def compiled(snapshot: Snapshot, k: int = 1) -> NodeState:
    return FLANNEL.compile(snapshot, snapshot.node[f"node-{k}"])


# --- wireguard ------------------------------------------------------------------------------------------


def test_wireguard_is_a_device_with_the_clusters_range_and_a_peer_for_each_node():
    netns = compiled(cluster("wireguard")).netns
    guard = Wireguard(51820, keys.private_key("node-1"))
    assert netns.links["flannel-wg"] == Link("flannel-wg", "wireguard", mtu=1420, wireguard=guard)
    assert [each.address for each in netns.addresses.values() if each.dev == "flannel-wg"] == [
        "10.244.1.0/32"
    ]
    assert netns.routes == {"10.244.0.0/16": Route("10.244.0.0/16", dev="flannel-wg", scope="link")}
    (peer,) = netns.peers.values()
    assert peer == Peer("flannel-wg", keys.public_key("node-2"), "172.18.0.3:51820", ("10.244.2.0/24",))


def test_pods_and_subnet_file_have_the_mtu_and_the_key_is_in_its_file():
    state = compiled(cluster("wireguard"))
    assert state.pods["uid-a1"].netns.links["eth0"].mtu == state.netns.links["cni0"].mtu == 1420
    assert "FLANNEL_MTU=1420\n" in state.files["/run/flannel/subnet.env"]
    assert state.files["/run/flannel/wgkey"] == keys.private_key("node-1")


def test_options_of_wireguard():
    snapshot = cluster("wireguard", listenPort=4500, persistentKeepaliveInterval=25, mtu=9000)
    netns = compiled(snapshot).netns
    assert (netns.links["flannel-wg"].mtu, netns.links["flannel-wg"].wireguard) == (
        8920,
        Wireguard(4500, keys.private_key("node-1")),
    )
    assert [(peer.endpoint, peer.keepalive) for peer in netns.peers.values()] == [("172.18.0.3:4500", 25)]


def test_a_preshared_key_is_that_of_every_peer_and_no_word_of_a_command():
    peers = compiled(cluster("wireguard", psk=PSK)).netns.peers.values()
    assert [peer.psk for peer in peers] == [PSK]
    words = peer_words(peers)
    assert words[2:5] == ["preshared-key", "/dev/stdin", "endpoint"]
    assert PSK not in words


@pytest.mark.parametrize("psk", ["c2hvcnQ=", "not base64", 7, PSK[:-1]])
def test_a_preshared_key_is_32_bytes_in_base64(psk: object):
    with pytest.raises(InputError, match="must be 32 bytes in base64"):
        compiled(cluster("wireguard", psk=psk))


def test_keys_are_given_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """wg reads each from its input: the device's own, then that of the peers, none for those without."""
    asked: list[tuple[list[str], str]] = []
    monkeypatch.setattr(wireguard, "run", lambda argv, stdin: asked.append((argv[3:], stdin)))
    guard = Link("wg", "wireguard", wireguard=Wireguard(51820, "own"))
    with_key, without = Peer("wg", "b", "1:1", (), psk=PSK), Peer("wg", "c", "2:2", ())
    wireguard.configure("wg", guard, [with_key, without])
    assert [(words[:2], stdin) for words, stdin in asked] == [
        (["private-key", "/dev/stdin"], "own"),
        (["peer", "b"], PSK),
        (["peer", "c"], ""),
    ]


def test_each_family_has_a_device_and_an_underlay_of_its_own():
    netns = compiled(cluster("wireguard", both(1), both(2))).netns
    key = keys.public_key("node-2")
    assert netns.peers == {
        ("flannel-wg", key): Peer("flannel-wg", key, "172.18.0.3:51820", ("10.244.2.0/24",)),
        ("flannel-wg-v6", key): Peer("flannel-wg-v6", key, "[fd18::3]:51821", ("fd24:0:0:2::/64",)),
    }
    assert {dst: route.dev for dst, route in netns.routes.items()} == {
        "10.244.0.0/16": "flannel-wg",
        "fd24::/48": "flannel-wg-v6",
    }


@pytest.mark.parametrize(
    ("mode", "v6", "endpoint"),
    [
        ("ipv4", "fd18::", "172.18.0.3:51820"),
        ("ipv6", "fd18::", "[fd18::3]:51820"),
        ("auto", "fd18::", "172.18.0.3:51820"),
        ("auto", "2001:db8::", "[2001:db8::3]:51820"),
    ],
)
def test_one_device_for_both_families_over_one_underlay(mode: str, v6: str, endpoint: str):
    netns = compiled(cluster("wireguard", both(1, v6), both(2, v6), mode=mode)).netns
    assert [name for name in netns.links if name.startswith("flannel")] == ["flannel-wg"]
    (peer,) = netns.peers.values()
    assert (peer.endpoint, peer.allowed) == (endpoint, ("10.244.2.0/24", "fd24:0:0:2::/64"))
    assert {route.dev for route in netns.routes.values()} == {"flannel-wg"}


def test_x25519_gives_what_rfc_7748_does():
    """Section 5.2, after one iteration; and another node has another key."""
    nine = (9).to_bytes(32, "little")
    known = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert keys.multiplied(nine, 9).hex() == known
    assert keys.public_key("a") != keys.public_key("b") != keys.private_key("b")


def test_render_shows_the_devices_and_peers():
    text = render(compiled(cluster("wireguard")), {}, "routes", ("ipv4",))
    assert "link add flannel-wg mtu 1420 type wireguard\n" in text
    assert "# wg set flannel-wg private-key /dev/stdin listen-port 51820\n" in text
    key = keys.public_key("node-2")
    words = f"peer {key} preshared-key /dev/null endpoint 172.18.0.3:51820"
    assert f"# wg set flannel-wg {words} persistent-keepalive 0 allowed-ips 10.244.2.0/24\n" in text


def test_what_wg_prints_is_read_as_it_was_written():
    peer = Peer("flannel-wg", keys.public_key("b"), "[fd18::3]:51820", ("10.244.2.0/24", "fd24::/64"))
    key, public = keys.private_key("a"), keys.public_key("a")
    line = f"flannel-wg\t{peer.key}\t(none)\t{peer.endpoint}\t{','.join(peer.allowed)}\t0\t0\t0\toff"
    devices, peers = parse_dump(f"flannel-wg\t{key}\t{public}\t51820\toff\n{line}\n")
    assert devices == {"flannel-wg": Wireguard(51820, key)}
    assert peers == [peer]
    words = ["peer", peer.key, "preshared-key", "/dev/null", "endpoint", "[fd18::3]:51820"]
    assert peer_words(peers)[:6] == words
    assert parse_dump(line.replace("(none)", PSK))[1] == [replace(peer, psk=PSK)]


# --- ipip, and all of them ------------------------------------------------------------------------------


def test_ipip_is_a_device_of_its_own_and_an_onlink_route_for_each_peer():
    netns = compiled(cluster("ipip")).netns
    link = netns.links["flannel.ipip"]
    assert (link.kind, link.mtu, link.ipip and link.ipip.local) == ("ipip", 1480, "172.18.0.2")
    assert ("flannel.ipip", "10.244.1.0/32") in netns.addresses
    assert netns.routes == {
        "10.244.2.0/24": Route("10.244.2.0/24", via="172.18.0.3", dev="flannel.ipip", onlink=True)
    }
    direct = compiled(cluster("ipip", directRouting=True)).netns.routes
    assert direct["10.244.2.0/24"].dev == "eth0"
    text = render(compiled(cluster("ipip")), {}, "routes", ("ipv4",))
    assert "link add flannel.ipip mtu 1480 type ipip local 172.18.0.2\n" in text


def test_a_backend_says_what_it_needs():
    assert needs_of(FLANNEL, {}) >= {"vxlan", "bridge"}
    assert needs_of(FLANNEL, {"backend": "wireguard"}) == FLANNEL.needs | {"wireguard"}
    assert needs_of(FLANNEL, {"backend": "host-gw"}) == FLANNEL.needs
    assert "ipip-tunnel" in needs_of(FLANNEL, {"backend": "ipip"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_that_joins_and_leaves_changes_its_own_entries_alone(backend: str):
    """Applied to a kernel that refuses what the real one would."""
    few, many = [node(1), node(2)], [node(1), node(2), node(3)]
    kernel, state = FakeKernel(), NodeState()
    uplink = Address("eth0", "172.18.0.2/16")
    assert kernel.change(NODE, NetnsState(addresses={("eth0", uplink.address): uplink}), NetnsState()) == []
    before = compiled(cluster(backend, *few))
    for nodes in (few, many, few):
        wanted = compiled(cluster(backend, *nodes))
        assert apply(kernel, diff(state, wanted), NoTenants()).failed == {}
        state = wanted
        assert kernel.read(NODE).peers == wanted.netns.peers
        assert kernel.read(NODE).routes == wanted.netns.routes
    joined = compiled(cluster(backend, *many))
    assert joined.netns.links == before.netns.links
    assert len(joined.netns.peers) - len(before.netns.peers) == (1 if backend == "wireguard" else 0)


def test_a_device_with_another_key_is_made_anew_with_its_peers():
    old = compiled(cluster("wireguard"))
    other = replace(old.netns.links["flannel-wg"], wireguard=Wireguard(51820, keys.private_key("x")))
    new = replace(old, netns=replace(old.netns, links={**old.netns.links, "flannel-wg": other}))
    kernel = FakeKernel()
    assert apply(kernel, diff(NodeState(), old), NoTenants()).failed == {}
    assert apply(kernel, diff(old, new), NoTenants()).failed == {}
    assert kernel.read(NODE).links["flannel-wg"] == other
    assert kernel.read(NODE).peers == old.netns.peers
