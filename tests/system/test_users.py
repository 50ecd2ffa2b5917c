"""The command line for users without privileges: one made by useradd, and nobody (one id, no home)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from users import NOBODY, SOURCE, as_nobody, as_subordinate_user, become, shared, subordinate_user

__all__ = ["shared", "subordinate_user"]  # fixtures

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: mine}
spec: {nodes: {count: 2}, manifests: [web.yaml]}
"""
WEB = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  replicas: 4
  serviceName: web
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx}]}
"""
PATIENCE = {key: value for key, value in os.environ.items() if key == "TESTBED_PATIENCE"}


class Person:
    """Runs the command line as another user, from a directory of theirs, without a home."""

    def __init__(self, prefix: list[str], place: Path) -> None:
        self.prefix, self.place = prefix, place

    def testbed(self, *words: str, code: int = 0) -> str:
        """What one command says, and its errors where it fails. It must end with ``code``."""
        program = [str(SOURCE / ".venv" / "bin" / "python"), "-m", "testbed"]
        done = subprocess.run(
            [*self.prefix, *program, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.place,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": "/nonexistent",
                "TMPDIR": str(self.place),
                "PYTHONPATH": str(SOURCE),  # the VM lane may see the project elsewhere than it was installed
                **PATIENCE,
            },
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + (done.stderr if code else "")


@pytest.fixture
def folder(shared: Path) -> Path:
    (shared / "spec.yaml").write_text(SPEC)
    (shared / "web.yaml").write_text(WEB)
    return shared


def everything(person: Person) -> None:
    assert "6 of 6 pods running" in person.testbed("up", "spec.yaml")
    pods = json.loads(person.testbed("get", "pods", "-o", "json"))["items"]
    address = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods}
    assert person.testbed("exec", "web-0", "--", "hostname").strip() == "web-0"
    page = person.testbed("exec", "web-0", "--", "curl", "-s", f"http://{address['web-1']}/hostname")
    assert page.strip() == "web-1"
    api = person.testbed("exec", "web-0", "--", "getent", "hosts", "kubernetes.default")
    assert api.split()[0] == "10.96.0.1"
    rows = json.loads(person.testbed("reach", "-o", "json"))["rows"]
    assert [row["verdict"] for row in rows] == ["ok"] * 30
    assert "cni0" in person.testbed("exec", "--node", "node-1", "--", "ip", "-br", "link")
    person.testbed("apply", "-f", "web.yaml")
    person.testbed("down", "mine")
    assert json.loads(person.testbed("ls", "-o", "json")) == []


@as_nobody
def test_as_nobody(folder: Path) -> None:
    everything(Person(become(NOBODY, NOBODY), folder))


@as_subordinate_user
def test_as_a_user_made_by_useradd(folder: Path, subordinate_user: tuple[int, int]) -> None:
    everything(Person(become(*subordinate_user), folder))


@pytest.mark.needs("netem")
@as_subordinate_user
def test_as_a_user_of_a_stock_kernel(folder: Path, subordinate_user: tuple[int, int]) -> None:
    """Who cannot load modules: they are loaded at boot, or by the kernel where it meets their names."""
    (folder / "spec.yaml").write_text(SPEC.replace("spec: {", "spec: {topology: {link: {delay: 1ms}}, "))
    everything(Person(become(*subordinate_user), folder))


@pytest.mark.needs("ipvs", "dummy")
@as_subordinate_user
def test_a_user_is_told_that_ipvs_needs_root(folder: Path, subordinate_user: tuple[int, int]) -> None:
    (folder / "spec.yaml").write_text(SPEC.replace("spec: {", "spec: {network: {proxy: {mode: ipvs}}, "))
    person = Person(become(*subordinate_user), folder)
    told = person.testbed("up", "spec.yaml", code=3)
    assert "ipvs" in told
    assert "only the real root" in told
    assert "sudo" in told
    assert json.loads(person.testbed("ls", "-o", "json")) == []


@as_subordinate_user
def test_clusters_of_two_users_do_not_meet(folder: Path, subordinate_user: tuple[int, int]) -> None:
    for name in ("one", "two"):
        place = folder / name
        place.mkdir()
        place.chmod(0o1777)
        for file in ("spec.yaml", "web.yaml"):
            shutil.copy(folder / file, place)
    first = Person(become(*subordinate_user), folder / "one")
    second = Person(become(NOBODY, NOBODY), folder / "two")
    first.testbed("up", "spec.yaml")
    second.testbed("up", "spec.yaml")
    for person in (first, second):
        rows = json.loads(person.testbed("reach", "-o", "json"))["rows"]
        assert [row["verdict"] for row in rows] == ["ok"] * 30
        person.testbed("down", "mine")
