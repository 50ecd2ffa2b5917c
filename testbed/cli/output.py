"""What commands print: tables as kubectl lays them out, ``-o json|yaml|name``, a progress line.

Results go to standard output, everything else to standard error. Colour and progress appear only on a
terminal, colour never where ``NO_COLOR`` is set.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

PADDING = 3
MIN_WIDTH = 6
"""As kubectl's printers have it: kubernetes cli-runtime, ``pkg/printers/tabwriter.go``."""

_COLOUR_CODE = re.compile(r"\x1b\[\d+m")
COLOURS = {"red": "31", "green": "32", "yellow": "33", "grey": "90"}


def format_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns three spaces apart, the last one not padded; no headers: a table without a head line."""
    lines = [[str(cell) for cell in row] for row in rows]
    if headers:
        lines.insert(0, list(headers))
    if not lines:
        return ""
    widths = [max(max(map(_width, column)) + PADDING, MIN_WIDTH) for column in zip(*lines, strict=True)]
    return "".join(
        "".join(cell + " " * (width - _width(cell)) for cell, width in zip(line[:-1], widths, strict=False))
        + line[-1]
        + "\n"
        for line in lines
    )


def _width(cell: str) -> int:
    """Characters that are seen: all but those of colours."""
    return len(_COLOUR_CODE.sub("", cell))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, headed: bool = True) -> None:
    """Print a table on standard output; headed False: without its head line."""
    sys.stdout.write(format_table(headers if headed else (), rows))


def format_data(value: Any, form: str) -> str:
    """``value`` (plain data) as ``json`` or ``yaml``, keys sorted as kubectl has them."""
    if form == "json":
        return json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
    import yaml

    return yaml.safe_dump(value, default_flow_style=False, allow_unicode=True)


def print_data(value: Any, form: str) -> None:
    """Print ``value`` as ``json`` or ``yaml``."""
    sys.stdout.write(format_data(value, form))


def print_name(kind: str, name: str) -> None:
    """One line of ``-o name``: ``pod/web-0``."""
    print(f"{kind.lower()}/{name}")


def description(doc: str | None) -> str:
    """A command's help from its module's docstring: without the command's name at the front of it."""
    text = re.sub(r"^``testbed [^`]*``: ", "", doc or "")
    return text[:1].upper() + text[1:]


def print_actions(done: Iterable[tuple[str, str, str]], form: str) -> None:
    """What was done to which objects, (kind, name, action) each, as data."""
    print_data([dict(zip(("kind", "name", "action"), row, strict=True)) for row in done], form)


def add_output_option(parser: argparse.ArgumentParser, *forms: str) -> None:
    """Add ``-o/--output`` with these forms (default json and yaml); ``args.output`` is None for a table."""
    parser.add_argument("-o", "--output", choices=forms or ("json", "yaml"), help="instead of a table")


def colour(text: str, name: str, stream: TextIO | None = None) -> str:
    """``text`` in a colour of COLOURS where ``stream`` (default: standard output) is a terminal."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{COLOURS[name]}m{text}\x1b[0m"


class Progress:
    """One line on standard error that says what is going on; nothing where that is no terminal.

    Use as a context manager: the line is gone at its end.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._shown:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.show("")
