"""Published applications on a real cluster: each becomes what a real control plane made of it, in 10 s.

A container whose manifest has its first probe wait longer than that is ready after that wait, as anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import by_form

from testbed import Cluster
from testbed.api.manifests import path_of
from testbed.control.workloads import is_ready
from testbed.objects.kinds import BY_NAME
from testbed.wait import wait_until

FOLDER = Path(os.environ.get("TESTBED_SHARED") or Path(__file__).parents[3] / "shared") / "manifests"
SECONDS = 10.0
SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: published}
spec:
  nodes: {count: 3}
  dns: {enabled: false}
"""
Object = dict[str, Any]

pytestmark = pytest.mark.needs("data:manifests")


def files() -> list[Any]:
    found = [path for path in sorted(FOLDER.glob("*/*.yaml")) if not path.stem.endswith(".expected")]
    return [pytest.param(path, id=path.stem) for path in found] or [pytest.param(FOLDER, id="absent")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = tmp_path_factory.mktemp("published") / "spec.yaml"
    spec.write_text(SPEC)
    with Cluster.up(spec, name=f"published-{os.getpid()}") as running:
        yield running


@pytest.mark.parametrize("path", files())
def test_an_application_becomes_what_it_is_on_a_real_cluster(path: Path, cluster: Cluster) -> None:
    expected = path.with_suffix(".expected.yaml")
    recorded = yaml.safe_load(expected.read_text()) if expected.exists() else {"services": [], "pods": {}}
    printed = cluster.apply(path)
    try:
        assert {action for _, _, action in printed} == {"created"}
        if "apply" in recorded:
            # A namespace or storage class of an earlier file was there already when this was recorded.
            lines = [line.rsplit(" ", 1)[0] for line in recorded["apply"]["stdout"].splitlines()]
            assert [f"{kind}/{name}" for kind, name, _ in printed] == lines
        wrong: list[str] = []

        def as_recorded() -> bool:
            wrong[:] = differences(cluster, recorded)
            return not wrong

        deadline = SECONDS + first_probe(cluster.pods())
        wait_until(as_recorded, deadline, path.stem, interval=0.1, detail=lambda: "\n".join(wrong))
    finally:
        cluster.delete(path)
        wait_until(lambda: not cluster.pods(), 60, "the pods of an application gone", interval=0.1)


def first_probe(pods: list[Object]) -> float:
    """The longest that a container of these pods is not asked whether it is ready: seconds."""
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    return max(
        (container.get("readinessProbe", {}).get("initialDelaySeconds", 0) for container in containers),
        default=0,
    )


def differences(cluster: Cluster, recorded: Object) -> list[str]:
    """Where the cluster is not yet, or not at all, what was recorded."""
    pods = cluster.pods()
    wrong = [f"{pod['metadata']['name']} is not ready" for pod in pods if not is_ready(pod)]
    ours = pods_by_owner(cluster, pods)
    wrong += [f"pods {ours} instead of {recorded['pods']}"] * (
        ours != {name: sorted(map(by_form, pods)) for name, pods in recorded["pods"].items()}
    )
    for workload in items(cluster, "Deployment"):
        conditions = workload.get("status", {}).get("conditions") or ()
        if ("Available", "True") not in {(one["type"], one["status"]) for one in conditions}:
            wrong.append(f"deployment {workload['metadata']['name']} is not Available")
    services = {one["metadata"]["name"]: one for one in items(cluster, "Service")}
    for service in recorded["services"]:
        wrong += service_differences(cluster, service, services[service["name"]])
    return wrong


def items(cluster: Cluster, kind: str, selector: str = "") -> list[Object]:
    found: list[Object] = cluster.client.get(path_of(BY_NAME[kind]), labelSelector=selector)["items"]
    return found


def pods_by_owner(cluster: Cluster, pods: list[Object]) -> Object:
    """``Deployment/web`` → its pods by form, as the recorder has them: without the pods of nobody."""
    sets = {one["metadata"]["name"]: one for one in items(cluster, "ReplicaSet")}
    owned: dict[str, list[str]] = {}
    for pod in pods:
        for owner in pod["metadata"].get("ownerReferences") or ():
            if owner["kind"] == "ReplicaSet":
                (owner,) = sets[owner["name"]]["metadata"]["ownerReferences"]
            owned.setdefault(f"{owner['kind']}/{owner['name']}", []).append(by_form(pod["metadata"]["name"]))
    return {name: sorted(names) for name, names in owned.items()}


def service_differences(cluster: Cluster, recorded: Object, service: Object) -> list[str]:
    spec = service["spec"]
    ours = {
        "type": spec["type"],
        "headless": spec.get("clusterIP") == "None",
        "ipFamilyPolicy": spec.get("ipFamilyPolicy"),
        "ipFamilies": spec.get("ipFamilies"),
        "ports": [
            {**port, "nodePort": "(allocated)"} if "nodePort" in port else port
            for port in spec.get("ports") or ()
        ],
        "slices": slices(
            {
                "addressType": one["addressType"],
                "ports": one.get("ports") or [],
                "endpoints": len(one.get("endpoints") or ()),
                "targets": [endpoint["targetRef"]["name"] for endpoint in one.get("endpoints") or ()],
            }
            for one in items(
                cluster, "EndpointSlice", f"kubernetes.io/service-name={service['metadata']['name']}"
            )
        ),
    }
    theirs = {**recorded, "slices": slices(recorded["slices"])}
    return [
        f"service {recorded['name']}: {field} is {ours[field]} instead of {theirs[field]}"
        for field in ours
        if ours[field] != theirs[field]
    ]


def slices(found: Any) -> list[Any]:
    """Slices by form, in an order of their own; the order of ports in one is the controller's chance."""

    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    ordered = [
        {
            **one,
            "ports": sorted(one["ports"] or [], key=text),
            "targets": sorted(map(by_form, one["targets"])),
        }
        for one in found
    ]
    return sorted(ordered, key=text)
