"""The test of even shares, against published figures and against chance."""

from __future__ import annotations

import random

import pytest

from testbed.measure.balance import chi_square_tail, evenness

PUBLISHED = [
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4: upper critical values
    (1, 3.841, 0.05),
    (1, 10.828, 0.001),
    (2, 5.991, 0.05),
    (2, 13.816, 0.001),
    (3, 7.815, 0.05),
    (9, 16.919, 0.05),
    (9, 27.877, 0.001),
    (10, 29.588, 0.001),
]


@pytest.mark.parametrize(("freedom", "critical", "share"), PUBLISHED)
def test_tails_are_those_of_published_tables(freedom: int, critical: float, share: float) -> None:
    assert chi_square_tail(critical, freedom) == pytest.approx(share, rel=2e-3)


@pytest.mark.parametrize("servers", [2, 3, 10])
def test_chance_is_even_and_p_is_spread_evenly(servers: int) -> None:
    draw = random.Random(servers)  # noqa: S311 - a drawing to repeat
    found = []
    for _ in range(400):
        counts = [0] * servers
        for _ in range(300):
            counts[draw.randrange(servers)] += 1
        found.append(evenness(counts))
    assert 0.4 < sum(found) / len(found) < 0.6
    assert 0.01 < sum(p < 0.05 for p in found) / len(found) < 0.1


def test_what_is_uneven_has_no_chance() -> None:
    assert evenness([5300, 4700]) < 1e-8
    assert evenness([10_000, 0]) < 1e-100
    assert evenness([5000, 2500, 2500]) < 1e-100  # as rules of probability 1/2, 1/2, 1 would have it


def test_one_alone_is_even() -> None:
    assert evenness([7]) == 1.0
    assert evenness([0, 0]) == 1.0
