"""Clusters come up and go, whoever is killed at whatever moment, and the host is as it was before."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandboxed import (
    idle_daemon,
    idle_fabric,
    namespaces_of,
    running,
    users_of,
    wait_for_the_end,
)

from testbed.cluster import launcher, lifecycle, statedir
from testbed.cluster.launcher import DaemonContext
from testbed.errors import InputError, Lack, MissingCapability, NotConverged, TestbedError
from testbed.kernel import process
from testbed.wait import wait_until

MOMENTS = 25
"""How many random moments the killing tests draw, each."""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where clusters of the test have their directories."""
    yield tmp_path / "testbed"
    for entry in statedir.list_clusters(tmp_path / "testbed"):  # of a test that failed
        lifecycle.down(entry.name, root=tmp_path / "testbed")


def launch(root: Path, name: str = "demo", **options: object) -> dict[str, object]:
    arguments: dict[str, object] = {"daemon": idle_daemon, "fabric": idle_fabric, "info": {}, "deadline": 20}
    return launcher.launch(name, root=root, **(arguments | options))  # type: ignore[arg-type]


TITLES = {"testbed-init", "testbed-zygote", "testbed-fabric", "testbed-daemon"}


def processes_of(name: str, root: Path, titles: set[str] = TITLES) -> dict[str, int]:
    """The processes of a running cluster on the host, by title, as soon as these have taken theirs."""
    entry = statedir.resolve(name, root)
    found: dict[str, int] = {}

    def there() -> bool:
        pids = users_of({os.readlink(f"/proc/{entry.pid}/ns/pid")})
        found.clear()
        found.update({Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in pids})
        return set(found) == titles

    wait_until(there, 10, f"processes {titles}", detail=lambda: str(found))
    return found


# --- life ----------------------------------------------------------------------------------------------


def test_a_cluster_comes_up_is_listed_and_goes(root: Path) -> None:
    def daemon(context: DaemonContext) -> None:
        context.ready({"pods": 30, "any": ["thing"]})
        wait_for_the_end()

    report = launch(root, daemon=daemon, info={"spec": "three.yaml", "nodes": 3, "pods": 1})
    assert report == {"pods": 30, "any": ["thing"]}
    entry = statedir.resolve(None, root)
    assert (entry.name, entry.state, entry.spec, entry.nodes, entry.pods) == (
        "demo",
        "running",
        "three.yaml",
        3,
        30,
    )
    assert entry.socket.stat().st_mode & 0o777 == 0o600
    assert set(processes_of("demo", root)) == TITLES
    namespaces = namespaces_of(entry.pid)
    assert len(namespaces) == 5
    lifecycle.down("demo", root=root)
    assert users_of(namespaces) == set()
    assert statedir.list_clusters(root) == []
    assert list(root.iterdir()) == []


def test_the_api_socket_is_the_daemons(root: Path) -> None:
    def daemon(context: DaemonContext) -> None:
        context.ready({})
        peer, _ = context.api_socket.accept()
        peer.sendall(b"hello")
        wait_for_the_end()

    with running(root, daemon=daemon), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(statedir.resolve("demo", root).socket))
        assert client.recv(5) == b"hello"


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with running(deep / "testbed", name="x" * 63):
        pass


def test_clusters_live_side_by_side(root: Path) -> None:
    with running(root, "one"), running(root, "two"):
        assert [entry.name for entry in statedir.list_clusters(root)] == ["one", "two"]
        first, second = (namespaces_of(statedir.resolve(name, root).pid) for name in ("one", "two"))
        assert first.isdisjoint(second)
        lifecycle.down("one", root=root)
        assert [entry.name for entry in statedir.list_clusters(root)] == ["two"]


def test_a_running_name_is_refused_and_left_alone(root: Path) -> None:
    with running(root):
        with pytest.raises(InputError, match="is running already"):
            launch(root)
        assert statedir.resolve("demo", root).state == "running"


def test_the_cluster_ends_when_the_daemon_returns(root: Path) -> None:
    launch(root, daemon=lambda context: context.ready({}))
    wait_until(lambda: not statedir.is_locked(root / "demo"), 10, "the cluster ended")
    assert [entry.state for entry in statedir.clean_stale(root)] == ["stale"]


def test_a_report_of_any_size_arrives(root: Path) -> None:
    def daemon(context: DaemonContext) -> None:
        context.ready({"text": "x" * 1_000_000})
        wait_for_the_end()

    with running(root, daemon=daemon) as report:
        assert len(report["text"]) == 1_000_000


def test_down_ends_what_programs_left_behind(root: Path) -> None:
    def daemon(context: DaemonContext) -> None:
        def orphan() -> None:
            os.setsid()
            process.fork(wait_for_the_end, title="orphan", keep=())

        os.waitpid(process.fork(orphan, title="parent", keep=()), 0)
        context.ready({})
        wait_for_the_end()

    launch(root, daemon=daemon)
    orphan_pid = processes_of("demo", root, TITLES | {"orphan"})["orphan"]
    lifecycle.down("demo", root=root)
    assert process.start_time(orphan_pid) is None


def test_down_of_one_that_is_gone_is_no_error(root: Path) -> None:
    assert lifecycle.down("demo", root=root) == 0.0


