"""The comparison of runs, groups of runs or campaigns: what got better or worse, by how much, and how sure
that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from testbed.report.colours import EFFECTS, RUNS
from testbed.report.effects import BETTER, LEAST_UNITS, NONE, WORSE, Effect, differences
from testbed.report.forest import Row, counted, forest
from testbed.report.pieces import card, table
from testbed.report.plots import Line, ecdf, legend
from testbed.report.sides import Figure, Side, effects, only_one_has
from testbed.report.svg import NOTHING, TIMES, duration

CHANGING = ("load_average", "noise_floor", "cluster", "description", "scenario", "error", "seed")
"""What of an environment differs between any two runs, or is shown elsewhere."""

MOST_CURVES = 24
"""Figures whose distributions are drawn: those that changed most come first."""

LEAST_CURVE = 20
"""Values a curve is drawn of."""

_PILL = {BETTER: "good", WORSE: "bad", NONE: "none"}

Compared = Mapping[Figure, Effect]


def comparison(sides: Sequence[Side]) -> str:
    """The body of a comparison; the first side is the baseline, and each other one is compared with it."""
    baseline, others = sides[0], sides[1:]
    colours = dict(zip((side.name for side in sides), RUNS * (len(sides) // len(RUNS) + 1), strict=False))
    compared = [(other, effects(baseline, other)) for other in others]
    parts = [_header(baseline, others), _sides(sides, colours)]
    for other, found in compared:
        parts += [_verdict(baseline, other, found), _effects(baseline, other, found, alone=len(others) == 1)]
    parts += [
        _curves(sides, [found for _, found in compared], colours),
        _expectations(sides),
        *(_environments(baseline, other) for other in others),
        _method(),
    ]
    return "".join(parts)


def judged(found: Compared) -> Compared:
    """The effects that a verdict is about: all but those on the machine's own noise floor."""
    return {figure: one for figure, one in found.items() if not figure.noise}


def sentence(baseline: Side, other: Side, found: Compared) -> str:
    """The outcome in one sentence."""
    count = counted(judged(found))
    total = sum(count.values())
    if not total:
        return f"{other.name} and {baseline.name} have no figure in common."
    if not count[BETTER] and not count[WORSE]:
        return f"No difference was shown between {other.name} and {baseline.name} in any of {total} figures."
    parts = [f"{count[verdict]} {verdict}" for verdict in (WORSE, BETTER) if count[verdict]]
    rest = f"; in {count[NONE]} no difference was shown" if count[NONE] else ""
    return f"{other.name} against {baseline.name}: of {total} figures {' and '.join(parts)}{rest}."


def caution(baseline: Side, other: Side, found: Compared) -> list[str]:
    """What a reader has to know before trusting the verdicts."""
    said = []
    if not any(one.units for one in found.values()):
        said.append(
            f"There are fewer than {LEAST_UNITS} runs a side of each figure: the intervals tell what "
            "happens within a run, not how much two runs of the same differ. With more, whole runs are "
            "resampled."
        )
    first, second = baseline.floor(), other.floor()
    if first and second and not 1 / 1.1 < second / first < 1.1:
        said.append(
            f"The machine was not the same: its noise floor was {duration(first)} and then "
            f"{duration(second)}. "
            "Differences no larger than that are not shown as differences."
        )
    return said


def _header(baseline: Side, others: Sequence[Side]) -> str:
    scenarios = ", ".join(dict.fromkeys([baseline.scenario, *(other.scenario for other in others)]))
    names = " and ".join(other.name for other in others)
    return (
        f'<header><div class="kicker">comparison · {escape(scenarios)}</div>'
        f"<h1>{escape(names)}</h1><p>compared with {escape(baseline.name)}, the baseline</p></header>"
    )


def _verdict(baseline: Side, other: Side, found: Compared) -> str:
    count = counted(judged(found))
    kinds = {BETTER: "good", WORSE: "bad", NONE: ""}
    tiles = "".join(
        f'<div class="tile {kinds[verdict] if number else ""}"><b>{number}</b>'
        f'<span><i class="dot" style="background:{EFFECTS[verdict]}"></i>{verdict}</span></div>'
        for verdict, number in count.items()
    )
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in caution(baseline, other, found))
    return (
        f"<h2>Verdict</h2><p>{escape(sentence(baseline, other, found))}</p>{notes}"
        f'<section class="tiles" style="margin-top:10px">{tiles}</section>'
    )


def _sides(sides: Sequence[Side], colours: Mapping[str, str]) -> str:
    rows = [
        [
            f'<i class="run" style="background:{colours[side.name]}"></i>',
            escape(side.name) + (" <small>baseline</small>" if side is sides[0] else ""),
            escape(side.scenario),
            _when(side),
            str(len(side.units)),
            f"{sum(one.met for one in side.expectations)} of {len(side.expectations)}",
            duration(floor) if (floor := side.floor()) else NOTHING,
            escape(str((side.environment.get("kernel") or {}).get("release"))),
            escape(str((side.environment.get("testbed") or {}).get("commit") or NOTHING)[:12]),
        ]
        for side in sides
    ]
    heads = [
        "",
        "side",
        "scenario",
        "first started",
        "runs#",
        "expectations met",
        "noise floor#",
        "kernel",
        "commit",
    ]
    return f'<div style="margin-top:26px">{card(table(heads, rows))}</div>'


def _when(side: Side) -> str:
    events = [unit.run.events[0].wall for unit in side.units if unit.run.events]
    return datetime.fromtimestamp(min(events), UTC).strftime("%-d %b %Y, %H:%M UTC") if events else NOTHING


