"""``testbed exec``: a program of this machine, run in the place of a pod, node or host, as kubectl exec."""

from __future__ import annotations

import argparse
import os
import sys
from urllib.parse import quote

from testbed.cli.target import add_target_options, exec_path, read_late, take_target
from testbed.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "exec",
        help="run a program in a pod, on a node or on a host",
        usage="testbed exec [-n NS] POD [-c CONTAINER] [-it] -- COMMAND…\n"
        "       testbed exec --node NODE | --host HOST [-it] -- COMMAND…",
        description="Run a program of this machine's file system in the namespaces of a pod (with its "
        "environment, host name and resolver files), a node or a host. POD may be deploy/NAME and the like: "
        "its first pod. The exit code is the program's (127: not found, 126: not executable).",
    )
    _add_options(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_target_options(parser)
    parser.add_argument("-c", "--container", default="", help="whose environment (default: the first)")
    parser.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    parser.add_argument("-t", "--tty", action="store_true", help="give the program a terminal")


def read_words(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(POD, COMMAND) of what was typed after the first options, which are in ``args``. Raises InputError."""
    words = list(args.words)
    split = words.index("--") if "--" in words else len(words)
    pod, left = take_target(args, words[:split])
    rest, command = read_late(args, _add_options, left), words[split + 1 :]
    if rest and command:
        raise InputError(f"unexpected {rest[0]!r} before --")
    if not (rest or command):
        raise InputError("say what to run, after --")
    return pod, command or rest


def run(args: argparse.Namespace) -> int:
    """Run it here and there; the exit code is the program's."""
    pod, argv = read_words(args)
    if any("\udc80" <= letter <= "\udcff" for word in argv for letter in word):
        raise InputError("the command is not UTF-8 text")
    from testbed.api.client import Client
    from testbed.cli import terminal
    from testbed.cluster.messages import Exec

    client = Client.of(args.cluster)
    path = exec_path(client, args, pod) + (f"?container={quote(args.container)}" if args.container else "")
    tty = args.tty and sys.stdout.isatty()
    if args.tty and args.stdin and not sys.stdin.isatty():
        print("Unable to use a TTY - input is not a terminal or the right kind of file", file=sys.stderr)
        tty = False
    env = {"TERM": os.environ.get("TERM", "xterm")} if tty else {}
    channel = client.channel(path)
    try:
        return terminal.relay(channel, Exec(1, "", tuple(argv), env, tty=tty), tty=tty, stdin=args.stdin)
    finally:
        channel.close()
