"""The sandbox as root, as a user with subordinate ids, and as nobody, who has one id and no home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from users import NOBODY, SOURCE, as_nobody, as_subordinate_user, become, shared, subordinate_user

__all__ = ["shared", "subordinate_user"]  # fixtures

PROBE = Path(__file__).with_name("sandbox_probe.py")


def probe_as(prefix: list[str], root: Path) -> dict[str, Any]:
    """What the probe found when it ran behind ``prefix`` (setpriv …)."""
    done = subprocess.run(
        [*prefix, sys.executable, str(PROBE), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    assert found["identity"] == [0, 0]
    assert found["links"] == ["lo"]
    assert found["loopback"]
    assert found["processes"] == [1, 2, 3, 4]
    assert found["titles"] == ["testbed-init", "testbed-zygote", "testbed-fabric", "testbed-daemon"]
    assert found["run"] == ["lock", "netns"]
    assert set(found["bridge_calls"]) <= {"0"}
    assert found["terminal"]
    assert found["tools"] == dict.fromkeys(found["tools"], "")


def test_as_the_user_that_runs_the_tests(shared: Path) -> None:
    check(probe_as([], shared / "root"))
    assert list((shared / "root").iterdir()) == []


@as_nobody
def test_as_nobody_with_one_id(shared: Path) -> None:
    found = probe_as(become(NOBODY, NOBODY), shared / "root")
    check(found)
    assert found["ids"] == 1


@as_subordinate_user
def test_as_a_user_with_subordinate_ids(shared: Path, subordinate_user: tuple[int, int]) -> None:
    found = probe_as(become(*subordinate_user), shared / "root")
    check(found)
    assert found["ids"] == 65537


REFUSED = """
import sys
from pathlib import Path
from sandboxed import in_sandbox
from testbed.errors import MissingCapability
try:
    in_sandbox(list, Path(sys.argv[1]))
except MissingCapability as error:
    print(error)
"""


def test_a_kernel_that_refuses_namespaces_lacks_something(tmp_path: Path) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", forbid, "sh", sys.executable, "-c", REFUSED, str(tmp_path / "root")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}:{PROBE.parent}"},
    )
    assert done.stdout.startswith("missing namespaces for a sandbox: "), done.stderr
    assert "sysctl kernel.apparmor_restrict_unprivileged_userns=0" in done.stdout
    assert list((tmp_path / "root").iterdir()) == []
