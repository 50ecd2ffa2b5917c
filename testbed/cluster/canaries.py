"""Notices that somebody flushed a node's iptables: chains that nobody uses, and whether they are still there.

As upstream's monitor (``pkg/util/iptables/iptables.go``, Monitor): one empty chain in each table; when one is
gone, so are the rules beside it, and all are made again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from testbed.cluster.messages import Change, ChangeNetns
from testbed.errors import TestbedError
from testbed.kernel import netfilter
from testbed.rules.iptables import ChainKey
from testbed.state import NODE, Family

log = logging.getLogger(__name__)

NAMES = ("KUBE-PROXY-CANARY", "KUBE-KUBELET-CANARY")


class Canaries:
    """The canaries of the node in whose netns this process lives. lost: is called once when one is gone.

    They are looked at one after the other, so that all were within a period.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[str], None]) -> None:
        self._loop, self._lost = loop, lost
        self._there: dict[ChainKey, None] = {}
        self._backend: netfilter.Backend = "nft"
        self._period = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, backend: netfilter.Backend, period: float) -> None:
        """Look every ``period`` seconds; 0: never."""
        self.close()
        self._backend, self._period = backend, period
        if period:
            self._look_later()

    def applied(self, changes: Iterable[Change]) -> None:
        """Take note of what is there now."""
        for change in changes:
            if isinstance(change, ChangeNetns) and change.where == NODE:
                for key in _canaries(change.remove.chains):
                    self._there.pop(key, None)
                self._there |= dict.fromkeys(_canaries(change.add.chains))

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        wait = self._period / max(1, len(self._there))
        self._timer = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        key = next(iter(self._there), None)
        if key is not None:
            family, table, name = key
            self._there[key] = self._there.pop(key)  # to the end
            try:
                there = netfilter.has_chain(_family(family), table, name, self._backend)
            except TestbedError as error:
                log.warning("canaries: %s", error)
                there = True  # nobody knows
            if not there:
                self._there.clear()  # said once; what is applied next brings them back
                self._lost(f"{family} table {table} has no chain {name}")
        self._look_later()


def _canaries(chains: Iterable[ChainKey]) -> list[ChainKey]:
    return [key for key in chains if key[2] in NAMES]


def _family(text: str) -> Family:
    return "ipv6" if text == "ipv6" else "ipv4"
