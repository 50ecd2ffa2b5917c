from __future__ import annotations

from typing import Any

import pytest

from testbed.cli.columns import columns, pod_status
from testbed.control import podstatus
from testbed.control.podstatus import phase, status
from testbed.state import ContainerState

NOW = 1_000_000_000.0
NOW_TEXT = "2001-09-09T01:46:40Z"
RUNNING = ContainerState("c", begun=NOW)
DONE = ContainerState("c", "terminated", ready=False, started=False, reason="Completed", begun=NOW, ended=NOW)
FAILED = ContainerState(
    "c", "terminated", ready=False, started=False, exit_code=3, reason="Error", begun=NOW, ended=NOW
)
RETRYING = ContainerState(
    "c", "waiting", ready=False, started=False, reason="CrashLoopBackOff", message="back-off", last=FAILED
)


def pod(**more: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "default", "uid": "u", **more.pop("metadata", {})}
    spec = {"nodeName": "node-1", "containers": [{"name": "c", "image": "nginx"}], **more.pop("spec", {})}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, **more}


def written(given: dict[str, Any], *states: ContainerState, now: float = NOW) -> dict[str, Any]:
    return status(given, states or (RUNNING,), ("10.244.1.2",), ("192.168.100.11",), now)


def conditions(found: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {
        entry["type"]: (entry["status"], entry.get("reason", ""), entry.get("message", ""))
        for entry in found["conditions"]
    }


@pytest.mark.parametrize(
    ("policy", "states", "expected"),
    [
        ("Always", [RUNNING], "Running"),
        ("Always", [DONE], "Running"),
        ("Always", [RETRYING], "Running"),
        ("Always", [ContainerState("c", "waiting", reason="ContainerCreating")], "Pending"),
        ("OnFailure", [DONE], "Succeeded"),
        ("OnFailure", [FAILED], "Running"),
        ("OnFailure", [DONE, RETRYING], "Running"),
        ("OnFailure", [DONE, RUNNING], "Running"),
        ("Never", [DONE, DONE], "Succeeded"),
        ("Never", [DONE, FAILED], "Failed"),
        ("Never", [FAILED, RUNNING], "Running"),
    ],
)
def test_the_phase_is_that_of_the_containers(policy: str, states: list[ContainerState], expected: str):
    assert phase(policy, states) == expected


def test_a_running_pod_is_ready_and_has_its_addresses_and_times():
    found = written(pod())
    assert {kind: verdict[0] for kind, verdict in conditions(found).items()} == dict.fromkeys(
        podstatus.OWNED, "True"
    )
    assert (found["podIP"], found["hostIP"], found["startTime"]) == ("10.244.1.2", "192.168.100.11", NOW_TEXT)
    (container,) = found["containerStatuses"]
    assert container["state"] == {"running": {"startedAt": NOW_TEXT}}
    assert (container["ready"], container["started"], container["restartCount"]) == (True, True, 0)


def test_containers_that_are_not_ready_are_named():
    unready = ContainerState("c", ready=False), ContainerState("d", ready=False)
    found = conditions(written(pod(), *unready))
    expected = ("False", "ContainersNotReady", "containers with unready status: [c d]")
    assert found["Ready"] == found["ContainersReady"] == expected


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (None, 'corresponding condition of pod readiness gate "x/y" does not exist.'),
        ("False", 'the status of pod readiness gate "x/y" is not "True", but False'),
        ("True", ""),
    ],
)
def test_a_readiness_gate_holds_ready_back_but_not_the_containers(gate: str | None, message: str):
    given = pod(spec={"readinessGates": [{"conditionType": "x/y"}]})
    if gate:
        given["status"] = {"conditions": [{"type": "x/y", "status": gate}]}
    found = conditions(written(given))
    assert found["ContainersReady"][0] == "True"
    if message:
        assert found["Ready"] == ("False", "ReadinessGatesNotReady", message)
    else:
        assert found["Ready"][0] == "True"


def test_conditions_of_others_stay_and_times_move_only_with_the_status():
    first = written(pod(status={"conditions": [{"type": "x/y", "status": "True"}]}))
    second = written(pod(status=first), ContainerState("c", ready=False), now=NOW + 60)
    times = {entry["type"]: entry.get("lastTransitionTime") for entry in second["conditions"]}
    assert times["Initialized"] == NOW_TEXT
    assert times["Ready"] == times["ContainersReady"] == "2001-09-09T01:47:40Z"
    assert conditions(second)["x/y"] == ("True", "", "")
    assert second["startTime"] == NOW_TEXT


