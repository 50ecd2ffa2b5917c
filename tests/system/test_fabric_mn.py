"""Our node classes under plain Mininet: ``mn --custom FILE --topo NAME``.

``mn`` writes host-wide sysctls where it may. It runs in a user namespace of somebody who may not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from users import NOBODY, become

from testbed.topology import topologies

ROOT = Path(__file__).parents[2]
ROUTED = ROOT / "tests" / "cases" / "fabric" / "routed.py"
pytestmark = pytest.mark.needs("userns", *(["user:others"] if os.geteuid() == 0 else []))


def mn(arguments: Sequence[str]) -> str:
    """What ``mn`` prints, in namespaces of its own and without a right on the host."""
    inner = 'mount -t tmpfs tmpfs /run; sysctl -q -w net.bridge.bridge-nf-call-iptables=0; exec "$@"'
    done = subprocess.run(
        [
            *(become(NOBODY, NOBODY) if os.geteuid() == 0 else ()),
            *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"),
            *("sh", "-c", inner, "sh", sys.executable, "/usr/bin/mn", "--controller=none", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def test_a_users_file_with_our_node_classes_is_configured_by_itself() -> None:
    text = mn([f"--custom={ROUTED}", "--topo=routed", "--test=pingall"])
    assert "*** Results: 0% dropped (12/12 received)" in text


@pytest.mark.parametrize("name", [*topologies])
def test_every_builder_runs_under_plain_mininet(name: str) -> None:
    file = ROOT / "testbed" / "topology" / f"{name}.py"
    text = mn([f"--custom={file}", f"--topo={name}", "--switch=lxbr", "--test=pingall"])
    assert "*** Results: 0% dropped" in text
