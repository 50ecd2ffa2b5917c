"""Samples, frames and the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.errors import InputError
from testbed.measure.frames import (
    REACHABILITY_COLUMNS,
    SAMPLE_TYPES,
    frame_of,
    median_interval,
    reachability_frame,
    reachability_table,
    roundtrips_frame,
    summary,
)
from testbed.records import (
    SAMPLES,
    Expectation,
    RunRecord,
    appearing,
    event,
    new_run_folder,
    read_run,
    rtt_samples,
    write_run,
)

ENDS = {
    "source": "a",
    "source_namespace": "default",
    "source_node": "node-1",
    "destination": "b",
    "destination_namespace": "default",
    "destination_node": "node-2",
    "ip": "10.244.2.2",
    "path": "cross-node",
}
ROW = {
    **ENDS,
    "protocol": "tcp",
    "port": 80,
    "verdict": "refused",
    "reason": "reset",
    "reporter": "",
    "seconds": None,
    "attempts": 1,
}


def make_series(rtts: list[float | None], errors: list[str] | None = None) -> dict[str, Any]:
    count = len(rtts)
    samples = {
        "sequence": list(range(1, count + 1)),
        "at": [1.7e9 + number for number in range(count)],
        "rtt": rtts,
        "rtt_kernel": [None if rtt is None else rtt / 2 for rtt in rtts],
        "ttl": [62] * count,
        "error": errors or [""] * count,
    }
    return {**ENDS, "answer": "", "samples": samples}


def test_frame_has_the_documented_columns_and_types() -> None:
    frame = frame_of(rtt_samples("s", {"series": [make_series([1e-5, None])]}))
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == SAMPLE_TYPES
    assert frame["seconds"].isna().tolist() == [False, True]


def test_every_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert [name for name in SAMPLE_TYPES if f"`{name}`" not in text] == []


def test_reachability_frame_keeps_verdict_and_reason() -> None:
    frame = reachability_frame({"rows": [ROW]})
    assert list(frame.columns) == list(REACHABILITY_COLUMNS[1:])
    assert frame.loc[0, "verdict"] == "refused"
    assert frame.loc[0, "reason"] == "reset"


def test_an_unanswered_echo_is_a_timeout_or_what_the_error_says() -> None:
    samples = rtt_samples("s", {"series": [make_series([1e-5, None, None], ["", "", "host"])]})
    assert [(one.verdict, one.reason) for one in samples] == [
        ("ok", ""),
        ("timeout", "no answer"),
        ("unreachable", "host"),
    ]


def test_summary_counts_losses_and_leaves_them_out_of_times() -> None:
    frame = roundtrips_frame({"series": [make_series([1e-5, 3e-5, None, 2e-5])]})
    row = summary(frame).to_dict("records")[0]
    assert (row["probes"], row["ok"], row["failed"]) == (4, 3, 1)
    assert row["median"] == pytest.approx(2e-5)
    assert row["kernel_median"] == pytest.approx(1e-5)


def test_median_interval_holds_the_median_and_repeats() -> None:
    values = np.random.default_rng(1).lognormal(-10, 0.3, 400)
    low, high = median_interval(values)
    assert low <= float(np.median(values)) <= high
    assert (low, high) == median_interval(values)


def test_run_folder_reads_back_as_written(tmp_path: Path) -> None:
    frame = roundtrips_frame({"series": [make_series([1e-5, None])]})
    record = RunRecord("s", [event("started", n=1)], [Expectation("x", "e", "o", False)], {"seed": None})
    folder = new_run_folder(tmp_path, "s")
    with appearing(folder) as draft:
        tables = {
            SAMPLES: frame,
            "reachability.csv": reachability_table(frame),
            "summary.csv": summary(frame),
        }
        write_run(draft, record, tables)
    run = read_run(folder)
    assert run.samples.equals(frame)
    assert run.expectations == list(record.expectations)
    assert run.events == list(record.events)
    assert run.environment == {"scenario": "s", "seed": None}
    assert json.loads((folder / "events.jsonl").read_text())["what"] == "started"


def test_a_run_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path, "s")

    def fill() -> None:
        with appearing(folder) as draft:
            (draft / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill()
    assert list(folder.parent.iterdir()) == []


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run folder: it has no samples\.parquet"):
        read_run(tmp_path)
