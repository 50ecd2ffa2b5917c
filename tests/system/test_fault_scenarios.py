"""Faults in scenarios: the same seed breaks the same, and all is healed whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from testbed.scenario.run import run_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.nightly
def test_a_node_leaves_and_joins_again(tmp_path: Path) -> None:
    lines: list[str] = []
    done = run_scenario(SCENARIOS / "node-leaves.yaml", out=tmp_path, report=lines.append)
    assert done.error is None, "\n".join(lines)
    told = [event["what"] for event in events(done.folder)]
    assert [what for what in told if what.startswith("node")] == [
        *("node leaves", "nodes follow", "node joins", "nodes follow")
    ]
    samples = pd.read_parquet(done.folder / "samples.parquet")
    followed = samples[samples["step"] == "node changes"]
    assert sorted(zip(followed["source"], followed["destination_node"], strict=True)) == [
        (f"{what} Node", node) for what in ("added", "deleted") for node in ("node-1", "node-2", "node-3")
    ]


SMALL = """
apiVersion: testbed/v1
kind: Scenario
metadata: {{name: small}}
cluster: {cluster}
steps:
- fault: {{fault: loss, count: 1, seed: 5, options: {{loss: 0.5}}}}
- fault: {{fault: link-down, count: 1, seed: 5, for: 0.3}}
- pause: {{seconds: 1, why: the link is healed meanwhile}}
{more}
"""
CLUSTER = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: small}
spec: {nodes: {count: 4}, dns: {enabled: false}}
"""


def run_small(folder: Path, more: str) -> Any:
    (folder / "small-cluster.yaml").write_text(CLUSTER)
    (folder / "small.yaml").write_text(SMALL.format(cluster="small-cluster.yaml", more=more))
    return run_scenario(folder / "small.yaml", out=folder / "results")


def test_the_same_seed_breaks_the_same_and_all_is_healed_in_the_end(tmp_path: Path) -> None:
    plans = []
    for _ in range(2):
        done = run_small(tmp_path, "")
        assert done.error is None
        told = [event for event in events(done.folder) if event["what"].startswith("fault ")]
        plans.append(json.dumps([[event["what"], event["detail"]] for event in told]))
        assert [event["what"] for event in told] == [
            *("fault applied", "fault applied", "fault healed", "fault healed")
        ]
        assert told[2]["detail"]["fault"] == "link-down"
        assert told[2]["monotonic"] - told[1]["monotonic"] >= 0.3
    assert plans[0] == plans[1]


def test_a_scenario_that_fails_has_its_faults_healed_and_told(tmp_path: Path) -> None:
    done = run_small(tmp_path, "- fault: {fault: route-withdrawn, target: [node-9]}")
    assert "no node 'node-9'" in str(done.error)
    told = [event["what"] for event in events(done.folder)]
    assert told.count("fault applied") == told.count("fault healed") == 2
