"""Weave's peers in trouble and in meshes that are not full: sleeve, fallback, relaying, the ring's quorum."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import node_lab
import pytest
from cell_lab import Outer, captured, curl, dissected, ok, ping

from testbed.api.cluster import Cluster, Place
from testbed.control.ipam import Held
from testbed.control.snapshot import Node, Pod
from testbed.dataplane import dataplanes
from testbed.dataplane.weave.names import peer_name
from testbed.dataplane.weave.odp import short_ids, vni
from testbed.dataplane.weave.ring import EXPOSED
from testbed.wait import wait_until

pytestmark = pytest.mark.nightly

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: {nodes}}}
  dns: {{enabled: false}}
  network:
    dataplane: {dataplane}
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: p{k}, labels: {{app: p}}}}
spec: {{nodeName: node-{k}, containers: [{{name: web, image: nginx, ports: [{{containerPort: 8080}}]}}]}}
---
"""
CLOCKS = {"fastHeartbeat": "100ms", "slowHeartbeat": "300ms", "heartbeatTimeout": "1s"}
"""weave's own are 500ms, 10s and 60s."""


def up(tmp: Path, name: str, nodes: int, **dataplane: Any) -> Cluster:
    """A cluster with a pod pK on each node-K."""
    spec, manifest = tmp / "spec.yaml", tmp / "pods.yaml"
    chosen = json.dumps({"name": "weave", **CLOCKS, **dataplane})
    spec.write_text(SPEC.format(name=name, nodes=nodes, dataplane=chosen))
    manifest.write_text("".join(POD.format(k=k) for k in range(1, nodes + 1)))
    return Cluster.up(spec, manifests=[manifest])


def ip(cluster: Cluster, pod: str) -> str:
    (found,) = [each for each in cluster.pods() if each["metadata"]["name"] == pod]
    return str(found["status"]["podIP"])


def status(node: Place, name: str) -> dict[str, Any]:
    """How a node's router says that it reaches each peer."""
    told = node.run(["cat", f"/run/testbed-daemons/{name}/weaver/status.json"])
    found: dict[str, Any] = json.loads(told.stdout) if told.code == 0 else {}
    return found


def reached_by(cluster: Cluster, overlay: str, *, count: int = 2) -> None:
    """Wait until every node reaches every other one by sleeve or by fastdp."""
    names = [f"node-{k}" for k in range(1, count + 1)]

    def all_so() -> bool:
        found = [status(cluster.node(name), name) for name in names]
        return all(
            len(each) == count - 1 and all(to["overlay"] == overlay for to in each.values()) for each in found
        )

    def now() -> str:
        return str({name: status(cluster.node(name), name) for name in names})

    wait_until(all_so, 20, f"peers are reached by {overlay}", detail=now)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("pair"), "weave-pair", 2) as cluster:
        reached_by(cluster, "fastdp")
        yield cluster


def overlay_ports(cluster: Cluster, target: str) -> set[int]:
    """The UDP ports that frames between pods go to while p1 pings."""
    p1, node = cluster.pod("p1"), cluster.node("node-1")
    with captured(node, "eth0") as seen:
        p1.run(["ping", "-n", "-c1", "-W1", target])
    return {
        frame["dport"]
        for frame in seen
        if frame.get("dport") in (6783, 6784) and b"\x08\x00\x45" in bytes.fromhex(frame["raw"])[42:80]
    }


def test_frames_go_by_sleeve_while_udp_6784_is_blocked_and_by_fastdp_again_afterwards(pair: Cluster) -> None:
    target = ip(pair, "p2")
    assert overlay_ports(pair, target) == {6784}
    blocked = ["iptables", "-t", "raw", "-I", "PREROUTING", "-p", "udp", "--dport", "6784", "-j", "DROP"]
    ok(pair.node("node-2"), *blocked)
    try:
        reached_by(pair, "sleeve")
        # A peer that changes over later teaches the kernel once more where its pods are; that is forgotten.
        wait_until(lambda: overlay_ports(pair, target) == {6783}, 20, "frames go by sleeve alone")
        assert curl(pair.pod("p1"), f"http://{target}:8080/hostname").stdout.strip() == "p2"
        assert curl(pair.pod("p2"), f"http://{ip(pair, 'p1')}:8080/hostname").stdout.strip() == "p1"
    finally:
        ok(pair.node("node-2"), *(word if word != "-I" else "-D" for word in blocked))
    reached_by(pair, "fastdp")
    assert overlay_ports(pair, target) == {6784}
    assert curl(pair.pod("p1"), f"http://{target}:8080/hostname").stdout.strip() == "p2"


