"""Ending clusters from the host.

SIGKILL to init is the whole of it: the kernel takes everything else away, so there is nothing to do in
order, and nothing that could fail half-way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.cluster import statedir
from testbed.cluster.statedir import ClusterEntry
from testbed.errors import InputError, NotConverged
from testbed.kernel import process
from testbed.wait import wait_until

DEADLINE = 10.0
"""Seconds the kernel may take to end a cluster's processes."""


def down(name: str, deadline: float = DEADLINE, root: Path | None = None) -> float:
    """End cluster ``name`` and remove its directory; returns the seconds it took.

    deadline: seconds. When it returns no process of the cluster runs; the kernel frees the last of the
    network namespaces in the background. One that is gone already is no error. Raises NotConverged,
    InputError for a name that can be none.
    """
    start = time.monotonic()
    entry = statedir.read_entry((root or statedir.root_directory()) / statedir.check_name(name))
    if entry is None:
        return 0.0
    if entry.state != "stale":
        _kill(entry, deadline)
    # A launcher that still waited for it to be ready holds the lock until it has cleaned up.
    wait_until(
        lambda: not statedir.is_locked(entry.directory), deadline, f"the lock of cluster {entry.name!r} free"
    )
    statedir.remove(entry.directory)
    return time.monotonic() - start


def _kill(entry: ClusterEntry, deadline: float) -> None:
    entry = _with_init(entry, deadline)
    pidfd = process.open_pidfd(entry.pid, entry.started_ticks)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not process.wait_pidfd(pidfd, deadline):
            raise NotConverged(f"processes of cluster {entry.name!r} gone", deadline)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _with_init(entry: ClusterEntry, deadline: float) -> ClusterEntry:
    """The entry with the pid of init, which a launcher writes moments after it has made the directory."""
    latest: ClusterEntry | None = entry

    def known() -> bool:
        nonlocal latest
        latest = statedir.read_entry(entry.directory)
        return latest is None or latest.state == "stale" or latest.pid != 0

    if entry.pid == 0:
        wait_until(known, deadline, f"init of cluster {entry.name!r} known")
    return latest or entry


def choose(name: str | None, root: Path | None = None) -> ClusterEntry:
    """The cluster to end: ``name`` in whatever state, or the only one that lives. Raises InputError."""
    entries = statedir.list_clusters(root)
    if name is not None:
        statedir.check_name(name)
        for entry in entries:
            if entry.name == name:
                return entry
        raise InputError(f"no cluster named {name!r}; there are: {_names(entries)}")
    alive = [entry for entry in entries if entry.state != "stale"]
    if len(alive) > 1:
        raise InputError(f"several clusters are running ({_names(alive)}); name one, or use --all")
    if not alive:
        raise InputError("no cluster is running")
    return alive[0]


def _names(entries: Sequence[ClusterEntry]) -> str:
    return ", ".join(entry.name for entry in entries) or "none"
