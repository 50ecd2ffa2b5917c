"""The report as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from testbed.cells import is_campaign, read_campaign
from testbed.measure.frames import summary, waits
from testbed.records import LOOPBACK, Expectation, Run, read_run
from testbed.report.campaign import campaign
from testbed.report.colours import PATH_NAMES, PATHS, RUNS, SIGNS, VERDICTS
from testbed.report.commands import commands
from testbed.report.comparison import comparison
from testbed.report.heatmap import heatmap
from testbed.report.loads import growth, named, node_changes, over_time, programming
from testbed.report.loads import tiles as load_tiles
from testbed.report.lookups import lookups
from testbed.report.pieces import card as _card
from testbed.report.pieces import table as _table
from testbed.report.plots import Line, ecdf, legend, raincloud, raincloud_height
from testbed.report.probes import floors, middle_of, probes
from testbed.report.sides import read_sides
from testbed.report.svg import NOTHING, duration
from testbed.report.topology import topology
from testbed.report.trust import few_blocks, mark, near_floor, overloads
from testbed.report.variants import side_by_side
from testbed.report.ways import ways


def write_report(folders: Sequence[Path], target: Path, title: str = "") -> None:
    """Write the report of a run or campaign, or the comparison of several, to ``target``.

    Raises InputError.
    """
    name = title or folders[0].resolve().name
    if len(folders) > 1:
        name, body = "Comparison", comparison(read_sides(folders))
    elif is_campaign(folders[0]):
        body = campaign(read_campaign(folders[0]))
    else:
        body = single(read_run(folders[0]), name)
    target.write_text(page(name, body))


def page(title: str, body: str) -> str:
    """A whole document around a body."""
    style = (Path(__file__).parent / "report.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def single(run: Run, name: str) -> str:
    """The body of one run's report: a table of contents of what a reader asks, in order."""
    table = summary(run.frame)
    parts = [
        _header(run, name),
        _tiles(run, table),
        side_by_side(run),
        commands(run.events),
        topology(run.environment),
        _expectations(run.expectations),
        _reachability(run.frame),
        _distributions(run.frame),
        lookups(run.frame),
        ways(run),
        over_time(run),
        probes(run),
        growth(run.frame),
        programming(run.frame),
        node_changes(run.frame),
        _summary_table(run, table),
        _environment(run),
        _footer(),
    ]
    return "".join(parts)


# --- one run ----------------------------------------------------------------------------------------------


def _header(run: Run, name: str) -> str:
    about = run.environment
    started = _when(run)
    return (
        f'<header><div class="kicker">{escape(started)} · run {escape(name)}</div>'
        f"<h1>{escape(str(about.get('scenario', name)))}</h1>"
        f"<p>{escape(str(about.get('description') or ''))}</p></header>"
    )


def _when(run: Run) -> str:
    if not run.events:
        return ""
    return datetime.fromtimestamp(run.events[0].wall, UTC).strftime("%-d %B %Y, %H:%M:%S UTC")


def _tile(big: str, small: str, kind: str = "", colour: str = "") -> str:
    dot = f'<i class="dot" style="background:{colour}"></i>' if colour else ""
    return f'<div class="tile {kind}"><b>{escape(big)}</b><span>{dot}{escape(small)}</span></div>'


def _tiles(run: Run, table: pd.DataFrame) -> str:
    tiles = []
    error = run.environment.get("error")
    met = sum(one.met for one in run.expectations)
    if error:
        tiles.append(_tile("ended early", str(error)[:90], "bad"))
    if run.expectations:
        total = len(run.expectations)
        tiles.append(_tile(f"{met} of {total}", "expectations met", "good" if met == total else "bad"))
    reach = run.frame[run.frame["kind"] == "reach"]
    if len(reach):
        passed = int((reach["verdict"] == "ok").sum())
        share = f"{passed / len(reach):.1%}" if passed < len(reach) else "100%"
        tiles.append(_tile(share, f"of {len(reach):,} flows answered"))
    tiles += [_tile(big, small) for big, small in load_tiles(run)]
    rtt = table[table["kind"] == "rtt"]
    if rtt["variant"].nunique() < 2:  # those of several are told apart in the table of figures
        for path, colour in PATHS.items():
            for row in rtt[rtt["path"] == path].to_dict("records"):
                tiles.append(_tile(duration(row["median"]), f"median, {PATH_NAMES[path]}", "", colour))
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _expectations(expectations: Iterable[Expectation]) -> str:
    rows = [
        [
            f'<span class="pill {"good" if one.met else "bad"}">{"met" if one.met else "not met"}</span>',
            escape(one.step),
            escape(one.expected),
            escape(one.observed),
        ]
        for one in expectations
    ]
    if not rows:
        return ""
    return "<h2>Expected and observed</h2>" + _card(_table(["", "step", "expected", "observed"], rows))


