"""Every probe kind in a cluster, against what is really there; and the way of packets, hop by hop."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.cli.main import main
from testbed.errors import InputError
from testbed.measure import metrics
from testbed.records import Sample, probe_samples

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: probes}
spec:
  nodes: {count: 2}
  external: [{name: client, address: 203.0.113.10}]
  dns: {replicas: 1}
  manifests: [objects.yaml]
"""

CONTAINER = """
{name: a, image: agnhost, args: [netexec, --http-port=8080, --udp-port=8081],
 ports: [{containerPort: 8080}, {containerPort: 8081, protocol: UDP}]}
"""
OBJECTS = f"""
apiVersion: v1
kind: Pod
metadata: {{name: near, labels: {{app: web}}}}
spec: {{nodeName: node-1, containers: [{CONTAINER}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: far, labels: {{app: web}}}}
spec: {{nodeName: node-2, containers: [{CONTAINER}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: a}}
spec: {{nodeName: node-1, containers: [{{name: s, image: busybox}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports:
  - {{name: http, port: 80, targetPort: 8080}}
  - {{name: udp, port: 81, targetPort: 8081, protocol: UDP}}
"""
PODS = {"pods": "app=web"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("probes")
    (folder / "cluster.yaml").write_text(SPEC)
    (folder / "objects.yaml").write_text(OBJECTS)
    with Cluster.up(folder / "cluster.yaml", name="probes-test") as running:
        running.wait(ready="", namespace="", timeout=60)
        running.settle(60)
        probe(running, "icmp", {"pod": "far"}, count=1)  # starts the prober, which is kept
        yield running


def probe(cluster: Cluster, kind: str, to: dict[str, Any], **fields: Any) -> list[Sample]:
    request = {"kind": kind, "from": {"pod": "a"}, "to": to, "timeout": 5, **fields}
    return probe_samples(kind, kind, cluster.client.post("/apis/testbed/v1/probe", request, timeout=None))


def outcomes(samples: list[Sample]) -> set[tuple[str, str, str]]:
    return {(one.verdict, one.reason, one.code) for one in samples}


OK = {("ok", "", "")}


@pytest.mark.parametrize("kind", ["icmp", "udp", "train"])
def test_stamps_of_datagrams_are_the_kernels_and_in_order(cluster: Cluster, kind: str) -> None:
    samples = probe(cluster, kind, PODS, rate=200, count=100)
    assert outcomes(samples) == OK
    assert {(one.destination, one.path) for one in samples} == {("near", "same-node"), ("far", "cross-node")}
    for one in samples:
        assert one.sent is not None
        assert one.received is not None
        assert one.seconds_kernel == pytest.approx(one.received - one.sent)
        assert one.seconds is not None
        assert one.seconds > one.seconds_kernel > 0  # the send call comes before the device
        assert one.copies == 1
    assert metrics.reordered(samples) == 0


def test_a_schedule_is_kept_while_nothing_answers(cluster: Cluster) -> None:
    """Nobody is at that address: each probe waits a second for nothing, and the next ones go out all the
    same."""
    request = {"rate": 100, "count": 50, "timeout": 1, "options": {"names": False}}
    samples = probe(cluster, "udp", {"ip": "10.244.1.250", "port": 9}, **request)
    at = [one.at for one in samples if one.at is not None]
    assert len(at) == 50
    assert at[-1] - at[0] < 1.0  # 49 intervals of 10 ms, not 49 timeouts
    assert all(one.verdict in ("timeout", "unreachable") for one in samples)


def test_connections_and_requests_through_a_service_say_who_answered(cluster: Cluster) -> None:
    samples = probe(cluster, "http", {"service": "web"}, rate=100, count=60)
    assert outcomes(samples) == OK
    assert {one.answer for one in samples} == {"near", "far"}
    assert all(one.seconds is not None and one.seconds > (one.seconds_kernel or 0) for one in samples)
    assert outcomes(probe(cluster, "tcp", {"service": "web"}, count=20, at_once=4)) == OK
    named = probe(cluster, "udp", {"service": "web", "port": "udp"}, rate=50, count=50)
    assert {one.answer for one in named[25:]} < {"near", "far"}  # one flow, one endpoint


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_the_wait_for_a_repeated_syn_is_in_the_time(cluster: Cluster, kind: str) -> None:
    """The first SYN is dropped, the kernel sends another after a second: that second was waited for."""
    first = ["-m", "statistic", "--mode", "nth", "--every", "1000000", "--packet", "0"]
    drop = ["-p", "tcp", "--syn", *first, "-j", "DROP"]
    node = cluster.node("node-2")
    node.run(["iptables", "-t", "mangle", "-I", "PREROUTING", *drop])
    try:
        (sample,) = probe(cluster, kind, {"pod": "far"}, count=1, timeout=10)
    finally:
        node.run(["iptables", "-t", "mangle", "-D", "PREROUTING", *drop])
    assert sample.verdict == "ok"
    assert sample.seconds is not None
    assert sample.seconds > 0.9  # TCP_TIMEOUT_INIT of include/net/tcp.h is 1 s
    assert sample.seconds_kernel is None


def test_a_node_port_is_asked_on_every_node_and_from_outside(cluster: Cluster) -> None:
    samples = probe(cluster, "http", {"nodePort": "web"}, count=20)
    assert outcomes(samples) == OK
    assert {one.destination_node for one in samples} == {"node-1", "node-2"}
    outside = probe(
        cluster, "http", {"nodePort": "web", "node": "node-2"}, count=10, **{"from": {"host": "client"}}
    )
    assert outcomes(outside) == OK


def test_what_refuses_is_told_with_its_icmp_code(cluster: Cluster) -> None:
    assert outcomes(probe(cluster, "tcp", {"host": "client", "port": 81}, count=3)) == {
        ("refused", "reset", "")
    }
    samples = probe(cluster, "udp", {"host": "client", "port": 81}, count=2, gap=1.1)
    assert outcomes(samples) == {("refused", "port unreachable", "3/3")}
    assert {one.reporter for one in samples} == {"203.0.113.10"}
    nowhere = probe(cluster, "icmp", {"ip": "198.18.0.1"}, count=1)
    assert outcomes(nowhere) == {("unreachable", "network", "3/0")}


def test_names_are_asked_for_over_dns(cluster: Cluster) -> None:
    server = {"service": "kube-dns", "namespace": "kube-system"}
    samples = probe(cluster, "dns", server, rate=50, count=20)
    assert outcomes(samples) == OK
    assert {one.answer for one in samples} == {"10.96.0.1"}
    unknown = probe(cluster, "dns", server, count=2, options={"question": "nope.cluster.local"})
    assert outcomes(unknown) == {("error", "NXDOMAIN", "")}


def test_crafted_packets_meet_what_the_kernel_does_with_them(cluster: Cluster) -> None:
    sizes = probe(cluster, "crafted", {"pod": "far"}, count=3, options={"sizes": [500, 1500, 1501]})
    assert [(one.verdict, one.reason) for one in sizes] == [
        ("ok", ""),
        ("ok", ""),
        ("unreachable", "too big"),
    ]
    fragments = probe(
        cluster, "crafted", {"pod": "far"}, count=2, options={"packet": "fragments", "sizes": [3000]}
    )
    assert outcomes(fragments) == OK
    wrong = {"packet": "bad-checksum"}
    silent = probe(cluster, "crafted", {"pod": "near", "port": 8081}, count=2, timeout=0.5, options=wrong)
    assert outcomes(silent) == {("timeout", "no answer", "")}
    (syn,) = probe(
        cluster, "crafted", {"pod": "near", "port": 8080}, count=1, options={"packet": "flags", "flags": "S"}
    )
    assert (syn.verdict, syn.answer.split()[-1]) == ("ok", "SA")


def test_throughput_is_iperf3s(cluster: Cluster) -> None:
    samples = probe(cluster, "throughput", {"pod": "far"}, seconds=2, options={"interval": 0.5})
    assert len(samples) >= 3
    assert all((one.bits_per_second or 0) > 1e6 for one in samples)


def test_throughput_of_datagrams_is_what_arrived(cluster: Cluster) -> None:
    every_other = ["-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0"]
    drop = ["-p", "udp", "-m", "length", "--length", "1000:", *every_other, "-j", "DROP"]
    node = cluster.node("node-2")
    node.run(["iptables", "-t", "mangle", "-I", "PREROUTING", *drop])
    try:
        options = {"protocol": "udp", "bandwidth": "20M"}
        (sample,) = probe(cluster, "throughput", {"pod": "far"}, seconds=1, options=options)
    finally:
        node.run(["iptables", "-t", "mangle", "-D", "PREROUTING", *drop])
    assert sample.bits_per_second == pytest.approx(10e6, rel=0.1)


def test_a_bare_veth_pair_answers_as_the_noise_floor(cluster: Cluster) -> None:
    samples = probe(cluster, "icmp", {"ip": "192.0.2.2"}, rate=200, count=50, floor=True)
    assert outcomes(samples) == OK
    assert {one.path for one in samples} == {"bare veth"}


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"kind": "icmp", "from": {"pod": "zz"}, "to": PODS, "count": 1}, "there is no pod zz"),
        ({"kind": "jump", "from": {"pod": "a"}, "to": PODS, "count": 1}, "unknown probe"),
        ({"kind": "icmp", "from": {"pod": "a"}, "to": {"pod": "a"}, "count": 1}, "one to itself"),
        ({"kind": "icmp", "from": {"pod": "a"}, "to": PODS, "rate": -1}, ">= 0"),
    ],
)
def test_a_request_that_cannot_be_says_why(cluster: Cluster, request_: dict[str, Any], why: str) -> None:
    with pytest.raises((RequestFailed, InputError), match=why):
        cluster.client.post("/apis/testbed/v1/probe", request_)


