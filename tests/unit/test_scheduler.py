from __future__ import annotations

from typing import Any

import pytest

from testbed.control.scheduler import MAX_PODS, NodeLoad, Scheduler, Unschedulable, host_ports, place
from testbed.control.scheduler_load import requests


def node(name: str, **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {})
    allocatable = spec.pop("allocatable", {})
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": spec,
        "status": {"allocatable": allocatable},
    }


def pod(name: str = "p", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels or {}},
        "spec": {"containers": [], **spec},
    }


def running(*pods: dict[str, Any]) -> NodeLoad:
    load = NodeLoad()
    for each in pods:
        load.put(each)
    return load


def refusal(wanted: dict[str, Any], nodes: list[Any], loads: dict[str, NodeLoad] | None = None) -> str:
    """Why the pod fits nowhere, without the part on preemption."""
    with pytest.raises(Unschedulable) as error:
        place(wanted, nodes, loads or {})
    return str(error.value).partition(" no new claims")[0]


NODES = [node("node-1", labels={"disk": "ssd", "cores": "4"}), node("node-2"), node("node-3")]


def test_the_node_with_the_fewest_pods_wins_and_ties_go_to_the_first():
    loads = {"node-1": NodeLoad(2), "node-2": NodeLoad(1), "node-3": NodeLoad(1)}
    assert place(pod(), NODES, loads) == "node-2"


def test_node_selector_keeps_to_matching_nodes():
    assert place(pod(nodeSelector={"disk": "ssd"}), NODES, {"node-1": NodeLoad(50)}) == "node-1"


@pytest.mark.parametrize(
    ("operator", "values", "fits"),
    [("Gt", ["3"], True), ("Lt", ["4"], False), ("NotIn", ["5"], True), ("DoesNotExist", [], False)],
)
def test_node_affinity_operators(operator: str, values: list[str], fits: bool):
    term = {"matchExpressions": [{"key": "cores", "operator": operator, "values": values}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    }
    if fits:
        assert place(pod(affinity=affinity), NODES[:1], {}) == "node-1"
    else:
        with pytest.raises(Unschedulable):
            place(pod(affinity=affinity), NODES[:1], {})


def test_reasons_are_counted_in_the_schedulers_words():
    nodes = [
        node("a", taints=[{"key": "k", "value": "v", "effect": "NoSchedule"}]),
        node("b", unschedulable=True),
        node("c"),
        node("d"),
    ]
    with pytest.raises(Unschedulable) as error:
        place(pod(nodeSelector={"x": "y"}), nodes, {})
    assert str(error.value) == (
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, "
        "2 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, "
        "preemption: 0/4 nodes are available: 4 Preemption is not helpful for scheduling."
    )


def test_a_toleration_lets_a_pod_onto_a_tainted_node():
    tainted = [node("a", taints=[{"key": "k", "value": "v", "effect": "NoExecute"}])]
    assert place(pod(tolerations=[{"key": "k", "operator": "Exists"}]), tainted, {}) == "a"
    assert place(pod(tolerations=[{"operator": "Exists"}]), tainted, {}) == "a"
    with pytest.raises(Unschedulable):
        place(pod(tolerations=[{"key": "k", "value": "other"}]), tainted, {})


def test_a_full_node_takes_no_more():
    with pytest.raises(Unschedulable, match="1 Too many pods"):
        place(pod(), NODES[:1], {"node-1": NodeLoad(MAX_PODS)})


def test_a_host_port_on_every_address_conflicts_with_one_on_a_single_address():
    wants = pod(containers=[{"ports": [{"containerPort": 80, "hostPort": 80}]}])
    assert host_ports(wants) == {("TCP", "0.0.0.0", 80)}
    one = {"containerPort": 80, "hostPort": 80, "hostIP": "192.168.100.11"}
    assert "didn't have free ports" in refusal(
        wants, NODES[:1], {"node-1": running(pod("q", containers=[{"ports": [one]}]))}
    )
    other = pod("q", containers=[{"ports": [{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]}])
    assert place(wants, NODES[:1], {"node-1": running(other)}) == "node-1"


def test_a_load_counts_a_pod_once_and_not_after_its_end():
    port = {"containerPort": 80, "hostPort": 80}
    asks = {"resources": {"requests": {"cpu": "250m"}}, "ports": [port]}
    there = pod("q", labels={"app": "a"}, containers=[asks])
    load = running(there, there)
    assert (load.pods, load.requested["cpu"], len(load.host_ports)) == (1, 250, 1)
    load.put({**there, "metadata": {**there["metadata"], "labels": {"app": "b"}}})
    assert [dict(group.labels) for group in load.groups] == [{"app": "b"}]
    load.put({**there, "status": {"phase": "Succeeded"}})
    assert (load.pods, load.requested["cpu"], load.host_ports, load.groups) == (0, 0, {}, {})


def test_no_nodes_at_all_has_its_own_words():
    with pytest.raises(Unschedulable, match=r"^no nodes available to schedule pods$"):
        place(pod(), [], {})


def test_victims_are_looked_for_only_where_pods_leaving_would_help():
    nodes = [node("a"), node("b", unschedulable=True)]
    with pytest.raises(Unschedulable) as error:
        place(pod(), nodes, {"a": NodeLoad(MAX_PODS)})
    assert str(error.value).endswith(
        "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, "
        "1 Preemption is not helpful for scheduling."
    )
    with pytest.raises(Unschedulable, match=r"preemption: not eligible due to preemptionPolicy=Never\.$"):
        place(pod(preemptionPolicy="Never"), nodes[1:], {})


def test_a_pod_meant_for_one_node_by_name_goes_there_or_nowhere():
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-2"]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    }
    assert place(pod(affinity=affinity), NODES, {"node-2": NodeLoad(50)}) == "node-2"
    assert refusal(pod(affinity=affinity), NODES, {"node-2": NodeLoad(MAX_PODS)}) == (
        "0/3 nodes are available: 1 Too many pods, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cpu": "1500m"}, "1 Insufficient cpu"),
        ({"cpu": "1500m", "memory": "2Gi"}, "1 Insufficient cpu, 1 Insufficient memory"),
        ({"example.com/gpu": "1"}, ""),
        ({"cpu": "1"}, ""),
    ],
)
def test_requests_count_against_what_a_node_declares(asked: dict[str, str], said: str):
    nodes = [node("a", allocatable={"cpu": "2", "memory": "1Gi"})]
    loads = {"a": running(pod("q", containers=[{"resources": {"requests": {"cpu": "1"}}}]))}
    wants = pod(containers=[{"resources": {"requests": asked}}])
    if said:
        assert refusal(wants, nodes, loads) == f"0/1 nodes are available: {said}."
    else:
        assert place(wants, nodes, loads) == "a"


