"""One definition of quantiles, and intervals that are as wide as samples that are alike ask for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure import metrics
from testbed.measure.frames import frame_of, median_blocks, median_interval, summary, times_of, waits
from testbed.measure.resample import LEAST_BLOCKS, block_length
from testbed.quantiles import quantile
from testbed.records import Sample, ask_samples, probe_samples
from testbed.report.trust import few_blocks
from testbed.scenario.expectations import parse

ENDS = ("source", "source_namespace", "source_node", "destination", "destination_namespace")


def probe(seconds: float | None, verdict: str = "ok") -> Sample:
    return Sample(
        kind="probe",
        step="load",
        protocol="udp",
        destination_node="",
        ip="",
        verdict=verdict,
        seconds=seconds,
        **dict.fromkeys(ENDS, ""),
    )


def probes(answered: int, lost: int) -> list[Sample]:
    return [probe(n / 1000) for n in range(1, answered + 1)] + [probe(None, "timeout")] * lost


# --- quantiles --------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=60), st.sampled_from([0.0, 0.25, 0.5, 0.95, 0.99, 1.0])
)
def test_a_quantile_is_the_first_value_that_its_share_of_all_does_not_exceed(
    values: list[float], share: float
) -> None:
    found = quantile(sorted(values), share)
    within = sum(one <= found for one in values) / len(values)
    below = sum(one < found for one in values) / len(values)
    assert within >= share - 1e-9
    assert below < share or (below == 0 and share == 0)


def test_there_is_no_quantile_of_nothing() -> None:
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(("lost", "p99"), [(0, 0.099), (1, 0.099), (2, math.inf)])
def test_what_failed_counts_as_infinitely_late(lost: int, p99: float) -> None:
    samples = probes(100 - lost, lost)
    assert metrics.quantile(samples, 0.99) == p99 or lost == 0
    assert parse("p99 < 5 s").judge(samples) == (
        ("lost", False) if lost == 2 else (f"{metrics.quantile(samples, 0.99) * 1e3:.3g} ms", True)
    )


@pytest.mark.parametrize("lost", [0, 1, 3, 30, 80, 100])
def test_summary_and_expectations_have_the_same_figures(lost: int) -> None:
    samples = probes(100 - lost, lost)
    (row,) = summary(frame_of(samples)).to_dict("records")
    names = {"min": 0.0, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    assert {name: row[name] for name in names} == {
        name: metrics.quantile(samples, share) for name, share in names.items()
    }
    assert row["ok"] == 100 - lost
    assert list(waits(frame_of(samples))) == metrics.waits(samples)


def test_a_mean_is_of_what_was_answered() -> None:
    (row,) = summary(frame_of(probes(3, 1))).to_dict("records")
    assert row["mean"] == pytest.approx(0.002)


def test_what_has_a_rate_and_no_time_is_no_loss() -> None:
    row = probe(None).replaced({"bits_per_second": 1e9})
    assert metrics.waits([row]) == list(waits(frame_of([row]))) == []


def test_a_conversation_that_was_refused_has_no_time_to_be_quick_with() -> None:
    columns = {
        "question": [0, 0],
        "at": [1.0, 2.0],
        "verdict": ["ok", "refused"],
        "reason": ["", "reset"],
        "reporter": ["", ""],
        "answer": ["", ""],
        "seconds": [0.002, 0.0001],
        "handshake": [None, None],
    }
    asker = {**dict.fromkeys((*ENDS, "destination_node", "ip"), ""), "protocol": "http"}
    assert metrics.waits(ask_samples("ask", [asker], {"replies": columns})) == [0.002, math.inf]


def test_a_dns_error_is_no_quick_answer() -> None:
    columns = {name: [0.0] * 100 for name in ("due", "begun", "sent", "received")} | {
        "flow": [0] * 100,
        "seconds": [0.0003] * 100,
        "seconds_kernel": [0.0002] * 100,
        "copies": [1] * 100,
        "order": [0] * 100,
        "outcome": [0] * 100,
    }
    flow = {**dict.fromkeys((*ENDS, "destination_node", "ip"), ""), "path": "service"}
    answer = {"flows": [flow], "columns": columns, "offset": 0, "words": [("error", "SERVFAIL", "", "", "")]}
    samples = probe_samples("names", "dns", answer)
    assert metrics.waits(samples) == [math.inf] * 100
    assert math.isnan(metrics.mean(samples))
    assert len(times_of(frame_of(samples))) == 0
    assert parse("p99 < 5 ms").judge(samples) == ("lost", False)


# --- intervals --------------------------------------------------------------------------------------------


def series(random: np.random.Generator, alike: float, size: int) -> np.ndarray:
    """Log-normal times with the median 1, each like its neighbour (first order autoregression)."""
    noise, values = random.normal(size=size), np.zeros(size)
    for place in range(1, size):
        values[place] = alike * values[place - 1] + math.sqrt(1 - alike**2) * noise[place]
    return np.exp(0.3 * values)


def held(alike: float, size: int) -> tuple[float, float]:
    """The shares of series whose intervals hold their median: as they are, and drawn one by one."""
    random = np.random.default_rng(1)
    blocks = singly = 0
    for _ in range(200):
        values = series(random, alike, size)
        low, high = median_interval(values, rounds=200)
        blocks += low <= 1 <= high
        medians = np.median(random.choice(values, (100, size)), axis=1)
        low, high = np.quantile(medians, [0.025, 0.975])
        singly += low <= 1 <= high
    return blocks / 200, singly / 200


@pytest.mark.parametrize(
    ("alike", "size", "least"), [(0.0, 30, 0.94), (0.6, 100, 0.88), (0.9, 100, 0.80), (0.9, 1000, 0.90)]
)
def test_intervals_hold_the_median_about_as_often_as_they_say(alike: float, size: int, least: float) -> None:
    """Of 100 values that are as alike as 0.9 there are ten blocks, and less than they say is what is left."""
    blocks, singly = held(alike, size)
    assert blocks >= least
    if alike > 0.5:
        assert singly < blocks - 0.1, "drawn one by one they would be far too narrow"


def test_blocks_are_as_long_as_neighbours_are_alike() -> None:
    random = np.random.default_rng(2)
    lengths = [block_length(series(random, alike, 2000)) for alike in (0.0, 0.6, 0.95)]
    assert lengths == sorted(lengths)
    assert lengths[0] <= 4
    assert lengths[2] > 20
    assert block_length(np.full(500, 1.0)) == 1
    assert block_length(np.array([1.0, 2.0])) == 1
    assert block_length(np.full(500, math.inf)) == 1


@pytest.mark.parametrize("lost", [490, 550])
def test_an_outage_is_one_block_on_either_side_of_half(lost: int) -> None:
    values = np.random.default_rng(4).uniform(1e-3, 1.2e-3, 1000)
    values[200 : 200 + lost] = math.inf
    assert block_length(values) > 40
    low, high = median_interval(values)
    assert low < 1.2e-3
    assert high == math.inf


def test_an_interval_of_few_blocks_is_told() -> None:
    random = np.random.default_rng(5)
    few, many = series(random, 0.9, 100), series(random, 0.0, 100)
    assert median_blocks(few) < LEAST_BLOCKS <= median_blocks(many)
    assert "too narrow" in few_blocks(median_blocks(few))
    assert not few_blocks(median_blocks(many))
    assert not few_blocks(median_blocks(few, np.repeat([1, 2], 50))), "whole repetitions are drawn"
    (row,) = summary(frame_of([probe(float(value)) for value in few])).to_dict("records")
    assert row["median_blocks"] == median_blocks(few)


def test_an_interval_says_where_the_median_may_be_lost() -> None:
    values = np.array(([1e-3] * 52 + [math.inf] * 48) * 3)
    np.random.default_rng(3).shuffle(values)
    assert median_interval(values) == (1e-3, math.inf)
