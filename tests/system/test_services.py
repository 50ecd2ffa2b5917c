"""What of Services is not rules, on one live cluster: load balancers, health checks, host ports, environment,
the API from inside, rules that somebody flushes, and how long changes take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from scenes import GOLDEN

from testbed import Cluster
from testbed.rules.iptables import parse_save
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: services}
spec:
  nodes: {count: 2}
  external: [{name: client, address: 203.0.113.10}]
  network: {proxy: {mode: iptables, syncPeriod: 2s, minSyncPeriod: 200ms}}
  dns: {enabled: false}
  manifests: [web.yaml]
"""
WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec:
  nodeName: node-1
  containers:
  - name: c
    image: nginx
    ports: [{containerPort: 80, hostPort: 8088}]
    env: [{name: URL, value: "http://$(WEB_SERVICE_HOST):$(WEB_SERVICE_PORT)"}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, labels: {app: web}}
spec: {nodeName: node-2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  loadBalancerIP: 198.51.100.200
  externalIPs: [192.0.2.7]
  selector: {app: web}
  ports: [{port: 80}]
"""
SECONDS = 15.0
"""More than any wait here takes."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, no_leaks_of_module: None) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("services")
    (folder / "services.yaml").write_text(SPEC)
    (folder / "web.yaml").write_text(WEB)
    with Cluster.up(folder / "services.yaml") as running:
        yield running


def curl(place: Any, url: str, *options: str) -> str:
    """The answer, "" for none."""
    return str(place.run(["curl", "-s", "-m", "2", *options, url]).stdout)


def until(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, SECONDS, what, interval=0.1)


def pods_behind(cluster: Cluster, url: str, tries: int = 24) -> set[str]:
    return {curl(cluster.host("client"), f"{url}/hostname") for _ in range(tries)}


def service(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.client.get(f"/api/v1/namespaces/default/services/{name}")
    return found


def vip(cluster: Cluster, name: str) -> str:
    (entry,) = service(cluster, name)["status"]["loadBalancer"]["ingress"]
    assert entry["ipMode"] == "VIP"
    return str(entry["ip"])


def hops(cluster: Cluster, address: str) -> set[str]:
    """The nodes that the gateway sends traffic for an address to."""
    said = json.loads(cluster.host("gateway").run(["ip", "-j", "route", "show", address]).stdout)
    return {hop["gateway"] for route in said for hop in route.get("nexthops", [route])}


def label(cluster: Cluster, node: str, labels: dict[str, str | None]) -> None:
    now = cluster.client.get(f"/api/v1/nodes/{node}")
    kept = {**now["metadata"].get("labels", {}), **labels}
    now["metadata"]["labels"] = {key: value for key, value in kept.items() if value is not None}
    cluster.client.put(f"/api/v1/nodes/{node}", now)


def test_a_load_balancer_spreads_connections_over_nodes_and_pods(cluster: Cluster) -> None:
    address = vip(cluster, "web")
    assert address == "198.51.100.1"
    assert hops(cluster, address) == {"192.168.100.11", "192.168.100.12"}
    assert pods_behind(cluster, f"http://{address}") == {"web-1", "web-2"}


def test_with_policy_local_only_nodes_with_ready_endpoints_get_traffic_and_pods_see_the_client(
    cluster: Cluster,
) -> None:
    address = vip(cluster, "local")
    assert address == "198.51.100.200"
    assert curl(cluster.host("client"), f"http://{address}/clientip").startswith("203.0.113.10:")
    pod = cluster.client.get("/api/v1/namespaces/default/pods/web-2")
    pod["metadata"].setdefault("annotations", {})["testbed/ready"] = "false"
    cluster.client.put("/api/v1/namespaces/default/pods/web-2", pod)
    until(lambda: hops(cluster, address) == {"192.168.100.11"}, "node-2 left")
    assert hops(cluster, vip(cluster, "web")) == {"192.168.100.11", "192.168.100.12"}
    assert pods_behind(cluster, f"http://{address}", 6) == {"web-1"}
    port = service(cluster, "local")["spec"]["healthCheckNodePort"]
    answer = curl(cluster.host("client"), f"http://192.168.100.12:{port}/any", "-i")
    assert answer.startswith("HTTP/1.1 503 ")
    assert "X-Load-Balancing-Endpoint-Weight: 0\r\n" in answer
    del pod["metadata"]["annotations"]["testbed/ready"]
    pod["metadata"].pop("resourceVersion")
    cluster.client.put("/api/v1/namespaces/default/pods/web-2", pod)
    until(lambda: hops(cluster, address) == {"192.168.100.11", "192.168.100.12"}, "node-2 came back")


def test_a_node_that_is_excluded_by_its_label_leaves_the_load_balancers(cluster: Cluster) -> None:
    excluded = "node.kubernetes.io/exclude-from-external-load-balancers"
    label(cluster, "node-2", {excluded: ""})
    until(lambda: hops(cluster, vip(cluster, "web")) == {"192.168.100.11"}, "node-2 left")
    label(cluster, "node-2", {excluded: None})
    until(lambda: len(hops(cluster, vip(cluster, "web"))) == 2, "node-2 came back")


def test_an_external_ip_is_reached_once_a_route_leads_to_a_node(cluster: Cluster) -> None:
    client, gateway = cluster.host("client"), cluster.host("gateway")
    assert curl(client, "http://192.0.2.7/hostname") == ""
    gateway.run(["ip", "route", "add", "192.0.2.7", "via", "192.168.100.12"])
    assert curl(client, "http://192.0.2.7/hostname") == "web-2"


def test_kube_proxys_health_is_asked_on_its_port(cluster: Cluster) -> None:
    answer = json.loads(curl(cluster.host("client"), "http://192.168.100.11:10256/healthz"))
    assert answer["nodeEligible"] is True


def test_a_host_port_answers_from_everywhere_that_portmap_lets_it(cluster: Cluster) -> None:
    url = "http://192.168.100.11:8088/hostname"
    places = [cluster.host("client"), cluster.node("node-2"), cluster.pod("web-2"), cluster.pod("web-1")]
    assert [curl(place, url) for place in (*places, cluster.node("node-1"))] == ["web-1"] * 5
    assert curl(cluster.node("node-1"), "http://127.0.0.1:8088/hostname") == "web-1"
    assert curl(cluster.host("client"), "http://192.168.100.12:8088/hostname") == ""
    assert curl(cluster.host("client"), "http://192.168.100.11:8088/clientip").startswith("203.0.113.10:")


def test_services_of_the_start_are_in_the_environment_and_later_ones_are_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    def environment(pod: str) -> dict[str, str]:
        said = cluster.pod(pod).run(["env"]).stdout
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)

    later = tmp_path / "later.yaml"
    later.write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: later}, spec: {ports: [{port: 9}]}}\n---\n"
        "{apiVersion: v1, kind: Pod, metadata: {name: young}, spec: {containers: [{name: c, image: x}]}}\n"
    )
    cluster.apply(later)
    cluster.settle()
    old, young = environment("web-1"), environment("young")
    address = service(cluster, "web")["spec"]["clusterIP"]
    assert old["URL"] == f"http://{address}:80"
    assert old["WEB_PORT_80_TCP"] == f"tcp://{address}:80"
    assert "LATER_SERVICE_HOST" not in old
    assert young["LATER_SERVICE_HOST"] == service(cluster, "later")["spec"]["clusterIP"]
    assert young["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    cluster.delete(later)


def test_a_pod_asks_the_api_with_what_its_runtime_gave_it(cluster: Cluster) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    ask = (
        f'curl -s -m 3 --cacert {folder}/ca.crt -H "Authorization: Bearer $(cat {folder}/token)" '
        "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"
        f"/api/v1/namespaces/$(cat {folder}/namespace)/pods"
    )
    listed = json.loads(cluster.pod("web-1").run(["sh", "-c", ask]).stdout)
    assert {"web-1", "web-2"} <= {pod["metadata"]["name"] for pod in listed["items"]}
    anonymous = f"curl -s -m 3 --cacert {folder}/ca.crt https://$KUBERNETES_SERVICE_HOST/api/v1/pods"
    refusal = json.loads(cluster.pod("web-1").run(["sh", "-c", anonymous]).stdout)
    said = 'User "system:anonymous" cannot list resource "pods" in API group "" at the cluster scope'
    assert (refusal["code"], refusal["message"]) == (403, f"pods is forbidden: {said}")
    assert refusal["details"] == {"kind": "pods"}
    odd = anonymous.replace("curl", "curl -H \"$(printf 'Authorization: Bearer a.b.\\377')\"", 1)
    assert json.loads(cluster.pod("web-1").run(["sh", "-c", odd]).stdout)["code"] == 401


def test_the_service_range_and_its_addresses_are_objects(cluster: Cluster) -> None:
    found = cluster.client.get("/apis/networking.k8s.io/v1/servicecidrs/kubernetes")
    assert found["spec"]["cidrs"] == ["10.96.0.0/12"]
    assert [(one["type"], one["status"]) for one in found["status"]["conditions"]] == [("Ready", "True")]
    owner = cluster.client.get("/apis/networking.k8s.io/v1/ipaddresses/10.96.0.1")["spec"]["parentRef"]
    assert (owner["namespace"], owner["name"]) == ("default", "kubernetes")


def test_a_running_node_has_the_kubelets_rules_behind_kube_proxys(cluster: Cluster) -> None:
    """kube-proxy came later and put its own in front; where it is alone its KUBE-FIREWALL is first."""
    shown = cluster.node("node-1").run(["iptables-save"]).stdout
    live = parse_save(shown, "ipv4")
    alone = parse_save((GOLDEN / "headless" / "iptables-save.txt").read_text(), "ipv4")
    for name in ("INPUT", "OUTPUT"):
        guard, *jumps = alone["ipv4", "filter", name].rules
        assert live["ipv4", "filter", name].rules == (*jumps, guard)
    assert live["ipv4", "filter", "FORWARD"] == alone["ipv4", "filter", "FORWARD"]
    assert live["ipv4", "filter", "KUBE-FIREWALL"] == alone["ipv4", "filter", "KUBE-FIREWALL"]
    targets = [rule.rpartition(" ")[2] for rule in live["ipv4", "nat", "POSTROUTING"].rules]
    others = [target for target in targets if not target.startswith("CNI-HOSTPORT-")]
    assert others == ["KUBE-POSTROUTING", "MASQUERADE"]
    assert ("ipv4", "mangle", "KUBE-IPTABLES-HINT") in live
    for table, owner in product(("mangle", "nat", "filter"), ("PROXY", "KUBELET")):
        assert ("ipv4", table, f"KUBE-{owner}-CANARY") in live


def test_rules_that_somebody_flushed_come_back_as_they_were(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.node("node-1")

    def rules() -> list[str]:
        lines = node.run(["iptables-save"]).stdout.splitlines()
        return [line.partition(" [")[0] for line in lines if not line.startswith("#")]

    def difference() -> str:
        now, then = Counter(rules()), Counter(before)
        return f"too many {list(now - then)}, missing {list(then - now)}; {cluster.status}"

    cluster.settle()  # what earlier tests deleted is gone from the rules
    before = rules()
    # Table by table in one transaction each: the agent makes all rules again as soon as one canary is gone.
    empty = tmp_path / "empty"
    empty.write_text("".join(f"*{table}\nCOMMIT\n" for table in ("nat", "filter", "mangle")))
    assert node.run(["iptables-restore", str(empty)]).code == 0

    def back() -> bool:
        return sorted(rules()) == sorted(before)

    wait_until(back, SECONDS, "the rules are back", interval=0.1, detail=difference)
    assert rules() == before
    assert node.run(["iptables", "-t", "nat", "-F", "KUBE-SERVICES"]).code == 0  # no canary sees this
    cluster.client.post("/apis/testbed/v1/nodes/node-1/restart", {})
    cluster.settle()
    assert rules() == before


def test_each_change_is_timed_on_each_node(cluster: Cluster) -> None:
    since = cluster.client.get("/api/v1/services")["metadata"]["resourceVersion"]
    web = service(cluster, "web")
    web["spec"]["ports"][0]["port"] = 81
    changed = cluster.client.put("/api/v1/namespaces/default/services/web", web)
    cluster.settle()
    answer = cluster.programming(since)
    version = int(changed["metadata"]["resourceVersion"])
    rows = {row["node"]: row for row in answer["items"] if row["version"] == version}
    assert set(rows) == {"node-1", "node-2"}
    assert all(0 < row["seconds"] < SECONDS for row in rows.values())
    assert (rows["node-1"]["kind"], rows["node-1"]["name"]) == ("Service", "web")
    assert curl(cluster.pod("web-1"), f"http://{web['spec']['clusterIP']}:81/hostname") in {"web-1", "web-2"}
    text = cluster.client.get("/apis/testbed/v1/metrics")
    assert f'duration_seconds_count{{node="node-1"}} {answer["nodes"]["node-1"]["count"]}\n' in text