def follow(
    cluster: Cluster, to: dict[str, Any], protocol: str = "icmp", **fields: Any
) -> list[dict[str, Any]]:
    request = {"from": {"pod": "a"}, "to": to, "protocol": protocol, "count": 10, **fields}
    answer = cluster.client.post("/apis/testbed/v1/path", request, timeout=None)
    journeys: list[dict[str, Any]] = answer["journeys"]
    return journeys


def places(journey: dict[str, Any], leg: str) -> list[str]:
    return [f"{hop['where']} {hop['way']}" for hop in journey["hops"] if hop["leg"] == leg]


def test_a_packet_is_seen_at_every_interface_and_back(cluster: Cluster) -> None:
    for journey in follow(cluster, {"pod": "far"}):
        assert places(journey, "there") == [
            "pod a out",
            "node node-1 in",
            "node node-1 in",  # the bridge itself
            "node node-1 out",
            "switches in",
            "switches out",
            "node node-2 in",
            "node node-2 out",
            "node node-2 out",
            "pod far in",
        ]
        assert places(journey, "back")[0] == "pod far out"
        assert places(journey, "back")[-1] == "pod a in"


def test_hops_add_up_to_the_round_trip_of_the_senders_own_socket(cluster: Cluster) -> None:
    """Sum and round trip have no stamp in common at the sending end; what is between them is the stamping
    itself."""
    ratios = [
        sum(hop["seconds"] for hop in journey["hops"]) / journey["round_trip"]
        for journey in follow(cluster, {"pod": "far"}, count=40)
    ]
    assert len(ratios) == 40
    assert max(ratios) <= 1.001
    assert median(ratios) > 0.9


