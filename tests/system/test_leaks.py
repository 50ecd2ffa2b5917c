"""The leak check itself: it sees what a test leaves, whatever namespace or session that hides in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from hoststate import HostState, host_state

from testbed.wait import wait_until

STRAY = """
import os, sys, time
if os.fork():
    sys.exit()
os.setsid()
os.execvpe("sleep", ["sleep", "3600"], {})
"""


def test_a_process_that_left_its_session_and_environment_is_seen() -> None:
    before = host_state()
    subprocess.run([sys.executable, "-c", STRAY], check=True)
    try:
        wait_until(lambda: any("sleep 3600" in line for line in stray(before)), 10, "the stray process")
    finally:
        for line in stray(before):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    wait_until(lambda: not host_state().added(before), 10, "the stray process gone")


def stray(before: HostState) -> list[str]:
    return sorted(host_state().processes - before.processes)


def test_namespaces_and_links_of_others_are_none_of_ours() -> None:
    """A namespace is seen while a process of ours is in it."""
    before = host_state()
    unshare = ["unshare", "--user", "--map-root-user", "--net", "sleep", "3600"]
    with subprocess.Popen(unshare) as process:
        try:
            wait_until(
                lambda: (
                    len([line for line in host_state().added(before) if line.startswith("namespaces: ")]) == 2
                ),
                10,
                "its namespaces",
            )
        finally:
            process.kill()
    wait_until(lambda: not host_state().added(before), 10, "everything gone")
