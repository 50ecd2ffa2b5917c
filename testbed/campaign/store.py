"""A campaign's folder: which cells are done, keeping one more, the data set of all.

A cell is written to disk under a hidden name and then takes its own, so one that is there is whole, after a
power cut too. One process at a time writes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from testbed.campaign.execute import Executed
from testbed.cells import (
    CELL,
    CELLS,
    DATA,
    DONE,
    FAILED,
    PLAN,
    REPLICATE,
    CellRecord,
    PlanRecord,
    read_cell,
    read_cells,
)
from testbed.errors import InputError
from testbed.records import SAMPLES, give_to_user

_WORK = ".work"
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
"""linux/fs.h, linux/fcntl.h."""


class CampaignFolder:
    """The folder of one campaign. Use ``opened``, which keeps others out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def work(self, address: str) -> Path:
        """Where a cell runs until it is kept."""
        return self.path / _WORK / address

    def done(self) -> set[str]:
        """The addresses of the cells that ran to their end, of whatever plan."""
        return {each.parent.name for each in self.path.glob(f"{DONE}/*/{CELL}")}

    def records(self) -> Iterator[CellRecord]:
        """The records of all cells that are or were of this campaign."""
        for kind in (DONE, FAILED):
            for path in sorted(self.path.glob(f"{kind}/*/{CELL}")):
                yield read_cell(path)

    def notes(self, code: str) -> tuple[str, ...]:
        """What ``campaign.json`` notes of cells that this version of the code measured; () without one."""
        path = self.path / PLAN
        if not path.is_file():
            return ()
        plan = msgspec.json.decode(path.read_bytes(), type=PlanRecord)
        return plan.notes if plan.code == code else ()

    def write_plan(self, plan: PlanRecord) -> None:
        """Write ``campaign.json``, whole or not at all."""
        draft = self.path / f".{PLAN}"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
        give_to_user([draft])
        draft.rename(self.path / PLAN)

    def keep(self, executed: Executed) -> None:
        """Give a cell's folder its name. A cell that is done is never replaced."""
        record = executed.record
        target = self.path / (DONE if record.done else FAILED) / record.address
        target.parent.mkdir(exist_ok=True)
        give_to_user([target.parent, executed.folder, *executed.folder.rglob("*")])
        for path in executed.folder.rglob("*"):
            _to_disk(path)
        _to_disk(executed.folder)
        if not record.done:
            shutil.rmtree(target, ignore_errors=True)
        executed.folder.rename(target)
        for parent in (target.parent, self.path, self.path.parent):
            _to_disk(parent)
        if record.done:
            shutil.rmtree(self.path / FAILED / record.address, ignore_errors=True)
        shutil.rmtree(self.work(record.address), ignore_errors=True)

    def publish(self, plan: PlanRecord) -> int:
        """Write the data set and ``cells.parquet`` of the plan's cells that are done; returns how many.

        Each takes the place of the one before at once. The samples are links to those of the cells: they
        take no further room.
        """
        cells = read_cells(self.path, plan.cells)
        draft = self.path / f".{DATA}.partial"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        done = [cell for cell in cells if cell.done]
        for cell in done:
            parts = [*((name, cell.levels[name]) for name in cell.levels), (REPLICATE, str(cell.replicate))]
            folder = draft.joinpath(*(f"{name}={label}" for name, label in parts))
            folder.mkdir(parents=True)
            os.link(self.path / DONE / cell.address / SAMPLES, folder / f"{cell.address}.parquet")
        frame = cells_frame(cells, [factor.name for factor in plan.factors])
        frame.to_parquet(self.path / f".{CELLS}", index=False)
        give_to_user([draft, *(each for each in draft.rglob("*") if each.is_dir()), self.path / f".{CELLS}"])
        (self.path / f".{CELLS}").rename(self.path / CELLS)
        _take_place(draft, self.path / DATA)
        return len(done)

    def tidy(self) -> None:
        """Remove what a killed campaign left half-done."""
        shutil.rmtree(self.path / _WORK, ignore_errors=True)
        shutil.rmtree(self.path / f".{DATA}.partial", ignore_errors=True)


@contextmanager
def opened(path: Path) -> Iterator[CampaignFolder]:
    """A campaign's folder, made where it is not there, for this process alone. Raises InputError."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    give_to_user(made)
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{path}: another campaign is writing there") from error
        folder = CampaignFolder(path)
        folder.tidy()
        try:
            yield folder
        finally:
            folder.tidy()
    finally:
        os.close(held)


def cells_frame(cells: Sequence[CellRecord], factors: Sequence[str]) -> Any:
    """A row per cell: a column per factor, then the other fields of the record."""
    import pandas as pd

    names = [name for name in CellRecord.__struct_fields__ if name not in ("levels", "marks")]
    rows = [
        {
            **{factor: cell.levels[factor] for factor in factors},
            **{name: getattr(cell, name) for name in names},
            "marks": "; ".join(cell.marks),
        }
        for cell in cells
    ]
    return pd.DataFrame(rows, columns=[*factors, *names, "marks"])


def _to_disk(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _take_place(draft: Path, target: Path) -> None:
    """Rename a folder to a name that may be another's, which is then gone; at once (renameat2)."""
    if not target.exists():
        draft.rename(target)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(draft), os.fsencode(target))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(target))
    shutil.rmtree(draft)
