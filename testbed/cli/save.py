"""``testbed save``: what was applied to a cluster, as manifests that make the same one again."""

from __future__ import annotations

import argparse

from testbed.cli.output import description


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("save", help="save a cluster's objects", description=description(__doc__))
    parser.add_argument("file", metavar="FILE", help="- for standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Save them."""
    import sys

    from testbed.api.client import Client
    from testbed.api.manifests import save
    from testbed.errors import InputError

    text, count = save(Client.of(args.cluster))
    if args.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        with open(args.file, "w") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{args.file}: {error.strerror}") from error
    print(f"{count} objects saved in {args.file}")
    return 0
