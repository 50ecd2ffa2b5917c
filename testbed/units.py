"""Rates, times, shares and sizes as people write them: ``1Gbit``, ``5ms``, ``0.1%``, ``1500``.

Every parser takes what a YAML file may hold and raises ValueError with what was expected.
"""

from __future__ import annotations

import re
from typing import Any

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-zµ%]+)\s*")
_DURATION = re.compile(r"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|ms|s|m|h))+")
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}  # as tc: powers of ten
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LINK_TIMES = ("us", "µs", "ms", "s")


def parse_rate(value: Any) -> float:
    """``100Mbit`` in bit/s, greater than zero."""
    number, unit = _quantity(value)
    if number is None or unit.lower() not in _RATES:
        raise ValueError(f"must be a rate such as 100Mbit (bit, kbit, Mbit, Gbit), not {_shown(value)}")
    if not number:
        raise ValueError("must be greater than 0")
    return number * _RATES[unit.lower()]


def parse_time(value: Any) -> float:
    """``5ms`` in seconds. A unit is required, except for 0: whether 5 means seconds is anybody's guess."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    number, unit = _quantity(value)
    if number is None or unit not in _LINK_TIMES:
        raise ValueError(f"must be a time such as 5ms (us, ms, s), not {_shown(value)}")
    return number * _TIMES[unit]


def parse_duration(value: Any) -> float:
    """A clock's period in seconds, as Go writes durations (``1m30s``), or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(f"must be a duration such as 10s or 1m30s, not {_shown(value)}")
    return sum(float(number) * _TIMES[unit] for number, unit in re.findall(r"([0-9.]+)([a-zµ]+)", value))


def parse_share(value: Any) -> float:
    """``0.1%`` as 0.001, between 0 and 1."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    number, unit = _quantity(value)
    if number is None or unit != "%":
        raise ValueError(f"must be a share such as 0.1%, not {_shown(value)}")
    if number > 100:
        raise ValueError("must be at most 100%")
    return number / 100


def parse_integer(value: Any, minimum: int, maximum: int) -> int:
    """An integer within bounds, both included."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be an integer, not {_shown(value)}")
    if value < minimum:
        raise ValueError(f"must be at least {minimum}")
    if value > maximum:
        raise ValueError(f"must be at most {maximum}")
    return value


def _quantity(value: Any) -> tuple[float | None, str]:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
    return (float(match[1]), match[2]) if match else (None, "")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else describe(value)
    return text if len(text) <= 60 else text[:57] + "..."


def describe(value: Any) -> str:
    """A value of a YAML file in the words of its writer: ``a list``, ``true``, ``5``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, str) else str(value)
