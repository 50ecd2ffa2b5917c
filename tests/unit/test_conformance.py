"""The frame of conformance cases: how they are written, run, judged and reported."""

from __future__ import annotations

from typing import Any, cast
from xml.etree import ElementTree

import pytest

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster
from testbed.conformance import Case, Suite, WrittenSuite, suites
from testbed.conformance.junit import junit
from testbed.conformance.lab import Heard, Lab, several
from testbed.conformance.run import Verdict, absence, run_cases
from testbed.errors import ExpectationFailed, InputError

SPEC: dict[str, Any] = {"network": {"proxy": {"mode": "nftables"}}, "external": [{"name": "client"}]}


NODES = [
    {"metadata": {"name": f"node-{number}", "labels": {"topology.kubernetes.io/zone": zone}}}
    for number, zone in enumerate(("a", "a", "b"))
]


class Client:
    """An API that knows namespaces only; one is gone at the second look after its deletion."""

    def __init__(self) -> None:
        self.namespaces: dict[str, int] = {}
        self.made: list[str] = []

    def get(self, path: str, **query: str) -> Any:
        if path == "/api/v1/nodes":
            return {"items": [{"metadata": {"name": "node-1"}}]}
        name = path.rpartition("/")[2]
        if self.namespaces.get(name, 0) < 2:
            self.namespaces[name] += 1
            return {}
        raise RequestFailed({"reason": "NotFound", "code": 404})

    def post(self, path: str, body: Any) -> Any:
        assert path == "/api/v1/namespaces"
        self.made.append(body["metadata"]["name"])

    def delete(self, path: str, **query: str) -> None:
        if path.endswith("/pods"):
            assert query == {"gracePeriodSeconds": "0"}
        else:
            self.namespaces[path.rpartition("/")[2]] = 0


def make_cluster(client: Client) -> Cluster:
    cluster = Cluster.__new__(Cluster)
    cluster.name, cluster.client, cluster.status = "it", cast(Any, client), {"spec": {"spec": SPEC}}
    return cluster


def good(lab: Lab) -> None:
    """It holds."""


def bad(lab: Lab) -> None:
    """It does not hold."""
    lab.step("looking")
    lab.check(False, "seen otherwise")


def broken(lab: Lab) -> None:
    """It is written wrongly."""
    raise KeyError("x")


CASES = [
    Case("good", "It holds.", good),
    Case("bad", "It does not hold.", bad),
    Case("broken", "It is written wrongly.", broken, alone=True),
    Case("far", "It needs two nodes.", bad, needs=("nodes:2",)),
]


def test_every_case_gets_a_verdict_and_a_namespace_that_goes_again() -> None:
    client, reported = Client(), []
    verdicts = run_cases(make_cluster(client), CASES, report=lambda verdict: reported.append(verdict.name))
    assert [(one.name, one.status) for one in verdicts] == [
        ("good", "passed"),
        ("bad", "failed"),
        ("broken", "failed"),
        ("far", "deferred"),
    ]
    assert verdicts[1].why == "looking: seen otherwise"
    assert verdicts[2].why.startswith("KeyError: 'x' (")
    assert verdicts[3].why == "needs 2 nodes, the cluster has 1"
    assert sorted(client.made) == sorted(client.namespaces)
    assert len({name.rpartition("-")[0] for name in client.made} & {"good", "bad", "broken"}) == 3
    assert sorted(reported) == ["bad", "broken", "far", "good"]
    assert reported.index("broken") > reported.index("good")


def test_a_case_that_leaves_something_behind_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeping(Client):
        def get(self, path: str, **query: str) -> Any:
            return super().get(path) if path == "/api/v1/nodes" else {}

    monkeypatch.setattr("testbed.conformance.run.GONE_WITHIN", 0.01)
    (verdict,) = run_cases(make_cluster(Keeping()), CASES[:1])
    assert (verdict.status, verdict.why) == ("failed", "its namespace is still there after 0.01 s")


@pytest.mark.parametrize(
    ("need", "there"),
    [
        ("nodes:3", True),
        ("nodes:4", False),
        ("mode:nftables", True),
        ("mode:iptables", False),
        ("outside", True),
    ],
)
def test_a_cluster_has_what_a_case_needs_or_says_what_it_lacks(need: str, there: bool) -> None:
    assert (absence(need, SPEC, NODES) == "") is there


def test_a_cluster_without_outside_hosts_says_so() -> None:
    assert (
        absence("outside", {**SPEC, "external": []}, NODES)
        == "needs a host outside the cluster (spec.external)"
    )


def test_a_suite_refuses_a_second_case_of_a_name_and_folders() -> None:
    suite = WrittenSuite("testbed.conformance.services")
    suite.case("outside")(good)
    with pytest.raises(ValueError, match="two conformance cases are called 'good'"):
        suite.case()(good)
    with pytest.raises(InputError):
        suite.cases([cast(Any, "folder")])


@pytest.mark.parametrize("suite", [suites.get(name) for name in suites], ids=list(suites))
def test_every_case_that_is_written_here_makes_a_promise_in_a_sentence(suite: Suite) -> None:
    for case in suite.cases([]) if isinstance(suite, WrittenSuite) else []:
        assert case.promise.endswith("."), case.name
        assert len(case.promise) > len(case.name) / 2


def test_junit_says_what_failed_and_what_was_deferred() -> None:
    verdicts = [
        Verdict("a", "It is a.", "passed", seconds=1.5),
        Verdict("b", "It is b.", "failed", 'was <c> & "d"', 2.0),
        Verdict("e", "It is e.", "deferred", "no sctp"),
    ]
    suite = ElementTree.fromstring(junit("services", verdicts))[0]  # noqa: S314  our own text
    assert suite.attrib | {"tests": "3", "failures": "1", "skipped": "1", "time": "3.500"} == suite.attrib
    failure, skipped = suite[1].find("failure"), suite[2].find("skipped")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ('was <c> & "d"', "It is b.")
    assert skipped is not None
    assert skipped.get("message") == "no sctp"


def test_answers_are_told_together() -> None:
    heard = [Heard("ok", "", "a"), Heard("timeout", "no answer", ""), Heard("ok", "", "a")]
    assert several(heard) == "2 \N{MULTIPLICATION SIGN} 'a', 1 \N{MULTIPLICATION SIGN} timeout (no answer)"


def test_what_never_comes_true_fails_with_what_was_seen_last() -> None:
    lab = Lab(make_cluster(Client()), "it")
    with pytest.raises(ExpectationFailed, match=r"still after .* s: 3 of 4"):
        lab.until(lambda: "3 of 4", within=0.01)
    lab.until(lambda: "")


def test_what_the_api_refuses_is_told_and_what_it_takes_fails() -> None:
    def refuse() -> None:
        raise RequestFailed({"code": 422, "reason": "Invalid", "message": "no"})

    lab = Lab(make_cluster(Client()), "it")
    assert lab.refused(refuse) == "Error from server (Invalid): no"
    with pytest.raises(ExpectationFailed):
        lab.refused(lambda: None)
