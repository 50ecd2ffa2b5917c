"""``testbed describe``: one object in full, with its events."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from testbed.cli import query
from testbed.cli.output import add_output_option, description, format_data, format_table, print_data

if TYPE_CHECKING:
    from testbed.api.client import Client


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "describe",
        help="show an object and its events",
        description=description(__doc__),
        usage="testbed describe KIND [NAME…] [-n NS | -A] [-l SELECTOR] [-o json|yaml]",
    )
    parser.add_argument("what", nargs="*", metavar="KIND NAME", help="pod web, deploy/web, nodes")
    query.add_scope(parser)
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from testbed.api.client import Client

    client = Client.of(args.cluster)
    found = [(obj, _events(client, obj)) for _, obj in query.objects(client, args)]
    if args.output:
        print_data([{"object": obj, "events": events} for obj, events in found], args.output)
    elif found:
        print("\n\n".join(_block(obj, events) for obj, events in found))
    else:
        print("No resources found.", file=sys.stderr)
    return 0


def _events(client: Client, obj: dict[str, Any]) -> list[dict[str, Any]]:
    metadata = obj["metadata"]
    events: list[dict[str, Any]] = client.get(
        f"/api/v1/namespaces/{metadata.get('namespace') or 'default'}/events",
        fieldSelector=f"involvedObject.uid={metadata.get('uid', '')}",
    )["items"]
    return events


def _block(obj: dict[str, Any], events: list[dict[str, Any]]) -> str:
    metadata = obj["metadata"]
    parts = [f"Name:        {metadata['name']}"]
    if metadata.get("namespace"):
        parts.append(f"Namespace:   {metadata['namespace']}")
    for title, field in (("Labels", "labels"), ("Annotations", "annotations")):
        entries = [f"{key}={value}" for key, value in sorted((metadata.get(field) or {}).items())]
        parts.append(f"{title + ':':<12} " + ("\n             ".join(entries) or "<none>"))
    for section in ("spec", "status"):
        if obj.get(section):
            parts.append(f"{section.capitalize()}:")
            parts.append("  " + format_data(obj[section], "yaml").rstrip().replace("\n", "\n  "))
    if events:
        rows = [(event["type"], event["reason"], event["message"]) for event in events]
        table = format_table(("Type", "Reason", "Message"), rows).rstrip()
        parts.append("Events:\n  " + table.replace("\n", "\n  "))
    else:
        parts.append("Events:      <none>")
    return "\n".join(parts)
