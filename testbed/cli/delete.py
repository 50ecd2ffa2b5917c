"""``testbed delete``: delete by file, or by kind and name or selector."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from testbed.cli import query
from testbed.cli.output import add_output_option, description, print_actions
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.api.client import Client


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "delete",
        help="delete objects",
        description=description(__doc__),
        usage="testbed delete -f FILE | KIND NAME… | KIND -l SELECTOR [-n NS | -A] [--ignore-not-found]",
    )
    parser.add_argument("what", nargs="*", metavar="KIND NAME", help="as kubectl takes it: pod web, pod/web")
    parser.add_argument(
        "-f", "--filename", action="append", default=[], metavar="FILE", help="what this file or folder names"
    )
    parser.add_argument("--ignore-not-found", action="store_true", help="what is not there is no failure")
    query.add_scope(parser)
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Delete them."""
    from testbed.api.client import Client

    if args.filename and (args.what or args.selector or args.all_namespaces):
        raise InputError("-f goes with neither KIND NAME, -l nor -A: a file says what to delete")
    client = Client.of(args.cluster)
    deleted = []
    for word, name in _from_files(client, args) if args.filename else _named(client, args):
        deleted.append((word, name, "deleted"))
        if not args.output:
            print(f'{word} "{name}" deleted')
    if args.output:
        print_actions(deleted, args.output)
    elif not deleted:
        print("No resources found.", file=sys.stderr)
    return 0


def _from_files(client: Client, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    from testbed.api import manifests

    ignore, namespace = args.ignore_not_found, args.namespace
    yield from manifests.delete(client, args.filename, ignore_missing=ignore, namespace=namespace)


def _named(client: Client, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    from testbed.api.client import RequestFailed
    from testbed.api.manifests import path_of

    for kind, obj in query.objects(
        client, args, need_name=not args.selector, ignore_missing=args.ignore_not_found
    ):
        metadata = obj["metadata"]
        try:
            client.delete(path_of(kind, metadata.get("namespace", ""), metadata["name"]))
        except RequestFailed as error:
            if not (args.ignore_not_found and error.reason == "NotFound"):
                raise
            continue
        yield kind.printed, metadata["name"]
