"""``testbed load``: bring back what the command save wrote, all or nothing."""

from __future__ import annotations

import argparse

from testbed.cli.output import add_output_option, description, print_data


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("load", help="load saved objects", description=description(__doc__))
    parser.add_argument("file", metavar="FILE", help="- for standard input")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load them."""
    from testbed.api.client import Client
    from testbed.api.manifests import apply

    results = apply(Client.of(args.cluster), [args.file])
    if args.output:
        print_data([dict(zip(("kind", "name", "action"), row, strict=True)) for row in results], args.output)
        return 0
    for kind, name, action in results:
        print(f"{kind}/{name} {action}")
    return 0
