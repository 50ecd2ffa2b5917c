"""A whole cluster, through the Python API: up, objects, traffic, change, two at once, down."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.cli.main import main
from testbed.cluster import runtime
from testbed.errors import InputError, MissingCapability, NotConverged, TestbedError
from testbed.wait import wait_until

ROOT = Path(__file__).parents[2]

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: whole}
spec:
  nodes: {count: 3}
  external:
  - {name: client, address: 203.0.113.10}
"""

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {containers: [{name: shell, image: busybox, env: [{name: GREETING, value: hello}]}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: edge}
spec:
  selector: {matchLabels: {app: edge}}
  template:
    metadata: {labels: {app: edge}}
    spec:
      hostNetwork: true
      containers: [{name: c, image: nginx, ports: [{containerPort: 9100}]}]
"""


SAY_WHO = """
import socket
connection, (address, _) = socket.create_server(("", 7)).accept()
connection.recv(4096)
connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
print(address)
"""
"""A server on a host outside that prints who came, once."""


def mine(name: str) -> str:
    """A cluster's name that no other run of these tests has."""
    return f"{name}-{os.getpid()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster")
    (path / "spec.yaml").write_text(SPEC)
    (path / "web.yaml").write_text(WEB)
    return path


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster.up(folder / "spec.yaml", name=mine("whole"), manifests=[folder / "web.yaml"]) as running:
        running.reachability(protocol="icmp")  # starts the prober, which then stays
        yield running


def web_addresses(cluster: Cluster) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.pods("app=web")}


def test_up_returns_when_every_pod_runs_and_answers(cluster: Cluster) -> None:
    assert cluster.status["running"] == cluster.status["pods"] == 12
    total, cluster.status["running"] = cluster.status["total"], 0
    assert cluster.refresh()["running"] == cluster.status["running"] == 12
    assert cluster.status["total"] == total
    for name, address in web_addresses(cluster).items():
        answer = json.loads(cluster.pod("client").run(["curl", "-s", f"http://{address}/"]).stdout)
        assert (answer["pod"], answer["ips"]) == (name, [address])


def test_a_far_pod_sees_the_near_pods_own_address(cluster: Cluster) -> None:
    (client,) = cluster.pods("app=client")
    far = next(
        pod for pod in cluster.pods("app=web") if pod["spec"]["nodeName"] != client["spec"]["nodeName"]
    )
    seen = cluster.pod("client").run(["curl", "-s", f"http://{far['status']['podIP']}/clientip"]).stdout
    assert seen.rpartition(":")[0] == client["status"]["podIP"]


def test_the_outside_sees_the_nodes_address(cluster: Cluster) -> None:
    (client,) = cluster.pods("app=client")
    said: list[str] = []
    serve = threading.Thread(
        target=lambda: said.append(cluster.host("client").run(["/usr/bin/python3", "-c", SAY_WHO]).stdout)
    )
    serve.start()
    fetch = ["curl", "-s", "--retry", "100", "--retry-connrefused", "--retry-delay", "0", "-m", "20"]
    assert cluster.pod("client").run([*fetch, "http://203.0.113.10:7/"]).code == 0
    serve.join(20)
    assert said[0].strip() == client["status"]["hostIP"]


