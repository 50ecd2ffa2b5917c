"""The labs: the start state fails, the teacher's solution passes, known wrong ones fail where they should."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from testbed.api.cluster import Cluster
from testbed.cli.main import main
from testbed.labs import Finding, Lab, find, known
from testbed.labs.lab import FOLDER

TEACHER = FOLDER / "teacher"
LAB_01 = {
    "solution": [],
    "no-way-back": [
        "each node knows where the other's pods are",
        "pods of different nodes reach each other",
        "a pod is seen under its own address",
    ],
    "masquerade": ["a pod is seen under its own address"],
    "no-gateway": [
        "each pod hands packets for other ranges to its node",
        "pods of different nodes reach each other",
        "a pod is seen under its own address",
    ],
}


@pytest.fixture(autouse=True)
def own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lab of this number may be running on this machine."""
    monkeypatch.setattr(Lab, "cluster_name", f"lab-01-{os.getpid()}")


@pytest.fixture
def started() -> Iterator[Lab]:
    lab = find("01")
    with lab.start():
        yield lab


def unmet(lab: Lab) -> list[Finding]:
    return [finding for finding in lab.check() if not finding.met]


@pytest.mark.parametrize("attempt", LAB_01)
def test_an_attempt_at_lab_01_fails_what_is_wrong_with_it(started: Lab, attempt: str) -> None:
    cluster = Cluster.attach(started.cluster_name)
    for node in ("node-1", "node-2"):
        script = (TEACHER / started.name / attempt / f"{node}.sh").read_text()
        done = cluster.node(node).run(["sh"], stdin=script)
        assert (done.code, done.stderr) == (0, "")
    assert [finding.subject for finding in unmet(started)] == LAB_01[attempt]


def test_the_start_state_fails_every_check_but_gives_no_answer_away(
    started: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "check", "1"]) == 1
    printed = capsys.readouterr().out
    assert "0 of 8 checks hold" in printed
    for answer in ("veth", "route add", "link add", "cni0"):
        assert answer not in printed


def test_every_lab_has_a_text_and_a_solution() -> None:
    for lab in known():
        assert lab.title
        assert list((TEACHER / lab.name / "solution").iterdir())