def test_init_containers_ask_for_the_most_of_one_and_sidecars_for_all_of_it():
    def asking(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    wants = pod(
        containers=[asking("1")],
        initContainers=[asking("3"), asking("500m", restartPolicy="Always"), asking("2")],
    )
    assert requests(wants) == {"cpu": 3000}
    wants["spec"]["containers"].append(asking("2"))
    assert requests(wants) == {"cpu": 3500}


def test_a_soft_taint_is_avoided_but_not_refused():
    nodes = [node("a", taints=[{"key": "k", "effect": "PreferNoSchedule"}]), node("b")]
    assert place(pod(), nodes, {"b": NodeLoad(50)}) == "b"
    assert place(pod(), nodes[:1], {}) == "a"
    tolerant = pod(tolerations=[{"key": "k", "operator": "Exists"}])
    assert place(tolerant, nodes, {"b": NodeLoad(50)}) == "a"


def test_the_preferred_node_wins_over_the_emptier_one():
    wish = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": wish}]
        }
    }
    assert place(pod(affinity=affinity), NODES, {"node-1": NodeLoad(9)}) == "node-1"


ZONED = [
    node("a1", labels={"zone": "a"}),
    node("a2", labels={"zone": "a"}),
    node("b1", labels={"zone": "b"}),
    node("bare"),
]


def to_others(side: str, key: str = "zone", **term: Any) -> dict[str, Any]:
    wanted = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "db"}}, **term}
    return {side: {"requiredDuringSchedulingIgnoredDuringExecution": [wanted]}}


def test_affinity_goes_to_the_topology_of_a_matching_pod_and_nowhere_else():
    loads = {"a1": running(pod("db", labels={"app": "db"}))}
    wants = pod(affinity=to_others("podAffinity"))
    assert place(wants, ZONED, loads) == "a2"
    assert refusal(wants, ZONED) == "0/4 nodes are available: 4 node(s) didn't match pod affinity rules."


def test_the_first_pod_of_a_group_that_wants_to_be_together_may_start_anywhere_with_the_topology():
    wants = pod(labels={"app": "db"}, affinity=to_others("podAffinity"))
    assert place(wants, ZONED[::-1], {}) == "b1"


def test_anti_affinity_keeps_pods_apart_in_both_directions():
    alone = pod("db", labels={"app": "db"}, affinity=to_others("podAntiAffinity"))
    assert place(alone, ZONED, {"a1": running(pod("q", labels={"app": "db"}))}) == "b1"
    plain = pod(labels={"app": "db"})
    taken = {"a1": running(alone), "b1": running({**alone, "metadata": {**alone["metadata"], "uid": "x"}})}
    assert place(plain, ZONED, taken) == "bare"
    assert refusal(plain, ZONED[:3], taken) == (
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
    )
    assert refusal({**alone, "spec": {**alone["spec"]}}, ZONED[:3], taken) == (
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
    )