def test_forced_readiness_overrides_what_the_containers_say():
    found = written(pod(metadata={"annotations": {"testbed/ready": "false"}}))
    assert conditions(found)["Ready"][:2] == ("False", "ContainersNotReady")
    assert found["containerStatuses"][0]["ready"] is False


@pytest.mark.parametrize(
    ("state", "expected", "reason"), [(DONE, "Succeeded", "PodCompleted"), (FAILED, "Failed", "PodFailed")]
)
def test_a_pod_that_ended_says_so_in_its_conditions(state: ContainerState, expected: str, reason: str):
    found = written(pod(spec={"restartPolicy": "Never"}), state)
    assert found["phase"] == expected
    assert conditions(found)["Ready"] == conditions(found)["ContainersReady"] == ("False", reason, "")


def test_a_waiting_container_shows_how_it_ended_before():
    (container,) = written(pod(), RETRYING)["containerStatuses"]
    assert container["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert container["lastState"]["terminated"]["exitCode"] == 3


def test_init_containers_have_ended_and_sidecars_run():
    sidecar = {"name": "s", "image": "proxy", "restartPolicy": "Always"}
    found = written(pod(spec={"initContainers": [{"name": "i", "image": "setup"}, sidecar]}))
    first, second = found["initContainerStatuses"]
    assert first["state"]["terminated"]["reason"] == "Completed"
    assert "running" in second["state"]
    assert written(pod(status=found, spec={"initContainers": [sidecar]}), now=NOW + 9) == {
        **found,
        "initContainerStatuses": found["initContainerStatuses"],
    }


@pytest.mark.parametrize(
    ("given", "grace"),
    [
        (pod(), 30),
        (pod(spec={"terminationGracePeriodSeconds": 5}), 5),
        (pod(spec={"nodeName": ""}), 0),
        (pod(status={"phase": "Succeeded"}), 0),
    ],
)
def test_what_does_not_run_needs_no_grace(given: dict[str, Any], grace: int):
    assert podstatus.termination_grace(given) == grace


@pytest.mark.parametrize(
    ("annotation", "sleep", "expected"), [("5s", 0, 5.0), ("", 3, 3.0), ("soon", 0, 0.0), ("2s", 7, 7.0)]
)
def test_built_in_servers_linger_as_annotated_and_as_pre_stop_sleeps(
    annotation: str, sleep: int, expected: float
):
    hook = {"lifecycle": {"preStop": {"sleep": {"seconds": sleep}}}} if sleep else {}
    given = pod(
        metadata={"annotations": {"testbed/termination-delay": annotation}},
        spec={"containers": [{"name": "c", "image": "nginx", **hook}]},
    )
    assert podstatus.linger(given) == expected


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        (["sleep", "5"], 5.0),
        (["/bin/sh", "-c", "sleep 15"], 15.0),
        (["/bin/sleep", "0.5s"], 0.5),
        (["sh", "-c", "nginx -s quit; sleep 5"], None),
        (["nginx", "-s", "quit"], None),
        ([], None),
    ],
)
def test_a_pre_stop_command_that_only_sleeps_counts_and_others_are_told(
    command: list[str], seconds: float | None
):
    container = {"name": "c", "image": "nginx", "lifecycle": {"preStop": {"exec": {"command": command}}}}
    given = pod(spec={"containers": [container]})
    assert podstatus.linger(given) == (seconds or 0.0)
    assert podstatus.skipped_stop_hooks(given) == ([] if seconds is not None else ["c"])


def test_a_pod_that_its_node_cannot_make_is_being_created():
    found = podstatus.creating(pod(), ["192.168.100.11"], NOW)
    assert (found["phase"], found["hostIP"], "podIP" in found) == ("Pending", "192.168.100.11", False)
    assert [entry["state"] for entry in found["containerStatuses"]] == [
        {"waiting": {"reason": "ContainerCreating"}} for _ in found["containerStatuses"]
    ]
    shown = conditions(found)
    assert (shown["PodScheduled"][0], shown["Initialized"][0]) == ("True", "True")
    assert shown["PodReadyToStartContainers"][0] == "False"
    assert shown["Ready"][:2] == shown["ContainersReady"][:2] == ("False", "ContainersNotReady")


def test_init_containers_come_first_and_are_over_once_the_pod_is_made():
    initial = {"initContainers": [{"name": "i", "image": "setup"}]}
    found = podstatus.creating(pod(spec=initial), ["192.168.100.11"], NOW)
    assert conditions(found)["Initialized"][:2] == ("False", "ContainersNotInitialized")
    (container,) = found["initContainerStatuses"]
    assert container["state"] == {"waiting": {"reason": "PodInitializing"}}
    (container,) = written(pod(status=found, spec=initial))["initContainerStatuses"]
    assert container["state"]["terminated"]["reason"] == "Completed"


