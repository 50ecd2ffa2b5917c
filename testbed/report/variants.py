"""The part of a report that compares the variants of a run: one table, a row for each thing measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

import pandas as pd

from testbed.measure import metrics
from testbed.measure.floor import FLOOR_PATH
from testbed.measure.frames import samples_of
from testbed.quantiles import quantile
from testbed.records import LOOPBACK, READ, Run
from testbed.report.colours import PATH_NAMES
from testbed.report.pieces import card, table
from testbed.report.probes import counted
from testbed.report.svg import NOTHING, duration

Entry = tuple[str, str, str, str]
"""The label of a row, what else it is called where another has that label, the variant, and how it came out
there, as HTML."""


def side_by_side(run: Run) -> str:
    """The section; "" where the run has no variants."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for label, other, variant, text in (*_started(run), *_measured(run), *_read(run)):
        rows.setdefault((label, other), {})[variant] = text
    variants = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    if len(variants) < 2:
        return ""
    note = (
        '<p class="note">Medians; of an outage the longest time in which nothing was answered. The figures '
        "with their intervals are below.</p>"
    )
    labels = Counter(label for label, _ in rows)
    body = [
        [
            escape(f"{label} ({other})" if labels[label] > 1 else label),
            *(row.get(variant, NOTHING) for variant in variants),
        ]
        for (label, other), row in rows.items()
    ]
    heads = ["", *(f"{variant}#" for variant in variants)]
    return f"<h2>Side by side</h2>{note}" + card(table(heads, body), 'style="overflow-x:auto"')


def _started(run: Run) -> Iterator[Entry]:
    for event in run.events:
        if event.what == "cluster up" and event.detail.get("variant"):
            seconds = float(event.detail["seconds"])
            yield "cluster up", "start", str(event.detail["variant"]), duration(seconds)


def _measured(run: Run) -> Iterator[Entry]:
    found = counted(run.frame)
    found = found[found["variant"].ne("") & ~found["path"].isin([LOOPBACK, FLOOR_PATH])]
    ways = {str(step): of["path"].nunique() for step, of in found.groupby("step")}
    for (variant, step, kind), rows in found.groupby(["variant", "step", "kind"], sort=False, dropna=False):
        for label, text in _figures(str(step), str(kind), rows, several=ways[str(step)] > 1):
            yield label, str(kind), str(variant), text


def _figures(step: str, kind: str, rows: pd.DataFrame, *, several: bool) -> Iterator[tuple[str, str]]:
    """Label and figure of all that a step measured of one kind. several: whether it took several ways."""
    if kind == "path":
        yield from _hops(step, rows)
    elif rows["bits_per_second"].notna().any():
        rates = sorted(rows["bits_per_second"].dropna())
        yield f"{step}, Mbit/s", f"{quantile(rates, 0.5) / 1e6:,.0f}"
    elif kind in ("rtt", "ask", "probe", "dns"):
        yield from _times(step, rows, several=several)


def _times(step: str, rows: pd.DataFrame, *, several: bool) -> Iterator[tuple[str, str]]:
    for path, of_path in rows.groupby("path", sort=False):
        times = sorted(of_path["seconds"].dropna())
        label = f"{step}, {PATH_NAMES.get(str(path), str(path))}" if several else step
        yield label, duration(quantile(times, 0.5)) if times else "lost"
    if set(rows["kind"]) & {"ask", "probe"} and (lost := metrics.outage(samples_of(rows))):
        yield f"{step}: longest outage", duration(lost)


def _hops(step: str, rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    whole = sorted(rows.loc[rows["order"] == 0, "seconds"].dropna())
    yield f"{step}: there and back", duration(quantile(whole, 0.5)) if whole else "lost"
    there = rows[(rows["order"] > 0) & (rows["path"] == "there")]
    crossed: Mapping[object, int] = there.groupby(["repetition", "sequence"]).size().to_dict()
    if crossed:
        yield f"{step}: interfaces on the way there", f"{quantile(sorted(crossed.values()), 0.5):g}"


def _read(run: Run) -> Iterator[Entry]:
    for event in run.events:
        if event.what == READ and event.detail.get("variant"):
            detail = event.detail
            step = f"step {detail.get('step', '')}"  # which runs of before did not say
            yield str(detail["name"]), step, str(detail["variant"]), escape(str(detail["value"]))
