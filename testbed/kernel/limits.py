"""Limits of the whole machine that no namespace can raise, against what a cluster of some size needs.

Pure but for reading ``/proc``, which tests replace by a folder.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

NEIGHBOURS_PER_POD = 2
"""Tried: with a table of 1,024 entries 512 pods answer: one entry for the pod, one for its gateway."""
MEMORY_PER_POD = 600_000
MEMORY_PER_NODE = 8_000_000
MEMORY_BASE = 100_000_000
"""Bytes. Tried: 0.33 MB of kernel memory a pod, the rest is the agent's and the daemon's share of it."""
DESCRIPTORS_PER_POD = 3
DESCRIPTORS_BASE = 256
"""In one node's agent: a netns and the sockets of its ports; the base for the rest of a process."""
CONNTRACK_PER_POD = 128
CONNTRACK_BASE = 4096
"""Connections of one node: the kernel counts per network namespace, the limit is one for all."""
TERMINALS_PER_HOST = 1
TERMINALS_BASE = 16
"""Mininet keeps a shell on a pseudo-terminal for every node, router and host of the fabric."""
FABRIC_HOSTS = 24
"""Routers, gateway, control plane and outside hosts beside the nodes; a generous guess."""
INOTIFY_INSTANCES = 8
START_BASE, START_PER_NODE, START_PER_POD = 0.4, 0.03, 0.0018
"""Seconds that ``up`` takes on 2 idle cores. Tried: 3 nodes with 30 pods 0.6 s, 20 with 1,000 2.8 s."""
SETUP = "run 'make setup' once (or, as root, 'sysctl --system' after it)"


@dataclass(frozen=True)
class Limit:
    """One limit. have: what the machine allows, None where it does not say; need: what the cluster takes."""

    name: str
    have: int | None
    need: int
    why: str
    fix: str

    @property
    def holds(self) -> bool:
        """Whether the machine allows what is needed; what it does not limit, it allows."""
        return self.have is None or self.have >= self.need


def neighbours_needed(pods: int, nodes: int) -> int:
    """Entries in the machine's one table: the pods', and every node's for its fellows and its gateway."""
    return NEIGHBOURS_PER_POD * pods + nodes * (nodes + 1)


def start_seconds(pods: int, nodes: int) -> float:
    """About how long a cluster takes to start, links without delay."""
    return START_BASE + START_PER_NODE * nodes + START_PER_POD * pods


USER_NAMESPACES: Mapping[str, Callable[[int], bool]] = {
    "user/max_user_namespaces": lambda value: value > 0,
    "kernel/unprivileged_userns_clone": lambda value: value == 1,  # Debian's own
    "kernel/apparmor_restrict_unprivileged_userns": lambda value: value == 0,  # Ubuntu's own
}
"""Below /proc/sys: what has to hold for ordinary users' namespaces; an absent file forbids nothing."""


def namespaces_forbidden_by(proc: Path = PROC) -> tuple[str, ...]:
    """The settings that keep ordinary users from starting clusters, as ``key = value``."""
    found = {key: _number(proc / "sys" / key) for key in USER_NAMESPACES}
    return tuple(
        f"{key.replace('/', '.')} = {value}"
        for key, value in found.items()
        if value is not None and not USER_NAMESPACES[key](value)
    )


def limits(pods: int, nodes: int, proc: Path = PROC) -> tuple[Limit, ...]:
    """Every limit, for a cluster of this many pods and nodes. proc: where ``/proc`` is."""
    hosts, busiest = nodes + FABRIC_HOSTS, -(-pods // max(nodes, 1))
    return (
        *(_neighbours(version, pods, nodes, proc) for version in ("4", "6")),
        Limit(
            "free memory in MB",
            _available_memory(proc),
            round((MEMORY_BASE + MEMORY_PER_NODE * nodes + MEMORY_PER_POD * pods) / 1e6),
            "MemAvailable: for the kernel's objects and the agents",
            "run fewer pods, or on a machine with more memory",
        ),
        Limit(
            "file descriptors",
            _hard_limit(),
            DESCRIPTORS_BASE + DESCRIPTORS_PER_POD * busiest,
            "each pod's netns and sockets are held open by its node's agent",
            "raise the hard limit (ulimit -Hn; /etc/security/limits.conf; LimitNOFILE= of a systemd unit)",
        ),
        Limit(
            "network namespaces",
            _number(proc / "sys/user/max_net_namespaces"),
            pods + hosts + 1,
            "every pod, node and fabric host is one",
            "raise it: sysctl user.max_net_namespaces",
        ),
        Limit(
            "tracked connections",
            _number(proc / "sys/net/netfilter/nf_conntrack_max"),
            CONNTRACK_BASE + CONNTRACK_PER_POD * busiest,
            "a node tracks the connections of its pods",
            "raise it: sysctl net.netfilter.nf_conntrack_max",
        ),
        Limit(
            "pseudo-terminals",
            _free_terminals(proc),
            TERMINALS_BASE + TERMINALS_PER_HOST * hosts,
            "Mininet runs a shell on one for every host of the fabric",
            "raise it: sysctl kernel.pty.max",
        ),
        Limit(
            "inotify instances",
            _number(proc / "sys/fs/inotify/max_user_instances"),
            INOTIFY_INSTANCES,
            "DNS servers watch their files",
            "raise it: sysctl fs.inotify.max_user_instances",
        ),
    )


def _neighbours(version: str, pods: int, nodes: int, proc: Path) -> Limit:
    # Inside a network namespace other than the first the file is not there, and nothing can be said.
    return Limit(
        f"IPv{version} neighbours",
        _number(proc / f"sys/net/ipv{version}/neigh/default/gc_thresh3"),
        neighbours_needed(pods, nodes),
        f"net.ipv{version}.neigh.default.gc_thresh3: entries in a table that all namespaces share",
        SETUP,
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, PermissionError, ValueError):
        return None


def _available_memory(proc: Path) -> int | None:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // 10**6
    except (FileNotFoundError, PermissionError):
        return None
    return None


def _hard_limit() -> int | None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _free_terminals(proc: Path) -> int | None:
    most = _number(proc / "sys/kernel/pty/max")
    if most is None:
        return None
    # The reserve is for the host's own terminals, whatever others take.
    return most - (_number(proc / "sys/kernel/pty/reserve") or 0) - (_number(proc / "sys/kernel/pty/nr") or 0)
