"""Reading scenario files, and what expectations make of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from testbed.errors import InputError
from testbed.records import Sample
from testbed.scenario.load import load_scenario
from testbed.scenario.model import Context, steps
from testbed.scenario.run import noise_floor
from testbed.scenario.steps.ask import Ask, Choice
from testbed.scenario.steps.expect import Expect
from testbed.scenario.steps.lookups import Lookups
from testbed.scenario.steps.node import Node as NodeStep
from testbed.scenario.steps.reach import Reach
from testbed.scenario.steps.rollout import Rollout, complete
from testbed.scenario.steps.services import Services

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def write(folder: Path, text: str) -> Path:
    path = folder / "it.yaml"
    path.write_text(f"apiVersion: testbed/v1\nkind: Scenario\ncluster: c.yaml\n{text}")
    return path


def make_sample(seconds: float, path: str = "same-node") -> Sample:
    return Sample(
        kind="rtt",
        step="trips",
        source="a",
        source_namespace="",
        source_node="",
        destination="b",
        destination_namespace="",
        destination_node="",
        ip="10.0.0.1",
        protocol="icmp",
        path=path,
        seconds=seconds,
    )


def make_context(**fields: Any) -> Context:
    return Context(running=None, folder=Path(), **fields)


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_of_ours_loads_and_names_a_spec_that_exists(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.steps
    assert scenario.cluster.is_file()


def test_steps_come_in_order_with_their_fields(tmp_path: Path) -> None:
    scenario = load_scenario(
        write(tmp_path, "set: {nodes.count: 5}\nsteps:\n- wait:\n- reach: {protocol: udp, expect: ok}\n")
    )
    assert [kind for kind, _ in scenario.steps] == ["wait", "reach"]
    assert scenario.steps[1][1] == Reach(protocol="udp", expect="ok")
    assert scenario.overrides == ("nodes.count=5",)
    assert scenario.cluster == tmp_path / "c.yaml"
    assert scenario.name == "it"


def test_every_problem_is_reported_with_line_and_path(tmp_path: Path) -> None:
    path = write(tmp_path, "steps:\n- reach: {protocol: sctp}\n- jump: {}\n- pause: {seconds: 0, why: x}\n")
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    problems = [(one.line, one.path) for one in caught.value.problems]
    assert problems == [(5, "steps[0].reach.protocol"), (6, "steps[1].jump"), (7, "steps[2].pause.seconds")]
    assert "known are" in str(caught.value)


def test_unknown_field_of_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown field `prot`"):
        load_scenario(write(tmp_path, "steps:\n- reach: {prot: tcp}\n"))


def test_every_step_kind_says_what_it_does() -> None:
    assert all(steps.get(name).__doc__ for name in steps)
    assert {"apply", "delete", "wait", "pause", "reach", "rtt", "expect"} <= set(steps)


def test_expectation_compares_a_statistic_with_its_bound() -> None:
    context = make_context(samples=[make_sample(0.001), make_sample(0.002), make_sample(0.009)])
    Expect(of="trips", path="same-node", below=0.003).run(context)
    Expect(of="trips", path="same-node", statistic="max", below=0.003).run(context)
    assert [one.met for one in context.expectations] == [True, False]
    assert context.expectations[1].observed == "9 ms"


def test_expectation_compares_two_paths() -> None:
    context = make_context(samples=[make_sample(0.001), make_sample(0.002, "cross-node")])
    Expect(of="trips", path="cross-node", above_path="same-node").run(context)
    assert context.expectations[0].met


def test_expectation_without_samples_is_not_met() -> None:
    context = make_context()
    Expect(of="trips", below=1.0).run(context)
    assert [one.met for one in context.expectations] == [False]
    assert context.expectations[0].observed == "nothing was measured"


def test_noise_floor_is_of_loopback_alone() -> None:
    samples = [
        make_sample(1.0),
        make_sample(0.1, "loopback"),
        make_sample(0.2, "loopback"),
        make_sample(0.3, "loopback"),
    ]
    floor = noise_floor(samples)
    assert floor is not None
    assert floor["median"] == 0.2
    assert noise_floor([make_sample(1.0)]) is None


class Api:
    """Answers of the API by path, and what was sent."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.sent = answers, list[tuple[str, Any]]()

    def get(self, path: str, **query: str) -> Any:
        return self.answers[path]

    def post(self, path: str, body: Any, **more: Any) -> Any:
        self.sent.append((path, body))
        return self.answers.get(path)

    def request(self, method: str, path: str, body: Any, **more: Any) -> Any:
        self.sent.append((f"{method} {path}", body))


