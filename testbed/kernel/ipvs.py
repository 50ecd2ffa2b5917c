"""IPVS in the netns of a node: servers are added, changed and, with care for connections, deleted.

A real server of TCP with connections is not deleted but gets weight 0, so that no more come to it; it goes
once it has none. Source: kubernetes ``pkg/proxy/ipvs/graceful_termination.go``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from testbed.kernel.run import run
from testbed.rules import ipvs
from testbed.state import NetnsState, RealServer, VirtualServer

LOOK_AGAIN = 60.0
"""Seconds until a server that was left its connections is looked at again."""

KNOWN = Path("/proc/net/ip_vs")
"""There where the kernel has IPVS and it is loaded."""


def restore(text: str) -> None:
    """Apply ``ipvsadm --restore`` input; "" is nothing to do. Raises CommandFailed."""
    if text:
        run((_program(), "--restore"), stdin=text)


def listing() -> str:
    """The servers of the netns as ``ipvsadm --save`` prints them, "" without IPVS. Raises CommandFailed."""
    return run((_program(), "--save", "--numeric")).stdout if KNOWN.exists() else ""


def _program() -> str:
    # An ordinary user's PATH has no sbin on Debian.
    return shutil.which("ipvsadm") or shutil.which("ipvsadm", path="/usr/sbin:/sbin") or "ipvsadm"


@dataclass
class _Netns:
    """What a netns holds of ours, and since when servers have been left with their connections."""

    virtual: dict[ipvs.VirtualKey, VirtualServer] = field(default_factory=dict)
    real: dict[ipvs.RealKey, RealServer] = field(default_factory=dict)
    leaving: dict[ipvs.RealKey, float] = field(default_factory=dict)


class Ipvs:
    """The servers of several netns. clock: seconds, for when to look again at those that are left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._netns: dict[str, _Netns] = {}

    def change(self, where: str, add: NetnsState, remove: NetnsState) -> None:
        """Change the netns this thread is in, which is called ``where``. Raises CommandFailed.

        A change of nothing still deletes servers that are due.
        """
        asked = add.virtual_servers or add.real_servers or remove.virtual_servers or remove.real_servers
        if not asked and where not in self._netns:
            return
        netns = self._netns.setdefault(where, _Netns())
        text = ipvs.edit_input(add.virtual_servers, add.real_servers, netns.virtual, netns.real)
        restore(text)
        netns.virtual |= add.virtual_servers
        netns.real |= add.real_servers
        for key in add.real_servers:
            netns.leaving.pop(key, None)
        self._remove(
            netns,
            [key for key in remove.virtual_servers if key not in add.virtual_servers],
            [key for key in remove.real_servers if key not in add.real_servers],
        )

    def forget(self, where: Iterable[str]) -> None:
        """These netns are no more."""
        for name in where:
            self._netns.pop(name, None)

    def _remove(self, netns: _Netns, virtual: list[ipvs.VirtualKey], real: list[ipvs.RealKey]) -> None:
        now = self._clock()
        due = [key for key, since in netns.leaving.items() if since + LOOK_AGAIN <= now]
        asked = [key for key in (*real, *due) if key[:2] not in virtual and key in netns.real]
        busy = self._busy(asked)
        restore(
            ipvs.edit_input(
                {}, {key: replace(netns.real[key], weight=0) for key in busy}, netns.virtual, netns.real
            )
        )
        gone = [key for key in asked if key not in busy]
        restore(ipvs.removal_input(virtual, gone))
        netns.leaving |= dict.fromkeys(busy, now)
        for key in virtual:
            netns.virtual.pop(key, None)
        for one in [key for key in netns.real if key in gone or key[:2] in virtual]:
            del netns.real[one]
            netns.leaving.pop(one, None)

    @staticmethod
    def _busy(keys: list[ipvs.RealKey]) -> set[ipvs.RealKey]:
        """Those of TCP that have connections; others are never waited for."""
        of_tcp = {key for key in keys if key[0] == "TCP"}
        if not of_tcp:
            return set()
        connections = ipvs.parse_connections(run((_program(), "--list", "--numeric")).stdout)
        return {key for key in of_tcp if connections.get(key, 0)}