def _reachability(samples: pd.DataFrame) -> str:
    reach = samples[samples["kind"] == "reach"]
    if reach.empty:
        return ""
    cards = []
    for step, rows in reach.groupby("step", sort=False):
        passed = int((rows["verdict"] == "ok").sum())
        head = f"<h3>{escape(str(step))} · {passed:,} of {len(rows):,} ok</h3>"
        cards.append(_card(head + heatmap(rows)))
    seen = [verdict for verdict in VERDICTS if (reach["verdict"] == verdict).any()]
    names = {f"{verdict} {SIGNS.get(verdict, '')}".strip(): VERDICTS[verdict] for verdict in seen}
    names["not tried"] = "#dfe4e9"
    return (
        "<h2>Who reaches whom</h2>"
        '<p class="note">Sources down, destinations across, in the same order, grouped by node. '
        "Point at a cell for the flow and the reason. An empty column is a pod that declares no port "
        "for that protocol, so nobody asked it.</p>"
        f'{legend(names)}<div class="grid2">{"".join(cards)}</div>{_failures(reach)}'
    )


def _failures(reach: pd.DataFrame) -> str:
    failed = reach[reach["verdict"] != "ok"]
    if failed.empty:
        return ""
    rows = []
    for (step, verdict, reason), group in failed.groupby(["step", "verdict", "reason"], sort=False):
        first = group.iloc[0]
        example = f"{first['source']} → {first['destination']} ({first['ip']})"
        reporters = ", ".join(sorted({str(r) for r in group["reporter"] if r})) or NOTHING
        rows.append(
            [
                escape(str(step)),
                escape(str(verdict)),
                escape(str(reason)),
                escape(reporters),
                f"{len(group):,}",
                escape(example),
            ]
        )
    heads = ["step", "verdict", "reason", "told by", "flows#", "for example"]
    return _card(_table(heads, rows), 'style="margin-top:14px"')


def lines_by_path(samples: pd.DataFrame) -> list[Line]:
    """A line per way of the round-trip samples; the noise floor first."""
    rtt = samples[samples["kind"] == "rtt"]
    lines = []
    for path, colour in PATHS.items():
        found = waits(rtt[rtt["path"] == path])
        values = found[np.isfinite(found)]
        if len(values):
            lost = len(found) - len(values)
            lines.append(Line(PATH_NAMES[path], colour, values, noise=path == LOOPBACK, lost=lost))
    return lines


def lines_by_variant(samples: pd.DataFrame) -> dict[str, list[Line]]:
    """The ways of the round-trip samples, each with a line per variant; without the noise floor."""
    found: dict[str, list[Line]] = {}
    variants = list(dict.fromkeys(map(str, samples["variant"])))
    for number, variant in enumerate(variants):
        for line in lines_by_path(samples[samples["variant"] == variant]):
            if not line.noise:
                colour, dash = RUNS[number % len(RUNS)], "5 3" if number >= len(RUNS) else None
                of_variant = replace(line, name=variant, colour=colour, dash=dash)
                found.setdefault(line.name, []).append(of_variant)
    return found


def _distributions(samples: pd.DataFrame) -> str:
    lines = lines_by_path(samples)
    if not lines:
        return ""
    if samples.loc[samples["kind"] == "rtt", "variant"].nunique() > 1:
        by_way = lines_by_variant(samples[samples["kind"] == "rtt"])
        names = {line.name: line.colour for of_way in by_way.values() for line in of_way}
        cards = (_card(f"<h3>{escape(way)}</h3>{ecdf(of_way)}") for way, of_way in by_way.items())
        return (
            "<h2>How long a round trip takes</h2>"
            '<p class="note">ICMP echoes, timed from the send call to the kernel&rsquo;s receive timestamp, '
            "as ping does: for each way the share answered within a time, a line per variant. Their noise "
            "floors stand in the table of figures.</p>"
            f'{legend(names)}<div class="grid2">{"".join(cards)}</div>'
        )
    names = {line.name: line.colour for line in lines}
    return (
        "<h2>How long a round trip takes</h2>"
        '<p class="note">ICMP echoes, timed from the send call to the kernel&rsquo;s receive timestamp, as '
        "ping does. The noise floor is the same measurement over the loopback of one pod, interleaved "
        "with the others: what this machine and the prober add to every figure.</p>"
        f'{legend(names)}<div class="grid2">'
        f"{_card('<h3>Share answered within</h3>' + ecdf(lines, height=raincloud_height(len(lines))))}"
        f"{_card('<h3>Every echo</h3>' + raincloud(lines))}</div>"
    )