def test_affinity_looks_into_the_namespaces_it_names_or_selects():
    elsewhere = pod("db", labels={"app": "db"})
    elsewhere["metadata"]["namespace"] = "data"
    loads = {"b1": running(elsewhere)}
    assert "affinity" in refusal(pod(affinity=to_others("podAffinity")), ZONED, loads)
    assert place(pod(affinity=to_others("podAffinity", namespaces=["data"])), ZONED, loads) == "b1"
    by_label = pod(affinity=to_others("podAffinity", namespaceSelector={"matchLabels": {"team": "x"}}))
    assert Scheduler(ZONED, loads, {"data": {"team": "x"}}).place(by_label) == "b1"
    with pytest.raises(Unschedulable):
        Scheduler(ZONED, loads, {"data": {"team": "y"}}).place(by_label)


def test_preferred_anti_affinity_spreads_and_required_affinity_of_others_attracts():
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}
    rule = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "podAffinityTerm": term}]}
    loads = {"a1": running(pod("q", labels={"app": "db"})), "b1": NodeLoad(9), "bare": NodeLoad(10)}
    assert place(pod(affinity={"podAntiAffinity": rule}), ZONED, loads) == "b1"
    assert place(pod(affinity={"podAffinity": rule}), ZONED, loads) == "a2"
    waiting = {"b1": running(pod("w", affinity=to_others("podAffinity")))}
    assert place(pod(labels={"app": "db"}), ZONED, waiting) == "b1"


def spread(when: str = "DoNotSchedule", **more: Any) -> dict[str, Any]:
    constraint = {
        "topologyKey": "zone",
        "maxSkew": 1,
        "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    return pod(labels={"app": "web", "rev": "2"}, topologySpreadConstraints=[{**constraint, **more}])


def web(name: str, rev: str = "1") -> dict[str, Any]:
    return pod(name, labels={"app": "web", "rev": rev})


def test_a_spread_constraint_holds_the_skew():
    loads = {"a1": running(web("x"))}
    assert place(spread(), ZONED, loads) == "b1"
    full = {"a1": running(web("x")), "b1": NodeLoad(MAX_PODS)}
    assert refusal(spread(), ZONED, full) == (
        "0/4 nodes are available: 1 Too many pods, "
        "1 node(s) didn't match pod topology spread constraints (missing required label), "
        "2 node(s) didn't match pod topology spread constraints."
    )


def test_too_few_domains_count_as_an_empty_one():
    assert place(spread(minDomains=2), ZONED, {}) == "a1"
    crowded = {"a1": running(web("x")), "b1": running(web("y"))}
    assert "spread constraints" in refusal(spread(minDomains=3), ZONED, crowded)
    assert place(spread(minDomains=2), ZONED, crowded) == "a2"


def test_pods_of_another_revision_do_not_count_with_match_label_keys():
    loads = {"a1": running(web("x"))}
    assert place(spread(matchLabelKeys=["rev"]), ZONED[:3], loads | {"b1": NodeLoad(9)}) == "a2"
    assert place(spread(), ZONED[:3], loads | {"b1": NodeLoad(9)}) == "b1"


def test_pods_being_deleted_and_nodes_out_of_reach_do_not_count_for_spreading():
    leaving = web("x")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert place(spread(), ZONED[:3], {"a1": running(leaving), "b1": NodeLoad(9)}) == "a2"
    wants = spread()
    wants["spec"]["nodeSelector"] = {"zone": "a"}
    assert place(wants, ZONED, {"a1": running(web("x"), web("y"))}) == "a2"


def test_spreading_that_may_fail_only_prefers():
    loads = {"a1": running(web("x"), web("y")), "b1": NodeLoad(20)}
    assert place(spread("ScheduleAnyway"), ZONED, loads) == "b1"
    assert place(spread("ScheduleAnyway"), ZONED[:2], loads) == "a2"


def test_a_thousand_pods_on_twenty_nodes_are_spread_evenly():
    nodes = [node(f"n{number}") for number in range(20)]
    loads = {each["metadata"]["name"]: NodeLoad() for each in nodes}
    chooser = Scheduler(nodes, loads)
    for number in range(1000):
        wanted = web(f"p{number}")
        loads[chooser.place(wanted)].put(wanted)
    assert {load.pods for load in loads.values()} == {50}


def test_a_load_has_a_new_version_only_when_its_counts_change():
    there = web("x")
    load = running(there)
    before = load.version
    load.put({**there, "status": {"phase": "Running"}})
    load.drop("unknown")
    assert load.version == before
    load.drop("x")
    assert load.version > before
