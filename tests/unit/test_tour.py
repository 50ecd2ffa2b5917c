"""Scenario steps that type commands and look names up, and what a report shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from testbed.api.cluster import Cluster, Completed
from testbed.errors import InputError
from testbed.measure.frames import frame_of
from testbed.records import READ, event
from testbed.report.commands import commands
from testbed.report.lookups import lookups
from testbed.scenario.load import load_scenario
from testbed.scenario.model import Context
from testbed.scenario.steps import command
from testbed.scenario.steps.command import Command, filled_in
from testbed.scenario.steps.lookups import Lookups

OBJECTS = {
    "/api/v1/namespaces/default/pods/web": {"status": {"podIP": "10.244.1.2"}},
    "/api/v1/namespaces/shop/services/web": {"spec": {"clusterIP": "10.96.0.50"}},
}


class Pod:
    def __init__(self, output: str) -> None:
        self.output = output

    def run(self, argv: Any) -> Completed:
        return Completed(0, self.output, "")


class FakeCluster:
    name = "it"

    def __init__(self, output: str = "") -> None:
        self.client, self.output = self, output

    def get(self, path: str, **query: str) -> Any:
        return OBJECTS[path]

    def pod(self, name: str, namespace: str) -> Pod:
        return Pod(self.output)


def make_context(output: str = "") -> Context:
    return Context(cast(Cluster, FakeCluster(output)), Path("."))


def test_places_are_filled_in_and_stand_for_themselves_in_patterns() -> None:
    context = make_context()
    assert (
        filled_in("curl {pod web} {service shop/web}", context, literally=True)
        == "curl 10.244.1.2 10.96.0.50"
    )
    assert filled_in("^{pod web}$", context) == r"^10\.244\.1\.2$"
    with pytest.raises(InputError, match="known are pod, service and node"):
        filled_in("{volume web}", context)


def test_only_our_own_command_is_typed() -> None:
    with pytest.raises(InputError, match="must begin with testbed"):
        Command(run_="rm -rf /").run(make_context())


def test_a_command_is_checked_by_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_run", lambda words, cluster: (0, f"{' '.join(words)} on {cluster}\n"))
    context = make_context()
    Command(name="version", run_="testbed --version", prints=("^testbed ",), hides=("nothing",)).run(context)
    Command(run_="testbed --version", prints=("{pod web}",), code=3).run(context)
    assert [one.met for one in context.expectations] == [True, False]
    assert context.expectations[1].observed.startswith("exit code 0; no ")
    shown = commands([event("step"), *context.events])
    assert shown.count("$ testbed --version</span>\ntestbed --version on it") == 2


def test_what_a_command_tells_is_recorded_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_run", lambda *_: (0, "mtu 1450\nroutes 5\n"))
    context = make_context()
    reads = {"MTU": "^mtu ([0-9]+)$", "routes": "^routes ([0-9]+)$"}
    Command(name="a node", run_="testbed get nodes", reads=reads).run(context)
    Command(name="another", run_="testbed get nodes", reads={"rules": "^rules ([0-9]+)$"}).run(context)
    assert [(one.detail["name"], one.detail["value"]) for one in context.events if one.what == READ] == [
        ("MTU", "1450"),
        ("routes", "5"),
    ]
    assert [(one.met, one.observed) for one in context.expectations] == [
        (True, "as expected"),
        (False, "no rules in it"),
    ]
    with pytest.raises(ValueError, match="reads: MTU: needs one group"):
        Command(run_="testbed get nodes", reads={"MTU": "mtu"})


def test_places_are_filled_in_where_something_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_run", lambda *_: (0, "10.244.1.3 dev eth1\n10.244.1.2 dev eth2\n"))
    context = make_context().at_place("4")
    Command(run_="testbed get nodes", reads={"device": "^{pod web} dev (.+)$"}).run(context)
    assert [one.detail for one in context.events if one.what == READ] == [
        {"step": "4", "name": "device", "value": "eth2"}
    ]


@pytest.mark.parametrize("field", ["prints: ['a(']", "hides: ['a(']", "reads: {MTU: 'a('}"])
def test_what_is_no_regular_expression_is_a_problem_of_the_scenario(field: str, tmp_path: Path) -> None:
    step = f"  command: {{run: testbed --version, {field}}}"
    text = f"apiVersion: testbed/v1\nkind: Scenario\ncluster: c.yaml\nsteps:\n-{step[1:]}\n"
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(InputError, match=r"it\.yaml.*steps\[0\]\.command.*'a\(' is no regular expression"):
        load_scenario(tmp_path / "it.yaml")


ROW = (
    '{"name": "web", "at": 1.0, "seconds": 0.002, "network": 0.001, "addresses": ["10.96.0.50"], "error": "",'
    ' "questions": [["web.default.svc.cluster.local", "A"], ["web.default.svc.cluster.local", "AAAA"]],'
    ' "answers": []}\n'
)


def test_lookups_count_questions_and_failures() -> None:
    context = make_context(ROW + ROW.replace('"error": ""', '"error": "Name or service not known"'))
    Lookups(name="names", pod="client", forms={"short": "web"}, questions={"short": 2}).run(context)
    Lookups(name="lax", pod="client", forms={"short": "web"}, lost_at_most=0.5).run(context)
    Lookups(name="none", pod="client", forms={"short": "web"}, fails=("short",)).run(context)
    assert [(one.step, one.met) for one in context.expectations] == [
        ("names", True),
        ("names", False),
        ("lax", True),
        ("none", False),
    ]
    first = context.samples[0]
    assert (first.kind, first.path, first.attempts, first.seconds_kernel) == ("dns", "short", 2, 0.001)
    html = lookups(frame_of(context.samples))
    assert "How long a name lookup takes" in html
    assert "Name or service not known" in html


def test_a_report_without_lookups_says_nothing_of_them() -> None:
    context = make_context(ROW)
    Lookups(name="names", pod="client", forms={"short": "web"}).run(context)
    frame = frame_of(context.samples)
    assert lookups(frame[frame["kind"] == "rtt"]) == ""
    assert commands([]) == ""


def test_a_command_says_of_which_variant_it_is() -> None:
    ran = [
        event("command", line="cat mtu", output="1450\n", title="the MTU", variant=variant)
        for variant in ("bridge", "flannel")
    ]
    shown = commands(ran)
    assert "1. bridge: the MTU" in shown
    assert "2. flannel: the MTU" in shown
