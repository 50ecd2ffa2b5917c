"""Weave's faults on a live cluster: in force, what pods see of it, healed, and as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_lab import captured, echoes, mac, ok, ping, pod, told, written
from test_weave_mesh import SPEC, ip, reached_by, status, up

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster
from testbed.dataplane.weave.names import peer_name
from testbed.wait import wait_until

pytestmark = pytest.mark.nightly

NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("faults"), "weave-faults", 3) as cluster:
        reached_by(cluster, "fastdp", count=3)
        yield cluster


def reaches(cluster: Cluster, source: str, target: str) -> bool:
    return cluster.pod(source).run(["ping", "-n", "-c1", "-W1", ip(cluster, target)]).code == 0


def whole(cluster: Cluster) -> None:
    """As before any fault."""
    reached_by(cluster, "fastdp", count=3)
    for source, target in (("p1", "p2"), ("p2", "p3"), ("p3", "p1")):
        wait_until(lambda s=source, t=target: reaches(cluster, s, t), 10, f"{source} reaches {target}")  # type: ignore[misc]


def test_blocked_fastdp_goes_by_sleeve_to_that_node_alone(cluster: Cluster) -> None:
    node = cluster.node("node-1")
    with cluster.fault("weave-blocked", "node-2"):
        found: dict[str, str] = {}

        def so() -> bool:
            found.update({to: each["overlay"] for to, each in status(node, "node-1").items()})
            return found == {"node-2": "sleeve", "node-3": "fastdp"}

        wait_until(so, 20, "node-2 alone is reached by sleeve", detail=lambda: str(found))

        def each_its_way() -> bool:
            with captured(node, "eth0") as seen:
                ping(cluster.pod("p1"), ip(cluster, "p2"))
                ping(cluster.pod("p1"), ip(cluster, "p3"))
            pods = [frame for frame in seen if b"\x08\x00\x45" in bytes.fromhex(frame["raw"])[42:80]]
            ways = {(frame["dst"], frame.get("dport")) for frame in pods if frame["src"] == "192.168.100.11"}
            assert {("192.168.100.12", 6783), ("192.168.100.13", 6784)} <= ways
            return ("192.168.100.12", 6784) not in ways

        # What the kernel learned from a peer that changed over later is forgotten within a second or two.
        wait_until(each_its_way, 20, "frames to node-2 go by sleeve alone")
    whole(cluster)


def test_blocked_fastdp_and_sleeve_cut_a_nodes_pods_off(cluster: Cluster) -> None:
    with cluster.fault("weave-blocked", "node-2", sleeve=True):
        wait_until(lambda: not reaches(cluster, "p1", "p2"), 10, "p2 is cut off")
        assert reaches(cluster, "p1", "p3")
    whole(cluster)


def test_partition_cuts_pods_off_with_their_node(cluster: Cluster) -> None:
    with cluster.fault("partition", "node-2"):
        for source, target in (("p1", "p2"), ("p2", "p1"), ("p3", "p2")):
            assert not reaches(cluster, source, target), f"{source} reaches {target}"
        assert reaches(cluster, "p1", "p3")
        assert "-s 10.32.0.0/" in ok(cluster.node("node-2"), "iptables", "-t", "raw", "-S", "PREROUTING")
    whole(cluster)


def test_mtu_that_the_underlay_does_not_carry_is_left_to_sleeve(cluster: Cluster) -> None:
    with cluster.fault("weave-mtu", *NODES, mtu=1500):
        assert told(cluster.pod("p1"), "ip", "-json", "link", "show", "eth0")[0]["mtu"] == 1500
        reached_by(cluster, "sleeve", count=3)
        ping(cluster.pod("p1"), ip(cluster, "p2"), "-M", "do", "-s", "1410")
    assert told(cluster.pod("p1"), "ip", "-json", "link", "show", "eth0")[0]["mtu"] == 1376
    whole(cluster)


def test_cloned_machine_is_connected_to_nobody(cluster: Cluster) -> None:
    with cluster.fault("weave-duplicate-peer", "node-3", of="node-1"):
        assert (
            mac(cluster.node("node-3"), "weave")
            == mac(cluster.node("node-1"), "weave")
            == peer_name("node-1")
        )
        wait_until(lambda: not reaches(cluster, "p1", "p3"), 10, "p3 is cut off")
        wait_until(lambda: not reaches(cluster, "p3", "p2"), 10, "p3 is cut off from all")
        assert reaches(cluster, "p1", "p2")
    whole(cluster)


def test_mac_that_moves_takes_the_pods_packets_along(cluster: Cluster) -> None:
    def taken_along() -> bool:
        """Unless the pod speaks meanwhile, as when it looks after its neighbours."""
        ping(cluster.pod("p1"), ip(cluster, "p2"))
        with (
            cluster.fault("weave-mac-moved", "p2", to="node-3"),
            captured(cluster.node("node-3"), "vethwe-moved1", promiscuous=True) as seen,
        ):
            cluster.pod("p1").run(["ping", "-n", "-c1", "-W1", ip(cluster, "p2")])
        return len(echoes(seen)) == 1

    wait_until(taken_along, 30, "the packet comes to where the MAC has moved")
    ok(cluster.node("node-3"), "sh", "-c", "! ip link show vethwe-moved")
    whole(cluster)


DENIED = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": "default"},
    "spec": {"podSelector": {"matchLabels": {"app": "closed"}}, "ingress": []},
}


def test_without_bridge_netfilter_policies_of_a_nodes_own_pods_are_not_enforced(
    cluster: Cluster, tmp_path: Path
) -> None:
    closed = {**pod("closed"), "spec": {**pod("closed")["spec"], "nodeName": "node-1"}}
    objects = written(tmp_path, closed, DENIED)
    cluster.apply(objects)
    cluster.wait(ready="app=closed")
    cluster.settle()
    assert not reaches(cluster, "p1", "closed")
    with cluster.fault("bridge-netfilter-off", "node-1"):
        assert reaches(cluster, "p1", "closed")
        assert reaches(cluster, "p1", "p2")
    wait_until(lambda: not reaches(cluster, "p1", "closed"), 10, "it is enforced again")
    cluster.delete(objects)
    cluster.settle()
    whole(cluster)


WEAVER = (
    'weaver: Existing bridge type "bridge" is different than requested "bridged_fastdp". '
    "Please do 'weave reset' and try again"
)
UNWIRED = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: cni plugin not initialized"
)


def devices(cluster: Cluster, node: str) -> set[str]:
    """Those that weave has on a node, but for pods' ports."""
    links = {link["ifname"] for link in told(cluster.node(node), "ip", "-json", "link")}
    return {name for name in links if name.startswith(("weave", "datapath", "vethwe-", "vxlan-"))}


