"""Where tools are found: on PATH, and in the sbin directories that an ordinary user's PATH lacks."""

from __future__ import annotations

import os

SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH with the sbin directories at its end."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*path, *(each for each in SYSTEM_DIRECTORIES if each not in path)])


def add_system_directories() -> None:
    """Make ``search_path`` this process's PATH and with it that of every tool it starts, as Mininet's."""
    os.environ["PATH"] = search_path()
