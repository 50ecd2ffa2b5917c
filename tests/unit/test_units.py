"""Units of the cluster spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testbed.units import parse_duration, parse_integer, parse_rate, parse_share, parse_time


@pytest.mark.parametrize(
    ("parse", "value", "expected"),
    [
        (parse_rate, "1Gbit", 1e9),
        (parse_rate, "100Mbit", 1e8),
        (parse_rate, "1.5 kbit", 1500.0),
        (parse_rate, "64kbit", 64000.0),
        (parse_rate, "9600bit", 9600.0),
        (parse_time, "1ms", 0.001),
        (parse_time, "250us", 0.00025),
        (parse_time, "2s", 2.0),
        (parse_time, 0, 0.0),
        (parse_share, "0.1%", 0.001),
        (parse_share, "100%", 1.0),
        (parse_share, 0, 0.0),
        (parse_duration, "1m30s", 90.0),
        (parse_duration, "1h", 3600.0),
        (parse_duration, "500ms", 0.5),
        (parse_duration, 40, 40.0),
    ],
)
def test_values(parse: Callable[[Any], float], value: Any, expected: float) -> None:
    assert parse(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        *((parse_rate, value) for value in (100, "100", "100MB", "0Mbit", "-1Mbit", "Mbit", True, None, [])),
        *((parse_time, value) for value in (5, "5", "5min", "-1ms", "1 h", True, {}, "1e3ms")),
        *((parse_share, value) for value in (0.5, "0.5", "101%", "-1%", False)),
        *((parse_duration, value) for value in (-1, "10", "1d", "", True, "s")),
    ],
)
def test_refusals(parse: Callable[[Any], float], value: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse(value)


@pytest.mark.parametrize("value", ["1", 1.0, True, 0, 11, None])
def test_integers_within_bounds_only(value: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_integer(value, 1, 10)
