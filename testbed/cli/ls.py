"""``testbed ls``: this user's clusters."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.cluster.statedir import ClusterEntry


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    from testbed.cli.output import add_output_option

    parser = subparsers.add_parser(
        "ls",
        help="list clusters",
        description="List clusters; what a killed one left is shown once, as stale, and removed.",
    )
    add_output_option(parser, "json", "yaml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line per cluster, then clean the stale ones up."""
    from testbed.cli.output import print_data, print_table
    from testbed.cluster import statedir

    entries = [_now(entry) for entry in statedir.list_clusters()]
    if args.output:
        print_data([_plain(entry) for entry in entries], args.output)
    else:
        now = time.time()
        print_table(("NAME", "STATE", "NODES", "PODS", "AGE"), [_row(entry, now) for entry in entries])
    statedir.clean_stale()
    return 0


def _now(entry: ClusterEntry) -> ClusterEntry:
    """With the number of pods that a running cluster has by now; None where it does not say in time."""
    from testbed.api.client import Client
    from testbed.errors import TestbedError

    if entry.state != "running":
        return entry
    try:
        status = Client(entry.directory / "api.sock").request("GET", "/apis/testbed/v1/cluster", timeout=1.0)
    except TestbedError:
        return replace(entry, pods=None)
    return replace(entry, pods=status["pods"])


def _row(entry: ClusterEntry, now: float) -> tuple[str, ...]:
    from testbed.cli.columns import human_duration

    age = human_duration(now - entry.started)
    return entry.name, entry.state, _count(entry.nodes), _count(entry.pods), age


def _plain(entry: ClusterEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "state": entry.state,
        "pid": entry.pid or None,
        "nodes": entry.nodes,
        "pods": entry.pods,
        "spec": entry.spec or None,
        "started": entry.started,
        "directory": str(entry.directory),
    }


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)
