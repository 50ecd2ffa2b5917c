"""Reachability rows as text: a matrix for few pods, failures by reason for any number. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]

SYMBOLS: Final = {"ok": ".", "timeout": "X", "refused": "R", "unreachable": "U", "reset": "r", "error": "!"}
NOT_PROBED: Final = " "
MATRIX_LIMIT: Final = 30
_EXAMPLES: Final = 3


def source_of(row: Row) -> str:
    """The full name of a row's source: ``namespace/pod``, or a host's name."""
    return _full(row["source_namespace"], row["source"])


def destination_of(row: Row) -> str:
    """The full name of a row's destination."""
    return _full(row["destination_namespace"], row["destination"])


def _full(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name


def matrix(rows: Sequence[Row]) -> str:
    """Sources down, destinations across (by number), one symbol per flow, and a legend."""
    sources = list(dict.fromkeys(map(source_of, rows)))
    targets = sorted(dict.fromkeys(map(destination_of, rows)), key=_position(sources))
    cells = {(source_of(row), destination_of(row)): SYMBOLS[row["verdict"]] for row in rows}
    names = [*sources, *(target for target in targets if target not in sources)]
    number = {name: str(place + 1) for place, name in enumerate(names)}
    wide, digits = max(map(len, names)), len(str(len(names)))
    head = " " * (wide + digits + 3) + " ".join(f"{number[target]:>{digits}}" for target in targets)
    lines = [
        f"{name:<{wide}} {number[name]:>{digits}}  "
        + " ".join(f"{cells.get((name, target), NOT_PROBED):>{digits}}" for target in targets)
        for name in names
    ]
    seen = dict.fromkeys(row["verdict"] for row in rows)
    legend = "   ".join(f"{SYMBOLS[verdict]} {verdict}" for verdict in SYMBOLS if verdict in seen)
    return "\n".join(line.rstrip() for line in [head, *lines, "", legend]) + "\n"


def _position(order: Sequence[str]) -> Any:
    places = {name: place for place, name in enumerate(order)}
    return lambda name: (places.get(name, len(places)), name)


def failures(rows: Sequence[Row]) -> str:
    """Failed flows grouped by verdict and reason, the most frequent first, with a few examples each."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["verdict"] != "ok":
            groups.setdefault((row["verdict"], row["reason"]), []).append(row)
    lines = []
    for (verdict, reason), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(group)} {verdict}: {reason}{_where(group)}")
        lines += [f"  {_example(row)}" for row in group[:_EXAMPLES]]
        if len(group) > _EXAMPLES:
            lines.append(f"  … and {len(group) - _EXAMPLES} more")
    return "".join(f"{line}\n" for line in lines)


def _where(group: Sequence[Row]) -> str:
    """What all the failures of a group have in common: one destination, or one source."""
    targets, sources = set(map(destination_of, group)), set(map(source_of, group))
    if len(group) > 1 and len(targets) == 1:
        return f" (all to {targets.pop()})"
    if len(group) > 1 and len(sources) == 1:
        return f" (all from {sources.pop()})"
    return ""


def _example(row: Row) -> str:
    port = f":{row['port']}" if row["port"] else ""
    ip = f"[{row['ip']}]" if ":" in row["ip"] and port else row["ip"]
    said = f", says {row['reporter']}" if row["reporter"] else ""
    return f"{source_of(row)} → {destination_of(row)} ({ip}{port}, {row['path']}{said})"


def totals(rows: Sequence[Row], protocol: str, seconds: float) -> str:
    """One line: how many flows, how many passed, how long it took."""
    counts = Counter(row["verdict"] for row in rows)
    failed = len(rows) - counts["ok"]
    what = f"{len(rows)} {protocol.upper()} flows in {seconds:.2f} s: {counts['ok']} ok"
    return f"{what}, {failed} not\n" if failed else f"{what}\n"


def skipped(entries: Sequence[Mapping[str, str]]) -> str:
    """Who was left out, one line per reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry["why"], []).append(_full(entry["namespace"], entry["name"]))
    lines = []
    for why, names in reasons.items():
        shown = ", ".join(names[:_EXAMPLES]) + (
            f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        )
        lines.append(f"not a destination: {shown} ({why})\n")
    return "".join(lines)
