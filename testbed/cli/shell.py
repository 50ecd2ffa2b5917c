"""``testbed shell``: Mininet's own command line on the running fabric."""

from __future__ import annotations

import argparse
import sys


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "shell",
        help="Mininet's command line on the fabric",
        description="Mininet's command line on the running fabric: nodes, links, net, dump, "
        "'node-1 ip route', 'link s1 node-1 down'. Reads commands from standard input where that is no "
        "terminal. Leaving it (exit, Ctrl-D) leaves the cluster running.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open the shell and stay until the person leaves."""
    from testbed.api.client import Client
    from testbed.cli import terminal
    from testbed.cluster.messages import OpenShell

    channel = Client.of(args.cluster).channel("/apis/testbed/v1/shell")
    try:
        return terminal.relay(channel, OpenShell(1), tty=sys.stdin.isatty() and sys.stdout.isatty())
    finally:
        channel.close()
