"""What a run writes: the row of a sample, the run folder, and how it is written. ``docs/results.md``.

A run folder appears whole or not at all: it is filled under a hidden name beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import pandas as pd

FIGURE: Final = ("variant", "step", "kind", "protocol", "path")
"""The columns of samples that tell one figure from another: what one step measured over one protocol and
way."""

LOOPBACK: Final = "loopback"
"""The ``path`` of samples that are the machine's noise floor."""

SAMPLES, REACHABILITY, SUMMARY = "samples.parquet", "reachability.csv", "summary.csv"
EVENTS, ENVIRONMENT, EXPECTATIONS = "events.jsonl", "environment.json", "expectations.json"
REPORT = "report.html"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One probe: one row of ``samples.parquet``. See ``docs/results.md`` for each column and its unit."""

    kind: str  # reach, rtt, ask, programming, dns, probe, floor or path
    step: str
    source: str
    source_namespace: str
    source_node: str
    destination: str
    destination_namespace: str
    destination_node: str
    ip: str
    protocol: str
    port: int = 0
    path: str = ""
    verdict: str = "ok"
    reason: str = ""
    reporter: str = ""
    attempts: int = 1
    sequence: int = 0
    at: float | None = None
    seconds: float | None = None
    seconds_kernel: float | None = None
    ttl: int = 0
    variant: str = ""
    size: int = 0
    answer: str = ""
    code: str = ""
    sent: float | None = None
    received: float | None = None
    late: float | None = None
    copies: int = 0
    order: int = 0
    flow: int = 0
    bits_per_second: float | None = None
    repetition: int = 1
    warm_up: bool = False

    def replaced(self, fields: Mapping[str, Any]) -> Sample:
        """The same with other fields."""
        return msgspec.structs.replace(self, **fields)


ENDS: Final = (
    "source",
    "source_namespace",
    "source_node",
    "destination",
    "destination_namespace",
    "destination_node",
    "ip",
)


def reach_samples(step: str, answer: Mapping[str, Any]) -> list[Sample]:
    """The samples of a reachability answer of the API."""
    return [Sample(kind="reach", step=step, **row) for row in answer["rows"]]


def rtt_samples(step: str, answer: Mapping[str, Any]) -> list[Sample]:
    """The samples of a round-trips answer of the API, one per echo."""
    samples = []
    for series in answer["series"]:
        ends = {name: series[name] for name in (*ENDS, "path")}
        columns = series["samples"]
        for sequence, at, rtt, rtt_kernel, ttl, error in zip(
            *(columns[name] for name in ("sequence", "at", "rtt", "rtt_kernel", "ttl", "error")), strict=True
        ):
            verdict, reason = _echo_verdict(rtt, error)
            samples.append(
                Sample(
                    kind="rtt",
                    step=step,
                    protocol="icmp",
                    verdict=verdict,
                    reason=reason,
                    sequence=sequence,
                    at=at,
                    seconds=rtt,
                    seconds_kernel=rtt_kernel,
                    ttl=ttl,
                    **ends,
                )
            )
    return samples


def ask_samples(step: str, askers: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> list[Sample]:
    """The samples of a conversations answer of the API. askers: per question the fields of its ends."""
    replies = answer["replies"]
    names = ("question", "at", "verdict", "reason", "reporter", "answer", "seconds", "handshake")
    rows = zip(*(replies[name] for name in names), strict=True)
    return [
        Sample(
            kind="ask",
            step=step,
            sequence=sequence,
            at=at,
            verdict=verdict,
            reason=reason,
            reporter=reporter,
            answer=said[:MOST_OF_AN_ANSWER],
            seconds=_took(verdict, askers[question]["protocol"], seconds, handshake),
            seconds_kernel=handshake,
            **askers[question],
        )
        for sequence, (question, at, verdict, reason, reporter, said, seconds, handshake) in enumerate(
            rows, 1
        )
    ]


def _took(verdict: str, protocol: str, seconds: float | None, handshake: float | None) -> float | None:
    """How long a conversation took; None of one that failed, though that takes its time, too."""
    if verdict != "ok":
        return None
    # Where there was nothing to say, the kernel's own measure is the better one of the same thing.
    return handshake or seconds if protocol == "tcp" else seconds


def probe_samples(
    step: str, kind: str, answer: Mapping[str, Any], *, warm_up: float = 0.0, row: str = "probe"
) -> list[Sample]:
    """The samples of a probe answer of the API, a row per probe. warm_up: seconds of the beginning that do
    not count; row: the ``kind`` of the samples."""
    flows = answer["flows"]
    if "rows" in answer:  # of a kind that runs a program
        return [
            Sample(
                kind=row, step=step, protocol=kind, sequence=number, flow=one["flow"], **flows[one["flow"]]
            ).replaced({key: value for key, value in one.items() if key != "flow"})
            for number, one in enumerate(answer["rows"], 1)
        ]
    columns, offset = answer["columns"], answer["offset"]
    names = (
        "flow",
        "due",
        "begun",
        "sent",
        "received",
        "seconds",
        "seconds_kernel",
        "copies",
        "order",
        "outcome",
    )
    counted = (columns["due"][0] or 0.0) + warm_up if columns["due"] else 0.0
    samples = []
    for number, (flow, due, begun, sent, received, seconds, kernel, copies, order, outcome) in enumerate(
        zip(*(columns[name] for name in names), strict=True), 1
    ):
        verdict, reason, reporter, code, said = answer["words"][outcome]
        samples.append(
            Sample(
                kind=row,
                step=step,
                protocol=kind,
                sequence=number,
                verdict=verdict,
                reason=reason,
                reporter=reporter,
                code=code,
                answer=said[:MOST_OF_AN_ANSWER],
                at=begun + offset,
                sent=sent or begun,
                received=received,
                late=begun - due,
                seconds=seconds if verdict == "ok" else None,  # an error that was answered is no quick answer
                seconds_kernel=kernel,
                copies=copies,
                order=order,
                flow=flow,
                warm_up=due < counted,
                **flows[flow],
            )
        )
    return samples


def path_samples(step: str, answer: Mapping[str, Any]) -> list[Sample]:
    """The samples of a path answer of the API: a row per packet and hop, and one per packet for all of its
    way.

    A hop's ``destination`` is where the packet was seen, its ``source`` where it was before; the whole way
    is the row without an ``order``."""
    samples = []
    for journey in answer["journeys"]:
        about: dict[str, Any] = {
            "kind": "path",
            "step": step,
            "protocol": answer["protocol"],
            "sequence": journey["number"] + 1,
            "ip": answer["ip"],
            "port": answer["port"],
            "at": journey["at"],
            "source_namespace": "",
            "destination_namespace": "",
            "source_node": "",
            "destination_node": "",
        }
        answered = journey["round_trip"] is not None
        ends: dict[str, Any] = {
            "source": answer["source"],
            "destination": answer["destination"],
            "path": "whole way",
        }
        verdict: dict[str, Any] = (
            {"verdict": "ok"} if answered else {"verdict": "timeout", "reason": "no answer"}
        )
        samples.append(Sample(**about, **ends, **verdict, seconds=journey["round_trip"]))
        before = ""
        for order, hop in enumerate(journey["hops"], 1):
            here = f"{hop['where']} {hop['interface']} {hop['way']}"
            told = "; ".join(
                f"{name} {old or '-'} → {new or '-'}" for name, (old, new) in hop["rewritten"].items()
            )
            samples.append(
                Sample(
                    **about,
                    source=before,
                    destination=here,
                    path=hop["leg"],
                    order=order,
                    seconds=hop["seconds"],
                    received=hop["at"],
                    answer=told,
                )
            )
            before = here
    return samples


NODE_CHANGES: Final = "node changes"
"""The step of samples that say how soon a node followed another one's coming or going."""

