"""``testbed get``: list objects, as kubectl prints them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from testbed.cli import query
from testbed.cli.columns import columns
from testbed.cli.output import add_output_option, description, print_data, print_name, print_table


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "get",
        help="list objects",
        description=description(__doc__),
        usage="testbed get KIND [NAME…] [-n NS | -A] [-l SELECTOR] [-o wide|json|yaml|name]",
    )
    parser.add_argument(
        "what", nargs="*", metavar="KIND NAME", help="pods, pod web, deploy/web, svc,pods, all"
    )
    query.add_scope(parser)
    add_output_option(parser, "wide", "json", "yaml", "name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from testbed.api.client import Client

    found = list(query.objects(Client.of(args.cluster), args))
    if args.output in ("json", "yaml"):
        items = [obj for _, obj in found]
        single = len(items) == 1 and (len(args.what) > 1 or "/" in args.what[0])
        listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
        print_data(items[0] if single else listed, args.output)
        return 0
    if not found:
        where = "" if args.all_namespaces else f" in {args.namespace or 'default'} namespace"
        print(f"No resources found{where}.", file=sys.stderr)
        return 0
    groups: dict[str, list[dict[str, Any]]] = {}
    for kind, obj in found:
        if args.output == "name":
            print_name(kind.printed, obj["metadata"]["name"])
        else:
            groups.setdefault(kind.kind, []).append(obj)
    several = len(groups) > 1 or args.what == ["all"]
    for number, (name, items) in enumerate(groups.items()):
        if number:
            print()
        _table(args, name, items, several)
    return 0


def _table(args: argparse.Namespace, kind: str, items: list[dict[str, Any]], several: bool) -> None:
    from testbed.objects.kinds import BY_NAME

    headers, cells = columns(kind, wide=args.output == "wide")
    with_namespace = args.all_namespaces and BY_NAME[kind].namespaced
    prefix = f"{BY_NAME[kind].printed}/" if several else ""
    rows = [
        [
            *([obj["metadata"].get("namespace", "")] if with_namespace else []),
            prefix + obj["metadata"]["name"],
            *cells(obj),
        ]
        for obj in items
    ]
    print_table([*(["NAMESPACE"] if with_namespace else []), "NAME", *headers], rows)
