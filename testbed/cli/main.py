"""The command line: finds the command, runs it, and turns every failure into a message and an exit code.

Each command is a module ``testbed.cli.<name>`` with ``register(subparsers)``, which adds its parser with
``set_defaults(run=…)``, and that ``run(args) -> int``. Only the module of the command that was asked for is
imported, and it imports what is heavy inside ``run``: ``testbed ls`` starts in under 100 ms.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

from testbed import __version__
from testbed.errors import TestbedError
from testbed.kernel.paths import add_system_directories

COMMANDS: tuple[str, ...] = (
    # One name a line, in the order of the help; add yours in the place where a person would look for it.
    "up",
    "down",
    "ls",
    "apply",
    "delete",
    "get",
    "describe",
    "scale",
    "node",
    "save",
    "load",
    "exec",
    "capture",
    "path",
    "reach",
    "policy",
    "fault",
    "conformance",
    "lab",
    "run",
    "campaign",
    "report",
    "shell",
    "render",
    "doctor",
)

INTERNAL_FAILURE = 4
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit codes beyond those of ``testbed.errors``: as a shell gives them for SIGINT and SIGPIPE."""


class CommandModule(Protocol):
    """What a module of a command offers."""

    def register(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the command's parser, with ``set_defaults(run=…)``."""
        ...


def command_in(argv: Sequence[str]) -> str | None:
    """The command that ``argv`` names: the first word that is no global option and no value of one."""
    words = iter(argv)
    for word in words:
        if word in ("-C", "--cluster"):
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def _common_options() -> argparse.ArgumentParser:
    """Options that are taken before and after a command's name; each says only what is given."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "-C", "--cluster", metavar="NAME", help="the cluster, where several run (or TESTBED_CLUSTER)"
    )
    common.add_argument("--debug", action="store_true", help="log every step; show tracebacks")
    return common


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for ``argv``: with the one command it names, or with all where it names none we know."""
    parser = argparse.ArgumentParser(
        prog="testbed",
        description="Kubernetes networking on one Linux machine, without Kubernetes.",
        parents=[_common_options()],
    )
    parser.add_argument("--version", action="version", version=f"testbed {__version__}")
    parser.set_defaults(cluster=os.environ.get("TESTBED_CLUSTER") or None, debug=False)
    subparsers = parser.add_subparsers(
        title="commands",
        metavar="COMMAND",
        required=True,
        parser_class=cast(
            type[argparse.ArgumentParser], partial(argparse.ArgumentParser, parents=[_common_options()])
        ),
    )
    asked = command_in(argv)
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        cast(CommandModule, importlib.import_module(f"testbed.cli.{name}")).register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a usage error raises SystemExit(2), as argparse has it."""
    _open_standard_files()
    add_system_directories()
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(words).parse_args(words)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s" if args.debug else "%(message)s",
    )
    try:
        code = int(args.run(args) or 0)
        sys.stdout.flush()
        return code
    except TestbedError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`| head`); what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last resort: a person gets one line, the traceback goes to a file
        report_crash(error, show=args.debug)
        return INTERNAL_FAILURE


def _open_standard_files() -> None:
    """Where somebody closed one of ours (``<&-``): else the next socket would become a program's input."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for the life of the process


def report_crash(error: Exception, *, show: bool) -> None:
    """Say on one line that something unforeseen happened; the traceback is shown, or kept in a file."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    if show:
        where = f"\n{text}"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="testbed-crash-", suffix=".txt", delete=False) as file:
            file.write(text)
        where = f" (traceback in {file.name}; --debug shows it)"
    print(f"internal failure: {type(error).__name__}: {error}{where}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
