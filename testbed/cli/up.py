"""``testbed up``: start a cluster in the background and say what was made."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from testbed.cli.output import Progress, add_output_option, description, print_data


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("up", help="start a cluster from a spec", description=description(__doc__))
    parser.add_argument("spec", metavar="SPEC", help="the cluster spec, a YAML file")
    parser.add_argument(
        "-f",
        "--filename",
        action="append",
        default=[],
        metavar="MANIFEST",
        help="apply this file or folder too; may be given again",
    )
    parser.add_argument("--name", default="", help="the cluster's name (default: the spec's)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the spec"
    )
    parser.add_argument(
        "--allow-commands",
        action="store_true",
        help="let manifests' commands run on this machine's file system",
    )
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start it."""
    from testbed.api.start import start

    with Progress() as progress:
        progress.show("starting …")
        status = start(
            args.spec,
            manifests=args.filename,
            overrides=args.set,
            name=args.name,
            allow_commands=args.allow_commands,
        )
    if args.output:
        print_data(status, args.output)
    else:
        sys.stdout.write(describe(status))
    return 0


def describe(status: dict[str, Any]) -> str:
    """What ``up`` says of a cluster that is up."""
    running, pods = status["running"], status["pods"]
    outside = [name for name, role in status["hosts"].items() if role == "external"]
    lines = [
        f"cluster {status['metadata']['name']} is up: {status['nodes']} nodes, "
        f"{running} of {pods} pods running, {status['total']:.2f} s"
    ]
    if outside:
        lines.append(f"outside hosts: {', '.join(outside)}")
    if status["stored"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(status["stored"].items()))
        lines.append(f"stored, without effect on the network yet: {kinds}")
    lines += [f"not ready: node {name}: {why}" for name, why in sorted(status["failing"].items())]
    reasons: dict[str, list[str]] = {}
    for name, why in sorted(status["waiting"].items()):
        reasons.setdefault(why, []).append(name)
    lines += [f"not running: {_some(names)}: {why}" for why, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _some(names: list[str]) -> str:
    """``pod a``, ``pods a, b``, or of many the first and how many more."""
    shown = ", ".join(names[:3])
    if len(names) == 1:
        return f"pod {shown}"
    return f"pods {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
