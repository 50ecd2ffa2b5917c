"""Health check node ports: where they answer and what, against a recorded kube-proxy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.apps import About, Endpoint
from testbed.apps.kubeproxy import KubeProxy
from testbed.apps.wire import Request, Response
from testbed.control import view
from testbed.control.served import Served
from testbed.control.snapshot import ClusterFacts, Node, Snapshot
from testbed.documents import read_documents
from testbed.proxy import proxiers
from testbed.proxy.health import listeners
from testbed.proxy.services import HEADLESS_LABEL, OTHER_PROXY_LABEL
from testbed.state import Listener

CASE = Path(__file__).parents[1] / "golden/kube-proxy/loadbalancer-local-healthcheck"
FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
NODE = Node("node-1", ("192.168.100.11",), ("10.244.1.0/24",))


def recorded() -> Snapshot:
    (document,) = read_documents((CASE / "scene.yaml").read_bytes())
    served = Served()
    for obj in document.data["objects"]:
        if obj["kind"] in ("Service", "EndpointSlice"):
            served.put(obj)
    return Snapshot(FACTS, (NODE,), services=served.services, slices=served.slices)


def checks(snapshot: Snapshot, mode: str = "iptables", **options: Any) -> list[Listener]:
    snapshot = replace(snapshot, facts=replace(FACTS, proxy_options=options))
    return [
        one for one in listeners(snapshot, snapshot.nodes[0], proxiers.get(mode)) if "service" in one.options
    ]


def ask(listener: Listener, path: str = "/") -> Response:
    app = KubeProxy(About("", "", "", "", (), ""), listener.options)
    return app.respond(Request("GET", path, "HTTP/1.1", [], Endpoint("1.1.1.1", 1), Endpoint("2.2.2.2", 2)))


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_the_answer_is_the_recorded_one(mode: str) -> None:
    made = checks(recorded(), mode)
    for answer in json.loads((CASE / "healthcheck.json").read_text())[mode]:
        (here,) = [one for one in made if one.address in ("", answer["host"])] or [None]
        if "error" in answer:
            assert here is None
            continue
        assert here is not None
        response = ask(here)
        assert (here.port, response.status) == (answer["port"], answer["status"])
        assert json.loads(response.body) == answer["body"]
        assert (
            answer["headers"].items()
            <= {
                **dict(response.headers),
                "Content-Type": response.content_type,
            }.items()
        )


def test_a_node_without_ready_endpoints_answers_503() -> None:
    snapshot = recorded()
    snapshot = replace(snapshot, nodes=(replace(NODE, name="node-9"),))
    (check,) = checks(snapshot)
    response = ask(check)
    assert response.status == 503
    assert json.loads(response.body)["localEndpoints"] == 0


def test_endpoints_that_are_ending_do_not_count_though_they_serve() -> None:
    snapshot = recorded()
    ending = {
        key: tuple(
            replace(
                each,
                endpoints=tuple(replace(one, ready=False, terminating=True) for one in each.endpoints),
            )
            for each in slices
        )
        for key, slices in snapshot.slices.items()
    }
    (check,) = checks(replace(snapshot, slices=ending))
    assert ask(check).status == 503


def test_the_body_is_laid_out_as_gos() -> None:
    (check,) = checks(recorded())
    assert ask(check).body.decode() == (
        '{\n\t"service": {\n\t\t"namespace": "default",\n\t\t"name": "web"\n\t},\n'
        '\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    )


@pytest.mark.parametrize(
    ("mode", "options", "addresses"),
    [
        ("iptables", {}, [""]),
        ("nftables", {}, ["192.168.100.11"]),
        ("iptables", {"nodePortAddresses": ["primary"]}, ["192.168.100.11"]),
        ("iptables", {"nodePortAddresses": ["127.0.0.0/8"]}, ["127.0.0.1"]),
        ("nftables", {"nodePortAddresses": ["0.0.0.0/0"]}, [""]),
        ("iptables", {"nodePortAddresses": ["10.0.0.0/8"]}, []),
    ],
)
def test_it_answers_where_node_ports_do(mode: str, options: dict[str, Any], addresses: list[str]) -> None:
    assert [one.address for one in checks(recorded(), mode, **options)] == addresses


def test_without_a_kube_proxy_nothing_listens() -> None:
    assert listeners(recorded(), NODE, proxiers.get("none")) == ()


def test_kube_proxys_own_health_depends_on_the_node_being_kept() -> None:
    obj = {
        "metadata": {"name": "n"},
        "spec": {"taints": [{"key": view.TO_BE_DELETED, "effect": "NoSchedule"}]},
    }
    answers = {}
    for name, node in (("kept", NODE), ("leaving", view.typed_node(obj))):
        (own,) = listeners(Snapshot(FACTS, (node,)), node, proxiers.get("iptables"))
        assert own.port == 10256
        answers[name] = [ask(own, path).status for path in ("/healthz", "/livez", "/else")]
    assert answers == {"kept": [200, 200, 404], "leaving": [503, 200, 404]}


@pytest.mark.parametrize("label", [OTHER_PROXY_LABEL, HEADLESS_LABEL])
def test_services_of_other_proxies_are_not_answered_for(label: str) -> None:
    snapshot = recorded()
    labelled = {key: replace(each, labels={label: "x"}) for key, each in snapshot.services.items()}
    assert checks(snapshot)
    assert checks(replace(snapshot, services=labelled)) == []
