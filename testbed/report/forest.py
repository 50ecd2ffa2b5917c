"""Effects side by side: a row per figure, the ratio of medians with its interval on a logarithmic axis.
Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.report import svg
from testbed.report.colours import EFFECTS
from testbed.report.effects import BETTER, WORSE, Effect

_ROW, _TOP, _FOOT, _LABELS = 34.0, 34.0, 46.0, 400.0
_TICKS = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Row:
    """A row: what it is called, a smaller line below, and the effect."""

    title: str
    note: str
    effect: Effect


def forest(rows: list[Row], width: float = 1080.0) -> str:
    """The drawing. Rows whose times cannot be compared are left out."""
    rows = [row for row in rows if not math.isnan(row.effect.ratio)]
    if not rows:
        return ""
    reach = max(max(row.effect.high, 1 / row.effect.low, 1.05) for row in rows)
    reach = min(reach * 1.08, 2000.0)
    scale = svg.LogScale(1 / reach, reach, _LABELS, width - 14)
    bottom = _TOP + _ROW * len(rows)
    parts = _axis(scale, reach, bottom)
    for number, row in enumerate(rows):
        parts += _row(row, scale, _TOP + _ROW * number + _ROW / 2)
    return svg.figure(width, bottom + _FOOT, parts, "ratios of medians with their 95 % intervals")


def _axis(scale: svg.LogScale, reach: float, bottom: float) -> list[str]:
    ticks = [tick for tick in _TICKS if tick < reach]
    chosen = ticks[-3:] if len(ticks) > 3 else ticks
    parts = []
    for tick in sorted({1.0, *chosen, *(1 / one for one in chosen)}):
        x = scale(tick)
        kind = "mark" if tick == 1 else "grid"
        parts.append(svg.element("line", x1=x, x2=x, y1=_TOP - 8, y2=bottom, class_=kind))
        parts.append(svg.text(x, bottom + 17, f"{svg.TIMES}{tick:.3g}", class_="tick", text_anchor="middle"))
    middle = scale(1.0)
    parts.append(svg.text(middle - 12, 16, "← faster", class_="axis", text_anchor="end"))
    parts.append(svg.text(middle + 12, 16, "slower →", class_="axis"))
    parts.append(
        svg.text(middle, bottom + 36, "median, relative to the baseline", class_="axis", text_anchor="middle")
    )
    return parts


def _row(row: Row, scale: svg.LogScale, y: float) -> list[str]:
    one = row.effect
    colour = EFFECTS[one.verdict]
    low, high = (min(max(edge, scale.low), scale.high) for edge in (one.low, one.high))
    x = scale(min(max(one.ratio, scale.low), scale.high))
    words = svg.title(
        f"{row.title}, {row.note}: {svg.duration(one.before.median)} → {svg.duration(one.after.median)}, "
        f"{svg.TIMES}{one.ratio:.3g} ({one.low:.3g} to {one.high:.3g}), {one.verdict}: {one.why}"
    )
    if one.verdict == WORSE:
        point = svg.element("rect", words, x=x - 6, y=y - 6, width=12.0, height=12.0, fill=colour)
    else:
        fill = colour if one.verdict == BETTER else "#fff"
        point = svg.element("circle", words, cx=x, cy=y, r=6.0, fill=fill, stroke=colour, stroke_width=2.2)
    return [
        svg.text(_LABELS - 18, y - 1, _short(row.title, 58), class_="row", text_anchor="end"),
        svg.text(_LABELS - 18, y + 12, _short(row.note, 64), class_="tick", text_anchor="end"),
        svg.element("line", x1=_LABELS, x2=scale.end, y1=y + _ROW / 2, y2=y + _ROW / 2, class_="grid"),
        svg.element(
            "line", words, x1=scale(low), x2=scale(high), y1=y, y2=y, stroke=colour, stroke_width=3.0
        ),
        point,
    ]


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def counted(effects: Mapping[Any, Effect]) -> dict[str, int]:
    """How many of each verdict, in the order of EFFECTS."""
    return {verdict: sum(one.verdict == verdict for one in effects.values()) for verdict in EFFECTS}
