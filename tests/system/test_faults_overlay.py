"""The problems that students meet with flannel, each switched on, seen by a real client, and healed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_lab import captured, counted, echoes, mac, ok, told

from testbed import Cluster
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: 3}}
  external: [{{name: client, address: 203.0.113.10}}]
  network: {{dataplane: {dataplane}}}
  dns: {{enabled: false}}
  manifests: [pods.yaml]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{nodeName: node-{number}, containers: [{{name: c, image: nginx, ports: [{{containerPort: 80}}]}}]}}
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: b}
spec: {type: NodePort, clusterIP: 10.96.0.80, selector: {app: b}, ports: [{port: 80, nodePort: 30080}]}
"""
A, B, C, CLIENT = "10.244.1.2", "10.244.2.2", "10.244.3.2", "203.0.113.10"


def up(folder: Path, name: str, dataplane: str) -> Cluster:
    pods = "".join(POD.format(name=each, number=number) for number, each in enumerate("abc", 1))
    (folder / "pods.yaml").write_text(pods + SERVICE)
    (folder / "spec.yaml").write_text(SPEC.format(name=name, dataplane=dataplane))
    return Cluster.up(folder / "spec.yaml")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("overlay"), "faults-overlay", "{name: flannel}") as running:
        running.settle()
        for target in (B, C):
            assert reaches(running, "a", target)
        yield running


def reaches(cluster: Cluster, pod: str, target: str, *more: str) -> bool:
    return cluster.pod(pod).run(["ping", "-c1", "-W1", *more, target]).code == 0


@pytest.mark.parametrize("kind", ["wrong-vtep-mac", "missing-fdb", "missing-neighbour", "stale-subnet"])
def test_exactly_the_pods_of_the_node_are_lost_to_others_and_found_again(cluster: Cluster, kind: str) -> None:
    with cluster.fault(kind, "node-2"):
        assert not reaches(cluster, "a", B)
        assert reaches(cluster, "a", C)
    assert reaches(cluster, "a", B)


def test_a_node_that_left_and_joined_again_is_found_and_the_other_is_still_lost(tmp_path: Path) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}}
    with up(tmp_path, "faults-rejoin", "{name: flannel}") as own:
        with own.fault("missing-fdb", "node-2", "node-3"):
            own.client.delete("/api/v1/nodes/node-2")
            own.settle()
            own.client.post("/api/v1/nodes", node)
            own.settle()
            (tmp_path / "again.yaml").write_text(POD.format(name="b", number=2))
            own.apply(tmp_path / "again.yaml")
            own.wait(ready="app=b")
            own.settle()
            (b,) = (each["status"]["podIP"] for each in own.pods() if each["metadata"]["name"] == "b")
            assert reaches(own, "a", b)
            assert not reaches(own, "a", C)
        assert reaches(own, "a", C)


def test_nodes_that_all_announce_the_address_of_their_nat_interface_reach_each_other_no_more(
    cluster: Cluster,
) -> None:
    """As Vagrant's machines do, whose first interface has the same address on each."""
    nat = {"device": "enp0s3", "address": "10.0.2.15/24"}
    with cluster.fault("wrong-autodetection", "node-1", "node-2", **nat):
        fdb = told(cluster.node("node-3"), "bridge", "-json", "fdb", "show", "dev", "flannel.1")
        assert {entry["dst"] for entry in fdb} == {"10.0.2.15"}
        assert not reaches(cluster, "c", A)
        assert not reaches(cluster, "a", C)
        assert not reaches(cluster, "a", B)
        assert cluster.node("node-1").run(["ping", "-c1", "-W1", "192.168.100.12"]).code == 0
        assert reaches(cluster, "a", CLIENT)
    for source, target in (("a", B), ("b", C), ("c", A)):
        assert reaches(cluster, source, target)


def test_packets_to_a_wrong_vtep_mac_arrive_and_are_dropped_there(cluster: Cluster) -> None:
    with cluster.fault("wrong-vtep-mac", "node-2"):
        with captured(cluster.node("node-2"), "flannel.1") as seen:
            assert not reaches(cluster, "a", B)
        (echo,) = echoes(seen)
        assert (echo["way"], echo["to"] != mac(cluster.node("node-2"), "flannel.1")) == ("other", True)


