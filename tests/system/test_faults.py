"""Each fault on a live cluster: in force, what a real client sees, healed, and as before."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.faults.addresses import NOBODY
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: faults}
spec:
  nodes: {count: 3}
  external: [{name: client, address: 203.0.113.10}]
  network: {proxy: {mode: iptables, syncPeriod: 2s, minSyncPeriod: 100ms}}
  kubelet: {nodeStatusUpdateFrequency: 500ms, nodeMonitorPeriod: 250ms, nodeMonitorGracePeriod: 2s}
  dns: {enabled: true, replicas: 2}
  manifests: [web.yaml]
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  tolerations:
  - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: {stay}}}
  containers:
  - name: c
    image: registry.k8s.io/e2e-test-images/agnhost:2.53
    args: [netexec, --http-port=80, --udp-port=-1]
    ports: [{{containerPort: 80}}]
---
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def pod(name: str, node: str, app: str = "", *, stay: int = 300) -> str:
    """Its manifest. stay: seconds on a node that is not heard of."""
    return POD.format(name=name, app=app or name, node=node, stay=stay)


ADDRESS = {"node-1": "192.168.100.11", "node-2": "192.168.100.12", "node-3": "192.168.100.13"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from up(tmp_path_factory.mktemp("faults"), "faults")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster for one test, in which processes come and go."""
    yield from up(tmp_path, "faults-own")


def up(folder: Path, name: str) -> Iterator[Cluster]:
    (folder / "spec.yaml").write_text(SPEC)
    pods = pod("web-1", "node-1", "web") + pod("web-2", "node-2", "web") + pod("one", "node-1", "client")
    (folder / "web.yaml").write_text(pods + SERVICE % "web")
    with Cluster.up(folder / "spec.yaml", name=name) as running:
        running.wait(ready="app in (web,client)")
        running.settle()
        yield running


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """What one test broke is no other's trouble."""
    yield
    if "cluster" in request.fixturenames:
        running = request.getfixturevalue("cluster")
        running.heal()
        running.settle()


def ok(cluster: Cluster, node: str, *argv: str) -> str:
    done = cluster.node(node).run(argv)
    assert done.code == 0, done.stderr
    return done.stdout


def pings(cluster: Cluster, node: str, address: str, *more: str) -> bool:
    return cluster.node(node).run(["ping", "-c", "1", "-W", "1", *more, address]).code == 0


def ip_of(cluster: Cluster, pod: str) -> str:
    return str(cluster.client.get(f"/api/v1/namespaces/default/pods/{pod}")["status"]["podIP"])


def curl(cluster: Cluster, url: str, pod: str = "one") -> int:
    """curl's own exit code: 0 done, 7 refused, 28 timeout."""
    return cluster.pod(pod).run(["curl", "-s", "-m", "1", "-o", "/dev/null", url]).code


def eventually(condition: Callable[[], bool], what: str, deadline: float = 15.0) -> None:
    wait_until(condition, deadline, what, interval=0.1)


# --- links ----------------------------------------------------------------------------------------------


def test_a_link_that_is_down_has_no_carrier_and_keeps_its_routes(cluster: Cluster) -> None:
    assert pings(cluster, "node-1", ADDRESS["node-2"])
    routes = ok(cluster, "node-2", "ip", "route")
    with cluster.fault("link-down", "node-2") as fault:
        assert fault.target == ["node-2:s1"]
        assert "NO-CARRIER" in ok(cluster, "node-2", "ip", "link", "show", "eth0")
        assert ok(cluster, "node-2", "ip", "route").replace(" linkdown", "") == routes
        assert not pings(cluster, "node-1", ADDRESS["node-2"])
    assert "NO-CARRIER" not in ok(cluster, "node-2", "ip", "link", "show", "eth0")
    assert ok(cluster, "node-2", "ip", "route") == routes
    assert pings(cluster, "node-1", ADDRESS["node-2"])


