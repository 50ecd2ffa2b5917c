"""The little SVG that reports draw themselves: elements as text, scales, ticks. Pure.

Hand-made rather than by matplotlib: it takes the page's own fonts and colours, is a tenth of the size, and
every mark can carry a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Point = tuple[float, float]
NOTHING = "\N{EN DASH}"
LOST = "lost"
TIMES = "\N{MULTIPLICATION SIGN}"


def element(name: str, content: str = "", **attributes: Any) -> str:
    """One element; an underscore in an attribute's name stands for a dash, a trailing one is dropped."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, **attributes: Any) -> str:
    """A line of text."""
    return element("text", escape(words), x=float(x), y=float(y), **attributes)


def title(words: str) -> str:
    """The tooltip of the element it is put into."""
    return element("title", escape(words))


def path(points: Sequence[Point], *, close: bool = False, **attributes: Any) -> str:
    """A polyline."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if close else "")
    return element("path", d=d, **attributes)


def figure(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """A whole drawing that scales with the page. label: what it shows, for those who cannot see it."""
    return element(
        "svg",
        "".join(parts),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
        style=f"max-width:{width:.0f}px",
    )


@dataclass(frozen=True)
class LogScale:
    """A logarithmic scale from values (low, high) to positions (start, end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of each decade, or the decades alone where that would be more than ten."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= 10:
                break
        return found


@dataclass(frozen=True)
class LinearScale:
    """A linear scale from values (low, high) to positions (start, end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 8) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, at most ``most`` and one."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.9999)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def duration(seconds: float) -> str:
    """A time as people say it: ``43.2 µs``, ``1.2 ms``, ``3 s``; three significant digits. ``lost``:
    infinity, of what was never answered."""
    if math.isnan(seconds):
        return NOTHING
    if math.isinf(seconds):
        return LOST
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= factor * 0.9995:
            return f"{_digits(seconds / factor)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def _digits(value: float) -> str:
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(places, 2)}f}"


def tick_label(seconds: float) -> str:
    """The same for an axis: no digits that say nothing."""
    number, unit = duration(seconds).split(" ")
    return f"{float(number):g} {unit}"


def time_axis(scale: LogScale, top: float, bottom: float, name: str) -> list[str]:
    """A horizontal logarithmic time axis with grid lines."""
    parts = []
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 16, tick_label(tick), class_="tick", text_anchor="middle"))
    parts.append(text((scale.start + scale.end) / 2, bottom + 34, name, class_="axis", text_anchor="middle"))
    return parts


def linear_axis(scale: LinearScale, top: float, bottom: float, name: str) -> list[str]:
    """A horizontal linear axis with grid lines."""
    parts = []
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 16, f"{tick:,g}", class_="tick", text_anchor="middle"))
    parts.append(text((scale.start + scale.end) / 2, bottom + 34, name, class_="axis", text_anchor="middle"))
    return parts


Scale = Callable[[float], float]