def test_router_that_dies_is_run_again_and_frames_go_on(tmp_path: Path) -> None:
    """By fastdp as if nothing had happened; and one that dies while sleeve is needed finds out again."""
    with up(tmp_path, "weave-restart", 2) as cluster:
        reached_by(cluster, "fastdp")
        node, words = cluster.node("node-1"), "testbed.relays.weave .*node-1"
        pid = running = ok(node, "pgrep", "-f", words).split()

        def again() -> bool:
            nonlocal running
            running = node.run(["pgrep", "-f", words]).stdout.split()
            return running not in ([], pid)

        ok(node, "pkill", "-KILL", "-f", words)
        ping(cluster.pod("p1"), ip(cluster, "p2"))
        wait_until(again, 20, "the router is run again")
        reached_by(cluster, "fastdp")
        pid = running
        with cluster.fault("weave-blocked", "node-2"):
            reached_by(cluster, "sleeve")
            ok(node, "pkill", "-KILL", "-f", words)
            wait_until(again, 20, "the router is run again")
            argv = ["ping", "-n", "-c1", "-W1", ip(cluster, "p2")]
            wait_until(lambda: cluster.pod("p1").run(argv).code == 0, 20, "it finds out that it is needed")
            pid = running
            ok(node, "pkill", "-KILL", "-f", words)
        wait_until(again, 20, "the router is run again")
        reached_by(cluster, "fastdp")
        wait_until(
            lambda: overlay_ports(cluster, ip(cluster, "p2")) == {6784}, 20, "frames go by fastdp as at first"
        )


def test_mtu_too_large_for_the_underlay_is_left_to_sleeve(tmp_path: Path) -> None:
    """Heartbeats are as large as the datapath's packets, and do not come through."""
    with up(tmp_path, "weave-mtu", 2, mtu=1500) as cluster:
        reached_by(cluster, "sleeve")
        p1, target = cluster.pod("p1"), ip(cluster, "p2")
        ping(p1, target)
        ping(p1, target, "-M", "do", "-s", "1410")
        refused = p1.run(["ping", "-n", "-c1", "-W2", "-M", "do", "-s", "1411", target])
        assert "mtu = 1438" in refused.stdout + refused.stderr
        assert status(cluster.node("node-1"), "node-1")["node-2"]["mtu"] == 1438


def test_mtu_too_large_without_fallback_stalls_large_packets_in_silence(tmp_path: Path) -> None:
    with up(tmp_path, "weave-stall", 2, mtu=1500, fallback=False) as cluster:
        p1, target = cluster.pod("p1"), ip(cluster, "p2")
        ping(p1, target, "-M", "do", "-s", "1400")
        silent = p1.run(["ping", "-n", "-c1", "-W1", "-M", "do", "-s", "1450", target])
        assert silent.code != 0
        assert "needed" not in silent.stdout + silent.stderr


