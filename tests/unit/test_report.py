"""Reports: drawn from a folder alone, complete, self-contained."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from testbed.measure.frames import frame_of, reachability_table, summary
from testbed.records import SAMPLES, Expectation, RunRecord, Sample, event, write_run
from testbed.report.colours import SIGNS, VERDICTS
from testbed.report.heatmap import heatmap
from testbed.report.html import write_report
from testbed.report.markdown import write_markdown
from testbed.report.plots import Line, ecdf, raincloud
from testbed.report.svg import LogScale, duration, tick_label

PODS = [("web-0", "node-1"), ("web-1", "node-2"), ("<b>db</b>", "node-1")]


def make_samples(failing: bool = False) -> list[Sample]:
    samples = []
    for source, source_node in PODS:
        for target, target_node in PODS:
            if source == target:
                continue
            failed = failing and target == "web-1"
            samples.append(
                Sample(
                    kind="reach",
                    step="over TCP",
                    source=source,
                    source_namespace="default",
                    source_node=source_node,
                    destination=target,
                    destination_namespace="default",
                    destination_node=target_node,
                    ip="10.244.1.2",
                    protocol="tcp",
                    port=80,
                    path="same-node" if source_node == target_node else "cross-node",
                    verdict="timeout" if failed else "ok",
                    reason="no answer" if failed else "",
                    seconds=None if failed else 3e-5,
                )
            )
    for number, path in enumerate(("loopback", "same-node", "cross-node"), 1):
        samples += [
            Sample(
                kind="rtt",
                step="round trips",
                source="web-0",
                source_namespace="default",
                source_node="node-1",
                destination="web-1",
                destination_namespace="default",
                destination_node="node-2",
                ip="10.244.1.2",
                protocol="icmp",
                path=path,
                sequence=echo,
                seconds=number * 1e-5 * (1 + echo / 50),
                seconds_kernel=number * 0.5e-5,
            )
            for echo in range(1, 21)
        ]
    return samples


def make_run(folder: Path, failing: bool = False) -> Path:
    folder.mkdir()
    frame = frame_of(make_samples(failing))
    record = RunRecord(
        "pod-network",
        [event("started"), event("finished")],
        [Expectation("over TCP", "every flow ok", "what happened", not failing)],
        {"noise_floor": {"median": 1e-5, "p95": 2e-5}, "spec": {"nodes": 3}, "description": "a & b"},
    )
    write_run(
        folder,
        record,
        {SAMPLES: frame, "reachability.csv": reachability_table(frame), "summary.csv": summary(frame)},
    )
    return folder


def test_page_is_well_formed_and_asks_for_nothing(tmp_path: Path) -> None:
    write_report([make_run(tmp_path / "r", failing=True)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(?:src|href)=|@import|url\(|<script", page)
    body = page.partition("<body>")[2].rpartition("</body>")[0]
    ElementTree.fromstring(re.sub(r"&\w+;", "", body).replace("<br>", "<br/>"))  # noqa: S314  our own text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    write_report([make_run(tmp_path / "r", failing=True)], tmp_path / "report.html")
    assert "<b>db" not in (tmp_path / "report.html").read_text()


def test_page_says_what_failed_and_why(tmp_path: Path) -> None:
    write_report([make_run(tmp_path / "r", failing=True)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "0 of 1" in page
    assert "not met" in page
    assert "no answer" in page


def test_variants_are_told_apart_way_by_way(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    samples = [one.replaced({"variant": name}) for name in ("bridge", "flannel") for one in make_samples()]
    frame_of(samples).to_parquet(folder / SAMPLES, index=False)
    write_report([folder], folder / "report.html")
    page = (folder / "report.html").read_text()
    section = page.split("<h2>How long a round trip takes</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", section) == ["same node", "cross node"]
    assert section.count('class="curve"') == 4
    assert re.findall(r"<title>(.*?)</title>", section) == [
        f"{name}: median {median}" for median in ("24.0 µs", "36.0 µs") for name in ("bridge", "flannel")
    ]
    assert "median, cross node" not in page, "a tile would be that of no variant"


def test_comparison_has_a_column_per_run(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", failing=True)]
    write_report(folders, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "in any of 4 figures" in page
    assert page.count('class="curve"') == 2 * 3


def test_markdown_has_expectations_and_figures(tmp_path: Path) -> None:
    write_markdown([make_run(tmp_path / "r", failing=True)], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "| **no** | over TCP |" in text
    assert "| over TCP | timeout | no answer | 2 |" in text


def test_heatmap_has_a_cell_per_flow_in_its_verdicts_colour() -> None:
    rows = reachability_table(frame_of(make_samples(failing=True)))
    drawing = heatmap(rows)
    assert drawing.count(f'fill="{VERDICTS["ok"]}"') == 4
    assert drawing.count(f'fill="{VERDICTS["timeout"]}"') == 2
    assert drawing.count('class="sign"') == 2


def test_every_failing_verdict_has_a_sign_of_its_own() -> None:
    assert set(SIGNS) == set(VERDICTS) - {"ok"}
    assert len(set(SIGNS.values())) == len(SIGNS)


def test_drawings_hold_for_a_single_value_many_times() -> None:
    line = Line("same", "#000", np.full(50, 2e-5))
    assert "NaN" not in ecdf([line]).upper()
    assert "NAN" not in raincloud([line]).upper()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (4.32e-5, "43.2 µs"),
        (1.234e-3, "1.23 ms"),
        (3.0, "3.00 s"),
        (1e-3, "1.00 ms"),
        (9.9996e-4, "1.00 ms"),
        (5e-7, "500 ns"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_ticks_stay_inside_and_are_few() -> None:
    for high in (3e-5, 1e-3, 10.0, 1e4):
        scale = LogScale(1.1e-5, high, 0, 100)
        assert 1 <= len(scale.ticks()) <= 10
        assert all(0 <= scale(tick) <= 100 for tick in scale.ticks())
    assert tick_label(2e-5) == "20 µs"