READ: Final = "read"
"""The event that says what was read from a command's output."""


def programming_samples(answer: Mapping[str, Any], step: str = "network programming") -> list[Sample]:
    """The samples of an answer of the API about programming latency, one per change and node."""
    return [
        Sample(
            kind="programming",
            step=step,
            path=item["how"],
            source=f"{item['what']} {item['kind']}",
            source_namespace="",
            source_node="",
            destination=item["name"],
            destination_namespace=item["namespace"],
            destination_node=item["node"],
            ip="",
            protocol="",
            sequence=item["version"],
            at=item["written"],
            seconds=item["seconds"],
        )
        for item in answer["items"]
    ]


MOST_OF_AN_ANSWER: Final = 63
"""Characters of an answer that are kept: a host name."""


def _echo_verdict(rtt: float | None, error: str) -> tuple[str, str]:
    if rtt is not None:
        return "ok", ""
    return ("unreachable", error) if error else ("timeout", "no answer")


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a run. monotonic: seconds on the host's CLOCK_MONOTONIC; wall: seconds
    since the epoch."""

    monotonic: float
    wall: float
    what: str
    detail: dict[str, Any] = {}


CHANGES: Final = frozenset(
    {
        *("fault applied", "fault healed", "applying", "deleting", "rollout begun"),
        *("node leaves", "node joins", "node restarts", "node readdressed"),
    }
)
"""Events after which a network has to converge."""


def event(what: str, **detail: Any) -> Event:
    """An event that happens now."""
    return Event(time.monotonic(), time.time(), what, detail)


class Expectation(msgspec.Struct, frozen=True):
    """What was expected and what happened. step: the step that measured it."""

    step: str
    expected: str
    observed: str
    met: bool


class RunRecord(msgspec.Struct, frozen=True):
    """What a run hands over to be written beside its tables."""

    scenario: str
    events: Sequence[Event]
    expectations: Sequence[Expectation]
    environment: dict[str, Any]


def new_run_folder(root: Path, scenario: str) -> Path:
    """A folder name that no other run has: ``root/<scenario>/<UTC time>-<short id>``; not created."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return root / scenario / f"{stamp}-{secrets.token_hex(2)}"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name ``folder`` at the end, and is removed where that fails."""
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.partial"
    draft.mkdir()
    try:
        yield draft
        give_to_user([*made, draft, *draft.rglob("*")])
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise


