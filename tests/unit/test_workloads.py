from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.control.workloads import template_hash
from testbed.control.workloads.common import Outcome, is_ready, seconds_of, share, timestamp, with_condition
from testbed.control.workloads.daemonset import daemon_set, node_of
from testbed.control.workloads.deployment import deployment
from testbed.control.workloads.job import job
from testbed.control.workloads.replicaset import DELETION_COST, dispensable, replica_set
from testbed.control.workloads.statefulset import stateful_set

Object = dict[str, Any]
NOW = seconds_of("2026-01-01T01:00:00Z")


def owner(kind: str, **spec: Any) -> Object:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 3},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template, **spec},
        "status": {},
    }


def pod(
    name: str,
    *,
    ready: bool = True,
    node: str = "node-1",
    phase: str = "Running",
    since: str = "2026-01-01T00:00:00Z",
    **meta: Any,
) -> Object:
    condition = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": since}
    created = "2026-01-01T00:00:00Z"
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": created, **meta},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": [condition]},
    }


def names(objects: list[Object]) -> list[str]:
    return [obj["metadata"]["name"] for obj in objects]


# --- what they share --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "total", "up", "is_"),
    [
        ("25%", 10, True, 3),
        ("25%", 10, False, 2),
        (4, 10, True, 4),
        ("100%", 7, False, 7),
        (None, 3, True, 0),
    ],
)
def test_a_percentage_is_rounded_as_asked(value: int | str | None, total: int, up: bool, is_: int) -> None:
    assert share(value, total, up=up) == is_


def test_a_hash_is_of_the_template_alone_in_the_safe_alphabet() -> None:
    one = owner("Deployment")["spec"]["template"]
    assert re.fullmatch("[456789bcdf]{1,10}", template_hash(one))
    assert template_hash(copy.deepcopy(one)) == template_hash(one) != template_hash(one, 1)


def test_a_condition_that_says_the_same_keeps_its_times_and_its_place() -> None:
    ready = {"type": "A", "status": "True", "reason": "R", "lastTransitionTime": "old"}
    others = [ready, {"type": "B", "status": "True"}]
    assert with_condition(others, {**ready, "lastTransitionTime": "new"}) == others
    moved = with_condition(others, {**ready, "reason": "S", "lastTransitionTime": "new"})
    assert [entry["type"] for entry in moved] == ["B", "A"]
    assert moved[-1]["lastTransitionTime"] == "old"


# --- ReplicaSet -------------------------------------------------------------------------------------------


@given(st.integers(0, 8), st.lists(st.booleans(), max_size=8))
def test_a_replica_set_reaches_its_size_and_gives_up_unready_pods_first(
    wanted: int, ready: list[bool]
) -> None:
    pods = [pod(f"p{number}", ready=flag) for number, flag in enumerate(ready)]
    out = replica_set(owner("ReplicaSet", replicas=wanted), pods, NOW)
    assert len(pods) + len(out.create) - len(out.delete) == wanted
    kept = [one for one in pods if one not in out.delete]
    if any(is_ready(one) for one in out.delete):
        assert all(is_ready(one) for one in kept)


def test_pods_are_given_up_in_upstreams_order() -> None:
    ordered = [
        pod("unbound", node="", ready=False, phase="Pending"),
        pod("pending", ready=False, phase="Pending", node="node-9"),
        pod("unready", ready=False, node="node-8"),
        pod("cheap", annotations={DELETION_COST: "-5"}, node="node-7"),
        *(pod(f"crowded-{number}", node="node-2") for number in range(2)),
        pod("young", since="2026-01-01T00:59:00Z", node="node-3"),
        pod("old", node="node-4"),
        pod("dear", annotations={DELETION_COST: "7"}, node="node-5"),
    ]
    assert names(dispensable(ordered[::-1], NOW)) == names(ordered)


def test_a_pod_counts_as_available_when_it_was_ready_long_enough() -> None:
    pods = [pod("a"), pod("b", since="2026-01-01T00:59:40Z")]
    out = replica_set(owner("ReplicaSet", replicas=2, minReadySeconds=30), pods, NOW)
    assert out.status is not None
    assert (out.status["readyReplicas"], out.status["availableReplicas"]) == (2, 1)
    assert out.later == 10


