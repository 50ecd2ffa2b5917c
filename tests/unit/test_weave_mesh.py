"""Ways through a mesh of peers, and the packets of the router."""

from __future__ import annotations

import socket
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.control.snapshot import ClusterFacts
from testbed.dataplane import dataplanes
from testbed.dataplane.weave import odp
from testbed.dataplane.weave.mesh import broadcast, connections, tree, unicast
from testbed.errors import InputError
from testbed.relays import weave as relay

PEERS = tuple("abcdefg")
PAIRS = st.lists(st.tuples(st.sampled_from(PEERS), st.sampled_from(PEERS)), max_size=12)


def test_peers_that_no_pair_names_are_connected_to_all() -> None:
    assert connections("abc", []) == {
        "a": frozenset("bc"),
        "b": frozenset("ac"),
        "c": frozenset("ab"),
    }
    mesh = connections("abcd", [("a", "b"), ("b", "c")])
    assert (mesh["a"], mesh["d"]) == (frozenset("bd"), frozenset("abc"))


def test_packets_go_the_shortest_way_and_of_two_by_the_first_name() -> None:
    mesh = connections("abcd", [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert unicast(mesh, "a") == {"b": "b", "c": "c", "d": "b"}
    assert broadcast(mesh, "a")["a"] == ("b", "c")
    assert (broadcast(mesh, "b")["a"], broadcast(mesh, "c")["a"]) == (("d",), ())


@given(pairs=PAIRS)
def test_broadcast_reaches_each_peer_once_and_unicast_never_goes_round(pairs: list[tuple[str, str]]) -> None:
    mesh = connections(PEERS, [pair for pair in pairs if pair[0] != pair[1]])
    hops = {peer: broadcast(mesh, peer) for peer in PEERS}
    ways = {peer: unicast(mesh, peer) for peer in PEERS}
    for source in PEERS:
        got: Counter[str] = Counter()
        waiting = [source]
        while waiting:
            here = waiting.pop()
            for hop in hops[here][source]:
                assert hop in mesh[here]
                got[hop] += 1
                waiting.append(hop)
        assert dict(got) == dict.fromkeys(tree(mesh, source), 1)
        for target in ways[source]:
            here, steps = source, 0
            while here != target:
                here, steps = ways[here][target], steps + 1
                assert steps < len(PEERS)


def packet(size: int, *, df: bool = False, options: bytes = b"") -> bytes:
    """A frame with an IPv4 packet of UDP with so many bytes of payload."""
    length = 20 + len(options)
    body = bytes(number % 251 for number in range(size))
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        0,
        length + size,
        7,
        0x4000 if df else 0,
        64,
        17,
        0,
        socket.inet_aton("10.32.0.2"),
        socket.inet_aton("10.40.0.1"),
    )
    return b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2" + b"\x08\0" + header + options + body


@pytest.mark.parametrize("options", [b"", bytes(4)])
def test_fragments_fit_and_make_up_the_packet(options: bytes) -> None:
    frame, mtu = packet(5000, options=options), 1438
    whole = bytearray(5000)
    parts = list(relay.fragments(frame, mtu))
    for part in parts:
        ip = part[14:]
        length = 4 * (ip[0] & 15)
        total, _, word = struct.unpack_from("!HHH", ip, 2)
        assert total == len(ip) <= mtu
        assert relay.checksum(ip[:length]) == 0
        assert bool(word & 0x2000) == (part is not parts[-1])
        at = (word & 0x1FFF) * 8
        whole[at : at + total - length] = ip[length:]
    assert bytes(whole) == frame[14 + 20 + len(options) :]


def test_error_about_a_large_packet_comes_from_where_it_was_sent_to() -> None:
    frame = packet(2000, df=True)
    answer = relay.fragmentation_needed(frame, 1438)
    assert (answer[:6], answer[6:12]) == (frame[6:12], frame[:6])
    ip = answer[14:]
    assert (socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])) == ("10.40.0.1", "10.32.0.2")
    assert (ip[20], ip[21], struct.unpack_from("!H", ip, 26)[0]) == (3, 4, 1438)
    assert relay.checksum(ip[:20]) == relay.checksum(ip[20:]) == 0
    assert ip[28:] == frame[14:42]


@given(data=st.binary(max_size=200))
def test_no_packet_is_too_odd_to_be_taken_apart(data: bytes) -> None:
    for source, peer, frame in relay.frames(data):
        assert (len(source), len(peer)) == (6, 6)
        assert frame in data


def test_frames_of_one_packet_are_told_apart_and_a_cut_one_is_left_out() -> None:
    one, other = b"a" * 6, b"b" * 6
    whole = one + one + other + b"\0\3" + b"abc" + one + other + b"\0\2" + b"de"
    assert list(relay.frames(whole)) == [(one, other, b"abc"), (one, other, b"de")]
    assert list(relay.frames(whole[:-1])) == [(one, other, b"abc")]


@pytest.mark.parametrize("wrong", ["a-b", [["a"]], [["a", 1]], [["a", "b", "c"]]])
def test_connections_are_pairs_of_names(wrong: object) -> None:
    with pytest.raises(ValueError, match="pairs of nodes"):
        dataplanes.get("weave").parameters["connections"].parse(wrong)


def test_connection_of_a_node_that_there_is_not_is_refused() -> None:
    facts = ClusterFacts(
        *("cluster.local", ("10.32.0.0/12",), (), (), ()),
        dataplane_options={"mode": "sleeve", "connections": [["node-1", "node-9"]]},
        node_names=("node-1", "node-2"),
    )
    with pytest.raises(InputError, match="no node is called node-9; nodes are node-1, node-2"):
        dataplanes.get("weave").ipam(facts)


# --- flows of Open vSwitch --------------------------------------------------------------------------------


@given(peers=st.sets(st.text(st.sampled_from("abcdef0123456789-"), min_size=1, max_size=8), max_size=60))
def test_short_ids_are_12_bits_and_no_two_are_the_same(peers: set[str]) -> None:
    ids = odp.short_ids(peers)
    assert len(set(ids.values())) == len(peers)
    assert all(0 <= number < 4096 for number in ids.values())


def test_source_and_destination_are_in_the_network_id() -> None:
    assert odp.vni(0x111, 0x222) == 0x222111


def test_middle_of_a_line_relays_with_the_network_id_as_it_is_and_broadcasts_anew() -> None:
    addresses = {"a": "172.18.0.2", "b": "172.18.0.3", "c": "172.18.0.4"}
    mesh = connections("abc", [("a", "b"), ("b", "c")])
    ids = odp.short_ids(addresses)
    found = list(odp.flows("b", addresses, unicast(mesh, "b"), broadcast(mesh, "b")))
    relayed = f"table=0,priority=10,in_port=2,tun_id={ids['c'] << 12:#x}/0xfff000"
    assert f"{relayed},actions=set_field:172.18.0.4->tun_dst,in_port" in found
    comes = f"table=30,priority=5,in_port=2,tun_id={odp.vni(ids['a'], ids['b']):#x}"
    onward = f"set_field:{odp.vni(ids['a'], ids['c']):#x}->tun_id,set_field:172.18.0.4->tun_dst,in_port"
    assert f"{comes},actions={onward}" in found
    ends = list(odp.flows("a", addresses, unicast(mesh, "a"), broadcast(mesh, "a")))
    assert not any(flow.startswith("table=30") for flow in ends)
    (everywhere,) = [flow for flow in ends if flow.startswith("table=10,priority=0")]
    assert everywhere.count("tun_dst") == 1
