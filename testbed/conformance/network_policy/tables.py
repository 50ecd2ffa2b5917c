"""Measuring a truth table: every pod to every other one, on every port, at once.

A cell is allowed where the target answered, and blocked where somebody else said no in its stead (the rule
that rejects) or where nothing came for ``SILENCE`` while the target answered its own node, which nothing may
keep from it: then the silence is not the target's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from testbed.conformance.network_policy.cases import ALLOWED, BLOCKED, PodKey, Step
from testbed.conformance.network_policy.stage import Stage
from testbed.wait import patient

log = logging.getLogger(__name__)

SILENCE = 0.3
"""Seconds without an answer that count as blocked, if the target is alive."""
WITHIN = 10.0
"""Seconds in which a table has to come true, as upstream's tests give it."""
POLL = 0.02
BROKEN = "?"
"""A cell of a target that does not answer its own node either, or that itself said no."""

QUESTION = "testbed"


@dataclass(frozen=True)
class Cell:
    """One cell: the table's name (``TCP/80``), both ends, and what is expected."""

    table: str
    source: PodKey
    target: PodKey
    expected: str


def check(stage: Stage, step: Step, fail: Callable[[str], NoReturn]) -> None:
    """Compare every cell but the diagonal; those that differ are asked again for a while."""
    wrong = list(cells(stage, step))
    deadline = time.monotonic() + patient(WITHIN)
    seen: dict[Cell, str] = {}
    while wrong:
        seen = measure(stage, wrong)
        wrong = [cell for cell in wrong if seen[cell] != cell.expected]
        if wrong and time.monotonic() >= deadline:
            fail(describe(step, wrong, seen))
        if wrong:
            time.sleep(POLL)


def cells(stage: Stage, step: Step) -> Iterator[Cell]:
    """The cells of a step that this kernel can measure."""
    for name, table in step.tables.items():
        if name.startswith("SCTP") and not stage.sctp:
            continue
        for source, row in table.items():
            for target, expected in zip(step.to, row, strict=True):
                if source != target:
                    yield Cell(name, _key(source), _key(target), expected)


def measure(stage: Stage, wanted: list[Cell]) -> dict[Cell, str]:
    """What each cell is now."""
    found: dict[Cell, str] = {}
    silent: list[Cell] = []
    for protocol, of_protocol in _by_protocol(wanted):
        asked = sorted(of_protocol, key=lambda cell: cell.source)
        questions = [
            {
                "source": "/".join(cell.source),
                "ip": stage.address(cell.target),
                "port": _port(cell),
            }
            for cell in asked
        ]
        replies = _ask(stage, protocol, questions)
        for cell, verdict, reporter in zip(asked, replies["verdict"], replies["reporter"], strict=True):
            if verdict == "ok":
                found[cell] = ALLOWED
            elif verdict == "timeout":
                silent.append(cell)
            else:
                found[cell] = BLOCKED if reporter and reporter != stage.address(cell.target) else BROKEN
    return found | _judge_silence(stage, silent)


def _judge_silence(stage: Stage, silent: list[Cell]) -> dict[Cell, str]:
    """Whether the targets of silent cells are alive: each is asked by its own node."""
    found: dict[Cell, str] = {}
    for protocol, of_protocol in _by_protocol(silent):
        targets = sorted({(cell.target, _port(cell)) for cell in of_protocol})
        where = _nodes_of(stage)
        questions = [
            {"source": f"node:{where[target]}", "ip": stage.address(target), "port": port}
            for target, port in targets
        ]
        replies = _ask(stage, protocol, questions)
        alive = {
            target for target, verdict in zip(targets, replies["verdict"], strict=True) if verdict == "ok"
        }
        found |= {cell: BLOCKED if (cell.target, _port(cell)) in alive else BROKEN for cell in of_protocol}
    return found


def _nodes_of(stage: Stage) -> dict[PodKey, str]:
    pods = stage.cluster.client.get("/api/v1/pods")["items"]
    return {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod["spec"]["nodeName"] for pod in pods}


def _ask(stage: Stage, protocol: str, questions: list[dict[str, Any]]) -> dict[str, list[Any]]:
    request = {
        "questions": questions,
        "language": protocol.lower(),
        "text": QUESTION if protocol != "TCP" else "",
        "timeout": patient(SILENCE),
        "at_once": len(questions),
    }
    replies: dict[str, list[Any]] = stage.cluster.client.post("/apis/testbed/v1/conversations", request)[
        "replies"
    ]
    return replies


def _by_protocol(wanted: Iterable[Cell]) -> list[tuple[str, list[Cell]]]:
    grouped: dict[str, list[Cell]] = {}
    for cell in wanted:
        grouped.setdefault(cell.table.partition("/")[0], []).append(cell)
    return list(grouped.items())


def _port(cell: Cell) -> int:
    return int(cell.table.partition("/")[2])


def _key(text: str) -> PodKey:
    namespace, _, name = text.partition("/")
    return namespace, name


def describe(step: Step, wrong: list[Cell], seen: dict[Cell, str]) -> str:
    """The tables with a wrong cell, each with what is expected and, where it differs, what was seen."""
    names = sorted({cell.table for cell in wrong})
    differing = {(cell.table, "/".join(cell.source), "/".join(cell.target)): seen[cell] for cell in wrong}
    lines = [f"{len(wrong)} cells differ (expected>seen; . allowed, X blocked, ? no word of the target)"]
    for name in names:
        lines.append(f"{name:12}{' '.join(f'{target:>5}' for target in step.to)}")
        for source, row in step.tables[name].items():
            shown = [
                f"{cell}>{differing[name, source, target]}" if (name, source, target) in differing else cell
                for target, cell in zip(step.to, row, strict=True)
            ]
            lines.append(f"{source:12}{' '.join(f'{cell:>5}' for cell in shown)}")
    return "\n".join(lines)
