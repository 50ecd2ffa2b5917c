"""Faults that need netem: what tc shows, what packets meet, and what is left when they are healed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from testbed import Cluster

pytestmark = pytest.mark.needs("netem")

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: netem-faults}
spec: {nodes: {count: 2}, dns: {enabled: false}}
"""
ADDRESS = "192.168.100.12"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = tmp_path_factory.mktemp("netem") / "spec.yaml"
    spec.write_text(SPEC)
    with Cluster.up(spec) as running:
        yield running


def ping(cluster: Cluster, *more: str) -> str:
    return cluster.node("node-1").run(["ping", "-n", *more, ADDRESS]).stdout


def qdiscs(cluster: Cluster) -> list[str]:
    shown = cluster.node("node-2").run(["tc", "-json", "qdisc", "show", "dev", "eth0"]).stdout
    return [each["kind"] for each in json.loads(shown)]


def least(text: str) -> float:
    """The smallest round-trip time of a ping, in seconds."""
    return float(text.rsplit("= ", 1)[1].split("/")[0]) / 1e3


def test_a_delay_is_there_in_the_direction_asked_for_and_then_gone(cluster: Cluster) -> None:
    before = qdiscs(cluster)
    with cluster.fault("impair", "node-2", delay="50ms", direction="out"):
        assert "netem" in qdiscs(cluster)
        delayed = least(ping(cluster, "-c", "5", "-i", "0.2"))
        assert delayed >= 0.05
    assert qdiscs(cluster) == before
    assert least(ping(cluster, "-c", "5", "-i", "0.2")) < delayed - 0.02


def test_all_is_lost_and_then_nothing(cluster: Cluster) -> None:
    with cluster.fault("impair", "node-2", loss="100%"):
        assert "100% packet loss" in ping(cluster, "-c", "3", "-i", "0.2", "-W", "1")
    assert " 0% packet loss" in ping(cluster, "-c", "3", "-i", "0.2")


def test_every_packet_comes_twice(cluster: Cluster) -> None:
    with cluster.fault("impair", "node-2", duplicate="100%", direction="out"):
        assert "DUP!" in ping(cluster, "-c", "3", "-i", "0.2")
    assert "DUP!" not in ping(cluster, "-c", "3", "-i", "0.2")
