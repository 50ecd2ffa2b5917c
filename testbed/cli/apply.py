"""``testbed apply``: create or change what manifests describe, all or nothing."""

from __future__ import annotations

import argparse

from testbed.cli.output import add_output_option, description, print_actions


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("apply", help="apply manifests", description=description(__doc__))
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        required=True,
        metavar="FILE",
        help="a file, a folder, or - for standard input; may be given again",
    )
    parser.add_argument("-n", "--namespace", default="", help="of the objects that name none")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Apply them."""
    from testbed.api.client import Client
    from testbed.api.manifests import apply
    from testbed.objects import kinds

    results = apply(Client.of(args.cluster), args.filename, namespace=args.namespace)
    if args.output:
        print_actions(results, args.output)
        return 0
    for kind, name, action in results:
        print(f"{kind}/{name} {action}")
    applied = {kinds.by_word(kind) for kind, _, _ in results}
    stored = sorted(kind.kind for kind in applied if kind is not None and not kind.effect)
    if stored:
        print(f"stored, without effect on the network yet: {', '.join(stored)}")
    return 0