def test_a_flapping_link_goes_down_and_up_until_it_is_healed(cluster: Cluster) -> None:
    carrier = ["cat", "/sys/class/net/eth0/carrier"]
    with cluster.fault("link-flap", "node-3", down=0.2, up=0.2):
        for wanted in ("0", "1", "0", "1"):
            eventually(lambda: ok(cluster, "node-3", *carrier).strip() == wanted, f"carrier {wanted}", 5)  # noqa: B023
    assert ok(cluster, "node-3", *carrier).strip() == "1"
    assert pings(cluster, "node-1", ADDRESS["node-3"])


def test_a_black_hole_takes_short_packets_and_loses_long_ones_without_a_word(cluster: Cluster) -> None:
    long = ["-M", "do", "-s", "1472"]
    assert pings(cluster, "node-1", ADDRESS["node-2"], *long)
    url = f"http://{ip_of(cluster, 'web-2')}/shell"
    body = ["curl", "-s", "-m", "2", "-o", "/dev/null", "--data-binary", "@-", url]
    assert cluster.pod("one").run(body, stdin="x" * 20_000).code == 0
    with cluster.fault("mtu-black-hole", "node-2", mtu=1300):
        for source, to in (("node-1", "node-2"), ("node-2", "node-1")):
            assert pings(cluster, source, ADDRESS[to], "-M", "do", "-s", "1200")
            lost = cluster.node(source).run(["ping", "-c", "1", "-W", "1", *long, ADDRESS[to]])
            assert lost.code == 1
            assert "Frag needed" not in lost.stdout
        assert curl(cluster, f"http://{ip_of(cluster, 'web-2')}/hostname") == 0
        assert cluster.pod("one").run(body, stdin="x" * 20_000).code == 28
    assert pings(cluster, "node-1", ADDRESS["node-2"], *long)
    assert cluster.pod("one").run(body, stdin="x" * 20_000).code == 0


def test_a_slow_link_has_its_rate_and_then_none(cluster: Cluster) -> None:
    with cluster.fault("impair", "node-2", bandwidth="1Mbit"):
        shown = ok(cluster, "node-2", "tc", "class", "show", "dev", "eth0")
        assert "class htb 5:1" in shown
        assert "rate 1Mbit" in shown
    assert "htb" not in ok(cluster, "node-2", "tc", "qdisc", "show", "dev", "eth0")


def test_what_the_kernel_lacks_is_refused_by_name(cluster: Cluster) -> None:
    found = cluster.node("node-1").run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    if found.code == 0:
        pytest.skip("this kernel has netem: see test_netem_faults")
    with pytest.raises(RequestFailed, match=r"netem.*sch_netem") as refused:
        cluster.fault("impair", "node-2", delay="10ms")
    assert refused.value.exit_code == 3
    assert not [record for record in cluster.faults() if record.get("healed") is None]


# --- losing packets by rules ----------------------------------------------------------------------------


def test_loss_is_on_one_way_alone_and_counts_what_it_drops(cluster: Cluster) -> None:
    with cluster.fault("loss", "node-2", loss=1, source="node-1"):
        assert not pings(cluster, "node-1", ADDRESS["node-2"])
        assert pings(cluster, "node-3", ADDRESS["node-2"])
        counted = ok(cluster, "node-2", "iptables", "-t", "raw", "-nvxL", "PREROUTING")
        assert re.search(r"^\s+[1-9]\d* .*DROP .*192\.168\.100\.11 ", counted, re.M), counted
    assert "statistic" not in ok(cluster, "node-2", "iptables-save", "-t", "raw")
    assert pings(cluster, "node-1", ADDRESS["node-2"])


def test_a_partition_divides_nodes_and_pods_and_takes_the_api_server_away(cluster: Cluster) -> None:
    web = f"http://{ip_of(cluster, 'web-2')}/hostname"
    with cluster.fault("partition", "node-2"):
        for one, other in (("node-1", "node-2"), ("node-2", "node-3"), ("node-3", "node-2")):
            assert not pings(cluster, one, ADDRESS[other])
        assert pings(cluster, "node-1", ADDRESS["node-3"])
        assert curl(cluster, web) == 28
        eventually(lambda: ready(cluster, "node-2") == "Unknown", "node-2 is NotReady")
    eventually(lambda: ready(cluster, "node-2") == "True", "node-2 is Ready")
    assert pings(cluster, "node-1", ADDRESS["node-2"])
    assert curl(cluster, web) == 0


