"""``testbed capture``: the packets of any interface in the cluster, on the screen or in a pcapng file.

The capturing program runs in the target's netns and only copies packets; text is made here, by the
machine's own tcpdump reading them from a pipe, so that it looks as it does everywhere else, and so that
tcpdump needs no privileges and no user ids, which a sandbox may not have for it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from testbed.cli.target import add_target_options, exec_path, read_late, take_target
from testbed.errors import InputError, Lack, MissingCapability, TestbedError

STYLES = {
    "e": "link-level headers",
    "v": "more of each packet",
    "A": "payload as text",
    "X": "payload in hex",
}
"""Options of tcpdump that say how a packet is shown, handed on."""

CHUNK = 1 << 16

_TIME = re.compile(r"\d\d:\d\d:\d\d\.\d+ ")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "capture",
        help="capture packets of a pod, a node or a host",
        usage="testbed capture [-n NS] POD | --node NODE | --host HOST "
        "[-i IF] [-w FILE] [-c COUNT] [FILTER…]",
        description="Capture in a pod's, a node's or a host's network until Ctrl-C. FILTER is tcpdump's. "
        "Without -w the packets are shown as tcpdump shows them, with interface and direction.",
    )
    _add_options(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_target_options(parser)
    parser.add_argument("-i", "--interface", default="any", help="default: any, new ones included")
    parser.add_argument("-w", "--write", metavar="FILE", help="write pcapng to FILE, - for standard output")
    parser.add_argument("-c", "--count", type=_count, default=0, help="end after this many packets")
    for letter, what in STYLES.items():
        parser.add_argument(f"-{letter}", action="count", default=0, dest=f"style_{letter}", help=what)


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return int(text)


def read_words(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(POD, FILTER) of what was typed after the first options; options may stand between words."""
    split = args.words.index("--") if "--" in args.words else len(args.words)
    pod, left = take_target(args, args.words[:split])
    words: list[str] = []
    while left:
        if not left[0].startswith("-"):
            words.append(left.pop(0))
            continue
        left = read_late(args, _add_options, left)
    return pod, words + args.words[split + 1 :]


def run(args: argparse.Namespace) -> int:
    """Capture until the count is reached or a person stops it."""
    pod, words = read_words(args)
    from testbed.api.client import Client
    from testbed.cli import terminal
    from testbed.cluster.messages import Exec
    from testbed.kernel import capture

    code = capture.parse_code(compile_filter(words)) if words else []
    client = Client.of(args.cluster)
    path = exec_path(client, args, pod)
    where = f"node {args.node}" if args.node else f"host {args.host}" if args.host else f"pod {pod}"
    comment = f"testbed capture of {where}, interface {args.interface}" + f": {' '.join(words)}" * bool(words)
    argv = capture.argv(args.interface, args.count, code, comment)
    channel = client.channel(path)
    try:
        with _output(args) as out:
            return terminal.relay(channel, Exec(1, "", tuple(argv)), tty=False, stdin=False, stdout=out)
    finally:
        channel.close()


# --- the filter -------------------------------------------------------------------------------------

_EMPTY_PCAP = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
"""A capture file of Ethernet without packets: reading one, tcpdump compiles a filter without privileges."""


def compile_filter(words: list[str]) -> str:
    """A filter as a classic BPF program for Ethernet, in tcpdump's ``-ddd`` form. Raises InputError."""
    tcpdump = _tcpdump("-ddd", "-r", "-", "--", " ".join(words))
    done = subprocess.run(tcpdump, input=_EMPTY_PCAP, capture_output=True, check=False)
    if done.returncode != 0:
        raise InputError(f"filter {' '.join(words)!r}: {_last_line(done.stderr).removeprefix('tcpdump: ')}")
    return done.stdout.decode("ascii")


def _last_line(text: bytes) -> str:
    """What tcpdump ends with saying; before it, it says what it reads."""
    return (text.decode(errors="replace").strip().splitlines() or ["tcpdump failed"])[-1]


def _tcpdump(*words: str) -> list[str]:
    from shutil import which

    program = which("tcpdump")
    if program is None:
        why = "shows packets and compiles filters (-w FILE without a filter works)"
        raise MissingCapability([Lack("tcpdump", why, "apt-get install tcpdump")])
    return [program, *words]


# --- where the packets go ---------------------------------------------------------------------------


@contextmanager
def _output(args: argparse.Namespace) -> Iterator[int]:
    """The descriptor to capture into, while someone takes care of what comes out. Raises InputError."""
    if args.write == "-":
        yield sys.stdout.fileno()
    elif args.write:
        # Opened here, so that it belongs to whoever asked; the sandbox gets the descriptor.
        try:
            file = open(args.write, "wb")  # noqa: SIM115 - closed by the with below
        except OSError as error:
            raise InputError(f"{args.write}: {error.strerror}") from error
        with file:
            yield file.fileno()
    else:
        styles = [f"-{letter}" for letter in STYLES for _ in range(getattr(args, f"style_{letter}"))]
        with _on_screen(styles) as descriptor:
            yield descriptor


@contextmanager
def _on_screen(styles: list[str]) -> Iterator[int]:
    """A pipe whose packets tcpdump shows; each line gets the interface and direction of its packet."""
    labels: collections.deque[str] = collections.deque()
    begun = threading.Event()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as complaints, open(reader, "rb", buffering=0) as packets:
        # In a session of its own: Ctrl-C is for the capture, whose last packets are still to be shown.
        tcpdump = subprocess.Popen(
            _tcpdump("-l", "-n", *styles, "-r", "-"),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
        threads = (
            threading.Thread(target=_feed, args=(packets, tcpdump.stdin, labels, begun)),
            threading.Thread(target=_show, args=(tcpdump, labels)),
        )
        for thread in threads:
            thread.start()
        try:
            yield writer
        finally:
            os.close(writer)
            for thread in threads:
                thread.join()
            code = tcpdump.wait()
        if code > 0 and begun.is_set():  # else the capture did not begin, and has said why
            complaints.seek(0)
            raise TestbedError(_last_line(complaints.read()))


def _feed(
    packets: IO[bytes], tcpdump: IO[bytes], labels: collections.deque[str], begun: threading.Event
) -> None:
    """Copy the file to tcpdump, the labels of its packets first: they are there when its lines come out."""
    from testbed.kernel.capture import Labels

    of_file = Labels()
    with contextlib.suppress(BrokenPipeError), packets, tcpdump:  # it has ended, and says why
        while data := packets.read(CHUNK):
            begun.set()
            labels.extend(of_file.feed(data))
            while data:
                data = data[tcpdump.write(data) :]


def _show(tcpdump: subprocess.Popen[bytes], labels: collections.deque[str]) -> None:
    """Print tcpdump's lines; a line with a time begins a packet."""
    with io.BufferedReader(cast(io.RawIOBase, tcpdump.stdout)) as lines:
        try:
            for raw in lines:
                line = raw.decode(errors="replace")
                if (time := _TIME.match(line)) and labels:
                    line = f"{time.group()}{labels.popleft()} {line[time.end() :]}"
                sys.stdout.write(line)
                sys.stdout.flush()
        except BrokenPipeError:  # nobody looks any more
            tcpdump.kill()
