"""SIGKILL at random moments: does anything stay on the host?

Kills the init or the daemon of a cluster while ``testbed up``, ``apply``, ``run`` or ``down`` is at work
on it, and compares the host before and after: links, mounts, processes, namespaces, files, and once for all
moments rules and routes. Only the state directory may stay, and the next command removes it. The command
itself has to end in a message, without a traceback; the next ``up`` has to work.

    python -m benchmarks.kill [--moments 60] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from testbed.cluster import lifecycle, statedir
from testbed.cluster.statedir import ClusterEntry
from testbed.errors import NotConverged
from testbed.kernel import process
from testbed.wait import wait_until

SOURCE = Path(__file__).parents[1]
sys.path.insert(0, str(SOURCE / "tests" / "system"))
from hoststate import HostState, host_state, mark  # noqa: E402 - the same eyes as the tests'

GONE_WITHIN = 15.0
"""Seconds the kernel may take to end the processes of a killed sandbox."""

AFTER_APPLY = 0.5
"""Seconds in which the pods are made that an apply has asked for."""

POLL = 0.002
"""Seconds between two looks at the clusters."""

COMMAND_DEADLINE = 120.0
"""Seconds a command may take, disturbed or not."""

MANIFEST = "more.yaml"
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: more}
spec:
  replicas: 60
  selector: {matchLabels: {app: more}}
  template:
    metadata: {labels: {app: more}}
    spec: {containers: [{name: web, image: nginx}]}
"""
"""What ``apply`` makes."""

OPERATIONS = ("up", "apply", "run", "down")
VICTIMS = ("init", "daemon")


@dataclass(frozen=True)
class Moment:
    """One kill. after: where in the time between the victim's appearance and the command's end, 0..1."""

    operation: str
    victim: str
    after: float


