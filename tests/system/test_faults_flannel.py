"""What goes wrong with flannel on a node itself, as a student sees it in events, on the node and in pods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_lab import captured, curl, echoes, ok, told
from test_faults_overlay import CLIENT, POD, A, B, C, reaches, up

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.wait import wait_until

LOCAL = """
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: b}
  ports: [{port: 80, nodePort: 30081}]
"""
SUBNET_FILE = "/run/flannel/subnet.env"
REFUSED = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "
    '"{}": plugin type="flannel" failed (add): {}'
)
NO_FILE = "loadFlannelSubnetEnv failed: open /run/flannel/subnet.env: no such file or directory"
OTHER_ADDRESS = (
    'failed to delegate add: failed to set bridge addr: "cni0" already has an IP address different from '
    "10.244.255.1/24"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("flannel")
    with up(folder, "faults-flannel", "{name: flannel}") as running:
        (folder / "local.yaml").write_text(LOCAL)
        running.apply(folder / "local.yaml")
        running.settle()
        assert reaches(running, "a", B)
        yield running


def events(cluster: Cluster, pod: str) -> list[str]:
    """What the kubelet could not do for a pod."""
    found = cluster.client.get("/api/v1/namespaces/default/events")["items"]
    return [
        each["message"]
        for each in found
        if (each["reason"], each["involvedObject"]["name"]) == ("FailedCreatePodSandBox", pod)
    ]


def ports(cluster: Cluster, node: str) -> set[str]:
    """The ports of a node's bridge."""
    return {
        link["ifname"] for link in told(cluster.node(node), "ip", "-json", "link", "show", "master", "cni0")
    }


def refused(cluster: Cluster, folder: Path, name: str, number: int, why: str) -> Path:
    """A pod that comes to a node and is not wired there, which an event tells; returns its manifest."""
    before = ports(cluster, f"node-{number}")
    manifest = folder / f"{name}.yaml"
    manifest.write_text(POD.format(name=name, number=number))
    cluster.apply(manifest)
    wait_until(lambda: events(cluster, name), 10, "an event")
    (message,) = events(cluster, name)
    assert message == REFUSED.format(message.split('"')[1], why)
    (pod,) = (each for each in cluster.pods() if each["metadata"]["name"] == name)
    assert (pod["status"]["phase"], pod["status"].get("podIP")) == ("Pending", None)
    (container,) = pod["status"]["containerStatuses"]
    assert container["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert ports(cluster, f"node-{number}") == before
    with pytest.raises(RequestFailed, match="is not running"):
        cluster.pod(name).run(["true"])
    return manifest


def runs(cluster: Cluster, name: str, target: str) -> None:
    """Once healed the pod is tried again, and is as any other."""
    cluster.wait(ready=f"app={name}")
    cluster.settle()
    wait_until(lambda: reaches(cluster, name, target), 10, f"{name} reaches others")


def test_without_flanneld_there_is_no_subnet_file_and_no_new_pod(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.fault("no-subnet-file", "node-1"):
        assert cluster.node("node-1").run(["cat", SUBNET_FILE]).code == 1
        assert ok(cluster.node("node-2"), "cat", SUBNET_FILE)
        manifest = refused(cluster, tmp_path, "d", 1, NO_FILE)
        assert reaches(cluster, "a", B), "those that run go on"
        (tmp_path / "elsewhere.yaml").write_text(POD.format(name="e", number=3))
        cluster.apply(tmp_path / "elsewhere.yaml")
        runs(cluster, "e", A)
    assert "FLANNEL_SUBNET=10.244.1.1/24" in ok(cluster.node("node-1"), "cat", SUBNET_FILE)
    runs(cluster, "d", B)
    cluster.delete(manifest)
    cluster.delete(tmp_path / "elsewhere.yaml")
    cluster.settle()


def test_a_pod_that_is_refused_can_be_deleted(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.fault("no-subnet-file", "node-1"):
        cluster.delete(refused(cluster, tmp_path, "g", 1, NO_FILE))
        wait_until(lambda: "g" not in [each["metadata"]["name"] for each in cluster.pods()], 10, "it is gone")
    assert len(ports(cluster, "node-1")) == 1


def test_a_bridge_that_outlived_its_nodes_subnet_takes_no_new_pod(cluster: Cluster, tmp_path: Path) -> None:
    def address(device: str) -> str:
        return ok(cluster.node("node-2"), "ip", "-4", "-brief", "address", "show", device).split()[2]

    def routes() -> dict[str, str]:
        shown = told(cluster.node("node-1"), "ip", "-json", "route", "show", "dev", "flannel.1")
        return {route["dst"]: route["gateway"] for route in shown}

    before = routes()
    with cluster.fault("subnet-changed", "node-2"):
        assert (address("cni0"), address("flannel.1")) == ("10.244.2.1/24", "10.244.255.0/32")
        assert "FLANNEL_SUBNET=10.244.255.1/24" in ok(cluster.node("node-2"), "cat", SUBNET_FILE)
        assert routes() == {"10.244.255.0/24": "10.244.255.0", "10.244.3.0/24": "10.244.3.0"}
        manifest = refused(cluster, tmp_path, "h", 2, OTHER_ADDRESS)
        assert not reaches(cluster, "a", B), "who was wired before is found no more"
        assert reaches(cluster, "a", C)
        assert cluster.node("node-1").run(["ping", "-c1", "-W1", "10.244.255.0"]).code == 0
    assert (address("cni0"), address("flannel.1"), routes()) == ("10.244.2.1/24", "10.244.2.0/32", before)
    runs(cluster, "h", A)
    assert reaches(cluster, "a", B)
    cluster.delete(manifest)
    cluster.settle()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"subnet": "10.244.3.0/24"}, "that no node has"),
        ({"subnet": "10.244.64.0/18"}, "has to be a /24"),
        ({"subnet": "10.244"}, "subnet: "),
    ],
)
def test_a_subnet_that_cannot_be_the_nodes_is_refused(
    cluster: Cluster, options: dict[str, str], why: str
) -> None:
    with pytest.raises(RequestFailed, match=why):
        cluster.fault("subnet-changed", "node-2", **options)


