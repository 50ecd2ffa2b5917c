"""The kubelet's part on the real kernel: probes, restarts, graceful ends, a node that dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import Cluster
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: kubelet}
spec:
  nodes: {count: 2}
  kubelet:
    nodeStatusUpdateFrequency: 200ms
    nodeMonitorPeriod: 200ms
    nodeMonitorGracePeriod: 1500ms
    initialContainerRestartPeriod: 1s
    maxContainerRestartPeriod: 2s
"""

Object = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubelet")
    (path / "spec.yaml").write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster.up(folder / "spec.yaml", name=f"kubelet-{os.getpid()}", allow_commands=True) as running:
        yield running


Make = Callable[..., None]


@pytest.fixture
def make(cluster: Cluster, folder: Path) -> Iterator[Make]:
    """Makes a pod of one container called c; the test's pods are gone after it."""
    made: list[str] = []

    def one(name: str, *, metadata: Object | None = None, **spec: Any) -> None:
        """What of ``spec`` is a container's goes there."""
        container = {"name": "c", "image": "nginx", "ports": [{"name": "web", "containerPort": 80}]}
        inner = ("readinessProbe", "livenessProbe", "startupProbe", "command", "image", "ports")
        container |= {key: spec.pop(key) for key in inner if key in spec}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, **(metadata or {})},
            "spec": {"containers": [container], **spec},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(pod))
        cluster.apply(folder / f"{name}.yaml")
        made.append(name)

    yield one
    for name in made:
        if name in pods(cluster):
            cluster.client.delete(path_of(name), gracePeriodSeconds="0")
    cluster.settle()


def path_of(name: str) -> str:
    return f"/api/v1/namespaces/default/pods/{name}"


def get(cluster: Cluster, name: str) -> Object:
    found: Object = cluster.client.get(path_of(name))
    return found


def pods(cluster: Cluster) -> dict[str, Object]:
    return {pod["metadata"]["name"]: pod for pod in cluster.client.get("/api/v1/pods")["items"]}


def container(cluster: Cluster, name: str) -> Object:
    (status,) = get(cluster, name)["status"].get("containerStatuses") or [{}]
    found: Object = status
    return found


def ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def events(cluster: Cluster, name: str) -> dict[str, str]:
    found = cluster.client.get("/api/v1/namespaces/default/events")["items"]
    return {e["reason"]: e["message"] for e in found if e["involvedObject"]["name"] == name}


def until(predicate: Callable[[], object], what: str, deadline: float = 10) -> float:
    return wait_until(lambda: bool(predicate()), deadline, what, interval=0.02)


FAST = {"periodSeconds": 1, "failureThreshold": 1}


# --- probes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "probe", "more"),
    [
        ("http", {"httpGet": {"port": "web", "path": "/healthz"}}, {}),
        ("tcp", {"tcpSocket": {"port": 80}}, {}),
        ("https", {"httpGet": {"port": 8443, "scheme": "HTTPS"}}, {}),
        ("grpc", {"grpc": {"port": 5000}}, {"ports": [{"name": "grpc", "containerPort": 5000}]}),
        ("exec", {"exec": {"command": ["sh", "-c", "test $(hostname) = exec"]}}, {}),
    ],
)
def test_a_pod_is_ready_when_its_probe_succeeds(
    cluster: Cluster, make: Make, name: str, probe: Object, more: Object
) -> None:
    make(name, readinessProbe={**probe, **FAST}, **more)
    until(lambda: ready(get(cluster, name)), f"{name} ready")
    assert "Unhealthy" not in events(cluster, name)


