"""The workload controllers in a control plane whose nodes make whatever they should."""

from __future__ import annotations

from typing import Any

from pretended import drive, make_plane

from testbed.cluster.controlplane import ControlPlane
from testbed.control.workloads.common import controller_of

Object = dict[str, Any]


def workload(kind: str, name: str, replicas: int = 1, **spec: Any) -> Object:
    group = {"ReplicationController": "v1", "Job": "batch/v1"}.get(kind, "apps/v1")
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "c:1"}]},
    }
    selector: Object = {"app": name} if kind == "ReplicationController" else {"matchLabels": {"app": name}}
    size = {} if kind in ("DaemonSet", "Job") else {"replicas": replicas}
    return {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {**size, "selector": selector, "template": template, **spec},
    }


def started(*objects: Object) -> ControlPlane:
    plane = make_plane(objects)
    drive(plane)
    return plane


def pods(plane: ControlPlane) -> list[Object]:
    return plane.store.list("Pod")


def owners(plane: ControlPlane) -> list[str]:
    references = [controller_of(pod) for pod in pods(plane)]
    return [f"{one['kind']}/{one['name']}" if one else "" for one in references]


def patched(plane: ControlPlane, kind: str, name: str, patch: Object) -> None:
    plane.store.patch_merge(kind, "default", name, patch)
    drive(plane)


def image(name: str) -> Object:
    return {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}}


def relabelled(plane: ControlPlane, name: str, label: str) -> None:
    patched(plane, "Pod", name, {"metadata": {"labels": {"app": label}}})


def test_a_pod_whose_label_changes_is_let_go_and_replaced_and_taken_back() -> None:
    for kind in ("ReplicaSet", "ReplicationController", "DaemonSet"):
        plane = started(workload(kind, "web", 3))
        name = pods(plane)[0]["metadata"]["name"]
        relabelled(plane, name, "other")
        assert sorted(owners(plane)) == ["", *[f"{kind}/web"] * 3]
        relabelled(plane, name, "web")
        assert owners(plane) == [f"{kind}/web"] * 3


def test_a_new_owner_takes_up_the_pods_its_selector_matches() -> None:
    lone = workload("ReplicaSet", "web")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **lone, "metadata": {"name": "lone", **lone["metadata"]}}
    plane = started(pod)
    plane.store.create(workload("ReplicaSet", "web", 2))
    drive(plane)
    assert owners(plane) == ["ReplicaSet/web"] * 2
    assert "lone" in [one["metadata"]["name"] for one in pods(plane)]


def test_orphans_are_left_and_found_again() -> None:
    plane = started(workload("Deployment", "web", 2))
    before = [pod["metadata"]["uid"] for pod in pods(plane)]
    plane.store.delete("Deployment", "default", "web", propagation="Orphan")
    drive(plane)
    assert [pod["metadata"]["uid"] for pod in pods(plane)] == before
    assert controller_of(plane.store.list("ReplicaSet")[0]) is None
    plane.store.create(workload("Deployment", "web", 2))
    drive(plane)
    (rs,) = plane.store.list("ReplicaSet")
    assert (controller_of(rs) or {})["name"] == "web"
    assert [pod["metadata"]["uid"] for pod in pods(plane)] == before


