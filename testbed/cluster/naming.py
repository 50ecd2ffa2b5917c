"""Feeds the cluster's DNS servers: what changed of the names, at once, to the nodes that have some.

As CoreDNS watches the API: apart from the nodes' own work, and as a change comes. What comes while one is
being worked out goes with the next. How long each change took until the servers answer by it is kept, as
``cluster.proxying`` keeps it of service rules.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from testbed.cluster.clock import Clock
from testbed.cluster.messages import FeedNames
from testbed.cluster.proxying import KEPT, Change, Distribution, Programmed
from testbed.control.snapshot import Snapshot
from testbed.dns.dnsmasq import change, name_files
from testbed.dns.records import Records, records
from testbed.state import NameFiles

log = logging.getLogger(__name__)

METRIC = "coredns_kubernetes_dns_programming_duration_seconds"
"""CoreDNS' name of it (``plugin/kubernetes/metrics.go``), which it counts for headless Services alone."""
METRIC_HELP = "DNS programming latency in seconds"

GATHER_SECONDS = 0.02
"""How long changes are gathered after one was sent: 20 changes a second go out one by one."""

Send = Callable[[FeedNames], object]


@dataclass(slots=True)
class _Sent:
    """Changes under one serial. restart: whether they are answered by only after a restart."""

    serial: int
    changes: list[Change]
    restart: bool


@dataclass(slots=True)
class _Node:
    """A node with DNS servers. waits: what was sent to it and is not yet answered by."""

    send: Send
    waits: list[_Sent] = field(default_factory=list)


class Naming:
    """What the DNS servers were told, and when they had taken it.

    snapshot: the cluster as it is now; progress: called when ``behind`` may have changed.
    """

    def __init__(
        self, clock: Clock, snapshot: Callable[[], Snapshot], progress: Callable[[], object]
    ) -> None:
        self._clock, self._snapshot, self._progress = clock, snapshot, progress
        self._nodes: dict[str, _Node] = {}
        self._made: tuple[Snapshot, Records] | None = None
        self._files: NameFiles | None = None
        self._zone_serial = int(clock.now())
        self._serial = 0
        self._pending: list[Change] = []
        self._dirty = asyncio.Event()
        self.distribution: dict[str, Distribution] = {}
        self.programmed: deque[Programmed] = deque(maxlen=KEPT)

    def changed(self, what: Change) -> None:
        """Something that names depend on changed."""
        if self._nodes:
            self._pending.append(what)
            self._dirty.set()

    def wanted(self, node: str, send: Send) -> None:
        """A node's DNS servers want to be fed. send: to its agent."""
        self._nodes.pop(node, None)
        self.update()
        self._nodes[node] = _Node(send)
        files = self._files or NameFiles()
        send(FeedNames(self._serial, files.hosts, files.servers, files.externals, whole=True))

    def gone(self, node: str) -> None:
        """The node's agent has ended."""
        self._nodes.pop(node, None)
        self._progress()

    def fed(self, node: str, serial: int, restarted: int) -> None:
        """The node's servers answer by what was sent up to ``serial``; configurations up to ``restarted``."""
        state = self._nodes.get(node)
        if state is None:
            return
        now = self._clock.now()
        waits = []
        for sent in state.waits:
            if sent.serial > (restarted if sent.restart else serial):
                waits.append(sent)
                continue
            for one in sent.changes:
                seconds = max(0.0, now - one.written)
                how = "restart" if sent.restart else "files"
                self.programmed.append(Programmed(one, node, seconds, how))
                self.distribution.setdefault(node, Distribution()).add(seconds)
        state.waits = waits
        self._progress()

    def since(self, version: int) -> Iterator[Programmed]:
        """Changes later than ``version`` that a node's servers answer by; how: ``files`` or ``restart``."""
        return (each for each in self.programmed if each.change.version > version)

    @property
    def behind(self) -> bool:
        """Whether some server does not answer yet by what was sent to it."""
        return self._dirty.is_set() or any(node.waits for node in self._nodes.values())

    async def run(self) -> None:
        """Feed until cancelled."""
        while True:
            await self._dirty.wait()
            try:
                self.update()
            except Exception:
                # What is wrong with the names may be changed; the next change tries again.
                log.exception("the names of the cluster cannot be worked out")
                self._dirty.clear()
            self._progress()
            await asyncio.sleep(GATHER_SECONDS)

    def update(self) -> None:
        """Work out the files and send what is different."""
        self._dirty.clear()
        changes, self._pending = self._pending, []
        snapshot = self._snapshot()
        if self._made is not None and self._made[0] is snapshot:
            return
        made = records(snapshot, self._made)
        files = name_files(made, snapshot.facts.upstream_dns, self._zone_serial)
        different = change(self._files, files)
        self._made, self._files = (snapshot, made), files
        if different.how == "nothing":
            return
        self._serial += 1
        message = FeedNames(self._serial, different.hosts, different.servers, different.externals)
        for node in self._nodes.values():
            node.waits.append(_Sent(self._serial, changes, different.how == "restart"))
            node.send(message)