@pytest.mark.parametrize(
    ("name", "probe", "text"),
    [
        ("http-closed", {"httpGet": {"port": 81}}, "connect: connection refused"),
        ("tcp-closed", {"tcpSocket": {"port": 81}}, ":81: connect: connection refused"),
        ("grpc-closed", {"grpc": {"port": 5001}}, "within 1s: context deadline exceeded"),
        ("exec-fails", {"exec": {"command": ["sh", "-c", "echo no; exit 3"]}}, "no"),
    ],
)
def test_a_failing_probe_keeps_a_pod_unready_and_says_why(
    cluster: Cluster, make: Make, name: str, probe: Object, text: str
) -> None:
    make(name, command=["sleep", "60"], readinessProbe={**probe, **FAST})
    until(lambda: "Unhealthy" in events(cluster, name), f"an event about {name}")
    assert events(cluster, name)["Unhealthy"].startswith("Readiness probe failed: ")
    assert text in events(cluster, name)["Unhealthy"]
    pod = get(cluster, name)
    assert not ready(pod)
    (condition,) = (c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    assert condition["message"] == "containers with unready status: [c]"
    assert pod["status"]["phase"] == "Running"


def test_a_probe_that_cannot_be_run_changes_nothing_and_is_tried_again(cluster: Cluster, make: Make) -> None:
    """A host that is no name: Python's encodings refuse it before anything is sent."""
    make("nameless", readinessProbe={"tcpSocket": {"port": 80, "host": "a..b"}, **FAST})

    def tries() -> int:
        found = cluster.client.get("/api/v1/namespaces/default/events")["items"]
        return sum(
            event.get("count", 1)
            for event in found
            if event["involvedObject"]["name"] == "nameless" and event["reason"] == "Unhealthy"
        )

    until(lambda: tries() >= 2, "two tries")
    assert "Readiness probe errored" in events(cluster, "nameless")["Unhealthy"]
    assert not ready(get(cluster, "nameless"))


def test_the_application_sees_the_probe_come_from_the_node(
    cluster: Cluster, make: Make, folder: Path
) -> None:
    script = (
        "import http.server as s\n"
        "class H(s.BaseHTTPRequestHandler):\n"
        "  def do_GET(self):\n"
        "    print(self.client_address[0], self.headers['User-Agent'], flush=True)\n"
        "    self.send_response(200); self.end_headers()\n"
        "s.HTTPServer(('', 8000), H).serve_forever()\n"
    )
    log = folder / "seen"
    command = ["sh", "-c", f'exec /usr/bin/python3 -c "$0" >{log} 2>&1', script]
    make(
        "seen",
        command=command,
        readinessProbe={"httpGet": {"port": 8000}, **FAST},
    )
    until(lambda: ready(get(cluster, "seen")), "the pod ready")
    address, agent = next(line.split() for line in log.read_text().splitlines() if "kube-probe" in line)
    node = cluster.node(get(cluster, "seen")["spec"]["nodeName"])
    assert f" {address}/" in node.run(["ip", "-brief", "address"]).stdout
    assert agent == "kube-probe/1.36"


def test_liveness_restarts_a_container_and_backs_off(cluster: Cluster, make: Make) -> None:
    make("dead", livenessProbe={"exec": {"command": ["false"]}, **FAST, "initialDelaySeconds": 1})
    until(lambda: container(cluster, "dead").get("restartCount", 0) >= 2, "two restarts")
    assert events(cluster, "dead")["Killing"] == "Container c failed liveness probe, will be restarted"
    until(lambda: "waiting" in container(cluster, "dead")["state"], "the back-off")
    waiting = container(cluster, "dead")["state"]["waiting"]
    assert waiting["reason"] == "CrashLoopBackOff"
    assert waiting["message"].startswith("back-off 2s restarting failed container=c pod=dead_default(")
    assert "BackOff" in events(cluster, "dead")
    assert "terminated" in container(cluster, "dead")["lastState"]
    pod = get(cluster, "dead")
    assert not answers(cluster, pod["spec"]["nodeName"], pod["status"]["podIP"])
    until(lambda: "running" in container(cluster, "dead")["state"], "the next run")
    assert answers(cluster, pod["spec"]["nodeName"], pod["status"]["podIP"])


def test_a_startup_probe_holds_the_others_back(cluster: Cluster, make: Make, folder: Path) -> None:
    flag = folder / "started"
    make(
        "slow",
        startupProbe={"exec": {"command": ["test", "-e", str(flag)]}, **FAST, "failureThreshold": 30},
        livenessProbe={"exec": {"command": ["test", "-e", str(flag)]}, **FAST},
    )
    until(lambda: "Unhealthy" in events(cluster, "slow"), "a failing startup probe")
    status = container(cluster, "slow")
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    flag.touch()
    until(lambda: ready(get(cluster, "slow")), "the pod ready")
    assert container(cluster, "slow")["restartCount"] == 0


# --- what ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "policy", "code", "phase"),
    [("well", "OnFailure", 0, "Succeeded"), ("badly", "Never", 3, "Failed")],
)
def test_a_pod_whose_command_ends_is_over(
    cluster: Cluster, make: Make, name: str, policy: str, code: int, phase: str
) -> None:
    make(name, command=["sh", "-c", f"exit {code}"], restartPolicy=policy)
    until(lambda: get(cluster, name)["status"].get("phase") == phase, phase)
    assert container(cluster, name)["state"]["terminated"]["exitCode"] == code