def test_a_terminating_pod_is_replaced_and_counted_apart() -> None:
    out = replica_set(owner("ReplicaSet", replicas=1), [pod("a", deletionTimestamp="x")], NOW)
    assert len(out.create) == 1
    assert out.status is not None
    assert (out.status["replicas"], out.status["terminatingReplicas"]) == (0, 1)


def test_a_refused_pod_is_a_condition_until_there_are_enough() -> None:
    refused = replica_set(owner("ReplicaSet", replicas=1), [], NOW, "no room")
    assert refused.status is not None
    (condition,) = refused.status["conditions"]
    assert (condition["type"], condition["reason"], condition["message"]) == (
        "ReplicaFailure",
        "FailedCreate",
        "no room",
    )
    later = {**owner("ReplicaSet", replicas=1), "status": refused.status}
    after = replica_set(later, [pod("a")], NOW)
    assert after.status is not None
    assert "conditions" not in after.status


# --- Deployment -------------------------------------------------------------------------------------------


def sized(rs: Object, size: int, available: int | None = None, **status: int) -> Object:
    """A ReplicaSet of that size whose pods are all there and, unless said otherwise, available."""
    number = size if available is None else available
    counted = {
        "replicas": size,
        "readyReplicas": number,
        "availableReplicas": number,
        "observedGeneration": 1,
    }
    metadata = {"creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1, **rs["metadata"]}
    return {
        **rs,
        "metadata": metadata,
        "spec": {**rs["spec"], "replicas": size},
        "status": {**counted, "terminatingReplicas": 0, **status},
    }


def changed(deployed: Object, image: str) -> Object:
    new = copy.deepcopy(deployed)
    new["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return new


def made_by(deployed: Object, *old: Object) -> Object:
    (rs,) = deployment(deployed, old, NOW).create
    return rs


def sizes(out: Outcome) -> dict[str, int]:
    return {
        obj["metadata"]["name"]: obj["spec"]["replicas"]
        for obj in [*out.update, *out.create]
        if obj["kind"] == "ReplicaSet"
    }


def test_a_deployment_makes_one_replica_set_named_by_its_template() -> None:
    deployed = owner("Deployment", replicas=3)
    out = deployment(deployed, [], NOW)
    (rs,) = out.create
    digest = rs["metadata"]["labels"]["pod-template-hash"]
    assert rs["metadata"]["name"] == f"web-{digest}"
    assert rs["spec"]["selector"]["matchLabels"] == {"app": "web", "pod-template-hash": digest}
    assert rs["spec"]["template"]["metadata"]["labels"] == {"app": "web", "pod-template-hash": digest}
    assert rs["spec"]["replicas"] == 3
    assert out.update[0]["metadata"]["annotations"] == {"deployment.kubernetes.io/revision": "1"}
    assert [event.message for event in out.events] == [
        f"Scaled up replica set {rs['metadata']['name']} from 0 to 3"
    ]


def test_a_rolling_update_never_has_more_or_serves_less_than_it_may() -> None:
    """10 replicas, 25%: at most 13 pods, at least 8 available; every step as in upstream's rolling.go."""
    before = owner("Deployment", replicas=10)
    old = sized(made_by(before), 10)
    deployed = changed(before, "other")
    new = sized(made_by(deployed, old), 3, 0)
    assert new["spec"]["replicas"] == 3
    steps = []
    for _ in range(20):
        out = deployment(deployed, [old, new], NOW)
        found = sizes(out)
        if not found and new["status"]["availableReplicas"] == new["spec"]["replicas"]:
            break
        size = {rs["metadata"]["name"]: rs["spec"]["replicas"] for rs in (old, new)} | found
        total = sum(size.values())
        olds, news = size[old["metadata"]["name"]], size[new["metadata"]["name"]]
        assert total <= 13
        assert olds + min(news, new["status"]["availableReplicas"]) >= 8
        steps.append((olds, news))
        metadata = {obj["metadata"]["name"]: obj["metadata"] for obj in out.update}
        old = sized({**old, "metadata": metadata.get(old["metadata"]["name"], old["metadata"])}, olds)
        ready = news if not found else new["status"]["availableReplicas"]
        new = sized({**new, "metadata": metadata.get(new["metadata"]["name"], new["metadata"])}, news, ready)
    assert steps[:2] == [(8, 3), (8, 5)]
    assert steps[-1] == (0, 10)


def test_recreate_waits_until_the_last_old_pod_is_gone() -> None:
    before = owner("Deployment", replicas=2, strategy={"type": "Recreate"})
    old = sized(made_by(before), 2)
    deployed = changed(before, "other")
    emptied = deployment(deployed, [old], NOW)
    assert (sizes(emptied), emptied.create) == ({old["metadata"]["name"]: 0}, [])
    ending = deployment(deployed, [sized(old, 0, terminatingReplicas=2)], NOW)
    assert (sizes(ending), ending.create) == ({}, [])
    assert [rs["spec"]["replicas"] for rs in deployment(deployed, [sized(old, 0)], NOW).create] == [2]


def test_an_old_template_gets_its_replica_set_back_under_a_new_revision() -> None:
    before = owner("Deployment", replicas=1)
    first = sized(made_by(before), 0)
    second = sized(made_by(changed(before, "other"), first), 1)
    out = deployment(before, [first, second], NOW)
    assert out.create == []
    (rs,) = [obj for obj in out.update if obj["metadata"]["name"] == first["metadata"]["name"]]
    annotations = rs["metadata"]["annotations"]
    assert annotations["deployment.kubernetes.io/revision"] == "3"
    assert annotations["deployment.kubernetes.io/revision-history"] == "1"
    assert rs["spec"]["replicas"] == 1


def test_a_paused_deployment_scales_but_does_not_roll() -> None:
    before = owner("Deployment", replicas=2, progressDeadlineSeconds=600)
    old = sized(made_by(before), 2)
    paused = changed(before, "other")
    paused["spec"] |= {"paused": True, "replicas": 4}
    out = deployment(paused, [old], NOW)
    assert (sizes(out), out.create) == ({old["metadata"]["name"]: 4}, [])
    assert out.status is not None
    reasons = {entry["type"]: entry["reason"] for entry in out.status["conditions"]}
    assert reasons["Progressing"] == "DeploymentPaused"


def test_scaling_during_a_rollout_keeps_proportions() -> None:
    before = owner("Deployment", replicas=10)
    old = sized(made_by(before), 8)
    during = changed(before, "other")
    new = sized(made_by(during, sized(old, 8)), 5)
    during["spec"]["replicas"] = 20
    scaled = sizes(deployment(during, [old, new], NOW))
    assert scaled == {old["metadata"]["name"]: 15, new["metadata"]["name"]: 10}


def test_only_so_many_old_revisions_are_kept() -> None:
    deployed = owner("Deployment", replicas=1, revisionHistoryLimit=1)
    known: list[Object] = []
    for image in "abc":
        known = [sized(rs, 0) for rs in known]
        known.append(sized(made_by(changed(deployed, image), *known), 1))
    out = deployment(changed(deployed, "c"), known, NOW)
    assert names(out.delete) == [known[0]["metadata"]["name"]]


def test_a_rollout_without_progress_times_out() -> None:
    deployed = owner("Deployment", replicas=1, progressDeadlineSeconds=600)
    rs = sized(made_by(deployed), 1, 0)
    first = deployment(deployed, [rs], NOW)
    assert first.status is not None
    assert first.later == 601
    stuck = {**deployed, "status": first.status}
    out = deployment(stuck, [rs], NOW + 601)
    assert out.status is not None
    (condition,) = [entry for entry in out.status["conditions"] if entry["type"] == "Progressing"]
    assert (condition["status"], condition["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert condition["message"] == f'ReplicaSet "{rs["metadata"]["name"]}" has timed out progressing.'


# --- StatefulSet ------------------------------------------------------------------------------------------


def revised(set_: Object, known: list[Object] = []) -> list[Object]:  # noqa: B006 - never changed
    out = stateful_set(set_, [], known, NOW)
    return [*known, *(obj for obj in out.create if obj["kind"] == "ControllerRevision")]


def pods_of(out: Outcome) -> list[str]:
    return names([obj for obj in out.create if obj["kind"] == "Pod"])


def member(ordinal: int, revision: Object, **given: Any) -> Object:
    return pod(f"web-{ordinal}", labels={"controller-revision-hash": revision["metadata"]["name"]}, **given)


def test_a_stateful_set_waits_for_each_ordinal() -> None:
    stateful = owner("StatefulSet", replicas=3, serviceName="db")
    known = revised(stateful)
    first = stateful_set(stateful, [], known, NOW)
    assert pods_of(first) == ["web-0"]
    assert (first.create[0]["spec"]["hostname"], first.create[0]["spec"]["subdomain"]) == ("web-0", "db")
    assert pods_of(stateful_set(stateful, [member(0, known[0], ready=False)], known, NOW)) == []
    assert pods_of(stateful_set(stateful, [member(0, known[0])], known, NOW)) == ["web-1"]


def test_a_parallel_stateful_set_makes_all_at_once_from_its_first_ordinal() -> None:
    stateful = owner("StatefulSet", replicas=2, podManagementPolicy="Parallel", ordinals={"start": 5})
    assert pods_of(stateful_set(stateful, [], [], NOW)) == ["web-5", "web-6"]


def test_a_stateful_set_shrinks_from_the_highest_ordinal_one_by_one() -> None:
    stateful = owner("StatefulSet", replicas=1)
    known = revised(stateful)
    pods = [member(n, known[0]) for n in range(4)]
    assert names(stateful_set(stateful, pods, known, NOW).delete) == ["web-3"]
    pods[3]["metadata"]["deletionTimestamp"] = "now"
    assert stateful_set(stateful, pods, known, NOW).delete == []


@pytest.mark.parametrize(
    ("partition", "ready", "gone"), [(0, True, ["web-2"]), (3, True, []), (0, False, [])]
)
def test_a_new_template_replaces_the_highest_ordinal_first(
    partition: int, ready: bool, gone: list[str]
) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}
    before = owner("StatefulSet", replicas=3, updateStrategy=strategy)
    first = revised(before)
    stateful = changed(before, "other")
    stateful["status"] = {"currentRevision": first[0]["metadata"]["name"]}
    known = revised(stateful, first)
    assert [entry["revision"] for entry in known] == [1, 2]
    pods = [member(0, known[0]), member(1, known[0]), member(2, known[0], ready=ready)]
    if not ready:
        pods[2] = member(2, known[1], ready=False)
    out = stateful_set(stateful, pods, known, NOW)
    assert names(out.delete) == gone
    assert out.status is not None
    assert out.status["updateRevision"] == known[1]["metadata"]["name"]
    assert out.status["currentRevision"] == known[0]["metadata"]["name"]


def test_an_ordinal_below_the_partition_comes_back_with_the_old_template() -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}
    before = owner("StatefulSet", replicas=2, updateStrategy=strategy, podManagementPolicy="Parallel")
    first = revised(before)
    stateful = changed(before, "other")
    stateful["status"] = {"currentRevision": first[0]["metadata"]["name"]}
    out = stateful_set(stateful, [], revised(stateful, first), NOW)
    images = [one["spec"]["containers"][0]["image"] for one in out.create]
    assert images == ["i", "other"]


def test_each_ordinal_has_claims_of_its_own() -> None:
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
    stateful = owner("StatefulSet", replicas=1, volumeClaimTemplates=[claim])
    out = stateful_set(stateful, [], revised(stateful), NOW)
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in out.create] == [
        ("PersistentVolumeClaim", "data-web-0"),
        ("Pod", "web-0"),
    ]
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}
    assert out.create[1]["spec"]["volumes"] == [volume]