def test_a_missing_neighbour_is_asked_for_by_arp_that_nobody_answers(cluster: Cluster) -> None:
    with cluster.fault("missing-neighbour", "node-2"):
        with captured(cluster.node("node-1"), "flannel.1") as seen:
            assert not reaches(cluster, "a", B)
        assert {(f["dst"], f["op"]) for f in seen if f["what"] == "arp"} == {("10.244.2.0", 1)}


def test_long_packets_of_pods_with_a_wrong_mtu_are_refused_and_short_ones_pass(cluster: Cluster) -> None:
    with cluster.fault("wrong-pod-mtu", "node-1"):
        (link,) = told(cluster.pod("a"), "ip", "-json", "link", "show", "eth0")
        assert link["mtu"] == 1500
        assert reaches(cluster, "a", B)
        assert reaches(cluster, "a", B, "-Mdo", "-s1372")
        long = cluster.pod("a").run(["ping", "-c1", "-W1", "-Mdo", "-s1472", B])
        assert long.code == 1
        assert "Frag needed and DF set (mtu = 1450)" in long.stdout
    (link,) = told(cluster.pod("a"), "ip", "-json", "link", "show", "eth0")
    assert link["mtu"] == 1450


def test_without_masquerading_answers_find_no_way_back(cluster: Cluster) -> None:
    client = cluster.host("client")
    device = ok(client, "ip", "-o", "route", "get", "192.168.100.11").split("dev ")[1].split()[0]
    with cluster.fault("no-masquerade", "node-1"):
        with captured(client, device) as seen:
            assert not reaches(cluster, "a", CLIENT)
        assert {echo["src"] for echo in echoes(seen)} == {A}
        assert reaches(cluster, "a", B)
    assert reaches(cluster, "a", CLIENT)


def test_bad_checksums_hit_what_was_masqueraded_and_nothing_else(cluster: Cluster) -> None:
    """The client outside comes by a NodePort of node-1, which masquerades it on its way to node-2."""
    curl = ["curl", "-s", "-m1", "http://192.168.100.11:30080/hostname"]
    assert cluster.host("client").run(curl).stdout.strip() == "b"
    with cluster.fault("checksum-fault", "node-2", share=1.0):
        assert cluster.host("client").run(curl).code == 28
        assert counted(cluster.node("node-2"), "mangle", "PREROUTING", "-s 10.244.1.0/32", "DROP") > 0
        assert reaches(cluster, "a", B)
    assert cluster.host("client").run(curl).stdout.strip() == "b"


DENIED = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: c}}, ingress: []}
"""


def test_without_bridge_netfilter_policies_and_services_of_one_bridge_do_not_work(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Of node-2: two pods there, b behind the Service, and a policy for a pod c that is one more there."""
    (tmp_path / "more.yaml").write_text(
        POD.format(name="d", number=2) + POD.format(name="e", number=2).replace("app: e", "app: c") + DENIED
    )
    cluster.apply(tmp_path / "more.yaml")
    cluster.wait(ready="app=d")
    cluster.settle()
    closed = next(each["status"]["podIP"] for each in cluster.pods() if each["metadata"]["name"] == "e")
    asks = ["curl", "-s", "-m1", "http://10.96.0.80/hostname"]
    assert cluster.pod("d").run(asks).stdout.strip() == "b"
    assert not reaches(cluster, "d", closed)
    with cluster.fault("bridge-netfilter-off", "node-2"):
        assert cluster.pod("d").run(asks).code == 28
        assert reaches(cluster, "d", closed), "its policy is not enforced"
        assert not reaches(cluster, "a", closed), "what is routed meets iptables as ever"
        assert cluster.pod("a").run(asks).stdout.strip() == "b"
    assert cluster.pod("d").run(asks).stdout.strip() == "b"
    wait_until(lambda: not reaches(cluster, "d", closed), 10, "it is enforced again")
    cluster.delete(tmp_path / "more.yaml")
    cluster.settle()


def test_forwarding_that_drops_stops_kubenet_and_not_flannel(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.fault("forward-drop", "node-1"):
        assert reaches(cluster, "a", B)
    with up(tmp_path, "faults-kubenet", "{name: bridge}") as other:
        assert reaches(other, "a", B)
        with other.fault("forward-drop", "node-1"):
            assert not reaches(other, "a", B)
        assert reaches(other, "a", B)
