"""The report as Markdown: verdicts and figures, no drawings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.cells import CampaignRun, is_campaign, read_campaign
from testbed.measure.frames import summary
from testbed.quantiles import quantile
from testbed.records import Run, read_run
from testbed.report.campaign import factor_effects, results
from testbed.report.colours import PATH_NAMES
from testbed.report.comparison import caution, environment_differences, sentence
from testbed.report.effects import Effect
from testbed.report.loads import named
from testbed.report.sides import Side, effects, read_sides
from testbed.report.svg import NOTHING, duration
from testbed.report.trust import overloads


def write_markdown(folders: Sequence[Path], target: Path) -> None:
    """Write the report of a run or campaign, or the comparison of several, to ``target``.

    Raises InputError.
    """
    if len(folders) > 1:
        text = _comparison(read_sides(folders))
    elif is_campaign(folders[0]):
        text = _campaign(read_campaign(folders[0]))
    else:
        text = _run(read_run(folders[0]), folders[0].resolve().name)
    target.write_text(text)


def _comparison(sides: Sequence[Side]) -> str:
    baseline = sides[0]
    parts = [f"# Comparison with {baseline.name}\n"]
    for other in sides[1:]:
        found = effects(baseline, other)
        parts += [f"## {other.name}\n", sentence(baseline, other, found) + "\n"]
        parts += [line + "\n" for line in caution(baseline, other, found)]
        rows = [
            [
                "control" if figure.noise else one.verdict,
                figure.title,
                figure.way,
                duration(one.before.median),
                duration(one.after.median),
                *_ratio(one),
                f"{one.before.ok} of {one.before.probes} → {one.after.ok} of {one.after.probes}",
                one.why,
            ]
            for figure, one in found.items()
        ]
        heads = [
            "verdict",
            "figure",
            "way",
            "baseline",
            "compared",
            "ratio",
            "95 % interval",
            "ok",
            "because",
        ]
        parts.append(_table(heads, rows))
        if different := environment_differences(baseline, other):
            parts.append(_table(["different", baseline.name, other.name], different))
    return "\n".join(parts)


def _ratio(one: Effect) -> list[str]:
    if one.ratio != one.ratio:
        return [NOTHING, NOTHING]
    return [f"{one.ratio:.3g}", f"{one.low:.3g} … {one.high:.3g}"]


def _campaign(run: CampaignRun) -> str:
    done = sum(cell.done for cell in run.cells)
    parts = [f"# {run.plan.campaign}: {done} of {len(run.plan.cells)} cells have a result\n"]
    names = [factor.name for factor in run.plan.factors]
    found = [one for one in results(run) if not one.noise]
    for one in found:
        rows = []
        for levels, part in one.medians.groupby(names, sort=False):
            medians = np.sort(part["median"].dropna().to_numpy(dtype=float))
            spread = [duration(quantile(medians, share)) for share in (0.5, 0.0, 1.0)]
            answered = f"{part['ok'].sum()} of {part['probes'].sum()}"
            rows.append([*map(str, levels), str(len(part)), answered, *spread])
        parts += [f"## {one.title}, {one.way}\n"]
        parts.append(
            _table([*names, "cells", "ok", "median of what was answered", "smallest", "largest"], rows)
        )
    rows = [
        [one.title, name, f"{first} → {level}", *_ratio(change)]
        for one in found
        for name, first, level, change in factor_effects(run, one)
    ]
    if rows:
        parts.append(_table(["figure", "factor", "levels", "ratio of medians", "95 % interval"], rows))
    failed = [
        [*cell.levels.values(), str(cell.replicate), cell.outcome, cell.error]
        for cell in run.cells
        if not cell.done
    ]
    if failed:
        parts.append(_table([*names, "replicate", "outcome", "why"], failed))
    return "\n".join(parts)


def _run(run: Run, name: str) -> str:
    parts = [f"# {run.environment.get('scenario', name)}: {name}\n"]
    if run.environment.get("error"):
        parts.append(f"**Ended early:** {run.environment['error']}\n")
    if run.expectations:
        rows = [
            ["yes" if one.met else "**no**", one.step, one.expected, one.observed] for one in run.expectations
        ]
        parts.append(_table(["met", "step", "expected", "observed"], rows))
    table = summary(run.frame)
    if not table.empty:
        parts.append(
            _table(["step", "protocol", "way", "probes", "ok", "median", "p95", "p99"], _figures(table))
        )
    if doubted := overloads(run.events):
        told = (f"- {named(variant, step)}: {why}\n" for (variant, step), why in doubted.items())
        parts.append("**Taken on an overloaded machine:**\n\n" + "".join(told))
    failed = run.frame[(run.frame["kind"] == "reach") & (run.frame["verdict"] != "ok")]
    if not failed.empty:
        groups: Any = failed.groupby(["step", "verdict", "reason"], sort=False).size()
        parts.append(
            _table(
                ["step", "verdict", "reason", "flows"],
                [[*map(str, key), str(n)] for key, n in groups.items()],
            )
        )
    return "\n".join(parts)


def _figures(table: pd.DataFrame) -> list[list[str]]:
    return [
        [
            named(str(row["variant"]), str(row["step"])),
            str(row["protocol"]).upper(),
            PATH_NAMES.get(str(row["path"]), str(row["path"])),
            str(row["probes"]),
            str(row["ok"]),
            *(duration(row[name]) for name in ("median", "p95", "p99")),
        ]
        for row in table.to_dict("records")
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text as a cell shows it, whatever is in it: on one line, no end of the cell, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