# --- DaemonSet --------------------------------------------------------------------------------------------


def test_a_daemon_set_runs_where_selector_and_taints_allow() -> None:
    daemon = owner("DaemonSet")
    nodes: list[Object] = [
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "b"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}},
        {"metadata": {"name": "c"}, "spec": {"unschedulable": True}},
        {"metadata": {"name": "d"}, "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}},
    ]
    out = daemon_set(daemon, [], nodes, [], NOW)
    pods = [obj for obj in out.create if obj["kind"] == "Pod"]
    affinity = [one["spec"]["affinity"]["nodeAffinity"] for one in pods]
    terms = [a["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0] for a in affinity]
    assert [term["matchFields"][0]["values"] for term in terms] == [["a"], ["c"]]
    stays, goes = pod("stays", node="b"), pod("goes", node="d")
    out = daemon_set(daemon, [stays, goes], nodes, [], NOW)
    assert names(out.delete) == ["goes"]
    assert out.status is not None
    assert out.status["numberMisscheduled"] == 2


def test_a_daemon_set_replaces_as_many_old_pods_as_may_be_missing() -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}}
    daemon = owner("DaemonSet", updateStrategy=rolling)
    nodes: list[Object] = [{"metadata": {"name": f"n{number}"}} for number in range(4)]
    old = {"controller-revision-hash": "old"}
    pods = [pod(f"p{number}", node=f"n{number}", labels=old) for number in range(4)]
    assert names(daemon_set(daemon, pods, nodes, [], NOW).delete) == ["p0", "p1"]
    pods[3] = pod("p3", node="n3", labels=old, ready=False)
    assert names(daemon_set(daemon, pods, nodes, [], NOW).delete) == ["p0", "p3"]
    daemon["spec"]["updateStrategy"] = {"type": "OnDelete"}
    assert daemon_set(daemon, pods, nodes, [], NOW).delete == []


