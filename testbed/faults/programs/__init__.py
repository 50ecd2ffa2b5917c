"""Small programs that faults run on nodes and in pods, each as ``python -m testbed.faults.programs.NAME``."""

from __future__ import annotations

import sys


def argv(name: str, *words: str) -> list[str]:
    """The command that runs one."""
    return [sys.executable, "-m", f"testbed.faults.programs.{name}", *words]


FRONT_PORT = 5399
"""Where ``dns_front`` answers."""
