"""Looks whether what a dataplane's daemons made is still there, as they do, and makes it again where not.

flanneld looks at its rules and, with some backends, its routes; felix at its rules, ipsets and routes. They
know by themselves what should be there: a node that is cut off from the control plane is mended, too.
Upstream: flannel ``pkg/trafficmngr/iptables/iptables.go`` (ensureIPTables), ``pkg/backend/route_network.go``
(routeCheck); calico ``felix/dataplane/linux/int_dataplane.go`` (the refresh intervals).
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Iterable

from testbed.cluster.messages import Change
from testbed.cluster.upkeep import (
    Made,
    Wish,
    alone,
    chains_to_make,
    entries_to_change,
    routes_to_change,
    sets_to_change,
    versions,
)
from testbed.errors import TestbedError
from testbed.kernel import netfilter, readback
from testbed.kernel.apply import Kernel
from testbed.rules import ipset
from testbed.rules.iptables import ChainKey, parse_save
from testbed.state import NODE, Chain, NetnsState, Upkeep

log = logging.getLogger(__name__)

NOTHING: Wish = (NetnsState(), NetnsState())


class Repairs:
    """Keeps what the daemons of a node look after, in the netns this process lives in.

    lost: is called where rules of others are gone, too.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, kernel: Kernel, node: str, lost: Callable[[str], None]
    ) -> None:
        self._loop, self._kernel, self._lost = loop, kernel, lost
        # Nodes do not all look at once: each has its own share of a period, half of it at least.
        self._share = 0.5 + zlib.crc32(node.encode()) / 2**33
        self._made = Made(())
        self._backend: netfilter.Backend = "nft"
        self._timers: dict[Upkeep, asyncio.TimerHandle] = {}

    def keep(self, backend: netfilter.Backend, upkeeps: Iterable[Upkeep]) -> None:
        """Look after these from now on; before anything is applied."""
        self.close()
        wanted = [each for each in upkeeps if each.period]
        self._backend, self._made = backend, Made(wanted)
        for each in wanted:
            self._timers[each] = self._loop.call_later(each.period * self._share, self._look, each)

    def applied(self, changes: Iterable[Change]) -> None:
        """Take note of what is there now."""
        self._made.applied(changes)

    def close(self) -> None:
        """Look no more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _look(self, upkeep: Upkeep) -> None:
        try:
            self._mend(upkeep, *self._wrong(upkeep))
        except TestbedError as error:
            log.warning("looking at %s: %s", upkeep.part, error)
        finally:  # a look that takes long is not followed by another at once
            self._timers[upkeep] = self._loop.call_later(upkeep.period, self._look, upkeep)

    def _mend(self, upkeep: Upkeep, add: NetnsState, remove: NetnsState) -> None:
        if (add, remove) == NOTHING:
            return
        log.warning("%s are made again: %s", upkeep.part, _named(add, remove))
        failures = self._kernel.change(NODE, add, remove)
        if failures and add.chains:
            self._lost(failures[0].message)  # the rules of others are gone, too
            failures = self._kernel.change(NODE, NetnsState(chains=alone(upkeep, add.chains)), remove)
        for failure in failures:
            log.warning("%s could not be made again: %s", upkeep.part, failure.message)

    def _wrong(self, upkeep: Upkeep) -> Wish:
        """What is to be done so that all is as it was made. Raises CommandFailed."""
        made = self._made
        match upkeep.part:
            case "chains" if made.chains:
                wrong: dict[ChainKey, Chain] = {}
                for family in netfilter.FAMILIES:
                    if mine := {key: chain for key, chain in made.chains.items() if chain.family == family}:
                        there = parse_save(netfilter.save(family, self._backend), family)
                        wrong |= chains_to_make(upkeep, mine, there)
                return NetnsState(chains=wrong), NetnsState()
            case "ipsets" if made.ipsets:
                return sets_to_change(made.ipsets, ipset.parse_save(netfilter.save_sets()))
            case "routes" if routes := made.on_devices["routes"]:
                return routes_to_change(upkeep, routes, readback.routes(versions(routes)))
            case "neighbours" if neighbours := made.on_devices["neighbours"]:
                come, go = entries_to_change(upkeep, neighbours, readback.neighbours(proxies=False))
                return NetnsState(neighbours=come), NetnsState(neighbours=go)
            case "fdb" if fdb := made.on_devices["fdb"]:
                coming, going = entries_to_change(upkeep, fdb, readback.fdb())
                return NetnsState(fdb=coming), NetnsState(fdb=going)
        return NOTHING


def _named(add: NetnsState, remove: NetnsState) -> str:
    """The first few of what is changed."""
    names = [
        *(" ".join(key) for key in add.chains),
        *(dict.fromkeys((*add.ipsets, *remove.ipsets))),
        *(dict.fromkeys((*add.routes, *remove.routes))),
        *(" ".join(key) for key in {**add.neighbours, **remove.neighbours}),
        *(" ".join(key) for key in {**add.fdb, **remove.fdb}),
    ]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
