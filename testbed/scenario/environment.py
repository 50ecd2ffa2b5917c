"""What a result depends on and nobody remembers later: machine, kernel, versions, limits."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = (
    "aiohttp",
    "mininet",
    "msgspec",
    "numpy",
    "pandas",
    "pyarrow",
    "pyroute2",
    "scapy",
)
_TOOLS: Final = {
    "ip": ("ip", "-V"),
    "iptables": ("iptables", "--version"),
    "nft": ("nft", "--version"),
    "ping": ("ping", "-V"),
    "dnsmasq": ("dnsmasq", "--version"),
}
_LIMITS: Final = ("neigh/default/gc_thresh1", "neigh/default/gc_thresh2", "neigh/default/gc_thresh3")


def environment() -> dict[str, Any]:
    """Everything about this machine and installation, as plain data."""
    name = platform.uname()
    return {
        "testbed": {"version": _version("testbed"), "commit": git_commit(Path(__file__).parent)},
        "kernel": {"release": name.release, "version": name.version, "machine": name.machine},
        "distribution": _distribution(),
        "python": sys.version.split()[0],
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "governor": _governor()},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": list(os.getloadavg()),
        "user_id": os.geteuid(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "tools": {tool: _first_line(argv) for tool, argv in _TOOLS.items()},
        "limits": {
            f"net.ipv4.{limit.replace('/', '.')}": _read(Path("/proc/sys/net/ipv4", limit))
            for limit in _LIMITS
        },
    }


def git_commit(folder: Path) -> str | None:
    """The commit a working tree is at, with ``+changes`` where it differs; None outside of one."""
    commit = _output(("git", "-C", str(folder), "rev-parse", "HEAD"))
    if not commit:
        return None
    changed = _output(("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"))
    return commit + ("+changes" if changed else "")


def _output(argv: Iterable[str]) -> str | None:
    words = list(argv)
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _first_line(argv: Iterable[str]) -> str | None:
    text = _output(argv)
    return text.splitlines()[0] if text else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _cpu_model() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.processor()


def _governor() -> str | None:
    return _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