class FakeCluster:
    def __init__(self, answers: dict[str, Any]) -> None:
        self.client = Api(answers)

    def pods(self, selector: str, namespace: str) -> list[dict[str, Any]]:
        return [{"status": {"podIP": f"10.244.1.{n}"}, "spec": {"nodeName": "node-1"}} for n in (2, 3)]

    def settle(self, timeout: float) -> None:
        pass


def on_cluster(answers: dict[str, Any]) -> tuple[Context, list[tuple[str, Any]]]:
    cluster = FakeCluster(answers)
    return Context(running=cast(Any, cluster), folder=Path()), cluster.client.sent


WEB = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
}
LOST = ("timeout", "no answer")


def replies(*outcomes: tuple[str, str]) -> dict[str, Any]:
    count = len(outcomes)
    return {
        "replies": {
            "question": [0] * count,
            "at": [1.0 * number for number in range(count)],
            "verdict": [verdict for verdict, _ in outcomes],
            "reason": ["" if verdict == "ok" else reason for verdict, reason in outcomes],
            "reporter": [""] * count,
            "answer": [reason if verdict == "ok" else "" for verdict, reason in outcomes],
            "seconds": [0.002 if verdict == "ok" else None for verdict, _ in outcomes],
            "handshake": [0.001 if verdict == "ok" else None for verdict, _ in outcomes],
        }
    }


def asked(step: Ask, *outcomes: tuple[str, str]) -> tuple[Context, list[tuple[str, Any]]]:
    answers = {
        "/api/v1/namespaces/default/services/web": WEB,
        "/apis/testbed/v1/conversations": replies(*outcomes),
    }
    context, sent = on_cluster(answers)
    step.run(context)
    return context, sent


def test_a_load_is_asked_for_judged_and_recorded() -> None:
    step = Ask(
        source="x/client", service="web", rate=500, seconds=2, at_least=3, failed_at_most=0, failed_at_least=1
    )
    context, sent = asked(step, ("ok", "a"), ("ok", "b"), LOST)
    ((_, request),) = sent
    assert (request["count"], request["rate"]) == (1000, 500)
    assert request["questions"] == [{"source": "x/client", "ip": "10.96.0.9", "port": 80}]
    assert [one.met for one in context.expectations] == [True, False, True]
    assert context.expectations[1].observed == "2 ok (median 2.00 ms), 1 timeout (no answer)"
    first, _, last = context.samples
    assert (first.source, first.source_namespace, first.answer, first.seconds) == ("client", "x", "a", 0.002)
    assert (last.verdict, last.seconds, last.sequence) == ("timeout", None, 3)


class Asking:
    """A cluster whose pods print the same rows whatever they run."""

    def __init__(self, *questions: list[list[str]]) -> None:
        rows = [
            {
                **{"name": "web", "at": 1.0, "seconds": 0.001, "network": 0.001, "error": ""},
                **{"addresses": ["10.96.0.9"], "questions": asked, "answers": []},
            }
            for asked in questions
        ]
        self.stdout, self.stderr, self.code = "\n".join(map(json.dumps, rows)), "", 0

    def pod(self, name: str, namespace: str) -> Asking:
        return self

    def run(self, command: list[str]) -> Asking:
        return self


@pytest.mark.parametrize(
    ("more", "met"), [([], True), ([["web.", "A"]], True), ([["web.svc.", "A"], ["web.svc.", "AAAA"]], False)]
)
def test_a_question_that_is_asked_again_is_no_other_question(more: list[list[str]], met: bool) -> None:
    once = [["web.", "A"], ["web.", "AAAA"]]
    context = Context(running=cast(Any, Asking(once, [*once, *more])), folder=Path())
    Lookups(forms={"service": "web"}, pod="client", questions={"service": 2}).run(context)
    assert context.expectations[0].met is met
    assert context.samples[1].attempts == 2 + len(more)


def test_of_a_bare_connection_the_kernels_measure_counts() -> None:
    context, _ = asked(Ask(source="client", service="web", language="tcp", count=1), ("ok", ""))
    assert context.samples[0].seconds == 0.001


@pytest.mark.parametrize(
    ("names", "met"), [("ab" * 50, True), ("a" * 90 + "b" * 10, False), ("a" * 9, False)]
)
def test_shares_are_judged_by_names(names: str, met: bool) -> None:
    step = Ask(source="client", service="web", count=len(names), even=0.001)
    context, _ = asked(step, *(("ok", name) for name in names))
    assert [one.met for one in context.expectations] == [met]


def test_some_of_many_services_are_chosen_at_equal_distances() -> None:
    listed = [{**WEB, "metadata": {"name": f"scale-{n:02}", "namespace": "default"}} for n in range(10)]
    answers = {
        "/api/v1/services": {"items": [WEB, *listed]},
        "/apis/testbed/v1/conversations": replies(("ok", "")),
    }
    context, _ = on_cluster(answers)
    step = Ask(source="client", services=Choice(prefix="scale-", choose=5), count=1)
    found = [one["metadata"]["name"] for one in step._targets(context)]
    assert found == ["scale-00", "scale-02", "scale-04", "scale-06", "scale-08"]