def test_peers_in_a_line_relay_for_each_other(tmp_path: Path) -> None:
    line = [["node-1", "node-2"], ["node-2", "node-3"]]
    with up(tmp_path, "weave-line", 3, mode="sleeve", connections=line) as cluster:
        p1, p3 = cluster.pod("p1"), cluster.pod("p3")
        with captured(cluster.node("node-2"), "eth0") as middle, captured(p3, "eth0") as seen:
            assert ping(p1, ip(cluster, "p3")) == 64
        asked = [
            frame
            for frame in seen
            if frame["what"] == "arp" and frame["op"] == 1 and frame["way"] == "broadcast"
        ]
        assert len([frame for frame in asked if frame["dst"] == ip(cluster, "p3")]) == 1
        packets = [Outer.of(frame).payload for frame in middle if frame.get("dport") == 6783]
        names = {k: bytes.fromhex(peer_name(f"node-{k}").replace(":", "")) for k in (1, 2, 3)}
        ways = {
            (packet[:6], packet[6:12], packet[12:18])
            for packet in packets
            if packet[32:34] == b"\x08\x00" and any(packet[20:34])
        }
        assert (names[1], names[1], names[3]) in ways, "it comes from node-1, for node-3"
        assert (names[2], names[1], names[3]) in ways, "and is sent on by node-2"
        others = {frame["dst"] for frame in middle if frame.get("dport") == 6783}
        assert len(others) == 3
        assert curl(p1, f"http://{ip(cluster, 'p3')}:8080/hostname").stdout.strip() == "p3"


def test_without_a_quorum_no_pod_gets_an_address(tmp_path: Path) -> None:
    with up(tmp_path, "weave-quorum", 2, consensus=5) as cluster:
        (one, other) = cluster.pods()
        assert {each["status"].get("podIP") for each in (one, other)} == {None}
        assert {each["status"]["phase"] for each in (one, other)} == {"Pending"}
        events = cluster.client.get("/api/v1/events")["items"]
        assert any(
            "no quorum: of 3 peers that have to agree 2 are there" in each["message"] for each in events
        )


NODES = (
    Node("a", ("172.18.0.2",), (), pooled=True, held=Held(("10.32.0.0/13",), own={EXPOSED: "10.32.0.1"})),
    Node("b", ("172.18.0.3",), (), pooled=True, held=Held(("10.40.0.0/13",), own={EXPOSED: "10.40.0.0"})),
)
PODS = (
    node_lab.pod("a1", "a", 2, ips=("10.32.0.2",)),
    node_lab.pod("b1", "b", 2, ips=("10.40.0.1",)),
)


def test_peer_that_joins_moves_and_leaves_is_followed_by_all(tmp_path: Path) -> None:
    """Agents alone, whose nodes come and go as no cluster's do."""
    facts = replace(node_lab.FACTS, pod_cidrs=("10.32.0.0/12",), dataplane_options=dict(CLOCKS))
    weave = dataplanes.get("weave")
    with node_lab.running_lab() as lab:

        def wire(*nodes: Node, pods: Sequence[Pod] = PODS) -> None:
            lab.wire(*pods, dataplane=weave, nodes=nodes, facts=facts)

        def reaches() -> bool:
            return lab.a.run("ping", "-n", "-c1", "-W1", "10.40.0.1", where="uid-a1").code == 0

        def flooded_to() -> set[str]:
            entries = lab.a.json("bridge", "-json", "fdb", "show", "dev", "vxlan-6784")
            return {entry["dst"] for entry in entries if entry["mac"] == "00:00:00:00:00:00"}

        def routed_to() -> set[str]:
            told = lab.a.run("cat", "/run/testbed-daemons/a/weaver/status.json").output
            return {each["address"] for each in json.loads(told).values()} if told.startswith("{") else set()

        wire(NODES[0], pods=PODS[:1])
        assert flooded_to() == set()
        wire(*NODES)
        assert flooded_to() == {"172.18.0.3"}
        wait_until(reaches, 10, "a1 reaches b1")
        wait_until(lambda: routed_to() == {"172.18.0.3"}, 10, "the router knows b")
        lab.b.ok("ip", "address", "add", "172.18.0.9/16", "dev", "eth0")
        wire(NODES[0], replace(NODES[1], addresses=("172.18.0.9",)))
        assert flooded_to() == {"172.18.0.9"}
        wait_until(reaches, 10, "a1 reaches b1 at its new address")
        wait_until(lambda: routed_to() == {"172.18.0.9"}, 10, "the router knows b's new address")
        wire(NODES[0], pods=PODS[:1])
        assert flooded_to() == set()
        wait_until(lambda: routed_to() == set(), 10, "the router forgets b")
        wait_until(lambda: not reaches(), 10, "what the kernel had learned of b is forgotten")


