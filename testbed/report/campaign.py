"""The report of a campaign: what its factors do to each figure, what did not run, and under which
conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from testbed.cells import NEVER, REPLICATE, CampaignRun, CellRecord, FactorRecord
from testbed.measure.frames import figures_of, times_of
from testbed.records import ENVIRONMENT, FIGURE
from testbed.report.colours import RUNS
from testbed.report.effects import NONE, Effect, Measured, effect, median
from testbed.report.grid import Point, Series, panel
from testbed.report.pieces import card, table
from testbed.report.plots import legend
from testbed.report.sides import NOISE, way
from testbed.report.svg import LOST, NOTHING, TIMES, duration

MOST_PANELS = 12
"""Panels drawn per figure."""


@dataclass(frozen=True)
class Result:
    """One figure of all cells. title, way: what it is called; medians: a row per cell with a column per
    factor, ``replicate``, ``median`` (seconds, of what was answered; NaN without any), ``ok`` and ``probes``;
    times: per cell, in the same order."""

    title: str
    way: str
    noise: bool
    medians: pd.DataFrame
    times: Sequence[Any]


def results(run: CampaignRun) -> list[Result]:
    """What the cells measured, figure by figure, in the order of the scenario's steps."""
    samples = run.measured()
    if samples.empty:
        return []
    samples = figures_of(samples)
    factors = [factor.name for factor in run.plan.factors]
    found = []
    for key, rows in samples.groupby(list(FIGURE), sort=False, dropna=False):
        variant, step, _, protocol, path = (str(part) for part in key)
        listed, times = [], []
        for cell, part in rows.groupby([*factors, REPLICATE], sort=False):
            values = times_of(part)
            ok = int((part["verdict"] == "ok").sum())
            listed.append((*cell, median(values), ok, len(part)))
            times.append(values)
        frame = pd.DataFrame(listed, columns=[*factors, REPLICATE, "median", "ok", "probes"])
        # What has no times and yet did not fail is no figure (a throughput's other rows).
        if frame["median"].notna().any() or (frame["ok"] < frame["probes"]).any():
            title = f"{variant}: {step}" if variant else step
            found.append(Result(title, way(protocol, path), path in NOISE, frame, times))
    return found


def campaign(run: CampaignRun) -> str:
    """The body of a campaign's report."""
    found = results(run)
    parts = [
        _header(run),
        _tiles(run),
        _notes(run),
        *(_figure(run, one) for one in found if not one.noise),
        _factors(run, [one for one in found if not one.noise]),
        _noise(run, found),
        _beside(run),
        _not_done(run),
        _cells(run),
        _environment(run),
        "<footer>Raw samples: samples/, one Parquet data set partitioned by factor; cells.parquet has a "
        "row per cell. "
        "Columns and units are in docs/results.md. This page is made from the folder alone.</footer>",
    ]
    return "".join(parts)


def _header(run: CampaignRun) -> str:
    begun = [cell.started for cell in run.cells if cell.started]
    when = datetime.fromtimestamp(min(begun), UTC).strftime("%-d %B %Y, %H:%M UTC") if begun else ""
    kicker = " · ".join(part for part in (when, f"campaign of {run.plan.scenario}") if part)
    return (
        f'<header><div class="kicker">{escape(kicker)}</div><h1>{escape(run.plan.campaign)}</h1>'
        f"<p>{escape(run.plan.description)}</p></header>"
    )


def _tiles(run: CampaignRun) -> str:
    planned, done = len(run.plan.cells), sum(cell.done for cell in run.cells)
    unmet = sum(cell.outcome == "unmet" for cell in run.cells)
    marked = sum(bool(cell.marks) for cell in run.cells)
    spent = sum(cell.seconds for cell in run.cells)
    largest = max((cell.memory for cell in run.cells), default=0)
    shown = [
        (f"{done} of {planned}", "cells have a result", "good" if done == planned else "bad"),
        (str(run.plan.replicates), "replicates, in blocks of random order", ""),
        (f"{spent / 60:.0f} min" if spent >= 90 else f"{spent:.0f} s", "of cells, added up", ""),
        (f"{largest >> 20} MiB", "largest memory of a cell", ""),
    ]
    if unmet:
        shown.append((str(unmet), "cells with an expectation not met", "bad"))
    if marked:
        shown.append((str(marked), "cells marked as doubtful", "bad"))
    tiles = "".join(
        f'<div class="tile {kind}"><b>{escape(big)}</b><span>{escape(small)}</span></div>'
        for big, small, kind in shown
    )
    return f'<section class="tiles">{tiles}</section>'


