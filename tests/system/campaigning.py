"""A campaign of a tiny scenario to be killed: its files, its command, a dask cluster, what has to hold."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hoststate import HostState, host_state

from testbed.cells import read_campaign
from testbed.errors import NotConverged
from testbed.wait import wait_until

SOURCE = Path(__file__).parents[2]

GONE_WITHIN = 15.0
"""Seconds the kernel may take to end what a killed campaign ran."""

DEADLINE = 1800.0
"""Seconds a whole campaign may take."""

CLUSTER = """
apiVersion: testbed/v1
kind: Cluster
metadata: {name: tiny}
spec:
  nodes: {count: 1}
  dns: {enabled: false}
  external: [{name: client, address: 203.0.113.10}]
"""
SCENARIO = """
apiVersion: testbed/v1
kind: Scenario
metadata: {name: tiny}
cluster: cluster.yaml
steps:
- apply:
    files: [pod.yaml]
- rtt: {name: trips, paths: [outside], count: 30, interval: 0.001}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {containers: [{name: web, image: nginx}]}
"""
CAMPAIGN = """
apiVersion: testbed/v1
kind: Campaign
metadata: {name: killed}
scenario: scenario.yaml
factors:
  mode: {spec: network.proxy.mode, levels: [iptables, nftables]}
  echoes: {scenario: "steps[1].rtt.count", levels: [20, 30, 40]}
replicates: %d
seed: 1
limits: {time: 2m, memory: 1Gi}
"""
COMBINATIONS = 6


@dataclass
class Bench:
    """Where the files are, how the command is called, and what was found wrong."""

    place: Path
    replicates: int
    options: Sequence[str] = ()
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, place: Path, replicates: int, options: Sequence[str] = ()) -> Bench:
        """Write the files of the campaign."""
        files = {"cluster": CLUSTER, "scenario": SCENARIO, "pod": POD, "campaign": CAMPAIGN % replicates}
        for name, text in files.items():
            (place / f"{name}.yaml").write_text(text)
        return cls(place, replicates, options)

    def start(self, out: str, *more: str) -> subprocess.Popen[str]:
        """Start the campaign with its results below ``out``."""
        argv = ["campaign", str(self.place / "campaign.yaml"), "--out", str(self.place / out)]
        return subprocess.Popen(
            [sys.executable, "-m", "testbed.cli.main", *argv, *self.options, *more],
            cwd=self.place,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, out: str, *more: str) -> float:
        """Run the campaign to its end; returns the seconds. Raises SystemExit where it fails."""
        begun = time.monotonic()
        child = self.start(out, *more)
        said, _ = child.communicate(timeout=DEADLINE)
        if child.returncode != 0:
            sys.exit(f"the campaign ended with code {child.returncode}:\n{said}")
        return time.monotonic() - begun

    def done(self, out: str) -> int:
        """How many cells are done."""
        return len(list((self.place / out / "killed" / "cells").glob("*")))

    def kill_once(self, out: str, after: float) -> int:
        """Start or resume the campaign, kill it after so many seconds; returns how many cells are done
        then."""
        before = host_state()
        child = self.start(out, "--resume")
        try:
            child.wait(after)
            said = child.communicate()[0]
            if child.returncode != 0:
                self.wrong.append(f"not killed, and it ended with code {child.returncode}:\n{said}")
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
        self.check_host(before)
        return self.done(out)

    def check_host(self, before: HostState) -> None:
        """Wait until the host is as it was; what still differs is noted."""
        now = host_state()

        def same() -> bool:
            nonlocal now
            now = host_state()
            return not (now.added(before) or now.lost(before))

        try:
            wait_until(same, GONE_WITHIN, "the host as before", interval=0.05)
        except NotConverged:
            self.wrong.append(f"left {now.added(before)}, lost {now.lost(before)}")

    def compare(self, one: str, other: str) -> None:
        """The same cells, each once, each with its samples; in the data sets too."""
        import pandas as pd

        sets = {}
        for out in (one, other):
            read = read_campaign(self.place / out / "killed")
            addresses = [cell.address for cell in read.cells if cell.done]
            folders = sorted(path.name for path in (read.folder / "cells").iterdir())
            rows = pd.read_parquet(read.folder / "samples")
            files = sorted(path.stem for path in (read.folder / "samples").rglob("*.parquet"))
            for what, found in (("folders", folders), ("files", files), ("cells", sorted(addresses))):
                if found != sorted(set(read.plan.cells)):
                    self.wrong.append(f"{out}: {what} are not those of the plan: {len(found)}")
            sets[out] = (set(addresses), rows.groupby(["mode", "echoes", "replicate"], observed=True).size())
        if sets[one][0] != sets[other][0]:
            self.wrong.append(f"the cells differ: {sets[one][0] ^ sets[other][0]}")
        if not sets[one][1].sort_index().equals(sets[other][1].sort_index()):
            self.wrong.append("the numbers of samples per cell differ")


# --- dask -------------------------------------------------------------------------------------------------


class Dask:
    """A scheduler and worker processes on loopback."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._stack = ExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def __enter__(self) -> Dask:
        port = self.address.rpartition(":")[2]
        self._spawn("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        for _ in range(2):
            self.add_worker()
        import distributed

        with distributed.Client(self.address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def add_worker(self) -> None:
        """One more, with the resource that cells ask for. Without a nanny: who kills it kills it."""
        self._count += 1
        folder = self._place / f"worker-{self._count}"
        self.workers.append(
            self._spawn(
                *("worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard"),
                *("--resources", "testbed=1", "--local-directory", str(folder)),
            )
        )

    def kill_worker(self, which: int) -> None:
        """SIGKILL."""
        worker = self.workers.pop(which)
        worker.kill()
        worker.wait()

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._place / f"dask-{words[0]}-{self._count}.log").open("wb"))
        child = subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            cwd=self._place,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(child.wait)
        self._stack.callback(child.kill)
        return child


def free_port() -> int:
    """A TCP port of loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def kill_workers(bench: Bench, dask: Dask, out: str, kills: int, chance: random.Random) -> int:
    """Run the campaign on the cluster and kill workers at random moments while it goes; returns how many."""
    child = bench.start(out)
    killed = 0
    try:
        for number in range(kills):
            aim = (number + 0.5) * bench.replicates * COMBINATIONS / kills

            def far_enough(aim: float = aim) -> bool:
                return bench.done(out) >= aim or child.poll() is not None

            wait_until(far_enough, DEADLINE, "cells done", interval=0.05)
            time.sleep(chance.uniform(0, 1))  # a random moment of the cells that follow
            if child.poll() is not None:
                break
            dask.kill_worker(chance.randrange(len(dask.workers)))
            killed += 1
            dask.add_worker()
        said, _ = child.communicate(timeout=DEADLINE)
    finally:
        child.kill()
        child.wait()
    if child.returncode != 0:
        bench.wrong.append(f"the campaign ended with code {child.returncode}:\n{said}")
    return killed
