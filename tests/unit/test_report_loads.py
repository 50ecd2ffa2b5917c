"""What a report says of loads, of growth and of how fast rules follow."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed.measure.frames import frame_of, reachability_table, summary
from testbed.records import SAMPLES, Event, Run, RunRecord, Sample, read_run, write_run
from testbed.report.html import write_report
from testbed.report.loads import growth, loads, over_time, programming, timeline
from testbed.report.svg import LinearScale

START = 1_800_000_000.0


def make_ask(
    number: int, *, step: str = "load", failed: bool = False, size: int = 0, variant: str = ""
) -> Sample:
    return Sample(
        kind="ask",
        step=step,
        source="client",
        source_namespace="default",
        source_node="",
        destination="web",
        destination_namespace="default",
        destination_node="",
        ip="10.96.0.9",
        protocol="http",
        port=80,
        path="service",
        verdict="timeout" if failed else "ok",
        reason="no answer" if failed else "",
        sequence=number,
        at=START + number * 0.1,
        seconds=None if failed else 0.001 * (1 + size),
        size=size,
        variant=variant,
    )


def make_change(at: float, seconds: float) -> Sample:
    return Sample(
        kind="programming",
        step="network programming",
        source="modified EndpointSlice",
        source_namespace="",
        source_node="",
        destination="web-x",
        destination_namespace="default",
        destination_node="node-1",
        ip="",
        protocol="",
        at=START + at,
        seconds=seconds,
    )


EVENTS = [
    Event(0.0, START, "load", {"step": "load", "rate": 10, "about": "<why>"}),
    Event(2.0, START + 2, "rollout begun", {}),
    Event(30.0, START + 30, "rollout done", {}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [make_ask(number, failed=30 <= number < 35) for number in range(100)]
    samples += [make_change(3.0, 0.4), make_change(60.0, 9.0)]
    frame = frame_of(samples)
    tables = {SAMPLES: frame, "reachability.csv": reachability_table(frame), "summary.csv": summary(frame)}
    write_run(tmp_path, RunRecord("rolling", EVENTS, [], {}), tables)
    return tmp_path


def test_a_load_knows_its_failures_marks_and_changes(folder: Path) -> None:
    (load,) = loads(read_run(folder))
    assert (load.failed, len(load.samples), load.about) == (5, 100, "<why>")
    assert load.seconds == pytest.approx(9.9)
    assert load.marks == [(2.0, "rollout begins")]  # what came after the load is not of it
    assert list(load.programmed["seconds"]) == [0.4]


def test_a_repeated_load_counts_all_repetitions_and_no_warm_up(tmp_path: Path) -> None:
    def repetition(number: int, failed: int, **fields: bool) -> list[Sample]:
        return [
            one.replaced({"repetition": number, "at": (one.at or 0.0) + 100 * number, **fields})
            for one in (make_ask(n, failed=n < failed) for n in range(50))
        ]

    samples = [*repetition(0, 50, warm_up=True), *repetition(1, 7), *repetition(2, 0)]
    faults = [
        Event(0.0, START + 100 * n + at, what, {"fault": "loss", "id": str(n), "target": ["node-1"]})
        for n in (1, 2)
        for at, what in ((1.0, "fault applied"), (2.0, "fault healed"))
    ]
    run = Run(tmp_path, frame_of([*samples, make_change(101.5, 0.1)]), {}, [EVENTS[0], *faults], [])
    (load,) = loads(run)
    assert (load.failed, len(load.samples), load.repetitions) == (7, 100, 2)
    assert load.seconds == pytest.approx(4.9)
    assert [(round(begin, 6), round(end, 6)) for begin, end, _ in load.bands] == [(1.0, 2.0)] * 2
    assert list(load.programmed["after"]) == pytest.approx([1.5])
    assert "7 of 100 failed in 2 repetitions" in over_time(run)
    drawn = timeline(load)
    assert drawn.count('class="fault"') == 2
    assert drawn.count('class="faultname"') == 1
    (alone,) = loads(Run(tmp_path, frame_of(repetition(1, 7)), {}, EVENTS[:1], []))
    rate = re.search(r">[0-9]+/s<", timeline(alone))
    assert rate
    assert rate[0] in drawn, "the rate of one repetition, not of both"


def test_the_drawing_is_well_formed_and_counts_every_connection(folder: Path) -> None:
    (load,) = loads(read_run(folder))
    tips = [one.text or "" for one in ElementTree.fromstring(timeline(load)).iter("title")]  # noqa: S314
    counted = [tip.split(": ")[1].split() for tip in tips if tip.endswith((" ok", " timeout"))]
    assert sum(int(number) for number, verdict in counted if verdict == "ok") == 95
    assert sum(int(number) for number, verdict in counted if verdict == "timeout") == 5
    assert any("modified EndpointSlice web-x, 400 ms" in tip for tip in tips)


def test_curves_are_not_joined_where_nothing_succeeded(tmp_path: Path) -> None:
    samples = [make_ask(number, failed=30 <= number < 60) for number in range(100)]
    (load,) = loads(Run(tmp_path, frame_of(samples), {}, EVENTS[:1], []))
    drawn = ElementTree.fromstring(timeline(load))  # noqa: S314
    curves = [one.get("d", "") for one in drawn.iter("path") if one.get("class") == "curve"]
    assert [curve.count("M") for curve in curves] == [2, 2]


def test_labels_that_would_run_into_each_other_are_left_out(tmp_path: Path) -> None:
    events = [
        EVENTS[0],
        Event(1.0, START + 4.0, "applying", {"files": ["a-policy-with-a-long-name.yaml"]}),
        Event(1.0, START + 4.5, "deleting", {"files": ["b.yaml"]}),
        Event(1.0, START + 9.0, "deleting", {"files": ["c.yaml"]}),
    ]
    (load,) = loads(Run(tmp_path, frame_of([make_ask(number) for number in range(100)]), {}, events, []))
    drawn = timeline(load)
    assert [
        f">{words}</text>" in drawn for words in ("apply a-policy-with-a-long-name", "delete b", "delete c")
    ] == [
        True,
        False,
        True,
    ]
    assert drawn.count('class="mark"') == 3


def test_the_report_says_what_failed_and_why(folder: Path) -> None:
    write_report([folder], folder / "report.html")
    text = (folder / "report.html").read_text()
    for words in (
        "load · 5 of 100 failed",
        "&lt;why&gt;",
        "timeout (no answer)",
        "3.0 … 3.4",
        "How fast rules follow",
    ):
        assert words in text


def test_growth_has_a_line_and_rows_per_variant() -> None:
    samples = [
        make_ask(n, step=str(size), size=size, variant=variant)
        for variant in ("iptables", "nftables")
        for size in (1000, 5000)
        for n in range(20)
    ]
    section = growth(frame_of(samples))
    assert section.count('class="curve"') == section.count('class="band"') == 2
    assert section.count("<td>iptables</td>") == section.count("<td>nftables</td>") == 2
    assert growth(frame_of([make_ask(n) for n in range(5)])) == ""


def test_without_changes_nothing_is_said_of_rules() -> None:
    assert programming(frame_of([make_ask(1)])) == ""
    assert "How fast rules follow" in programming(frame_of([make_change(1.0, 0.2), make_change(2.0, 0.3)]))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 32.0, [0, 5, 10, 15, 20, 25, 30]),
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 10400.0, [0, 2000, 4000, 6000, 8000, 10000]),
    ],
)
def test_ticks_of_a_linear_scale_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert LinearScale(low, high, 0.0, 100.0).ticks() == pytest.approx(ticks)