def ready(cluster: Cluster, node: str) -> str:
    conditions = cluster.client.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
    return next(str(each["status"]) for each in conditions if each["type"] == "Ready")


# --- routes and neighbours ------------------------------------------------------------------------------


def test_a_withdrawn_route_is_gone_and_stays_so_when_the_cluster_changes(
    cluster: Cluster, tmp_path: Path
) -> None:
    before = ok(cluster, "node-1", "ip", "route")
    web = f"http://{ip_of(cluster, 'web-2')}/hostname"
    with cluster.fault("route-withdrawn", "node-1", to="node-2"):
        assert "10.244.2.0/24" not in ok(cluster, "node-1", "ip", "route")
        # What is left is the default route, to a router that knows the way: a detour.
        assert "via 192.168.100.1 " in ok(cluster, "node-1", "ip", "route", "get", ip_of(cluster, "web-2"))
        (tmp_path / "more.yaml").write_text(
            POD.format(name="more", app="more", node="node-1", stay=300) + SERVICE % "more"
        )
        cluster.apply(tmp_path / "more.yaml")
        cluster.wait(ready="app=more")
        cluster.settle()
        assert "default/more" in ok(cluster, "node-1", "iptables-save", "-t", "nat")
        assert "10.244.2.0/24" not in ok(cluster, "node-1", "ip", "route")
        cluster.delete(tmp_path / "more.yaml")
    assert ok(cluster, "node-1", "ip", "route") == before
    assert curl(cluster, web) == 0


def test_a_route_that_is_not_there_cannot_be_withdrawn(cluster: Cluster) -> None:
    with pytest.raises(RequestFailed, match="would change nothing of node-1"):
        cluster.fault("route-withdrawn", "node-1", to="172.16.0.0/12")


def test_an_address_that_two_nodes_have_is_whose_was_heard_last(cluster: Cluster) -> None:
    def believed() -> str:
        pings(cluster, "node-3", ADDRESS["node-1"])
        entries = json.loads(ok(cluster, "node-3", "ip", "-json", "neighbour", "show", ADDRESS["node-1"]))
        return str(entries[0].get("lladdr")) if entries else ""

    macs = {node: ok(cluster, node, "cat", "/sys/class/net/eth0/address").strip() for node in ADDRESS}
    assert believed() == macs["node-1"]
    with cluster.fault("duplicate-ip", "node-2", of="node-1"):
        assert f"{ADDRESS['node-1']}/32" in ok(cluster, "node-2", "ip", "address", "show", "eth0")
        eventually(lambda: believed() == macs["node-2"], "node-3 believes node-2")
    assert ADDRESS["node-1"] not in ok(cluster, "node-2", "ip", "address", "show", "eth0")
    eventually(lambda: believed() == macs["node-1"], "node-3 believes node-1")
    assert pings(cluster, "node-3", ADDRESS["node-1"])


@pytest.mark.parametrize(("node", "of"), [("node-1", "node-2"), ("node-2", "web-2")])
def test_a_stale_neighbour_gets_nothing(cluster: Cluster, node: str, of: str) -> None:
    address = ADDRESS.get(of) or ip_of(cluster, of)
    assert pings(cluster, node, address)
    with cluster.fault("stale-neighbour", node, of=of):
        shown = ok(cluster, node, "ip", "neighbour", "show", address)
        assert "02:00:00:00:de:ad" in shown
        assert "PERMANENT" in shown
        assert not pings(cluster, node, address)
    assert "de:ad" not in ok(cluster, node, "ip", "neighbour", "show", address)
    assert pings(cluster, node, address)


# --- pods and nodes -------------------------------------------------------------------------------------


