"""The part of a report on the way of packets: a bar of hops to scale, and a table of what is rewritten
where."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any, Final

import pandas as pd

from testbed.records import Run
from testbed.report import svg
from testbed.report.colours import RUNS
from testbed.report.loads import named
from testbed.report.pieces import card, table
from testbed.report.probes import counted
from testbed.report.svg import NOTHING, duration

_MOST_WAYS: Final = 3
_BAR: Final = 30.0


def ways(run: Run) -> str:
    """The section; "" where no packet was followed."""
    found = counted(run.frame)
    found = found[found["kind"] == "path"]
    if found.empty:
        return ""
    abouts = {
        (str(one.detail.get("variant", "")), str(one.detail["step"])): str(one.detail.get("about") or "")
        for one in run.events
        if one.what == "path"
    }
    note = (
        '<p class="note">Packets of one flow at every interface that they cross, there and back, all on '
        "one clock. "
        "Each piece is the time since the interface before; its colour is where the packet was seen. "
        "Below, medians "
        "over all packets that took the same way, and what was rewritten on the way to that interface.</p>"
    )
    parts = [f"<h2>The way of a packet</h2>{note}"]
    for (variant, step), rows in found.groupby(["variant", "step"], sort=False, dropna=False):
        key = (str(variant), str(step))
        parts.append(_step(named(*key), abouts.get(key, ""), rows))
    return "".join(parts)


def _step(title: str, about: str, rows: pd.DataFrame) -> str:
    whole = rows[rows["order"] == 0]
    hops = rows[rows["order"] > 0].sort_values(["repetition", "sequence", "order"])
    taken = {
        (int(str(repetition)), int(str(sequence))): tuple(map(str, group["destination"]))
        for (repetition, sequence), group in hops.groupby(["repetition", "sequence"], sort=False)
    }
    counts = Counter(taken.values())
    answered = whole["seconds"].dropna()
    head = (
        f"<h3>{escape(title)} · {len(answered):,} of {len(whole):,} answered, "
        f"median {duration(float(answered.median())) if len(answered) else NOTHING}</h3>"
    )
    head += f'<p class="note">{escape(about)}</p>' if about else ""
    cards: list[str] = []
    for way, count in counts.most_common(_MOST_WAYS):
        members = {key for key, one in taken.items() if one == way}
        mine = hops[[key in members for key in zip(hops["repetition"], hops["sequence"], strict=True)]]
        share = (
            f'<p class="note">{count:,} of {len(taken):,} packets this way</p>' if count < len(taken) else ""
        )
        cards.append(share + _way(mine, shown=not cards))
    more = len(counts) - _MOST_WAYS
    rest = f'<p class="note">and {more} further ways</p>' if more > 0 else ""
    return card(head + "".join(cards) + rest, 'style="margin-top:14px"')


def _way(hops: pd.DataFrame, *, shown: bool) -> str:
    medians = hops.groupby("order")["seconds"].median()
    first = hops.drop_duplicates("order").set_index("order")
    places = [_place(str(first.loc[order, "destination"])) for order in medians.index]
    colours = {
        where: RUNS[number % len(RUNS)]
        for number, where in enumerate(dict.fromkeys(where for where, _, _ in places))
    }
    body = []
    for order, (where, interface, way) in zip(medians.index, places, strict=True):
        told = str(first.loc[order, "answer"])
        chips = "".join(f'<span class="chip">{escape(each)}</span>' for each in told.split("; ") if each)
        leg = (
            "→\N{NO-BREAK SPACE}there"
            if str(first.loc[order, "path"]) == "there"
            else "←\N{NO-BREAK SPACE}back"
        )
        dot = f'<i class="run" style="background:{colours[where]}"></i> '
        seconds = float(medians[order])
        body.append(
            [
                leg,
                dot + escape(where),
                escape(f"{interface} {way}"),
                duration(seconds) if seconds else "0",
                chips,
            ]
        )
    heads = ["", "where", "interface", "since the one before#", "rewritten since"]
    hidden = f"<details{' open' * shown}><summary>hop by hop</summary>{table(heads, body)}</details>"
    return _bar(medians, places, colours, first) + hidden


def _place(text: str) -> tuple[str, str, str]:
    """``node node-1 eth0 in`` → (node node-1, eth0, in)."""
    where, interface, way = text.rsplit(" ", 2)
    return where, interface, way


def _bar(
    medians: Any,
    places: list[tuple[str, str, str]],
    colours: dict[str, str],
    first: pd.DataFrame,
    width: float = 1080.0,
) -> str:
    total = float(medians.sum())
    if not total:
        return ""
    parts, x = [], 0.0
    for order, (where, interface, way) in zip(medians.index, places, strict=True):
        seconds = float(medians[order])
        wide = seconds / total * width
        leg = str(first.loc[order, "path"])
        tip = svg.title(
            f"{leg}, {where} {interface} {way}: {duration(seconds) if seconds else '0'} since the one before"
        )
        parts.append(
            svg.element(
                "rect",
                tip,
                x=x,
                y=0.0 if leg == "there" else 8.0,
                width=max(0.5, wide - 0.8),
                height=_BAR - 8,
                fill=colours[where],
                opacity=1.0 if leg == "there" else 0.55,
            )
        )
        if wide > 46:
            words, there = duration(seconds), leg == "there"
            y = 15.0 if there else 23.0
            parts.append(svg.text(x + 5, y, words, class_="inbar" if there else "inbar back"))
        x += wide
    keys = "".join(
        f'<span><i style="background:{colour}"></i>{escape(where)}</span>'
        for where, colour in colours.items()
    )
    return svg.figure(width, _BAR, parts, "hops of a packet to scale") + f'<div class="legend">{keys}</div>'
