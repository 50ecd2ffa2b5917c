"""Verdicts, paths, ICMP bytes, flow selection: what of measuring is pure."""

from __future__ import annotations

import errno
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError, MissingCapability
from testbed.measure.icmp import checksum, echo_request, icmp_part
from testbed.measure.messages import NeighbourTable, Outcome, Reached
from testbed.measure.paths import Endpoint, Port, choose_pairs, path_of, rotate
from testbed.measure.rtt import with_sequence
from testbed.measure.service import (
    Pair,
    ReachRequest,
    named_pairs,
    refuse_false_failures,
    select_flows,
)
from testbed.measure.sockets import TCP_INFO_SIZE, handshake_of, icmp_error, stamp_of
from testbed.measure.verdicts import from_errno, from_icmp


def make_pod(number: int, node: int = 1, **extra: object) -> Endpoint:
    fields: dict[str, object] = {
        "key": f"uid-{number}",
        "namespace": "default",
        "name": f"pod-{number}",
        "node": f"node-{node}",
        "ips": (f"10.244.{node}.{number}",),
        "ports": (Port("tcp", 80), Port("tcp", 81)),
    }
    return Endpoint(**(fields | extra))  # type: ignore[arg-type]


CLIENT = Endpoint(key="host:client", namespace="", name="client", node="", ips=("203.0.113.10",))


@pytest.mark.parametrize(
    ("code", "verdict", "reason"),
    [
        (errno.ECONNREFUSED, "refused", "reset"),
        (errno.ECONNRESET, "reset", "reset"),
        (errno.ENETUNREACH, "unreachable", "network"),
        (errno.EHOSTUNREACH, "unreachable", "host"),
        (errno.EACCES, "unreachable", "prohibited"),
        (errno.EINVAL, "unreachable", "blackhole"),
        (errno.EPERM, "unreachable", "filtered"),
        (errno.EAFNOSUPPORT, "error", "EAFNOSUPPORT"),
    ],
)
def test_errno_has_a_reason_in_words(code: int, verdict: str, reason: str) -> None:
    outcome = from_errno(code)
    assert (outcome.verdict, outcome.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("version", "kind", "code", "verdict", "reason"),
    [
        (4, 3, 0, "unreachable", "network"),
        (4, 3, 1, "unreachable", "host"),
        (4, 3, 3, "refused", "port unreachable"),
        (4, 3, 13, "unreachable", "prohibited"),
        (4, 3, 10, "unreachable", "prohibited"),
        (4, 11, 0, "unreachable", "ttl exceeded"),
        (6, 1, 4, "refused", "port unreachable"),
        (6, 1, 1, "unreachable", "prohibited"),
        (6, 1, 3, "unreachable", "host"),
        (6, 3, 0, "unreachable", "ttl exceeded"),
        (4, 12, 0, "error", "icmp 12/0"),
    ],
)
def test_icmp_error_has_a_reason_and_a_reporter(
    version: int, kind: int, code: int, verdict: str, reason: str
) -> None:
    expected = Outcome(verdict, reason, "192.0.2.1", code=f"{kind}/{code}")  # type: ignore[arg-type]
    assert from_icmp(version, kind, code, "192.0.2.1") == expected


def test_extended_error_names_the_router_that_reported_it() -> None:
    payload = struct.pack("=IBBBBII", errno.EHOSTUNREACH, 2, 3, 1, 0, 0, 0)
    offender = struct.pack("=HH", socket.AF_INET, 0) + socket.inet_aton("10.244.1.1") + bytes(8)
    outcome = icmp_error(socket.IPPROTO_IP, 11, payload + offender)
    assert outcome == Outcome("unreachable", "host", "10.244.1.1", code="3/1")


def test_extended_error_that_is_a_timestamp_is_no_icmp_error() -> None:
    payload = struct.pack("=IBBBBII", errno.ENOMSG, 4, 0, 0, 0, 0, 7)
    assert icmp_error(socket.IPPROTO_IP, 11, payload) is None


@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_echo_request_has_a_checksum_that_verifies(payload: bytes, identifier: int, sequence: int) -> None:
    packet = echo_request(socket.AF_INET, identifier, sequence, payload)
    assert checksum(packet) == 0


@given(st.binary(min_size=1, max_size=100), st.integers(0, 0xFFFF), st.integers(1, 0xFFFF))
def test_patched_sequence_number_keeps_the_checksum_right(
    payload: bytes, identifier: int, sequence: int
) -> None:
    patched = with_sequence(echo_request(socket.AF_INET, identifier, 0, payload), sequence)
    assert checksum(patched) == 0
    assert struct.unpack_from("!H", patched, 6)[0] == sequence