def test_a_killed_pod_is_gone_at_once_and_the_seed_says_which(cluster: Cluster, tmp_path: Path) -> None:
    deployment = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 4
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec: {containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
"""
    (tmp_path / "many.yaml").write_text(deployment)
    cluster.apply(tmp_path / "many.yaml")
    wait_until(lambda: len(cluster.pods("app=many")) == 4, 10, "four pods")
    cluster.wait(ready="app=many")
    names = {pod["metadata"]["name"] for pod in cluster.pods("app=many")}
    fault = cluster.fault("pod-kill", selector="app=many", seed=3)
    (killed,) = fault.target
    assert killed.removeprefix("default/") in names
    assert "healed" in fault.record
    wait_until(lambda: len(cluster.pods("app=many")) == 4, 10, "four pods again")
    cluster.wait(ready="app=many")
    left = {pod["metadata"]["name"] for pod in cluster.pods("app=many")}
    assert len(names & left) == 3
    cluster.delete(tmp_path / "many.yaml")


def test_a_crashed_node_is_dead_and_comes_back_with_its_pods(own: Cluster) -> None:
    web = f"http://{ip_of(own, 'web-2')}/hostname"
    rules = rules_of(own, "node-2")
    with own.fault("node-crash", "node-2"):
        assert not pings(own, "node-1", ADDRESS["node-2"])
        assert curl(own, web) != 0
        eventually(lambda: ready(own, "node-2") == "Unknown", "node-2 is NotReady")
        eventually(lambda: endpoints(own) == {"web-1"}, "web-2 is no endpoint")
    eventually(lambda: ready(own, "node-2") == "True", "node-2 is Ready")
    own.wait(ready="app in (web,client)")
    own.settle()
    assert endpoints(own) == {"web-1", "web-2"}
    eventually(lambda: curl(own, web) == 0, "web-2 answers", 30)
    assert rules_of(own, "node-2") == rules
    assert own.pod("web-2").run(["ping", "-c", "1", "-W", "1", ip_of(own, "one")]).code == 0


NODE_2 = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}}


def test_a_node_that_is_dead_or_frozen_leaves_and_joins_again_when_it_is_healed(
    own: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "again.yaml").write_text(pod("web-2", "node-2", "web"))
    rules = rules_of(own, "node-2")
    machine = own.host("node-2")
    for fault in ("node-crash", "proxier-frozen"):
        loss = own.fault("loss", "node-1", source="node-3", loss=0.5)
        broken = own.fault(fault, "node-2")
        own.client.delete("/api/v1/nodes/node-2")
        eventually(lambda: endpoints(own) == {"web-1"}, "web-2 is no endpoint")
        assert [line for line in machine.run(["iptables-save"]).stdout.splitlines() if line[:2] == "-A"] == []
        links = json.loads(machine.run(["ip", "-json", "link"]).stdout)
        assert {link["ifname"] for link in links} - {"tunl0"} == {"lo", "eth0"}
        if fault == "node-crash":
            with pytest.raises(RequestFailed, match="no power: heal its fault first"):
                own.client.post("/api/v1/nodes", NODE_2)
        own.heal()
        assert all("healed" in record(own, each.id) for each in (loss, broken))
        own.client.post("/api/v1/nodes", NODE_2)
        own.settle()
        eventually(lambda: rules_of(own, "node-2") != [], "the node has rules")
        assert pings(own, "node-1", ADDRESS["node-2"])
        own.apply(tmp_path / "again.yaml")
        own.wait(ready="app=web")
        own.settle()
        assert endpoints(own) == {"web-1", "web-2"}
        eventually(lambda: curl(own, f"http://{ip_of(own, 'web-2')}/hostname") == 0, "web-2 answers")
    assert len(rules_of(own, "node-2")) == len(rules)


def test_faults_of_what_ran_on_a_node_end_when_it_leaves(own: Cluster, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(pod("web-2", "node-2", "web"))
    over = [own.fault("proxier-frozen", "node-2"), own.fault("stale-neighbour", "node-2", of="node-3")]
    stays = own.fault("loss", "node-2", source="node-3", loss=1.0)
    both = own.fault("policy-frozen", "node-1", "node-2")
    full = own.fault("conntrack-full", "node-1", "node-2", share=0.02)
    assert min(connections(own, node) for node in ("node-1", "node-2")) > 1_000
    assert not pings(own, "node-2", ADDRESS["node-3"])
    own.client.delete("/api/v1/nodes/node-2")
    eventually(lambda: all("healed" in record(own, each.id) for each in over), "they are over")
    assert not any("healed" in record(own, each.id) for each in (stays, both, full))
    eventually(lambda: connections(own, "node-2") < 1_000, "its connection table is its own again")
    assert connections(own, "node-1") > 1_000
    own.client.post("/api/v1/nodes", NODE_2)
    own.settle()
    assert NOBODY not in ok(own, "node-2", "ip", "neigh", "show", "nud", "permanent")
    assert connections(own, "node-2") < 1_000
    assert not pings(own, "node-2", ADDRESS["node-3"]), "the network still loses packets"
    own.heal()
    assert pings(own, "node-2", ADDRESS["node-3"])
    own.apply(tmp_path / "again.yaml")
    own.wait(ready="app=web")
    own.settle()
    to_web_2 = f"--to-destination {ip_of(own, 'web-2')}:80"
    eventually(lambda: any(to_web_2 in rule for rule in rules_of(own, "node-2")), "its service rules are new")


def connections(cluster: Cluster, node: str) -> int:
    """What the kernel counts in the connection table of a machine, be it a node or not."""
    shown = cluster.host(node).run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"])
    return int(shown.stdout)


def rules_of(cluster: Cluster, node: str) -> list[str]:
    """Every rule, without counters and comments on time."""
    saved = ok(cluster, node, "iptables-save")
    return sorted(line for line in saved.splitlines() if line.startswith("-A"))


def endpoints(cluster: Cluster) -> set[str]:
    """The ready endpoints of Service web."""
    slices = cluster.client.get(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        labelSelector="kubernetes.io/service-name=web",
    )["items"]
    return {
        each["targetRef"]["name"]
        for item in slices
        for each in item["endpoints"] or ()
        if each["conditions"].get("ready")
    }


def test_a_node_that_is_not_ready_loses_its_pods_and_hears_of_it_when_healed(
    cluster: Cluster, tmp_path: Path
) -> None:
    manifest = tmp_path / "short.yaml"
    manifest.write_text(pod("short", "node-3", stay=1))
    cluster.apply(manifest)
    cluster.wait(ready="app=short")
    address = ip_of(cluster, "short")
    with cluster.fault("node-not-ready", "node-3"):
        assert ready(cluster, "node-3") == "True"
        eventually(lambda: ready(cluster, "node-3") == "Unknown", "node-3 is NotReady")
        taints = cluster.client.get("/api/v1/nodes/node-3")["spec"]["taints"]
        assert {taint["key"] for taint in taints} == {"node.kubernetes.io/unreachable"}
        eventually(lambda: evicted(cluster, "short"), "short is evicted")
        assert curl(cluster, f"http://{address}/hostname") == 0, "the node does not know yet"
    eventually(lambda: ready(cluster, "node-3") == "True", "node-3 is Ready")
    eventually(lambda: not cluster.pods("app=short"), "short is gone")
    assert curl(cluster, f"http://{address}/hostname") != 0


def evicted(cluster: Cluster, name: str) -> bool:
    """Whether the pod is on its way out by the taint manager's hand."""
    pods = cluster.pods(f"app={name}")
    return not pods or "deletionTimestamp" in pods[0]["metadata"]


# --- rules ----------------------------------------------------------------------------------------------


def test_a_frozen_proxier_keeps_old_rules_and_catches_up(cluster: Cluster, tmp_path: Path) -> None:
    manifest = tmp_path / "late.yaml"
    manifest.write_text(SERVICE % "late")
    with cluster.fault("proxier-frozen", "node-1"):
        cluster.apply(manifest)
        cluster.settle()
        assert "default/late" in ok(cluster, "node-2", "iptables-save", "-t", "nat")
        assert "default/late" not in ok(cluster, "node-1", "iptables-save", "-t", "nat")
    cluster.settle()
    assert "default/late" in ok(cluster, "node-1", "iptables-save", "-t", "nat")
    cluster.delete(manifest)


def test_a_frozen_policy_agent_lets_through_what_is_forbidden(cluster: Cluster, tmp_path: Path) -> None:
    manifest = tmp_path / "deny.yaml"
    manifest.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\n"
        "spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}\n"
    )
    web = {name: f"http://{ip_of(cluster, name)}/hostname" for name in ("web-1", "web-2")}
    with cluster.fault("policy-frozen", "node-2"):
        cluster.apply(manifest)
        cluster.settle()
        assert curl(cluster, web["web-1"]) != 0
        assert curl(cluster, web["web-2"]) == 0
    cluster.settle()
    assert curl(cluster, web["web-2"]) != 0
    cluster.delete(manifest)
    cluster.settle()
    assert curl(cluster, web["web-2"]) == 0


