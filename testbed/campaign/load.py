"""Reading a campaign file: factors and levels, exclusions, replicates; every problem at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from testbed.cells import REPLICATE
from testbed.documents import Document, FieldPath, read_file
from testbed.errors import InputError, Problem
from testbed.records import Sample
from testbed.units import parse_duration, parse_share

MOST_CELLS = 100_000
"""More are a mistake: at a second each they take a day."""

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
_FACTOR = re.compile(r"[a-z][a-z0-9_]{0,30}")
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi)")
_WHERE = re.compile(r" - at `\$\.?(.*)`$")
_FACTORS = 8
"""Factors a campaign may have; each is a level of folders of the data set."""


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a level changes. spec: path in the cluster's spec → value, as of ``--set``; scenario: place in the
    scenario's file → value (``steps[1].rtt.count``); use: another scenario's file."""

    spec: dict[str, Any] = {}
    scenario: dict[str, Any] = {}
    use: str = ""


class _Factor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """spec, scenario: the places that take each of the levels, where these are a list of values."""

    levels: list[Any] | dict[str, Setting]
    spec: str | list[str] = []
    scenario: str | list[str] = []


class _Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    time: Any = "10m"
    memory: Any = "4Gi"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"api_version": "apiVersion"}):
    api_version: str
    kind: str
    scenario: str
    factors: dict[str, _Factor]
    metadata: dict[str, str] = {}
    description: str = ""
    always: Setting = Setting()
    exclude: list[dict[str, Any]] = []
    replicates: int = 1
    seed: int = 0
    limits: _Limits = _Limits()
    disturbance: Any = "10%"
    files: list[str] = []


@dataclass(frozen=True)
class Factor:
    """levels: label → what it changes, in the order they are shown in."""

    name: str
    levels: Mapping[str, Setting]


@dataclass(frozen=True)
class Campaign:
    """A campaign file. exclude: factor → labels, all of which a combination has to match to be left out;
    time, memory: limits of a cell in seconds and bytes; disturbance: how much slower, as a share, cells that
    run at once may be; files: further ones that cells need; folder: the file's."""

    name: str
    description: str
    scenario: Path
    factors: Sequence[Factor]
    folder: Path
    always: Setting = field(default_factory=Setting)
    exclude: Sequence[Mapping[str, frozenset[str]]] = ()
    replicates: int = 1
    seed: int = 0
    time: float = 600.0
    memory: int = 4 << 30
    disturbance: float = 0.1
    files: Sequence[Path] = ()

    def scenario_of(self, settings: Sequence[Setting]) -> Path:
        """The scenario that a combination runs: that of the last setting that names one."""
        used = next((one.use for one in reversed(settings) if one.use), "")
        return _beside(self.folder, used) if used else self.scenario

    def excluded(self, labels: Mapping[str, str]) -> bool:
        """Whether a combination, factor → label, is left out."""
        return any(all(labels[name] in asked for name, asked in one.items()) for one in self.exclude)


def load_campaign(path: Path) -> Campaign:
    """The campaign of a file. Raises InputError."""
    documents = read_file(path)
    if len(documents) != 1:
        raise InputError([Problem(f"holds {len(documents)} documents; a campaign is one", str(path))])
    document = documents[0]
    file = _convert(document)
    name = file.metadata.get("name", path.stem)
    reader = _Reader(document)
    campaign = Campaign(
        name=name,
        description=file.description,
        scenario=_beside(path.parent, file.scenario),
        factors=[reader.factor(key, factor) for key, factor in file.factors.items()],
        folder=path.parent,
        always=file.always,
        exclude=list(reader.exclusions(file)),
        replicates=file.replicates,
        seed=file.seed,
        time=reader.read(("limits", "time"), parse_duration, file.limits.time, 600.0),
        memory=reader.read(("limits", "memory"), parse_size, file.limits.memory, 4 << 30),
        disturbance=reader.read(("disturbance",), parse_share, file.disturbance, 0.1),
        files=[_beside(path.parent, each) for each in file.files],
    )
    reader.header(file, name)
    if reader.problems:
        raise InputError(reader.problems)
    return campaign