def give_to_user(paths: Sequence[Path]) -> None:
    """Run under sudo, results belong to the person who ran it."""
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        return
    uid, gid = int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "-1"))
    for path in paths:
        os.chown(path, uid, gid, follow_symlinks=False)


def write_run(folder: Path, record: RunRecord, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write everything but the report into an existing folder. tables: file name → what goes into it."""
    for name, frame in tables.items():
        if name.endswith(".parquet"):
            frame.to_parquet(folder / name, index=False)
        else:
            frame.to_csv(folder / name, index=False)
    lines = (json.dumps(msgspec.to_builtins(one)) + "\n" for one in record.events)
    (folder / EVENTS).write_text("".join(lines))
    _write_json(folder / ENVIRONMENT, {"scenario": record.scenario, **record.environment})
    _write_json(folder / EXPECTATIONS, msgspec.to_builtins(list(record.expectations)))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_expectations(folder: Path) -> tuple[dict[str, Any], list[Expectation]]:
    """Environment and expectations of a run folder, without its samples."""
    environment = json.loads((folder / ENVIRONMENT).read_text())
    return environment, msgspec.json.decode((folder / EXPECTATIONS).read_bytes(), type=list[Expectation])


class Run(msgspec.Struct, frozen=True):
    """A run folder read back; what reports are made from."""

    folder: Path
    samples: Any  # pandas.DataFrame
    environment: dict[str, Any]
    events: list[Event]
    expectations: list[Expectation]

    @property
    def frame(self) -> pd.DataFrame:
        """The samples."""
        frame: pd.DataFrame = self.samples
        return frame


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises InputError where it is none."""
    import pandas as pd

    from testbed.errors import InputError

    absent = [name for name in (SAMPLES, ENVIRONMENT, EVENTS) if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder} is no run folder: it has no {', '.join(absent)}")
    expectations = folder / EXPECTATIONS
    return Run(
        folder=folder,
        samples=pd.read_parquet(folder / SAMPLES),
        environment=json.loads((folder / ENVIRONMENT).read_text()),
        events=[
            msgspec.json.decode(line, type=Event)
            for line in (folder / EVENTS).read_bytes().splitlines()
            if line.strip()
        ],
        expectations=msgspec.json.decode(expectations.read_bytes(), type=list[Expectation])
        if expectations.is_file()
        else [],
    )
