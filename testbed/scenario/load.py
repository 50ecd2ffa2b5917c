"""Reading a scenario file: every problem at once, with file, line and path."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from testbed.documents import Document, FieldPath, format_path, read_file
from testbed.errors import InputError, Problem
from testbed.scenario.model import Scenario, Step, Steps, steps
from testbed.scenario.timeline import Timed
from testbed.units import parse_duration

T = TypeVar("T")
_WHERE = re.compile(r" - at `\$\.?(.*)`$")
_PLACE = re.compile(r"[^.\[\]]+|\[[0-9]{1,6}\]")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"api_version": "apiVersion"}):
    """A scenario file without its steps read. set: spec path → value, as of ``--set``; variants: of name."""

    api_version: str
    kind: str
    cluster: str
    steps: list[dict[str, Any]]
    metadata: dict[str, str] = {}
    description: str = ""
    set: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    conclusions: list[dict[str, Any]] = []
    seed: int = 0
    setup: list[dict[str, Any]] = []
    repeat: dict[str, Any] | None = None


def load_scenario(path: Path, changes: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario of a YAML file, or of a Python one (``scenario.python``).

    changes: place in a YAML file → another value, ``steps[1].rtt.count`` → 500. Raises InputError.
    """
    if path.suffix == ".py":
        from testbed.scenario.python import load_python

        if changes:
            raise InputError(f"{path}: is Python, which has no places to change: {', '.join(changes)}")
        return load_python(path)
    documents = read_file(path)
    if len(documents) != 1:
        raise InputError([Problem(f"holds {len(documents)} documents; a scenario is one", str(path))])
    document = documents[0]
    for place, value in (changes or {}).items():
        _change(document, place, value)
    header = _convert(document, document.data, _Header, ())
    problems = list(_header_problems(document, header, path))
    read = _steps(document, header.steps, ("steps",), problems)
    conclusions = _steps(document, header.conclusions, ("conclusions",), problems)
    setup = _steps(document, header.setup, ("setup",), problems)
    if header.repeat is not None:
        try:
            repeat = _convert(document, header.repeat, steps.get("repeat"), ("repeat",))
            read = [("repeat", msgspec.structs.replace(repeat, steps=Steps(read)))]
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return Scenario(
        name=header.metadata.get("name", path.stem),
        description=header.description,
        cluster=Path(os.path.normpath(path.parent / header.cluster)),
        overrides=_overrides(header.set),
        steps=read,
        folder=path.parent,
        variants={name: _overrides(values) for name, values in header.variants.items()} or {"": ()},
        conclusions=conclusions,
        seed=header.seed,
        setup=setup,
    )


def _change(document: Document, place: str, value: Any) -> None:
    """Put another value in a place of a document. Raises InputError where there is no such place."""
    keys = [int(part[1:-1]) if part[0] == "[" else part for part in _PLACE.findall(place)]
    held = document.data
    try:
        if format_path(tuple(keys)) != place:
            raise KeyError(place)
        for key in keys[:-1]:
            held = held[key]
        if not isinstance(held, dict):
            held[keys[-1]]  # a list has to have it, a mapping takes another key
        held[keys[-1]] = value
    except (KeyError, IndexError, TypeError) as error:
        raise InputError([Problem(f"has no place {place!r} to put a value in", document.file)]) from error


def _overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


def _steps(
    document: Document, listed: Sequence[dict[str, Any]], at: FieldPath, problems: list[Problem]
) -> list[tuple[str, Step]]:
    """The steps of a list; what is wrong with them is added to ``problems``."""
    read = []
    for place, data in enumerate(listed):
        try:
            read.append(_step(document, data, (*at, place)))
        except InputError as error:
            problems += error.problems
    return read


