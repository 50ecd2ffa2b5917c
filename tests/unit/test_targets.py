"""Ends of flows by name, what iperf3 says, and what a packet's way is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.measure import targets
from testbed.measure.messages import Seen
from testbed.measure.paths import Endpoint, Port
from testbed.measure.probes.throughput import rows_of
from testbed.measure.probes.udp import HEAD, MAGIC, number_in
from testbed.measure.probing import ProbeRequest, plan, rewritten
from testbed.measure.targets import End, Known
from testbed.measure.trace import turning

PORTS = (Port("tcp", 8080), Port("udp", 8081))


def pod(name: str, node: str, ip: str, **labels: str) -> Endpoint:
    return Endpoint(
        key=name, namespace="default", name=name, node=node, ips=(ip,), ports=PORTS, labels=labels
    )


WEB = {
    "spec": {
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9"],
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "udp", "port": 81}],
    }
}


def service(namespace: str, name: str) -> Any:
    if name != "web":
        raise InputError(f"there is no Service {namespace}/{name}")
    return WEB


KNOWN = Known(
    endpoints=[
        pod("a", "node-1", "10.244.1.2", app="client"),
        pod("b", "node-2", "10.244.2.2", app="web"),
        pod("c", "node-1", "10.244.1.3", app="web"),
        Endpoint(key="host:client", namespace="", name="client", node="", ips=("203.0.113.10",)),
    ],
    nodes=[
        Endpoint(
            key=f"node:node-{n}", namespace="", name=f"node-{n}", node=f"node-{n}", ips=(f"192.168.100.1{n}",)
        )
        for n in (1, 2)
    ],
    service=service,
)


def where(to: End, ports: str = "tcp", default: int = 0) -> list[tuple[str, str, int]]:
    return [(one.name, one.ip, one.port) for one in targets.destinations(to, KNOWN, ports, default, None)]


def test_destinations_are_found_by_every_kind_of_name() -> None:
    assert where(End(pods="app=web")) == [("c", "10.244.1.3", 8080), ("b", "10.244.2.2", 8080)]
    assert where(End(pod="b"), "udp") == [("b", "10.244.2.2", 8081)]
    assert where(End(service="web")) == [("web", "10.96.0.9", 80)]
    assert where(End(service="web", port="udp")) == [("web", "10.96.0.9", 81)]
    assert where(End(node_port="web")) == [
        ("web at node-1", "192.168.100.11", 30080),
        ("web at node-2", "192.168.100.12", 30080),
    ]
    assert where(End(node_port="web", node="node-2")) == [("web at node-2", "192.168.100.12", 30080)]
    assert where(End(host="client", port=99)) == [("client", "203.0.113.10", 99)]
    assert where(End(ip="198.18.0.1"), "", 53) == [("198.18.0.1", "198.18.0.1", 53)]


@pytest.mark.parametrize(
    ("to", "why"),
    [
        (End(), "an end is one of"),
        (End(pod="a", service="web"), "given: pod, service"),
        (End(pod="z"), "there is no pod z"),
        (End(service="z"), "no Service default/z"),
        (End(service="web", port="nope"), "no port nope"),
        (End(node_port="web", port="udp"), "no node port"),
        (End(host="client"), "declares no TCP port"),
        (End(ip="nonsense"), "not an IP address"),
    ],
)
def test_what_leads_nowhere_is_refused_with_the_reason(to: End, why: str) -> None:
    with pytest.raises(InputError, match=why):
        where(to)


def request(kind: str, to: End, **fields: Any) -> ProbeRequest:
    return ProbeRequest(kind=kind, source=End(pods=""), to=to, **fields)


def test_flows_go_from_every_source_to_every_destination_but_itself() -> None:
    planned = plan(request("icmp", End(pods="app=web"), rate=10, count=5), KNOWN)
    ends = [(source.name, to.name, to.path) for source, to in planned.flows]
    assert ends == [
        ("a", "c", "same-node"),
        ("a", "b", "cross-node"),
        ("c", "b", "cross-node"),
        ("b", "c", "cross-node"),
    ]
    assert len(planned.moments) == 5


def test_a_kind_that_needs_the_destinations_netns_refuses_a_service() -> None:
    with pytest.raises(InputError, match="goes to a pod, a node or a host"):
        plan(request("train", End(service="web"), count=1), KNOWN)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "icmp"}, "needs a count"),
        ({"kind": "icmp", "rate": 1e5, "seconds": 86400}, "from 1 to 1,000,000 probes"),
        ({"kind": "nope", "count": 1}, "unknown probe 'nope': known are crafted, dns, http"),
        ({"kind": "icmp", "count": 1, "options": {"sise": 3}}, "unknown field `sise`"),
        ({"kind": "dns", "count": 1, "options": {"question": "a" * 64}}, "too long for a DNS name"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        plan(request(to=End(pod="b"), **fields), KNOWN)


def test_intervals_of_iperf3_become_rows_and_its_error_a_failed_one() -> None:
    total = {"start": 0, "seconds": 1.0, "bits_per_second": 5e9, "bytes": 625000000, "retransmits": 3}
    said = {"start": {"timestamp": {"timesecs": 100}}, "intervals": [{"sum": total}]}
    (row,) = rows_of(json.dumps(said), 0.0)
    assert (row["at"], row["bits_per_second"], row["answer"]) == (100.0, 5e9, "3 retransmits")
    # Recorded from iperf3 3.12 where three of ten large UDP packets were dropped.
    sent = {"start": 0, "end": 1.00011, "seconds": 1.00011, "bytes": 6258688, "bits_per_second": 50063995.4}
    counted = {**sent, "seconds": 1.000581, "lost_packets": 60, "packets": 191, "lost_percent": 31.4}
    said = {"intervals": [{"sum": {**sent, "packets": 191}}], "end": {"sum": counted}}
    (row,) = rows_of(json.dumps(said), 0.0)
    assert row["bits_per_second"] == pytest.approx(34320923.5, rel=1e-6)  # its own sum_received
    assert row["answer"] == "60 of 191 datagrams lost"
    (row,) = rows_of(json.dumps({"error": "unable to connect"}), 7.0)
    assert (row["verdict"], row["reason"]) == ("error", "unable to connect")
    with pytest.raises(OSError, match="no JSON"):
        rows_of("usage: iperf3", 0.0)


def test_the_way_back_begins_where_an_end_sends_after_it_has_received() -> None:
    there = [("pod", True), ("node", False), ("node", True), ("end", False), ("end", True), ("node", False)]
    assert turning(there, ("end",)) == 4
    hairpin = [("pod", True), ("node", False), ("node", True), ("pod", False), ("pod", True), ("node", False)]
    assert turning(hairpin, ("pod",)) == 4
    assert turning(there[:4], ("end",)) == 4


def test_what_is_rewritten_is_what_differs() -> None:
    before = Seen("a", "eth0", "out", 0, {"source": "10.0.0.1", "TTL": "64"})
    after = Seen("b", "eth0", "in", 0, {"source": "10.0.0.1", "TTL": "63", "encapsulated in": "VXLAN 1"})
    assert rewritten(before, after) == {"TTL": ["64", "63"], "encapsulated in": ["", "VXLAN 1"]}


def test_an_icmp_error_is_that_of_the_datagram_that_it_quotes() -> None:
    token = b"line"
    quoted = HEAD.pack(MAGIC, token, 7) + bytes(16)
    assert number_in(quoted, token) == 7
    assert number_in(quoted, b"else") is None
    assert number_in(b"hostname", token) is None
