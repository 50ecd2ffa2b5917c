"""The part of a report on probes: how long answers took, what was lost, how long nothing got through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any, Final

import numpy as np
import pandas as pd

from testbed.measure import metrics
from testbed.measure.floor import FLOOR_PATH
from testbed.measure.frames import median_blocks, median_interval, repetitions, samples_of, waits
from testbed.measure.resample import LEAST_BLOCKS
from testbed.quantiles import quantile
from testbed.records import CHANGES, Run, Sample
from testbed.report.colours import PATH_NAMES, PATHS, RUNS
from testbed.report.loads import named
from testbed.report.pieces import card, table
from testbed.report.plots import Line, ecdf, legend
from testbed.report.svg import NOTHING, duration
from testbed.report.trust import few_blocks, mark, near_floor, overloads

_PROBES: Final = "probe"


def probes(run: Run) -> str:
    """The section; "" where no probe ran."""
    frame = counted(run.frame)
    found = frame[frame["kind"] == _PROBES]
    if found.empty:
        return ""
    note = (
        '<p class="note">From the send call to the kernel&rsquo;s receive stamp, as ping does; of TCP '
        "from SYN to "
        "SYN-ACK, of a packet train one way. The noise floor is an echo over a bare veth pair at the "
        "same rate, right "
        "before. A figure marked ≈ is nearer than five floors to it, or was taken on an overloaded "
        "machine: it says as "
        "much about the machine as about the network.</p>"
    )
    cards = list(_curves(run, found))
    grid = f'<div class="grid2">{"".join(cards)}</div>' if cards else ""
    return f"<h2>Probes</h2>{note}{grid}{_table(run, found)}{_throughput(found)}{_answerers(found)}"


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The samples without those of warm-ups; of folders written before there were any, all."""
    return frame[~frame["warm_up"].astype(bool)] if "warm_up" in frame else frame


def floors(frame: pd.DataFrame) -> dict[tuple[str, str], np.ndarray[Any, np.dtype[np.float64]]]:
    """(variant, step) → seconds of its noise floor."""
    rows = frame[(frame["kind"] == "floor") & frame["seconds"].notna()]
    return {
        (str(variant), str(step)): group["seconds"].to_numpy(dtype=float)
        for (variant, step), group in rows.groupby(["variant", "step"], sort=False, dropna=False)
    }


def middle_of(floor: Any, kind: str) -> float:
    """The median of a noise floor, NaN without one; of what goes one way, half of it."""
    if floor is None:
        return math.nan
    return quantile(np.sort(floor), 0.5) / (2 if kind == "train" else 1)