def test_in_the_foreground_an_owner_goes_after_all_that_it_owns() -> None:
    plane = started(workload("Deployment", "web", 2))
    plane.store.delete("Deployment", "default", "web", propagation="Foreground")
    plane.step()
    deployed = plane.store.get("Deployment", "default", "web")
    assert deployed["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert all("deletionTimestamp" in obj["metadata"] for obj in [deployed, *plane.store.list("ReplicaSet")])
    assert len(pods(plane)) == 2
    assert all("deletionTimestamp" in pod["metadata"] for pod in pods(plane))
    drive(plane)
    assert [plane.store.list(kind) for kind in ("Deployment", "ReplicaSet", "Pod")] == [[], [], []]


def test_an_image_rolls_and_its_undo_takes_the_old_set_again() -> None:
    plane = started(workload("Deployment", "web", 4))
    (first,) = plane.store.list("ReplicaSet")
    patched(plane, "Deployment", "web", image("c:2"))
    sizes = {rs["metadata"]["name"]: rs["spec"]["replicas"] for rs in plane.store.list("ReplicaSet")}
    assert sizes.pop(first["metadata"]["name"]) == 0
    assert list(sizes.values()) == [4]
    patched(plane, "Deployment", "web", image("c:1"))
    sets = plane.store.list("ReplicaSet")
    assert len(sets) == 2
    assert plane.store.get("ReplicaSet", "default", first["metadata"]["name"])["spec"]["replicas"] == 4
    deployed = plane.store.get("Deployment", "default", "web")
    assert deployed["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
    assert deployed["status"]["updatedReplicas"] == deployed["status"]["replicas"] == 4
    assert deployed["metadata"]["generation"] == 3


def test_a_stuck_rollout_keeps_the_old_pods_and_times_out_by_the_clock() -> None:
    plane = started(workload("Deployment", "web", 4))
    sick = image("c:2")
    sick["spec"]["template"]["metadata"] = {"annotations": {"testbed/ready": "false"}}
    patched(plane, "Deployment", "web", sick)
    status = plane.store.get("Deployment", "default", "web")["status"]
    assert (status["readyReplicas"], status["updatedReplicas"], status["unavailableReplicas"]) == (3, 2, 2)
    plane.clock.advance(602)  # type: ignore[attr-defined]
    drive(plane)
    conditions = plane.store.get("Deployment", "default", "web")["status"]["conditions"]
    assert [(one["type"], one["status"], one["reason"]) for one in conditions] == [
        ("Available", "True", "MinimumReplicasAvailable"),
        ("Progressing", "False", "ProgressDeadlineExceeded"),
    ]


def test_a_hash_that_is_taken_by_another_template_is_counted_and_changed() -> None:
    plane = make_plane([workload("Deployment", "web")])
    plane.step()
    (made,) = plane.store.list("ReplicaSet")
    taken = {**made, "metadata": {"name": made["metadata"]["name"], "namespace": "default"}}
    other = make_plane([])
    other.store.create({**taken, "spec": {**taken["spec"], "replicas": 0}}, trusted=True)
    stranger = other.store.get("ReplicaSet", "default", made["metadata"]["name"])
    assert controller_of(stranger) is None
    other.store.create(workload("Deployment", "web"))
    drive(other)
    names = {rs["metadata"]["name"] for rs in other.store.list("ReplicaSet")}
    status = other.store.get("Deployment", "default", "web")["status"]
    assert (len(names), status["collisionCount"], status["readyReplicas"]) == (2, 1, 1)


def test_a_stateful_set_rolls_by_ordinal_and_its_revisions_follow() -> None:
    plane = started(workload("StatefulSet", "db", 3, serviceName="db"))
    patched(plane, "StatefulSet", "db", image("c:2"))
    images = [pod["spec"]["containers"][0]["image"] for pod in pods(plane)]
    assert images == ["c:2"] * 3
    status = plane.store.get("StatefulSet", "default", "db")["status"]
    assert status["currentRevision"] == status["updateRevision"]
    assert sorted(one["revision"] for one in plane.store.list("ControllerRevision")) == [1, 2]
    patched(plane, "StatefulSet", "db", image("c:1"))
    assert sorted(one["revision"] for one in plane.store.list("ControllerRevision")) == [2, 3]


def test_a_daemon_set_follows_its_nodes_and_rolls() -> None:
    plane = started(workload("DaemonSet", "edge"))
    patched(plane, "DaemonSet", "edge", image("c:2"))
    assert [pod["spec"]["containers"][0]["image"] for pod in pods(plane)] == ["c:2"] * 3
    node = plane.store.get("Node", "", "node-2")
    tainted = {**node["spec"], "taints": [{"key": "k", "effect": "NoExecute"}]}
    plane.store.update({**node, "spec": tainted}, trusted=True)
    drive(plane)
    assert sorted(pod["spec"]["nodeName"] for pod in pods(plane)) == ["node-1", "node-3"]


def test_pods_of_a_deleted_job_go_although_nobody_counts_them() -> None:
    run = workload("Job", "once")
    del run["spec"]["selector"]
    run["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    plane = started(run)
    assert pods(plane)[0]["metadata"]["finalizers"] == ["batch.kubernetes.io/job-tracking"]
    plane.store.delete("Job", "default", "once")
    drive(plane)
    assert pods(plane) == []


def test_a_job_counts_a_pod_that_ended_once() -> None:
    run = workload("Job", "once")
    del run["spec"]["selector"]
    run["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    plane = make_plane([run])
    plane.step()
    (pod,) = pods(plane)
    plane.store.update_status({**pod, "status": {**pod["status"], "phase": "Succeeded"}})
    plane.step()
    status = plane.store.get("Job", "default", "once")["status"]
    assert (status["succeeded"], status.get("failed")) == (1, None)
    assert status["conditions"][-1]["type"] == "Complete"
    assert "finalizers" not in pods(plane)[0]["metadata"]


def test_a_refused_pod_is_an_event_and_tried_again() -> None:
    stranger = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db-0"}}
    plane = started(
        {**stranger, "spec": {"containers": [{"name": "c", "image": "c:1"}]}},
        workload("StatefulSet", "db", serviceName="db"),
    )
    assert owners(plane) == [""]
    (event,) = plane.store.list("Event", field_selector="reason=FailedCreate")
    text = 'create Pod db-0 in StatefulSet db failed error: pods "db-0" already exists'
    assert (event["message"], event["type"]) == (text, "Warning")
    plane.store.delete("Pod", "default", "db-0")
    drive(plane)
    assert owners(plane) == []
    plane.clock.advance(5)  # type: ignore[attr-defined]
    drive(plane)
    assert owners(plane) == ["StatefulSet/db"]


def test_scaling_says_what_upstream_says() -> None:
    plane = started(workload("Deployment", "web", 2))
    patched(plane, "Deployment", "web", {"spec": {"replicas": 1}})
    said = {(one["involvedObject"]["kind"], one["reason"], one["source"].get("component")): one["message"]
            for one in plane.store.list("Event") if one["involvedObject"]["kind"] != "Pod"}  # fmt: skip
    (rs,) = plane.store.list("ReplicaSet")
    name = rs["metadata"]["name"]
    assert said["Deployment", "ScalingReplicaSet", "deployment-controller"] == (
        f"Scaled down replica set {name} from 2 to 1"
    )
    assert said["ReplicaSet", "SuccessfulCreate", "replicaset-controller"].startswith(f"Created pod: {name}-")
    assert said["ReplicaSet", "SuccessfulDelete", "replicaset-controller"].startswith(f"Deleted pod: {name}-")