def test_programs_see_the_pods_name_environment_and_files(cluster: Cluster) -> None:
    pod = cluster.pod("client")
    assert pod.run(["hostname"]).stdout.strip() == "client"
    environment = dict(line.split("=", 1) for line in pod.run(["env"]).stdout.splitlines())
    assert environment["GREETING"] == "hello"
    assert environment["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert "nameserver 10.96.0.10" in pod.run(["cat", "/etc/resolv.conf"]).stdout
    assert pod.run(["sh", "-c", "exit 7"]).code == 7
    assert pod.run(["cat"], stdin="through").stdout == "through"


def test_a_host_network_pod_has_its_nodes_address_and_answers_there(cluster: Cluster) -> None:
    for pod in cluster.pods("app=edge"):
        assert pod["status"]["podIP"] == pod["status"]["hostIP"]
        name = (
            cluster.pod("client").run(["curl", "-s", f"http://{pod['status']['podIP']}:9100/hostname"]).stdout
        )
        assert name.strip() == pod["spec"]["nodeName"]


@pytest.mark.parametrize("protocol", ["tcp", "icmp"])
def test_every_pod_reaches_every_other(cluster: Cluster, protocol: str) -> None:
    frame = cluster.reachability(protocol=protocol, selector="app=web")
    assert len(frame) == 6 * 5
    assert set(frame["verdict"]) == {"ok"}


def test_a_closed_port_is_refused_not_lost(cluster: Cluster) -> None:
    frame = cluster.reachability(port=81, selector="app=web")
    assert set(frame["verdict"]) == {"refused"}


def test_scaling_and_deleting_reach_the_kernel(cluster: Cluster, folder: Path) -> None:
    extra = folder / "extra.yaml"
    extra.write_text(WEB.split("---")[0].replace("web", "extra").replace("replicas: 6", "replicas: 4"))
    assert [row[2] for row in cluster.apply(extra)] == ["created"]
    cluster.wait(ready="app=extra", timeout=10)
    assert set(cluster.reachability(selector="app=extra")["verdict"]) == {"ok"}
    address = cluster.pods("app=extra")[0]["status"]["podIP"]
    cluster.delete(extra)
    cluster.settle()
    assert cluster.pods("app=extra") == []
    assert cluster.pod("client").run(["curl", "-s", "-m", "2", f"http://{address}/"]).code != 0


def test_a_rejected_file_changes_nothing_and_names_its_lines(cluster: Cluster, folder: Path) -> None:
    bad = folder / "bad.yaml"
    bad.write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fine}\n---\n"
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec:\n  ports:\n  - port: 0\n"
    )
    with pytest.raises(InputError) as error:
        cluster.apply(bad)
    assert f"{bad}:10" in str(error.value)
    assert "spec.ports[0].port: Invalid value: 0" in str(error.value)
    items = cluster.client.get("/api/v1/namespaces/default/configmaps")["items"]
    assert [item["metadata"]["name"] for item in items] == ["kube-root-ca.crt"]


def test_waiting_for_what_never_comes_says_who_is_late(cluster: Cluster) -> None:
    with pytest.raises(NotConverged, match="there are none"):
        cluster.wait(ready="app=nobody", timeout=0.2)


def test_a_measurement_that_makes_no_sense_is_a_bad_request(cluster: Cluster) -> None:
    with pytest.raises(RequestFailed, match=r"BadRequest.*timeout") as refused:
        cluster.client.post("/apis/testbed/v1/reachability", {"timeout": 0})
    assert (refused.value.status["code"], refused.value.exit_code) == (400, 2)


