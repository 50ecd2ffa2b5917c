"""A timeline with its record: the same seed gives the same plan, and the planned schedule is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from testbed.scenario.run import run_scenario

SCENARIO = """
apiVersion: testbed/v1
kind: Scenario
metadata: {name: seeded}
cluster: cluster.yaml
seed: 11
setup:
- apply:
    objects:
    - apiVersion: v1
      kind: Pod
      metadata: {name: server}
      spec:
        containers:
        - name: a
          image: agnhost
          args: [netexec, --udp-port=8081]
          ports: [{containerPort: 8081, protocol: UDP}]
    - {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: s, image: busybox}]}}
- wait: {timeout: 60, settled: true}
repeat: {times: 2, warm_up: 1}
steps:
- at: 0s
  for: 1s
  probe:
    name: load
    kind: udp
    from: {pod: a}
    to: {pod: server}
    rate: 100
    arrivals: poisson
    expect: ["reachable: all"]
- at: 0.3s
  every: 0.3s
  until: 0.6s
  probe: {name: echo, kind: icmp, from: {pod: a}, to: {pod: server}, count: 5, floor: false}
"""
TIMES = ("monotonic", "wall")


def timeless(value: Any) -> Any:
    """The same without times: what is measured depends on the machine, what is planned must not."""
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    return value


def plans(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [json.dumps(timeless(one)) for one in events if one["what"] == "plan"]


def test_the_same_seed_gives_the_same_schedule_and_plan(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: seeded}\n"
        "spec: {nodes: {count: 1}, dns: {enabled: false}}\n"
    )
    path = tmp_path / "seeded.yaml"
    path.write_text(SCENARIO)
    runs = [run_scenario(path, out=tmp_path / "results", seed=seed) for seed in (None, 11, 12)]
    assert all(run.met for run in runs), [run.error for run in runs]
    first, again, other = (plans(run.folder) for run in runs)
    assert len(first) == 3
    assert first == again
    assert first != other
    samples = [pd.read_parquet(run.folder / "samples.parquet") for run in runs]
    samples = [one[(one["step"] == "load") & (one["kind"] == "probe")] for one in samples]
    due = [(one["at"] - one["late"]).to_numpy() for one in samples]
    assert len(due[0]) == len(due[1]) == 300
    for start in (0, 100, 200):  # the schedule that was planned is the one that was kept
        part = slice(start, start + 100)
        assert due[0][part] - due[0][start] == pytest.approx(due[1][part] - due[1][start], abs=1e-5)
    counted = samples[0].groupby("repetition")["warm_up"].all()
    assert dict(counted) == {0: True, 1: False, 2: False}
