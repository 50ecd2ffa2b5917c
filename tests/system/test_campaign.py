"""Campaigns on real clusters: killed, resumed, within limits, beside each other, and through dask."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from campaigning import SOURCE, Bench, Dask, kill_workers
from hoststate import host_state, mark

from testbed.cells import read_campaign
from testbed.errors import InputError

pytestmark = pytest.mark.nightly

mark()


def campaign(bench: Bench, *more: str, out: str = "results") -> subprocess.CompletedProcess[str]:
    file, results = str(bench.place / "campaign.yaml"), str(bench.place / out)
    return subprocess.run(
        [sys.executable, "-m", "testbed.cli.main", "campaign", file, "--out", results, *more],
        cwd=bench.place,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def rewritten(bench: Bench, **lines: str) -> None:
    """Change lines of the campaign's file by their keys."""
    path = bench.place / "campaign.yaml"
    text = [line for line in path.read_text().splitlines() if line.partition(":")[0] not in lines]
    path.write_text("\n".join([*text, *(f"{key}: {value}" for key, value in lines.items())]) + "\n")


def test_killed_and_resumed_it_has_the_cells_of_one_undisturbed(tmp_path: Path) -> None:
    """The small form of ``python -m benchmarks.campaign``."""
    bench = Bench.make(tmp_path, replicates=1)
    took = bench.finish("undisturbed")
    chance = random.Random(3)  # noqa: S311 - moments, not secrets
    for _ in range(3):
        bench.kill_once("killed", chance.uniform(0.1, 0.6) * took)
    assert bench.done("killed") < 6 or bench.wrong == []
    bench.finish("killed", "--resume")
    bench.compare("undisturbed", "killed")
    assert bench.wrong == []
    plan = read_campaign(tmp_path / "killed/killed")
    assert [cell.outcome for cell in plan.cells] == ["met"] * 6
    again = campaign(bench, out="killed")
    assert again.returncode == InputError.exit_code, again.stderr
    assert "--resume goes on" in again.stderr
    assert "6 done before" in campaign(bench, "--resume", out="killed").stderr
    ahead = json.loads(campaign(bench, "--dry-run", "-o", "json", out="killed").stdout)
    assert (ahead["cells"], ahead["done"]) == ([], 6)


def test_through_dask_with_workers_killed(tmp_path: Path) -> None:
    bench = Bench.make(tmp_path, replicates=1)
    bench.finish("undisturbed")
    before = host_state()
    with Dask(tmp_path) as dask:
        bench.options = ["--scheduler", dask.address]
        killed = kill_workers(bench, dask, "killed", 1, random.Random(1))  # noqa: S311
        assert killed == 1
    bench.check_host(before)
    bench.compare("undisturbed", "killed")
    assert bench.wrong == []
    cells = read_campaign(tmp_path / "killed/killed").cells
    assert {cell.beside for cell in cells} == {2}, "two workers share this machine"
    assert all("not known whether they disturbed it" in "; ".join(cell.marks) for cell in cells)


def test_a_scheduler_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    bench = Bench.make(tmp_path, replicates=1)
    ended = campaign(bench, "--scheduler", "tcp://127.0.0.1:9")
    assert ended.returncode == InputError.exit_code
    assert "no dask scheduler answers" in ended.stderr


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [("{time: 700ms, memory: 1Gi}", "out of time"), ("{time: 2m, memory: 8Mi}", "out of memory")],
)
def test_a_cell_beyond_its_limits_is_ended_and_told_of(tmp_path: Path, limits: str, outcome: str) -> None:
    bench = Bench.make(tmp_path, replicates=1)
    rewritten(bench, limits=limits, exclude="[{mode: nftables}, {echoes: [30, 40]}]")
    before = host_state()
    ended = campaign(bench, "-o", "json")
    bench.check_host(before)
    assert bench.wrong == []
    assert ended.returncode == 4, ended.stderr
    (cell,) = json.loads(ended.stdout)["cells"]
    assert cell["outcome"] == outcome
    assert outcome in ended.stderr
    # It is tried again, and then there once.
    rewritten(bench, limits="{time: 2m, memory: 1Gi}")
    assert campaign(bench, "--resume").returncode == 0
    assert [one.outcome for one in read_campaign(tmp_path / "results/killed").cells] == ["met"]
    assert not list((tmp_path / "results/killed/failed").iterdir())


def test_cells_at_once_are_checked_and_marked_or_refused(tmp_path: Path) -> None:
    bench = Bench.make(tmp_path, replicates=1)
    rewritten(bench, exclude="[{echoes: [30, 40]}]", disturbance="0%")
    ended = campaign(bench, "--workers", "2", "--disturbed", "mark")
    assert ended.returncode == 0, ended.stderr
    assert "with 2 cells at once" in ended.stderr
    found: dict[str, Any] = json.loads((tmp_path / "results/killed/disturbance.json").read_text())
    disturbed = found["slower"] > 1 and found["slower"] > found["apart"]
    cells = pd.read_parquet(tmp_path / "results/killed/cells.parquet")
    assert set(cells["beside"]) == {2}
    assert all(("disturbed by cells beside it" in marks) == disturbed for marks in cells["marks"])
    # What was found is kept: a second campaign with it is refused at once, where it was disturbed.
    rewritten(bench, seed="2")
    again = campaign(bench, "--workers", "2", "--resume")
    assert again.returncode == (3 if disturbed else 0), again.stderr
    assert "measuring whether" not in again.stderr
