"""``wait``: until pods are ready. ``pause``: a stated window in which nothing is done."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec

from testbed.scenario.model import Context, Step, step


@step("wait")
class Wait(Step, frozen=True, kw_only=True):
    """ready: label selector, "" for every pod; namespace "": all; timeout: seconds.

    settled: then wait, too, until the nodes' rules lead to them, which takes longer than being ready.
    """

    ready: str = ""
    namespace: str = ""
    timeout: float = 60.0
    settled: bool = False

    def run(self, context: Context) -> None:
        """Wait; how long it took is recorded."""
        seconds = context.cluster.wait(ready=self.ready, namespace=self.namespace, timeout=self.timeout)
        if self.settled:
            context.cluster.settle(self.timeout)
        context.note("ready", selector=self.ready, namespace=self.namespace, seconds=seconds)


@step("pause")
class Pause(Step, frozen=True, kw_only=True):
    """Let time pass, to see that something stays as it is. seconds: how long; why: for the record."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    why: str

    def run(self, context: Context) -> None:
        """Let it pass."""
        time.sleep(self.seconds)
        context.note("paused", seconds=self.seconds, why=self.why)