@pytest.mark.parametrize(("protocol", "port"), [("udp", "udp"), ("tcp", "http")])
def test_what_a_service_rewrites_is_told_where_it_happens(cluster: Cluster, protocol: str, port: str) -> None:
    journeys = follow(cluster, {"service": "web", "port": port}, protocol)
    for journey in journeys:
        assert journey["round_trip"] is not None
        rewriting = [
            (hop["where"], hop["leg"], hop["rewritten"])
            for hop in journey["hops"]
            if {"source", "destination"} & set(hop["rewritten"])
        ]
        assert [(where, leg) for where, leg, _ in rewriting] == [
            ("node node-1", "there"),
            ("node node-1", "back"),
        ]
        (_, _, there), (_, _, back) = rewriting
        assert set(there) >= {"destination", "destination port"}
        assert "source" not in there
        assert back["source"] == there["destination"][::-1]


def test_path_on_the_command_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-C", cluster.name, "path", "a", "service:web", "--protocol", "tcp", "--count", "3"]) == 0
    shown = capsys.readouterr().out
    assert "pod a" in shown
    assert "destination port 80 → 8080" in shown
    assert main(["-C", cluster.name, "path", "a", "far", "--count", "2", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["journeys"]) == 2


def test_flows_in_turn_share_the_rate(cluster: Cluster) -> None:
    samples = probe(cluster, "icmp", PODS, rate=400, count=100, burst=4)
    assert Counter(one.destination for one in samples) == {"near": 50, "far": 50}
