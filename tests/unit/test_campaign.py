"""Campaign files, the plan made of them, content addresses, estimates, keeping cells: without a cluster."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from testbed.campaign import bundle, disturb, run
from testbed.campaign.bundle import Bundler, bundles, unpack
from testbed.campaign.estimate import CAMPAIGN, NOTHING, RUNS, SAME, Estimator, spoken
from testbed.campaign.execute import Executed, descendants, memory_of
from testbed.campaign.load import Campaign, load_campaign, parse_size
from testbed.campaign.plan import plan, seed_of
from testbed.campaign.store import opened
from testbed.cells import (
    CELL,
    DISTURBANCE,
    CellRecord,
    Disturbance,
    FactorRecord,
    PlanRecord,
    Slowdown,
    read_campaign,
    read_disturbance,
)
from testbed.errors import InputError, MissingCapability
from testbed.measure.frames import frame_of
from testbed.records import SAMPLES, Sample

SOURCE = Path(__file__).parents[2]
FILE = """
apiVersion: testbed/v1
kind: Campaign
metadata: {name: it}
scenario: s.yaml
always: {spec: {dns.enabled: false}}
factors:
  mode: {spec: network.proxy.mode, levels: [iptables, nftables]}
  echoes: {scenario: "steps[0].rtt.count", levels: [10, 20, 30]}
  link:
    levels:
      slow: {spec: {topology.link.bandwidth: 10Mbit}, scenario: {"steps[0].rtt.timeout": 2}}
      fast: {}