def test_flushed_rules_stay_away_though_services_change(cluster: Cluster, tmp_path: Path) -> None:
    manifest = tmp_path / "new.yaml"
    manifest.write_text(SERVICE % "new")
    rules = rules_of(cluster, "node-1")
    assert curl(cluster, "http://web/hostname") == 0
    with cluster.fault("rules-flushed", "node-1"):
        assert rules_of(cluster, "node-1") == []
        cluster.apply(manifest)
        cluster.settle()
        assert rules_of(cluster, "node-1") == []
        address = cluster.client.get("/api/v1/namespaces/default/services/web")["spec"]["clusterIP"]
        assert curl(cluster, f"http://{address}/hostname") != 0
    cluster.delete(manifest)
    cluster.settle()
    assert rules_of(cluster, "node-1") == rules
    assert curl(cluster, "http://web/hostname") == 0


def test_rules_flushed_behind_its_back_are_made_again_by_kube_proxy(cluster: Cluster) -> None:
    rules = rules_of(cluster, "node-1")
    fault = cluster.fault("rules-flushed", "node-1", kept=False)
    assert fault.record["healed"] == fault.record["applied"]
    eventually(lambda: rules_of(cluster, "node-1") == rules, "kube-proxy has noticed")
    assert curl(cluster, "http://web/hostname") == 0