def test_a_surging_daemon_set_deletes_an_old_pod_when_the_new_one_beside_it_serves() -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    daemon = owner("DaemonSet", updateStrategy=rolling)
    nodes: list[Object] = [{"metadata": {"name": f"n{number}"}} for number in range(3)]
    old = {"controller-revision-hash": "old"}
    pods = [pod(f"p{number}", node=f"n{number}", labels=old) for number in range(3)]

    def made(out: Outcome) -> list[Object]:
        return [obj for obj in out.create if obj["kind"] == "Pod"]

    out = daemon_set(daemon, pods, nodes, [], NOW)
    assert (len(made(out)), out.delete) == (1, [])
    assert node_of(made(out)[0]) == "n0"
    digest = made(out)[0]["metadata"]["labels"]
    revision = [obj for obj in out.create if obj["kind"] == "ControllerRevision"]

    new = pod("q0", node="n0", labels=digest, ready=False)
    out = daemon_set(daemon, [*pods, new], nodes, revision, NOW)
    assert (made(out), out.delete) == ([], []), "the surge is used up until the new pod serves"
    urgent = [pods[0], pods[1], pod("p2", node="n2", labels=old, ready=False)]
    out = daemon_set(daemon, [*urgent, new], nodes, revision, NOW)
    assert [node_of(each) for each in made(out)] == ["n2"], "what does not serve anyway is replaced at once"
    new = pod("q0", node="n0", labels=digest)
    out = daemon_set(daemon, [*pods, new], nodes, revision, NOW)
    assert names(out.delete) == ["p0"]
    assert [node_of(each) for each in made(out)] == ["n1"]