def test_services_are_made_up_to_a_count_and_lead_to_the_backends() -> None:
    there = {"items": [{"metadata": {"name": "scale-00000"}}]}
    context, sent = on_cluster({"/api/v1/namespaces/default/services": there})
    Services(count=3, backends="app=web", endpoints=1).run(context)
    objects = [obj for _, body in sent for obj in body["objects"]]
    assert [obj["metadata"]["name"] for obj in objects] == [
        "scale-00001",
        "scale-00001-1",
        "scale-00002",
        "scale-00002-1",
    ]
    assert {obj["endpoints"][0]["addresses"][0] for obj in objects if "endpoints" in obj} == {
        "10.244.1.2",
        "10.244.1.3",
    }


@pytest.mark.parametrize(
    ("status", "over"),
    [
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}, True),
        ({"observedGeneration": 1, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}, False),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4, "availableReplicas": 4}, False),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2}, False),
        ({}, False),
    ],
)
def test_a_rollout_is_over_when_all_replicas_are_new_and_available(
    status: dict[str, int], over: bool
) -> None:
    assert complete({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}) is over


def test_steps_within_a_step_are_read_and_their_problems_told(tmp_path: Path) -> None:
    lines = "steps:\n- ask: {{source: a, service: b, count: 1, during: [{{rollout: {{deployment: {}}}}}]}}\n"
    scenario = load_scenario(write(tmp_path, lines.format("web")))
    step = scenario.steps[0][1]
    assert isinstance(step, Ask)
    assert step.during.listed == [("rollout", Rollout(deployment="web"))]
    with pytest.raises(InputError) as caught:
        load_scenario(write(tmp_path, lines.format("1")))
    assert [one.path for one in caught.value.problems] == ["steps[0].ask.during[0].rollout.deployment"]


def test_one_thing_happens_to_a_node(tmp_path: Path) -> None:
    lines = "steps:\n- node: {{{}}}\n"
    scenario = load_scenario(write(tmp_path, lines.format("leave: node-2")))
    assert scenario.steps[0][1] == NodeStep(leave="node-2")
    scenario = load_scenario(write(tmp_path, lines.format("readdress: node-2, addresses: [192.168.100.33]")))
    assert scenario.steps[0][1] == NodeStep(readdress="node-2", addresses=["192.168.100.33"])
    for wrong in ("", "leave: node-2, join: node-2"):
        with pytest.raises(InputError, match="say one of leave, join, readdress, restart"):
            load_scenario(write(tmp_path, lines.format(wrong)))
    for wrong in ("readdress: node-2", "restart: node-2, addresses: [192.168.100.33]"):
        with pytest.raises(InputError, match="readdress takes addresses"):
            load_scenario(write(tmp_path, lines.format(wrong)))


def test_variants_and_conclusions_are_read(tmp_path: Path) -> None:
    text = (
        "variants: {a: {network.proxy.mode: iptables}, b: {}}\nsteps: [{wait: }]\n"
        "conclusions: [{expect: {of: x, variant: a, above_other: {variant: b, times: 2}}}]\n"
    )
    scenario = load_scenario(write(tmp_path, text))
    assert scenario.variants == {"a": ('network.proxy.mode="iptables"',), "b": ()}
    samples = [
        msgspec.structs.replace(make_sample(s), variant=v, step="x") for v, s in (("a", 0.5), ("b", 0.2))
    ]
    context = make_context(samples=samples)
    scenario.conclusions[0][1].run(context)
    (found,) = context.expectations
    assert found.met
    assert found.expected == "a: median of x above 2 times that of b: x, 400 ms"


def test_conclusions_have_no_cluster() -> None:
    with pytest.raises(InputError, match="conclusions"):
        Reach().run(make_context())


def test_a_value_of_the_file_is_changed_by_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "steps:\n- rtt: {count: 10}\n- rtt: {name: second}\n")
    changed = load_scenario(path, {"steps[0].rtt.count": 20, "steps[1].rtt.count": 30})
    assert [cast(Any, one).count for _, one in changed.steps] == [20, 30]


@pytest.mark.parametrize("place", ["steps[7].rtt.count", "steps.rtt.count", "nothing.there", "steps[0", ""])
def test_a_place_that_is_not_there_is_refused(tmp_path: Path, place: str) -> None:
    path = write(tmp_path, "steps:\n- rtt: {count: 10}\n")
    with pytest.raises(InputError, match="has no place"):
        load_scenario(path, {place: 1})
