"""Running cases: several at a time, each in a namespace of its own, and a verdict for each of them."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster
from testbed.conformance import Case
from testbed.conformance.lab import WITHIN, ZONE, Lab
from testbed.errors import NotConverged, TestbedError
from testbed.kernel.capabilities import missing
from testbed.wait import wait_until

log = logging.getLogger(__name__)

JOBS = 8
"""Cases at a time. They mostly wait for a sync, so there may be more of them than CPUs."""
DIFFERS_WITHIN = 4.0
"""Seconds in which what is known to differ would have come true."""
GONE_WITHIN = 30.0
"""Seconds in which the namespaces of a run have to be gone."""


Status = Literal["passed", "differs", "failed", "deferred"]
"""``differs``: a known difference; ``deferred``: not run, for lack of something."""


class Verdict(msgspec.Struct, frozen=True):
    """What became of a case. why: of one that is not passed; seconds: what it took, clean-up aside."""

    name: str
    promise: str
    status: Status
    why: str = ""
    seconds: float = 0.0


def run_cases(
    cluster: Cluster,
    cases: Sequence[Case],
    *,
    jobs: int = JOBS,
    report: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Run them; a verdict each, in their order. report: called with each as it is known.

    A case whose namespace does not go away afterwards has failed.
    """
    run = _Run(cluster, report)
    beside = [case for case in cases if not case.alone]
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        found = dict(zip((case.name for case in beside), pool.map(run.one, beside), strict=True))
    for case in cases:
        if case.alone:
            found[case.name] = run.one(case)
    run.end()
    left = run.left_behind()
    return [_without_trace(found[case.name], case.name in left) for case in cases]


def _without_trace(verdict: Verdict, left: bool) -> Verdict:
    if not left:
        return verdict
    why = f"its namespace is still there after {GONE_WITHIN:g} s"
    why = f"{verdict.why}; {why}" if verdict.why else why
    return msgspec.structs.replace(verdict, status="failed", why=why)


def absence(need: str, spec: dict[str, Any], nodes: Sequence[dict[str, Any]]) -> str:
    """Why a cluster or this kernel does not offer what a case needs, or "". nodes: the Node objects.

    need: ``nodes:N``, ``zones:N``, ``outside`` (a host outside the cluster), ``mode:NAME`` (of the service
    proxy), ``upstream`` and ``no upstream`` (a DNS host outside), ``dual stack``, or a capability of
    ``kernel.capabilities``.
    """
    word, _, rest = need.partition(":")
    if word in ("nodes", "zones"):
        zones = {(node["metadata"].get("labels") or {}).get(ZONE) for node in nodes} - {None}
        number = len(nodes if word == "nodes" else zones)
        return "" if number >= int(rest) else f"needs {rest} {word}, the cluster has {number}"
    if word == "mode":
        mode = spec["network"]["proxy"]["mode"]
        return "" if mode == rest else f"is about proxy mode {rest}, the cluster has {mode}"
    if need == "outside":
        return "" if spec.get("external") else "needs a host outside the cluster (spec.external)"
    if need in ("upstream", "no upstream"):
        there = any(host.get("dns") for host in spec.get("external") or ())
        lacks = {
            "upstream": "needs a DNS host outside (spec.external[].dns)",
            "no upstream": "has a DNS host",
        }
        return "" if there == (need == "upstream") else lacks[need]
    if need == "dual stack":
        return "" if isinstance(spec["network"]["podCIDR"], list) else "needs both families (network.podCIDR)"
    return "; ".join(str(lack) for lack in missing([need]))


class _Run:
    def __init__(self, cluster: Cluster, report: Callable[[Verdict], None]) -> None:
        self._cluster, self._report = cluster, report
        self._lock = threading.Lock()
        self._namespaces: dict[str, str] = {}  # case → its namespace
        self._at_end: list[Callable[[], None]] = []
        self._id = secrets.token_hex(2)

    def one(self, case: Case) -> Verdict:
        """Run one case, whatever it does."""
        within = DIFFERS_WITHIN if case.differs else WITHIN
        lab = Lab(self._cluster, self._namespace_of(case), within=within, at_end=self._at_end)
        begun = time.monotonic()
        status, why = self._judged(case, lab)
        verdict = Verdict(case.name, case.promise, status, why, time.monotonic() - begun)
        with self._lock:
            self._report(verdict)
        return verdict

    def _judged(self, case: Case, lab: Lab) -> tuple[Status, str]:
        status, why = self._outcome(case, lab)
        if not case.differs or status == "deferred":
            return status, why
        if status == "failed":
            return "differs", f"{case.differs} ({why})"
        return "failed", f"was known to differ ({case.differs}), and no longer does"

    def _outcome(self, case: Case, lab: Lab) -> tuple[Status, str]:
        try:
            if why := "; ".join(_absences(case.needs, lab)):
                return "deferred", why
            self._inside(case, lab)
        except TestbedError as error:
            log.debug("%s", case.name, exc_info=True)
            return "failed", str(error)
        except Exception as error:  # noqa: BLE001 - a broken case is a failed one, and the others go on
            where = traceback.extract_tb(error.__traceback__)[-1]
            return "failed", f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        return "passed", ""

    def _inside(self, case: Case, lab: Lab) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": lab.namespace}}
        self._cluster.client.post("/api/v1/namespaces", namespace)
        self._namespaces[case.name] = lab.namespace
        path = f"/api/v1/namespaces/{lab.namespace}"
        try:
            case.body(lab)
        finally:
            self._cluster.client.delete(f"{path}/pods", gracePeriodSeconds="0")
            self._cluster.client.delete(path)

    def _namespace_of(self, case: Case) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
        return f"{words[:50].rstrip('-')}-{self._id}"

    def end(self) -> None:
        """Undo what cases left for each other, the last first."""
        while self._at_end:
            self._at_end.pop()()

    def left_behind(self) -> set[str]:
        """The cases whose namespaces are not gone with all that was in them after GONE_WITHIN seconds."""
        left = dict(self._namespaces)

        def gone() -> bool:
            for case in [case for case, namespace in left.items() if not self._there(namespace)]:
                del left[case]
            return not left

        with contextlib.suppress(NotConverged):
            wait_until(gone, GONE_WITHIN, "the namespaces of the cases are gone", interval=0.1)
        return set(left)

    def _there(self, namespace: str) -> bool:
        try:
            self._cluster.client.get(f"/api/v1/namespaces/{namespace}")
        except RequestFailed as error:
            if error.reason == "NotFound":
                return False
            raise
        return True


def _absences(needs: Iterable[str], lab: Lab) -> list[str]:
    return [why for need in needs if (why := absence(need, lab.spec, lab.nodes))]


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many passed, failed and were deferred."""
    return {
        status: sum(verdict.status == status for verdict in verdicts)
        for status in ("passed", "differs", "failed", "deferred")
    }
