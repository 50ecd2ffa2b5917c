"""Effect sizes: intervals that cover, verdicts that are not drawn from noise; the pages made of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.cells import (
    CELL,
    DISTURBANCE,
    DONE,
    PLAN,
    CellRecord,
    Disturbance,
    FactorRecord,
    PlanRecord,
    Slowdown,
    read_campaign,
)
from testbed.errors import InputError
from testbed.measure.frames import frame_of, reachability_table, summary
from testbed.records import SAMPLES, Expectation, RunRecord, Sample, event, write_run
from testbed.report.campaign import axes, factor_effects, results
from testbed.report.effects import (
    BETTER,
    NONE,
    WORSE,
    Measured,
    cliffs_delta,
    differences,
    effect,
    newcombe,
)
from testbed.report.grid import places
from testbed.report.html import write_report
from testbed.report.markdown import write_markdown
from testbed.report.sides import effects, explained, read_sides

RANDOM = np.random.default_rng(1)


def drawn(median: float, units: int = 1, size: int = 300, between: float = 0.0) -> Measured:
    """Log-normal times around a median; between: how much units differ from one another."""
    times = [
        median * np.exp(RANDOM.normal(0, between)) * np.exp(RANDOM.normal(0, 0.3, size)) for _ in range(units)
    ]
    return Measured(times, units * size, units * size)


# --- statistics -------------------------------------------------------------------------------------------


def test_a_real_difference_is_shown_with_its_direction() -> None:
    slower, faster = effect(drawn(1e-4), drawn(1.3e-4)), effect(drawn(1e-4), drawn(0.7e-4))
    assert (slower.verdict, faster.verdict) == (WORSE, BETTER)
    assert slower.low < 1.3 < slower.high
    assert not slower.units


def test_without_a_difference_one_is_rarely_shown() -> None:
    shown = sum(effect(drawn(1e-4), drawn(1e-4)).verdict != NONE for _ in range(50))
    assert shown <= 3, "the interval errs in 5 % of cases, and Cliff's delta has to agree"


def test_intervals_hold_the_true_ratio_about_as_often_as_they_say() -> None:
    found = [effect(drawn(1e-4, size=200), drawn(1.2e-4, size=200)) for _ in range(60)]
    held = sum(one.low <= 1.2 <= one.high for one in found)
    assert held >= 51


def test_intervals_of_samples_that_are_alike_hold_the_ratio_mostly() -> None:
    """Of 100 values that are as alike as 0.9 there are ten blocks; plain percentiles hold it in 3 of 4."""
    random = np.random.default_rng(1)

    def alike() -> Measured:
        noise = random.normal(size=100)
        for place in range(1, 100):
            noise[place] = 0.9 * noise[place - 1] + math.sqrt(1 - 0.9**2) * noise[place]
        return Measured([1e-4 * np.exp(0.3 * noise)], 100, 100)

    held = sum(one.low <= 1 <= one.high for one in (effect(alike(), alike()) for _ in range(200)))
    assert held >= 160


def test_a_verdict_on_few_blocks_says_so() -> None:
    few, many = effect(drawn(1e-4, size=15), drawn(2e-4, size=15)), effect(drawn(1e-4), drawn(2e-4))
    assert (few.verdict, few.why) == (WORSE, "slower, on 15 blocks of samples only")
    assert (many.verdict, many.why) == (WORSE, "slower")


def test_units_are_resampled_where_there_are_enough_and_what_they_differ_by_counts() -> None:
    found = [effect(drawn(1e-4, 4, 50, between=0.2), drawn(1e-4, 4, 50, between=0.2)) for _ in range(60)]
    assert all(one.units for one in found)
    assert sum(one.low <= 1 <= one.high for one in found) >= 51
    pooled = [
        effect(Measured([np.concatenate(list(one.before.times))], 1, 1), Measured([one.after.pooled], 1, 1))
        for one in found
    ]
    wrong = sum(not one.low <= 1 <= one.high for one in pooled)
    assert wrong > 12, "samples alone would see differences that are only those of runs"


def test_a_small_shift_of_many_samples_is_no_difference_that_matters() -> None:
    found = effect(drawn(1e-4, size=20_000), drawn(1.03e-4, size=20_000))
    assert found.low > 1
    assert found.verdict == NONE
    assert "overlap" in found.why


def test_what_the_machine_changed_by_is_no_difference() -> None:
    before, after = drawn(2e-5, size=2000), drawn(2.6e-5, size=2000)
    assert effect(before, after).verdict == WORSE
    told = effect(before, after, floor=explained(5e-6, 7e-6, before.median))
    assert (told.verdict, told.why) == (NONE, "the machine's noise floor changed as much")


def test_failures_decide_before_times_do() -> None:
    before, after = drawn(1e-4), drawn(0.5e-4)
    lossy = Measured(after.times, 250, 300)
    assert effect(before, lossy).verdict == WORSE
    assert effect(lossy, before).verdict == WORSE, "fewer fail, but what is slower is slower"
    assert effect(Measured([], 10, 300), Measured([], 290, 300)).verdict == BETTER
    assert effect(Measured([], 300, 300), Measured([], 300, 300)).why == "too few times"


@given(
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=30),
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=30),
)
def test_cliffs_delta_is_that_of_all_pairs(first: list[float], second: list[float]) -> None:
    pairs = [(b > a) - (b < a) for a in first for b in second]
    found = cliffs_delta(np.array(first), np.array(second))
    assert found == pytest.approx(sum(pairs) / len(pairs))
    assert cliffs_delta(np.array(second), np.array(first)) == pytest.approx(-found)


def test_newcombe_as_published() -> None:
    # Newcombe (1998), table II, (a) 56/70 - 48/80, method 10
    change, low, high = newcombe(48, 80, 56, 70)
    assert (round(change, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)


def test_differences_of_environments() -> None:
    assert differences({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"b": 2, "c": [1, 2]}, "e": 3}) == [
        ("a.b", "1", "2"),
        ("d", "1", "–"),  # noqa: RUF001
        ("e", "–", "3"),  # noqa: RUF001
    ]


# --- folders and pages ------------------------------------------------------------------------------------


def make_samples(median: float, count: int = 60) -> list[Sample]:
    ends = ("source", "source_namespace", "source_node", "destination", "destination_node", "ip")
    base: dict[str, Any] = dict.fromkeys(ends, "")
    rows = []
    for path, middle in (("cross-node", median), ("loopback", 5e-6)):
        for sequence in range(count):
            seconds = middle * float(np.exp(RANDOM.normal(0, 0.2)))
            rows.append(
                Sample(
                    kind="rtt",
                    step="trips <&>",
                    protocol="icmp",
                    path=path,
                    seconds=seconds,
                    sequence=sequence,
                    destination_namespace="",
                    **base,
                )
            )
    return rows


def make_run(folder: Path, median: float, kernel: str = "6.1", met: bool = True) -> Path:
    folder.mkdir(parents=True)
    frame = frame_of(make_samples(median))
    environment = {"noise_floor": {"median": 5e-6, "p95": 6e-6}, "kernel": {"release": kernel}, "error": None}
    expected = [Expectation("trips", "fast", "so", met)]
    record = RunRecord("s", [event("started"), event("finished")], expected, environment)
    tables = {SAMPLES: frame, "reachability.csv": reachability_table(frame), "summary.csv": summary(frame)}
    write_run(folder, record, tables)
    return folder


def well_formed(page: str) -> None:
    assert not re.search(r"(?:src|href)=|@import|url\(|<script", page)
    body = page.partition("<body>")[2].rpartition("</body>")[0]
    ElementTree.fromstring(re.sub(r"&\w+;", "", body).replace("<br>", "<br/>"))  # noqa: S314  our own text


def test_two_runs_are_compared_figure_by_figure(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", 1e-4)
    two = make_run(tmp_path / "two", 2e-4, kernel="6.2", met=False)
    write_report([one, two], tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    well_formed(page)
    assert "two against one: of 1 figures 1 worse." in page
    assert "kernel.release" in page
    assert "Expectations that were not met alike" in page
    write_markdown([one, two], tmp_path / "c.md")
    text = (tmp_path / "c.md").read_text()
    assert "| worse | trips \\<&> |" in text
    assert "| kernel.release | 6.1 | 6.2 |" in text


def test_folders_of_runs_are_sides_of_several_units(tmp_path: Path) -> None:
    for side, median in (("old", 1e-4), ("new", 0.6e-4), ("newer", 1e-4)):
        for number in range(3):
            make_run(tmp_path / side / "s" / str(number), median)
    folders = [tmp_path / side / "s" for side in ("old", "new", "newer")]
    old, new, newer = read_sides(folders)
    assert [side.name for side in (old, new, newer)] == ["old/s", "new/s", "newer/s"]
    better = next(one for figure, one in effects(old, new).items() if not figure.noise)
    same = next(one for figure, one in effects(old, newer).items() if not figure.noise)
    assert better.units
    assert (better.verdict, same.verdict) == (BETTER, NONE)
    write_report(folders, tmp_path / "c.html")
    well_formed((tmp_path / "c.html").read_text())


def rewrite(folder: Path, samples: list[Sample]) -> Path:
    frame_of(samples).to_parquet(folder / SAMPLES, index=False)
    return folder


def of_kind(kind: str, path: str, seconds: float, **fields: Any) -> list[Sample]:
    trips = [one for one in make_samples(seconds) if one.path != "loopback"]
    return [one.replaced({"kind": kind, "path": path, **fields}) for one in trips]


def test_warm_ups_and_single_hops_are_not_compared_and_the_floor_is_a_control(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", 1e-4), make_run(tmp_path / "two", 1e-4)
    for folder, factor in ((one, 1.0), (two, 3.0)):
        samples = [
            *of_kind("probe", "cross-node", 1e-4),
            *of_kind("probe", "cross-node", 1e-3 * factor, warm_up=True),
            *of_kind("floor", "bare veth", 5e-6 * factor),
            *of_kind("path", "there", 1e-6 * factor, order=3),
        ]
        rewrite(folder, samples)
    found = effects(*read_sides([one, two]))
    assert [(figure.path, figure.noise) for figure in found] == [("cross-node", False), ("bare veth", True)]
    assert next(iter(found.values())).before.probes == 60


def test_throughput_is_compared_by_the_time_of_a_mbit(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one", 1e-4), make_run(tmp_path / "two", 1e-4)
    for folder, rate in ((one, 4e9), (two, 1e9)):
        rows = of_kind("probe", "cross-node", 1.0, protocol="throughput")
        rewrite(
            folder,
            [row.replaced({"seconds": None, "bits_per_second": rate * (row.seconds or 1)}) for row in rows],
        )
    ((figure, found),) = effects(*read_sides([one, two])).items()
    assert figure.way.endswith("time per Mbit")
    assert (found.verdict, round(found.ratio)) == (WORSE, 4)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        read_sides([tmp_path, tmp_path])


def make_campaign(folder: Path, replicates: int = 3, slower: float = 1.0) -> Path:
    cells = []
    for replicate in range(1, replicates + 1):
        for mode, factor in (("iptables", 2.0), ("nftables", 1.0)):
            for services in ("10", "100"):
                address = f"{mode}{services}{replicate}"
                median = slower * (1e-4 * factor if services == "100" else 1e-4)
                path = make_run(folder / DONE / address, median)
                cell = CellRecord(
                    address=address,
                    campaign="it",
                    levels={"mode": mode, "services": services},
                    replicate=replicate,
                    position=len(cells) + 1,
                    seed=1,
                    outcome="met",
                    code="c",
                    seconds=2.0,
                    marks=("CPU 99% busy",) if replicate == 1 else (),
                )
                (path / CELL).write_bytes(msgspec.json.encode(cell))
                cells.append(address)
    plan = PlanRecord(
        campaign="it",
        description="a & b",
        scenario="s",
        factors=(FactorRecord("mode", ("iptables", "nftables")), FactorRecord("services", ("10", "100"))),
        replicates=replicates,
        seed=1,
        code="c",
        cells=(*cells, "not-yet-run"),
    )
    (folder / PLAN).write_bytes(msgspec.json.encode(plan))
    return folder


def test_a_campaign_is_told_by_factor(tmp_path: Path) -> None:
    folder = make_campaign(tmp_path / "it")
    write_report([folder], folder / "report.html")
    page = (folder / "report.html").read_text()
    well_formed(page)
    assert "12 of 13" in page
    assert "1 cells have not run yet." in page
    assert page.count("marked as doubtful") >= 1
    write_markdown([folder], tmp_path / "it.md")
    assert "| nftables | 100 | 3 |" in (tmp_path / "it.md").read_text()


def silence(folder: Path, mode: str, services: str) -> None:
    """Of all replicates with these levels nothing was answered."""
    for cell in (folder / DONE).glob(f"{mode}{services}[0-9]"):
        frame = pd.read_parquet(cell / SAMPLES)
        frame.assign(verdict="timeout", seconds=float("nan")).to_parquet(cell / SAMPLES, index=False)


def test_cells_without_any_success_stand_in_the_report_with_none(tmp_path: Path) -> None:
    folder = make_campaign(tmp_path / "it")
    silence(folder, "nftables", "100")
    run = read_campaign(folder)
    figure = next(one for one in results(run) if not one.noise)
    assert len(figure.medians) == 12
    silent = figure.medians[figure.medians["median"].isna()]
    assert set(zip(silent["mode"], silent["services"], silent["ok"], strict=True)) == {("nftables", "100", 0)}
    write_report([folder], folder / "report.html")
    page = (folder / "report.html").read_text()
    well_formed(page)
    assert "3 cells, 3 without any answer, 180 of 180 failed" in page
    assert "median –, 0 of 60 ok" in page  # noqa: RUF001 - the sign of tables for nothing
    write_markdown([folder], tmp_path / "it.md")
    assert "| nftables | 100 | 3 | 0 of 180 |" in (tmp_path / "it.md").read_text()
    effects_found = {(factor, level): one for factor, _, level, one in factor_effects(run, figure)}
    assert effects_found["mode", "nftables"].verdict == WORSE
    assert effects_found["mode", "nftables"].why == "-50.0% succeed"


def test_where_no_cell_was_answered_at_all_the_report_says_so(tmp_path: Path) -> None:
    folder = make_campaign(tmp_path / "it", replicates=1)
    for mode in ("iptables", "nftables"):
        for services in ("10", "100"):
            silence(folder, mode, services)
    write_report([folder], folder / "report.html")
    page = (folder / "report.html").read_text()
    well_formed(page)
    assert page.count("no answer, 60 of 60 failed") >= 4


def test_cells_at_once_are_shown_figure_by_figure(tmp_path: Path) -> None:
    folder = make_campaign(tmp_path / "it")
    figures = (
        Slowdown(figure="trips, icmp, outside", together=(1.5, 1.25), apart=1.01),
        Slowdown(figure="load, udp", together=(1.0, 0.9), apart=1.02),
    )
    found = Disturbance(
        machine="m", code="c", workers=2, tolerance=0.1, figures=figures, slower=1.25, apart=1.02
    )
    (folder / DISTURBANCE).write_bytes(msgspec.json.encode(found))
    write_report([folder], folder / "report.html")
    page = (folder / "report.html").read_text()
    well_formed(page)
    section = page.split("<h2>2 cells at once</h2>")[1].split("<h2>")[0]
    assert "1.5 \N{MULTIPLICATION SIGN}1.25" in section
    assert section.count('<span class="pill bad">slower</span>') == 1


def test_the_effect_of_a_factor_is_taken_over_the_others(tmp_path: Path) -> None:
    run = read_campaign(make_campaign(tmp_path / "it", replicates=4))
    figure = next(one for one in results(run) if not one.noise)
    found = {(factor, level): one for factor, _, level, one in factor_effects(run, figure)}
    # iptables is twice as slow at one of two levels: half the logarithm of 2
    assert found["mode", "nftables"].ratio == pytest.approx(1 / math.sqrt(2), rel=0.1)
    assert found["services", "100"].ratio == pytest.approx(math.sqrt(2), rel=0.1)


def test_two_campaigns_are_compared_cell_by_cell(tmp_path: Path) -> None:
    one, two = make_campaign(tmp_path / "a/it"), make_campaign(tmp_path / "b/it", slower=1.5)
    first, second = read_sides([one, two])
    found = {figure: each for figure, each in effects(first, second).items() if not figure.noise}
    assert len(found) == 4
    assert {each.verdict for each in found.values()} == {WORSE}
    assert json.dumps([figure.title for figure in found]).count("services=100") == 2


def test_numbers_go_along_the_axis_to_scale() -> None:
    numbers = FactorRecord("services", ("10", "100", "1000"))
    names = FactorRecord("mode", ("a", "b", "c", "d"))
    along, coloured, others = axes([names, numbers])
    assert (along, coloured, others) == (numbers, names, [])
    assert places(numbers.levels, [10, 100, 1000], 0, 100) == pytest.approx([0, 50, 100])
    assert places(numbers.levels, [1, 2, 3], 0, 100) == pytest.approx([0, 50, 100])
    assert places(names.levels, None, 0, 100) == pytest.approx([12.5, 37.5, 62.5, 87.5])