def test_the_list_of_clusters_counts_the_pods_of_now(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", "-o", "json"]) == 0
    (listed,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == cluster.name]
    assert (listed["state"], listed["nodes"], listed["pods"]) == ("running", 3, len(cluster.pods()))


def test_a_running_name_is_refused(cluster: Cluster, folder: Path) -> None:
    with pytest.raises(InputError, match="running already"):
        Cluster.up(folder / "spec.yaml", name=cluster.name)


def test_two_clusters_of_one_spec_do_not_meet(cluster: Cluster, folder: Path) -> None:
    with Cluster.up(folder / "spec.yaml", name=mine("second"), manifests=[folder / "web.yaml"]) as second:
        for each in (cluster, second):
            assert set(each.reachability(selector="app=web")["verdict"]) == {"ok"}
        ours, theirs = (
            set(each.node("node-1").run(["readlink", "/proc/self/ns/net"]).stdout.split())
            for each in (cluster, second)
        )
        assert not ours & theirs
    assert set(cluster.reachability(selector="app=web")["verdict"]) == {"ok"}


def test_what_the_machine_lacks_is_refused_before_anything_is_built(folder: Path) -> None:
    slow = folder / "slow.yaml"
    slow.write_text(SPEC.replace("spec:\n", "spec:\n  topology: {link: {delay: 5ms}}\n", 1))
    from testbed.kernel.capabilities import missing

    if not missing(["netem"]):
        pytest.skip("this kernel has netem")
    with pytest.raises(MissingCapability, match="netem") as error:
        Cluster.up(slow, name=mine("slow"))
    assert error.value.exit_code == 3


@pytest.mark.parametrize("name", ["one-node", "racks", "zones", "dual-stack", "cni-lab", "three-nodes"])
def test_every_topology_reaches_all_pods_over_every_family(name: str, folder: Path) -> None:
    with Cluster.up(
        ROOT / "topologies" / f"{name}.yaml",
        name=mine(name),
        manifests=[folder / "web.yaml"],
    ) as cluster:
        for family in ("ipv4", "ipv6"):
            request = {"protocol": "tcp", "selector": "app=web", "family": family}
            rows = cluster.client.post("/apis/testbed/v1/reachability", request)["rows"]
            expected = 30 if family == "ipv4" or name == "dual-stack" else 0
            assert len(rows) == expected
            assert {row["verdict"] for row in rows} <= {"ok"}
        assert cluster.pod("client").run(["ping", "-c1", "-W2", outside(cluster)]).code == 0


MOVES = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node-3, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  nodeName: node-3
  hostNetwork: true
  containers: [{name: c, image: nginx, ports: [{containerPort: 9100}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend}}
spec: {nodeName: node-1, containers: [{name: c, image: busybox}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {nodeName: node-1, containers: [{name: c, image: busybox}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: friend}}
    - ipBlock: {cidr: 203.0.113.0/24}
    - ipBlock: {cidr: "2001:db8:113::/64"}
"""


def test_a_dual_stack_node_that_gets_other_addresses_is_itself_by_them_alone(folder: Path) -> None:
    """Its pods with hostNetwork, its node ports, the load balancer's way to it, policies about its pods."""
    before = ["192.168.100.13", "fd00:192:168:100::d"]
    after = ["192.168.100.33", "fd00:192:168:100::33"]
    (folder / "moves.yaml").write_text(MOVES)
    with Cluster.up(
        ROOT / "topologies" / "dual-stack.yaml",
        name=mine("moves"),
        manifests=[folder / "moves.yaml"],
        overrides=['network.loadBalancerCIDR=["198.51.100.0/24", "2001:db8:51::/64"]'],
    ) as cluster:
        outside, friend, stranger = cluster.host("client"), cluster.pod("friend"), cluster.pod("stranger")

        def ips(name: str, field: str = "podIPs") -> list[str]:
            found = cluster.client.get(f"/api/v1/namespaces/default/pods/{name}")["status"][field]
            return [each["ip"] for each in found]

        def answer(place: Any, address: str, port: int = 80) -> bool:
            host = f"[{address}]" if ":" in address else address
            return bool(place.run(["curl", "-s", "-m1", f"http://{host}:{port}/hostname"]).code == 0)

        def reached() -> dict[str, list[bool]]:
            """What answers, over each family."""
            ways = {
                "node port": [(outside, address, 30080) for address in ips("own")],
                "load balancer": [(outside, address, 80) for address in balanced],
                "host network": [(stranger, address, 9100) for address in ips("own")],
                "friend": [(friend, address, 80) for address in ips("web")],
                "stranger": [(stranger, address, 80) for address in ips("web")],
            }
            return {way: [answer(*each) for each in asked] for way, asked in ways.items()}

        service = cluster.client.get("/api/v1/namespaces/default/services/web")
        balanced = [each["ip"] for each in service["status"]["loadBalancer"]["ingress"]]
        assert [":" in address for address in balanced] == [False, True]
        assert (ips("own"), ips("own", "hostIPs")) == (before, before)
        web = ips("web")
        expected = {
            "node port": [True, True],
            "load balancer": [True, True],
            "host network": [True, True],
            "friend": [True, True],
            "stranger": [False, False],
        }
        wait_until(lambda: reached() == expected, 20, "all answer whom they should")
        cluster.client.post("/apis/testbed/v1/nodes/node-3/addresses", {"addresses": after})
        cluster.settle()
        assert (ips("own"), ips("own", "hostIPs"), ips("web", "hostIPs")) == (after, after, after)
        assert ips("web") == web
        wait_until(lambda: reached() == expected, 20, "all answer whom they should by the new addresses")
        for address in before:
            assert not answer(outside, address, 30080)
            assert not answer(stranger, address, 9100)


SIX = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: six}
spec:
  nodes: {count: 4}
  topology: {builder: racks, params: {racks: 2}}
  network: {podCIDR: "fd00:10:244::/56", serviceCIDR: "fd00:10:96::/112", nodeCIDR: "fd00:192:168::/56"}
  external:
  - {name: client, address: "2001:db8:113::10"}
"""


def test_a_routed_ipv6_cluster_forwards_as_soon_as_it_is_up(folder: Path) -> None:
    (folder / "six.yaml").write_text(SIX)
    with Cluster.up(folder / "six.yaml", name=mine("six"), manifests=[folder / "web.yaml"]) as cluster:
        request = {"protocol": "icmp", "selector": "app=web", "hosts": True}
        rows = cluster.client.post("/apis/testbed/v1/reachability", request)["rows"]
        assert {row["verdict"] for row in rows} == {"ok"}
        assert max(row["attempts"] for row in rows) == 1
        assert max(row["seconds"] for row in rows) < 0.5
        for host in cluster.status["hosts"]:
            links = json.loads(cluster.host(host).run(["ip", "-json", "link"]).stdout)
            # The kernel notes the carrier of a pair with one index up to a second late.
            assert not [link["ifname"] for link in links if link.get("link_index") == link["ifindex"]]


def outside(cluster: Cluster) -> str:
    """An address beyond the nodes: an outside host's, or the control plane's."""
    spec = cluster.status["spec"]["spec"]
    address = (spec.get("external") or [spec["controlPlane"]])[0]["address"]
    return str(address if isinstance(address, str) else address[0])


def test_the_bridge_comes_with_the_first_pod_and_stays(folder: Path) -> None:
    alone = folder / "alone.yaml"
    alone.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: nginx}]}\n"
    )
    (folder / "small.yaml").write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: small}\n"
        "spec: {nodes: {count: 1}, dns: {enabled: false}}\n"
    )
    with Cluster.up(folder / "small.yaml", name=mine("small")) as cluster:

        def devices() -> str:
            return cluster.node("node-1").run(["ip", "-br", "link"]).stdout

        assert "cni0" not in devices()
        cluster.apply(alone)
        cluster.settle()
        assert "cni0" in devices()
        assert "veth" in devices()
        cluster.delete(alone)
        cluster.settle()
        assert "cni0" in devices()
        assert "veth" not in devices()


CLASH = """
apiVersion: v1
kind: Pod
metadata: {name: clash}
spec:
  containers:
  - {name: a, image: nginx, ports: [{containerPort: 80}]}
  - {name: b, image: nginx, ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a-name-that-is-long-enough-for-the-fqdn-to-be-more}
spec: {setHostnameAsFQDN: true, subdomain: subdomain, containers: [{name: c, image: nginx}]}
"""


def test_what_does_not_work_in_a_pod_is_an_event(cluster: Cluster, folder: Path) -> None:
    (folder / "clash.yaml").write_text(CLASH)
    cluster.apply(folder / "clash.yaml")
    cluster.settle()
    events = cluster.client.get("/api/v1/namespaces/default/events")["items"]
    said = {(event["involvedObject"]["name"], event["reason"]): event["message"] for event in events}
    assert "port 80" in said["clash", "Failed"]
    (problem,) = (
        text
        for (name, reason), text in said.items()
        if name.startswith("a-name") and reason == "FailedCreatePodSandBox"
    )
    assert problem.startswith("failed to construct FQDN from pod hostname and cluster domain")
    cluster.delete(folder / "clash.yaml")
    cluster.settle()


def test_round_trips_are_a_frame(cluster: Cluster) -> None:
    (client,) = cluster.pods("app=client")
    web = next(iter(web_addresses(cluster)))
    frame = cluster.roundtrips([("client", web), ("client", "host:client")], count=20)
    measured = frame[frame["path"] != "loopback"]
    assert len(measured) == 40
    assert (measured["seconds"] > 0).all()
    assert client["metadata"]["name"] in set(measured["source"])


def test_nodes_come_from_the_spec_alone(cluster: Cluster) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-9"}}
    for attempt in (
        lambda: cluster.client.post("/api/v1/nodes", node),
        lambda: cluster.client.post("/apis/testbed/v1/manifests", {"objects": [node]}),
    ):
        with pytest.raises(RequestFailed, match="nodes come from the cluster's spec, which has node-1,"):
            attempt()
    there = {**node, "metadata": {"name": "node-1"}}
    with pytest.raises(RequestFailed, match='nodes "node-1" already exists'):
        cluster.client.post("/api/v1/nodes", there)
    with pytest.raises(RequestFailed, match="nodes join and leave one by one"):
        cluster.client.delete("/api/v1/nodes")
    with pytest.raises(RequestFailed, match='nodes "node-9" not found'):
        cluster.client.delete("/api/v1/nodes/node-9")
    for options, why in (
        ({"dryRun": ["All"]}, "a dry run is not supported; nothing was changed"),
        ({"preconditions": {"uid": "another"}}, "UID in precondition: another"),
        ({"preconditions": {"resourceVersion": "1"}}, "ResourceVersion in precondition: 1,"),
    ):
        with pytest.raises(RequestFailed, match=why):
            cluster.client.request("DELETE", "/api/v1/nodes/node-1", options)
    with pytest.raises(RequestFailed, match="the kind of the object"):
        cluster.client.post("/api/v1/nodes", {**there, "kind": "Pod"})
    assert len(cluster.client.get("/api/v1/nodes")["items"]) == 3


def test_a_cluster_whose_agents_end_as_it_starts_is_not_ready(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "AGENT_ENTRY", "os:abort")
    words = (
        "(?s)the agent of node node-1, .*node-3 ended as the cluster started; the end of its log:.*ended with"
    )
    with pytest.raises(TestbedError, match=words):
        Cluster.up(folder / "spec.yaml", name=mine("stillborn"))


def test_a_cluster_whose_routers_agent_ends_as_it_starts_says_which_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "racks.yaml").write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nspec: {nodes: {count: 2}, dns: {enabled: false}, "
        "topology: {builder: racks, params: {racks: 2, spines: 1, mask: 24}}, "
        "network: {nodeCIDR: 192.168.0.0/20, dataplane: {name: calico}}}\n"
    )
    spawn = runtime.Runtime.spawn

    async def stillborn(self: runtime.Runtime, name: str, entry: str, netns: int = -1) -> Any:
        return await spawn(self, name, "os:abort" if name == "router leaf2" else entry, netns)

    monkeypatch.setattr(runtime.Runtime, "spawn", stillborn)
    words = (
        "(?s)the agent of router leaf2 ended as the cluster started; "
        "the end of its log:.*router leaf2 ended with"
    )
    with pytest.raises(TestbedError, match=words):
        Cluster.up(tmp_path / "racks.yaml", name=mine("unrouted"))


def test_pods_of_a_node_whose_agent_ended_are_named_not_waited_for(folder: Path) -> None:
    with Cluster.up(folder / "spec.yaml", name=mine("headless"), manifests=[folder / "web.yaml"]) as cluster:
        end_agent(cluster, "node-2")
        request = {"protocol": "tcp", "selector": "app=web"}
        answer = cluster.client.post("/apis/testbed/v1/reachability", request)
        assert {row["verdict"] for row in answer["rows"]} == {"ok"}
        assert len(answer["rows"]) == 4 * 3
        assert {entry["why"] for entry in answer["skipped"]} == {"the agent of its node node-2 has ended"}


def end_agent(cluster: Cluster, node: str) -> None:
    """Kill the agent of a node, which is the parent of what runs there; the error says that it is known."""
    with pytest.raises(TestbedError, match="has ended"):
        cluster.node(node).run(["sh", "-c", "kill -KILL $PPID"])