def test_a_command_that_keeps_failing_is_started_again_and_again(cluster: Cluster, make: Make) -> None:
    make("loop", command=["sh", "-c", "exit 1"])
    until(lambda: container(cluster, "loop").get("restartCount", 0) >= 2, "two restarts")
    assert get(cluster, "loop")["status"]["phase"] == "Running"
    assert not ready(get(cluster, "loop"))


# --- readiness by hand --------------------------------------------------------------------------------


def test_forced_readiness_changes_at_once_both_ways(cluster: Cluster, make: Make) -> None:
    make("switched")
    until(lambda: ready(get(cluster, "switched")), "ready")
    for value, expected in (("false", False), (None, True)):
        patch = {"metadata": {"annotations": {"testbed/ready": value}}}
        cluster.client.request(
            "PATCH", path_of("switched"), patch, content_type="application/merge-patch+json"
        )
        took = until(lambda wanted=expected: ready(get(cluster, "switched")) is wanted, f"ready: {expected}")
        assert took < 1


def test_a_readiness_gate_waits_for_its_condition(cluster: Cluster, make: Make) -> None:
    make("gated", readinessGates=[{"conditionType": "lb.example/attached"}])
    until(lambda: get(cluster, "gated")["status"]["phase"] == "Running", "running")
    (condition,) = (c for c in get(cluster, "gated")["status"]["conditions"] if c["type"] == "Ready")
    assert condition["reason"] == "ReadinessGatesNotReady"
    assert "does not exist" in condition["message"]
    pod = get(cluster, "gated")
    pod["status"]["conditions"].append({"type": "lb.example/attached", "status": "True"})
    cluster.client.request("PUT", path_of("gated") + "/status", pod)
    until(lambda: ready(get(cluster, "gated")), "ready")


# --- deletion -----------------------------------------------------------------------------------------


def answers(cluster: Cluster, name: str, address: str) -> bool:
    node = cluster.node(name)
    return node.run(["curl", "-s", "-m", "1", "-o", "/dev/null", f"http://{address}/"]).code == 0


def test_a_deleted_pod_is_gone_at_once_by_default(cluster: Cluster, make: Make) -> None:
    make("brief")
    until(lambda: ready(get(cluster, "brief")), "ready")
    marked = cluster.client.delete(path_of("brief"))
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert until(lambda: "brief" not in pods(cluster), "gone") < 1


def test_a_lingering_pod_answers_until_its_delay_is_over(cluster: Cluster, make: Make) -> None:
    annotations = {"testbed/termination-delay": "1500ms"}
    make("linger", metadata={"annotations": annotations})
    until(lambda: ready(get(cluster, "linger")), "ready")
    pod = get(cluster, "linger")
    cluster.client.delete(path_of("linger"))
    begun = time.monotonic()
    assert "deletionTimestamp" in get(cluster, "linger")["metadata"]
    assert answers(cluster, pod["spec"]["nodeName"], pod["status"]["podIP"])
    until(lambda: "linger" not in pods(cluster), "gone")
    assert 1.4 < time.monotonic() - begun < 4
    assert not answers(cluster, pod["spec"]["nodeName"], pod["status"]["podIP"])


