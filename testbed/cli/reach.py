"""``testbed reach``: who reaches whom now, measured from inside the pods.

Exit code 0 whatever the outcome: it measures and expects nothing.
"""

from __future__ import annotations

import argparse
import sys

from testbed.cli.output import Progress, add_output_option, description, print_data, print_table
from testbed.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "reach", help="who reaches whom, and why not", description=description(__doc__)
    )
    parser.add_argument("-n", "--namespace", default="", help="pods of one namespace (default: of all)")
    parser.add_argument("-l", "--selector", default="", help="label selector, a=b,c in (d,e),!f")
    parser.add_argument("--protocol", choices=("tcp", "udp", "icmp"), default="tcp")
    parser.add_argument("--port", type=int, help="default: the first port each destination declares")
    parser.add_argument("--family", choices=("ipv4", "ipv6"), help="default: each pod's primary address")
    parser.add_argument("--hosts", action="store_true", help="the hosts outside the cluster take part too")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds per attempt (default 1)")
    parser.add_argument("--attempts", type=int, default=2, help="before silence counts (default 2)")
    add_output_option(parser, "json", "yaml", "wide")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from testbed.api.client import Client
    from testbed.measure import text

    if args.protocol == "icmp" and args.port is not None:
        raise InputError("--port: ICMP has no ports")
    request = {
        "protocol": args.protocol,
        "port": args.port,
        "namespace": args.namespace,
        "selector": args.selector,
        "family": args.family,
        "hosts": args.hosts,
        "timeout": args.timeout,
        "attempts": args.attempts,
    }
    with Progress() as progress:
        progress.show("probing …")
        answer = Client.of(args.cluster).post("/apis/testbed/v1/reachability", request, timeout=None)
    rows = answer["rows"]
    if args.output in ("json", "yaml"):
        print_data(answer, args.output)
        return 0
    if not rows:
        print("No flows to try: it takes two pods with addresses.", file=sys.stderr)
    elif args.output == "wide":
        _wide(rows)
    else:
        names = {text.source_of(row) for row in rows} | {text.destination_of(row) for row in rows}
        parts = [text.matrix(rows), "\n"] if len(names) <= text.MATRIX_LIMIT else []
        sys.stdout.write("".join([*parts, text.failures(rows)]))
    sys.stdout.write(text.skipped(answer["skipped"]) + text.totals(rows, args.protocol, answer["seconds"]))
    return 0


def _wide(rows: list[dict[str, object]]) -> None:
    from testbed.measure import text

    print_table(
        ["SOURCE", "DESTINATION", "IP", "PORT", "PATH", "VERDICT", "REASON", "REPORTER", "MS"],
        [
            [
                text.source_of(row),
                text.destination_of(row),
                row["ip"],
                row["port"] or "-",
                row["path"],
                row["verdict"],
                row["reason"] or "-",
                row["reporter"] or "-",
                f"{row['seconds'] * 1e3:.3f}" if isinstance(row["seconds"], float) else "-",
            ]
            for row in rows
        ],
    )
