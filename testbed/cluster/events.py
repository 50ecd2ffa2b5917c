"""Events: what happened to an object, for people, as Event objects in the store.

Correlated as upstream's client does before it sends them, so that a thousand similar events cost a few
writes: ``client-go/tools/record/events_cache.go`` (EventCorrelator).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from testbed.cluster.clock import Clock, timestamp
from testbed.objects.store import Store

Object = dict[str, Any]

AGGREGATE_FROM = 10
"""From that many different messages on, events of one reason about one object become one."""
AGGREGATE_SECONDS = 600.0
"""… if no more than this lies between two of them."""
SPAM_BURST = 25
"""Events that one component may write about one object at once."""
SPAM_SECONDS = 300.0
"""How long it takes until it may write another one."""
CACHE_SIZE = 4096
"""Of how many events, and of how many groups of them, is known that they were there."""

Key = tuple[str, ...]


@dataclass
class _Similar:
    """Events that differ in their message alone."""

    last: float
    messages: set[str] = field(default_factory=set)


@dataclass
class _Budget:
    """What a component may still write about an object (a token bucket)."""

    tokens: float
    since: float


@dataclass
class _Known:
    """An event in the store, and how often it happened; some repetitions are counted but not written."""

    namespace: str
    name: str
    count: int = 1


class Recorder:
    """Writes events. One that repeats (same object, reason and message) is counted, not written again.

    From AGGREGATE_FROM similar ones on, one event stands for them all, with the latest message; a component
    that says too much about one object is not heard for a while.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._known: dict[Key, _Known] = {}
        self._similar: dict[Key, _Similar] = {}
        self._budgets: dict[Key, _Budget] = {}
        self._number = 0

    def record(
        self,
        obj: Object,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        component: str = "",
    ) -> None:
        """Say that something happened to ``obj``; component: who says so, ``kubelet`` say."""
        if self._refused(obj["metadata"].get("namespace", "")):
            return
        uid, now = obj["metadata"].get("uid", ""), self._clock.now()
        source: Key = (component, obj["kind"], obj["metadata"]["name"], uid)
        message, key = self._aggregated((*source, kind, reason), message, now)
        known = self._known.get(key)
        if known is not None:
            known.count += 1
        if not self._may_write(source, now):
            return
        if known is not None and self._count(known, message, now):
            return
        self._known[key] = self._write(obj, kind, reason, message, component, now)
        _trim(self._known)

    def _refused(self, namespace: str) -> bool:
        """Whether nothing may be written there: the namespace goes, or is gone. Cluster-scoped: no."""
        found = self._store.find("Namespace", "", namespace) if namespace else None
        return bool(namespace) and (found is None or "deletionTimestamp" in found["metadata"])

    def _aggregated(self, group: Key, message: str, now: float) -> tuple[str, Key]:
        """The message as it is said, and under which key its repetitions are found."""
        similar = self._similar.get(group)
        if similar is None or now - similar.last > AGGREGATE_SECONDS:
            self._similar[group] = similar = _Similar(now)
            _trim(self._similar)
        similar.last = now
        similar.messages.add(message)
        if len(similar.messages) < AGGREGATE_FROM:
            return message, (*group, message)
        similar.messages.pop()
        return f"(combined from similar events): {message}", group

    def _may_write(self, source: Key, now: float) -> bool:
        budget = self._budgets.get(source)
        if budget is None:
            self._budgets[source] = budget = _Budget(SPAM_BURST, now)
            _trim(self._budgets)
        budget.tokens = min(SPAM_BURST, budget.tokens + (now - budget.since) / SPAM_SECONDS)
        budget.since = now
        if budget.tokens < 1:
            return False
        budget.tokens -= 1
        return True

    def _count(self, known: _Known, message: str, now: float) -> bool:
        """Write how often a known event happened; False if it is not in the store any more."""
        event = self._store.find("Event", known.namespace, known.name)
        if event is None:
            return False
        changed = {"count": known.count, "lastTimestamp": timestamp(now), "message": message}
        self._store.update({**event, **changed}, trusted=True)
        return True

    def _write(self, obj: Object, kind: str, reason: str, message: str, component: str, now: float) -> _Known:
        metadata, at = obj["metadata"], timestamp(now)
        namespace = metadata.get("namespace") or "default"
        self._number += 1
        name = f"{metadata['name']}.{int(now * 1e9) + self._number:x}"
        reference = {
            field: value
            for field, value in (
                ("apiVersion", obj["apiVersion"]),
                ("kind", obj["kind"]),
                ("name", metadata["name"]),
                ("namespace", metadata.get("namespace")),
                ("resourceVersion", metadata.get("resourceVersion")),
                ("uid", metadata.get("uid")),
            )
            if value
        }
        self._store.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": reference,
                "type": kind,
                "reason": reason,
                "message": message,
                "source": {"component": component} if component else {},
                "reportingComponent": component,
                "reportingInstance": "",
                "eventTime": None,
                "firstTimestamp": at,
                "lastTimestamp": at,
                "count": 1,
            },
            trusted=True,
        )
        return _Known(namespace, name)


def _trim(cache: dict[Key, Any]) -> None:
    """Forget the oldest entry of a cache that is full."""
    if len(cache) > CACHE_SIZE:
        del cache[next(iter(cache))]