def rules(cluster: Cluster, node: str) -> list[str]:
    return ok(cluster.node(node), "iptables", "-t", "nat", "-S", "FLANNEL-POSTRTG").splitlines()[1:]


def seen_from(cluster: Cluster) -> tuple[str, str]:
    """Whom b takes for its client: of a ping by pod a, and of what comes by a NodePort that is Local."""
    with captured(cluster.pod("b"), "eth0") as seen:
        assert reaches(cluster, "a", B)
    asked = curl(cluster.host("client"), "http://192.168.100.12:30081/clientip")
    return next(echo["src"] for echo in echoes(seen)), asked.stdout.partition(":")[0]


def on_the_way(cluster: Cluster) -> str:
    """Where a ping by pod a seems to come from when it reaches the other node."""
    with captured(cluster.node("node-2"), "flannel.1") as seen:
        assert reaches(cluster, "a", B)
    return next(echo["src"] for echo in echoes(seen) if echo["dst"] == B)


def test_rules_in_disorder_hide_the_client(cluster: Cluster) -> None:
    assert seen_from(cluster) == (A, CLIENT)
    true = [rules(cluster, node) for node in ("node-1", "node-2")]
    with cluster.fault("flannel-rules-disordered", "node-1", "node-2"):
        assert [rules(cluster, node) for node in ("node-1", "node-2")] == [each[::-1] for each in true]
        assert on_the_way(cluster) == "10.244.1.0"
        assert seen_from(cluster) == ("10.244.2.1", "10.244.2.1"), "the ping is masqueraded twice"
    assert [rules(cluster, node) for node in ("node-1", "node-2")] == true
    assert seen_from(cluster) == (A, CLIENT)


def test_disorder_behind_flannelds_back_is_mended_at_its_next_look(cluster: Cluster) -> None:
    true = rules(cluster, "node-1")

    def disordered() -> bool:
        fault = cluster.fault("flannel-rules-disordered", "node-1", kept=False)
        assert fault.record["healed"] == fault.record["applied"]
        return rules(cluster, "node-1") == true[::-1]

    wait_until(disordered, 30, "it is seen before flanneld looks")
    wait_until(lambda: rules(cluster, "node-1") == true, 10, "flanneld has looked")
    assert seen_from(cluster) == (A, CLIENT)
