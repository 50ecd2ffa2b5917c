from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pretended import drive, make_plane

from testbed.documents import read_documents
from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_all
from testbed.objects.saved import format_documents, saved
from testbed.objects.store import Store

CASES = sorted((Path(__file__).parents[1] / "golden" / "api" / "valid").glob("*.yaml"))


def read(text: str) -> list[Any]:
    return [document.data for document in read_documents(text, "saved.yaml")]


def fresh_store() -> Store:
    made = Store(ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112"))), seed=7)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return made


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_was_saved_makes_the_same_objects_again(path: Path) -> None:
    """Applied, run, saved, loaded elsewhere, saved again: the same text, and nothing that nobody applied."""
    applied = read(yaml.safe_load(path.read_text())["manifest"])
    plane = make_plane()
    apply_all(plane.store, applied)
    drive(plane)
    text = format_documents(saved(plane.store.everything()))
    names = sorted((obj["kind"], obj["metadata"]["name"]) for obj in applied)
    assert sorted((obj["kind"], obj["metadata"]["name"]) for obj in read(text)) == names
    for word in ("uid", "resourceVersion", "last-applied", "creationTimestamp"):
        assert f"{word}:" not in text
    again = fresh_store()
    apply_all(again, read(text))
    assert format_documents(saved(again.everything())) == text
    for one in plane.store.list("Service"):
        assert again.get("Service", "default", one["metadata"]["name"])["spec"] == one["spec"]


def test_a_pod_is_saved_as_it_was_written() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "shop", "labels": {"app": "p"}},
        "spec": {
            "containers": [
                {"name": "c", "image": "nginx:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}}}
    plane = make_plane()
    apply_all(plane.store, [namespace, pod])
    drive(plane)
    first, second = saved(plane.store.everything())
    assert first == namespace
    assert second["metadata"] == pod["metadata"]
    assert second["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert [mount["name"] for mount in second["spec"]["containers"][0]["volumeMounts"]] == ["v"]
    assert "nodeName" not in second["spec"]
    applied = {**pod, "metadata": {"name": "q"}, "spec": {**pod["spec"], "nodeName": "node-2"}}
    apply_all(plane.store, [applied])
    drive(plane)
    placed = {one["metadata"]["name"]: one["spec"].get("nodeName") for one in saved(plane.store.list("Pod"))}
    assert placed == {"p": None, "q": "node-2"}


@pytest.mark.parametrize(
    "text",
    ["1e3", "0o17", "0x1f", "yes", "null", "~", "", "1_000", "12:30:45", "2026-01-01", "=", "<<", "a: b", "#",
     " x", "x ", "two\nlines\n", "tab\there", "trailing \nspace", "\n", "é", "a\nb", "007", ".5", "Off", "-"],
)  # fmt: skip
def test_a_text_stays_the_text_it_is(text: str) -> None:
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"key": text}}
    assert read(format_documents([data])) == [data]
