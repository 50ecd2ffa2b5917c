"""Services in each proxy mode: the conformance cases themselves, run once per mode and judged one by one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest

from testbed import Cluster
from testbed.cli.main import main
from testbed.conformance import Case, suites
from testbed.conformance.run import Verdict, run_cases
from testbed.measure.balance import evenness

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: services}
spec:
  nodes: {count: 3, zones: [a, b, c]}
  dns: {enabled: false}  # its processes come and go with Services
  external:
  - {name: client, address: 203.0.113.10}
"""
OF_THE_CLUSTER = ("nodes:", "zones:", "mode:", "outside")


def about(case: Case, mode: str) -> bool:
    """Whether a case is about this mode."""
    modes = [need.removeprefix("mode:") for need in case.needs if need.startswith("mode:")]
    return not modes or mode in modes


def cases(mode: str) -> list[Case]:
    """What is to be checked in a mode."""
    return [case for case in suites.get("services").cases([]) if about(case, mode)]


def each(mode: str) -> pytest.MarkDecorator:
    """A test for each case of a mode; one that needs what the kernel lacks is deferred."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                case.name,
                id=case.name.replace(" ", "_"),
                marks=pytest.mark.needs(*(n for n in case.needs if not n.startswith(OF_THE_CLUSTER))),
            )
            for case in cases(mode)
        ],
    )


@pytest.fixture(scope="class")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    tests: type[Services] = request.cls
    path = tmp_path_factory.mktemp(tests.mode) / "spec.yaml"
    path.write_text(SPEC)
    overrides = [f"network.proxy.mode={tests.mode}", *tests.options]
    with Cluster.up(path, name=f"services-{tests.mode}-{os.getpid()}", overrides=overrides) as running:
        yield running


@pytest.fixture(scope="class")
def verdicts(request: pytest.FixtureRequest, cluster: Cluster) -> dict[str, Verdict]:
    """What became of each case that is judged in this run: in the VM lane, which is slow, of few.

    It also starts the cluster's probers, which then stay.
    """
    mine = [item for item in request.session.items if getattr(item, "cls", None) is request.cls]
    judged = {item.callspec.params.get("name") for item in mine if hasattr(item, "callspec")}
    run = [case for case in cases(request.cls.mode) if case.name in judged] or cases(request.cls.mode)
    return {verdict.name: verdict for verdict in run_cases(cluster, run)}


class Services:
    """The tests of one mode; all of its cases run at once, before the first of them is judged."""

    mode: ClassVar[str]
    options: ClassVar[list[str]] = []

    @pytest.mark.parametrize("servers", [2, 3, 10])
    @pytest.mark.usefixtures("verdicts")
    def test_connections_are_spread_evenly(self, cluster: Cluster, servers: int) -> None:
        """A bias that matters shows: a p of one in a million is not met by chance in a lifetime of runs."""
        shares = spread(cluster, servers, 3000)
        assert len(shares) == servers
        assert evenness(shares.values()) > 1e-6, shares


def judge(verdict: Verdict) -> None:
    """Fail with the promise that was not kept."""
    assert verdict.status == "passed", f"{verdict.promise} {verdict.why}"


class TestIptables(Services):
    mode = "iptables"
    options: ClassVar[list[str]] = ["network.proxy.syncPeriod=2s"]
    """Flushed rules come back within a syncPeriod, which is 30 s by default."""

    @each("iptables")
    def test_case(self, verdicts: dict[str, Verdict], name: str) -> None:
        judge(verdicts[name])

    @pytest.mark.usefixtures("verdicts")
    def test_the_command_says_how_many_passed(
        self, cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        report = tmp_path / "report.xml"
        words = ["-C", cluster.name, "conformance", "services", "--junit", str(report)]
        assert main([*words, "--only", "lists its pods"]) == 0
        assert capsys.readouterr().out.startswith("1 passed, 0 failed in ")
        (case,) = ElementTree.parse(report).iter("testcase")  # noqa: S314 - our own
        assert case.get("name") == "a headless service lists its pods and has no address"
        assert main([*words, "--only", "lists its pods", "-o", "json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["passed"], told["failed"], len(told["cases"])) == (1, 0, 1)
        assert main([*words, "--only", "no such words"]) == 2


class TestNftables(Services):
    mode = "nftables"

    @each("nftables")
    def test_case(self, verdicts: dict[str, Verdict], name: str) -> None:
        judge(verdicts[name])


def spread(cluster: Cluster, servers: int, connections: int) -> Counter[str]:
    """How many connections each of some servers gets from one client."""
    name = f"even-{servers}"
    container = {"name": "c", "image": "agnhost", "args": ["netexec"]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": servers, "selector": {"matchLabels": {"app": name}}, "template": template},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    client = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-client"},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    }
    cluster.client.post("/apis/testbed/v1/manifests", {"objects": [deployment, service, client]})
    cluster.wait(ready=f"app={name}")
    cluster.settle()
    ip = cluster.client.get(f"/api/v1/namespaces/default/services/{name}")["spec"]["clusterIP"]
    request = {
        "questions": [{"source": f"{name}-client", "ip": ip, "port": 80}],
        "count": connections,
        "timeout": 30.0,
    }
    replies = cluster.client.post("/apis/testbed/v1/conversations", request, timeout=None)["replies"]
    assert Counter(replies["verdict"]) == {"ok": connections}
    return Counter(replies["answer"])
