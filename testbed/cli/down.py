"""``testbed down [NAME | --all]``: end clusters, at once and completely."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    from testbed.cli.output import add_output_option

    parser = subparsers.add_parser("down", help="stop a cluster", description="Stop a cluster, or all.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("name", nargs="?", metavar="NAME", help="the cluster; not needed where one runs")
    which.add_argument("--all", action="store_true", help="every cluster of this user")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Stop what was asked for and say how long it took."""
    from testbed.cli.output import print_data
    from testbed.cluster import lifecycle, statedir

    if args.all:
        entries = statedir.list_clusters()
        if not entries and not args.output:
            print("no cluster is running")
    else:
        entries = [lifecycle.choose(args.name or args.cluster)]
    stopped = []
    for entry in entries:
        seconds = lifecycle.down(entry.name)
        stopped.append({"name": entry.name, "was": entry.state, "seconds": seconds})
        if not args.output:
            stale = " (it had ended already)" if entry.state == "stale" else ""
            print(f"{entry.name}: stopped in {seconds:.2f} s{stale}")
    if args.output:
        print_data(stopped, args.output)
    statedir.clean_stale()
    return 0
