"""Cluster DNS on the real kernel: answers as CoreDNS' are, changes that lose no question, lost servers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from testbed.conformance import suites
from testbed.conformance.run import run_cases
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: names}
spec:
  nodes: {count: 2}
  network: {podCIDR: [10.244.0.0/16, "fd00:10:244::/48"]}
  external:
  - name: dns
    address: [203.0.113.53, "2001:db8:1::53"]
    dns: {zone: {www.example.com: 203.0.113.80, alias.example.com: {CNAME: www.example.com}}}
"""
CLIENT = """
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: shell, image: busybox}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
"""
ASK = """
import json, socket, sys, time
from testbed.apps.wire import dns
sent = answered = 0
end = time.monotonic() + float(sys.argv[2])
kinds = set()
while time.monotonic() < end:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((sys.argv[1], 53)); sock.settimeout(5)
        for _ in range(20):
            sent += 1
            sock.send(dns.question(sent & 0xffff, "web.default.svc.cluster.local", "A"))
            try: answer = dns.parse(sock.recv(512))
            except OSError: continue
            answered += answer.rcode == "NOERROR" and len(answer.answers) == 1
print(json.dumps([sent, answered]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("dns")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "client.yaml").write_text(CLIENT)
    with Cluster.up(
        folder / "spec.yaml", name=f"dns-{os.getpid()}", manifests=[folder / "client.yaml"]
    ) as running:
        yield running


def servers(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.pods("k8s-app=kube-dns", "kube-system")


def looked_up(cluster: Cluster, name: str, kind: str = "A") -> str:
    return cluster.pod("client").run(["dig", "+short", "+tries=1", "+time=2", name, kind]).stdout.strip()


def test_a_cluster_that_is_up_answers(cluster: Cluster) -> None:
    assert (
        cluster.pod("client").run(["getent", "hosts", "kubernetes.default"]).stdout.split()[0] == "10.96.0.1"
    )


def test_it_answers_as_specified_but_for_what_is_known(cluster: Cluster) -> None:
    verdicts = run_cases(cluster, suites.get("dns").cases([]))
    assert [f"{one.name}: {one.why}" for one in verdicts if one.status == "failed"] == []
    assert sum(one.status == "passed" for one in verdicts) > 40


def test_a_server_that_changes_loses_no_question(cluster: Cluster) -> None:
    """New configurations, so new processes, while a server is asked all the time."""
    (address, *_) = [pod["status"]["podIP"] for pod in servers(cluster)]
    results: list[list[int]] = []

    def ask() -> None:
        done = cluster.pod("client").run([sys.executable, "-c", ASK, address, "5"])
        results.append(json.loads(done.stdout))

    asking = threading.Thread(target=ask)
    asking.start()
    path = "/api/v1/namespaces/default/services/web"
    for port in (81, 82, 83):
        patch = {"spec": {"ports": [{"name": "http", "port": port}]}}
        cluster.client.request("PATCH", path, patch, content_type="application/merge-patch+json")
        wait_until(partial(has_port, cluster, port), 15, f"port {port} in DNS")
    asking.join()
    ((sent, answered),) = results
    assert sent > 100
    assert answered == sent


def has_port(cluster: Cluster, port: int) -> bool:
    said = looked_up(cluster, "_http._tcp.web.default.svc.cluster.local", "SRV")
    return f" {port} web.default" in said


def test_changes_are_answered_by_while_nobody_outside_answers(cluster: Cluster) -> None:
    """Nor does a valid object whose names dnsmasq would refuse keep new configurations from being read."""
    host = cluster.host("dns")
    (pid,) = host.run(["pgrep", "-f", "testbed-dns/dns.conf"]).stdout.split()
    services = "/api/v1/namespaces/default/services"
    spec = {"type": "ExternalName", "externalName": "a" * 64 + ".example.com"}
    host.run(["kill", "-STOP", pid])
    try:
        cluster.client.post(services, {"kind": "Service", "metadata": {"name": "long"}, "spec": spec})
        patch = {"spec": {"ports": [{"name": "http", "port": 84}]}}
        merge = "application/merge-patch+json"
        cluster.client.request("PATCH", f"{services}/web", patch, content_type=merge)
        cluster.settle()
        assert has_port(cluster, 84)
    finally:
        host.run(["kill", "-CONT", pid])


def test_how_long_changes_took_is_told(cluster: Cluster) -> None:
    items = cluster.programming(of="names")["items"]
    assert {item["how"] for item in items} == {"files", "restart"}


def test_a_killed_server_is_restarted(cluster: Cluster) -> None:
    """Its container ends, is started again by the kubelet, and answers with all names."""
    victim = servers(cluster)[0]
    name, address = victim["metadata"]["name"], victim["status"]["podIP"]
    restarts = victim["status"]["containerStatuses"][0]["restartCount"]
    node = cluster.node(victim["spec"]["nodeName"])
    pids = [
        line.split()[0]
        for line in node.run(["pgrep", "-a", "dnsmasq"]).stdout.splitlines()
        if line.endswith("/run/dns/front.conf") and of_pod(cluster, line.split()[0], name)
    ]
    assert pids
    node.run(["kill", f"-{signal.SIGKILL.value}", *pids])

    def restarted() -> bool:
        (status,) = next(p for p in servers(cluster) if p["metadata"]["name"] == name)["status"][
            "containerStatuses"
        ]
        if status["restartCount"] == restarts:
            return False
        assert status["restartCount"] == restarts + 1
        assert status["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
        return bool(status["ready"])

    wait_until(restarted, 20, "the container is started again")
    said = cluster.pod("client").run(["dig", f"@{address}", "+short", "kubernetes.default.svc.cluster.local"])
    assert said.stdout.strip() == "10.96.0.1"


def of_pod(cluster: Cluster, pid: str, name: str) -> bool:
    """Whether a process has the host name of a pod: it is in its UTS namespace."""
    node = cluster.node("node-1")
    return node.run(["nsenter", "-t", pid, "-u", "hostname"]).stdout.strip() == name


def test_a_lost_pod_is_replaced_and_names_are_found_all_along(cluster: Cluster) -> None:
    before = {pod["metadata"]["name"] for pod in servers(cluster)}
    cluster.client.delete(f"/api/v1/namespaces/kube-system/pods/{min(before)}", gracePeriodSeconds="0")
    cluster.wait(ready="k8s-app=kube-dns", namespace="kube-system", timeout=20)
    assert {pod["metadata"]["name"] for pod in servers(cluster)} != before
    wait_until(lambda: looked_up(cluster, "www.example.com") == "203.0.113.80", 10, "a name outside")


def test_a_node_may_have_a_cache_of_its_own(tmp_path: Path) -> None:
    spec = SPEC.replace("count: 2}", "count: 1}\n  dns: {nodeLocal: true, replicas: 1}")
    (tmp_path / "spec.yaml").write_text(spec)
    (tmp_path / "client.yaml").write_text(CLIENT)
    with Cluster.up(
        tmp_path / "spec.yaml", name=f"cached-{os.getpid()}", manifests=[tmp_path / "client.yaml"]
    ) as cluster:
        pod = cluster.pod("client")
        assert "nameserver 169.254.20.10\n" in pod.run(["cat", "/etc/resolv.conf"]).stdout
        for name, address in (("kubernetes.default", "10.96.0.1"), ("alias.example.com", "203.0.113.80")):
            assert pod.run(["getent", "hosts", name]).stdout.split()[:1] == [address]