def _notes(run: CampaignRun) -> str:
    said = [*run.plan.notes]
    missing = len(run.plan.cells) - len(run.cells)
    if missing:
        said.append(f"{missing} cells have not run yet.")
    return "".join(f'<p class="note" style="margin-top:14px">{escape(line)}</p>' for line in said)


# --- a figure by factors ----------------------------------------------------------------------------------


def axes(factors: Sequence[FactorRecord]) -> tuple[FactorRecord, FactorRecord | None, list[FactorRecord]]:
    """Which factor goes along the axis, which one has the colours, and which ones make panels: along the
    axis the one of numbers with the most levels, else the one with the most levels."""
    ranked = sorted(factors, key=lambda one: (numeric(one.levels) is not None, len(one.levels)), reverse=True)
    along, others = ranked[0], [one for one in factors if one is not ranked[0]]
    return along, (others[0] if others else None), others[1:]


def numeric(levels: Sequence[str]) -> list[float] | None:
    """The levels as numbers, where all are and none is less than 0."""
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        return None
    return numbers if all(number >= 0 and math.isfinite(number) for number in numbers) else None


def _figure(run: CampaignRun, result: Result) -> str:
    along, coloured, others = axes(run.plan.factors)
    marked = {(*cell.levels.values(), cell.replicate) for cell in run.cells if cell.marks}
    names = [factor.name for factor in run.plan.factors]
    panels = []
    colours = dict(zip(coloured.levels if coloured else ("",), RUNS * 10, strict=False))
    known = result.medians["median"].dropna()
    bounds = (float(known.min()), float(known.max())) if len(known) else None
    every = list(product(*(factor.levels for factor in others)))
    for chosen in every[:MOST_PANELS]:
        part = result.medians
        for factor, level in zip(others, chosen, strict=True):
            part = part[part[factor.name] == level]
        series = []
        for level, colour in colours.items():
            rows = part[part[coloured.name] == level] if coloured else part
            points = [
                Point(
                    along.levels.index(str(row[along.name])),
                    float(row["median"]),
                    (*(row[name] for name in names), row[REPLICATE]) in marked,
                    _told(row, names),
                )
                for row in rows.to_dict("records")
            ]
            if points:
                series.append(Series(level or result.title, colour, points))
        if series and bounds is not None:
            where = ", ".join(f"{factor.name} {level}" for factor, level in zip(others, chosen, strict=True))
            head = f"<h3>{escape(where)}</h3>" if where else ""
            width = 560.0 if len(every) > 1 else 1080.0
            drawn = panel(series, along.name, along.levels, numeric(along.levels), bounds, width)
            panels.append(card(head + drawn))
    keys = (
        legend({f"{coloured.name} {level}": colour for level, colour in colours.items()}) if coloured else ""
    )
    note = (
        '<p class="note">A dot is the median of one cell, of what was answered in it; a line joins the '
        "geometric means over replicates. Hollow: the cell is marked as doubtful. A cross at the "
        "top: nothing was answered in that cell.</p>"
    )
    more = (
        f'<p class="note">{len(every) - MOST_PANELS} panels more are not drawn.</p>'
        if len(every) > MOST_PANELS
        else ""
    )
    shown = f'<div class="{"grid2" if len(panels) > 1 else ""}">{"".join(panels)}</div>'
    return (
        f"<h2>{escape(result.title)} <small>{escape(result.way)}</small></h2>{note}{keys}{shown}{more}"
        f"{card(_medians(run, result, along), _GAP)}"
    )


_GAP = 'style="margin-top:14px"'


