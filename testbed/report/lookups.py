"""The part of a report on name lookups: how long they take, and how many DNS questions, by form of name."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from testbed.measure.frames import waits
from testbed.quantiles import quantile
from testbed.report import svg
from testbed.report.colours import RUNS
from testbed.report.pieces import card, table
from testbed.report.plots import Line, ecdf, legend
from testbed.report.svg import NOTHING, duration

HOW = {"files": "hosts files, noticed", "restart": "a new configuration, so a new server"}
"""What a change of names takes, in words."""


def lookups(samples: pd.DataFrame) -> str:
    """The section; "" where no name was looked up."""
    found = samples[samples["kind"] == "dns"]
    if found.empty:
        return ""
    parts = [
        "<h2>How long a name lookup takes</h2>"
        '<p class="note">From the call of getaddrinfo in a pod to its return, both families asked for. '
        "Questions: the DNS messages that left the pod for one lookup, counted in a capture.</p>"
    ]
    for step, rows in found.groupby("step", sort=False):
        parts.append(_step(str(step), rows))
    return "".join(parts) + _programming(samples)


def _programming(samples: pd.DataFrame) -> str:
    """How long the DNS servers took to answer by changes."""
    changes = samples[(samples["kind"] == "programming") & (samples["step"] == "DNS programming")]
    rows = []
    for how, of_how in changes.groupby("path", sort=False):
        values = of_how["seconds"].to_numpy(dtype=float)
        figures = [duration(quantile(np.sort(values), share)) for share in (0.5, 0.99, 1.0)]
        rows.append([escape(HOW.get(str(how), str(how))), f"{len(of_how):,}", *figures])
    if not rows:
        return ""
    note = '<p class="note">From the write to the store until the servers of a node answer by it.</p>'
    return f"<h2>DNS programming latency</h2>{note}" + card(
        table(["what it took", "changes#", "median#", "p99#", "max#"], rows)
    )


def _step(step: str, rows: pd.DataFrame) -> str:
    forms = list(dict.fromkeys(rows["path"]))
    colours = {str(form): RUNS[number % len(RUNS)] for number, form in enumerate(forms)}
    lines = []
    for number, form in enumerate(forms):
        values = rows.loc[rows["path"] == form, "seconds"].dropna().to_numpy(dtype=float)
        if len(values):
            dash = "5 3" if number >= len(RUNS) else None
            lines.append(Line(str(form), colours[str(form)], values, dash=dash))
    head = f"<h3>{escape(step)}</h3>"
    drawn = card(head + ecdf(lines, subject="lookup time (logarithmic)")) if lines else ""
    return f'{legend(colours)}<div class="grid2">{drawn}{card(_questions(rows, colours))}</div>' + card(
        _figures(rows), 'style="margin-top:14px"'
    )


def _questions(rows: pd.DataFrame, colours: dict[str, str]) -> str:
    """A bar per form: the median number of questions of one lookup."""
    medians = {form: float(rows.loc[rows["path"] == form, "attempts"].median()) for form in colours}
    left, width, row, most = 170.0, 560.0, 26.0, max([*medians.values(), 1.0])
    parts = []
    for place, (form, count) in enumerate(medians.items()):
        y = 8 + place * row
        length = count / most * (width - left - 40)
        parts.append(svg.text(left - 8, y + 14, form, class_="tick", text_anchor="end"))
        parts.append(svg.element("rect", x=left, y=y + 2, width=length, height=row - 9, fill=colours[form]))
        parts.append(svg.text(left + length + 6, y + 14, f"{count:g}", class_="tick"))
    height = 16 + row * len(medians)
    return "<h3>DNS questions of one lookup</h3>" + svg.figure(
        width, height, parts, "questions of one lookup"
    )


def _figures(rows: pd.DataFrame) -> str:
    body = []
    for form, of_form in rows.groupby("path", sort=False):
        times = np.sort(waits(of_form))
        failed = of_form[of_form["verdict"] != "ok"]
        reasons = ", ".join(sorted({str(reason) for reason in failed["reason"]})) or NOTHING
        network = of_form["seconds_kernel"].dropna()
        body.append(
            [
                escape(str(form)),
                escape(str(of_form["destination"].iloc[0])),
                f"{len(of_form):,}",
                f"{len(failed):,}",
                f"{of_form['attempts'].median():g}",
                *(duration(quantile(times, share)) for share in (0.5, 0.99)),
                duration(quantile(np.sort(network.to_numpy(dtype=float)), 0.5)),
                escape(reasons),
            ]
        )
    heads = [
        "form",
        "name",
        "lookups#",
        "failed#",
        "questions#",
        "median#",
        "p99#",
        "on the wire#",
        "failures",
    ]
    return table(heads, body)
