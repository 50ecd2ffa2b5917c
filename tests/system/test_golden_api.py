"""The recorded answers of a real API server and its controllers against ours (``tests/golden/api``).

Once with a control plane that is only told its pods run, so that every case is compared in no time, and once
on a cluster of real nodes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from golden import CASES, READY, SECTIONS, as_set, by_form, inconsistencies, load, section
from pretended import STARTED, drive, make_plane

from testbed import Cluster
from testbed.api.manifests import path_of
from testbed.cluster.clock import ManualClock
from testbed.cluster.controlplane import ControlPlane
from testbed.documents import read_documents
from testbed.objects.apply import apply_one
from testbed.objects.kinds import BY_NAME
from testbed.wait import wait_until

Object = dict[str, Any]
VALID = {path.stem: load(path) for path in sorted((CASES / "valid").glob("*.yaml"))}
PARTS = [(name, part) for name, case in VALID.items() for part in SECTIONS if part in case]

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: golden}
spec:
  nodes: {count: 3, zones: [zone-a, zone-b]}
  dns: {enabled: false}
"""


def documents(text: str) -> list[Any]:
    return [document.data for document in read_documents(text, "STDIN")]


def compare(name: str, part: str, listing: Callable[[str], list[Object]]) -> list[str]:
    """Where a section of a case is not in a cluster what was recorded."""
    recorded = VALID[name][part]
    ours = section(VALID[name], part, listing)
    if part in ("live", "onePodInFull"):
        return differences(by_form(recorded), by_form(ours), loose=part == "onePodInFull")
    return differences(as_set(recorded), as_set(ours))


def differences(recorded: Any, ours: Any, where: str = "", *, loose: bool = False) -> list[str]:
    """Line by line. loose: the status may say more than the recorder, in the kubelets' place, made it say."""
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = [f"{where}.{key}: absent" for key in sorted(recorded.keys() - ours.keys())]
        if not (loose and where.startswith(".status")):
            found += [f"{where}.{key}: not recorded" for key in sorted(ours.keys() - recorded.keys())]
        for key in sorted(recorded.keys() & ours.keys()):
            found += differences(recorded[key], ours[key], f"{where}.{key}", loose=loose)
        return found
    if isinstance(recorded, list) and isinstance(ours, list) and len(recorded) == len(ours):
        found = []
        for index, pair in enumerate(zip(recorded, ours, strict=True)):
            found += differences(*pair, f"{where}[{index}]", loose=loose)
        return found
    return [] if recorded == ours else [f"{where}: {ours!r} instead of {recorded!r}"]


# --- a pretended cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane() -> ControlPlane:
    made = make_plane()
    drive(made)
    for case in VALID.values():
        printed = [apply_one(made.store, obj) for obj in documents(case["manifest"])]
        assert "".join(f"{kind}/{name} {done}\n" for kind, name, done in printed) == case["apply"]["stdout"]
        drive(made)
    return made


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_pretended_pods_are_as_recorded(name: str, part: str, plane: ControlPlane) -> None:
    wrong = compare(name, part, plane.store.list)
    assert not wrong, "\n".join(wrong)


def test_pretended_endpoints_say_what_is_true_of_their_pods(plane: ControlPlane) -> None:
    assert inconsistencies(plane.store.list) == []


# --- one service and deployment, step by step --------------------------------------------------------------


SECONDS_A_STEP = 4
"""What the recorder took from one to the next; some annotations hold the second of a change."""


