"""What real controllers (v1.36.2) made of these manifests: statuses, owned objects, pods.

Recorded in tests/golden/api; what chance and time put in is compared by its form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden import CASES, as_set, by_form, load, pods_of, section
from pretended import drive, make_plane

from testbed.cluster.controlplane import ControlPlane
from testbed.documents import read_documents
from testbed.objects.apply import apply_one

KINDS = {"Deployment", "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job"}


def cases() -> list[Any]:
    paths = sorted((CASES / "valid").glob("*.yaml"))
    mine = [path for path in paths if KINDS & {obj["kind"] for obj in load(path)["live"]}]
    return [pytest.param(path, id=path.stem) for path in mine]


def applied(case: Any) -> ControlPlane:
    plane = make_plane()
    for document in read_documents(case["manifest"], "STDIN"):
        apply_one(plane.store, document.data)
    drive(plane)
    return plane


@pytest.mark.parametrize("path", cases())
@pytest.mark.parametrize("name", ["live", "owned"])
def test_workloads_and_what_they_own_are_the_recorded_ones(path: Path, name: str) -> None:
    case = load(path)
    plane = applied(case)
    wanted = [obj for obj in case.get(name) or () if name == "owned" or obj["kind"] in KINDS]
    ours = section(case, name, plane.store.list)
    ours = [obj for obj in ours if name == "owned" or obj["kind"] in KINDS]
    assert by_form(ours) == by_form(wanted)
    for obj, recorded in zip(ours, wanted, strict=True):
        kinds = [entry["type"] for entry in recorded.get("status", {}).get("conditions", ())]
        assert [entry["type"] for entry in obj.get("status", {}).get("conditions", ())] == kinds


@pytest.mark.parametrize("path", cases())
def test_pods_are_the_recorded_ones_but_for_their_status(path: Path) -> None:
    case = load(path)
    plane = applied(case)
    assert as_set(section(case, "pods", plane.store.list)) == as_set(case["pods"])
    recorded = by_form(case["onePodInFull"])
    (alike,) = [
        by_form(pod)
        for pod in pods_of(case, plane.store.list)
        if by_form(pod)["metadata"]["name"] == recorded["metadata"]["name"]
    ][:1]
    for part in ("metadata", "spec"):
        assert alike[part] == recorded[part]
