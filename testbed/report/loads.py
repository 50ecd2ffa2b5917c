"""The parts of a report on conversations with Services: over time, by the number of Services, and how fast
rules follow changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from testbed.measure.frames import figures_of, waits
from testbed.quantiles import quantile
from testbed.records import NODE_CHANGES, Event, Run
from testbed.report import svg
from testbed.report.colours import RUNS, VERDICTS
from testbed.report.pieces import card, table
from testbed.report.plots import Line, ecdf, legend
from testbed.report.svg import NOTHING, duration

BINS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds that one bar may stand for."""
_MOST_BARS = 130
_GAP = 0.5
"""Seconds without any success over which curves are not joined."""
_CHARACTER = 6.0
"""Width of one in a label."""
WIDTH, LEFT = 1080.0, 62.0
MARKS = {
    "rollout begun": "rollout begins",
    "rollout done": "rolled out",
    "applying": "apply",
    "deleting": "delete",
}
"""Events that are drawn into a load, and how they are called."""


def named(variant: str, step: str) -> str:
    """A step of a variant, for people."""
    return f"{variant}: {step}" if variant else step


# --- over time --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Conversations at a steady rate, of all repetitions that count, laid over each other. at: when each was
    begun, from 0 on in each repetition; programmed: of changes meanwhile.

    marks: (second, name) of what happened. bands: (begin, end, name) of what lasted: faults.
    """

    name: str
    about: str
    samples: pd.DataFrame
    at: np.ndarray[Any, np.dtype[np.float64]]
    marks: Sequence[tuple[float, str]]
    programmed: pd.DataFrame
    bands: Sequence[tuple[float, float, str]] = ()
    repetitions: int = 1

    @property
    def bin(self) -> float:
        """Seconds that one bar stands for."""
        return next((one for one in BINS if self.seconds / one <= _MOST_BARS), BINS[-1])

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return float(self.at.max())

    @property
    def failed(self) -> int:
        """Conversations that failed."""
        return int((self.samples["verdict"] != "ok").sum())


def loads(run: Run) -> list[Load]:
    """The loads of a run, in order."""
    return list(_loads(run))


def _loads(run: Run) -> Iterator[Load]:
    frame = run.frame
    done: set[tuple[str, str]] = set()
    for begun in run.events:
        if begun.what not in ("load", "probe") or not begun.detail.get("rate"):
            continue
        step, variant = begun.detail["step"], begun.detail.get("variant", "")
        if (step, variant) in done:
            continue
        done.add((step, variant))
        own = frame["kind"].isin(("ask", "probe")) & (frame["step"] == step) & (frame["variant"] == variant)
        samples = figures_of(frame[own & frame["at"].notna()])
        if len(samples) < 2:
            continue
        numbers = samples["repetition"] if "repetition" in samples else pd.Series(1, samples.index)
        about = str(begun.detail.get("about", ""))
        parts = [part for _, part in samples.groupby(numbers, sort=True)]
        yield _laid_over(run, named(variant, step), about, parts)


def _laid_over(run: Run, name: str, about: str, repetitions: Sequence[pd.DataFrame]) -> Load:
    """One load of several repetitions, each with a clock of its own."""
    changed = run.frame[_of_services(run.frame)]
    at, programmed = [], []
    marks: list[tuple[float, str]] = []
    bands: list[tuple[float, float, str]] = []
    for samples in repetitions:
        start, end = float(samples["at"].min()), float(samples["at"].max())
        at.append(samples["at"].to_numpy(dtype=float) - start)
        meanwhile = changed[changed["at"].between(start, end)]
        programmed.append(meanwhile.assign(after=meanwhile["at"] - start))
        marks += _marks(run, start, end)
        bands += _bands(run, start, end)
    return Load(
        name,
        about,
        pd.concat(repetitions),
        np.concatenate(at),
        sorted(marks),
        pd.concat(programmed),
        sorted(bands),
        len(repetitions),
    )


def _marks(run: Run, start: float, end: float) -> Iterator[tuple[float, str]]:
    for one in run.events:
        if one.what in MARKS and start <= one.wall <= end:
            files = ", ".join(
                str(name).rpartition("/")[2].partition(".")[0] for name in one.detail.get("files") or ()
            )
            yield one.wall - start, f"{MARKS[one.what]} {files}".strip()


def _bands(run: Run, start: float, end: float) -> Iterator[tuple[float, float, str]]:
    """Faults that were in force between two moments, from their being applied to their being healed."""
    # Each variant's cluster counts its faults anew.
    healed = {_fault(one): one.wall for one in run.events if one.what == "fault healed"}
    for one in run.events:
        if one.what != "fault applied":
            continue
        until = healed.get(_fault(one), end)
        if until > start and one.wall < end:
            target = one.detail.get("target") or ""
            shown = target if isinstance(target, str) else ", ".join(map(str, target))
            yield (
                max(0.0, one.wall - start),
                min(until, end) - start,
                f"{one.detail.get('fault')} {shown}".strip(),
            )


def _fault(one: Event) -> tuple[Any, Any]:
    return one.detail.get("variant", ""), one.detail.get("id")


def over_time(run: Run) -> str:
    """The section on loads; "" where there was none."""
    found = loads(run)
    if not found:
        return ""
    seen = [v for v in VERDICTS if any((load.samples["verdict"] == v).any() for load in found)]
    names = {verdict: VERDICTS[verdict] for verdict in seen} | {"median": RUNS[0], "99th percentile": RUNS[1]}
    head = (
        "<h2>Over time</h2>"
        f'<p class="note">Above: how many were begun a second, and what became of them. In the '
        "middle: how long those took that succeeded. Below, a line for each change of a Service&rsquo;s "
        "endpoints and node: from the write to the store until the node&rsquo;s rules followed it (network "
        "programming latency). Of a load that was repeated, all repetitions are counted and laid over each "
        "other, each from its own beginning.</p>"
        f"{legend(names)}"
    )
    return head + "".join(card(_load(load), 'style="margin-top:14px"') for load in found)


def _load(load: Load) -> str:
    total = len(load.samples)
    words = f"{escape(load.name)} · {load.failed:,} of {total:,} failed"
    words += f" in {load.repetitions} repetitions" if load.repetitions > 1 else ""
    about = f'<p class="note">{escape(load.about)}</p>' if load.about else ""
    return f"<h3>{words}</h3>{about}{timeline(load)}{_failures(load)}{_followed(load)}"


def timeline(load: Load) -> str:
    """The drawing of a load."""
    scale = svg.LinearScale(0.0, max(load.seconds, load.bin), LEFT, WIDTH - 12)
    lanes = _lanes(load.programmed)
    bars, times, strip = (26.0, 116.0), (136.0, 276.0), (294.0, 294.0 + max(14.0, 5.0 * lanes))
    parts = svg.linear_axis(scale, bars[0], strip[1], "seconds since the load began")
    parts += _drawn_bands(load, scale, (bars[0] - 14, strip[1]))
    parts += [*_bars(load, scale, bars), *_times(load, scale, times), *_programmed(load, scale, strip)]
    free = -1e9
    for second, words in load.marks:
        x = min(scale(second), scale.end)
        tip = svg.title(f"{words}, {second:.2f} s")
        parts.append(svg.element("line", tip, x1=x, x2=x, y1=bars[0] - 12, y2=strip[1], class_="mark"))
        if x >= free:  # a label that would run into the one before is left out
            free = x + _CHARACTER * len(words) + 8
            parts.append(svg.text(x + 4, bars[0] - 6, words, class_="tick"))
    return svg.figure(WIDTH, strip[1] + 44, parts, f"connections over time: {load.name}")


def _drawn_bands(load: Load, scale: svg.LinearScale, place: tuple[float, float]) -> Iterator[str]:
    """A band per fault, from its being applied to its being healed; of repetitions the first has the name."""
    told = set[str]()
    for begin, end, name in load.bands:
        x, wide = scale(begin), max(2.0, scale(end) - scale(begin))
        tip = svg.title(f"{name}: {begin:.2f} s to {end:.2f} s")
        height = place[1] - place[0]
        yield svg.element("rect", tip, x=x, y=place[0], width=wide, height=height, class_="fault")
        if name not in told:
            told.add(name)
            yield svg.text(x + 4, place[1] - 5, name, class_="faultname")


def _bars(load: Load, scale: svg.LinearScale, place: tuple[float, float]) -> Iterator[str]:
    """Stacked counts for each bar."""
    top, bottom = place
    numbers = (load.at // load.bin).astype(int)
    counted = pd.crosstab(numbers, load.samples["verdict"].to_numpy())
    high = float(counted.sum(axis=1).max())
    rate = high / load.bin / load.repetitions
    yield svg.text(LEFT - 7, top + 10, f"{rate:,.0f}/s", class_="tick", text_anchor="end")
    yield svg.text(LEFT - 7, bottom, "0", class_="tick", text_anchor="end")
    wide = max(1.0, scale(load.bin) - scale(0.0) - 1)
    for number, row in counted.iterrows():
        y = bottom
        begins = int(str(number)) * load.bin
        for verdict, colour in VERDICTS.items():
            count = int(row.get(verdict, 0))
            if count:
                tall = count / high * (bottom - top)
                y -= tall
                tip = svg.title(f"{begins:g} s: {count} {verdict}")
                yield svg.element("rect", tip, x=scale(begins), y=y, width=wide, height=tall, fill=colour)


def _times(load: Load, scale: svg.LinearScale, place: tuple[float, float]) -> Iterator[str]:
    """Median and 99th percentile of those that succeeded, for each bar, on a logarithmic axis."""
    top, bottom = place
    good = load.samples["verdict"].to_numpy() == "ok"
    seconds = load.samples["seconds"].to_numpy(dtype=float, na_value=np.nan)[good]
    if not len(seconds):
        return
    grouped = pd.Series(seconds).groupby((load.at[good] // load.bin).astype(int))
    lines = {name: grouped.agg(_at(share)) for name, share in (("median", 0.5), ("99th percentile", 0.99))}
    low = float(lines["median"].min()) * 0.8
    up = svg.LogScale(low, max(float(lines["99th percentile"].max()) * 1.2, low * 2), bottom, top)
    for tick in up.ticks():
        yield svg.element("line", x1=LEFT, x2=scale.end, y1=up(tick), y2=up(tick), class_="grid")
        yield svg.text(LEFT - 7, up(tick) + 4, svg.tick_label(tick), class_="tick", text_anchor="end")
    for colour, (name, values) in zip(RUNS, lines.items(), strict=False):
        about = svg.title(f"{name}: up to {duration(float(values.max()))}")
        d, before = "", None
        for bar, value in values.items():
            number = int(str(bar))
            x, y = scale((number + 0.5) * load.bin), up(float(value))
            # Where nothing succeeded for a while there is nothing to join.
            joined = before is not None and (number - before) * load.bin <= max(_GAP, load.bin)
            d += f"{'L' if joined else 'M'}{x:.1f} {y:.1f}{'' if joined else 'h0'}"
            before = number
        yield svg.element("path", about, d=d, class_="curve", stroke=colour, stroke_linecap="round")


def _at(share: float) -> Callable[[Any], float]:
    """A quantile of values in any order."""
    return lambda values: quantile(np.sort(values), share)


def _lanes(programmed: pd.DataFrame) -> int:
    return int(programmed["destination_node"].nunique()) if len(programmed) else 0


def _programmed(load: Load, scale: svg.LinearScale, place: tuple[float, float]) -> Iterator[str]:
    """A lane per node; in it each change from its write to its being in force."""
    if load.programmed.empty:
        return
    yield svg.text(LEFT - 7, (place[0] + place[1]) / 2 + 2, "changes", class_="tick", text_anchor="end")
    for lane, (node, rows) in enumerate(load.programmed.groupby("destination_node", sort=True)):
        y = place[0] + 5 * lane
        for row in rows.to_dict("records"):
            x1, x2 = scale(row["after"]), min(scale(row["after"] + row["seconds"]), scale.end)
            tip = svg.title(f"{node}: {row['source']} {row['destination']}, {duration(row['seconds'])}")
            yield svg.element("line", tip, x1=x1, x2=max(x2, x1 + 1.5), y1=y, y2=y, class_="change")


def _failures(load: Load) -> str:
    failed = load.samples.assign(after=load.at)
    failed = failed[failed["verdict"] != "ok"]
    if failed.empty:
        return ""
    rows = [
        [
            escape(f"{verdict} ({reason})"),
            f"{len(group):,}",
            f"{group['after'].min():.1f} … {group['after'].max():.1f}",
        ]
        for (verdict, reason), group in failed.groupby(["verdict", "reason"], sort=False)
    ]
    return table(["what failed", "how many#", "begun, seconds#"], rows)


def _followed(load: Load) -> str:
    if load.programmed.empty:
        return ""
    seconds = np.sort(load.programmed["seconds"].to_numpy(dtype=float))
    middle, p95, most = (duration(quantile(seconds, share)) for share in (0.5, 0.95, 1.0))
    return (
        f'<p class="note">Network programming latency of the {len(seconds):,} changes meanwhile: median '
        f"{middle}, 95th percentile {p95}, at most {most}.</p>"
    )


# --- by size ----------------------------------------------------------------------------------------------


def growth(samples: pd.DataFrame) -> str:
    """The section on what grows with the number of Services; "" where it was not varied."""
    asked = samples[(samples["kind"] == "ask") & (samples["size"] > 0)]
    sized = asked[asked["seconds"].notna()]
    if sized["size"].nunique() < 2:
        return ""
    variants = list(dict.fromkeys(map(str, sized["variant"])))
    colours = dict(zip(variants, RUNS, strict=False))
    rows = [
        [
            escape(str(variant) or "time"),
            f"{int(str(size)):,}",
            *(duration(quantile(np.sort(waits(group)), share)) for share in (0.5, 0.95, 0.99)),
        ]
        for (variant, size), group in asked.groupby(["variant", "size"], sort=True)
    ]
    heads = ["", "Services#", "median#", "p95#", "p99#"]
    note = (
        '<p class="note">From SYN to SYN-ACK of new connections, as the kernel measures it: the first packet '
        "of each is looked up among the rules of all Services. Line: median; band: 5th to 95th "
        "percentile of those that were answered. In the table what failed counts as infinitely late.</p>"
    )
    key = legend({variant or "time": colour for variant, colour in colours.items()})
    grid = f'<div class="grid2">{card(sizes(sized, colours))}{card(table(heads, rows))}</div>'
    return f"<h2>The first packet, by the number of Services</h2>{note}{key}{grid}"


def sizes(sized: pd.DataFrame, colours: dict[str, str], width: float = 560.0, height: float = 340.0) -> str:
    """Time against size, a line per variant."""
    left, top, bottom = 58.0, 12.0, height - 44.0
    grouped = sized.assign(seconds=sized["seconds"].astype(float)).groupby(["variant", "size"])["seconds"]
    figures = {share: grouped.agg(_at(share)) for share in (0.05, 0.5, 0.95)}
    across = svg.LinearScale(0.0, float(sized["size"].max()) * 1.04, left, width - 12)
    up = svg.LinearScale(0.0, float(figures[0.95].max()) * 1.05, bottom, top)
    parts = []
    for tick in up.ticks():
        parts.append(svg.element("line", x1=left, x2=across.end, y1=up(tick), y2=up(tick), class_="grid"))
        label = svg.tick_label(tick) if tick else "0"
        parts.append(svg.text(left - 7, up(tick) + 4, label, class_="tick", text_anchor="end"))
    parts += svg.linear_axis(across, top, bottom, "Services")
    for variant, colour in colours.items():
        at = [int(size) for size in figures[0.5][variant].index]
        line, low, high = (
            [(across(size), up(float(figures[share][variant][size]))) for size in at]
            for share in (0.5, 0.05, 0.95)
        )
        parts.append(svg.path([*low, *reversed(high)], close=True, fill=colour, class_="band"))
        parts.append(svg.path(line, stroke=colour, class_="curve"))
        for size, (x, y) in zip(at, line, strict=True):
            tip = svg.title(
                f"{variant or 'median'}, {size:,}: {duration(float(figures[0.5][variant][size]))}"
            )
            parts.append(svg.element("circle", tip, cx=x, cy=y, r=4.0, fill=colour))
    return svg.figure(width, height, parts, "time to connect by the number of Services")


# --- rules that follow ------------------------------------------------------------------------------------


def _of_services(samples: pd.DataFrame) -> pd.Series[bool]:
    """Those that say how soon rules followed a Service."""
    return samples["kind"].eq("programming") & samples["step"].ne(NODE_CHANGES)


def programming(samples: pd.DataFrame) -> str:
    """The section on network programming latency; "" where no Service changed."""
    found = samples[_of_services(samples) & samples["seconds"].notna()]
    lines = [
        Line(str(variant) or "all nodes", colour, np.maximum(rows["seconds"].to_numpy(dtype=float), 1e-6))
        for (variant, rows), colour in zip(found.groupby("variant", sort=False), RUNS, strict=False)
    ]
    if not lines:
        return ""
    note = (
        '<p class="note">From the write of a change of a Service or its endpoints to the store until a '
        "node&rsquo;s rules followed it. Changes within minSyncPeriod of the last sync wait for its end.</p>"
    )
    key = legend({line.name: line.colour for line in lines})
    drawn = card(ecdf(lines, subject="network programming latency (logarithmic)"))
    return f'<h2>How fast rules follow</h2>{note}{key}<div class="grid2">{drawn}</div>'


def node_changes(samples: pd.DataFrame) -> str:
    """The section on how soon nodes followed a change of one of them; "" where none changed."""
    found = samples[samples["kind"].eq("programming") & samples["step"].eq(NODE_CHANGES)]
    rows = []
    for (variant, what, node), of in found.groupby(["variant", "source", "destination"], sort=False):
        own = of.loc[of["destination_node"] == node, "seconds"]
        others = of.loc[of["destination_node"] != node, "seconds"]
        figures = [duration(each.max()) if len(each) else NOTHING for each in (own, others)]
        rows.append([escape(named(str(variant), f"{node} {str(what).split()[0]}")), *figures])
    if not rows:
        return ""
    note = (
        '<p class="note">From the change until the node itself, and the slowest of the others, had applied '
        "what it means. Routing daemons converge after that.</p>"
    )
    heads = ["change", "the node itself#", "the slowest other#"]
    return f"<h2>How fast nodes follow</h2>{note}" + card(table(heads, rows))


def tiles(run: Run) -> Iterator[tuple[str, str]]:
    """What a load came to: a figure, and what it is."""
    for load in loads(run):
        yield f"{load.failed:,}", f"of {len(load.samples):,} failed: {load.name}"