exclude:
- {mode: nftables, echoes: [20, 30]}
replicates: 3
seed: 5
limits: {time: 1m30s, memory: 512Mi}
"""


def write(folder: Path, text: str = FILE) -> Path:
    (folder / "c.yaml").write_text("apiVersion: testbed/v1\nkind: Cluster\nspec: {manifests: [pod.yaml]}\n")
    (folder / "pod.yaml").write_text(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: nginx}]}}"
    )
    (folder / "s.yaml").write_text(
        "apiVersion: testbed/v1\nkind: Scenario\ncluster: c.yaml\nsteps:\n- rtt: {count: 1}\n"
    )
    path = folder / "it.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = FILE) -> Campaign:
    return load_campaign(write(folder, text))


def record(address: str = "a" * 20, **fields: Any) -> CellRecord:
    given: dict[str, Any] = {
        "address": address,
        "campaign": "it",
        "levels": {"mode": "iptables"},
        "replicate": 1,
        "position": 1,
        "seed": 1,
        "outcome": "met",
        "code": "c",
    }
    return CellRecord(**{**given, **fields})


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((SOURCE / "scenarios/campaigns").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_campaign_of_ours_can_be_planned(path: Path) -> None:
    campaign = load_campaign(path)
    cells = plan(campaign)
    assert campaign.description
    assert len({request.address for request in bundles(campaign, cells)}) == len(cells)


def test_a_file_is_read_with_its_limits(tmp_path: Path) -> None:
    campaign = load(tmp_path)
    assert (campaign.name, campaign.time, campaign.memory) == ("it", 90.0, 512 << 20)
    assert [list(factor.levels) for factor in campaign.factors] == [
        ["iptables", "nftables"],
        ["10", "20", "30"],
        ["slow", "fast"],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("  port: {spec: a.b, levels: [1]}", "factors.port: 'port' is a column of the samples"),
        ("  x: {levels: [1]}", "factors.x: says neither in spec nor in scenario"),
        ("  x: {spec: a.b, levels: []}", "factors.x.levels: must not be empty"),
        ("  x: {spec: a.b, levels: [a/b]}", "'a/b' cannot name a folder"),
        ("  x: {spec: a.b, levels: [1, 1]}", "has 1 twice"),
        ("  x: {spec: a.b, levels: {y: {}}}", "go with a list of levels"),
        ("exclude: [{other: a}]", "is no factor: mode"),
        ("exclude: [{mode: ipvs}]", "has no level ipvs: iptables, nftables"),
        ("replicates: 0", "replicates: must be 1 to 1000"),
        ("limits: {time: soon}", "limits.time: must be a duration"),
        ("limits: {memory: 2G}", "limits.memory: must be a size such as 512Mi"),
        ("disturbance: 5", "disturbance: must be a share"),
        ("unknown: 1", "unknown"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: str, message: str) -> None:
    text = (
        "apiVersion: testbed/v1\nkind: Campaign\nscenario: s.yaml\nfactors:\n"
        f"  mode: {{spec: network.proxy.mode, levels: [iptables, nftables]}}\n{change}\n"
    )
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "it.yaml:" in str(error.value)


def test_sizes() -> None:
    assert (parse_size("1.5Gi"), parse_size("64Ki")) == (3 << 29, 65536)


# --- the plan ---------------------------------------------------------------------------------------------


def test_every_combination_but_the_excluded_once_in_each_block(tmp_path: Path) -> None:
    cells = plan(load(tmp_path))
    assert len(cells) == 3 * (2 * 3 * 2 - 4)
    assert [cell.position for cell in cells] == list(range(1, 25))
    for replicate in (1, 2, 3):
        block = cells[8 * (replicate - 1) : 8 * replicate]
        assert {cell.replicate for cell in block} == {replicate}
        assert set(Counter(tuple(cell.levels.values()) for cell in block).values()) == {1}
    assert not [cell for cell in cells if cell.levels["mode"] == "nftables" and cell.levels["echoes"] != "10"]


def test_blocks_are_in_different_orders_that_follow_from_the_seed(tmp_path: Path) -> None:
    def orders(seed: int) -> list[list[tuple[str, ...]]]:
        cells = plan(load(tmp_path, FILE.replace("seed: 5", f"seed: {seed}")))
        return [[tuple(cell.levels.values()) for cell in cells if cell.replicate == n] for n in (1, 2, 3)]

    assert orders(5) == orders(5)
    assert orders(5) != orders(6)
    assert len({tuple(order) for order in orders(5)}) == 3


def test_levels_become_overrides_and_changes(tmp_path: Path) -> None:
    cell = next(
        one
        for one in plan(load(tmp_path))
        if one.levels == {"mode": "iptables", "echoes": "20", "link": "slow"}
    )
    assert cell.overrides == (
        "dns.enabled=false",
        'network.proxy.mode="iptables"',
        'topology.link.bandwidth="10Mbit"',
    )
    assert cell.changes == {"steps[0].rtt.count": 20, "steps[0].rtt.timeout": 2}


def test_a_seed_is_a_cells_own() -> None:
    seeds = {seed_of(1, {"mode": mode}, replicate) for mode in "abc" for replicate in range(10)}
    assert len(seeds) == 30
    assert seed_of(1, {"a": "1", "b": "2"}, 1) == seed_of(1, {"b": "2", "a": "1"}, 1)
    assert seed_of(1, {"a": "1"}, 1) != seed_of(2, {"a": "1"}, 1)


# --- content addresses ------------------------------------------------------------------------------------


def addresses(folder: Path) -> list[str]:
    campaign = load_campaign(folder / "it.yaml")
    return [request.address for request in bundles(campaign, plan(campaign))]


def test_the_same_content_has_the_same_address_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    first = addresses(tmp_path / "one")
    assert first == addresses(tmp_path / "two")
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("file", ["c.yaml", "pod.yaml", "s.yaml"])
def test_every_file_that_a_cell_depends_on_is_in_its_address(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    before = addresses(tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text() + "\n# changed\n")
    assert not set(before) & set(addresses(tmp_path))


def test_the_code_is_in_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    before = addresses(tmp_path)
    monkeypatch.setattr(bundle, "code_version", lambda: "other")
    assert not set(before) & set(addresses(tmp_path))


def test_more_levels_and_replicates_leave_other_cells_their_addresses(tmp_path: Path) -> None:
    write(tmp_path)
    before = set(addresses(tmp_path))
    write(
        tmp_path, FILE.replace("[10, 20, 30]", "[10, 20, 30, 40]").replace("replicates: 3", "replicates: 4")
    )
    assert before < set(addresses(tmp_path))


def test_files_are_taken_along_and_none_lands_outside(tmp_path: Path) -> None:
    campaign = load(tmp_path)
    request = Bundler(campaign).request(plan(campaign)[0])
    assert sorted(request.files) == ["c.yaml", "pod.yaml", "s.yaml"]
    unpack(request.files, tmp_path / "there")
    assert (tmp_path / "there" / request.scenario).read_bytes() == request.files["s.yaml"]
    for name in ("../out", "/tmp/out"):
        with pytest.raises(InputError, match="leads out"):
            unpack({name: b""}, tmp_path / "there")


# --- estimates --------------------------------------------------------------------------------------------


def test_estimates_say_what_they_are_taken_from() -> None:
    estimator = Estimator([], [])
    assert estimator.of({"mode": "a"}) == estimator.of({}) != None  # noqa: E711 - equal, and something
    assert estimator.of({"mode": "a"}).source == NOTHING
    assert Estimator([], [3.0, 5.0, 4.0]).of({}).seconds == 4.0
    assert Estimator([], [3.0]).of({}).source == RUNS
    estimator.add(record(levels={"mode": "a"}, seconds=10, memory=100))
    estimator.add(record(levels={"mode": "a"}, seconds=99, outcome="out of time"))
    same, other = estimator.of({"mode": "a"}), estimator.of({"mode": "b"})
    assert (same.seconds, same.memory, same.source) == (10, 100, SAME)
    assert other.source == CAMPAIGN
    assert estimator.left([{"mode": "a"}, {"mode": "b"}, {"mode": "b"}], 2) == 15
    assert estimator.left([{"mode": "a"}], 4) == 10, "a cell is not shared"
    assert Estimator([]).left([{}], 1) is None


def test_times_are_spoken() -> None:
    assert [spoken(s) for s in (None, 4, 40, 100, 7800)] == [
        "unknown",
        "4.0 s",
        "40 s",
        "2 min",
        "2 h 10 min",
    ]


# --- disturbance ------------------------------------------------------------------------------------------


def samples(median: float, count: int = 50) -> pd.DataFrame:
    base = {"kind": "rtt", "step": "trips", "protocol": "icmp", "path": "outside"}
    ends = dict.fromkeys(
        ("source", "source_namespace", "source_node", "destination", "destination_namespace"), ""
    )
    return frame_of(
        [
            Sample(**base, **ends, destination_node="", ip="", seconds=median * (1 + (n % 7 - 3) / 100))
            for n in range(count)
        ]
    )


def disturbance(before: float, together: float, after: float, count: int = 50) -> Disturbance:
    def run(at_once: int) -> list[pd.DataFrame]:
        return [samples(together if at_once > 1 else alone.pop(0), count)] * at_once

    alone = [before, after]
    return disturb.measure(run, 2, 0.1, "m", "c")


def of_figures(*figures: tuple[float, ...], apart: float = 1.01) -> Disturbance:
    """What is found where each figure of each cell at once is so many times as slow as alone."""

    def frame(factors: list[float]) -> pd.DataFrame:
        parts = [samples(1e-4 * factor) for factor in factors]
        return pd.concat([part.assign(step=f"step {number}") for number, part in enumerate(parts, 1)])

    def run(at_once: int) -> list[pd.DataFrame]:
        if at_once == 1:
            return [frame([alone.pop(0)] * len(figures))]
        return [frame([each[cell] for each in figures]) for cell in range(at_once)]

    alone = [1.0, apart]
    return disturb.measure(run, len(figures[0]), 0.1, "m", "c")


def test_cells_that_are_slower_together_disturb_each_other() -> None:
    found = disturbance(1e-4, 1.5e-4, 1.02e-4)
    assert found.disturbed
    assert found.slower == pytest.approx(1.485, rel=0.01)
    assert "changes by +48.5% or more (1 figures" in found.told()


def test_every_figure_of_every_cell_is_kept_and_read_back(tmp_path: Path) -> None:
    found = of_figures((1.0, 1.2), (2.0, 3.0), apart=1.0)
    assert [one.figure for one in found.figures] == [f"step {n}, icmp, outside" for n in (1, 2)]
    assert [one.together for one in found.figures] == [
        (pytest.approx(1.0), pytest.approx(1.2)),
        (pytest.approx(2.0), pytest.approx(3.0)),
    ]
    (tmp_path / DISTURBANCE).write_bytes(msgspec.json.encode(found))
    assert read_disturbance(tmp_path) == found


def test_one_bad_figure_of_many_does_not_decide_and_is_told() -> None:
    lone = of_figures((9.0, 9.0), *[(1.0, 1.02)] * 7)
    assert not lone.disturbed
    assert [lone.slow(one) for one in lone.figures] == [True] + [False] * 7
    assert lone.told().endswith("slower than allowed in every cell: step 1, icmp, outside")
    assert "to +79" in lone.told(), "the worst is told, too"
    assert of_figures(*[(1.3, 1.3)] * 3, *[(1.0, 1.0)] * 5).disturbed, "more than a quarter"


def test_what_is_not_answered_any_more_is_disturbed() -> None:
    def run(at_once: int) -> list[pd.DataFrame]:
        return [samples(1e-4, 50 if at_once == 1 else 5)] * at_once

    found = disturb.measure(run, 2, 0.1, "m", "c")
    assert found.disturbed
    assert "a quarter of the figures is not answered any more (1 figures, from no answer to" in found.told()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Disturbance) == found


def test_a_figure_that_one_cell_alone_is_slower_in_is_not_slower_in_every_cell() -> None:
    found = of_figures((1.0, 5.0))
    assert not found.slow(found.figures[0])


def test_warm_ups_are_no_part_of_what_is_compared_and_throughput_is() -> None:
    frame = samples(1e-4)
    rates = frame.assign(step="rates", seconds=float("nan"), bits_per_second=1e9)
    found = disturb.medians(pd.concat([frame, samples(9.0, 500).assign(warm_up=True), rates]))
    assert [round(value, 6) for value in found.values()] == [1e-4, 1e-3]


def test_what_runs_alone_differ_by_is_no_disturbance() -> None:
    assert not disturbance(1e-4, 1.05e-4, 1e-4).disturbed
    assert not disturbance(1e-4, 1.5e-4, 2e-4).disturbed


def test_too_few_samples_tell_nothing() -> None:
    found = disturbance(1e-4, 9e-4, 1e-4, count=10)
    assert not found.known
    assert "not known" in found.told()


# --- room for cells at once -------------------------------------------------------------------------------


def undisturbed(_: Any, workers: int, tolerance: float, machine: str, code: str) -> Disturbance:
    figure = Slowdown(figure="trips", together=(1.0,) * workers, apart=1.0)
    return Disturbance(machine=machine, code=code, workers=workers, tolerance=tolerance, figures=(figure,))


def run_with(folder: Path, monkeypatch: pytest.MonkeyPatch, left: int, available: int, workers: int) -> int:
    """Run a campaign of eight cells of 512 MiB at most, of which so many are left; how many ran."""
    folder.mkdir()
    path = write(folder, FILE.replace("replicates: 3", "replicates: 1"))
    campaign = load_campaign(path)
    requests = bundles(campaign, plan(campaign))

    def run_one(request: Any, work: Path, **_: Any) -> Executed:
        return executed(
            work / "out", record(request.address, levels=request.levels, position=request.position)
        )

    out = folder / "results"
    with opened(out / "it") as kept:
        for request in requests[left:]:
            kept.keep(run_one(request, kept.work(request.address)))
        if left < len(requests):
            kept.write_plan(
                msgspec.structs.replace(planned(), code=bundle.code_version(), notes=("so it was",))
            )
    monkeypatch.setattr(run, "execute", run_one)
    monkeypatch.setattr(run.disturb, "measure", undisturbed)
    monkeypatch.setattr(run, "_available_memory", lambda: available)
    return run.run_campaign(path, out=out, workers=workers, resume=True).ran


def test_a_resumed_campaign_asks_for_no_more_memory_than_what_is_left_can_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_with(tmp_path / "none", monkeypatch, 0, 0, workers=4) == 0
    assert read_campaign(tmp_path / "none/results/it").plan.notes == ("so it was",)
    assert run_with(tmp_path / "one", monkeypatch, 1, 600 << 20, workers=4) == 1
    assert run_with(tmp_path / "two", monkeypatch, 2, 1100 << 20, workers=4) == 2
    with pytest.raises(MissingCapability, match="2 cells of up to 512 MiB do not fit into 600 MiB"):
        run_with(tmp_path / "much", monkeypatch, 2, 600 << 20, workers=4)


# --- the folder -------------------------------------------------------------------------------------------


def executed(folder: Path, one: CellRecord) -> Executed:
    folder.mkdir(parents=True)
    samples(1e-4).to_parquet(folder / SAMPLES, index=False)
    (folder / CELL).write_bytes(msgspec.json.encode(one))
    return Executed(one, folder)


def planned(*addresses: str) -> PlanRecord:
    return PlanRecord(
        campaign="it",
        description="",
        scenario="s",
        factors=(FactorRecord("mode", ("iptables", "nftables")),),
        replicates=2,
        seed=0,
        code="c",
        cells=addresses,
    )


def test_cells_are_kept_once_and_published_as_one_data_set(tmp_path: Path) -> None:
    import duckdb

    one, two, failed = (letter * 20 for letter in "abc")
    with opened(tmp_path / "it") as folder:
        folder.keep(executed(folder.work(one), record(one)))
        folder.keep(executed(folder.work(two), record(two, levels={"mode": "nftables"}, replicate=2)))
        folder.keep(executed(folder.work(failed), record(failed, outcome="out of time", exit_code=4)))
        assert folder.done() == {one, two}
        plan_record = planned(one, two, failed)
        folder.write_plan(plan_record)
        assert folder.publish(plan_record) == 2
        first = (tmp_path / "it/samples").stat().st_ino
        assert folder.publish(plan_record) == 2, "and again, in the place of the first"
        assert (tmp_path / "it/samples").stat().st_ino != first
    frame = pd.read_parquet(tmp_path / "it/samples")
    assert Counter(zip(frame["mode"], frame["replicate"], strict=True)) == {
        ("iptables", 1): 50,
        ("nftables", 2): 50,
    }
    rows = duckdb.execute(
        "select mode, replicate, count(*), median(seconds) from read_parquet(?, hive_partitioning = true) "
        "group by all order by all",
        [f"{tmp_path}/it/samples/**/*.parquet"],
    ).fetchall()
    assert [row[:3] for row in rows] == [("iptables", 1, 50), ("nftables", 2, 50)]
    cells = pd.read_parquet(tmp_path / "it/cells.parquet")
    assert list(cells["outcome"]) == ["met", "met", "out of time"]
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == [
        "campaign.json",
        "cells",
        "cells.parquet",
        "failed",
        "samples",
    ]
    assert [cell.done for cell in read_campaign(tmp_path / "it").cells] == [True, True, False]


def test_a_cell_that_fails_and_then_succeeds_is_there_once(tmp_path: Path) -> None:
    address = "a" * 20
    with opened(tmp_path / "it") as folder:
        folder.keep(executed(folder.work(address), record(address, outcome="failed")))
        folder.keep(executed(folder.work(address), record(address)))
        assert [one.outcome for one in folder.records()] == ["met"]


def test_a_folder_is_one_campaigns_at_a_time_and_leftovers_go(tmp_path: Path) -> None:
    left = tmp_path / "it/.work/x/out"
    left.mkdir(parents=True)
    with (
        opened(tmp_path / "it"),
        pytest.raises(InputError, match="another campaign"),
        opened(tmp_path / "it"),
    ):
        pass
    assert not left.exists()


def test_the_memory_of_a_family_of_processes() -> None:
    family = descendants(os.getpid())
    assert os.getpid() in family
    assert 1 << 20 < memory_of(family) < 1 << 34
