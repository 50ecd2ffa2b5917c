"""``testbed readdress``: give a node's machine another address; it boots with it.

Its pods are started anew and keep their own addresses; the other nodes are told of the new one.
"""

from __future__ import annotations

import argparse

from testbed.cli.output import add_output_option, description, print_actions


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "readdress",
        help="give a node another address",
        description=description(__doc__),
        usage="testbed readdress NODE ADDRESS… [-o json|yaml]",
    )
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="one of each family that it has")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Readdress it."""
    from testbed.api.client import Client

    client = Client.of(args.cluster)
    client.post(f"/apis/testbed/v1/nodes/{args.node}/addresses", {"addresses": args.addresses})
    if args.output:
        print_actions([("node", args.node, "readdressed")], args.output)
    else:
        print(f"node/{args.node} readdressed")
    return 0
