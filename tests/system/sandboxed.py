"""For tests: sandboxes with a stand-in for the daemon, and what of a sandbox is still on the host."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.cluster import launcher, lifecycle
from testbed.cluster.launcher import DaemonContext

NAMESPACES = ("net", "mnt", "pid", "ipc", "uts")


def idle_fabric(sock: socket.socket) -> None:
    """A fabric that does nothing until the daemon is gone."""
    sock.recv(1)


def idle_daemon(context: DaemonContext) -> None:
    """A daemon that is ready at once and does nothing until it is killed."""
    context.ready({})
    wait_for_the_end()


def wait_for_the_end() -> None:
    while True:
        signal.pause()


@contextmanager
def running(
    root: Path, name: str = "demo", daemon: Callable[[DaemonContext], None] = idle_daemon
) -> Iterator[dict[str, Any]]:
    """A sandbox; yields the daemon's report."""
    try:
        yield launcher.launch(name, daemon=daemon, fabric=idle_fabric, info={}, deadline=20, root=root)
    finally:
        lifecycle.down(name, root=root)


def in_sandbox(function: Callable[[], Any], root: Path) -> Any:
    """What ``function`` returns (JSON), called in a sandbox; its exception comes as a TestbedError."""

    def daemon(context: DaemonContext) -> None:
        context.ready({"result": function()})
        wait_for_the_end()

    with running(root, daemon=daemon) as report:
        return report["result"]


def namespaces_of(pid: int) -> set[str]:
    """The namespaces of a process that are not this one's, as ``net:[4026531840]``."""
    return {
        link
        for kind in NAMESPACES
        if (link := os.readlink(f"/proc/{pid}/ns/{kind}")) != os.readlink(f"/proc/self/ns/{kind}")
    }


def users_of(namespaces: set[str]) -> set[int]:
    """The pids of processes in any of ``namespaces``; one that has ended and is not reaped is in none."""
    users = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and namespaces & _links(f"/proc/{entry.name}/ns"):
            users.add(int(entry.name))
    return users


def _links(directory: str) -> set[str]:
    try:
        return {os.readlink(f"{directory}/{kind}") for kind in NAMESPACES}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
