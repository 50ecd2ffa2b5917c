"""Looks whether a dataplane's own rules are still as it made them, as flanneld does every few seconds.

Rules that somebody changed are noticed, whichever they are; then all are made again. Upstream: flannel
``pkg/trafficmngr/iptables/iptables.go`` (ensureIPTables).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from testbed.cluster.messages import Change, ChangeNetns
from testbed.errors import TestbedError
from testbed.kernel import netfilter
from testbed.rules.iptables import ChainKey, is_built_in, parse_save
from testbed.state import NODE, Chain

log = logging.getLogger(__name__)


class Repairs:
    """Watches chains of the node in whose netns this process lives. lost: is called with what is missing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[str], None]) -> None:
        self._loop, self._lost = loop, lost
        self._wanted: dict[ChainKey, Chain] = {}
        self._backend: netfilter.Backend = "nft"
        self._names: tuple[str, ...] = ()
        self._period = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, backend: netfilter.Backend, names: Iterable[str], period: float) -> None:
        """Look at chains of these names, and at what leads to them, every ``period`` seconds; 0: never."""
        self.close()
        self._backend, self._names, self._period = backend, tuple(names), period
        if period and self._names:
            self._timer = self._loop.call_later(period, self._look)

    def applied(self, changes: Iterable[Change]) -> None:
        """Take note of what is there now."""
        if not self._names:
            return
        for change in changes:
            if isinstance(change, ChangeNetns) and change.where == NODE:
                for key in (*change.remove.chains, *change.add.chains):
                    self._wanted.pop(key, None)
                self._wanted |= {key: chain for key, chain in change.add.chains.items() if self._ours(chain)}

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ours(self, chain: Chain) -> bool:
        return chain.name in self._names or any(map(self._leads, chain.rules))

    def _leads(self, rule: str) -> bool:
        return rule.rpartition(" -j ")[2] in self._names

    def _look(self) -> None:
        try:
            missing = self._missing()
        except TestbedError as error:
            log.warning("looking at rules: %s", error)
            missing = ""  # nobody knows
        if missing:
            self._wanted.clear()  # said once; what is applied next brings them back
            self._lost(missing)
        self._timer = self._loop.call_later(self._period, self._look)

    def _missing(self) -> str:
        for family in netfilter.FAMILIES:
            wanted = {key: chain for key, chain in self._wanted.items() if chain.family == family}
            if not wanted:
                continue
            there = parse_save(netfilter.save(family, self._backend), family)
            for key, chain in wanted.items():
                found = there[key].rules if key in there else ()
                if is_built_in(chain):
                    gone = [rule for rule in chain.rules if self._leads(rule) and rule not in found]
                elif found != chain.rules:
                    gone = [rule for rule in chain.rules if rule not in found] or [
                        "other rules, or in disorder"
                    ]
                else:
                    continue
                if gone:
                    return f"{family} table {chain.table}, chain {chain.name}: {gone[0]}"
        return ""
