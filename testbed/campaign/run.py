"""Running a campaign: its cells one after the other or several at once, each kept as it ends.

Killed at any moment and resumed, it loses the cells in flight and nothing else: the folder of a cell appears
whole under its content address, and what is there is not run again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from testbed.campaign import disturb
from testbed.campaign.bundle import Request, bundles, code_version
from testbed.campaign.estimate import NOTHING, Estimator, earlier_runs, spoken
from testbed.campaign.execute import Executed, execute
from testbed.campaign.load import Campaign, load_campaign
from testbed.campaign.plan import Cell, plan
from testbed.campaign.store import CampaignFolder, opened
from testbed.cells import (
    DISTURBANCE,
    CellRecord,
    Disturbance,
    FactorRecord,
    PlanRecord,
    read_cells,
    read_disturbance,
)
from testbed.errors import InputError, Lack, MissingCapability, TestbedError
from testbed.records import SAMPLES, give_to_user

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[str], None]
Disturbed = Literal["refuse", "mark"]


@dataclass(frozen=True)
class Outlook:
    """What a campaign would run. cells: those that are left; seconds, memory (bytes): None where nothing is
    known; source: what these are taken from; longest: seconds that the limits allow."""

    folder: Path
    cells: Sequence[Cell]
    done: int
    seconds: float | None
    memory: int | None
    source: str
    longest: float


@dataclass(frozen=True)
class Ended:
    """A campaign that came to its end. cells: all that ran, now or before; ran: how many now."""

    folder: Path
    planned: int
    ran: int
    cells: Sequence[CellRecord]

    @property
    def exit_code(self) -> int:
        """0: all met; else that of the worst cell."""
        return max((cell.exit_code for cell in self.cells), default=0)


def outlook(path: Path, *, out: Path = Path("results"), workers: int = 1) -> Outlook:
    """What ``run_campaign`` would do, without doing it; every cell is read and checked. Raises InputError."""
    campaign = load_campaign(path)
    cells = plan(campaign)
    requests = bundles(campaign, cells)
    folder = CampaignFolder(out / campaign.name)
    done = folder.done()
    left = [cell for cell, request in zip(cells, requests, strict=True) if request.address not in done]
    estimator = _estimator(folder, out, campaign)
    estimates = [estimator.of(cell.levels) for cell in left]
    memory = sorted((one.memory for one in estimates if one.memory), reverse=True)
    workers = at_once(workers, left)
    return Outlook(
        folder=folder.path,
        cells=left,
        done=len(cells) - len(left),
        seconds=estimator.left((cell.levels for cell in left), workers),
        memory=sum(memory[:workers]) if memory else None,
        source=", ".join(dict.fromkeys(one.source for one in estimates)) or NOTHING,
        longest=len(left) * campaign.time / workers,
    )


def run_campaign(
    path: Path,
    *,
    out: Path = Path("results"),
    workers: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
    disturbed: Disturbed = "refuse",
    report: Report = lambda line: None,
) -> Ended:
    """Run the cells of a campaign file that are not done yet, below ``out``/its name.

    workers: cells at once on this machine; scheduler: the address of a dask scheduler, whose workers run them
    instead. resume: go on where it ended before. disturbed: what to do where cells at once disturb each
    other. Raises InputError, MissingCapability; what goes wrong in a cell is in its record.
    """
    campaign = load_campaign(path)
    requests = bundles(campaign, plan(campaign))
    with opened(out / campaign.name) as folder:
        before = list(folder.records())
        if before and not resume:
            raise InputError(
                f"{folder.path} holds {len(before)} cells: --resume goes on with them, --out begins elsewhere"
            )
        done = folder.done()
        left = [request for request in requests if request.address not in done]
        report(f"{campaign.name}: {len(requests)} cells, {len(requests) - len(left)} done before")
        if stale := sum(1 for one in before if one.code != code_version()):
            report(f"{stale} cells were measured by other code: they stay, and are no part of this campaign")
        runner = _Runner(campaign, folder, left, _estimator(folder, out, campaign), report)
        marks: list[str] = []
        try:
            if scheduler is None:
                room = at_once(workers, left)
                marks += runner.check_room(room, disturbed)
                runner.take(runner.locally(room, marks), room)
            else:
                from testbed.campaign.remote import Cluster

                with Cluster(scheduler, report) as machines:
                    workers = machines.workers
                    runner.take(machines.run(left, folder.work("remote")), workers)
        finally:
            # What was noted of the cells that are done already is still so.
            noted = folder.notes(code_version()) if before else ()
            record = _plan_record(campaign, requests, workers, list(dict.fromkeys([*noted, *marks])))
            folder.write_plan(record)
            folder.publish(record)
        return Ended(folder.path, len(requests), runner.ran, read_cells(folder.path, record.cells))


def at_once(workers: int, left: Sequence[Request | Cell]) -> int:
    """How many cells run at once: no more than are left, and one worker where none is."""
    return max(1, min(workers, len(left)))


def _estimator(folder: CampaignFolder, out: Path, campaign: Campaign) -> Estimator:
    return Estimator(folder.records(), earlier_runs(out, campaign.scenario.stem))


def _plan_record(
    campaign: Campaign, requests: Sequence[Request], workers: int, notes: Sequence[str]
) -> PlanRecord:
    return PlanRecord(
        campaign=campaign.name,
        description=campaign.description,
        scenario=campaign.scenario.stem,
        factors=tuple(FactorRecord(factor.name, tuple(factor.levels)) for factor in campaign.factors),
        replicates=campaign.replicates,
        seed=campaign.seed,
        code=code_version(),
        cells=tuple(request.address for request in requests),
        workers=workers,
        notes=tuple(notes),
    )


class _Runner:
    """Runs what is left of a campaign and keeps what comes of it."""

    def __init__(
        self,
        campaign: Campaign,
        folder: CampaignFolder,
        left: Sequence[Request],
        estimator: Estimator,
        report: Report,
    ) -> None:
        self._campaign, self._folder, self._left = campaign, folder, left
        self._estimator, self._report = estimator, report
        self.ran = 0

    def take(self, executed: Iterator[Executed], workers: int) -> None:
        """Keep each cell as it ends, and tell of it."""
        waiting = {request.address: request for request in self._left}
        for one in executed:
            record = one.record
            self._folder.keep(one)
            self._estimator.add(record)
            request = waiting.pop(record.address)
            self.ran += 1
            left = self._estimator.left((other.levels for other in waiting.values()), workers)
            went = record.outcome + (f" ({record.error})" if record.error else "")
            marks = f" [{'; '.join(record.marks)}]" if record.marks else ""
            self._report(
                f"[{self.ran}/{len(self._left)}] {request.title}: {went} in {spoken(record.seconds)}{marks}"
                + (f"; about {spoken(left)} left" if waiting else "")
            )

    def locally(self, workers: int, marks: Sequence[str]) -> Iterator[Executed]:
        """The cells on this machine, so many at once, as they end."""
        stop = threading.Event()
        with ThreadPoolExecutor(workers, "cell") as pool:
            futures = [
                pool.submit(
                    execute,
                    request,
                    self._folder.work(request.address),
                    beside=workers,
                    marks=marks,
                    stop=stop,
                )
                for request in self._left
            ]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def check_room(self, workers: int, disturbed: Disturbed) -> list[str]:
        """Whether so many cells at once are possible; the marks that they then get. Where none is left to run
        nothing is asked for. Raises MissingCapability."""
        if not self._left:
            return []
        available = _available_memory()
        if workers * self._campaign.memory > available:
            raise MissingCapability(
                [
                    Lack(
                        "memory",
                        f"{workers} cells of up to {self._campaign.memory >> 20} MiB do not fit into "
                        f"{available >> 20} MiB",
                        "fewer --workers, or a lower limits.memory in the campaign's file",
                    )
                ]
            )
        if workers == 1:
            return []
        found = self._disturbance(workers)
        self._report(found.told())
        if not found.known:
            return ["not known whether cells beside it disturbed it"]
        if not found.disturbed:
            return []
        if disturbed == "refuse":
            raise MissingCapability(
                [
                    Lack(
                        "undisturbed cells",
                        found.told(),
                        "fewer --workers, or --disturbed mark, which marks every cell",
                    )
                ]
            )
        return [f"disturbed by cells beside it: {found.told()}"]

    def _disturbance(self, workers: int) -> Disturbance:
        """What was found for this machine and code before, or is measured now."""
        machine, code, allowed = socket.gethostname(), code_version(), self._campaign.disturbance
        known = read_disturbance(self._folder.path)
        if known is not None:
            of = (known.machine, known.code, known.workers, known.tolerance)
            if of == (machine, code, workers, allowed):
                return known
        self._report(f"measuring whether {workers} cells at once disturb each other: three times one cell")
        found = disturb.measure(self._trial, workers, allowed, machine, code)
        path = self._folder.path / DISTURBANCE
        path.write_bytes(msgspec.json.encode(found))
        give_to_user([path])
        return found

    def _trial(self, at_once: int) -> list[pd.DataFrame]:
        """The samples of the first cell, run so many times at once; nothing of it is kept."""
        import pandas as pd

        stop = threading.Event()
        with ThreadPoolExecutor(at_once, "trial") as pool:
            works = [self._folder.work(f"trial-{number}") for number in range(at_once)]
            try:
                done = list(pool.map(lambda work: execute(self._left[0], work, stop=stop), works))
            finally:
                stop.set()
        for one in done:
            if not one.record.done:
                raise TestbedError(f"a trial cell {one.record.outcome}: {one.record.error}")
        return [pd.read_parquet(one.folder / SAMPLES) for one in done]


def _available_memory() -> int:
    with Path("/proc/meminfo").open() as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