def test_icmp_part_skips_ip_options() -> None:
    header = bytes([0x46]) + bytes(23)
    assert icmp_part(socket.AF_INET, header + b"icmp") == b"icmp"
    assert icmp_part(socket.AF_INET6, b"icmp") == b"icmp"


def test_path_follows_placement() -> None:
    one, two, far = make_pod(1), make_pod(2), make_pod(3, node=2)
    assert path_of(one, one) == "self"
    assert path_of(one, two) == "same-node"
    assert path_of(one, far) == "cross-node"
    assert path_of(one, CLIENT) == path_of(CLIENT, one) == "outside"


def test_chosen_pairs_use_every_pair_of_nodes_before_one_twice() -> None:
    pods = [make_pod(number, node=1 + number % 3) for number in range(1, 10)]
    pairs = choose_pairs([*pods, CLIENT], ["cross-node"], 6)
    assert len({(a.node, b.node) for a, b in pairs}) == 6
    assert all(path_of(a, b) == "cross-node" for a, b in pairs)


def test_chosen_pairs_are_fewer_where_a_path_does_not_exist() -> None:
    assert choose_pairs([make_pod(1), make_pod(2)], ["cross-node", "outside"], 3) == []


def test_rotation_covers_every_pair_once_and_starts_differently() -> None:
    pods = [make_pod(number) for number in range(1, 6)]
    pairs = rotate(pods, pods)
    assert len({(a.key, b.key) for a, b in pairs}) == len(pairs) == 20
    firsts = [next(b.key for a, b in pairs if a is pod) for pod in pods]
    assert len(set(firsts)) >= 4


def test_flows_go_to_the_first_declared_port_and_skip_who_has_none() -> None:
    silent = make_pod(3, ports=())
    pairs, ports, skipped = select_flows([make_pod(1), make_pod(2), silent, CLIENT], ReachRequest())
    assert ports == {"uid-1": 80, "uid-2": 80}
    assert {(a.name, b.name) for a, b in pairs} == {
        ("pod-1", "pod-2"),
        ("pod-2", "pod-1"),
        ("pod-3", "pod-1"),
        ("pod-3", "pod-2"),
    }
    assert skipped == [{"namespace": "default", "name": "pod-3", "why": "declares no TCP port"}]


def test_a_given_port_is_tried_everywhere() -> None:
    _, ports, skipped = select_flows([make_pod(1), make_pod(2, ports=())], ReachRequest(port=9))
    assert set(ports.values()) == {9}
    assert len(ports) == 2
    assert skipped == []


def test_selection_by_namespace_label_and_family() -> None:
    pods = [
        make_pod(1, labels={"app": "web"}),
        make_pod(2, labels={"app": "web"}, namespace="other"),
        make_pod(3, labels={"app": "db"}),
        make_pod(4, labels={"app": "web"}, ips=("10.244.1.4", "fd00::4")),
    ]
    pairs, _, skipped = select_flows(
        pods, ReachRequest(protocol="icmp", namespace="default", selector="app=web", family="ipv6")
    )
    assert pairs == []
    assert [entry["name"] for entry in skipped] == ["pod-1"]


def test_unknown_names_are_all_listed() -> None:
    pairs = (Pair("pod-1", "nobody"), Pair("host:client", "other/none"))
    with pytest.raises(InputError, match="nobody, other/none"):
        named_pairs([make_pod(1), CLIENT], pairs)


def test_full_neighbour_table_refuses_instead_of_reporting_failures() -> None:
    before, after = NeighbourTable(900, 1024, 3), NeighbourTable(1024, 1024, 5)
    answer = Reached(1, (Outcome("timeout", "no answer"),), 2.0, {"ipv4": (before, after)})
    with pytest.raises(MissingCapability, match=r"full 2 times.*limit 1024.*gc_thresh3"):
        refuse_false_failures(answer)


def test_full_neighbour_table_is_no_matter_where_all_answered() -> None:
    before, after = NeighbourTable(900, 1024, 3), NeighbourTable(1024, 1024, 5)
    refuse_false_failures(Reached(1, (Outcome("ok"),), 2.0, {"ipv4": (before, after)}))


def test_what_the_kernel_did_not_stamp_is_of_now() -> None:
    stamped = [(socket.SOL_SOCKET, 37, struct.pack("=qq", 1000, 5) + bytes(32))]
    assert stamp_of(stamped) == 1_000_000_000_005
    assert abs(stamp_of([]) - time.time_ns()) < 60_000_000_000


def test_a_handshake_is_the_kernels_own_time_unless_its_syn_was_repeated() -> None:
    info = bytearray(TCP_INFO_SIZE)
    struct.pack_into("=I", info, 68, 43)
    assert handshake_of(bytes(info)) == 43_000
    struct.pack_into("=I", info, 100, 1)
    assert handshake_of(bytes(info)) == 0
