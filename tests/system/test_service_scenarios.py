"""The scenarios of Services, small: a rollout under load, and growth in both modes; with their reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from testbed.scenario.run import Finished, run_scenario

CLUSTER = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: small}
spec:
  nodes: {count: 1}
  dns: {enabled: false}
"""

PODS = """
- apply:
    objects:
    - apiVersion: apps/v1
      kind: Deployment
      metadata: {name: web}
      spec:
        replicas: 3
        strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
        selector: {matchLabels: {app: web}}
        template:
          metadata: {labels: {app: web}}
          spec:
            terminationGracePeriodSeconds: 10
            containers:
            - name: agnhost
              image: agnhost
              args: [netexec, --http-port=8080]
              readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
              lifecycle: {preStop: {sleep: {seconds: 10}}}
    - apiVersion: v1
      kind: Service
      metadata: {name: web}
      spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
    - apiVersion: v1
      kind: Pod
      metadata: {name: client}
      spec: {containers: [{name: shell, image: busybox}]}
- wait: {timeout: 60, settled: true}
- ask: {name: warm up, source: client, service: web, count: 60, timeout: 30, failed_at_most: 0, even: 1.0e-6}
"""

ROLLOUT = """
- ask:
    name: under load
    source: client
    service: web
    rate: 50
    seconds: 8
    timeout: 30
    before: 0.5
    failed_at_most: 0
    during: [{rollout: {deployment: web}}]
"""

GROWTH = """
- services: {count: 20, backends: app=web}
- ask:
    {name: few, size: 20, source: client, services: {prefix: scale-, choose: 5}, language: tcp, count: 20}
- services: {count: 60, backends: app=web}
- ask:
    {name: more, size: 60, source: client, services: {prefix: scale-, choose: 5}, language: tcp, count: 20}
conclusions:
- expect: {name: all were measured, of: more, variant: nftables, above: 0}
"""


def run(folder: Path, head: str, steps: str) -> Finished:
    (folder / "cluster.yaml").write_text(CLUSTER)
    path = folder / "small.yaml"
    path.write_text(f"apiVersion: testbed/v1\nkind: Scenario\ncluster: cluster.yaml\n{head}steps:{steps}")
    return run_scenario(path, out=folder / "results")


def report(finished: Finished) -> str:
    return (finished.folder / "report.html").read_text()


def test_a_rollout_with_time_to_end_loses_no_connection(tmp_path: Path) -> None:
    finished = run(tmp_path, "", PODS + ROLLOUT)
    assert finished.met, [one for one in finished.expectations if not one.met] or finished.error
    samples = pd.read_parquet(finished.folder / "samples.parquet")
    load = samples[samples["step"] == "under load"]
    assert len(load) == 400
    assert load["answer"].nunique() > 3  # pods before and after the rollout
    assert (samples["kind"] == "programming").any()
    assert "under load · 0 of 400 failed" in report(finished)


@pytest.mark.needs("nf_tables")
def test_variants_are_measured_in_one_run_and_compared(tmp_path: Path) -> None:
    modes = "variants: {iptables: {network.proxy.mode: iptables}, nftables: {network.proxy.mode: nftables}}\n"
    finished = run(tmp_path, modes, PODS + GROWTH)
    assert finished.met, [one for one in finished.expectations if not one.met] or finished.error
    samples = pd.read_parquet(finished.folder / "samples.parquet")
    sized = samples[(samples["size"] > 0) & (samples["verdict"] == "ok")].groupby(["variant", "size"]).size()
    assert dict(sized) == {(mode, size): 20 for mode in ("iptables", "nftables") for size in (20, 60)}
    assert "The first packet, by the number of Services" in report(finished)