def test_what_ignores_sigterm_is_killed_after_the_grace_period(cluster: Cluster, make: Make) -> None:
    stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
    make("stubborn", command=stubborn)
    until(lambda: ready(get(cluster, "stubborn")), "ready")
    cluster.client.delete(path_of("stubborn"), gracePeriodSeconds="1")
    took = until(lambda: "stubborn" not in pods(cluster), "gone")
    assert 0.9 < took < 4


def test_a_second_deletion_may_shorten_the_grace_period_but_not_lengthen_it(
    cluster: Cluster, make: Make
) -> None:
    make("slow", command=["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    until(lambda: ready(get(cluster, "slow")), "ready")
    first = cluster.client.delete(path_of("slow"), gracePeriodSeconds="600")
    assert cluster.client.delete(path_of("slow")) == first
    assert cluster.client.delete(path_of("slow"), gracePeriodSeconds="601") == first
    second = cluster.client.delete(path_of("slow"), gracePeriodSeconds="1")
    assert second["metadata"]["deletionGracePeriodSeconds"] == 1
    assert second["metadata"]["deletionTimestamp"] < first["metadata"]["deletionTimestamp"]
    until(lambda: "slow" not in pods(cluster), "gone")


def test_a_forced_deletion_does_not_wait(cluster: Cluster, make: Make) -> None:
    make("forced", command=["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    until(lambda: ready(get(cluster, "forced")), "ready")
    cluster.client.delete(path_of("forced"), gracePeriodSeconds="0")
    assert "forced" not in pods(cluster)


# --- a node that dies ---------------------------------------------------------------------------------

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: nginx}]
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
"""


def agent_pid(cluster: Cluster, node: str) -> int:
    """The agent's process, as this machine counts it: by its name among those in the node's netns."""
    netns = cluster.node(node).run(["readlink", "/proc/self/ns/net"]).stdout.strip()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/ns/net") != netns:
                    continue
                if Path(f"/proc/{entry}/comm").read_text().startswith("testbed-agent"):
                    return int(entry)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    raise LookupError(f"no agent of {node}")


def test_a_dead_nodes_pods_are_evicted_and_replaced(folder: Path) -> None:
    (folder / "web.yaml").write_text(WEB)
    name, manifests = f"crash-{os.getpid()}", [folder / "web.yaml"]
    with Cluster.up(folder / "spec.yaml", name=name, manifests=manifests) as cluster:

        def condition() -> str:
            conditions = cluster.client.get("/api/v1/nodes/node-1")["status"]["conditions"]
            (status,) = (c["status"] for c in conditions if c["type"] == "Ready")
            return str(status)

        def standing() -> list[Object]:
            return [pod for pod in cluster.pods("app=web") if "deletionTimestamp" not in pod["metadata"]]

        until(lambda: all(map(ready, standing())), "ready")
        assert {pod["spec"]["nodeName"] for pod in standing()} == {"node-1", "node-2"}
        assert condition() == "True"
        os.kill(agent_pid(cluster, "node-1"), signal.SIGKILL)
        assert until(lambda: condition() == "Unknown", "node-1 unknown") > 1
        taints = cluster.client.get("/api/v1/nodes/node-1")["spec"]["taints"]
        assert {taint["effect"] for taint in taints} == {"NoSchedule", "NoExecute"}
        until(
            lambda: (
                [pod["spec"]["nodeName"] for pod in standing()] == ["node-2"] * 4
                and all(map(ready, standing()))
            ),
            "the pods replaced",
        )
        assert set(cluster.reachability(selector="app=web")["verdict"]) == {"ok"}
        for pod in cluster.pods("app=web"):
            if "deletionTimestamp" in pod["metadata"]:
                cluster.client.delete(path_of(pod["metadata"]["name"]), gracePeriodSeconds="0")
        assert len(cluster.pods("app=web")) == 4
        cluster.settle()
