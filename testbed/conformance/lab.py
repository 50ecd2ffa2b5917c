"""What a case works with: a namespace of its own, objects in it, and questions asked from inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster, Place
from testbed.api.manifests import path_of
from testbed.errors import ExpectationFailed, NotConverged
from testbed.measure.messages import Language
from testbed.objects import kinds
from testbed.wait import patient, wait_until

Object = dict[str, Any]

WITHIN = 15.0
"""Seconds in which what a case waits for has to come true: many sync periods, and rarely waited out."""
ZONE = "topology.kubernetes.io/zone"
POLL = 0.1
"""Seconds between two looks."""


@dataclass(frozen=True)
class Heard:
    """One answer. answer: what was said; verdict, reason: as in ``docs/results.md``."""

    verdict: str
    reason: str
    answer: str

    def __str__(self) -> str:
        if self.verdict == "ok":
            return repr(self.answer)
        return self.verdict + (f" ({self.reason})" if self.reason else "")


@dataclass
class Lab:
    """One case's part of a cluster. namespace: its own; steps: what it has done so far; within: seconds in
    which what it waits for has to come true.

    at_end: what is to be done when all cases of the run are over, for what one leaves to the next.
    """

    cluster: Cluster
    namespace: str
    steps: list[str] = field(default_factory=list)
    within: float = WITHIN
    at_end: list[Callable[[], None]] = field(default_factory=list)
    _running: set[str] = field(default_factory=set)

    # --- the cluster ------------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> list[Object]:
        """Node objects by name."""
        items: list[Object] = self.cluster.client.get("/api/v1/nodes")["items"]
        return items

    def node_name(self, number: int) -> str:
        """The name of the ``number``-th node, from 0."""
        return str(self.nodes[number]["metadata"]["name"])

    def node_ip(self, number: int) -> str:
        """The InternalIP of the ``number``-th node, from 0."""
        return next(
            str(entry["address"])
            for entry in self.nodes[number]["status"]["addresses"]
            if entry["type"] == "InternalIP"
        )

    def node_of_another_zone(self, number: int) -> str:
        """The name of a node in another zone than that of the ``number``-th."""
        zones = [(node["metadata"].get("labels") or {}).get(ZONE) for node in self.nodes]
        return self.node_name(next(other for other, zone in enumerate(zones) if zone != zones[number]))

    @cached_property
    def outside(self) -> str:
        """The first host outside the cluster, as a source of questions: ``host:NAME``."""
        return f"host:{self.spec['external'][0]['name']}"

    @property
    def spec(self) -> Object:
        """The cluster's spec with its defaults."""
        document: Object = self.cluster.status["spec"]
        return document.get("spec", document)  # type: ignore[no-any-return]

    @property
    def proxy_mode(self) -> str:
        """The cluster's ``network.proxy.mode``."""
        return str(self.spec["network"]["proxy"]["mode"])

    # --- objects ----------------------------------------------------------------------------------------

    def apply(self, *objects: Object) -> list[Object]:
        """Apply objects in the case's namespace, all or nothing, and return them as they are stored."""
        placed = [
            {**obj, "metadata": {**obj["metadata"], "namespace": self.namespace}}
            if _kind(obj["kind"]).namespaced
            else obj
            for obj in objects
        ]
        self.cluster.client.post("/apis/testbed/v1/manifests", {"objects": placed})
        return [self.get(obj["kind"], obj["metadata"]["name"]) for obj in objects]

    def get(self, kind: str, name: str) -> Object:
        """One object of the case's namespace. Raises RequestFailed."""
        obj: Object = self.cluster.client.get(path_of(_kind(kind), self.namespace, name))
        return obj

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        """Objects of a kind in the case's namespace."""
        path = path_of(_kind(kind), self.namespace)
        items: list[Object] = self.cluster.client.get(path, labelSelector=selector)["items"]
        return items

    def create(self, obj: Object) -> Object:
        """Create one object, as ``kubectl create`` does. Raises RequestFailed."""
        created: Object = self.cluster.client.post(path_of(_kind(obj["kind"]), self.namespace), obj)
        return created

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        """Merge a patch into an object. Raises RequestFailed."""
        patched: Object = self.cluster.client.request(
            "PATCH",
            path_of(_kind(kind), self.namespace, name),
            patch,
            content_type="application/merge-patch+json",
        )
        return patched

    def delete(self, kind: str, name: str, grace: int | None = None) -> None:
        """Delete an object. grace: seconds, for a pod; None: its own."""
        query = {} if grace is None else {"gracePeriodSeconds": str(grace)}
        self.cluster.client.delete(path_of(_kind(kind), self.namespace, name), **query)

    def refused(self, attempt: Callable[[], object]) -> str:
        """The message by which the API refuses an attempt; that it does not is a failure."""
        try:
            attempt()
        except RequestFailed as error:
            return str(error)
        return self.fail("the API took what it has to refuse")

    def ready(self, selector: str = "", within: float = WITHIN) -> list[Object]:
        """Wait until the pods of a label selector (default: all of the case) are Ready; their objects."""
        self.cluster.wait(ready=selector, namespace=self.namespace, timeout=within)
        return self.objects("Pod", selector)

    def pod(self, name: str) -> Place:
        """The inside of a pod, to run programs in."""
        return self.cluster.pod(name, self.namespace)

    def pod_ip(self, name: str) -> str:
        """A pod's first address."""
        return str(self.get("Pod", name)["status"]["podIP"])

    # --- traffic ----------------------------------------------------------------------------------------

    def ask(
        self,
        source: str,
        ip: str,
        port: int,
        *,
        text: str = "/hostname",
        language: Language = "http",
        count: int = 1,
        source_port: int = 0,
        timeout: float = 1.0,
        at_once: int = 8,
    ) -> list[Heard]:
        """Ask ``ip:port`` ``count`` times. source: a pod of the case, ``host:NAME`` or ``node:NAME``."""
        request = {
            "questions": [
                {"source": self._source(source), "ip": ip, "port": port, "source_port": source_port}
            ],
            "language": language,
            "text": text,
            "count": count,
            "timeout": patient(timeout),
            "at_once": 1 if source_port else at_once,
        }
        replies = self.cluster.client.post("/apis/testbed/v1/conversations", request)["replies"]
        columns = (replies["verdict"], replies["reason"], replies["answer"])
        return [Heard(*row) for row in zip(*columns, strict=True)]

    def _source(self, name: str) -> str:
        """The full name of a source; a pod of the case runs by then."""
        if ":" in name or "/" in name:
            return name
        self.running(name)
        return f"{self.namespace}/{name}"

    def running(self, pod: str) -> None:
        """Wait until a pod of the case runs, so that programs can be run in it."""
        if pod not in self._running:
            self.until(lambda: self._not_running(pod))
            self._running.add(pod)

    def _not_running(self, pod: str) -> str:
        phase = (self.get("Pod", pod).get("status") or {}).get("phase", "Pending")
        return "" if phase == "Running" else f"pod {pod} is {phase}"

    # --- judging ----------------------------------------------------------------------------------------

    def step(self, what: str) -> None:
        """Say what comes now: a failure names the step it happened in."""
        self.steps.append(what)

    def until(self, problem: Callable[[], str], within: float | None = None) -> None:
        """Look until ``problem`` says "": nothing is wrong any more; else fail with what it said last."""
        seen = ""

        def fine() -> bool:
            nonlocal seen
            seen = problem()
            return not seen

        try:
            wait_until(fine, self.within if within is None else within, "", interval=POLL)
        except NotConverged as late:
            self.fail(f"still after {late.waited:.1f} s: {seen}")

    def stays(self, problem: Callable[[], str], seconds: float) -> None:
        """Look for ``seconds``: at no time may anything be wrong."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if what := problem():
                self.fail(what)
            time.sleep(POLL)

    def check(self, holds: bool, otherwise: str) -> None:
        """Fail the case unless something holds."""
        if not holds:
            self.fail(otherwise)

    def fail(self, why: str) -> NoReturn:
        """End the case as failed."""
        raise ExpectationFailed((f"{self.steps[-1]}: " if self.steps else "") + why)


def several(heard: Sequence[Heard]) -> str:
    """Answers in few words, equal ones together."""
    counts: dict[str, int] = {}
    for one in heard:
        counts[str(one)] = counts.get(str(one), 0) + 1
    return ", ".join(f"{count} \N{MULTIPLICATION SIGN} {what}" for what, count in counts.items())


def _kind(name: str) -> kinds.Kind:
    return kinds.BY_NAME[name]