def _told(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    levels = ", ".join(f"{name} {row[name]}" for name in names)
    answered = "" if row["ok"] == row["probes"] else f", {row['ok']:,} of {row['probes']:,} ok"
    return f"{levels}, replicate {row[REPLICATE]}: median {duration(float(row['median']))}{answered}"


def _medians(run: CampaignRun, result: Result, along: FactorRecord) -> str:
    """A row per combination of the other factors, a column per level of the one along the axis."""
    others = [factor for factor in run.plan.factors if factor.name != along.name]
    rows = []
    for chosen in product(*(factor.levels for factor in others)):
        part = result.medians
        for factor, level in zip(others, chosen, strict=True):
            part = part[part[factor.name] == level]
        if part.empty:
            continue
        cells = []
        for level in along.levels:
            cells.append(spread(part[part[along.name] == level]))
        rows.append([*(escape(level) for level in chosen), *cells])
    heads = [*(factor.name for factor in others), *(f"{along.name} {level}#" for level in along.levels)]
    return table(heads, rows)


def spread(cells: pd.DataFrame) -> str:
    """Cells of the same levels as HTML: the geometric mean of their medians, from where to where these go,
    and how much failed."""
    if cells.empty:
        return NOTHING
    medians = cells["median"].dropna().to_numpy(dtype=float)
    shown = duration(float(np.exp(np.log(medians).mean()))) if len(medians) else LOST
    about = []
    if len(medians) > 1:
        about.append(f"{duration(float(medians.min()))} … {duration(float(medians.max()))}")
    if len(cells) > 1:
        about.append(f"{len(cells)} cells")
    if silent := len(cells) - len(medians):
        about.append(f"{silent} without any answer" if len(cells) > 1 else "no answer")
    if failed := int((cells["probes"] - cells["ok"]).sum()):
        about.append(f"{failed:,} of {int(cells['probes'].sum()):,} failed")
    return f"{shown}<br><small>{', '.join(about)}</small>" if about else shown


# --- what a factor does -----------------------------------------------------------------------------------


def factor_effects(run: CampaignRun, result: Result) -> list[tuple[str, str, str, Effect]]:
    """Factor, first level, other level, and the effect of going from one to the other: cells are compared
    with the cells of the same levels of all other factors, and weigh the same."""
    listed = []
    medians = result.medians
    for factor in run.plan.factors:
        first = factor.levels[0]
        others = [other.name for other in run.plan.factors if other is not factor]
        for level in factor.levels[1:]:
            sides: tuple[list[Any], list[Any]] = ([], [])
            counts = [[0, 0], [0, 0]]
            combinations = medians.groupby(others, sort=False) if others else [((), medians)]
            for _, part in combinations:
                pair = [part[part[factor.name] == one] for one in (first, level)]
                if any(each.empty for each in pair):
                    continue
                for count, rows in zip(counts, pair, strict=True):
                    count[0] += int(rows["ok"].sum())
                    count[1] += int(rows["probes"].sum())
                answered = [rows.dropna(subset=["median"]) for rows in pair]
                if any(rows.empty for rows in answered):
                    continue  # judged by what failed: the other's times have nothing to be compared with
                # What the other factors do is taken out, or it would drown what this one does.
                centre = float(np.exp(np.log(part["median"].dropna().to_numpy(dtype=float)).mean()))
                for side, rows in zip(sides, answered, strict=True):
                    side += [result.times[place] / centre for place in rows.index]
            if counts[0][1]:
                before, after = (Measured(side, *count) for side, count in zip(sides, counts, strict=True))
                listed.append((factor.name, first, level, effect(before, after)))
    return listed


def _factors(run: CampaignRun, found: Sequence[Result]) -> str:
    rows = []
    for result in found:
        for name, first, level, one in factor_effects(run, result):
            known = one.ratio == one.ratio
            kind = {"better": "good", "worse": "bad"}.get(one.verdict, "none")
            word = one.verdict if one.verdict == NONE else one.why
            rows.append(
                [
                    escape(result.title),
                    escape(result.way),
                    escape(name),
                    f"{escape(first)} → {escape(level)}",
                    f"{TIMES}{one.ratio:.3g}" if known else NOTHING,
                    f"{one.low:.3g} … {one.high:.3g}" if known else NOTHING,
                    f'<span class="pill {kind}">{escape(word)}</span>',
                    "cells" if one.units else "samples",
                ]
            )
    if not rows:
        return ""
    heads = [
        "figure",
        "protocol, way",
        "factor",
        "levels",
        "ratio of medians#",
        "95 % interval#",
        "",
        "resampled",
    ]
    note = (
        '<p class="note">Each level against the factor&rsquo;s first one, over all levels of the other '
        "factors, whose own effect is taken out. Where the lines above are not parallel the factors depend "
        "on each other, and this average tells half of it.</p>"
    )
    return f"<h2>What each factor does</h2>{note}{card(table(heads, rows))}"


# --- conditions -------------------------------------------------------------------------------------------


def _noise(run: CampaignRun, found: Sequence[Result]) -> str:
    """The noise floor in the order the cells ran: whether the machine stayed the same."""
    floors = [one for one in found if one.noise]
    if not floors:
        return ""
    position = {(*cell.levels.values(), cell.replicate): cell.position for cell in run.cells}
    names = [factor.name for factor in run.plan.factors]
    points = []
    for row in floors[0].medians.dropna(subset=["median"]).to_dict("records"):
        place = position[(*(row[name] for name in names), row[REPLICATE])]
        points.append(Point(place - 1, float(row["median"]), False, _told(row, names)))
    if not points:
        return ""
    medians = [point.value for point in points]
    labels = [str(number) for number in range(1, len(run.plan.cells) + 1)]
    numbers = [float(label) for label in labels]
    series = Series("noise floor", "#8c939e", sorted(points, key=lambda point: point.place))
    drawn = panel(
        [series],
        "cells in the order they ran",
        labels,
        numbers,
        (min(medians), max(medians)),
        width=1080,
        line=False,
    )
    note = (
        '<p class="note">The machine&rsquo;s own part of every figure, measured in each cell. A trend or '
        "steps would mean that it changed while the campaign ran; the random order in blocks spreads that "
        "over all levels.</p>"
    )
    return f"<h2>Noise floor</h2>{note}{card(drawn)}"


def _beside(run: CampaignRun) -> str:
    """What running beside others did to each figure; "" where cells ran alone."""
    found = run.disturbance
    if found is None:
        return ""
    rows = [
        [
            escape(one.figure),
            " ".join(f"{TIMES}{ratio:.3g}" if ratio < NEVER else LOST for ratio in one.together),
            f"{TIMES}{one.apart:.3g}",
            '<span class="pill bad">slower</span>' if found.slow(one) else "",
        ]
        for one in found.figures
    ]
    heads = ["figure", "in each cell, to the cell alone#", "two runs alone apart#", ""]
    listed = card(table(heads, rows)) if rows else ""
    said = f'<p class="note">{escape(found.told()[:1].upper() + found.told()[1:])}.</p>'
    return f"<h2>{found.workers} cells at once</h2>{said}{listed}"


def _not_done(run: CampaignRun) -> str:
    rows = [
        [*map(escape, cell.levels.values()), str(cell.replicate), escape(cell.outcome), escape(cell.error)]
        for cell in run.cells
        if not cell.done
    ]
    if not rows:
        return ""
    heads = [*(factor.name for factor in run.plan.factors), "replicate#", "outcome", "why"]
    return f"<h2>Cells without a result</h2>{card(table(heads, rows))}"


def _cells(run: CampaignRun) -> str:
    rows = [_cell(cell) for cell in sorted(run.cells, key=lambda cell: cell.position)]
    heads = [
        *("#", *(factor.name for factor in run.plan.factors), "replicate#", "outcome", "took#", "memory#"),
        *("CPU busy#", "machine", "marks", "address"),
    ]
    listed = table(heads, rows)
    return f"<h2>Cells</h2><details><summary>all {len(rows)} cells</summary>{card(listed)}</details>"


def _cell(cell: CellRecord) -> list[str]:
    kind = "good" if cell.outcome == "met" else "bad"
    return [
        str(cell.position),
        *map(escape, cell.levels.values()),
        str(cell.replicate),
        f'<span class="pill {kind}">{escape(cell.outcome)}</span>',
        f"{cell.seconds:.1f} s",
        f"{cell.memory >> 20} MiB",
        f"{cell.busy:.0%}",
        escape(cell.machine),
        escape("; ".join(cell.marks)),
        f"<small>{cell.address}</small>",
    ]


def _environment(run: CampaignRun) -> str:
    import json

    seen: dict[str, set[str]] = {}
    for cell in run.cells:
        if cell.done:
            about = json.loads((run.run_folder(cell) / ENVIRONMENT).read_text())
            kernel, cpu = about.get("kernel") or {}, about.get("cpu") or {}
            for name, value in (
                ("kernel", kernel.get("release")),
                ("processor", f"{cpu.get('count')} CPUs, {cpu.get('model')}"),
                ("system", f"{about.get('distribution')}, Python {about.get('python')}"),
                ("machine", cell.machine),
                ("cells at once", cell.beside),
                ("code", cell.code),
            ):
                seen.setdefault(name, set()).add(str(value))
    facts = {
        "order": f"random in {run.plan.replicates} blocks, seed {run.plan.seed}",
        **{name: "; ".join(sorted(values)) for name, values in seen.items()},
    }
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    differ = [name for name, values in seen.items() if len(values) > 1]
    note = f'<p class="note">Not the same in all cells: {", ".join(differ)}.</p>' if differ else ""
    shown = f'<dl class="facts">{listed}</dl>'
    return f"<h2>Environment</h2>{note}{card(shown)}"