def _summary_table(run: Run, table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    of_floor, doubtful = floors(run.frame), overloads(run.events)
    doubts = []
    for row in table.to_dict("records"):
        key = (str(row["variant"]), str(row["step"]))
        floor = middle_of(of_floor.get(key), str(row["protocol"]))
        near = near_floor(row["median"], floor) if row["kind"] in ("probe", "path") else ""
        doubts.append(mark(near, doubtful.get(key, "") if row["kind"] != "programming" else ""))
    heads = [
        "step",
        "protocol",
        "way",
        "probes#",
        "ok#",
        "median#",
        "95 % interval of the median#",
        "p95#",
        "p99#",
        "max#",
        "kernel to kernel#",
    ]
    rows = [
        [
            escape(named(str(row["variant"]), str(row["step"]))),
            escape(str(row["protocol"]).upper()),
            escape(PATH_NAMES.get(str(row["path"]), str(row["path"]))),
            f"{row['probes']:,}",
            f"{row['ok']:,}",
            *(
                f"{duration(row['median'])} {doubt}",
                _interval(row),
                duration(row["p95"]),
                duration(row["p99"]),
            ),
            *(duration(row["max"]), duration(row["kernel_median"])),
        ]
        for row, doubt in zip(table.to_dict("records"), doubts, strict=True)
    ]
    note = (
        '<p class="note">TCP: from SYN to SYN-ACK as the kernel measures it. UDP and ICMP: from the send '
        "call to the kernel&rsquo;s receive timestamp. Kernel to kernel: median from transmit to receive "
        "timestamp. What failed counts as infinitely late: a quantile that falls on it is <i>lost</i>. The "
        "interval is a bootstrap of the median: of blocks of neighbours, as these are alike, or of whole "
        "repetitions. ≈: nearer to the noise floor than five of it, taken on an overloaded machine, or an "
        "interval of few blocks; point at it for the reason.</p>"
    )
    return f"<h2>Figures</h2>{note}{_card(_table(heads, rows))}"


def _interval(row: dict[Any, Any]) -> str:
    low, high = row["median_low"], row["median_high"]
    doubt = mark(few_blocks(row["median_blocks"]))
    return NOTHING if low != low else f"{duration(low)} … {duration(high)} {doubt}"


def _environment(run: Run) -> str:
    about = run.environment
    cpu, kernel, package = about.get("cpu") or {}, about.get("kernel") or {}, about.get("testbed") or {}
    floor = about.get("noise_floor")
    memory = about.get("memory_bytes")
    facts = {
        "machine": f"{cpu.get('count')} CPUs, {cpu.get('model')}, {memory / 2**30:.1f} GiB"
        if memory
        else NOTHING,
        "kernel": f"{kernel.get('release')} ({kernel.get('machine')})",
        "system": f"{about.get('distribution')}, Python {about.get('python')}",
        "testbed": f"{package.get('version')}, commit {package.get('commit') or 'unknown'}",
        "noise floor": f"median {duration(floor['median'])}, p95 {duration(floor['p95'])}"
        if floor
        else NOTHING,
        "seed": str(about.get("seed")),
        "machine meanwhile": _meanwhile(run),
        "load at the start": ", ".join(f"{one:.2f}" for one in about.get("load_average") or ()) or NOTHING,
        "packages": ", ".join(f"{name} {version}" for name, version in (about.get("packages") or {}).items()),
        "tools": "; ".join(f"{version}" for version in (about.get("tools") or {}).values() if version),
    }
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    shown = f'<dl class="facts">{listed}</dl>'
    return f"<h2>Environment</h2>{_card(shown + _spec(about) + _timeline(run))}"


def _meanwhile(run: Run) -> str:
    """The busiest step, the most that was stolen, the most of soft interrupts."""
    used = [one.detail for one in run.events if one.what == "machine"]
    if not used:
        return NOTHING
    busy, steal, soft = (
        max(float(one.get(name, 0.0)) for one in used) for name in ("busy", "steal", "softirq")
    )
    return f"CPUs up to {busy:.0%} busy, {steal:.1%} stolen, {soft:.1%} in soft interrupts"


def _spec(about: dict[str, Any]) -> str:
    text = json.dumps(about.get("spec"), indent=2, ensure_ascii=False)
    return f"<details><summary>cluster spec, defaults filled in</summary><pre>{escape(text)}</pre></details>"


def _timeline(run: Run) -> str:
    if not run.events:
        return ""
    begin = run.events[0].monotonic
    rows = [
        [f"{one.monotonic - begin:.3f} s", escape(one.what), escape(_detail(one.detail))]
        for one in run.events
    ]
    table = _table(["since the start#", "what", "detail"], rows)
    return f"<details><summary>what happened when</summary>{table}</details>"


def _detail(detail: dict[str, Any]) -> str:
    shown = (f"{key} {value}" for key, value in detail.items() if value not in (None, "", [], {}))
    return ", ".join(shown)


def _footer() -> str:
    return (
        "<footer>Raw samples: samples.parquet, columns and units in docs/results.md. "
        "This page is made from the run folder alone.</footer>"
    )