def test_a_daemon_waits_until_its_predecessor_is_gone() -> None:
    nodes: list[Object] = [{"metadata": {"name": "a"}}]
    ending = pod("p", node="a", deletionTimestamp="now")
    out = daemon_set(owner("DaemonSet"), [ending], nodes, [], NOW)
    assert [obj["kind"] for obj in out.create] == ["ControllerRevision"]


# --- Job --------------------------------------------------------------------------------------------------


def run_of(name: str, phase: str, **meta: Any) -> Object:
    return pod(name, phase=phase, finalizers=["batch.kubernetes.io/job-tracking"], **meta)


def test_a_job_runs_as_many_at_once_as_it_may_until_enough_have_succeeded() -> None:
    once = owner("Job", completions=3, parallelism=2)
    assert len(job(once, [], NOW).create) == 2
    out = job(once, [run_of("a", "Succeeded"), run_of("b", "Running")], NOW)
    assert len(out.create) == 1
    assert out.status is not None
    assert (out.status["active"], out.status["succeeded"]) == (1, 1)
    assert "finalizers" not in out.update[0]["metadata"]
    almost = {**once, "status": {**out.status, "succeeded": 2}}
    done = job(almost, [run_of("c", "Succeeded")], NOW)
    assert done.status is not None
    assert [entry["type"] for entry in done.status["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    assert done.status["completionTime"] == timestamp(NOW)
    assert done.create == []


def test_an_indexed_job_makes_each_index_once() -> None:
    indexed = owner("Job", completions=5, parallelism=5, completionMode="Indexed")
    index = "batch.kubernetes.io/job-completion-index"
    pods = [run_of(f"p{n}", "Succeeded", annotations={index: str(n)}) for n in (0, 1, 4)]
    out = job(indexed, pods, NOW)
    assert [one["metadata"]["annotations"][index] for one in out.create] == ["2", "3"]
    assert [one["spec"]["hostname"] for one in out.create] == ["web-2", "web-3"]
    assert out.status is not None
    assert out.status["completedIndexes"] == "0-1,4"


def test_a_job_backs_off_after_a_failure_and_gives_up_after_too_many() -> None:
    once = owner("Job", completions=1, parallelism=1, backoffLimit=1)
    failed = run_of("a", "Failed", ready=False)
    failed["metadata"]["creationTimestamp"] = timestamp(NOW - 4)
    first = job(once, [failed], NOW)
    assert (first.create, first.later) == ([], 6)
    assert first.status is not None
    counted = copy.deepcopy(failed)
    del counted["metadata"]["finalizers"]
    again = {**once, "status": first.status}
    assert len(job(again, [counted], NOW + 6).create) == 1
    out = job(again, [counted, run_of("b", "Failed", ready=False)], NOW + 30)
    assert out.status is not None
    assert [entry["type"] for entry in out.status["conditions"]] == ["FailureTarget", "Failed"]
    assert out.status["conditions"][-1]["reason"] == "BackoffLimitExceeded"


def test_a_finished_job_goes_when_its_time_is_over() -> None:
    done = owner("Job", completions=1, ttlSecondsAfterFinished=10)
    done["status"] = {
        "conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": timestamp(NOW)}]
    }
    assert job(done, [], NOW).later == 10
    assert job(done, [], NOW + 10).delete == [done]


