"""``testbed scale``: set the number of replicas of a workload."""

from __future__ import annotations

import argparse
import sys

from testbed.cli import query
from testbed.cli.output import add_output_option, description, print_actions


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "scale",
        help="set the replicas of a workload",
        description=description(__doc__),
        usage="testbed scale KIND NAME… --replicas COUNT [-n NS | -A] [-l SELECTOR] [-o json|yaml]",
    )
    parser.add_argument("what", nargs="*", metavar="KIND NAME", help="deploy/web, statefulset db")
    parser.add_argument("--replicas", type=int, required=True, metavar="COUNT", help="how many from now on")
    query.add_scope(parser)
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scale them."""
    from testbed.api.client import Client
    from testbed.api.manifests import path_of

    client = Client.of(args.cluster)
    scaled = []
    for kind, obj in query.objects(client, args, need_name=not args.selector):
        metadata = obj["metadata"]
        path = path_of(kind, metadata.get("namespace", ""), metadata["name"]) + "/scale"
        client.put(path, {"spec": {"replicas": args.replicas}})
        scaled.append((kind.printed, metadata["name"], "scaled"))
        if not args.output:
            print(f"{kind.printed}/{metadata['name']} scaled")
    if args.output:
        print_actions(scaled, args.output)
    elif not scaled:
        print("No resources found.", file=sys.stderr)
    return 0