def ready(cluster: Cluster, node: str) -> tuple[str, str]:
    conditions = cluster.client.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
    (found,) = (each for each in conditions if each["type"] == "Ready")
    return found["status"], found["message"]


def events(cluster: Cluster, of: str, reason: str) -> list[str]:
    found = cluster.client.get("/api/v1/events")["items"]
    wanted = (reason, of)
    return [each["message"] for each in found if (each["reason"], each["involvedObject"]["name"]) == wanted]


def test_bridge_of_another_start_keeps_weaver_down_and_its_node_out(tmp_path: Path) -> None:
    with up(tmp_path, "weave-bridge-type", 3) as cluster:
        reached_by(cluster, "fastdp", count=3)
        for name in ("mate", "late"):
            (tmp_path / name).mkdir()
        mate, late = (
            written(tmp_path / name, {**pod(name), "spec": {**pod(name)["spec"], "nodeName": "node-3"}})
            for name in ("mate", "late")
        )
        cluster.apply(mate)
        cluster.wait(ready="app=mate")
        cluster.settle()
        before = devices(cluster, "node-3")
        assert before == {"weave", "datapath", "vethwe-bridge", "vethwe-datapath", "vxlan-6784"}
        with cluster.fault("weave-bridge-type", "node-3"):
            assert devices(cluster, "node-3") == {"weave", "vethwe-bridge", "vethwe-pcap"}
            assert ready(cluster, "node-3") == ("False", UNWIRED)
            assert events(cluster, "node-3", "NetworkNotReady")[-1] == WEAVER
            assert not reaches(cluster, "p1", "p3")
            assert not reaches(cluster, "p3", "p2")
            assert reaches(cluster, "p3", "mate"), "by the bridge that is left"
            assert reaches(cluster, "p1", "p2")
            wait_until(
                lambda: set(status(cluster.node("node-1"), "node-1")) == {"node-2"}, 20, "no peer of others"
            )
            cluster.apply(late)
            wait_until(lambda: events(cluster, "late", "NetworkNotReady"), 10, "the pod's event")
            assert events(cluster, "late", "NetworkNotReady") == [f"network is not ready: {UNWIRED}"]
        assert ready(cluster, "node-3") == ("True", "kubelet is posting ready status")
        assert devices(cluster, "node-3") == before
        cluster.wait(ready="app=late")
        wait_until(lambda: reaches(cluster, "p1", "late"), 10, "the pod is wired")
        whole(cluster)


def test_stale_peer_keeps_its_share_until_it_is_removed(tmp_path: Path) -> None:
    """Of 16 addresses two peers have 8 each: bridges, pods, and what is nobody's."""
    spec = SPEC.format(name="weave-stale", nodes=2, dataplane='{"name": "weave"}').replace(
        "network:", "network:\n    podCIDR: 10.32.0.0/28\n    nodeMask: 30"
    )
    (tmp_path / "spec.yaml").write_text(spec)
    mine = [{**pod(f"q{k}"), "spec": {**pod(f"q{k}")["spec"], "nodeName": "node-1"}} for k in range(7)]
    with Cluster.up(tmp_path / "spec.yaml") as own:

        def shares() -> set[str]:
            saved = ok(own.node("node-1"), "ipset", "save", "weaver-no-masq-local")
            return {line.split()[2] for line in saved.splitlines() if line.startswith("add")}

        with own.fault("weave-stale-peer", "node-2"):
            own.client.delete("/api/v1/nodes/node-2")
            own.settle()
            assert shares() == {"10.32.0.0/29"}
            own.apply(written(tmp_path, *mine))
            wait_until(lambda: events(own, "q6", "FailedCreatePodSandBox"), 15, "no address is left")
            (message,) = events(own, "q6", "FailedCreatePodSandBox")
            assert "waiting for IP range grant from peers: node-2 7 IPs - unreachable!" in message
            own.wait(ready="app in (q0,q1,q2,q3,q4,q5)")
        assert shares() == {"10.32.0.0/28"}
        own.wait(ready="app=q6")
        assert ip(own, "q6") == "10.32.0.8"


@pytest.mark.parametrize(
    ("fault", "target", "options", "why"),
    [
        ("weave-duplicate-peer", "node-1", {"of": "node-1"}, "has that name anyhow"),
        ("weave-mac-moved", "p1", {"to": "node-1"}, "to another node than its own"),
        ("weave-mtu", "node-1", {"mtu": 1376}, "would change nothing"),
    ],
)
def test_what_means_nothing_is_refused(
    cluster: Cluster, fault: str, target: str, options: dict[str, object], why: str
) -> None:
    with pytest.raises(RequestFailed, match=why), cluster.fault(fault, target, **options):
        pass