# --- what holds for all ---------------------------------------------------------------------------------


def test_a_fault_for_some_seconds_heals_itself(cluster: Cluster) -> None:
    fault = cluster.fault("loss", "node-2", loss=1, seconds=0.5)
    eventually(lambda: "healed" in record(cluster, fault.id), "it is healed")
    found = record(cluster, fault.id)
    assert found["healed"][0] - found["applied"][0] >= 0.5
    assert pings(cluster, "node-1", ADDRESS["node-2"])


def record(cluster: Cluster, number: str) -> dict[str, Any]:
    return next(each for each in cluster.faults() if each["id"] == number)


def test_faults_on_one_thing_add_up_and_each_is_healed_alone(cluster: Cluster) -> None:
    down = cluster.fault("link-down", "node-2")
    short = cluster.fault("mtu-black-hole", "node-2", mtu=1300)
    down.heal()
    assert pings(cluster, "node-1", ADDRESS["node-2"])
    assert not pings(cluster, "node-1", ADDRESS["node-2"], "-s", "1472", "-M", "do")
    short.heal()
    assert pings(cluster, "node-1", ADDRESS["node-2"], "-s", "1472", "-M", "do")


def test_a_fault_is_healed_when_its_user_fails(cluster: Cluster) -> None:
    with pytest.raises(ZeroDivisionError), cluster.fault("link-down", "node-2"):
        _ = 1 / 0
    assert pings(cluster, "node-1", ADDRESS["node-2"])


def test_the_same_fault_twice_is_refused(cluster: Cluster) -> None:
    with cluster.fault("loss", "node-2", loss=0.5), pytest.raises(RequestFailed, match="already"):
        cluster.fault("loss", "node-2", loss=0.7)


