"""The files that a cell depends on, taken along, and the content address made of them.

What is hashed is what is run, here and on another machine: a file that is edited while a campaign runs
changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import testbed
from testbed.campaign.load import Campaign
from testbed.campaign.plan import Cell
from testbed.errors import InputError
from testbed.scenario.load import load_scenario
from testbed.spec.load import load_spec

MOST_BYTES = 64 << 20
"""Bytes that the files of a cell may have."""

_ADDRESS = 20
"""Hexadecimal digits of an address: 80 bits."""

_NOT_MEASURING = ("cells.py", "cli", "conformance", "labs", "report")
"""Parts of the package that a figure does not depend on."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A cell ready to be run anywhere. files: path → content; scenario: one of these paths; time, memory:
    its limits in seconds and bytes; code: of the testbed that may run it."""

    address: str
    campaign: str
    title: str
    levels: dict[str, str]
    replicate: int
    position: int
    seed: int
    scenario: str
    overrides: tuple[str, ...]
    changes: dict[str, Any]
    files: dict[str, bytes]
    time: float
    memory: int
    code: str


@dataclass
class Bundler:
    """Makes the requests of a campaign; each file is read once."""

    campaign: Campaign

    def __post_init__(self) -> None:
        self._contents: dict[Path, bytes] = {}

    def request(self, cell: Cell) -> Request:
        """The cell with its files and its address. Raises InputError for whatever is wrong with it."""
        paths = sorted({Path(os.path.abspath(path)) for path in self._paths(cell)})
        root = Path(os.path.commonpath([path.parent for path in paths]))
        files = {str(path.relative_to(root)): self._read(path) for path in paths}
        if sum(map(len, files.values())) > MOST_BYTES:
            raise InputError(f"{cell.title}: its files have more than {MOST_BYTES >> 20} MiB")
        scenario = str(Path(os.path.abspath(cell.scenario)).relative_to(root))
        about: dict[str, Any] = {
            "levels": dict(cell.levels),
            "replicate": cell.replicate,
            "seed": cell.seed,
            "scenario": scenario,
            "overrides": cell.overrides,
            "changes": dict(cell.changes),
            "code": code_version(),
        }
        return Request(
            address=address(about, files),
            campaign=self.campaign.name,
            title=cell.title,
            position=cell.position,
            files=files,
            time=self.campaign.time,
            memory=self.campaign.memory,
            **about,
        )

    def _paths(self, cell: Cell) -> Iterator[Path]:
        """The scenario, its cluster's spec, and the files these name. Reads, and so checks, both."""
        scenario = load_scenario(cell.scenario, cell.changes)
        yield cell.scenario
        yield scenario.cluster
        for more in scenario.variants.values():
            spec = load_spec(scenario.cluster, [*scenario.overrides, *cell.overrides, *more])
            for manifest in spec.manifests:
                yield from _files(Path(manifest))
            builder = scenario.cluster.parent / str(spec.document["spec"]["topology"]["builder"])
            if builder.suffix == ".py":
                yield builder
        for named in _named(
            msgspec.to_builtins(
                [step for _, step in (*scenario.setup, *scenario.steps, *scenario.conclusions)]
            )
        ):
            yield from _files(scenario.folder / named)
        for path in self.campaign.files:
            yield from _files(path)

    def _read(self, path: Path) -> bytes:
        if path not in self._contents:
            try:
                self._contents[path] = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error
        return self._contents[path]


def _files(path: Path) -> Iterator[Path]:
    """A file, or those in a directory."""
    if path.is_dir():
        yield from (each for each in sorted(path.rglob("*")) if each.is_file())
    else:
        yield path


def _named(data: Any) -> Iterator[str]:
    """The paths that stand in fields called ``files``, at any depth, in the steps of a scenario."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "files" and isinstance(value, list | tuple):
                yield from (str(each) for each in value)
            else:
                yield from _named(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _named(value)


def address(about: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """The content address: of what the cell is, and of its files' names and contents."""
    digest = hashlib.sha256(msgspec.json.encode(about, order="deterministic"))
    for name in sorted(files):
        digest.update(msgspec.json.encode([name, hashlib.sha256(files[name]).hexdigest()]))
    return digest.hexdigest()[:_ADDRESS]


@cache
def code_version() -> str:
    """Version of the testbed and a hash of those of its source files that figures depend on."""
    root = Path(testbed.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".py", ".yaml", ".json") and not _set_aside(name):
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return f"{testbed.__version__}-{digest.hexdigest()[:12]}"


def _set_aside(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}/") for part in _NOT_MEASURING)


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a request below a folder. Raises InputError for a path that leads out of it."""
    for name, content in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"{name}: leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def bundles(campaign: Campaign, cells: Sequence[Cell]) -> list[Request]:
    """The requests of all cells. Raises InputError with what is wrong with the first that cannot be."""
    bundler = Bundler(campaign)
    return [bundler.request(cell) for cell in cells]
