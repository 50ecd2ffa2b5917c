"""What is wrong is refused by the command line with file and path and exit code 2, and nothing is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import Cluster
from testbed.cli.main import main
from testbed.cluster.statedir import list_clusters

GOLDEN = Path(__file__).parents[1] / "golden" / "api" / "invalid"
CASES = sorted(GOLDEN.glob("*.yaml"))
BAD_INPUT = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = tmp_path_factory.mktemp("bad") / "spec.yaml"
    spec.write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: bad-input}\nspec: {nodes: {count: 1}}\n"
    )
    with Cluster.up(spec) as running:
        yield running


def version(cluster: Cluster) -> str:
    return str(cluster.client.get("/api/v1/configmaps")["metadata"]["resourceVersion"])


def apply(cluster: Cluster, file: Path) -> int:
    return main(["-C", cluster.name, "apply", "-f", str(file)])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_each_recorded_refusal(
    path: Path, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case: dict[str, Any] = yaml.safe_load(path.read_text())
    if "before" in case:
        before = tmp_path / "before.yaml"
        before.write_text(case["before"])
        assert apply(cluster, before) == 0
        cluster.settle()
    file = tmp_path / "case.yaml"
    file.write_text(case["manifest"])
    untouched = version(cluster)
    capsys.readouterr()
    assert apply(cluster, file) == BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert str(file) in said.err
    assert "Traceback" not in said.err
    assert version(cluster) == untouched
    if "before" in case:
        assert main(["-C", cluster.name, "delete", "-f", str(before)]) == 0
        cluster.settle()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Cluster\nspec: {nodes: {count: 0}}\n", "spec.nodes.count: must be at least 1"),
        ("apiVersion: testbed/v1\nkind: Cluster\nspec: {nodez: 3}\n", "spec.nodez"),
        ("a: [1\n", "yaml"),
        ("", "spec.yaml"),
        ("a: 1\na: 2\n", "a"),
    ],
)
def test_a_bad_spec_builds_nothing(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(text)
    known = [entry.name for entry in list_clusters()]
    assert main(["up", str(spec), "--name", "never"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert str(spec) in error
    assert said in error
    assert "Traceback" not in error
    assert [entry.name for entry in list_clusters()] == known


def test_a_bad_manifest_of_a_spec_builds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\n"
    )
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: never}\nspec: {manifests: [bad.yaml]}\n"
    )
    assert main(["up", str(spec)]) == BAD_INPUT
    assert "bad.yaml:4: spec.containers: Required value" in capsys.readouterr().err
    assert "never" not in [entry.name for entry in list_clusters()]


@pytest.mark.parametrize(
    "argv",
    [
        ["up", "absent.yaml"],
        ["get", "pods", "-C", "nobody"],
        ["get", "flowers"],
        ["apply", "-f", "/nonexistent.yaml"],
        ["render", "absent.yaml", "--node", "x"],
    ],
)
def test_bad_usage_is_exit_code_2(
    argv: list[str], cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.strip()
    assert "Traceback" not in said
