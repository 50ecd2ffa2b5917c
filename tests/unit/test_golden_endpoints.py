"""The endpoint controllers on recorded pods: slices and Endpoints as a real controller manager made them.

The pods are put into the store as recorded, so addresses, nodes and zones are compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.cluster.clock import ManualClock, timestamp
from testbed.cluster.controllers.endpoints import Endpoints
from testbed.cluster.events import Recorder
from testbed.documents import read_documents
from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_one
from testbed.objects.store import Store

CASES = Path(__file__).parents[1] / "golden" / "api"
VALID = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CASES / "valid").glob("*.yaml"))}
ZONES = {"node-1": "zone-a", "node-2": "zone-b", "node-3": "zone-a"}
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
DRAWN = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")

Object = dict[str, Any]


class World:
    """A store with the recorded nodes, and the controller over it."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_800_000_000)
        self.store = Store(
            ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112"))),
            seed=1,
            now=self.clock.now,
        )
        self.controller = Endpoints(self.store, Recorder(self.store, self.clock))
        self.store.subscribe(self.controller.observe)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
        self.store.create(namespace, trusted=True)
        for name, zone in ZONES.items():
            labels = {"topology.kubernetes.io/zone": zone}
            self.store.create(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": name, "labels": labels},
                    "spec": {},
                },
                trusted=True,
            )

    def apply(self, manifest: str, kinds: Iterable[str]) -> None:
        for document in read_documents(manifest, "STDIN"):
            if document.data["kind"] in kinds:
                apply_one(self.store, document.data)

    def put(self, recorded: Object, labels: Object, containers: list[Object]) -> None:
        """A pod as recorded: created, or changed to what is recorded now."""
        name, (ready,) = recorded["name"], recorded["ready"]
        old = self.store.find("Pod", "default", name)
        since = timestamp(self.clock.now())
        if old is not None and old["status"]["conditions"][0]["status"] == ready:
            since = old["status"]["conditions"][0]["lastTransitionTime"]
        spec = {"nodeName": recorded["node"], "containers": containers}
        spec |= {key: recorded[key] for key in ("hostname", "subdomain") if recorded.get(key)}
        status = {
            "phase": "Running",
            "podIPs": [{"ip": recorded["podIP"]}],
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": spec,
            "status": status,
        }
        if old is None:
            self.store.create(pod, trusted=True)
        else:
            self.store.update_status(pod)
        if recorded.get("terminating"):
            self.store.delete("Pod", "default", name, grace=30)
        self.controller.run()

    def listed(self, kind: str, names: set[str]) -> list[Object]:
        """What there is of these services in the recorded form."""
        label = "kubernetes.io/service-name"
        return sorted(
            (
                formed(one)
                for one in self.store.list(kind)
                if (one["metadata"]["labels"].get(label) or one["metadata"]["name"]) in names
            ),
            key=repr,
        )


def formed(obj: Object, *, times: bool = False) -> Object:
    """Without what time and chance put in, and without an order where there is none."""
    metadata = {key: value for key, value in obj["metadata"].items() if key not in DRAWN}
    if "generateName" in metadata:
        metadata["name"] = re.sub("-[bcdfghjklmnpqrstvwxz2456789]{5}$", "-?", metadata["name"])
    annotations = dict(metadata.pop("annotations", {}))
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    if TRIGGER_TIME in annotations:
        annotations[TRIGGER_TIME] = "time"
        if not times:
            del annotations[TRIGGER_TIME]  # there or not is a matter of how many writes it took
    if annotations:
        metadata["annotations"] = annotations
    made: Object = without_uids({**obj, "metadata": metadata})
    if obj["kind"] == "EndpointSlice":
        made["endpoints"] = sorted(made["endpoints"] or (), key=repr) or None
    return made


def without_uids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_uids(one) for key, one in sorted(value.items()) if key != "uid"}
    return [without_uids(one) for one in value] if isinstance(value, list) else value


def containers_of(manifest: str) -> list[Object]:
    """The containers of the pod template in a case's manifest, defaulted."""
    store = World().store
    for document in read_documents(manifest, "STDIN"):
        if "template" in document.data.get("spec", {}):
            apply_one(store, document.data)
            metadata = document.data["metadata"]
            kept = store.get(document.data["kind"], "default", metadata["name"])
            found: list[Object] = kept["spec"]["template"]["spec"]["containers"]
            return found
    return []


@pytest.fixture(scope="module")
def world() -> World:
    """All recorded cases one after the other in one cluster, as they were recorded."""
    made = World()
    for case in VALID.values():
        containers = containers_of(case["manifest"])
        made.apply(case["manifest"], ("Service", "EndpointSlice", "Endpoints"))
        made.controller.run()
        for pod in case["pods"]:
            made.put(pod, pod["labels"], containers)
    return made


@pytest.mark.parametrize("name", VALID)
def test_slices_and_endpoints_of_a_case_are_as_recorded(name: str, world: World) -> None:
    case = VALID[name]
    services = {
        document.data["metadata"]["name"]
        for document in read_documents(case["manifest"], "STDIN")
        if document.data["kind"] == "Service"
    }
    for part, kind in (("endpointSlices", "EndpointSlice"), ("endpoints", "Endpoints")):
        recorded = sorted(map(formed, case[part]), key=repr)
        assert world.listed(kind, services) == recorded


def test_slices_go_through_a_recorded_life() -> None:
    world = World()
    manifest = VALID["deployment-clusterip"]["manifest"]
    world.apply(manifest, ("Service",))
    containers = containers_of(manifest)
    names = set()
    for step in yaml.safe_load((CASES / "lifecycle.yaml").read_text())["steps"]:
        world.clock.advance(4)
        selector = {"service selector changed to app=nothing": {"app": "nothing"}}
        service = world.store.find("Service", "default", "web")
        if step["step"] == "service deleted":
            world.store.delete("Service", "default", "web")
        elif step["step"].startswith("service selector") and service is not None:
            spec = {key: value for key, value in service["spec"].items() if key != "selector"}
            if step["step"] in selector:
                spec["selector"] = selector[step["step"]]
            world.store.update({**service, "spec": spec})
        # The rolling update and the scaling down end with a pod's removal, the others with one's readiness.
        for pod in step["pods"]:
            world.put(pod, {"app": "web"}, containers)
        for pod in world.store.list("Pod"):
            if pod["metadata"]["name"] not in {one["name"] for one in step["pods"]}:
                world.store.delete("Pod", "default", pod["metadata"]["name"])
                if step["step"].startswith("one pod relabelled"):
                    world.controller.run()
        world.controller.run()
        if step["step"].startswith("one pod relabelled"):
            continue  # whether its removal or the new pod came last decides on the annotation
        found = world.store.list("EndpointSlice")
        names |= {one["metadata"]["name"] for one in found}
        assert [formed(one, times=True) for one in found] == [
            formed(one, times=True) for one in step["endpointSlices"]
        ], step["step"]
    assert len(names) == 1, "one slice was kept all along"
    assert world.store.list("Endpoints") == []
