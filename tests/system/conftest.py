"""System tests leave nothing behind: checked after every test, and after every module's own fixtures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hoststate import HostState, host_state, mark, marked_processes

from testbed.errors import NotConverged
from testbed.wait import wait_until

GONE_WITHIN = 15.0
"""Seconds the kernel may take to end the processes of a sandbox whose init has died."""


pytest.register_assert_rewrite("cells", "cell_lab", "node_lab")


def pytest_configure() -> None:
    mark()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    with unchanged_host():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_leaks_of_module() -> Iterator[None]:
    with unchanged_host():
        yield


@contextmanager
def unchanged_host() -> Iterator[None]:
    """Fail where links, mounts, processes or namespaces of the host differ at the end."""
    before = host_state()
    yield
    after = before

    def same() -> bool:
        nonlocal after
        after = host_state(before.namespaces)
        return not difference(before, after)

    try:
        wait_until(same, GONE_WITHIN, "nothing left behind", interval=0.05)
    except NotConverged:
        end_processes(before)
        pytest.fail("left on the host:\n" + "\n".join(difference(before, after)), pytrace=False)


def difference(before: HostState, after: HostState) -> list[str]:
    return [f"+ {line}" for line in after.added(before)] + [f"- {line}" for line in after.lost(before)]


def end_processes(before: HostState) -> None:
    """End what a test left running, so that the next one is not blamed for it."""
    known = {int(line.split()[0]) for line in before.processes}
    for pid in set(marked_processes()) - known:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
