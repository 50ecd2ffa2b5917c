"""``testbed fault``: break something of the running cluster, and make it whole again.

``apply`` returns when the kernel shows the fault, ``heal`` when it shows the true state again. What a fault
acts on is named after it (nodes, pods as namespace/name, links as node-2 or s1:r1) or, without a name, chosen
by the seed. ``testbed fault list --kinds`` shows which faults there are, and their options.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from testbed.cli.output import add_output_option, description, print_data, print_table
from testbed.errors import InputError

PATH = "/apis/testbed/v1/faults"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its three parts."""
    parser = subparsers.add_parser(
        "fault", help="break something, heal it, list what is broken", description=description(__doc__)
    )
    parts = parser.add_subparsers(metavar="PART", required=True)
    apply = parts.add_parser("apply", help="break something")
    apply.add_argument("fault", metavar="FAULT", help="one of 'testbed fault list --kinds'")
    apply.add_argument(
        "targets", nargs="*", metavar="TARGET", help="nodes, pods, links (default: by the seed)"
    )
    apply.add_argument("-l", "--selector", default="", help="pods by label, a=b,c in (d,e),!f")
    apply.add_argument("-n", "--namespace", default="", help="of the pods")
    apply.add_argument("--count", default="0", help="how many of them, or 'all'")
    apply.add_argument("--seed", type=int, default=0, help="for what is chosen by chance (default 0)")
    apply.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="heal it after these")
    apply.add_argument("--set", dest="options", action="append", default=[], metavar="OPTION=VALUE")
    add_output_option(apply)
    apply.set_defaults(run=run_apply)
    heal = parts.add_parser("heal", help="make it whole again")
    heal.add_argument("ids", nargs="*", metavar="ID", help="as 'apply' and 'list' print it")
    heal.add_argument("--all", action="store_true", help="every fault that is in force")
    add_output_option(heal)
    heal.set_defaults(run=run_heal)
    listed = parts.add_parser("list", help="faults that are in force, or that there are")
    listed.add_argument("--kinds", action="store_true", help="which faults there are, and their options")
    listed.add_argument("--healed", action="store_true", help="those that were healed, too")
    add_output_option(listed)
    listed.set_defaults(run=run_list)


def run_apply(args: argparse.Namespace) -> int:
    """Apply a fault and say what it acts on."""
    from testbed.api.client import Client

    request = {
        "fault": args.fault,
        "target": {
            "names": args.targets,
            "selector": args.selector,
            "namespace": args.namespace,
            "count": args.count if args.count == "all" else _count(args.count),
        },
        "options": dict(map(_option, args.options)),
        "seconds": args.seconds,
        "seed": args.seed,
    }
    record = Client.of(args.cluster).post(PATH, request, timeout=None)
    if args.output:
        print_data(record, args.output)
    else:
        lasts = f", for {record['seconds']:g} s" if record.get("seconds") else ""
        print(f"{record['id']}: {record['fault']} on {', '.join(record['target'])}{lasts}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"--count: must be a number or all, not {text!r}")
    return int(text)


def _option(text: str) -> tuple[str, Any]:
    """``loss=0.2`` → its name and value, read as JSON where it is any."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set: must be OPTION=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def run_heal(args: argparse.Namespace) -> int:
    """Heal the named faults, or all."""
    from testbed.api.client import Client

    if bool(args.ids) == args.all:
        raise InputError("which? name ids as 'testbed fault list' shows them, or --all")
    client = Client.of(args.cluster)
    if args.all:
        healed = client.delete(PATH)["items"]
    else:
        healed = [client.delete(f"{PATH}/{each}") for each in args.ids]
    if args.output:
        print_data({"items": healed}, args.output)
    else:
        for record in healed:
            print(f"{record['id']}: {record['fault']} healed")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """List faults of the cluster, or kinds of faults."""
    if args.kinds:
        return _kinds(args)
    from testbed.api.client import Client

    items = Client.of(args.cluster).get(PATH)["items"]
    shown = [record for record in items if args.healed or record.get("healed") is None]
    if args.output:
        print_data({"items": shown}, args.output)
        return 0
    print_table(
        ["ID", "FAULT", "TARGET", "OPTIONS", "STATE"],
        [
            [
                record["id"],
                record["fault"],
                ", ".join(record["target"]),
                ", ".join(f"{name}={value}" for name, value in record["options"].items()) or "-",
                record.get("problem") or ("in force" if record.get("healed") is None else "healed"),
            ]
            for record in shown
        ],
        headed=bool(shown),
    )
    return 0


def _kinds(args: argparse.Namespace) -> int:
    from testbed.faults.model import described

    kinds = described()
    if args.output:
        print_data({"items": kinds}, args.output)
        return 0
    print_table(
        ["FAULT", "ACTS ON", "NEEDS", "OPTIONS", "WHAT"],
        [
            [
                each["fault"],
                each["acts on"],
                ", ".join(each["needs"]) or "-",
                " ".join(f"{name}={json.dumps(value)}" for name, value in each["options"].items()) or "-",
                each["about"],
            ]
            for each in kinds
        ],
    )
    return 0
