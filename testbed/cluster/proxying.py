"""When a node's service rules are made again, and how long each change takes to be in force there.

As upstream's runner (``pkg/proxy/runner``): the first change is acted on at once; what comes before
``minSyncPeriod`` has passed since the last run ended is gathered for the next. Nothing but a node's service
rules waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from testbed.cluster.clock import Clock

KEPT = 20_000
"""Of how many changes and nodes the times are kept; the distribution counts all."""

BUCKETS = (0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Upper bounds, in seconds, of the distribution."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what Services lead to: the object's version, identity and when it was written.

    what: ``added``, ``modified``, ``deleted`` or, of a node, ``readdressed`` or ``restarted``;
    written: seconds since 1970.
    """

    version: int
    kind: str
    namespace: str
    name: str
    what: str
    written: float


@dataclass(frozen=True, slots=True)
class Programmed:
    """One change in force on one node. seconds: since it was written; how: what it took, if told."""

    change: Change
    node: str
    seconds: float
    how: str = ""


@dataclass(slots=True)
class Distribution:
    """How long changes took: how many at most as long as each of BUCKETS, of all, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    count: int = 0
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.sum += seconds
        for index, bound in enumerate(BUCKETS):
            self.counts[index] += seconds <= bound


def _recent() -> deque[Change]:
    return deque(maxlen=KEPT)


@dataclass(slots=True)
class _Node:
    """pending: changes that no run has taken up; taken: those of the run that is under way. Of a node that is
    down for long the latest are kept.

    dirty: something is to be made anew; waits: a timer will say when.
    """

    dirty: bool = True
    waits: bool = False
    running: bool = False
    ended: float | None = None
    pending: deque[Change] = field(default_factory=_recent)
    taken: deque[Change] = field(default_factory=_recent)


class Proxying:
    """The runs of every node's proxier. period: minSyncPeriod, seconds; touch: has a node looked at."""

    def __init__(self, clock: Clock, period: float, touch: Callable[[str], None]) -> None:
        self._clock, self._period, self._touch = clock, period, touch
        self._nodes: dict[str, _Node] = {}
        self._held = False
        self.distribution: dict[str, Distribution] = {}
        self.programmed: deque[Programmed] = deque(maxlen=KEPT)

    def changed(self, node: str, change: Change | None = None) -> None:
        """The rules of ``node`` are to be made again, after ``change``."""
        state = self._nodes.setdefault(node, _Node())
        state.dirty = True
        if change is not None and not self._held:  # the times of a start would say nothing
            state.pending.append(change)
        if state.running or self._waits(state):  # over() sees to it, or release()
            return
        if not (remaining := self._remaining(state)):
            self._touch(node)
        elif not state.waits:
            state.waits = True
            self._clock.later(remaining, lambda: self._due(node))

    def begin(self, node: str) -> bool:
        """Whether the node's rules may be made now; then a run begins, which ``over`` ends."""
        state = self._nodes.setdefault(node, _Node())
        if not state.dirty or self._waits(state) or self._remaining(state):
            return False
        state.dirty, state.running = False, True
        state.taken += state.pending
        state.pending.clear()
        return True

    def over(self, node: str, done: bool) -> None:
        """What was compiled last is in force on the node, or (not done) could not be brought there."""
        state = self._nodes.get(node)
        if state is None or not state.running:
            return
        state.running, state.ended = False, self._clock.now()
        if done:
            self._record(node, state)
            if state.dirty:
                self.changed(node)
        else:  # whoever was to bring it there tries again
            state.dirty, state.ended = True, None

    def forget(self, node: str) -> None:
        """The node is no more."""
        self._nodes.pop(node, None)

    def hold(self) -> None:
        """Let every node make its rules once, and then no more until ``release``: a cluster that starts
        changes all the time, and nobody uses it yet."""
        self._held = True

    def release(self) -> None:
        """Have every node make its rules now, whatever the period says."""
        self._held = False
        for node, state in self._nodes.items():
            if state.dirty and not state.running:
                state.ended = None
                self._touch(node)

    def behind(self, node: str) -> bool:
        """Whether the node's rules are not yet what they should be."""
        state = self._nodes.get(node)
        return state is not None and (state.dirty or state.running)

    def _waits(self, state: _Node) -> bool:
        return self._held and state.ended is not None

    def _remaining(self, state: _Node) -> float:
        if state.ended is None:
            return 0.0
        return min(self._period, max(0.0, state.ended + self._period - self._clock.now()))

    def _due(self, node: str) -> None:
        if (state := self._nodes.get(node)) is not None:
            state.waits = False
            if state.dirty and not state.running:
                self.changed(node)

    def _record(self, node: str, state: _Node) -> None:
        for change in state.taken:
            seconds = max(0.0, self._clock.now() - change.written)
            self.programmed.append(Programmed(change, node, seconds))
            self.distribution.setdefault(node, Distribution()).add(seconds)
        state.taken.clear()

    def since(self, version: int) -> Iterator[Programmed]:
        """What is kept of changes later than ``version``, in the order in which they came into force."""
        return (each for each in self.programmed if each.change.version > version)


METRIC = "kubeproxy_network_programming_duration_seconds"
"""kube-proxy's name of it (``pkg/proxy/metrics/metrics.go``); its buckets are coarser."""
METRIC_HELP = "In Cluster Network Programming Latency in seconds"


def exposition(
    distributions: Mapping[str, Distribution], metric: str = METRIC, about: str = METRIC_HELP
) -> str:
    """The distributions by node as Prometheus reads them. metric, about: its name and its help text."""
    lines = [f"# HELP {metric} {about}", f"# TYPE {metric} histogram"]
    for node, seen in sorted(distributions.items()):
        for bound, count in zip(BUCKETS, seen.counts, strict=True):
            lines.append(f'{metric}_bucket{{node="{node}",le="{bound:g}"}} {count}')
        lines += [
            f'{metric}_bucket{{node="{node}",le="+Inf"}} {seen.count}',
            f'{metric}_sum{{node="{node}"}} {seen.sum:.9g}',
            f'{metric}_count{{node="{node}"}} {seen.count}',
        ]
    return "".join(f"{line}\n" for line in lines)
