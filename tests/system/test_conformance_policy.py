"""The suite ``network-policy`` on live clusters, with a part of the recorded cases and of upstream's.

All of them: ``testbed conformance network-policy tests/golden/network-policy`` and the folders of
``tests/cases/network-policy``, on any cluster.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.api.cluster import Cluster
from testbed.conformance import suites
from testbed.conformance.junit import junit
from testbed.conformance.network_policy import RecordedSuite
from testbed.conformance.network_policy.cases import Recorded, Step, load
from testbed.conformance.network_policy.stage import Stage
from testbed.conformance.network_policy.tables import cells, describe, measure
from testbed.conformance.run import run_cases
from testbed.errors import InputError
from testbed.wait import wait_until

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "network-policy"
UPSTREAM = [TESTS / "cases" / "network-policy" / form for form in ("upstream-listed", "upstream-3x3")]
SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: 3}}
  dns: {{enabled: false}}
  network: {{podCIDR: {cidr}, proxy: {{mode: {mode}}}}}
"""


@pytest.mark.parametrize(
    ("mode", "cidr"), [("iptables", "10.244.0.0/16"), ("nftables", "10.60.0.0/16")], ids=lambda value: value
)
def test_recorded_tables_come_true(mode: str, cidr: str, tmp_path: Path) -> None:
    """With addresses of their own or, where these cannot be had, with ranges that hold the same pods."""
    spec = tmp_path / "cluster.yaml"
    spec.write_text(SPEC.format(name=f"recorded-{mode}", mode=mode, cidr=cidr))
    suite = suites.get("network-policy")
    cases = [
        *suite.cases([GOLDEN])[::5],
        *suite.cases([UPSTREAM[0]])[33:37],
        *suite.cases([UPSTREAM[1]])[::11],
    ]
    with Cluster.up(spec) as cluster:
        verdicts = run_cases(cluster, cases)
        left = namespaces(cluster)
    assert [(verdict.name, verdict.why) for verdict in verdicts if verdict.status != "passed"] == []
    assert not left & {"x", "y", "z"}
    assert f'tests="{len(cases)}" failures="0"' in junit("network-policy", verdicts)


SLICES = 9
"""Of the recorded cases. Kernels with SCTP are emulated, and slow: usually one is run in each mode."""


@pytest.mark.needs("sctp")
@pytest.mark.parametrize(
    ("mode", "first"),
    [
        pytest.param(mode, first, marks=() if first == usual else pytest.mark.nightly)
        for mode, usual in (("iptables", 0), ("nftables", 4))
        for first in range(SLICES)
    ],
)
def test_recorded_tables_of_sctp_come_true(mode: str, first: int, tmp_path: Path) -> None:
    """The tables of SCTP alone: those of TCP and UDP come true on any kernel."""
    spec = tmp_path / "cluster.yaml"
    spec.write_text(SPEC.format(name=f"sctp-{mode}", mode=mode, cidr="10.244.0.0/16"))
    recorded = [of_protocol(case, "SCTP") for case in load([GOLDEN])[first::SLICES]]
    with Cluster.up(spec) as cluster:
        verdicts = run_cases(cluster, RecordedSuite().played(recorded))
    assert [(verdict.name, verdict.why) for verdict in verdicts if verdict.status != "passed"] == []
    print(f"{len(verdicts)} cases, {sum(map(cells_of, recorded))} cells of SCTP, {mode}")


def namespaces(cluster: Cluster) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.client.get("/api/v1/namespaces")["items"]}


def of_protocol(case: Recorded, protocol: str) -> Recorded:
    """A case with the tables of one protocol; every step has some."""
    steps = []
    for step in case.steps:
        tables = {name: table for name, table in step.tables.items() if name.startswith(protocol)}
        steps.append(replace(step, tables=tables))
    assert any(step.tables for step in steps)
    return replace(case, steps=tuple(steps))


def cells_of(case: Recorded) -> int:
    """How many cells a case has, the diagonal aside."""
    return sum(
        len(row) - 1 for step in case.steps for table in step.tables.values() for row in table.values()
    )


def test_a_wrong_cell_is_shown_in_its_table(tmp_path: Path) -> None:
    """A table that says the opposite of what holds fails, and says which cells and what was seen."""
    (case,) = load([GOLDEN / "007-egress-deny-all.yaml"])
    spec = tmp_path / "cluster.yaml"
    spec.write_text(SPEC.format(name="wrong-cell", mode="iptables", cidr="10.244.0.0/16"))
    with Cluster.up(spec) as cluster:
        stage = Stage(cluster)
        mine = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}
        cluster.client.post("/api/v1/namespaces", mine)
        with pytest.raises(InputError, match="namespace x is there already"):
            stage.begin(case)
        cluster.client.delete("/api/v1/namespaces/x")
        wait_until(lambda: "x" not in namespaces(cluster), 30, "x is gone")
        stage.begin(case)
        (step,) = case.steps
        for action in step.actions:
            stage.act(action)
        stage.settle()
        wrong = turned(case, "TCP/80", "x/a", "y/b")
        asked = [cell for cell in cells(stage, wrong) if (cell.table, cell.source) == ("TCP/80", ("x", "a"))]
        seen = measure(stage, asked)
        differing = [cell for cell in asked if seen[cell] != cell.expected]
        assert [(cell.target, cell.expected, seen[cell]) for cell in differing] == [(("y", "b"), ".", "X")]
        assert ".>X" in describe(wrong, differing, seen)
        stage.close()


def turned(case: Recorded, table: str, source: str, target: str) -> Step:
    """The only step of a case, with one cell turned round."""
    (step,) = case.steps
    row = list(step.tables[table][source])
    place = step.to.index(target)
    row[place] = "." if row[place] == "X" else "X"
    return Step(step.actions, {table: {**step.tables[table], source: "".join(row)}}, step.to)
