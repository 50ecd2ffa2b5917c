"""weave-npc on live clusters: recorded cases, and open connections."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from test_policy import TALK
from test_weave_mesh import ip

from testbed.api.cluster import Cluster, Completed
from testbed.conformance import suites
from testbed.conformance.run import run_cases
from testbed.wait import wait_until

GOLDEN = Path(__file__).parents[1] / "golden" / "network-policy"
SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: 3}}
  dns: {{enabled: {dns}}}
  network:
    dataplane: {{name: weave, mode: {overlay}}}
    proxy: {{mode: {mode}}}
    policy: {{onChange: {on_change}}}
"""


def up(tmp: Path, name: str, **more: str) -> Cluster:
    path = tmp / "cluster.yaml"
    defaults = {"dns": "false", "overlay": "fastdp", "mode": "iptables", "on_change": "cut"}
    path.write_text(SPEC.format(name=name, **{**defaults, **more}))
    return Cluster.up(path)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_recorded_tables_come_true(mode: str, tmp_path: Path) -> None:
    cases = suites.get("network-policy").cases([GOLDEN])[::6]
    with up(tmp_path, f"weave-recorded-{mode}", mode=mode) as cluster:
        verdicts = run_cases(cluster, cases)
    assert [(verdict.name, verdict.why) for verdict in verdicts if verdict.status != "passed"] == []


OBJECTS = """\
apiVersion: v1
kind: Pod
metadata: {name: p1}
spec: {nodeName: node-1, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p2, labels: {app: a}}
spec: {nodeName: node-2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
"""
DENY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none}
spec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress]}
"""


@pytest.mark.parametrize(
    ("on_change", "heard"), [("cut", "ConnectionResetError"), ("keep", "answer")], ids=["cut", "keep"]
)
def test_open_connection_is_cut_off_or_kept(on_change: str, heard: str, tmp_path: Path) -> None:
    manifest, deny = tmp_path / "pods.yaml", tmp_path / "deny.yaml"
    manifest.write_text(OBJECTS)
    deny.write_text(DENY)
    with up(tmp_path, f"weave-{on_change}", on_change=on_change) as cluster:
        cluster.apply(manifest)
        cluster.wait(ready="", timeout=20)
        p1, target = cluster.pod("p1"), ip(cluster, "p2")
        found: list[Completed] = []
        talking = threading.Thread(target=lambda: found.append(p1.run(["python3", "-c", TALK, target])))
        talking.start()

        def is_open() -> bool:
            listed = cluster.node("node-2").run(["conntrack", "-L", "-p", "tcp", "--dport", "80"])
            return "ESTABLISHED" in listed.stdout

        wait_until(is_open, 10, "the connection is open")
        cluster.apply(deny)
        cluster.settle()
        talking.join()
        assert found[0].stdout.split()[:3] == ["open", "answer", heard]
        assert p1.run(["curl", "-sS", "-m1", f"http://{target}/"]).code == 28, "dropped in silence"
