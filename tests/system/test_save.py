"""``testbed save`` and ``load``: what one cluster was given makes the same one again, or nothing at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden import CASES, load

from testbed import Cluster

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: saved}
spec: {nodes: {count: 3}, dns: {enabled: false}}
"""
APPLIED = ("deployment-clusterip", "statefulset-headless", "loadbalancer-local", "selectorless-manual-slice")


def run_testbed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "testbed.cli.main", *words], capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    for name in APPLIED:
        (tmp_path / f"{name}.yaml").write_text(load(CASES / "valid" / f"{name}.yaml")["manifest"])
    return tmp_path


def test_a_saved_cluster_is_loaded_into_another_whole_or_not_at_all(folder: Path) -> None:
    first, again, broken = (str(folder / name) for name in ("first.yaml", "again.yaml", "broken.yaml"))
    with Cluster.up(folder / "spec.yaml", name=f"save-one-{os.getpid()}") as one:
        applied = one.apply(*(folder / f"{name}.yaml" for name in APPLIED))
        one.settle()
        pods = len(one.pods())
        services = addresses(one)
        done = run_testbed("-C", one.name, "save", first)
        assert (done.returncode, done.stdout) == (0, f"{len(applied)} objects saved in {first}\n"), (
            done.stderr
        )
        assert run_testbed("-C", one.name, "save", "-").stdout == Path(first).read_text()
    with Cluster.up(folder / "spec.yaml", name=f"save-two-{os.getpid()}") as two:
        Path(broken).write_text(Path(first).read_text().replace("replicas: 3", "replicas: -3"))
        refused = run_testbed("-C", two.name, "load", broken)
        assert refused.returncode == 2
        assert "replicas: Invalid value: -3" in refused.stderr
        assert two.pods() == []
        loaded = run_testbed("-C", two.name, "load", first)
        assert sorted(loaded.stdout.splitlines()) == sorted(
            f"{kind}/{name} created" for kind, name, _ in applied
        )
        two.wait(ready="", namespace="", timeout=10)
        two.settle()
        assert len(two.pods()) == pods
        assert addresses(two) == services
        run_testbed("-C", two.name, "save", again)
        assert Path(again).read_text() == Path(first).read_text()
        unwritable = run_testbed("-C", two.name, "save", str(folder / "absent" / "file.yaml"))
        assert (unwritable.returncode, unwritable.stderr.endswith("No such file or directory\n")) == (2, True)


def addresses(cluster: Cluster) -> dict[str, tuple[list[str], list[int]]]:
    items = cluster.client.get("/api/v1/namespaces/default/services")["items"]
    return {
        item["metadata"]["name"]: (
            item["spec"].get("clusterIPs", []),
            [port.get("nodePort", 0) for port in item["spec"]["ports"]],
        )
        for item in items
    }
