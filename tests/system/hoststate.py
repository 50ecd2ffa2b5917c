"""What is on the host that a test could have left behind, to be compared before and after it.

Processes are told from those of everybody else by a mark that children inherit, whatever they execute, and
whatever namespaces and sessions they move to: an odd soft limit on RLIMIT_RTTIME, which only real-time
processes ever meet, readable in /proc by anyone. The kernel frees namespaces after the last process has
gone, in its own time; they are named here as long as a process, or a mount of the host, holds them.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

MARK_BASE = 7 * 10**12
"""Microseconds: more than a real-time process would be given, far from what anyone sets."""

NAMESPACES = ("net", "mnt", "pid", "ipc", "uts", "user")


@cache
def mark() -> int:
    """Mark this process, and with it all it starts from now on; returns the mark."""
    value = MARK_BASE + os.getpid()
    resource.setrlimit(resource.RLIMIT_RTTIME, (value, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))
    return value


@dataclass(frozen=True)
class HostState:
    """Each part is a set of lines that name one thing each."""

    links: frozenset[str]
    mounts: frozenset[str]
    processes: frozenset[str]
    namespaces: frozenset[str]

    def added(self, before: HostState) -> list[str]:
        """What is here and was not before."""
        return [
            f"{part.name}: {line}"
            for part in fields(self)
            for line in sorted(getattr(self, part.name) - getattr(before, part.name))
        ]

    def lost(self, before: HostState) -> list[str]:
        """What was before and is not here, processes and their namespaces aside: those may end."""
        return [
            f"{name}: {line}"
            for name in ("links", "mounts")
            for line in sorted(getattr(before, name) - getattr(self, name))
        ]


COMINGS_AND_GOINGS = ("dnsmasq --keep-in-foreground --conf-file=/run/dns/", "testbed-checker")
"""What a cluster runs when it comes to it: DNS servers, of which new ones answer changed names, and, from its
first load balancer on, the one who checks nodes' health."""


def host_state(known: frozenset[str] = frozenset()) -> HostState:
    """The state now, as seen from this process, which has to be in the host's namespaces.

    known: namespaces that were there before; COMINGS_AND_GOINGS in such a PID namespace belong to a cluster
    that goes on, and are not counted.
    """
    processes, namespaces = [], set[str]()
    for pid in marked_processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            held = namespaces_of(pid)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile; of a zombie the namespaces are gone
        its_own = any(each in command for each in COMINGS_AND_GOINGS)
        if its_own and any(name.startswith("pid:") for name in held & known):
            continue
        processes.append(f"{pid} {command.strip()}")
        namespaces |= held
    return HostState(
        links=frozenset(name for _, name in socket.if_nameindex()),
        # Without the first two fields, numbers that say nothing by themselves.
        mounts=frozenset(
            line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ),
        processes=frozenset(processes),
        namespaces=frozenset(namespaces - namespaces_of(os.getpid())),
    )


def namespaces_of(pid: int) -> set[str]:
    """As ``net:[4026532247]``."""
    return {os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}


def marked_processes() -> Iterator[int]:
    """Processes that descend from this one, in whatever namespaces; zombies are not counted."""
    wanted = str(mark())
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or directory.name == str(os.getpid()):
            continue
        try:
            limits = (directory / "limits").read_text()
            state = (directory / "stat").read_bytes().rpartition(b")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        line = next(line for line in limits.splitlines() if line.startswith("Max realtime timeout"))
        if line.split()[3] == wanted and state not in (b"Z", b"X"):
            yield int(directory.name)
