"""Steps by the clock: order, repetition, what lasts, and what ends when something fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed.errors import InputError, TestbedError
from testbed.records import Sample
from testbed.scenario.load import load_scenario
from testbed.scenario.model import Context, Step, Steps, drawing
from testbed.scenario.python import load_python
from testbed.scenario.run import _Running
from testbed.scenario.steps.probe import Probe
from testbed.scenario.steps.repeat import Repeat, half_width
from testbed.scenario.timeline import Timed, run_steps

HEAD = "apiVersion: testbed/v1\nkind: Scenario\ncluster: c.yaml\n"


class Mark(Step, frozen=True, kw_only=True):
    """Notes that it ran, and that it ended."""

    fails: bool = False

    def run(self, context: Context) -> None:
        context.note(f"{self.name} runs")
        if self.fails:
            raise TestbedError(f"{self.name} failed")

    def undo(self, context: Context) -> None:
        context.note(f"{self.name} ends")


def context() -> Context:
    return Context(running=None, folder=Path())


def make_sample(seconds: float) -> Sample:
    ends = dict.fromkeys(("source_namespace", "source_node", "destination_namespace", "destination_node"), "")
    return Sample(
        kind="probe", step="", source="a", destination="b", ip="", protocol="udp", seconds=seconds, **ends
    )


def marks(ran: Context) -> list[str]:
    return [one.what for one in ran.events if one.what.endswith((" runs", " ends"))]


def timed(name: str, **times: Any) -> tuple[str, Step]:
    fails = times.pop("fails", False)
    return "mark", Timed(name=name, kind="mark", step=Mark(name=name, fails=fails), **times)


def load(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "it.yaml"
    path.write_text(HEAD + text)
    return load_scenario(path)


def test_neighbours_with_times_share_a_clock_and_the_next_step_waits_for_them() -> None:
    ran = context()
    run_steps(
        [
            timed("late", at=0.08),
            timed("lasting", at=0.0, lasts=0.15),
            timed("again", at=0.03, every=0.04, until=0.11),
            ("mark", Mark(name="after")),
        ],
        ran,
    )
    found = marks(ran)
    assert found.count("again runs") == 3
    assert [one for one in found if not one.startswith("again")] == [
        "lasting runs",
        "late runs",
        "lasting ends",
        "after runs",
    ]


def test_what_lasts_is_ended_when_another_step_fails() -> None:
    ran = context()
    with pytest.raises(TestbedError, match="bad failed"):
        run_steps([timed("lasting", at=0.0, lasts=60.0), timed("bad", at=0.05, fails=True)], ran)
    assert marks(ran) == ["lasting runs", "bad runs", "lasting ends"]


def test_times_stand_beside_a_step_and_for_is_the_probes_own(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        "steps:\n- at: 1.5s\n  for: 10s\n  probe: {kind: icmp, from: {pod: a}, to: {pod: b}, rate: 10}\n"
        "- {at: 2s, every: 1s, until: 4s, wait: {}}\n- {background: true, pause: {seconds: 1, why: x}}\n",
    )
    probe, wait, pause = (one for _, one in scenario.steps)
    assert probe.at == 1.5
    assert isinstance(probe.step, Probe)
    assert probe.step.duration == 10.0
    assert probe.lasts == 0.0
    assert wait.moments() == [2.0, 3.0, 4.0]
    assert pause.moments() == [0.0]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("{at: soon, wait: {}}", "must be a duration"),
        ("{every: 1s, wait: {}}", "every and until go together"),
        ("{at: 3s, every: 1s, until: 2s, wait: {}}", "would never run"),
        ("{for: 1s, wait: {}}", "wait does not last"),
        ("{at: 1s}", "must be one step"),
        (
            "{probe: {kind: icmp, from: {pod: a}, to: {pod: b}, count: 1, expect: [fast]}}",
            "must be a comparison",
        ),
        ("{repeat: {until: ci < 5 %, steps: []}}", "with `of`"),
    ],
)
def test_times_that_make_no_sense_are_refused_with_line_and_path(tmp_path: Path, step: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        load(tmp_path, f"steps:\n- {step}\n")
    assert caught.value.problems[0].line == 5


SEEDED = """
seed: 3
setup: [{wait: {}}]
repeat: {times: 2, warm_up: 1}
steps:
- {at: 1s, for: 2s, probe: {name: p, kind: udp, from: {pod: a}, to: {pod: b}, rate: 50, arrivals: poisson}}
- {probe: {name: q, kind: tcp, from: {pod: a}, to: {service: b}, rate: 10, count: 20, arrivals: poisson}}
"""


def plan_of(tmp_path: Path, text: str) -> str:
    running = _Running(load(tmp_path, text), [], {}, lambda line: None)
    running._plan("")
    events = [one for one in running.events if one.what == "plan"]
    return "\n".join(json.dumps(msgspec.to_builtins(one.detail)) for one in events)


def test_the_plan_is_the_same_for_the_same_seed_byte_for_byte(tmp_path: Path) -> None:
    first = plan_of(tmp_path, SEEDED)
    assert first == plan_of(tmp_path, SEEDED)
    assert first != plan_of(tmp_path, SEEDED.replace("seed: 3", "seed: 4"))
    repetitions = json.loads(first.splitlines()[1])["plan"]["repetitions"]
    assert list(repetitions) == ["0", "1", "2"]
    schedules = {
        each["schedule"] for one in repetitions.values() for each in (one["1 probe"]["probe"], one["2 probe"])
    }
    assert len(schedules) == 6  # each repetition and each probe draws its own


def test_drawings_differ_by_purpose_alone() -> None:
    assert drawing(1, "a", 2).random() == drawing(1, "a", 2).random()
    assert len({drawing(seed, name).random() for seed in (1, 2) for name in ("a", "b")}) == 4


class Measured(Step, frozen=True, kw_only=True):
    """Adds a sample that is a little different each time."""

    def run(self, context: Context) -> None:
        seconds = 0.001 * (1 + 0.01 * (context.repetition % 2))
        context.measured([make_sample(seconds).replaced({"step": "load"})])


def test_repetitions_go_on_until_the_interval_is_narrow_and_warm_ups_do_not_count() -> None:
    ran = context()
    repeat = Repeat(steps=Steps([("measured", Measured())]), warm_up=2, until="ci < 2 %", of="load")
    repeat.run(ran)
    assert [(one.repetition, one.warm_up) for one in ran.samples] == [
        (0, True),
        (-1, True),
        (1, False),
        (2, False),
        (3, False),
        (4, False),
        (5, False),
    ]
    assert ran.expectations[0].met


def test_repetitions_end_where_the_interval_stays_wide() -> None:
    ran = context()
    Repeat(steps=Steps([("measured", Measured())]), until="ci < 0.0001 %", of="load", at_most=5).run(ran)
    assert len(ran.samples) == 5
    assert not ran.expectations[0].met


def test_the_interval_of_repetitions_is_infinite_with_too_few(tmp_path: Path) -> None:
    assert half_width([], "load", "") == float("inf")
    with pytest.raises(ValueError, match="ci < 5 %"):
        Repeat(until="ci < x %", of="load")


PYTHON = """
from testbed.scenario.python import Call, make, timed
from testbed.scenario.steps.wait import Wait

def look(context):
    context.note("looked")

def scenario():
    return make(__file__, cluster="c.yaml", steps=[Wait(), timed(Call(do=look), at=1.0)], seed=5)
"""


def test_a_scenario_in_python_is_made_of_the_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    scenario = load_scenario(path)
    assert [kind for kind, _ in scenario.steps] == ["wait", "call"]
    assert (scenario.name, scenario.seed, scenario.cluster) == ("mine", 5, tmp_path / "c.yaml")
    ran = context()
    run_steps([("call", scenario.steps[1][1].step)], ran)  # type: ignore[attr-defined]
    assert "looked" in [one.what for one in ran.events]


def test_python_that_makes_no_scenario_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    with pytest.raises(InputError, match="no function scenario"):
        load_python(path)
