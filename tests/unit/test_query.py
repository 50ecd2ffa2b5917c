"""How commands read which objects are meant, and apply and delete by file, with a client that has a store."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from testbed.api.client import Client, RequestFailed
from testbed.api.manifests import apply, delete, path_of
from testbed.cli import main, query
from testbed.errors import InputError
from testbed.objects import kinds

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s%s}\n"


class FakeClient(Client):
    """Knows pods a and b in the namespace default, and writes down what was asked of it."""

    def __init__(self) -> None:
        super().__init__(Path("none"))
        self.asked: list[str] = []
        self.posted: list[Any] = []
        self.here = {f"/api/v1/namespaces/default/pods/{name}" for name in "ab"}

    def request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        self.asked.append(f"{method} {path}")
        self.posted.append(body)
        if method == "POST":
            return {"results": []}
        if path.endswith("/pods"):
            return {"items": [{"metadata": {"name": name, "namespace": "default"}} for name in "ab"]}
        if path not in self.here:
            raise RequestFailed({"code": 404, "reason": "NotFound", "message": f"no {unquote(path)}"})
        if method == "DELETE":
            self.here.remove(path)
        return {"metadata": {"name": path[-1], "namespace": "default"}}


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def found(client: Client, *words: str, **more: Any) -> list[str]:
    options = {name: more.pop(name, "") for name in ("namespace", "selector", "all_namespaces")}
    args = argparse.Namespace(what=list(words), **options)
    return [f"{kind.printed}/{obj['metadata']['name']}" for kind, obj in query.objects(client, args, **more)]


@pytest.mark.parametrize("words", [("pods",), ("pod", "a", "b"), ("pod/a", "po/b"), ("Pods",)])
def test_objects_are_named_as_for_kubectl(client: FakeClient, words: tuple[str, ...]) -> None:
    assert found(client, *words) == ["pod/a", "pod/b"]


def test_all_is_kubectls_category() -> None:
    named = [kind.kind for kind, _ in query.wanted(["all"])]
    assert named[:3] == ["Pod", "ReplicationController", "Service"]
    assert "ConfigMap" not in named


@pytest.mark.parametrize("words", [("pod", ""), ("pod/",), ("/a",), ("pod/a/b",), ("pod/a", "b"), ("",), ()])
def test_half_a_name_is_bad_usage_before_anything_is_asked(
    client: FakeClient, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError):
        found(client, *words)
    assert client.asked == []


def test_a_name_goes_with_no_selector(client: FakeClient) -> None:
    with pytest.raises(InputError, match="neither -l nor -A"):
        found(client, "pod", "a", selector="app=web")


def test_a_named_object_that_is_missing_can_be_left_out(client: FakeClient) -> None:
    with pytest.raises(RequestFailed):
        found(client, "pod", "a", "missing", "b")
    assert found(client, "pod", "a", "missing", "b", ignore_missing=True) == ["pod/a", "pod/b"]


def test_names_stay_one_part_of_a_path() -> None:
    pod = kinds.by_word("pod")
    assert pod is not None
    assert path_of(pod, "a b", "../x?y") == "/api/v1/namespaces/a%20b/pods/..%2Fx%3Fy"


def test_a_namespace_is_for_the_objects_that_name_none(client: FakeClient, tmp_path: Path) -> None:
    file = tmp_path / "pods.yaml"
    namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n"
    file.write_text(POD % ("a", "") + "---\n" + POD % ("b", ", namespace: shop") + namespace)
    apply(client, [file], namespace="shop")
    placed = [obj["metadata"].get("namespace") for obj in client.posted[0]["objects"]]
    assert placed == ["shop", "shop", None]
    with pytest.raises(InputError, match=r'pods\.yaml:7: .*"shop" does not match -n web'):
        apply(client, [file], namespace="web")


def test_deleting_by_file_goes_on_after_what_is_missing_and_says_so(
    client: FakeClient, tmp_path: Path
) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text("---\n".join(POD % (name, "") for name in ("a", "missing", "b")))
    gone: list[tuple[str, str]] = []
    with pytest.raises(InputError, match=r"pods\.yaml:7: metadata\.name: no .*missing"):
        gone.extend(delete(client, [file], ignore_missing=False))
    assert client.here == set()
    assert list(delete(client, [file], ignore_missing=True)) == []


def test_deleting_by_file_needs_names(client: FakeClient, tmp_path: Path) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text(POD % ("a", "") + "---\napiVersion: v1\nkind: Pod\nmetadata: {generateName: b-}\n")
    with pytest.raises(InputError, match=r"pods\.yaml:7: metadata\.name: must be given"):
        list(delete(client, [file], ignore_missing=True))
    assert client.asked == []


def actions(
    parse: Callable[[list[str]], object], command: list[str], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The help of a command, or of each of its actions where it has some."""
    with pytest.raises(SystemExit):
        parse([*command, "--help"])
    text = capsys.readouterr().out
    if not re.search(r" (ACTION|PART) \.\.\.", text):
        return [text]
    names = re.findall(r"^    ([a-z]+) ", text, re.MULTILINE)
    assert names
    return [words for name in names for words in actions(parse, [*command, name], capsys)]


@pytest.mark.parametrize(
    "command", [name for name in main.COMMANDS if name not in ("exec", "capture", "shell", "save")]
)
def test_every_command_that_prints_a_result_can_print_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in actions(main.build_parser([command]).parse_args, [command], capsys):
        assert "--output {" in words
        assert "json" in words.partition("--output {")[2].partition("}")[0]
        assert "``" not in words
