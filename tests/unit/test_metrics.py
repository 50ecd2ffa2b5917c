"""What samples come to, and expectations of it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from testbed.measure import metrics
from testbed.measure.bootstrap import interval_of_means
from testbed.records import Sample
from testbed.scenario.expectations import parse


def series(verdicts: str, **fields: Any) -> list[Sample]:
    """A probe a second from 100 s on: ``.`` answered, ``x`` not."""
    return [
        Sample(
            kind="probe",
            step="load",
            source="a",
            source_namespace="",
            source_node="",
            destination="b",
            destination_namespace="",
            destination_node="",
            ip="10.0.0.1",
            protocol="udp",
            verdict="ok" if sign == "." else "timeout",
            sequence=number,
            order=number if sign == "." else 0,
            copies=int(sign == "."),
            at=99.0 + number,
            seconds=number / 1000 if sign == "." else None,
            **fields,
        )
        for number, sign in enumerate(verdicts, 1)
    ]


def test_an_outage_lasts_until_the_next_answer() -> None:
    assert metrics.outages(series("..xxx..x.")) == [(102.0, 105.0), (107.0, 108.0)]
    assert metrics.outage(series("..xxx..x.")) == 3.0


def test_an_outage_that_never_ends_goes_to_the_last_sample() -> None:
    assert metrics.outages(series("..xxx")) == [(102.0, 104.0)]


def test_flows_have_outages_of_their_own() -> None:
    assert metrics.outage([*series("..x...", flow=0), *series("......", flow=1)]) == 1.0


def test_convergence_is_the_time_until_nothing_changes_any_more() -> None:
    broken = series("....xx.x....")
    assert metrics.convergence(broken, [103.5]) == 107.0 - 103.5
    assert metrics.convergence(broken, [109.5]) == 0.0
    assert math.isnan(metrics.convergence(broken, [5.0]))


def test_convergence_of_what_is_forbidden_is_the_time_until_it_is() -> None:
    assert metrics.convergence(series("....xxxxx"), [101.5]) == 103.0 - 101.5


def test_reordered_are_those_that_came_after_a_later_one() -> None:
    sent = [
        sample.replaced({"order": order})
        for sample, order in zip(series("....."), (1, 4, 2, 3, 5), strict=True)
    ]
    assert metrics.reordered(sent) == 1  # the second came after the third and the fourth


def test_duplicates_are_counted_beyond_the_first_answer() -> None:
    assert metrics.duplicates([one.replaced({"copies": 3}) for one in series("..")]) == 4


def test_late_is_a_share_of_sends() -> None:
    ones = [*series(".", late=50e-6), *series("...", late=200e-6)]
    assert metrics.late(ones) == 0.75
    assert metrics.sent_late(ones) == 3
    assert math.isnan(metrics.late(series("..")))


@pytest.mark.parametrize(
    ("written", "met"),
    [
        ("loss < 20 %", False),
        ("loss < 26%", True),
        ("lost == 1", True),
        ("p99 < 5 ms", False),
        ("p50 <= 3 ms", True),
        ("max < 3 ms", False),
        ("outage < 2 s", True),
        ("reachable: all", False),
        ("reachable: none", False),
        ({"reachable": "none"}, False),
        ("throughput > 1 Mbit", False),
    ],
)
def test_expectations_are_judged(written: Any, met: bool) -> None:
    assert parse(written).judge(series(".x..")[:4])[1] is met


def test_nothing_measured_meets_no_expectation() -> None:
    assert parse("loss < 100 %").judge([]) == ("nothing was measured", False)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("loss", "must be a comparison"),
        ("p99 < 5", "unit of p99 is one of"),
        ("loss < 5 ms", "unit of loss"),
        ("speed > 3", "unknown metric 'speed'"),
        ("reachable: some", "reachable: all, or reachable: none"),
        ({"a": 1, "b": 2}, "one comparison"),
    ],
)
def test_what_is_no_expectation_is_refused_with_what_may_stand_there(written: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(written)


def test_the_interval_of_few_means_holds_the_true_one_about_as_often_as_it_says() -> None:
    draw = random.Random(1)  # noqa: S311 - a drawing to repeat
    intervals = [interval_of_means([draw.gauss(10, 1) for _ in range(6)]) for _ in range(200)]
    assert sum(low <= 10 <= high for low, high in intervals) >= 180