@dataclass
class Bench:
    """What is killed, where its files go, and what was found wrong."""

    spec: Path
    scenario: Path
    place: Path
    name: str = f"kill-{os.getpid()}"
    wrong: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def command(self, operation: str) -> list[str]:
        """The arguments of ``testbed`` for an operation."""
        match operation:
            case "up":
                return ["up", str(self.spec), "--name", self.name]
            case "apply":
                return ["apply", "-C", self.name, "-f", str(self.place / MANIFEST)]
            case "run":
                return ["run", str(self.scenario), "--out", str(self.place / "results")]
            case _:
                return ["down", self.name]

    def start(self, operation: str) -> subprocess.Popen[str]:
        """Start a command with all its files in ``place``."""
        work = self.place / "work"
        return subprocess.Popen(
            [sys.executable, "-m", "testbed.cli.main", *self.command(operation)],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def succeed(self, operation: str) -> float:
        """Run an undisturbed command; returns its seconds from where its cluster has an init.

        Raises SystemExit where it fails.
        """
        known = {entry.name for entry in statedir.list_clusters()}
        child = self.start(operation)
        appeared(self, operation, child, known)
        start = time.monotonic()
        output, _ = child.communicate(timeout=COMMAND_DEADLINE)
        if child.returncode != 0:
            sys.exit(f"undisturbed 'testbed {' '.join(self.command(operation))}' failed:\n{output}")
        return time.monotonic() - start

    def files(self) -> frozenset[str]:
        """Every file the commands could have left, state directories and results aside."""
        left = {str(path) for path in (self.place / "work").rglob("*")}
        return frozenset(path for path in left if not path.startswith(str(statedir.root_directory())))


def draw(moments: int, seed: int, operations: Sequence[str]) -> list[Moment]:
    """The kills: every operation and victim equally often, in random order at random moments."""
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    pairs = [(operation, victim) for operation in operations for victim in VICTIMS]
    drawn = [Moment(*pairs[number % len(pairs)], after=chance.uniform(0, 1)) for number in range(moments)]
    chance.shuffle(drawn)
    return drawn


def measure(bench: Bench, operations: Sequence[str]) -> dict[str, float]:
    """How long each operation takes undisturbed, in seconds from where there is somebody to kill."""
    order = [name for name in ("up", "apply", "down", "run") if name in {*operations, "up", "down"}]
    for operation in order:
        bench.succeed(operation)  # warms every cache
    windows = {operation: bench.succeed(operation) for operation in order}
    return windows | {"apply": windows.get("apply", 0.0) + AFTER_APPLY}


def kill_once(bench: Bench, moment: Moment, window: float) -> bool:
    """One kill, and everything that has to hold after it; False where the command was over before."""
    known = {entry.name for entry in statedir.list_clusters()}
    before, files = host_state(), bench.files()
    if moment.operation in ("apply", "down"):
        bench.succeed("up")
    child = bench.start(moment.operation)
    try:
        entry = strike(bench, moment, child, window, known)
        output, _ = child.communicate(timeout=COMMAND_DEADLINE)
    except subprocess.TimeoutExpired:
        child.kill()
        bench.wrong.append(f"{moment}: the command hangs")
        return True
    if "Traceback" in output or "internal failure" in output:
        bench.wrong.append(f"{moment}: the command ended in\n{output}")
    if entry is None:
        if moment.operation in ("up", "apply"):
            bench.succeed("down")
        return False
    bench.killed[f"{moment.victim} in {moment.operation}"] += 1
    ended = time.monotonic()
    check(bench, moment, before, files)
    bench.slowest = max(bench.slowest, time.monotonic() - ended)
    if any(left.name == entry.name and left.state == "running" for left in statedir.list_clusters()):
        bench.wrong.append(f"{moment}: the cluster still runs")
    statedir.clean_stale()
    if entry.directory.exists():
        bench.wrong.append(f"{moment}: {entry.directory} is not cleaned up")
    return True


def strike(
    bench: Bench, moment: Moment, child: subprocess.Popen[str], window: float, known: set[str]
) -> ClusterEntry | None:
    """Kill the victim at its moment after it appeared; None if the command is over first."""
    entry = appeared(bench, moment.operation, child, known)
    when = time.monotonic() + moment.after * window
    struck = False

    def over() -> bool:
        nonlocal struck
        if time.monotonic() >= when:
            struck = entry is not None and kill(entry, moment.victim)
        # What apply asked for is made after it has returned.
        return struck or (child.poll() is not None and moment.operation != "apply")

    wait_until(over, COMMAND_DEADLINE, f"{moment}: somebody to kill", interval=POLL)
    return entry if struck else None


def appeared(
    bench: Bench, operation: str, child: subprocess.Popen[str], known: set[str]
) -> ClusterEntry | None:
    """The cluster the command works on, as soon as its init is known; None if the command is over first."""
    found: list[ClusterEntry] = []

    def there() -> bool:
        found.extend(
            entry
            for entry in statedir.list_clusters()
            if entry.pid and (entry.name not in known if operation == "run" else entry.name == bench.name)
        )
        return bool(found) or child.poll() is not None

    wait_until(there, COMMAND_DEADLINE, f"the cluster of {operation}", interval=POLL)
    return found[0] if found else None


def kill(entry: ClusterEntry, victim: str) -> bool:
    """SIGKILL the init or the daemon of a cluster; whether it was there."""
    pidfd = process.open_pidfd(entry.pid, entry.started_ticks)
    if pidfd is None:
        return False
    try:
        if victim == "init":
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
        if daemon := daemon_of(entry.pid):
            os.kill(daemon, signal.SIGKILL)
            return True
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return False


def daemon_of(init: int) -> int | None:
    """The pid of the daemon below an init."""
    try:
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        return next(
            (int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "testbed-daemon\n"),
            None,
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def check(bench: Bench, moment: Moment, before: HostState, files: frozenset[str]) -> None:
    """Wait until the host is as it was; what still differs is noted."""
    after = before

    def same() -> bool:
        nonlocal after
        after = host_state()
        return not (after.added(before) or after.lost(before))

    try:
        wait_until(same, GONE_WITHIN, "the host as before", interval=0.02)
    except NotConverged:
        bench.wrong.append(f"{moment}: left {after.added(before)}, lost {after.lost(before)}")
    if new := bench.files() - files:
        bench.wrong.append(f"{moment}: files {sorted(new)}")


def network() -> str:
    """The host's rules, addresses and routes as text, without counters and lifetimes."""
    text = ""
    for argv in (
        ["nft", "-s", "list", "ruleset"],
        ["ip", "-o", "link"],
        ["ip", "route", "show", "table", "all"],
    ):
        if shutil.which(argv[0]):
            text += subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return text


@contextmanager
def place() -> Iterator[Path]:
    """A directory for every file of the commands; clusters are ended before it goes."""
    path = Path(tempfile.mkdtemp(prefix="testbed-kill-"))
    (path / "work").mkdir()
    (path / MANIFEST).write_text(DEPLOYMENT)
    os.environ |= dict.fromkeys(("TMPDIR", "HOME", "XDG_RUNTIME_DIR"), str(path / "work"))
    tempfile.tempdir = str(path / "work")
    try:
        yield path
    finally:
        tempfile.tempdir = None
        shutil.rmtree(path)


def main() -> int:
    """Run the kills; 1 where anything was left."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument("--spec", type=Path, default=SOURCE / "topologies" / "three-nodes.yaml")
    parser.add_argument("--scenario", type=Path, default=SOURCE / "scenarios" / "pod-network.yaml")
    args = parser.parse_args()
    mark()
    with place() as there, ExitStack() as cleanup:
        bench = Bench(args.spec, args.scenario, there)
        cleanup.callback(lifecycle.down, bench.name)
        windows = measure(bench, args.operations)
        print("undisturbed:", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in windows.items()))
        network_before = network()
        moments = draw(args.moments, args.seed, args.operations)
        for moment in moments:
            while not kill_once(bench, moment, windows[moment.operation]):
                moment = replace(moment, after=moment.after / 2)  # the command was over: sooner
        bench.succeed("up")
        bench.succeed("down")
        if network() != network_before:
            bench.wrong.append("rules, links or routes of the host differ")
    for line in bench.wrong:
        print(line)
    print(
        f"kill: {sum(bench.killed.values())} kills, seed {args.seed} "
        f"({', '.join(f'{what} {count}' for what, count in bench.killed.items())}): "
        f"{len(bench.wrong)} differences; clean at most {bench.slowest:.2f} s after the command ended"
    )
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
