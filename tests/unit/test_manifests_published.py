"""Published applications apply unchanged: the files beside the clone, and what kubectl printed for each."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_all
from testbed.objects.manifests import load_manifests
from testbed.objects.store import Store

FOLDER = Path(os.environ.get("TESTBED_SHARED") or Path(__file__).parents[3] / "shared") / "manifests"
OTHERS = pytest.mark.needs("data:manifests")


def files() -> list[Any]:
    found = [path for path in sorted(FOLDER.glob("*/*.yaml")) if not path.stem.endswith(".expected")]
    return [pytest.param(path, id=path.stem) for path in found] or [pytest.param(FOLDER, id="absent")]


def new_store() -> Store:
    made = Store(ServiceRanges((ip_network("10.96.0.0/12"),)))
    for name in ("default", "kube-system"):
        made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return made


@OTHERS
@pytest.mark.parametrize("path", files())
def test_it_applies_as_kubectl_applied_it(path: Path) -> None:
    store = new_store()
    results = apply_all(store, [manifest.object for manifest in load_manifests([path])])
    assert all(action == "created" for _, _, action in results)
    expected = path.with_suffix(".expected.yaml")
    if expected.exists():
        recorded = yaml.safe_load(expected.read_text())
        # A namespace or storage class of an earlier file was there already when this was recorded.
        lines = [line.rsplit(" ", 1)[0] for line in recorded["apply"]["stdout"].splitlines()]
        assert [f"{kind}/{name}" for kind, name, _ in results] == lines
        for service in recorded["services"]:
            check_service(store, service)


def check_service(store: Store, recorded: Any) -> None:
    (found,) = [one for one in store.list("Service") if one["metadata"]["name"] == recorded["name"]]
    spec = found["spec"]
    assert spec["type"] == recorded["type"]
    assert (spec.get("clusterIP") == "None") == recorded["headless"]
    assert spec.get("ipFamilyPolicy") == recorded["ipFamilyPolicy"]
    ours = [
        {key: value for key, value in port.items() if key != "nodePort"} for port in spec.get("ports", ())
    ]
    theirs = [{key: value for key, value in port.items() if key != "nodePort"} for port in recorded["ports"]]
    assert ours == theirs
