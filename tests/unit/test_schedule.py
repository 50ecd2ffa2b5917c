"""Arrival schedules: kept on average, drawn by the seed alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.schedule import arrivals, digest


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert arrivals(4, 1000) == (0, 1_000_000, 2_000_000, 3_000_000)


def test_a_burst_is_due_at_one_moment_and_the_rate_holds() -> None:
    assert arrivals(6, 1000, burst=3) == (0, 0, 0, 3_000_000, 3_000_000, 3_000_000)


@given(
    st.integers(1, 500),
    st.floats(0.1, 1e5),
    st.integers(1, 20),
    st.sampled_from(["constant", "poisson"]),
    st.integers(),
)
def test_a_schedule_is_in_order_and_the_same_for_the_same_seed(
    count: int, rate: float, burst: int, process: str, seed: int
) -> None:
    made = arrivals(count, rate, burst=burst, process=process, seed=seed)  # type: ignore[arg-type]
    assert len(made) == count
    assert list(made) == sorted(made)
    assert made[0] == 0
    again = arrivals(count, rate, burst=burst, process=process, seed=seed)  # type: ignore[arg-type]
    assert digest(made) == digest(again)


def test_poisson_arrivals_keep_the_rate_and_differ_by_seed() -> None:
    one, other = (
        arrivals(5000, 1000, process="poisson", seed=1),
        arrivals(5000, 1000, process="poisson", seed=2),
    )
    assert one != other
    assert 4.5e9 < one[-1] < 5.5e9
