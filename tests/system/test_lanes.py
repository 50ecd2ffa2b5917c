"""Deferral: what is absent is listed and never passed, and in the VM lane nothing may be deferred."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = """
import pytest

@pytest.mark.needs("netem")
def test_of_the_lane() -> None:
    pass

@pytest.mark.needs("netem")
def test_that_skips_itself() -> None:
    pytest.skip("for a reason of its own")

@pytest.mark.needs("tool:no-such-program")
def test_of_a_tool() -> None:
    pass

def test_of_neither() -> None:
    pass
"""
ABSENT = "import deferral\ndeferral.absence = lambda name: {absent!r} and f'missing {{name}}'\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "deferral.py").write_text((TESTS / "conftest.py").read_text())
    return tmp_path


def run(folder: Path, *options: str, absent: bool) -> tuple[int, str, str]:
    """Exit code, output, and what the deferred file says."""
    (folder / "absent.py").write_text(ABSENT.format(absent=absent))
    deferred = folder / "deferred.txt"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "deferral", "-p", "absent", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*argv, "--deferred-file", str(deferred), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
    )
    return done.returncode, done.stdout, deferred.read_text() if deferred.exists() else ""


def test_what_is_absent_is_on_one_of_two_lists(folder: Path) -> None:
    code, out, deferred = run(folder, absent=True)
    assert code == 0
    assert "1 passed, 3 skipped" in out
    lists = {line.split("\t")[1].split(":")[2]: line.split("\t")[0] for line in deferred.splitlines()}
    assert lists == {
        "test_of_the_lane": "deferred to the VM lane (make test-vm): not run, not passed",
        "test_that_skips_itself": "deferred to the VM lane (make test-vm): not run, not passed",
        "test_of_a_tool": "deferred: not run, not passed",
    }


def test_the_vm_lane_has_the_tests_of_kernel_features_and_no_others(folder: Path) -> None:
    _, out, _ = run(folder, "--lane", "vm", "--collect-only", absent=True)
    assert [line for line in out.splitlines() if "::" in line] == [
        "test_cases.py::test_of_the_lane",
        "test_cases.py::test_that_skips_itself",
    ]


def test_a_feature_that_is_absent_in_the_vm_lane_fails_it(folder: Path) -> None:
    code, out, _ = run(folder, "--lane", "vm", absent=True)
    assert code == 1
    assert out.count("would be deferred, but has to run here: missing netem") >= 2
    assert "skipped" not in out


def test_a_test_that_skips_itself_fails_the_vm_lane(folder: Path) -> None:
    code, out, _ = run(folder, "--lane", "vm", absent=False)
    assert code == 1
    assert "1 passed, 1 skipped" in out
