"""Distributions of round-trip times: cumulative curves, and rows of density, quartiles and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from testbed.quantiles import quantile
from testbed.report import svg

Values = np.ndarray[Any, np.dtype[np.float64]]
_MOST_POINTS = 600
_TOP, _ROW, _FOOT = 6.0, 86.0, 44.0


@dataclass(frozen=True)
class Line:
    """A distribution to draw. values: seconds; noise: drawn as background; lost: how many more were never
    answered, so that a cumulative curve ends below 100 %."""

    name: str
    colour: str
    values: Values
    noise: bool = False
    dash: str | None = None
    lost: int = 0

    def median(self) -> float:
        """Of all: infinity where most were lost."""
        return quantile(np.append(np.sort(self.values), np.full(self.lost, np.inf)), 0.5)


def time_scale(lines: Sequence[Line], start: float, end: float) -> svg.LogScale:
    """A scale that holds every line but a few outliers of each."""
    low = min(float(line.values.min()) for line in lines)
    high = max(float(np.quantile(line.values, 0.998)) for line in lines)
    return svg.LogScale(low * 0.9, max(high * 1.15, low * 2), start, end)


def ecdf(
    lines: Sequence[Line],
    width: float = 560.0,
    height: float = 330.0,
    subject: str = "round-trip time (logarithmic)",
) -> str:
    """Cumulative distributions: for each time, the share of all that was answered within it. subject: of the
    axis."""
    left, top, bottom = 44.0, 10.0, height - 44.0
    scale = time_scale(lines, left, width - 12)
    parts = svg.time_axis(scale, top, bottom, subject)
    for share in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(svg.element("line", x1=left, x2=width - 12, y1=y, y2=y, class_="grid"))
        parts.append(svg.text(left - 7, y + 4, f"{share:.0%}", class_="tick", text_anchor="end"))
    for line in lines:
        ordered, total = np.sort(line.values), len(line.values) + line.lost
        places = np.unique(np.linspace(0, len(ordered) - 1, min(_MOST_POINTS, len(ordered))).astype(int))
        # Up by steps, one at each value: between two of them nobody was answered.
        d = f"M{scale(float(ordered[0])):.1f} {bottom:.1f}"
        for place in places:
            x, share = min(scale(float(ordered[place])), scale.end), (place + 1) / total
            d += f"H{x:.1f}V{bottom - share * (bottom - top):.1f}"
        lost = f", {line.lost:,} lost" if line.lost else ""
        about = svg.title(f"{line.name}: median {svg.duration(line.median())}{lost}")
        parts.append(
            svg.element(
                "path",
                about,
                d=d,
                class_="curve noise" if line.noise else "curve",
                stroke=line.colour,
                stroke_dasharray=line.dash,
            )
        )
    return svg.figure(width, height, parts, f"cumulative distribution: {subject}")


def raincloud_height(rows: int) -> float:
    """How high the drawing of so many rows is, for one that stands beside it."""
    return _TOP + _ROW * rows + _FOOT


def raincloud(lines: Sequence[Line], width: float = 560.0) -> str:
    """One row per line: density above, box of quartiles, every sample below."""
    left, top, row = 96.0, _TOP, _ROW
    bottom = top + row * len(lines)
    scale = time_scale(lines, left, width - 12)
    parts = svg.time_axis(scale, top, bottom, "round-trip time (logarithmic)")
    for place, line in enumerate(lines):
        base = top + row * place + row * 0.56
        words = _wrapped(line.name)
        for number, word in enumerate(words):
            y = base + 4 + 13 * (number - (len(words) - 1) / 2)
            parts.append(svg.text(left - 12, y, word, class_="row", text_anchor="end"))
        parts += _density(line, scale, base, row * 0.5)
        parts += _box(line, scale, base + 7)
        parts += _samples(line, scale, base + 16, row * 0.24)
    return svg.figure(width, bottom + _FOOT, parts, "density and samples of round-trip times")


def _wrapped(name: str) -> list[str]:
    head, _, tail = name.partition(" (")
    return [head, f"({tail}"] if tail else [head]


def _density(line: Line, scale: svg.LogScale, base: float, height: float) -> list[str]:
    """A Gaussian kernel density over the logarithm of the times (Silverman's rule of thumb)."""
    logs = np.log(np.clip(line.values, scale.low, scale.high))
    spread = min(float(logs.std()), float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.34)
    bandwidth = max(0.9 * spread * len(logs) ** -0.2, 0.01)
    if len(logs) > 4000:
        logs = np.quantile(logs, np.linspace(0, 1, 4000))
    grid = np.linspace(np.log(scale.low), np.log(scale.high), 220)
    density = np.exp(-0.5 * ((grid[:, None] - logs[None, :]) / bandwidth) ** 2).sum(axis=1)
    density *= height / density.max()
    points = [
        (scale(float(np.exp(at))), base - float(up))
        for at, up in zip(grid, density, strict=True)
        if up > 0.05
    ]
    outline = [(points[0][0], base), *points, (points[-1][0], base)]
    return [svg.path(outline, close=True, fill=line.colour, class_="cloud")]


def _box(line: Line, scale: svg.LogScale, y: float) -> list[str]:
    low, middle, high, p95 = (float(q) for q in np.quantile(line.values, [0.25, 0.5, 0.75, 0.95]))
    words = svg.title(
        f"{line.name}: median {svg.duration(middle)}, quartiles {svg.duration(low)} and "
        f"{svg.duration(high)}, 95th percentile {svg.duration(p95)}"
    )
    end = min(scale(p95), scale.end)
    return [
        svg.element("line", x1=scale(low), x2=end, y1=y, y2=y, stroke=line.colour, class_="whisker"),
        svg.element(
            "line", words, x1=scale(low), x2=scale(high), y1=y, y2=y, stroke=line.colour, class_="box"
        ),
        svg.element(
            "circle", words, cx=scale(middle), cy=y, r=4.0, fill="#fff", stroke=line.colour, class_="median"
        ),
    ]


def _samples(line: Line, scale: svg.LogScale, top: float, height: float) -> list[str]:
    """Every sample as a dot at a height that means nothing (the same at each drawing)."""
    values = line.values
    if len(values) > _MOST_POINTS:
        values = np.quantile(values, np.linspace(0, 1, _MOST_POINTS))
    heights = np.random.default_rng(0).uniform(0, height, len(values))
    dots = "".join(
        f"M{min(scale(float(value)), scale.end):.1f} {top + up:.1f}h0"
        for value, up in zip(values, heights, strict=True)
    )
    return [svg.element("path", d=dots, stroke=line.colour, class_="dots")]


def legend(entries: Mapping[str, str]) -> str:
    """Names with their colours, as HTML."""
    items = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries.items()
    )
    return f'<div class="legend">{items}</div>'
