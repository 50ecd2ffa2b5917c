"""A panel of a campaign's plot: medians of cells against the levels of one factor, a line per level of
another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.report import svg

panel_height = 300.0
_WIDE_RANGE = 20.0
"""Numbers that span more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """place: of its level along the axis, from 0; value: seconds, NaN: nothing was answered; doubtful: drawn
    hollow; told: its tooltip."""

    place: int
    value: float
    doubtful: bool
    told: str


@dataclass(frozen=True)
class Series:
    """Points of one colour."""

    name: str
    colour: str
    points: Sequence[Point]


def panel(
    series: Sequence[Series],
    name: str,
    levels: Sequence[str],
    numbers: Sequence[float] | None,
    bounds: tuple[float, float],
    width: float = 560.0,
    *,
    line: bool = True,
) -> str:
    """The drawing. name: of the factor along the axis; numbers: its levels, where they are; bounds: the
    smallest and largest value of all panels, which share a scale. line: whether geometric means are
    joined."""
    left, top, bottom = 62.0, 12.0, panel_height - 46.0
    low, high = bounds[0] * 0.85, max(bounds[1] * 1.15, bounds[0] * 1.5)
    scale = svg.LogScale(low, high, bottom, top)
    across = places(levels, numbers, left + 26, width - 30)
    parts = [
        part
        for tick in _ticks(scale)
        for part in (
            svg.element("line", x1=left, x2=width - 10, y1=scale(tick), y2=scale(tick), class_="grid"),
            svg.text(left - 7, scale(tick) + 4, svg.tick_label(tick), class_="tick", text_anchor="end"),
        )
    ]
    last = -math.inf
    for x, level in zip(across, levels, strict=True):
        shown = _shown(level, numbers is not None)
        if x - last >= 7.0 * len(shown) + 8:  # labels that would run into each other are left out
            parts.append(svg.text(x, bottom + 17, shown, class_="tick", text_anchor="middle"))
            last = x
    parts.append(svg.text((left + width) / 2, bottom + 37, name, class_="axis", text_anchor="middle"))
    for number, one in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * 5.0 if line else 0.0
        parts += _drawn(one, scale, across, shift, line=line)
    return svg.figure(width, panel_height, parts, f"median by {name}")


def places(levels: Sequence[str], numbers: Sequence[float] | None, start: float, end: float) -> list[float]:
    """Where each level stands: by its number, on a logarithmic axis where they span much, else evenly."""
    if numbers is not None and len(set(numbers)) > 1:
        low, high = min(numbers), max(numbers)
        if low > 0 and high / low > _WIDE_RANGE:
            values = [math.log(number) for number in numbers]
        else:
            values = list(numbers)
        low, high = min(values), max(values)
        return [start + (value - low) / (high - low) * (end - start) for value in values]
    step = (end - start) / len(levels)
    return [start + step * (place + 0.5) for place in range(len(levels))]


def _ticks(scale: svg.LogScale) -> list[float]:
    """Those of the scale, or evenly spaced ones where it spans so little that it has but one or two."""
    ticks = scale.ticks()
    return ticks if len(ticks) > 2 else svg.LinearScale(scale.low, scale.high, 0.0, 1.0).ticks(5)


def _shown(level: str, number: bool) -> str:
    return f"{float(level):,g}" if number else level


def _drawn(
    series: Series, scale: svg.LogScale, across: Sequence[float], shift: float, *, line: bool
) -> list[str]:
    parts = []
    by_place: dict[int, list[float]] = {}
    for point in series.points:
        if math.isnan(point.value):
            continue
        by_place.setdefault(point.place, []).append(point.value)
    means = [
        (across[place] + shift, scale(float(np.exp(np.log(values).mean()))))
        for place, values in sorted(by_place.items(), key=lambda one: across[one[0]])
    ]
    if line and len(means) > 1:
        parts.append(svg.path(means, class_="curve", stroke=series.colour))
    if line:
        for x, y in means:
            parts.append(
                svg.element("line", x1=x - 8, x2=x + 8, y1=y, y2=y, stroke=series.colour, stroke_width=2.6)
            )
    for point in series.points:
        if math.isnan(point.value):
            x, y = across[point.place] + shift, scale.end + 6.0
            cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
            told = svg.title(point.told)
            parts.append(svg.element("path", told, d=cross, stroke=series.colour, stroke_width=2.0))
            continue
        parts.append(
            svg.element(
                "circle",
                svg.title(point.told),
                cx=across[point.place] + shift,
                cy=scale(point.value),
                r=3.6,
                fill="#fff" if point.doubtful else series.colour,
                stroke=series.colour,
                stroke_width=1.6,
                fill_opacity=0.75,
            )
        )
    return parts