class Web:
    """The service and deployment ``web`` and what the recorder did to them."""

    def __init__(self) -> None:
        self.clock = ManualClock(STARTED)
        self.plane = make_plane(clock=self.clock)
        for obj in documents(VALID["deployment-clusterip"]["manifest"]):
            apply_one(self.plane.store, obj)
        self.held: set[str] = set()
        """Pods whose end is put off, by name."""
        self.chosen = ""

    def settle(self) -> None:
        drive(self.plane, self.held)
        self.clock.advance(SECONDS_A_STEP)

    def pods(self) -> list[Object]:
        return self.plane.store.list("Pod", label_selector="app=web")

    def patch(self, kind: str, name: str, patch: Object) -> None:
        self.plane.store.patch_merge(kind, "default", name, patch)

    def scale(self, replicas: int) -> None:
        self.patch("Deployment", "web", {"spec": {"replicas": replicas}})

    def ready(self, ready: bool) -> None:
        self.chosen = self.chosen or self.pods()[0]["metadata"]["name"]
        annotations = {READY: None if ready else "false", "testbed/termination-delay": "30s"}
        self.patch("Pod", self.chosen, {"metadata": {"annotations": annotations}})

    def delete_pod(self) -> None:
        self.held.add(self.chosen)
        self.plane.store.delete("Pod", "default", self.chosen, grace=30)

    def set_image(self) -> None:
        deployment = self.plane.store.get("Deployment", "default", "web")
        template = deployment["spec"]["template"]
        (container,) = template["spec"]["containers"]
        spec = {**template["spec"], "containers": [{**container, "image": "example/web:2"}]}
        self.patch("Deployment", "web", {"spec": {"template": {**template, "spec": spec}}})

    def relabel(self) -> None:
        (pod, *_) = self.pods()
        self.patch("Pod", pod["metadata"]["name"], {"metadata": {"labels": {"app": "other"}}})

    def state(self) -> Object:
        store = self.plane.store
        sets = [one for one in store.list("ReplicaSet") if one["metadata"]["name"].startswith("web-")]
        slices = store.list("EndpointSlice", label_selector="kubernetes.io/service-name=web")
        rows = [
            {
                "name": pod["metadata"]["name"],
                "podIP": pod["status"].get("podIP"),
                "node": pod["spec"].get("nodeName"),
                "terminating": "deletionTimestamp" in pod["metadata"],
                "ready": [one["status"] for one in pod["status"]["conditions"] if one["type"] == "Ready"],
            }
            for pod in self.pods()
        ]
        digest = "pod-template-hash"
        return {
            "pods": as_set(rows),
            "endpointSlices": as_set(slices),
            "replicaSets": as_set(
                {
                    "name": one["metadata"]["name"],
                    "replicas": one["spec"]["replicas"],
                    "hash": one["metadata"]["labels"][digest],
                }
                for one in sets
            ),
        }


STEPS: dict[str, Callable[[Web], object]] = {
    "start": lambda web: None,
    "kubectl scale deploy/web --replicas=5": lambda web: web.scale(5),
    "kubectl scale deploy/web --replicas=2": lambda web: web.scale(2),
    "turns not ready": lambda web: web.ready(False),
    "turns ready again": lambda web: web.ready(True),
    "deleted, still terminating and ready": Web.delete_pod,
    "terminating and no longer ready": lambda web: web.ready(False),
    "gone": lambda web: web.held.clear(),
    "kubectl set image deploy/web c=example/web:2 (rolling update done)": Web.set_image,
    "one pod relabelled app=other": Web.relabel,
    "service selector changed to app=nothing": lambda web: web.patch(
        "Service", "web", {"spec": {"selector": {"app": "nothing"}}}
    ),
    "service selector removed": lambda web: web.patch("Service", "web", {"spec": {"selector": None}}),
    "service deleted": lambda web: web.plane.store.delete("Service", "default", "web"),
}


def test_a_deployment_and_its_service_go_through_their_life_as_recorded() -> None:
    web = Web()
    wrong = []
    for recorded in load(CASES / "lifecycle.yaml")["steps"]:
        name = re.sub(r"^pod web-\S+ ", "", recorded["step"])
        STEPS[name](web)
        web.settle()
        expected = {key: as_set(value) for key, value in recorded.items() if key != "step"}
        wrong += [f"{name}: {line}" for line in differences(expected, web.state())]
        wrong += [f"{name}: {line}" for line in inconsistencies(web.plane.store.list)]
    assert not wrong, "\n".join(wrong)


# --- a real one -------------------------------------------------------------------------------------------


REAL = [name for name in VALID if name != "prefer-dual-stack"]
"""Services of a cluster here have the families of its pods; the recorder had both over IPv4 pods."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("golden")
    (folder / "spec.yaml").write_text(SPEC)
    with Cluster.up(folder / "spec.yaml", name=f"golden-{os.getpid()}") as running:
        for name in REAL:
            case = VALID[name]
            (folder / f"{name}.yaml").write_text(case["manifest"])
            printed = "".join(
                f"{kind}/{word} {done}\n" for kind, word, done in running.apply(folder / f"{name}.yaml")
            )
            assert printed == case["apply"]["stdout"]
        yield running


@pytest.mark.parametrize("name", REAL)
def test_a_cluster_is_as_recorded(name: str, cluster: Cluster) -> None:
    said: list[str] = []

    def listing(kind: str) -> list[Object]:
        items: list[Object] = cluster.client.get(path_of(BY_NAME[kind]))["items"]
        return [{"apiVersion": BY_NAME[kind].api_version, "kind": kind, **item} for item in items]

    def same() -> bool:
        said[:] = inconsistencies(listing)
        for part in SECTIONS:
            if part in VALID[name]:
                said.extend(f"{part}{line}" for line in compare(name, part, listing))
        return not said

    wait_until(same, 10, name, interval=0.1, detail=lambda: "\n".join(said))