def test_a_fault_that_cannot_come_into_force_leaves_nothing(cluster: Cluster) -> None:
    cluster.fault("node-not-ready", "node-2")
    with pytest.raises(RequestFailed, match="not after"):
        cluster.client.post(
            "/apis/testbed/v1/faults",
            {"fault": "loss", "target": {"names": ["node-2"]}, "options": {"loss": 1}, "timeout": 0.5},
        )
    cluster.heal()
    cluster.settle()
    assert "DROP" not in ok(cluster, "node-2", "iptables-save", "-t", "raw")


# --- connection tracking --------------------------------------------------------------------------------


def test_a_full_connection_table_drops_new_connections_and_keeps_old_ones(cluster: Cluster) -> None:
    def held() -> int:
        return int(ok(cluster, "node-2", "cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    limit = int(ok(cluster, "node-2", "cat", "/proc/sys/net/netfilter/nf_conntrack_max"))
    elsewhere = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    web = f"http://{ip_of(cluster, 'web-2')}/hostname"
    assert held() < 10_000
    assert curl(cluster, web) == 0
    with cluster.fault("conntrack-full", "node-2"):
        assert held() > limit - 100
        wait_until(lambda: curl(cluster, web) == 28, 10, "new connections are dropped", interval=0.1)
        lost = ok(cluster, "node-2", "conntrack", "-S")
        assert sum(map(int, re.findall(r"\bdrop=(\d+)", lost))) > 0, lost
        assert curl(cluster, f"http://{ip_of(cluster, 'web-1')}/hostname") == 0, "another node is well"
    assert held() < 10_000
    assert curl(cluster, web) == 0
    assert limit == elsewhere == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


# --- DNS ------------------------------------------------------------------------------------------------


def replica(cluster: Cluster, fault: Any) -> str:
    (name,) = fault.target
    namespace, _, pod_name = name.partition("/")
    assert namespace == "kube-system"
    found = cluster.client.get(f"/api/v1/namespaces/{namespace}/pods/{pod_name}")
    return str(found["status"]["podIP"])


def dig(cluster: Cluster, server: str, *more: str) -> str:
    words = ["dig", f"@{server}", "web.default.svc.cluster.local", "+tries=1", "+time=2", *more]
    return cluster.pod("one").run(words).stdout


def test_a_dns_replica_that_is_down_answers_nothing_and_others_do(cluster: Cluster) -> None:
    with cluster.fault("dns-down", seed=1) as fault:
        server = replica(cluster, fault)
        assert "timed out" in dig(cluster, server) or "no servers" in dig(cluster, server)
        others = {pod["status"]["podIP"] for pod in cluster.pods("k8s-app=kube-dns", "kube-system")} - {
            server
        }
        assert others
        assert all("status: NOERROR" in dig(cluster, other) for other in others)
        (pod,) = (
            p for p in cluster.pods("k8s-app=kube-dns", "kube-system") if p["status"]["podIP"] == server
        )
        assert all(
            each["status"] == "True" for each in pod["status"]["conditions"] if each["type"] == "Ready"
        )
    assert "status: NOERROR" in dig(cluster, server)


@pytest.mark.parametrize("more", [(), ("+tcp",)])
def test_a_dns_replica_answers_servfail(cluster: Cluster, more: tuple[str, ...]) -> None:
    with cluster.fault("dns-servfail") as fault:
        server = replica(cluster, fault)
        assert "status: SERVFAIL" in dig(cluster, server, *more)
    assert "status: NOERROR" in dig(cluster, server, *more)


@pytest.mark.parametrize("more", [(), ("+tcp",)])
def test_a_slow_dns_replica_answers_truly_and_late(cluster: Cluster, more: tuple[str, ...]) -> None:
    address = cluster.client.get("/api/v1/namespaces/default/services/web")["spec"]["clusterIP"]
    with cluster.fault("dns-slow", delay=0.4) as fault:
        server = replica(cluster, fault)
        said = dig(cluster, server, *more)
        assert address in said
        found = re.search(r"Query time: (\d+) msec", said)
        assert found
        assert int(found[1]) >= 390, said  # dig counts whole milliseconds
    assert address in dig(cluster, server, *more)


def test_questions_that_race_are_seen_by_connection_tracking(cluster: Cluster) -> None:
    def lost_or_settled() -> int:
        counters = re.findall(
            r"(?:insert_failed|clash_resolve)=(\d+)", ok(cluster, "node-1", "conntrack", "-S")
        )
        return sum(map(int, counters))

    before = lost_or_settled()
    with cluster.fault("udp-race", "one"):
        assert lost_or_settled() > before
        assert "race_udp" in cluster.pod("one").run(["ps", "-eo", "args"]).stdout
    eventually(
        lambda: "race_udp" not in cluster.pod("one").run(["ps", "-eo", "args"]).stdout, "the racer is gone"
    )


def test_a_node_that_does_not_forward_is_reached_and_its_pods_are_not(cluster: Cluster) -> None:
    web = f"http://{ip_of(cluster, 'web-2')}/hostname"
    with cluster.fault("forwarding-off", "node-2"):
        assert pings(cluster, "node-1", ADDRESS["node-2"])
        assert curl(cluster, web) == 28
    assert curl(cluster, web) == 0


def test_a_node_without_default_route_reaches_its_own_segment_alone(cluster: Cluster) -> None:
    before = ok(cluster, "node-1", "ip", "route")
    with cluster.fault("no-default-route", "node-1"):
        assert "default" not in ok(cluster, "node-1", "ip", "route")
        assert pings(cluster, "node-1", ADDRESS["node-2"])
        assert "unreachable" in cluster.node("node-1").run(["ping", "-c1", "-W1", "203.0.113.10"]).stderr
    assert ok(cluster, "node-1", "ip", "route") == before
    assert ok(cluster, "node-1", "ip", "route", "show", "table", "all", "type", "unicast").count("31999") == 0


# --- by hand --------------------------------------------------------------------------------------------


def test_by_hand_a_fault_is_applied_listed_and_healed(cluster: Cluster) -> None:
    def testbed(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "testbed", "fault", *words]
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            env={**os.environ, "TESTBED_CLUSTER": cluster.name},
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = testbed("apply", "loss", "node-2", "--set", "loss=1", "--set", "source=node-1", "-o", "json")
    assert code == 0, said
    applied = json.loads(said)
    assert applied["target"] == ["node-2"]
    assert not pings(cluster, "node-1", ADDRESS["node-2"])
    _, said = testbed("list")
    assert re.search(rf"{applied['id']} +loss +node-2 +loss=1, source=node-1 +in force", said), said
    assert testbed("heal", applied["id"]) == (0, f"{applied['id']}: loss healed\n")
    code, said = testbed("list", "-o", "json")
    assert json.loads(said) == {"items": []}
    assert pings(cluster, "node-1", ADDRESS["node-2"])
    for words, problem in (
        (("apply", "meteor"), "unknown fault 'meteor': known are "),
        (("apply", "loss", "node-2"), "missing required field `loss`"),
        (("apply", "loss", "node-2", "--set", "loss=2"), "Expected `float` <= 1.0"),
        (("heal",), "which?"),
        (("heal", "fault-999"), 'no fault "fault-999"'),
    ):
        code, said = testbed(*words)
        assert (code, problem in said) == (2, True), said


HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs with &
from testbed import Cluster
with Cluster.attach(sys.argv[1]).fault("link-down", "node-2") as fault:
    print(fault.id, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_fault_ends_with_the_process_that_held_it(cluster: Cluster, number: signal.Signals) -> None:
    argv, null = [sys.executable, "-c", HOLD, cluster.name], subprocess.DEVNULL
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=null, text=True) as user:
        assert user.stdout is not None
        name = user.stdout.readline().strip()
        assert not pings(cluster, "node-1", ADDRESS["node-2"])
        user.send_signal(number)
        user.wait(10)
    eventually(lambda: "healed" in record(cluster, name), "it is healed")
    assert pings(cluster, "node-1", ADDRESS["node-2"])
