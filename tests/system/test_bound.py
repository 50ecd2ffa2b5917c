"""A bound cluster ends with the process that it belongs to, by SIGKILL too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from testbed.cluster import statedir
from testbed.kernel import process

ROOT = Path(__file__).parents[2]
OWNER = """
import sys, time
from testbed import Cluster
cluster = Cluster.up(sys.argv[1], name=sys.argv[2], bound=True)
print("up", flush=True)
sys.stdin.read()
"""


def test_sigkill_of_its_owner_ends_a_bound_cluster() -> None:
    name = f"bound-{os.getpid()}"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(ROOT / "topologies/one-node.yaml"), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout
        assert owner.stdout.readline() == "up\n"
        entry = statedir.resolve(name)
        init = process.open_pidfd(entry.pid, entry.started_ticks)
        assert init is not None
        owner.send_signal(signal.SIGKILL)
        assert process.wait_pidfd(init, 10)
        os.close(init)
    finally:
        owner.kill()
        owner.communicate()
        statedir.clean_stale()
    assert not any(each.name == name for each in statedir.list_clusters())