def parse_size(value: Any) -> int:
    """``2Gi`` in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"must be a size such as 512Mi or 2Gi, not {value!r}")
    return int(float(match[1]) * {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[match[2]])


def as_override(path: str, value: Any) -> str:
    """A setting of the cluster's spec as ``--set`` takes it."""
    return f"{path}={json.dumps(value)}"


class _Reader:
    """Reads the parts of a file, and notes what is wrong with them."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []

    def wrong(self, at: FieldPath, message: str) -> None:
        self.problems.append(self._document.problem(at, message))

    def read(self, at: FieldPath, parse: Any, value: Any, otherwise: Any) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            self.wrong(at, str(error))
            return otherwise

    def header(self, file: _File, name: str) -> None:
        for key, wanted, given in (
            ("apiVersion", "testbed/v1", file.api_version),
            ("kind", "Campaign", file.kind),
        ):
            if given != wanted:
                self.wrong((key,), f"must be {wanted}")
        if not _DNS.fullmatch(name):
            self.wrong(("metadata", "name"), "must be a DNS label")
        if not 1 <= len(file.factors) <= _FACTORS:
            self.wrong(("factors",), f"must be 1 to {_FACTORS}")
        if not 1 <= file.replicates <= 1000:
            self.wrong(("replicates",), "must be 1 to 1000")
        size = file.replicates
        for factor in file.factors.values():
            size *= max(1, len(factor.levels))
        if size > MOST_CELLS:
            self.wrong(("factors",), f"make {size:,} cells; at most {MOST_CELLS:,} are possible")

    def factor(self, name: str, given: _Factor) -> Factor:
        at = ("factors", name)
        if not _FACTOR.fullmatch(name):
            self.wrong(at, "must be a name of lower-case letters, digits and _")
        if name in {*Sample.__struct_fields__, REPLICATE}:
            self.wrong(at, f"{name!r} is a column of the samples; choose another name")
        if not given.levels:
            self.wrong((*at, "levels"), "must not be empty")
        if isinstance(given.levels, dict):
            if given.spec or given.scenario:
                self.wrong(at, "spec and scenario go with a list of levels; a mapping says what each changes")
            levels = given.levels
        else:
            levels = self._values(at, given)
        for label in levels:
            if not _LABEL.fullmatch(label):
                self.wrong((*at, "levels"), f"{label!r} cannot name a folder: give the level a name")
        return Factor(name, levels)

    def _values(self, at: FieldPath, given: _Factor) -> dict[str, Setting]:
        if not given.spec and not given.scenario:
            self.wrong(at, "says neither in spec nor in scenario where its levels go")
        levels: dict[str, Setting] = {}
        for value in given.levels:
            label = value if isinstance(value, str) else json.dumps(value)
            if label in levels:
                self.wrong((*at, "levels"), f"has {label} twice")
            levels[label] = Setting(
                spec=dict.fromkeys(_listed(given.spec), value),
                scenario=dict.fromkeys(_listed(given.scenario), value),
            )
        return levels

    def exclusions(self, file: _File) -> Iterator[Mapping[str, frozenset[str]]]:
        for place, given in enumerate(file.exclude):
            asked = {}
            if not given:
                self.wrong(("exclude", place), "must name a level of a factor")
            for name, value in given.items():
                labels = [one if isinstance(one, str) else json.dumps(one) for one in _listed(value)]
                known = _labels(file.factors[name]) if name in file.factors else []
                if name not in file.factors:
                    self.wrong(("exclude", place, name), f"is no factor: {', '.join(file.factors)}")
                for label in labels:
                    if known and label not in known:
                        self.wrong(("exclude", place, name), f"has no level {label}: {', '.join(known)}")
                asked[name] = frozenset(labels)
            if asked:
                yield asked


def _labels(factor: _Factor) -> list[str]:
    return [one if isinstance(one, str) else json.dumps(one) for one in factor.levels]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value not in ("", None) else []


def _beside(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / name))


def _convert(document: Document) -> _File:
    try:
        return msgspec.convert(document.data, _File)
    except msgspec.ValidationError as error:
        message = str(error)
        where = _WHERE.search(message)
        keys = [part for part in re.split(r"[.\[\]]+", where[1]) if part] if where else []
        path = tuple(int(key) if key.isdecimal() else key for key in keys)
        raise InputError([document.problem(path, _WHERE.sub("", message))]) from error