# --- what anybody may write -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["--5", "²", "", "+1", "1e3", "9" * 5000])
def test_an_annotation_that_is_no_number_counts_as_none(text: str) -> None:
    odd = pod("odd", annotations={DELETION_COST: text})
    assert names(dispensable([odd, pod("p", annotations={DELETION_COST: "-1"})], NOW)) == ["p", "odd"]
    deployed = owner("Deployment", replicas=1)
    made = made_by(deployed)
    keys = ("revision", "desired-replicas", "max-replicas")
    given = {f"deployment.kubernetes.io/{key}": text for key in keys}
    made = {**made, "metadata": {**made["metadata"], "annotations": given}}
    for changes in ({}, {"replicas": 4}, {"paused": True}):
        assert deployment({**deployed, "spec": {**deployed["spec"], **changes}}, [made], NOW).status


def test_indexes_of_a_status_that_the_job_does_not_have_are_not_counted() -> None:
    indexed = owner("Job", completions=4, parallelism=4, completionMode="Indexed")
    indexed["status"] = {"completedIndexes": "1,3-99999999999,x,7-"}
    out = job(indexed, [pod("p", annotations={"batch.kubernetes.io/job-completion-index": "²"})], NOW)
    assert out.status is not None
    assert out.status["completedIndexes"] == "1,3"