def _groups(found: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for (variant, step), rows in found.groupby(["variant", "step"], sort=False, dropna=False):
        yield str(variant), str(step), rows


def _curves(run: Run, found: pd.DataFrame) -> Iterator[str]:
    of_floor, doubtful = floors(run.frame), overloads(run.events)
    for variant, step, rows in _groups(found):
        lines = []
        paths = list(dict.fromkeys(map(str, rows["path"])))
        for number, path in enumerate(paths):
            found_times = waits(rows[rows["path"] == path])
            values = found_times[np.isfinite(found_times) & (found_times > 0)]
            if len(values) > 1 and rows["bits_per_second"].isna().all():
                colour = PATHS.get(path, RUNS[number % len(RUNS)])
                lost = int(np.isinf(found_times).sum())
                lines.append(Line(PATH_NAMES.get(path, path), colour, values, lost=lost))
        floor, kind = of_floor.get((variant, step)), str(rows["protocol"].iloc[0])
        middle = middle_of(floor, kind)
        if not lines:
            continue
        doubts = [near_floor(line.median(), middle) for line in lines]
        if floor is not None:
            lines.append(Line(PATH_NAMES[FLOOR_PATH], PATHS[FLOOR_PATH], floor, noise=True))
        sign = mark(*dict.fromkeys((*doubts, doubtful.get((variant, step), ""))))
        head = f"<h3>{escape(named(variant, step))} · {escape(kind)} {sign}</h3>"
        key = legend({line.name: line.colour for line in lines})
        yield card(head + key + ecdf(lines, subject="time (logarithmic)"))


def _table(run: Run, found: pd.DataFrame) -> str:
    of_floor, doubtful = floors(run.frame), overloads(run.events)
    changes = [one.wall for one in run.events if one.what in CHANGES]
    body = []
    for variant, step, rows in _groups(found):
        if rows["bits_per_second"].notna().any():
            continue
        samples = samples_of(rows)
        values = waits(rows)
        median = metrics.quantile(samples, 0.5)
        low, high = median_interval(values, groups=repetitions(rows))
        doubt = mark(few_blocks(median_blocks(values, repetitions(rows))))
        middle = middle_of(of_floor.get((variant, step)), str(rows["protocol"].iloc[0]))
        sign = mark(near_floor(median, middle), doubtful.get((variant, step), ""))
        repeated = int(rows["repetition"].nunique())
        body.append(
            [
                escape(named(variant, step))
                + (f"<br><small>{repeated} repetitions</small>" if repeated > 1 else ""),
                escape(str(rows["protocol"].iloc[0])),
                *_counts(samples),
                _seconds(metrics.outage(samples)),
                _seconds(metrics.convergence(samples, changes)),
                f"{duration(median)} {sign}",
                f"{duration(low)} … {duration(high)} {doubt}" if len(values) else NOTHING,
                duration(metrics.quantile(samples, 0.99)),
                duration(middle),
                _late(samples),
            ]
        )
    heads = [
        "step",
        "kind",
        "probes#",
        "lost#",
        "twice#",
        "out of order#",
        "longest outage#",
        "convergence#",
        "median#",
        "95 % interval#",
        "p99#",
        "noise floor#",
        "sent late#",
    ]
    note = (
        '<p class="note">Outage: from the first probe that failed to the next that was answered, per flow. '
        "Convergence: from a change until what becomes of probes stays as it is. Median and p99: a probe "
        "that failed counts as infinitely late, and a quantile that falls on one is <i>lost</i>. Interval: a "
        "bootstrap of blocks of neighbours, as these are alike, or of whole repetitions where there are "
        f"several; one marked ≈ rests on fewer than {LEAST_BLOCKS} blocks and may be too narrow. Sent late: "
        "how many the prober sent more than 100 µs after their time in the schedule.</p>"
    )
    return note + card(table(heads, body), 'style="margin-top:14px"') if body else ""


def _counts(samples: list[Sample]) -> list[str]:
    lost, total = metrics.lost(samples), len(samples)
    share = f"<br><small>{lost / total:.2%}</small>" if lost else ""
    return [
        f"{total:,}",
        f"{lost:,}{share}",
        f"{metrics.duplicates(samples):,}",
        f"{metrics.reordered(samples):,}",
    ]


def _seconds(value: float) -> str:
    return NOTHING if math.isnan(value) or not value else duration(value)


def _late(samples: list[Sample]) -> str:
    share = metrics.late(samples)
    if math.isnan(share):
        return NOTHING
    return f"{metrics.sent_late(samples):,}<br><small>{share:.2%}</small>"


def _throughput(found: pd.DataFrame) -> str:
    rows = []
    for variant, step, group in _groups(found):
        rates = group["bits_per_second"].dropna().to_numpy(dtype=float)
        if len(rates):
            repeated = group.loc[group["bits_per_second"].notna(), "repetition"].to_numpy()
            low, high = median_interval(rates, groups=repeated)
            doubt = mark(few_blocks(median_blocks(rates, repeated)))
            way = ", ".join(dict.fromkeys(map(str, group["path"])))
            rows.append(
                [
                    escape(named(variant, step)),
                    escape(way),
                    f"{len(rates):,}",
                    f"{quantile(np.sort(rates), 0.5) / 1e6:,.1f}",
                    f"{low / 1e6:,.1f} … {high / 1e6:,.1f} {doubt}",
                    f"{rates.min() / 1e6:,.1f}",
                ]
            )
    heads = ["step", "way", "intervals#", "median, Mbit/s#", "95 % interval, Mbit/s#", "lowest, Mbit/s#"]
    return f"<h2>Throughput</h2>{card(table(heads, rows))}" if rows else ""


def _answerers(found: pd.DataFrame) -> str:
    """Who answered how often, where several did."""
    rows = []
    for variant, step, group in _groups(found):
        named_ones = group[(group["verdict"] == "ok") & (group["answer"] != "")]
        shares = named_ones["answer"].value_counts().sort_index()
        if len(shares) < 2 or len(shares) > 40 or named_ones["protocol"].iloc[0] not in ("http", "udp"):
            continue
        chance = metrics.balance(samples_of(named_ones))
        most = int(shares.max())
        bars = "".join(
            f'<div class="share"><i style="width:{count / most:.1%}"></i><span>{escape(str(who))}</span>'
            f"<b>{count:,}</b></div>"
            for who, count in shares.items()
        )
        rows.append([escape(named(variant, step)), bars, f"{chance:.3g}"])
    note = '<p class="note">p: the chance of shares at least as uneven if all were equally likely.</p>'
    return (
        f"<h2>Who answered</h2>{note}{card(table(['step', 'answers', 'p of equal shares#'], rows))}"
        if rows
        else ""
    )
