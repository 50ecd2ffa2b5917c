"""Manifests as files, directories, lists; and problems that point into them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.documents import format_path
from testbed.errors import InputError
from testbed.objects.apply import apply_all, parse_path, problems_for
from testbed.objects.manifests import load_manifests
from testbed.objects.status import ApiError
from testbed.objects.store import Store

CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n"


def names(paths: list[Any]) -> list[str]:
    return [manifest.object["metadata"]["name"] for manifest in load_manifests(paths)]


def test_documents_in_order_and_empty_ones_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("---\n# nothing\n---\n" + CONFIG % "one" + "---\n\n---\n" + CONFIG % "two" + "---\n")
    assert names([file]) == ["one", "two"]


def test_a_directory_gives_all_below_it_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "z.yml").write_text(CONFIG % "z")
    (tmp_path / "sub" / "a.yaml").write_text(CONFIG % "a")
    (tmp_path / "b.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}})
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert names([tmp_path]) == ["b", "a", "z"]


def test_lists_are_unpacked_and_know_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: one}\n"
        "- apiVersion: v1\n  kind: ConfigMapList\n  items:\n  - metadata:\n      name: two\n"
    )
    one, two = load_manifests([file])
    assert two.object == {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "two"}}
    assert [manifest.problem(("metadata", "name"), "x").line for manifest in (one, two)] == [6, 11]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.BytesIO((CONFIG % "piped").encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=text))
    (manifest,) = load_manifests(["-"])
    assert manifest.problem((), "x").file == "STDIN"


def test_every_file_is_read_before_anything_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("just text\n")
    (tmp_path / "b.yaml").write_text("kind: Pod\n")
    (tmp_path / "c.yaml").write_text("a: [\n")
    with pytest.raises(InputError) as error:
        load_manifests([tmp_path, tmp_path / "absent.yaml"])
    files = [Path(problem.file).name for problem in error.value.problems]
    assert sorted(files) == ["a.yaml", "absent.yaml", "b.yaml", "c.yaml"]


@pytest.mark.parametrize(
    "path",
    [(), ("spec",), ("spec", "ports", 0, "name"), ("metadata", "labels", "a.b/c"), ("items", 2, "spec", 1)],
)
def test_a_path_is_read_as_it_is_written(path: tuple[str | int, ...]) -> None:
    assert parse_path(format_path(path)) == path


BAD = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ports:
  - port: 0
    targetPort: 80
    protocoll: TCP
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fine}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: nowhere}
spec:
  replicas: -1
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      containers: [{name: c, image: i}]
---
apiVersion: v1
kind: Pot
metadata: {name: p}
"""


def test_everything_wrong_in_a_batch_is_found_at_once_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    store = Store()
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    before = list(store.everything())
    manifests = load_manifests([file])
    with pytest.raises(ApiError) as refused:
        apply_all(store, [manifest.object for manifest in manifests])
    for refusal in (refused.value, refused.value.status):
        problems = problems_for(manifests, refusal)
        assert [(problem.line, problem.path) for problem in problems] == [
            (8, "spec.ports[0].protocoll"),
            (6, "spec.ports[0].port"),
            (14, ""),
            (18, "spec.replicas"),
            (25, ""),
        ]
        assert problems[2].message == 'namespaces "nowhere" not found'
        assert problems[4].message == 'no matches for kind "Pot" in version "v1"'
    assert list(store.everything()) == before


def test_a_namespace_may_come_after_what_is_in_it() -> None:
    store = Store()
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
    ]
    assert apply_all(store, objects) == [("configmap", "c", "created"), ("namespace", "n", "created")]


def deployment(**spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    whole = {"selector": {"matchLabels": {"a": "b"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": whole}


def test_applying_changes_what_is_said_and_takes_back_what_no_longer_is() -> None:
    store = Store()
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    first = deployment(replicas=3, minReadySeconds=5)
    first["metadata"]["labels"] = {"mine": "1", "also": "2"}
    apply_all(store, [first])
    store.patch_merge("Deployment", "default", "d", {"metadata": {"labels": {"theirs": "3"}}})
    second = deployment(replicas=4)
    second["metadata"]["labels"] = {"mine": "1"}
    assert apply_all(store, [second]) == [("deployment.apps", "d", "configured")]
    stored = store.get("Deployment", "default", "d")
    assert stored["metadata"]["labels"] == {"mine": "1", "theirs": "3"}
    assert stored["spec"]["replicas"] == 4
    assert "minReadySeconds" not in stored["spec"]
    assert stored["spec"]["revisionHistoryLimit"] == 10, "a default stays"


def test_containers_are_merged_by_name() -> None:
    store = Store()
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    first = deployment()
    containers = [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]
    first["spec"]["template"]["spec"]["containers"] = containers
    apply_all(store, [first])
    second = deployment()
    second["spec"]["template"]["spec"]["containers"] = [{"name": "b", "image": "b:2"}]
    apply_all(store, [second])
    (left,) = store.get("Deployment", "default", "d")["spec"]["template"]["spec"]["containers"]
    assert (left["name"], left["image"], left["terminationMessagePolicy"]) == ("b", "b:2", "File")