def ended(code: int = 0, **more: Any) -> dict[str, Any]:
    return {"state": {"terminated": {"exitCode": code, **more}}, "ready": False}


RUNS: dict[str, Any] = {"state": {"running": {}}, "ready": True}
WAITS = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "ready": False}
COMPLETED = ended(reason="Completed")
ALL_RUN: dict[str, Any] = {"phase": "Running", "containerStatuses": [RUNS]}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}
TWO = pod(spec={"initContainers": [{"name": "i"}, {"name": "j"}]})


def with_init(*initial: dict[str, Any], **more: Any) -> dict[str, Any]:
    named = [{"name": name, **each} for name, each in zip("ij", initial, strict=False)]
    return {"phase": "Pending", "initContainerStatuses": named, **more}


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({}, "Pending"),
        ({"conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}, "SchedulingGated"),
        (podstatus.creating(pod(), ["192.168.100.11"], NOW), "ContainerCreating"),
        (podstatus.creating(TWO, ["192.168.100.11"], NOW), "Init:0/2"),
        (with_init(COMPLETED, {"state": {"waiting": {"reason": "PodInitializing"}}}), "Init:1/2"),
        (with_init(COMPLETED, {"state": {"running": {}}, "started": False}), "Init:1/2"),
        (with_init(WAITS), "Init:CrashLoopBackOff"),
        (with_init(ended(1, reason="Error")), "Init:Error"),
        (with_init(ended(1)), "Init:ExitCode:1"),
        (with_init(ended(137, signal=9)), "Init:Signal:9"),
        (with_init(COMPLETED, {"state": {"running": {}}, "started": True}), "Init:1/2"),
        (ALL_RUN, "Running"),
        ({"phase": "Running", "containerStatuses": [WAITS]}, "CrashLoopBackOff"),
        ({"phase": "Running", "containerStatuses": [{"state": {"waiting": {}}}]}, "Running"),
        ({"phase": "Running", "containerStatuses": [COMPLETED, RUNS], **READY}, "Running"),
        ({"phase": "Running", "containerStatuses": [COMPLETED, RUNS]}, "NotReady"),
        ({"phase": "Running", "containerStatuses": [COMPLETED, WAITS], **READY}, "Completed"),
        ({"phase": "Running", "containerStatuses": [ended(3), RUNS], **READY}, "ExitCode:3"),
        ({"phase": "Running", "containerStatuses": [ended(137, signal=9)]}, "Signal:9"),
    ],
)
def test_lists_show_what_kubectl_shows(found: dict[str, Any], shown: str):
    given = {**TWO, "status": found} if shown.startswith("Init:") else pod(status=found)
    assert pod_status(given) == shown
    metadata = {**given["metadata"], "deletionTimestamp": "now"}
    assert pod_status({**given, "metadata": metadata}) == "Terminating"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ({"phase": "Succeeded", "containerStatuses": [COMPLETED]}, "Completed"),
        ({"phase": "Failed", "containerStatuses": [ended(3)]}, "ExitCode:3"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
    ],
)
def test_a_pod_that_is_over_is_listed_as_it_ended_while_it_is_deleted_too(found: dict[str, Any], shown: str):
    assert pod_status(pod(status=found)) == shown
    assert pod_status(pod(status=found, metadata={"deletionTimestamp": "now"})) == shown


def test_sidecars_are_counted_and_are_no_longer_waited_for_once_they_have_started():
    sidecar = {"name": "s", "image": "proxy", "restartPolicy": "Always"}
    given = pod(spec={"initContainers": [{"name": "i", "image": "setup"}, sidecar]})
    _, shown = columns("Pod")
    assert shown({**given, "status": written(given)})[:2] == ["2/2", "Running"]
    found = written(given)
    found["conditions"] = []
    found["initContainerStatuses"][1]["started"] = False
    assert shown({**given, "status": found})[:2] == ["1/2", "Init:1/2"]
    ended = {**given, "spec": {**given["spec"], "restartPolicy": "Never"}}
    assert shown({**ended, "status": written(ended, DONE)})[0] == "1/2"


def test_a_pod_whose_node_is_lost_is_unknown_once_it_is_deleted():
    found = {"phase": "Running", "reason": "NodeLost", "containerStatuses": [RUNS]}
    assert pod_status(pod(status=found)) == "NodeLost"
    assert pod_status(pod(status=found, metadata={"deletionTimestamp": "now"})) == "Unknown"
