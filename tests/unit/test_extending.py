"""What docs/extending.md shows of probes and scenarios is what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed.scenario.load import load_scenario
from testbed.scenario.steps.probe import Probe
from testbed.scenario.timeline import Timed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["testbed/measure/probes/redis.py", "scenarios/store.yaml"])
def test_a_file_that_is_shown_whole_is_the_file(name: str) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    found = re.search(rf"This is `{re.escape(name)}`, whole:\n\n```\w+\n(.*?)```\n", text, re.DOTALL)
    assert found is not None
    assert found[1] == (ROOT / name).read_text()


def test_the_scenario_probes_with_the_kind_that_is_shown() -> None:
    (_, timed), *_ = load_scenario(ROOT / "scenarios" / "store.yaml").steps
    assert isinstance(timed, Timed)
    assert isinstance(timed.step, Probe)
    assert timed.step.kind == "redis"
    timed.needs()
