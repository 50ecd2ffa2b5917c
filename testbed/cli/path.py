"""``testbed path``: the way of a packet, interface by interface: how long each hop takes, what is rewritten
there.

FROM is a pod, NAMESPACE/POD, node:NAME or host:NAME. TO is one of these, an address, service:NAME or
nodeport:NAME@NODE; a port is added as :PORT.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import Any

from testbed.cli.output import add_output_option, description, print_data, print_table
from testbed.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "path", help="the way of a packet, hop by hop", description=description(__doc__)
    )
    parser.add_argument("source", metavar="FROM")
    parser.add_argument("to", metavar="TO")
    parser.add_argument("-n", "--namespace", default="default", help="of names without one")
    parser.add_argument("--protocol", choices=("icmp", "tcp", "udp"), default="icmp")
    parser.add_argument("--count", type=int, default=20, help="packets (default 20)")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between two (default 0.02)")
    parser.add_argument("--size", type=int, default=56, help="bytes of payload (default 56)")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds (default 1)")
    add_output_option(parser, "json", "yaml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Follow and print; exit code 0 whatever became of the packets."""
    from testbed.api.client import Client

    request = {
        "from": end(args.source, args.namespace),
        "to": end(args.to, args.namespace),
        **{name: getattr(args, name) for name in ("protocol", "count", "interval", "size", "timeout")},
    }
    answer = Client.of(args.cluster).post("/apis/testbed/v1/path", request, timeout=None)
    if args.output:
        print_data(answer, args.output)
        return 0
    _table(answer)
    return 0


def end(text: str, namespace: str) -> dict[str, Any]:
    """An end as the API takes it. Raises InputError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("service", "nodeport", "node", "host"):
        name, _, port = rest.partition(":")
        made: dict[str, Any] = {"port": _port(port)} if port else {}
        if kind in ("node", "host"):
            return {kind: name, **made}
        space, _, bare = name.rpartition("/")
        made["namespace"] = space or namespace
        if kind == "service":
            return {"service": bare, **made}
        service, _, node = bare.partition("@")
        return {"nodePort": service, **({"node": node} if node else {}), **made}
    name, _, port = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
    found: dict[str, Any] = {"port": _port(port)} if port else {}
    if name.replace(".", "").isdecimal() or name.count(":") > 1:
        return {"ip": name, **found}
    space, _, bare = name.rpartition("/")
    return {"pod": bare, "namespace": space or namespace, **found}


def _port(text: str) -> int | str:
    if not text:
        raise InputError("a port is missing after the colon")
    return int(text) if text.isdecimal() else text


def _table(answer: dict[str, Any]) -> None:
    """Per way that was taken: each hop with its median, and what is rewritten there."""
    ways: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in answer["journeys"]:
        key = tuple(f"{hop['leg']} {hop['where']} {hop['interface']} {hop['way']}" for hop in one["hops"])
        ways.setdefault(key, []).append(one)
    for journeys in ways.values():
        trips = [one["round_trip"] for one in journeys if one["round_trip"] is not None]
        took = f"median round trip {median(trips) * 1e6:.1f} µs" if trips else "no answer"
        where = f"{answer['source']} → {answer['destination']} ({answer['ip']}, {answer['protocol']})"
        print(f"{where}: {len(journeys)} of {len(answer['journeys'])} packets this way, {took}\n")
        print_table(["LEG", "WHERE", "INTERFACE", "", "µs", "REWRITTEN"], list(_rows(journeys)))
        print()
    if answer["lost"]:
        print(f"{answer['lost']} packets did not fit into the captures: hops may be missing", file=sys.stderr)


def _rows(journeys: list[dict[str, Any]]) -> Any:
    for place, hop in enumerate(journeys[0]["hops"]):
        delay = median(one["hops"][place]["seconds"] for one in journeys)
        told = ", ".join(
            f"{name} {old or '-'} → {new or '-'}" for name, (old, new) in hop["rewritten"].items()
        )
        yield [hop["leg"], hop["where"], hop["interface"], hop["way"], f"{delay * 1e6:.1f}", told or "-"]
