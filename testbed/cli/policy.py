"""``testbed policy``: what network policies allow, why, and what a change of them would do.

``check`` answers for one flow, ``table`` for all pods (with --observed beside what traffic does), ``diff``
for what a manifest would open or close. Exit code 1 where --observed shows a difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from testbed.cli.output import (
    Progress,
    add_output_option,
    colour,
    description,
    print_data,
    print_table,
)

Row = dict[str, Any]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its three parts."""
    parser = subparsers.add_parser(
        "policy", help="what network policies allow, and why", description=description(__doc__)
    )
    parts = parser.add_subparsers(metavar="PART", required=True)
    check = parts.add_parser("check", help="is one flow allowed, and by which line of which manifest")
    check.add_argument("--from", dest="source", required=True, metavar="POD", help="a pod or an address")
    check.add_argument("--to", required=True, metavar="POD|SVC|ADDRESS", help="svc/NAME is a Service")
    check.add_argument("-n", "--namespace", default="default", help="of names without one")
    _flow_options(check, ("tcp", "udp", "sctp", "icmp"))
    add_output_option(check)
    check.set_defaults(run=run_check)
    table = parts.add_parser("table", help="what is expected between all pods")
    table.add_argument("-n", "--namespace", default="", help="pods of one namespace (default: of all)")
    table.add_argument("-l", "--selector", default="", help="label selector, a=b,c in (d,e),!f")
    _flow_options(table, ("tcp", "udp", "sctp"))
    table.add_argument("--observed", action="store_true", help="measure too, and show differences")
    add_output_option(table)
    table.set_defaults(run=run_table)
    diff = parts.add_parser("diff", help="which flows a manifest would open or close")
    diff.add_argument("-f", "--filename", action="append", required=True, metavar="FILE")
    diff.add_argument("-n", "--namespace", default="", help="of the objects that name none")
    add_output_option(diff)
    diff.set_defaults(run=run_diff)


def _flow_options(parser: argparse.ArgumentParser, protocols: tuple[str, ...]) -> None:
    parser.add_argument("--protocol", choices=protocols, default="tcp")
    parser.add_argument("--port", type=int, help="default: every port the target declares")


def _ask(args: argparse.Namespace, what: str, request: Row) -> tuple[list[Row], list[str]]:
    """The flows, and the pods that were left out."""
    from testbed.api.client import Client

    answer = Client.of(args.cluster).post(f"/apis/testbed/v1/{what}", request, timeout=None)
    return answer["flows"], answer.get("undeclared", [])


def _tell_undeclared(pods: list[str]) -> None:
    if pods:
        print(f"not asked about, as they declare no port: {', '.join(pods)}")


def run_check(args: argparse.Namespace) -> int:
    """Say whether a flow is allowed, for each side and by what."""
    request = {
        "source": _pod_of(args, args.source),
        "target": _pod_of(args, args.to),
        "protocol": args.protocol,
        "port": args.port,
        "namespace": args.namespace,
    }
    rows, _ = _ask(args, "policycheck", request)
    if args.output:
        print_data({"flows": rows}, args.output)
        return 0
    for row in rows:
        by = f" by service {row['by']}" if row["by"] else ""
        port = f" {row['port']}" if row["port"] else ""
        verdict = colour("allowed", "green") if row["allowed"] else colour("denied", "red")
        print(f"{row['from']} -> {row['to']}{by} {row['protocol']}{port}: {verdict}")
        for side in ("egress", "ingress"):
            print(f"  {row[side]['reason']}")
            for each in row[side]["objects"]:
                print(f"    {place(each)}")
    return 0


def _pod_of(args: argparse.Namespace, word: str) -> str:
    """``deploy/web`` as its first pod; anything else as it is. Raises InputError, RequestFailed."""
    from testbed.objects.kinds import by_word

    kind = by_word(word.partition("/")[0])
    if "/" not in word or kind is None or kind.kind in ("Pod", "Service"):
        return word
    from testbed.api.client import Client
    from testbed.cli.target import pod_named

    return pod_named(Client.of(args.cluster), args.namespace, word)


def place(each: Row) -> str:
    """``web.yaml:12: NetworkPolicy shop/web spec.ingress[0].from[1]``."""
    scope = f"{each['namespace']}/" if each["namespace"] else ""
    line = f":{each['line']}" if each["line"] else ""
    where = f"{each['file']}{line}: " if each["file"] else ""
    return f"{where}{each['kind']} {scope}{each['name']} {each['field']}"


def run_table(args: argparse.Namespace) -> int:
    """Print the expected table, and where it was measured what differs."""
    request = {
        "protocol": args.protocol,
        "port": args.port,
        "namespace": args.namespace,
        "selector": args.selector,
        "observed": args.observed,
    }
    with Progress() as progress:
        progress.show("probing …" if args.observed else "")
        rows, undeclared = _ask(args, "policytable", request)
    wrong = [row for row in rows if args.observed and row["observed"] != row["allowed"]]
    if args.output:
        print_data({"flows": rows, "differences": len(wrong), "undeclared": undeclared}, args.output)
        return 1 if wrong else 0
    for port in sorted({row["port"] for row in rows}):
        print(f"{args.protocol.upper()} {port}")
        _matrix([row for row in rows if row["port"] == port])
        print()
    allowed = sum(row["allowed"] for row in rows)
    print(f"{len(rows)} flows: {allowed} allowed (.), {len(rows) - allowed} denied (X)")
    _tell_undeclared(undeclared)
    if args.observed:
        print(f"measured: {len(wrong)} differ from what is expected")
        for row in wrong:
            expected = "allowed" if row["allowed"] else "denied"
            print(f"  {row['from']} -> {row['to']} {row['port']}: expected {expected}, seen {row['seen']}")
    return 1 if wrong else 0


def _matrix(rows: Iterable[Row]) -> None:
    cells = {(row["from"], row["to"]): "." if row["allowed"] else "X" for row in rows}
    sources = sorted({source for source, _ in cells})
    targets = sorted({target for _, target in cells})
    print_table(
        ["FROM \\ TO", *targets],
        [[source, *(cells.get((source, target), " ") for target in targets)] for source in sources],
    )


def run_diff(args: argparse.Namespace) -> int:
    """List what would change."""
    from testbed.api.manifests import objects_of

    request = {"objects": objects_of(args.filename, args.namespace)}
    rows, undeclared = _ask(args, "policydiff", request)
    if args.output:
        print_data({"flows": rows, "undeclared": undeclared}, args.output)
        return 0
    print_table(
        ["CHANGE", "FROM", "TO", "PROTOCOL", "PORT", "WHY"],
        [
            [row["change"], row["from"], row["to"], row["protocol"], row["port"], row["reason"]]
            for row in rows
        ],
        headed=bool(rows),
    )
    opened = sum(row["change"] == "opens" for row in rows)
    print(f"{opened} flows would open, {len(rows) - opened} would close")
    _tell_undeclared(undeclared)
    return 0
