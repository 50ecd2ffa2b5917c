"""Running one cell in a process of its own, within its limits of time and memory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

import testbed
from testbed.campaign.bundle import Request, code_version, unpack
from testbed.campaign.cell import INPUT, ORDER, RESULT, Order, Result
from testbed.cells import CELL, FAILED, CellRecord
from testbed.cluster import statedir
from testbed.errors import InputError, NotConverged, TestbedError
from testbed.kernel import process
from testbed.measure.machine import Machine, overloaded

LOG: Final = "log.txt"
LOOK_EVERY: Final = 0.1
"""Seconds between two looks at a cell's process."""

MEMORY_EVERY, MEMORY_SHARE = 1.0, 0.01
"""A cell's memory is read at most every so many seconds, and takes at most this share of a CPU."""

GONE_WITHIN: Final = 20.0
"""Seconds the kernel may take to end the processes of a cell that is killed."""


@dataclass(frozen=True)
class Executed:
    """A cell that ran. folder: its run folder, or where it left none a folder with its log; both hold
    ``cell.json``."""

    record: CellRecord
    folder: Path


def execute(
    request: Request,
    work: Path,
    *,
    beside: int = 1,
    marks: Sequence[str] = (),
    stop: threading.Event | None = None,
) -> Executed:
    """Run a cell in ``work``, an empty folder or none, and return how it ended.

    The calling thread has to live until then: the process ends with it. beside: how many cells run on this
    machine at once. marks: further ones of its record. stop: ends it early; it then has no result. Raises
    Stopped, InputError for a request of another code version.
    """
    if request.code != code_version():
        raise InputError(
            f"{request.title} is of testbed {request.code}, and here is {code_version()}: "
            "install the same version on every machine"
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    work = work.resolve()
    unpack(request.files, work / INPUT)
    order = Order(request.scenario, list(request.overrides), request.changes, request.seed)
    (work / ORDER).write_bytes(msgspec.json.encode(order))
    started, machine = time.time(), Machine()
    watched = _watch(request, work, stop)
    usage = machine.since()
    result = _result(work)
    outcome = watched.killed or ("failed" if result.error or not result.folder else _judged(result))
    failed = outcome not in ("met", "unmet")
    doubt = overloaded(usage)
    record = _record(
        request,
        outcome=outcome,
        error=_why(request, watched, result, work) if failed else "",
        started=started,
        seconds=watched.seconds,
        memory=watched.memory,
        busy=usage["busy"],
        steal=usage["steal"],
        beside=beside,
        machine=socket.gethostname(),
        expectations=result.expectations,
        expectations_met=result.met,
        marks=(*marks, doubt) if doubt else tuple(marks),
        exit_code=result.exit_code or TestbedError.exit_code if failed else result.exit_code,
    )
    folder = work / result.folder if result.folder else work / FAILED
    folder.mkdir(exist_ok=True)
    shutil.copyfile(work / LOG, folder / LOG)
    return told(record, folder)


def lost(request: Request, work: Path, error: str, *, machine: str = "") -> Executed:
    """A cell that ended without a word, as when every machine it was given to died."""
    folder = work / FAILED
    folder.mkdir(parents=True, exist_ok=True)
    code = TestbedError.exit_code
    return told(_record(request, outcome="failed", error=error, machine=machine, exit_code=code), folder)


_ASKED: Final = ("address", "campaign", "levels", "replicate", "position", "seed", "code")
"""Fields of a request that are those of its record."""


def _record(request: Request, **what_became: Any) -> CellRecord:
    """The record of a request. what_became: the other fields."""
    asked = {name: getattr(request, name) for name in _ASKED}
    return CellRecord(**asked, **what_became)


def told(record: CellRecord, folder: Path) -> Executed:
    """The cell with its record written into its folder."""
    (folder / CELL).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return Executed(record, folder)


class Stopped(TestbedError):
    """A cell was ended because its campaign ends."""

    def __init__(self) -> None:
        super().__init__("stopped")


@dataclass(frozen=True)
class _Watched:
    """seconds: how long it took; memory: bytes at most; killed: the outcome, where a limit was exceeded;
    code: the process's exit code."""

    seconds: float
    memory: int
    killed: str
    code: int


def _judged(result: Result) -> str:
    return "met" if result.met == result.expectations else "unmet"


def _why(request: Request, watched: _Watched, result: Result, work: Path) -> str:
    if watched.killed == "out of time":
        return f"took longer than {request.time:g} s"
    if watched.killed:
        return f"took {watched.memory >> 20} MiB, more than {request.memory >> 20} MiB"
    if result.error:
        return result.error
    lines = (work / LOG).read_text(errors="replace").splitlines()
    return f"its process ended with code {watched.code}: {lines[-1] if lines else 'it said nothing'}"


def _result(work: Path) -> Result:
    try:
        return msgspec.json.decode((work / RESULT).read_bytes(), type=Result)
    except FileNotFoundError:
        return Result()


def _watch(request: Request, work: Path, stop: threading.Event | None) -> _Watched:
    """Start the process and wait for its end, or end it. Raises Stopped."""
    root = str(Path(testbed.__file__).parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    begun = time.monotonic()
    with (work / LOG).open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "testbed.campaign.cell", str(work), str(os.getpid())],
            cwd=work,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    memory, look_again, killed = 0, begun + MEMORY_EVERY, ""
    try:
        while (code := _ended(child, LOOK_EVERY)) is None:
            now = time.monotonic()
            if now >= look_again:
                memory = max(memory, memory_of(descendants(child.pid)))
                took = time.monotonic() - now
                look_again = now + max(MEMORY_EVERY, took / MEMORY_SHARE)
            if stop is not None and stop.is_set():
                raise Stopped
            if memory > request.memory:
                killed = "out of memory"
            elif now - begun > request.time:
                killed = "out of time"
            if killed:
                break
    finally:
        if child.poll() is None:
            _end(child)
    return _Watched(time.monotonic() - begun, memory, killed, child.returncode if code is None else code)


def _ended(child: subprocess.Popen[bytes], within: float) -> int | None:
    try:
        return child.wait(within)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait until nothing of the cell runs. Raises NotConverged."""
    family = [fd for pid in descendants(child.pid) if (fd := _pidfd(pid)) is not None]
    try:
        child.kill()
        child.wait()
        deadline = time.monotonic() + GONE_WITHIN
        for fd in family:
            if not process.wait_pidfd(fd, max(0.0, deadline - time.monotonic())):
                raise NotConverged("processes of a killed cell gone", GONE_WITHIN)
    finally:
        for fd in family:
            os.close(fd)
    statedir.clean_stale()


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def descendants(pid: int) -> list[int]:
    """A process and all below it, in whatever namespaces."""
    below: dict[int, list[int]] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_bytes().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            below.setdefault(int(fields[1]), []).append(int(directory.name))
    found, ahead = [], [pid]
    while ahead:
        found.append(ahead.pop())
        ahead += below.get(found[-1], ())
    return found


def memory_of(pids: Iterable[int]) -> int:
    """The sum of their proportional set sizes in bytes: what they share counts once."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is another user's
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total << 10
