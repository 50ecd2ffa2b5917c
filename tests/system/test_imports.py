"""What starting costs: the command line, the daemon and the pure part load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"scapy", "pandas", "pyarrow", "numpy", "mininet.net", "mininet.node", "mininet.link"}
CLIENT_FREE = HEAVY | {"pyroute2", "aiohttp", "asyncio"}
"""What commands that only ask a running cluster, or none, have no use for."""


def loaded(statement: str) -> set[str]:
    """The modules in a fresh interpreter after ``statement``."""
    program = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(done.stdout.split())


def modules(*packages: str) -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in packages
        for path in sorted((ROOT / "testbed" / package).rglob("*.py"))
        if path.name != "__init__.py"
    ]


def test_the_command_line_loads_nothing_heavy() -> None:
    from testbed.cli.main import COMMANDS

    for command in COMMANDS:
        code = f"from testbed.cli.main import build_parser; build_parser([{command!r}])"
        assert loaded(code) & CLIENT_FREE == set(), command


def test_the_daemon_loads_nothing_heavy() -> None:
    assert loaded("import testbed.api.daemon") & HEAVY == set()


@pytest.mark.parametrize("package", ["control", "objects", "spec", "rules", "dataplane", "proxy"])
def test_the_pure_part_loads_nothing_heavy_and_nothing_that_acts(package: str) -> None:
    names = modules(package)
    assert names
    assert loaded(f"import {', '.join(names)}") & (HEAVY | {"pyroute2", "subprocess", "asyncio"}) == set()
