"""What is compared: a run, a folder of runs of one scenario, or a campaign, each as a side made of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.cells import is_campaign, read_campaign
from testbed.errors import InputError
from testbed.measure.floor import FLOOR_PATH
from testbed.measure.frames import figures_of, times_of
from testbed.records import FIGURE, LOOPBACK, SAMPLES, Expectation, Run, read_run
from testbed.report.colours import PATH_NAMES
from testbed.report.effects import Effect, Measured, effect

MOST_TRIPS = 20.0
NOISE = (LOOPBACK, FLOOR_PATH)
"""Ways that are the machine's noise floor."""


def way(protocol: str, path: str) -> str:
    """Protocol and way in words; of a throughput also what stands for it."""
    per = "time per Mbit" if protocol == "throughput" else ""
    return ", ".join(part for part in (protocol.upper(), PATH_NAMES.get(path, path), per) if part)


@dataclass(frozen=True)
class Unit:
    """One run. levels: factor → level, where it is a cell of a campaign."""

    run: Run
    levels: Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """What is compared: what one step measured over one protocol and way, at some levels."""

    levels: tuple[tuple[str, str], ...]
    variant: str
    step: str
    kind: str
    protocol: str
    path: str

    @property
    def title(self) -> str:
        """What a person calls it."""
        where = " ".join(f"{name}={label}" for name, label in self.levels)
        return ": ".join(part for part in (where, self.variant, self.step) if part)

    @property
    def way(self) -> str:
        """Protocol and way."""
        return way(self.protocol, self.path)

    @property
    def noise(self) -> bool:
        """Whether it is the machine's noise floor."""
        return self.path in NOISE


@dataclass(frozen=True)
class Side:
    """One side of a comparison. name: a short one that no other side has."""

    name: str
    folder: Path
    units: Sequence[Unit]

    @property
    def scenario(self) -> str:
        """What was run."""
        return ", ".join(dict.fromkeys(str(unit.run.environment.get("scenario", "")) for unit in self.units))

    @property
    def environment(self) -> dict[str, Any]:
        """That of the first unit."""
        return self.units[0].run.environment

    @property
    def expectations(self) -> list[Expectation]:
        """Of all units."""
        return [one for unit in self.units for one in unit.run.expectations]

    def figures(self) -> dict[Figure, Measured]:
        """Everything measured, in the order it was."""
        times: dict[Figure, list[np.ndarray[Any, Any]]] = {}
        counts: dict[Figure, tuple[int, int]] = {}
        for unit in self.units:
            levels = tuple(unit.levels.items())
            for key, rows in figures_of(unit.run.frame).groupby(list(FIGURE), sort=False, dropna=False):
                figure = Figure(levels, *(str(part) for part in key))
                ok, probes = counts.get(figure, (0, 0))
                counts[figure] = (ok + int((rows["verdict"] == "ok").sum()), probes + len(rows))
                values = times_of(rows)
                if len(values):
                    times.setdefault(figure, []).append(values)
        return {figure: Measured(times.get(figure, []), *counts[figure]) for figure in counts}

    def floor(self) -> float | None:
        """The median noise floor in seconds; None where it was not measured."""
        floors = [(unit.run.environment.get("noise_floor") or {}).get("median") for unit in self.units]
        known = [floor for floor in floors if floor is not None]
        return float(np.median(known)) if known else None


def read_sides(folders: Sequence[Path]) -> list[Side]:
    """A side per folder. Raises InputError."""
    names = _names(folders)
    return [Side(name, folder, _units(folder)) for name, folder in zip(names, folders, strict=True)]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / SAMPLES).is_file()


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder."""
    return sorted(path.parent for path in folder.glob(f"*/{SAMPLES}") if not path.parent.name.startswith("."))


def _units(folder: Path) -> list[Unit]:
    if is_campaign(folder):
        read = read_campaign(folder)
        units = [Unit(read_run(read.run_folder(cell)), cell.levels) for cell in read.cells if cell.done]
        if not units:
            raise InputError(f"{folder}: no cell of this campaign is done")
        return units
    if not is_run(folder) and (inside := runs_in(folder)):
        return [Unit(read_run(each), {}) for each in inside]
    return [Unit(read_run(folder), {})]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with their parents' where these are the same."""
    resolved = [folder.resolve() for folder in folders]
    for depth in (1, 2, 3, 4):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {path.name}" for number, path in enumerate(resolved, 1)]


def effects(before: Side, after: Side) -> dict[Figure, Effect]:
    """The effect on every figure that both sides have."""
    first, second = before.figures(), after.figures()
    common = [figure for figure in first if figure in second]
    floors = {
        (figure.levels, figure.variant, figure.step): (first[figure].median, second[figure].median)
        for figure in common
        if figure.noise
    }
    overall = (before.floor() or 0.0, after.floor() or 0.0)
    return {
        figure: effect(
            first[figure],
            second[figure],
            floor=0.0
            if figure.noise
            else explained(
                *floors.get((figure.levels, figure.variant, figure.step), overall), first[figure].median
            ),
        )
        for figure in common
    }


def explained(floor_before: float, floor_after: float, median: float) -> float:
    """Seconds of a change that a change of the noise floor may explain.

    The floor is one trip through the kernel. What takes several times as long is several such trips, each of
    which changes like it, up to MOST_TRIPS; what takes longer than that waits for something else.
    """
    if not floor_before or not floor_after or median != median:
        return 0.0
    return abs(floor_after - floor_before) * min(max(median / floor_before, 1.0), MOST_TRIPS)


def only_one_has(before: Side, after: Side) -> list[tuple[Figure, str]]:
    """Figures that one side alone has, and its name."""
    first, second = before.figures(), after.figures()
    return [(figure, before.name) for figure in first if figure not in second] + [
        (figure, after.name) for figure in second if figure not in first
    ]
