"""nftables in the netns of a node and its pods: each change one transaction, as kube-proxy makes them.

What was applied is kept, so that tables somebody has broken or flushed are made anew as a whole when a
change finds that out; kube-proxy, too, follows a failure by a full sync.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from testbed.errors import CommandFailed, KernelRefused
from testbed.kernel import nfnetlink
from testbed.kernel.netfilter import takes_large_transactions
from testbed.kernel.run import run
from testbed.rules import nft
from testbed.state import NetnsState, NftSet

log = logging.getLogger(__name__)

LINGER = 1.0
"""Seconds a chain stays, empty, after the last thing that led to it. Source: proxier.go, oneSecondAgo."""

BULK_RULES = 250
"""Of new chains in one transaction."""

UNPRIVILEGED_MOST = 1000
"""New chains, or elements, in one transaction where a socket's buffer of 208 kB cannot grow; 2,000 fit."""

TOO_LARGE = os.strerror(errno.EMSGSIZE)
"""What nft says of a transaction that does not fit into its socket's buffer."""

PARTS = ("nft_tables", "nft_chains", "nft_sets", "nft_elements")


def load(text: str) -> None:
    """Apply ``nft -f`` input; "" is nothing to do. Raises CommandFailed, which shows what was rejected."""
    if text:
        run((_program(), "-f", "-"), stdin=text)


IPTABLES = {(family, table) for family in ("ip", "ip6") for table in ("raw", "mangle", "nat", "filter")}
"""The tables that iptables-nft keeps its chains in."""


def listing() -> str:
    """All tables of the netns but those of iptables, as text. Raises CommandFailed."""
    tables = [line.split()[1:] for line in run((_program(), "list", "tables")).stdout.splitlines()]
    return "".join(
        run((_program(), "list", "table", family, name)).stdout
        for family, name in tables
        if (family, name) not in IPTABLES
    )


def _program() -> str:
    # An ordinary user's PATH has no sbin on Debian.
    return shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin") or "nft"


@dataclass
class _Netns:
    """What a netns holds of ours, and since when chains of it are empty and to be deleted."""

    held: dict[str, dict[Any, Any]] = field(default_factory=lambda: {part: {} for part in PARTS})
    emptied: dict[nft.Key, float] = field(default_factory=dict)


class Nftables:
    """The nftables of several netns. clock: seconds, for how long chains have been empty."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._netns: dict[str, _Netns] = {}

    def change(self, where: str, add: NetnsState, remove: NetnsState) -> None:
        """Change the netns this thread is in, which is called ``where``. Raises CommandFailed.

        A change of nothing still deletes chains that are due.
        """
        netns = self._netns.setdefault(where, _Netns())
        self._delete_emptied(netns)
        if not any(getattr(state, part) for state in (add, remove) for part in PARTS):
            return
        wanted = _changed(netns.held, add, remove)
        try:
            if not _elements_alone(add, remove, netns.held["nft_sets"]):
                _apply(add, remove, netns.held["nft_chains"])
        except CommandFailed as error:
            if not any(netns.held.values()):
                raise
            log.warning("all tables are made anew, after: %s", error)
            anew, gone = NetnsState(**wanted), NetnsState(nft_tables=remove.nft_tables)
            # At once, however long that takes: should it be refused, too, what there is stays.
            try:
                load(nft.script(anew, gone))
            except CommandFailed as again:
                if takes_large_transactions() or TOO_LARGE not in str(again):
                    raise
                _apply(anew, gone, ())
            netns.emptied.clear()
        else:
            netns.emptied |= dict.fromkeys(_emptied(add, remove), self._clock())
        netns.held = wanted
        netns.emptied = {
            key: since
            for key, since in netns.emptied.items()
            if key not in wanted["nft_chains"] and key[:2] in wanted["nft_tables"]
        }

    def forget(self, where: Iterable[str]) -> None:
        """These netns are no more."""
        for name in where:
            self._netns.pop(name, None)

    def _delete_emptied(self, netns: _Netns) -> None:
        due = [key for key, since in netns.emptied.items() if since + LINGER < self._clock()]
        for key in due:
            del netns.emptied[key]
        try:
            for first in range(0, len(due), UNPRIVILEGED_MOST):
                load(nft.deletion(due[first : first + UNPRIVILEGED_MOST]))
        except CommandFailed as error:  # empty chains do no harm; the tables may be gone altogether
            log.warning("chains that are no longer used could not be deleted: %s", error)


def _elements_alone(add: NetnsState, remove: NetnsState, sets: Mapping[nft.Key, NftSet]) -> bool:
    """Whether the change was of elements only, and could be made without nft, which is faster."""
    if any(getattr(state, part) for state in (add, remove) for part in PARTS if part != "nft_elements"):
        return False
    try:
        return nfnetlink.change_elements(sets, add.nft_elements.values(), remove.nft_elements.values())
    except KernelRefused as error:
        log.warning("nft is to change the elements instead: %s", error)
        return False


def _apply(add: NetnsState, remove: NetnsState, known: Container[nft.Key]) -> None:
    most = None if takes_large_transactions() else UNPRIVILEGED_MOST
    *unseen, last = nft.in_bulk(add, remove, known, BULK_RULES, most)
    for part in unseen:
        _write(part)
    load(nft.script(last, remove))


def _write(part: NetnsState) -> None:
    """Apply a part that no packet meets yet: of its rules the usual kind without nft, which is faster."""
    picks = {name: one for name, chain in part.nft_chains.items() if (one := nfnetlink.pick(chain))}
    try:
        nfnetlink.append(picks.values())
    except KernelRefused as error:
        log.warning("nft is to write the rules instead: %s", error)
        load(nft.script(part))
        return
    rest = {name: chain for name, chain in part.nft_chains.items() if name not in picks}
    load(nft.script(replace(part, nft_chains=rest)))


def _changed(held: Mapping[str, Mapping[Any, Any]], add: NetnsState, remove: NetnsState) -> dict[str, Any]:
    """What is held after a change."""
    void = {*add.nft_tables, *remove.nft_tables}

    def stays(part: str, key: tuple[str, ...]) -> bool:
        in_set = part == "nft_elements" and key[:3] in remove.nft_sets
        return key not in getattr(remove, part) and key[:2] not in void and not in_set

    return {
        part: {key: thing for key, thing in held[part].items() if stays(part, key)} | getattr(add, part)
        for part in PARTS
    }


def _emptied(add: NetnsState, remove: NetnsState) -> list[nft.Key]:
    return [
        key
        for key, chain in remove.nft_chains.items()
        if key not in add.nft_chains and not nft.is_base(chain) and key[:2] not in remove.nft_tables
    ]
