"""Scenarios in Python, for what YAML cannot say: a file with a function ``scenario()`` that returns one.

    from testbed.scenario.python import Call, make, timed
    from testbed.scenario.steps.probe import Probe

    def scenario():
        return make(__file__, cluster="../topologies/three-nodes.yaml", steps=[Call(do=look), …])

Everything else is as in YAML: steps are the same classes, ``timed`` puts one on a timeline, ``Call`` runs a
function."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.scenario.model import Context, Scenario, Step, step, steps
from testbed.scenario.timeline import Timed


@step("call")
class Call(Step, frozen=True, kw_only=True):
    """Run a function of a scenario in Python; it gets the ``Context`` and may do with it whatever a step
    does."""

    do: Callable[[Context], None]

    def run(self, context: Context) -> None:
        """Call it."""
        self.do(context)

    def plan(self, context: Context) -> dict[str, Any]:
        """Its name: what it does is not known before."""
        return {"do": getattr(self.do, "__qualname__", repr(self.do))}


def make(
    file: str,
    *,
    cluster: str,
    steps: Sequence[Step],
    name: str = "",
    description: str = "",
    overrides: Mapping[str, Any] | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    setup: Sequence[Step] = (),
    conclusions: Sequence[Step] = (),
    seed: int = 0,
) -> Scenario:
    """A scenario. file: the ``__file__`` that paths are relative to; name: by default its stem."""
    path = Path(file)
    return Scenario(
        name=name or path.stem,
        description=description,
        cluster=(path.parent / cluster).resolve(),
        overrides=_overrides(overrides or {}),
        steps=[(_kind(one), one) for one in steps],
        folder=path.parent,
        variants={key: _overrides(values) for key, values in (variants or {"": {}}).items()},
        conclusions=[(_kind(one), one) for one in conclusions],
        seed=seed,
        setup=[(_kind(one), one) for one in setup],
    )


def timed(one: Step, *, at: float = 0.0, every: float = 0.0, until: float = 0.0, lasts: float = 0.0) -> Timed:
    """A step on the timeline; times in seconds. Raises InputError where it cannot last."""
    own = one.lasting(lasts) if lasts else None
    if lasts and own is None and type(one).undo is Step.undo:
        raise InputError(f"{_kind(one)} does not last: nothing would end it")
    return Timed(
        name=one.name,
        kind=_kind(one),
        step=own or one,
        at=at,
        every=every,
        until=until,
        lasts=0.0 if own else lasts,
    )


def load_python(path: Path) -> Scenario:
    """The scenario of a Python file, which is run. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"testbed_scenario_{path.stem.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    build = getattr(module, "scenario", None)
    made = build() if callable(build) else build
    if not isinstance(made, Scenario):
        raise InputError(f"{path}: has no function scenario() that returns a Scenario")
    return made


def _kind(one: Step) -> str:
    if isinstance(one, Timed):
        return one.kind
    return next((name for name in steps if steps.get(name) is type(one)), type(one).__name__.lower())


def _overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