def test_down_names_what_it_needs_to_know(root: Path) -> None:
    with pytest.raises(InputError, match="no cluster is running"):
        lifecycle.choose(None, root)
    with running(root, "one"), running(root, "two"):
        with pytest.raises(InputError, match=r"several clusters are running \(one, two\)"):
            lifecycle.choose(None, root)
        assert lifecycle.choose("two", root).name == "two"
        with pytest.raises(InputError, match="there are: one, two"):
            lifecycle.choose("three", root)


# --- failing before it is ready ------------------------------------------------------------------------


def raiser(error: BaseException) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


def killed(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


LACK = MissingCapability([Lack("netem", "the spec's delay needs it", "load sch_netem")])


@pytest.mark.parametrize("who", ["daemon", "fabric"])
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (raiser(InputError("bad input")), InputError, r"^bad input$"),
        (raiser(LACK), MissingCapability, r"^missing netem: .*; load sch_netem$"),
        (raiser(NotConverged("links up", 1)), TestbedError, r"^links up: not after 1.0 s$"),
        (raiser(ZeroDivisionError("oops")), TestbedError, r"ZeroDivisionError: oops"),
        (
            raiser(SystemExit(3)),
            TestbedError,
            r"(?s)ended before it was ready.*the (daemon|fabric) ended with code 3",
        ),
        (killed, TestbedError, r"(?s)ended before it was ready.*the (daemon|fabric) ended with code 137"),
    ],
)
def test_a_failure_inside_is_the_launchers_error(
    root: Path, who: str, body: Callable[[object], None], kind: type[TestbedError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        launch(root, **({"daemon": lambda _: wait_for_the_end()} | {who: body}))
    assert list(root.iterdir()) == []


def test_the_daemon_may_say_itself_why_it_failed(root: Path) -> None:
    with pytest.raises(InputError, match=r"^said$"):
        launch(root, daemon=lambda context: context.failed(2, "said"))


def test_a_cluster_that_is_not_ready_in_time_is_ended(root: Path) -> None:
    with pytest.raises(NotConverged, match="init watches over"):
        launch(root, daemon=lambda _: wait_for_the_end(), deadline=0.3)
    assert list(root.iterdir()) == []


# --- killing -------------------------------------------------------------------------------------------


def assert_nothing_left(root: Path, namespaces: set[str]) -> None:
    """Nobody is in the sandbox any more; its directory is stale, goes, and the name is free."""
    wait_until(
        lambda: not users_of(namespaces), 10, "processes gone", detail=lambda: str(users_of(namespaces))
    )
    wait_until(lambda: not statedir.is_locked(root / "demo"), 10, "the lock is free")
    statedir.clean_stale(root)
    assert not (root / "demo").exists()
    with running(root):
        assert statedir.resolve("demo", root).state == "running"


@pytest.mark.parametrize("victim", ["testbed-init", "testbed-daemon", "testbed-zygote", "testbed-fabric"])
def test_sigkill_of_any_process_ends_the_cluster(root: Path, victim: str) -> None:
    launch(root)
    namespaces = namespaces_of(statedir.resolve("demo", root).pid)
    os.kill(processes_of("demo", root)[victim], signal.SIGKILL)
    assert_nothing_left(root, namespaces)


def test_sigterm_of_init_ends_the_cluster(root: Path) -> None:
    launch(root)
    entry = statedir.resolve("demo", root)
    namespaces = namespaces_of(entry.pid)
    os.kill(entry.pid, signal.SIGTERM)
    assert_nothing_left(root, namespaces)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_goes_before_the_cluster_is_ready_takes_it_along(
    root: Path, number: signal.Signals
) -> None:
    chance = random.Random(int(number))  # noqa: S311 - moments, not secrets
    for _ in range(MOMENTS):
        body = lambda: launch(root, daemon=lambda _: wait_for_the_end())  # noqa: E731
        pid = process.fork(body, title="launcher", keep=())
        namespaces = _after_a_while(chance, root)
        os.kill(pid, number)
        os.waitpid(pid, 0)
        namespaces |= _namespaces(root)
        assert_nothing_left(root, namespaces)


def test_init_killed_at_any_moment_of_the_start(root: Path) -> None:
    chance = random.Random(1)  # noqa: S311 - moments, not secrets
    for _ in range(MOMENTS):
        pid = process.fork(lambda: launch(root), title="launcher", keep=())
        namespaces = _after_a_while(chance, root)
        entry = statedir.read_entry(root / "demo")
        if entry is not None and entry.pid and (fd := process.open_pidfd(entry.pid, entry.started_ticks)):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
        else:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert_nothing_left(root, namespaces)


def _after_a_while(chance: random.Random, root: Path) -> set[str]:
    """Wait for up to 50 ms, more than a start takes, and return the namespaces there are by then."""
    until = time.monotonic() + chance.uniform(0, 0.05)
    wait_until(lambda: time.monotonic() >= until, 1, "the moment", interval=0.001)
    return _namespaces(root)


def _namespaces(root: Path) -> set[str]:
    entry = statedir.read_entry(root / "demo")
    try:
        return namespaces_of(entry.pid) if entry is not None and entry.pid else set()
    except (FileNotFoundError, ProcessLookupError):
        return set()


def test_a_cluster_is_ended_while_it_starts(root: Path) -> None:
    pid = process.fork(lambda: launch(root, daemon=lambda _: wait_for_the_end()), title="launcher", keep=())
    wait_until(lambda: (root / "demo" / "lock").exists(), 10, "the launcher began")
    lifecycle.down("demo", root=root)
    assert not (root / "demo").exists()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