def _header_problems(document: Document, header: _Header, path: Path) -> list[Problem]:
    problems = []
    if header.api_version != "testbed/v1":
        problems.append(document.problem(("apiVersion",), "must be testbed/v1"))
    if header.kind != "Scenario":
        problems.append(document.problem(("kind",), "must be Scenario"))
    if not _NAME.fullmatch(header.metadata.get("name", path.stem)):
        problems.append(document.problem(("metadata", "name"), "must be a DNS label"))
    if not header.steps:
        problems.append(document.problem(("steps",), "must not be empty"))
    return problems


_TIMES = ("at", "every", "until", "for", "background")
"""What may stand beside a step's kind, and puts it on a timeline."""


def _step(document: Document, data: dict[str, Any], at: FieldPath) -> tuple[str, Step]:
    times = {name: data[name] for name in _TIMES if name in data}
    kinds = [name for name in data if name not in times]
    if len(kinds) != 1:
        raise InputError([document.problem(at, "must be one step, such as `- reach: {protocol: tcp}`")])
    kind, fields = kinds[0], data[kinds[0]]
    try:
        wanted = steps.get(kind)
    except InputError as error:
        raise InputError([document.problem((*at, kind), str(error))]) from error
    read = _convert(document, {} if fields is None else fields, wanted, (*at, kind))
    return (kind, _timed(document, times, kind, read, at)) if times else (kind, read)


def _timed(document: Document, times: dict[str, Any], kind: str, read: Step, at: FieldPath) -> Timed:
    seconds: dict[str, float] = {}
    for name, value in times.items():
        if name == "background":
            if value is not True:
                raise InputError([document.problem((*at, name), "must be true where it stands")])
            continue
        try:
            seconds[name] = parse_duration(value)
        except ValueError as error:
            raise InputError([document.problem((*at, name), str(error))]) from error
    if ("every" in seconds) != ("until" in seconds) or ("every" in seconds and not seconds["every"]):
        raise InputError(
            [document.problem(at, "every and until go together: again so often, up to that time")]
        )
    if "until" in seconds and seconds["until"] < seconds.get("at", 0.0):
        raise InputError([document.problem((*at, "until"), "is before at: it would never run")])
    lasts = seconds.get("for", 0.0)
    if lasts and (own := read.lasting(lasts)) is not None:
        read, lasts = own, 0.0
    elif lasts and type(read).undo is Step.undo:
        raise InputError([document.problem((*at, "for"), f"{kind} does not last: nothing would end it")])
    return Timed(
        name=read.name,
        kind=kind,
        step=read,
        at=seconds.get("at", 0.0),
        every=seconds.get("every", 0.0),
        until=seconds.get("until", 0.0),
        lasts=lasts,
    )


def _inner(document: Document, data: dict[str, Any], kind: type[T], at: FieldPath) -> dict[str, Steps]:
    """The fields of a step that are steps themselves. Raises InputError."""
    fields = {one.name for one in msgspec.structs.fields(kind) if one.type is Steps}  # type: ignore[arg-type]
    found: dict[str, Steps] = {}
    problems: list[Problem] = []
    for name in fields & data.keys():
        if not isinstance(data[name], list):
            raise InputError([document.problem((*at, name), "must be a list of steps")])
        found[name] = Steps(_steps(document, data[name], (*at, name), problems))
    if problems:
        raise InputError(problems)
    return found


def _convert(document: Document, data: Any, kind: type[T], at: FieldPath) -> T:
    inner = _inner(document, data, kind, at) if isinstance(data, dict) else {}
    try:
        read = msgspec.convert(
            {key: value for key, value in data.items() if key not in inner} if inner else data, kind
        )
        return msgspec.structs.replace(read, **inner) if inner else read  # type: ignore[type-var]
    except msgspec.ValidationError as error:
        message = str(error)
        where = _WHERE.search(message)
        path = (*at, *(part for part in re.split(r"[.\[\]]+", where[1]) if part)) if where else at
        inside = tuple(int(part) if isinstance(part, str) and part.isdecimal() else part for part in path)
        raise InputError([document.problem(inside, _WHERE.sub("", message))]) from error
