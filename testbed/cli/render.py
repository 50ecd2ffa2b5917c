"""``testbed render``: what would be applied to a node, without applying it."""

from __future__ import annotations

import argparse
import sys

from testbed.cli.output import description


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "render", help="show what a node would get", description=description(__doc__)
    )
    parser.add_argument("spec", metavar="SPEC", help="the cluster spec, a YAML file")
    parser.add_argument(
        "-f", "--filename", action="append", default=[], metavar="MANIFEST", help="with this applied too"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the spec"
    )
    parser.add_argument("--node", required=True, help="the node's name")
    parser.add_argument(
        "--what", default="all", metavar="PART", help="services, policy, routes, dns, all (default)"
    )
    parser.add_argument("--family", choices=("ipv4", "ipv6"), help="rules of one family (default: both)")
    parser.add_argument("-o", "--output", choices=("json",), help="the state as data, not as commands")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from testbed.api.offline import node_state
    from testbed.cluster.render import FAMILIES, render

    if args.what == "dns":
        return _names(args)
    state, fragments = node_state(args.spec, args.filename, args.set, args.node)
    if args.output == "json":
        print(as_json(state))
    else:
        families = (args.family,) if args.family else FAMILIES
        sys.stdout.write(render(state, fragments, args.what, families))
    return 0


def _names(args: argparse.Namespace) -> int:
    from testbed.api.offline import names
    from testbed.cluster.render import render_names

    found = names(args.spec, args.filename, args.set)
    if args.output == "json":
        print(as_json(found))
    else:
        sys.stdout.write(render_names(found))
    return 0


def as_json(state: object) -> str:
    """A state as JSON; keys of several parts are joined by a space."""
    import msgspec

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {" ".join(k) if isinstance(k, tuple) else k: plain(v) for k, v in value.items()}
        return value if isinstance(value, str | int | float | None) else [plain(v) for v in value]  # type: ignore[attr-defined]

    # The builtin types of a Struct keep tuple keys, which JSON has none of.
    data = plain(msgspec.msgpack.decode(msgspec.msgpack.encode(state), strict=False))
    return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
