"""iptables and ipsets in the current netns: restore a text, of rules as one transaction per table; save."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from functools import cache
from typing import Literal

from testbed.errors import CommandFailed
from testbed.kernel.run import run
from testbed.rules.iptables import rejected_lines, restore_inputs
from testbed.state import Chain, Family

Backend = Literal["nft", "legacy"]

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

LOCK_SECONDS = "5"
"""How long the legacy tools, which share one lock file on the host, wait for it; kube-proxy's own value."""


QUICK_LINES: dict[Backend, int] = {"nft": 3000, "legacy": 1_000_000}
"""Lines up to which one restore is the quickest: the time of one with nf_tables (1.8.9) grows with the square
of its lines, 5,000 Services take a minute in one; the legacy tools write the whole table each time."""


UNPRIVILEGED_LINES = 250
"""The same with nf_tables where a socket's buffer cannot be forced, as in a user namespace of one's own: what
is sent at once has to fit into it, else the tool says "Message too long"."""

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; not in Python's socket module


@cache
def takes_large_transactions() -> bool:
    """Whether a netlink socket's buffer can be forced to any size here, as the tools try to."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
        except PermissionError:
            return False
    return True


def _lines_at_once(backend: Backend) -> int:
    """How many lines are restored at once here."""
    if backend == "nft" and not takes_large_transactions():
        return UNPRIVILEGED_LINES
    return QUICK_LINES[backend]


def _tool(family: Family, backend: Backend, verb: str) -> str:
    return _program(f"{'ip6tables' if family == 'ipv6' else 'iptables'}-{backend}-{verb}")


def _program(name: str) -> str:
    # An ordinary user's PATH has no sbin on Debian.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") or name


def restore(text: str, family: Family, backend: Backend = "nft") -> None:
    """Apply restore input without flushing what it does not name; "" is nothing to do.

    Raises CommandFailed, which shows the lines that were rejected; then no table that follows was changed.
    """
    if not text:
        return
    argv = (_tool(family, backend, "restore"), "--noflush", "--wait", LOCK_SECONDS)
    try:
        run(argv, stdin=text)
    except CommandFailed as error:
        rejected = "\n".join(rejected_lines(text, error.stderr))
        raise CommandFailed(argv, error.returncode, f"{error.stderr.strip()}\n{rejected}") from error


def change(add: Iterable[Chain], remove: Iterable[Chain], family: Family, backend: Backend = "nft") -> None:
    """Add and remove chains, in the order and at once as far as is quick (``rules.iptables.restore_inputs``).

    Raises CommandFailed; then some of it may be done.
    """
    for text in restore_inputs(add, remove, family, _lines_at_once(backend)):
        restore(text, family, backend)


def save(family: Family, backend: Backend = "nft") -> str:
    """The rules of all tables of a family as text. Raises CommandFailed."""
    return run((_tool(family, backend, "save"),)).stdout


def has_chain(family: Family, table: str, name: str, backend: Backend = "nft") -> bool:
    """Whether a table has a chain. Raises CommandFailed where that cannot be told."""
    tool = _program(f"{'ip6tables' if family == 'ipv6' else 'iptables'}-{backend}")
    try:
        run((tool, "--wait", LOCK_SECONDS, "-t", table, "-S", name))
    except CommandFailed as error:
        if error.returncode == 1:
            return False
        raise
    return True


def restore_sets(text: str) -> None:
    """Apply ``ipset restore`` input; "" is nothing to do. Raises CommandFailed, which shows the line."""
    if not text:
        return
    argv = (_program("ipset"), "restore")
    try:
        run(argv, stdin=text)
    except CommandFailed as error:
        rejected = "\n".join(rejected_lines(text, error.stderr))
        raise CommandFailed(argv, error.returncode, f"{error.stderr.strip()}\n{rejected}") from error


def save_sets() -> str:
    """The ipsets with their entries as text. Raises CommandFailed."""
    return run((_program("ipset"), "save", "-sorted")).stdout