def _effects(baseline: Side, other: Side, found: Compared, *, alone: bool) -> str:
    about = "" if alone else f": {escape(other.name)}"
    drawn = forest([Row(figure.title, figure.way, one) for figure, one in judged(found).items()])
    note = (
        '<p class="note">Each row is a figure: the ratio of medians, with its 95 % bootstrap interval. '
        "Point at one for its numbers. Left of 1 is faster than the baseline.</p>"
    )
    head = f"<h2>Effects{about}</h2>{note}"
    shown = card(drawn) if drawn else ""
    return (
        f'{head}{shown}<div style="height:14px"></div>{card(_effect_table(found))}{_missing(baseline, other)}'
    )


def _effect_table(found: Compared) -> str:
    heads = [
        *("verdict", "figure", "protocol, way", "baseline#", "compared#", "ratio#", "95 % interval#"),
        *("Cliff's δ#", "succeeded#", "because"),
    ]
    return table(heads, [_effect_row(figure, one) for figure, one in found.items()])


def _effect_row(figure: Figure, one: Effect) -> list[str]:
    known = one.ratio == one.ratio
    pill = f'<span class="pill {_PILL[one.verdict]}">{one.verdict}</span>'
    return [
        "<small>control</small>" if figure.noise else pill,
        escape(figure.title),
        escape(figure.way),
        duration(one.before.median),
        duration(one.after.median),
        f"{TIMES}{one.ratio:.3g}" if known else NOTHING,
        f"{one.low:.3g} … {one.high:.3g}" if known else NOTHING,
        f"{one.delta:+.2f}" if known else NOTHING,
        f"{_share(one.before.ok, one.before.probes)} → {_share(one.after.ok, one.after.probes)}",
        escape(one.why),
    ]


def _share(ok: int, probes: int) -> str:
    if not probes:
        return NOTHING
    return "100%" if ok == probes else f"{ok / probes:.2%}"


def _missing(baseline: Side, other: Side) -> str:
    lone = only_one_has(baseline, other)
    if not lone:
        return ""
    rows = [[escape(figure.title), escape(figure.way), escape(name)] for figure, name in lone]
    listed = table(["figure", "protocol, way", "only in"], rows)
    return f"<details><summary>{len(lone)} figures that one side alone has</summary>{card(listed)}</details>"


def _curves(sides: Sequence[Side], compared: Sequence[Compared], colours: Mapping[str, str]) -> str:
    """The distributions of the figures that changed most, laid over each other."""
    measured = [side.figures() for side in sides]
    ranked = sorted(
        (figure for figure, one in compared[0].items() if one.ratio == one.ratio),
        key=lambda figure: (
            figure.noise,
            compared[0][figure].verdict == NONE,
            -abs(compared[0][figure].delta),
        ),
    )
    cards = []
    for figure in ranked[:MOST_CURVES]:
        lines = [
            Line(side.name, colours[side.name], figures[figure].pooled)
            for side, figures in zip(sides, measured, strict=True)
            if figure in figures and len(figures[figure].pooled) >= LEAST_CURVE
        ]
        if len(lines) > 1:
            head = f"<h3>{escape(figure.title)} <small>{escape(figure.way)}</small></h3>"
            cards.append(card(head + ecdf(lines, subject="time (logarithmic)")))
    if not cards:
        return ""
    left = len(ranked) - MOST_CURVES
    more = f'<p class="note">{left} more are not drawn.</p>' if left > 0 else ""
    return (
        '<h2>Distributions</h2><p class="note">For each time, the share of probes answered within it. '
        "What changed most comes first.</p>"
        f"{legend(colours)}"
        f'<div class="grid2">{"".join(cards)}</div>{more}'
    )


def _expectations(sides: Sequence[Side]) -> str:
    """The expectations that not all sides met alike."""
    met: dict[tuple[str, str], list[list[bool]]] = {}
    for place, side in enumerate(sides):
        for one in side.expectations:
            met.setdefault((one.step, one.expected), [[] for _ in sides])[place].append(one.met)
    rows = []
    for (step, expected), by_side in met.items():
        shares = [sum(results) / len(results) if results else None for results in by_side]
        if len(set(shares)) > 1:
            cells = [f"{sum(results)} of {len(results)}" if results else NOTHING for results in by_side]
            rows.append([escape(step), escape(expected), *cells])
    if not rows:
        return ""
    heads = ["step", "expected", *(f"met in {side.name}#" for side in sides)]
    return f"<h2>Expectations that were not met alike</h2>{card(table(heads, rows))}"


def environment_differences(baseline: Side, other: Side) -> list[tuple[str, str, str]]:
    """What was different about machine, code and cluster: path, and both values."""
    first, second = (
        {key: value for key, value in side.environment.items() if key not in CHANGING}
        for side in (baseline, other)
    )
    return differences(first, second)


def _environments(baseline: Side, other: Side) -> str:
    rows = [[escape(each) for each in row] for row in environment_differences(baseline, other)]
    head = "<h2>What else was different</h2>"
    if not rows:
        return (
            f'{head}<p class="note">Nothing of machine, kernel, code, packages, tools and cluster spec.</p>'
        )
    shown = card(table(["", baseline.name, other.name], rows))
    return f"{head}{shown}"


def _method() -> str:
    return (
        "<footer>A figure is better or worse where the 95 % interval of the ratio of medians leaves out 1, "
        "the distributions differ (|Cliff&rsquo;s δ| of 0.147 or more), and a change of the "
        "machine&rsquo;s noise floor, several trips through the kernel reckoned, does not explain it; or "
        "where the share that succeeded changed beyond its 95 % interval (Newcombe). Of twenty figures "
        "without any difference about one has an interval that leaves out 1. Intervals: moving block "
        "bootstrap of samples, or of whole runs where there are three a side, widened where these are few "
        "(on few blocks still too narrow: the reason says so). This page is made from the "
        "folders alone.</footer>"
    )
