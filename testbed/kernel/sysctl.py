"""Sysctls of the current netns, named by their path below /proc/sys with slashes."""

from __future__ import annotations

from testbed.errors import KernelRefused

_ROOT = "/proc/sys/"


def device(path: str) -> str | None:
    """The device a sysctl belongs to (``net/ipv4/conf/eth0/arp_notify`` → ``eth0``), None if to none."""
    parts = path.split("/")
    if (
        len(parts) == 5
        and parts[0] == "net"
        and parts[2] in ("conf", "neigh")
        and parts[3] not in ("all", "default")
    ):
        return parts[3]
    return None


def read(path: str) -> str:
    """The value, without its newline. Raises KernelRefused."""
    try:
        with open(_ROOT + path) as file:
            return file.read().strip()
    except OSError as error:
        raise KernelRefused(f"read sysctl {path}", error.errno or 0, error.strerror or "") from error


def write(path: str, value: str) -> None:
    """Set the value. Raises KernelRefused."""
    try:
        with open(_ROOT + path, "w") as file:
            file.write(value)
    except OSError as error:
        raise KernelRefused(
            f"set sysctl {path} to {value}", error.errno or 0, error.strerror or ""
        ) from error
