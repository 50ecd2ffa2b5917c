"""What a campaign writes: the record of a cell, the campaign's folder, reading it back.
``docs/campaigns.md``.

A cell is one scenario with one combination of levels, run once. Its folder is named by its content address
and appears whole or not at all, so the folders that are there are the cells that are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from testbed.errors import InputError

PLAN, CELLS, CELL, DATA = "campaign.json", "cells.parquet", "cell.json", "samples"
DISTURBANCE = "disturbance.json"
"""Files of a campaign's folder: what it is, a row per cell, a cell's record, the data set of all samples,
what cells at once do to each other."""

DONE, FAILED = "cells", "failed"
"""Folders in it: a folder per cell that ran to its end, and per cell that did not."""

REPLICATE: Final = "replicate"
"""The partition below those of the factors."""


class CellRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: one row of ``cells.parquet``. Times in seconds, memory in bytes.

    levels: factor → level; replicate: from 1, also the block; position: where in the order, from 1.
    outcome: ``met``, ``unmet`` (an expectation), ``failed``, ``out of time`` or ``out of memory``; the last
    three left no result. marks: what makes its figures doubtful, if anything. memory: the largest sum of the
    proportional set sizes of its processes, as sampled. busy, steal: shares of the machine's CPU time while
    it ran. beside: how many cells ran on the machine at once.
    """

    address: str
    campaign: str
    levels: dict[str, str]
    replicate: int
    position: int
    seed: int
    outcome: str
    code: str
    error: str = ""
    started: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    busy: float = 0.0
    steal: float = 0.0
    beside: int = 1
    machine: str = ""
    expectations: int = 0
    expectations_met: int = 0
    marks: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def done(self) -> bool:
        """Whether it ran to its end and left a result."""
        return self.outcome in ("met", "unmet")


class FactorRecord(msgspec.Struct, frozen=True):
    """A factor and its levels, in the order they are shown in."""

    name: str
    levels: tuple[str, ...]


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign is: ``campaign.json``. cells: the content addresses, in the order they are run in."""

    campaign: str
    description: str
    scenario: str
    factors: tuple[FactorRecord, ...]
    replicates: int
    seed: int
    code: str
    cells: tuple[str, ...]
    workers: int = 1
    notes: tuple[str, ...] = ()


NEVER: Final = 1e9
"""The ratio of what was not answered any more, or not often enough for a median: JSON has no infinity."""


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """What running beside others does to one figure. together: per cell, its median to that of the cell
    alone, or NEVER; apart: the larger to the smaller median of the two runs alone."""

    figure: str
    together: tuple[float, ...]
    apart: float


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """What cells at once do to each other: ``disturbance.json``. workers: how many at once; tolerance: a
    share. slower, apart: upper quartiles of ``together`` over all figures and cells, of ``apart`` over all
    figures; 1 where no figure had samples enough."""

    machine: str
    code: str
    workers: int
    tolerance: float
    figures: tuple[Slowdown, ...] = ()
    slower: float = 1.0
    apart: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there was a figure to tell by."""
        return bool(self.figures)

    @property
    def disturbed(self) -> bool:
        """Whether cells disturb each other: a quarter of all figures and cells is slower than is allowed, and
        than two runs alone differ by."""
        return self.known and self.slower > max(1 + self.tolerance, self.apart)

    def slow(self, one: Slowdown) -> bool:
        """Whether a figure by itself is slower than is allowed, in every cell, and than two runs alone differ
        by."""
        return min(one.together) > max(1 + self.tolerance, one.apart)

    def told(self) -> str:
        """It in words."""
        if not self.known:
            return (
                "no figure has samples enough: not known whether "
                f"{self.workers} cells at once disturb each other"
            )
        ratios = [ratio for one in self.figures for ratio in one.together]
        quarter = (
            "figures is not answered any more"
            if self.slower >= NEVER
            else f"medians changes by {_change(self.slower)} or more"
        )
        said = (
            f"with {self.workers} cells at once a quarter of the {quarter} "
            f"({len(self.figures)} figures, from {_change(min(ratios))} to {_change(max(ratios))}; "
            f"two runs alone: {self.apart - 1:.1%} apart; allowed: {self.tolerance:.0%})"
        )
        slow = [one.figure for one in self.figures if self.slow(one)]
        return said + (f"; slower than allowed in every cell: {'; '.join(slow)}" if slow else "")


def _change(ratio: float) -> str:
    return "no answer" if ratio >= NEVER else f"{ratio - 1:+.1%}"


class CampaignRun(msgspec.Struct, frozen=True):
    """A campaign's folder read back."""

    folder: Path
    plan: PlanRecord
    cells: list[CellRecord]
    disturbance: Disturbance | None = None

    def run_folder(self, cell: CellRecord) -> Path:
        """Where a cell's own run folder is."""
        return self.folder / (DONE if cell.done else FAILED) / cell.address

    def measured(self) -> Any:
        """The samples of all cells in one pandas.DataFrame, with a column per factor and ``replicate``."""
        import pandas as pd

        from testbed.records import SAMPLES

        frames = []
        for cell in self.cells:
            if cell.done:
                frame = pd.read_parquet(self.run_folder(cell) / SAMPLES)
                frames.append(frame.assign(**cell.levels, **{REPLICATE: cell.replicate}))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def is_campaign(folder: Path) -> bool:
    """Whether a folder is a campaign's."""
    return (folder / PLAN).is_file()


def read_campaign(folder: Path) -> CampaignRun:
    """Read a campaign's folder: its plan, and the cells of it that ran, in order. Raises InputError."""
    try:
        plan = msgspec.json.decode((folder / PLAN).read_bytes(), type=PlanRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{folder} is no campaign folder: {error}") from error
    known = read_disturbance(folder)
    return CampaignRun(
        folder,
        plan,
        read_cells(folder, plan.cells),
        known if known is not None and known.code == plan.code else None,
    )


def read_disturbance(folder: Path) -> Disturbance | None:
    """What was found of cells at once; None where nothing was, or not by this version. Raises InputError."""
    path = folder / DISTURBANCE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Disturbance)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise InputError(f"{path} tells of no disturbance: {error}") from error


def read_cells(folder: Path, addresses: Sequence[str]) -> list[CellRecord]:
    """The records of those of the cells that ran; one that is done counts, whatever failed before."""
    found = []
    for address in addresses:
        for kind in (DONE, FAILED):
            path = folder / kind / address / CELL
            if path.is_file():
                found.append(read_cell(path))
                break
    return found


def read_cell(path: Path) -> CellRecord:
    """The record in a cell's folder. Raises InputError where it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CellRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is no record of a cell: {error}") from error