# --- fastdp on Open vSwitch -----------------------------------------------------------------------------


@pytest.mark.needs("openvswitch-switch", "tun")
def test_open_vswitch_puts_both_peers_into_the_vni(tmp_path: Path) -> None:
    with up(tmp_path, "weave-ovs", 2, datapath="ovs") as cluster:
        p1, node, target = cluster.pod("p1"), cluster.node("node-1"), ip(cluster, "p2")
        wait_until(lambda: p1.run(["ping", "-n", "-c1", "-W1", target]).code == 0, 20, "p2 answers")
        with captured(node, "eth0") as seen:
            assert ping(p1, target, "-M", "do", "-s", "1348") == 64
        ids = short_ids(["node-1", "node-2"])
        frames = [frame for frame in seen if frame.get("dport") == 6784 and frame["length"] == 1376 + 14 + 50]
        found = [(outer.source, outer.vni, outer.df, outer.ttl) for outer in map(Outer.of, frames)]
        assert found == [
            ("192.168.100.11", vni(ids["node-1"], ids["node-2"]), True, 64),
            ("192.168.100.12", vni(ids["node-2"], ids["node-1"]), True, 64),
        ]
        dissected(frames, "-d", "udp.port==6784,vxlan")
        assert curl(p1, f"http://{target}:8080/hostname").stdout.strip() == "p2"
        assert node.run(["ping", "-n", "-c1", "-W1", "192.168.100.12"]).code == 0


@pytest.mark.needs("openvswitch-switch", "tun")
def test_open_vswitch_relays_with_the_vni_unchanged(tmp_path: Path) -> None:
    line = [["node-1", "node-2"], ["node-2", "node-3"]]
    with up(tmp_path, "weave-ovs-line", 3, datapath="ovs", connections=line) as cluster:
        p1, target = cluster.pod("p1"), ip(cluster, "p3")
        wait_until(lambda: p1.run(["ping", "-n", "-c1", "-W1", target]).code == 0, 20, "p3 answers")
        with captured(cluster.node("node-2"), "eth0") as middle:
            assert ping(p1, target) == 64
        ids = short_ids([f"node-{k}" for k in (1, 2, 3)])
        wanted = vni(ids["node-1"], ids["node-3"])
        hops = [
            (outer.source, outer.destination)
            for outer in map(Outer.of, [frame for frame in middle if frame.get("dport") == 6784])
            if outer.vni == wanted
        ]
        assert hops == [("192.168.100.11", "192.168.100.12"), ("192.168.100.12", "192.168.100.13")]


@pytest.mark.needs("openvswitch-switch", "tun")
def test_open_vswitch_is_run_again_where_it_was_killed_and_where_its_node_joins_again(tmp_path: Path) -> None:
    with up(tmp_path, "weave-ovs-again", 2, datapath="ovs") as cluster:
        p1, node, switch = cluster.pod("p1"), cluster.node("node-1"), "ovs-vswitchd .*node-1/"

        def answers() -> bool:
            return p1.run(["ping", "-n", "-c1", "-W1", ip(cluster, "p2")]).code == 0

        wait_until(answers, 20, "p2 answers")
        for killed in (switch, "testbed.relays.ovs .*node-1/"):
            before = ok(node, "pgrep", "-f", switch)
            ok(node, "pkill", "-KILL", "-f", killed)
            wait_until(
                lambda before=before: node.run(["pgrep", "-f", switch]).stdout not in ("", before),
                20,
                "the switch is run again",
            )
            wait_until(answers, 20, "p2 answers again")
        cluster.client.delete("/api/v1/nodes/node-2")
        (tmp_path / "again.yaml").write_text(
            "apiVersion: v1\nkind: Node\nmetadata: {name: node-2}\n---\n" + POD.format(k=2)
        )
        cluster.apply(tmp_path / "again.yaml")
        cluster.wait(ready="app=p")
        wait_until(answers, 20, "a new p2 answers")
