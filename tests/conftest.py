"""What all tests share: deferring those whose data, tool or kernel is absent, and saying which they were.

``@pytest.mark.needs("netem", "tool:kubectl", "data:manifests")``: a capability of ``kernel.capabilities``, a
program, or a file or folder of the published material beside the clone (``TESTBED_SHARED``, ``../shared``);
``user:root`` and ``user:others`` of tests that become another user.
A deferred test is skipped and listed, never passed. With CI=true only what MAY_BE_ABSENT names is deferred;
everything else ought to be on such a machine, and its absence fails the test.

Tests that need a feature of VM_FEATURES are the VM lane's wherever the kernel lacks it: ``--lane vm`` selects
them, and there nothing may be deferred. They are run by ``make test-vm`` in a stock distribution kernel.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from testbed.kernel.capabilities import missing
from testbed.kernel.paths import add_system_directories

hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes is no verdict
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
DATA = "data:"
ROOT_USER, OTHER_USERS = "user:root", "user:others"
VM_FEATURES = frozenset(
    {"netem", "ipip", "ipvs", "wireguard", "openvswitch", "sctp", "dummy", "ipvlan", "vrf", "fq_codel"}
)
"""What stock distribution kernels have and smaller ones lack."""
MAY_BE_ABSENT = VM_FEATURES | {"bpf", "ipip-tunnel", "userns", "tool:kubectl", ROOT_USER, OTHER_USERS}
"""What a CI machine is not asked to have: features of other kernels, kubectl, being root."""
VM_LANE = "deferred to the VM lane (make test-vm): not run, not passed"
RUN_BY_VM_LANE = ("lane", "vm")
"""The property of a deferred test that the VM lane runs."""
OTHERS = "deferred: not run, not passed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deferred-file", type=Path, help="append the list of deferred tests to this file")
    parser.addoption(
        "--lane", choices=["vm"], help="only the tests of this lane, none of which may be deferred"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): defer the test where one of these is absent")
    config.addinivalue_line(
        "markers", "nightly: whole experiments, which make test-all runs and make test does not"
    )
    config.addinivalue_line("markers", "every_change: of the VM lane's tests, those that CI runs each time")
    add_system_directories()


def shared() -> Path:
    """The folder of published material: recorded outputs, manifests."""
    return Path(os.environ.get("TESTBED_SHARED") or ROOT.parent / "shared")


@pytest.fixture(scope="session", name="shared")
def shared_folder() -> Path:
    return shared()


@cache
def absence(name: str) -> str:
    """Why ``name`` is not there, or ""."""
    if name.startswith(DATA):
        path = shared() / name.removeprefix(DATA)
        return "" if path.exists() else f"{path} is absent"
    if name == ROOT_USER:
        return "" if os.geteuid() == 0 else "only root can become another user"
    if name == OTHER_USERS:
        closed = [each for each in (ROOT, *ROOT.parents, Path(sys.executable).parent) if not _open(each)]
        return f"{closed[0]} is closed to other users" if closed else ""
    return "; ".join(f"missing {lack.name}: {lack.why}" for lack in missing([name]))


def _open(directory: Path) -> bool:
    return directory.stat().st_mode & 0o005 == 0o005


def needs(item: pytest.Item) -> list[str]:
    """What a test is marked to need."""
    return [name for marker in item.iter_markers("needs") for name in marker.args]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--lane") == "vm":
        config.hook.pytest_deselected(items=[item for item in items if not of_vm_lane(item)])
        items[:] = filter(of_vm_lane, items)


def of_vm_lane(item: pytest.Item) -> bool:
    return not VM_FEATURES.isdisjoint(needs(item))


def pytest_runtest_setup(item: pytest.Item) -> None:
    in_vm_lane = item.config.getoption("--lane") == "vm"
    for name in needs(item):
        reason = absence(name)
        if not reason:
            continue
        if in_vm_lane or (os.environ.get("CI") == "true" and name not in MAY_BE_ABSENT):
            pytest.fail(f"would be deferred, but has to run here: {reason}", pytrace=False)
        if of_vm_lane(item):
            item.user_properties.append(RUN_BY_VM_LANE)
        pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In the VM lane a test that defers itself fails the run: there is no further lane."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--lane") == "vm" and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = terminalreporter.getreports("skipped")
    for title in (VM_LANE, OTHERS):
        lines = [deferral(report) for report in reports if (title == VM_LANE) == run_by_vm_lane(report)]
        if not lines:
            continue
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
        if path := config.getoption("--deferred-file"):
            with path.open("a") as file:
                file.writelines(f"{title}\t{line}\n" for line in lines)


def run_by_vm_lane(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether the VM lane runs what was deferred here."""
    return RUN_BY_VM_LANE in getattr(report, "user_properties", ())


def deferral(report: pytest.TestReport | pytest.CollectReport) -> str:
    """One line: which test, and why. A skip's ``longrepr`` is (file, line, reason)."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return f"{report.nodeid}: {reason.removeprefix('Skipped: ')}"
