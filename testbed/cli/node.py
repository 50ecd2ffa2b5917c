"""``testbed node``: give a node another address, restart what makes its network.

Joining and leaving are ``testbed apply -f`` of a Node and ``testbed delete node``.
"""

from __future__ import annotations

import argparse
from typing import Any

from testbed.cli import output


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "node",
        help="give a node another address, restart its network",
        description=output.description(__doc__),
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    address = actions.add_parser("readdress", help="its machine boots with other addresses; its pods stay")
    address.add_argument("node", metavar="NODE")
    address.add_argument("addresses", nargs="+", metavar="ADDRESS", help="one of each family that it has")
    output.add_output_option(address)
    address.set_defaults(run=run_readdress)
    restart = actions.add_parser("restart", help="kube-proxy and the dataplane's agent start anew")
    restart.add_argument("node", metavar="NODE")
    output.add_output_option(restart)
    restart.set_defaults(run=run_restart)


def run_readdress(args: argparse.Namespace) -> int:
    """Have it boot with these addresses."""
    return _ask(args, "addresses", {"addresses": args.addresses}, "readdressed")


def run_restart(args: argparse.Namespace) -> int:
    """Have its network restart."""
    return _ask(args, "restart", {}, "restarted")


def _ask(args: argparse.Namespace, what: str, body: dict[str, Any], done: str) -> int:
    from testbed.api.client import Client

    Client.of(args.cluster).post(f"/apis/testbed/v1/nodes/{args.node}/{what}", body)
    if args.output:
        output.print_actions([("node", args.node, done)], args.output)
    else:
        print(f"node/{args.node} {done}")
    return 0
