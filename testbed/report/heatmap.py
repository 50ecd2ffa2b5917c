"""The reachability heat map: sources down, destinations across, both grouped by node. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from testbed.report import svg
from testbed.report.colours import SIGNS, VERDICTS

_OUTSIDE = "outside"
_LABEL_LIMIT, _TOOLTIP_LIMIT = 48, 64
_LABEL_WIDTH, _HEAD, _GAP = 168.0, 26.0, 4.0


@dataclass(frozen=True)
class _End:
    """A row or column: which node it is on and what it is called."""

    node: str
    namespace: str
    name: str


def heatmap(rows: pd.DataFrame, width: float = 520.0) -> str:
    """The drawing of one step's flows: columns of ``reachability.csv``."""
    sources, targets = _ends(rows, "source"), _ends(rows, "destination")
    both = sorted(
        {*sources, *targets}, key=lambda end: (end.node == _OUTSIDE, end.node, end.namespace, end.name)
    )
    labelled = len(both) <= _LABEL_LIMIT
    left = _LABEL_WIDTH if labelled else 70.0
    groups = len({end.node for end in both})
    size = min(22.0, (width - left - _GAP * (groups - 1)) / len(both))
    places = _places(both, size)
    parts = _group_labels(both, places, size, left, labelled)
    if labelled:
        parts += [_label(end, places[end], size, left) for end in both]
    parts += [_blank(places[end], size, left) for end in both]
    for row in rows.to_dict("records"):
        parts.append(_cell(row, places, size, left, tooltip=len(both) <= _TOOLTIP_LIMIT))
    extent = places[both[-1]] + size
    return svg.figure(
        left + extent + 2, _HEAD + extent + 4, parts, "reachability, sources down, destinations across"
    )


def _ends(rows: pd.DataFrame, side: str) -> set[_End]:
    columns = rows[[f"{side}_node", f"{side}_namespace", side]].drop_duplicates()
    return {
        _End(node or _OUTSIDE, namespace, name) for node, namespace, name in columns.itertuples(index=False)
    }


def _places(ends: Sequence[_End], size: float) -> dict[_End, float]:
    """Where each end begins, with a gap between nodes."""
    places: dict[_End, float] = {}
    at, node = 0.0, ends[0].node
    for end in ends:
        if end.node != node:
            at, node = at + _GAP, end.node
        places[end] = at
        at += size
    return places


def _group_labels(
    ends: Sequence[_End], places: dict[_End, float], size: float, left: float, labelled: bool
) -> list[str]:
    parts = []
    for node in dict.fromkeys(end.node for end in ends):
        members = [places[end] for end in ends if end.node == node]
        begin, finish = members[0], members[-1] + size
        middle = (begin + finish) / 2
        room = int((finish - begin) / 6)
        shown = node if len(node) <= room else node[: max(1, room - 1)] + "…"
        parts.append(svg.text(left + middle, 14, shown, class_="node", text_anchor="middle"))
        bar: dict[str, Any] = {"x1": left + begin + 1, "x2": left + finish - 1, "y1": 19.0, "y2": 19.0}
        parts.append(svg.element("line", **bar, class_="bracket"))
        if not labelled:
            parts.append(svg.text(left - 8, _HEAD + middle + 4, node, class_="node", text_anchor="end"))
    return parts


def _label(end: _End, place: float, size: float, left: float) -> str:
    name = end.name if len(end.name) <= 24 else end.name[:10] + "…" + end.name[-13:]
    full = svg.title(f"{end.namespace}/{end.name} on {end.node}")
    words = svg.element("tspan", escape(name)) + full
    y = _HEAD + place + size / 2 + 3.5
    return svg.element(
        "text", words, x=left - 8, y=y, class_="pod", text_anchor="end", font_size=min(11.0, size)
    )


def _blank(place: float, size: float, left: float) -> str:
    """The diagonal: a pod with itself, not tried."""
    inset = size * 0.36
    box: dict[str, Any] = {"x": left + place + inset, "y": _HEAD + place + inset, "width": size - 2 * inset}
    return svg.element("rect", **box, height=size - 2 * inset, class_="blank")


def _cell(row: dict[Any, Any], places: dict[_End, float], size: float, left: float, *, tooltip: bool) -> str:
    source = _End(str(row["source_node"] or _OUTSIDE), str(row["source_namespace"]), str(row["source"]))
    target = _End(
        str(row["destination_node"] or _OUTSIDE), str(row["destination_namespace"]), str(row["destination"])
    )
    verdict = str(row["verdict"])
    x, y = left + places[target], _HEAD + places[source]
    line = 0.5 if size > 5 else 0.0
    box: dict[str, Any] = {"x": x + line, "y": y + line, "width": size - 2 * line, "height": size - 2 * line}
    failed = verdict != "ok"
    inside = svg.title(_told(row)) if tooltip or failed else ""
    rounded = 2.0 if size > 9 else None
    drawn = svg.element("rect", inside, **box, rx=rounded, fill=VERDICTS[verdict])
    if failed and size >= 8:
        drawn += svg.text(
            x + size / 2, y + size / 2 + size * 0.24, SIGNS[verdict], class_="sign", font_size=size * 0.7
        )
    return drawn


def _told(row: dict[Any, Any]) -> str:
    port = f":{row['port']}" if row["port"] else ""
    words = f"{row['source']} → {row['destination']} ({row['ip']}{port}): {row['verdict']}"
    if row["reason"]:
        words += f", {row['reason']}"
    if row["reporter"]:
        words += f", says {row['reporter']}"
    seconds = row["seconds"]
    if isinstance(seconds, float) and seconds == seconds:
        words += f" in {svg.duration(seconds)}"
    return words
