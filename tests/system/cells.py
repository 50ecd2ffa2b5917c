"""The cells of the comparison of dataplanes that every one of them has, asked of the row of a mode.

A test module has them by a class of its own, ``class TestCells(Cells)``, and by its fixture ``lab``, whose
labs have a row and the addresses of their pods.
"""

from __future__ import annotations

from dataclasses import dataclass

import cell_lab
import pytest
from cell_lab import NODE_PORT, OUTSIDE, VIP, A, B, captured, counted, curl, echoes, ok, ping, told


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the comparison says of a mode.

    path_mtu: the largest packet, in bytes, that crosses unfragmented; near_ttl, far_ttl: of what arrives from
    a pod of the same and of another node; far_source, near_source: as what node a is seen by a pod of b and
    by one of its own; masquerade: chain and words of the rule for what leaves the cluster; forwards: whether
    pods reach each other across where the policy of FORWARD is DROP.
    """

    path_mtu: int
    near_ttl: int
    far_ttl: int
    far_source: str
    near_source: str
    masquerade: tuple[str, str]
    forwards: bool = True


class Lab(cell_lab.Lab):
    """The running lab with its row, and with its pods' addresses by name."""

    row: Row
    ip: dict[str, str]


class Cells:
    """A test for each."""

    # --- §1 addressing

    def test_packet_of_the_mtu_crosses_unfragmented_and_one_byte_more_does_not(self, lab: Lab) -> None:
        size = lab.row.path_mtu - 28
        ping(lab.a1, lab.ip["b1"], "-M", "do", "-s", str(size))
        refused = lab.a1.run(["ping", "-n", "-c1", "-W2", "-M", "do", "-s", str(size + 1), lab.ip["b1"]])
        assert refused.code != 0
        said = refused.stdout + refused.stderr
        assert "too long" in said or f"mtu = {lab.row.path_mtu}" in said

    def test_services_are_not_routed(self, lab: Lab) -> None:
        (route,) = told(lab.a, "ip", "-json", "route", "get", VIP["one"])
        assert (route["gateway"], route["dev"]) == (OUTSIDE, "eth0")

    # --- §3 TTL, source addresses, counters

    def test_ttl_on_one_node_and_across_both_ways(self, lab: Lab) -> None:
        assert ping(lab.a1, lab.ip["a2"]) == lab.row.near_ttl
        assert ping(lab.a1, lab.ip["b1"]) == ping(lab.b1, lab.ip["a1"]) == lab.row.far_ttl
        with captured(lab.b1, "eth0") as seen:
            ping(lab.a1, lab.ip["b1"])
        assert [(frame["src"], frame["ttl"]) for frame in echoes(seen)] == [(lab.ip["a1"], lab.row.far_ttl)]

    def test_node_is_seen_by_a_pod_across_as_the_row_says(self, lab: Lab) -> None:
        with captured(lab.b1, "eth0") as seen:
            ping(lab.a, lab.ip["b1"])
        assert {echo["src"] for echo in echoes(seen)} == {lab.row.far_source}

    def test_pod_is_seen_with_its_nodes_address_by_another_node(self, lab: Lab) -> None:
        with captured(lab.b, "eth0") as seen:
            ping(lab.a1, B)
        assert {echo["src"] for echo in echoes(seen)} == {A}

    @pytest.mark.parametrize(("service", "backend"), [("one", "b1"), ("near", "a2")])
    def test_node_ports_client_is_seen_as_the_node(self, lab: Lab, service: str, backend: str) -> None:
        with captured(lab.cluster.pod(backend), "eth0") as seen:
            answer = curl(lab.o, f"http://{A}:{NODE_PORT[service]}/hostname")
        assert (answer.code, answer.stdout.strip()) == (0, backend), answer.stderr
        sources = {frame["src"] for frame in seen if frame["what"] == "tcp" and frame["way"] == "in"}
        assert sources == {lab.row.far_source if backend == "b1" else lab.row.near_source}

    # --- §4 captures

    def test_service_is_translated_on_the_clients_node_and_nowhere_else(self, lab: Lab) -> None:
        a1, b1 = lab.ip["a1"], lab.ip["b1"]
        ok(lab.a, "conntrack", "-F")
        before = counted(lab.a, "nat", "KUBE-SERVICES", f"-d {VIP['one']}/32", "KUBE-SVC-")
        with (
            captured(lab.a1, "eth0") as p_a1,
            captured(lab.a, lab.host_end("a1")) as h_a1,
            captured(lab.b1, "eth0") as p_b1,
        ):
            answer = curl(lab.a1, f"http://{VIP['one']}/hostname")
        assert answer.stdout.strip() == "b1", answer.stderr
        assert counted(lab.a, "nat", "KUBE-SERVICES", f"-d {VIP['one']}/32", "KUBE-SVC-") == before + 1
        for frames in (p_a1, h_a1):
            ends = {(frame["src"], frame["dst"]) for frame in frames if frame["what"] == "tcp"}
            assert ends == {(a1, VIP["one"]), (VIP["one"], a1)}
        across = [frame for frame in p_b1 if frame["what"] == "tcp"]
        assert {(frame["src"], frame["dst"]) for frame in across} == {(a1, b1), (b1, a1)}
        assert {frame["dport"] for frame in across if frame["way"] == "in"} == {8080}
        tracked = ok(lab.a, "conntrack", "-L", "-p", "tcp", "--orig-dst", VIP["one"])
        assert f"src={a1} dst={VIP['one']}" in tracked
        assert f"src={b1} dst={a1}" in tracked

    def test_pod_that_is_its_own_backend_sees_the_node(self, lab: Lab) -> None:
        answer = curl(lab.a1, f"http://{VIP['self']}/clientip")
        assert answer.stdout.rpartition(":")[0].removeprefix("::ffff:") == lab.row.near_source, answer.stderr

    def test_outside_sees_the_nodes_address_and_the_rows_rule_counts_it(self, lab: Lab) -> None:
        before = counted(lab.a, "nat", *lab.row.masquerade)
        with captured(lab.o, lab.o_device) as seen:
            ping(lab.a1, OUTSIDE)
        (echo,) = echoes(seen)
        assert (echo["src"], echo["ttl"], echo["length"]) == (A, 63, 98)
        assert counted(lab.a, "nat", *lab.row.masquerade) == before + 1
        tracked = ok(lab.a, "conntrack", "-L", "-p", "icmp", "--orig-src", lab.ip["a1"])
        assert f"src={lab.ip['a1']} dst={OUTSIDE}" in tracked

    # --- §5 negative checks

    def test_forward_with_policy_drop(self, lab: Lab) -> None:
        ok(lab.a, "iptables", "-P", "FORWARD", "DROP")
        try:
            ran = lab.a1.run(["ping", "-c5", "-i0.2", "-W2", lab.ip["b1"]])  # one answer is enough
        finally:
            ok(lab.a, "iptables", "-P", "FORWARD", "ACCEPT")
        assert (ran.code == 0) == lab.row.forwards
