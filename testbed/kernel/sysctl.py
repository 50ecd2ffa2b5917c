"""Sysctls of the current netns, named by their path below /proc/sys with slashes."""

from __future__ import annotations

import os

from testbed.errors import KernelRefused

_ROOT = "/proc/sys/"

TICK_MILLISECONDS = 1000 // os.sysconf("SC_CLK_TCK")
"""What some times below net/ipv4/neigh are counted in."""


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


def exchange(path: str, value: str) -> str:
    """Set the value, and return the one before; raises KernelRefused where it can not be read, too.

    By one look-up: the kernel looks a name up among those of all netns, slower with every pod.
    """
    try:
        file = os.open(_ROOT + path, os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.pread(file, os.sysconf("SC_PAGESIZE"), 0).decode().strip()
            os.pwrite(file, value.encode(), 0)  # elsewhere than at the beginning it is ignored
        finally:
            os.close(file)
    except OSError as error:
        raise KernelRefused(
            f"set sysctl {path} to {value}", error.errno or 0, error.strerror or ""
        ) from error
    return before
