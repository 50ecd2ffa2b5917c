"""Which figures are not to be trusted, and why: too near to the machine's noise floor, taken under overload,
or an interval that rests on too little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from testbed.measure.machine import FLOORS, overloaded
from testbed.measure.resample import LEAST_BLOCKS
from testbed.records import Event
from testbed.report.svg import duration

Doubts = Mapping[tuple[str, str], str]
"""(variant, step) → why, in words."""


def overloads(events: Iterable[Event]) -> dict[tuple[str, str], str]:
    """Steps that ran on an overloaded machine."""
    found = {}
    for one in events:
        if one.what == "machine" and (why := overloaded(one.detail)):
            found[(str(one.detail.get("variant", "")), str(one.detail["step"]))] = why
    return found


def near_floor(value: float, floor: float) -> str:
    """Why a time is too near to the floor; "" where it is not, or nothing is known of the floor. Both in
    seconds."""
    if math.isnan(value) or math.isnan(floor) or value >= FLOORS * floor:
        return ""
    return f"below {FLOORS:g} noise floors of {duration(floor)}"


def few_blocks(blocks: float) -> str:
    """Why an interval is too sure of itself; "" where it is not, or rests on no blocks (NaN)."""
    if math.isnan(blocks) or blocks >= LEAST_BLOCKS:
        return ""
    return f"rests on {blocks:.0f} blocks of neighbours only: likely to be too narrow"


def mark(*reasons: str) -> str:
    """A sign with the reasons as its tooltip, as HTML; "" where there is none."""
    told = "; ".join(reason for reason in reasons if reason)
    return f'<abbr class="doubt" title="{escape(told)}">≈</abbr>' if told else ""
