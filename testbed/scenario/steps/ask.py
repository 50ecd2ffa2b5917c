"""``ask``: conversations with Services, at a steady rate or one after the other; steps may run meanwhile."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from testbed.errors import InputError
from testbed.measure import metrics
from testbed.measure.balance import evenness
from testbed.measure.messages import Language
from testbed.records import Sample, ask_samples
from testbed.scenario.model import Context, Step, Steps, step

SERVICE = "service"
"""The ``path`` of samples that were sent to a Service's address."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some of many Services: ``choose`` at equal distances among those whose name begins with ``prefix``."""

    prefix: str
    choose: int = 100


@step("ask")
class Ask(Step, frozen=True, kw_only=True):
    """Ask a Service (``namespace/name`` or ``name``), or some of many, by the cluster IP and its first port.

    source: ``namespace/pod``, ``pod``, ``host:NAME`` or ``node:NAME``. rate: conversations begun a second for
    ``seconds``; without one, ``count`` of them, ``at_once`` at a time. during: steps to run meanwhile, from
    ``before`` seconds on. size: what the samples are filed under in a plot of growth. about: a word of
    explanation for the report. failed_at_most, failed_at_least, at_least: expected counts; even: servers
    get equal shares, with at least this p of a chi-square test over the answers, which are their names.
    """

    source: str
    service: str = ""
    services: Choice | None = None
    language: Language = "http"
    text: str = "/hostname"
    rate: float = 0.0
    seconds: float = 0.0
    count: int = 0
    at_once: int = 1
    timeout: float = 3.0
    during: Steps = Steps()
    before: float = 2.0
    size: int = 0
    about: str = ""
    at_least: int | None = None
    failed_at_most: int | None = None
    failed_at_least: int | None = None
    even: float | None = None

    def run(self, context: Context) -> None:
        """Ask, record, compare."""
        title = self.name or "ask"
        askers, request = self._request(context)
        context.note("load", step=title, rate=self.rate, conversations=request["count"], about=self.about)
        with ThreadPoolExecutor(1) as beside:
            asking = beside.submit(
                context.cluster.client.post, "/apis/testbed/v1/conversations", request, timeout=None
            )
            if self.during.listed:
                time.sleep(self.before)  # a stretch without any change, to compare with
                self.during.run(context)
            answer = asking.result()
        samples = ask_samples(title, askers, answer)
        context.samples += samples
        context.note("load done", step=title)
        context.report(f"  {counts(samples)}")
        self._judge(context, title, samples)

    def _request(self, context: Context) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The ends of each question, as samples have them, and the request itself."""
        count = round(self.rate * self.seconds) or self.count
        targets = self._targets(context)
        if not count or not targets:
            raise InputError("ask: needs a count, or a rate and seconds; and a Service that has a cluster IP")
        namespace, _, name = self.source.rpartition("/")
        askers = [
            {
                "source": name,
                "source_namespace": "" if ":" in name else namespace or "default",
                "source_node": "",
                "destination": target["metadata"]["name"],
                "destination_namespace": target["metadata"]["namespace"],
                "destination_node": "",
                "ip": target["spec"]["clusterIP"],
                "protocol": self.language,
                "port": target["spec"]["ports"][0]["port"],
                "path": SERVICE,
                "size": self.size,
            }
            for target in targets
        ]
        questions = [{"source": self.source, "ip": one["ip"], "port": one["port"]} for one in askers]
        return askers, {
            "questions": questions,
            "language": self.language,
            "text": self.text if self.language != "tcp" else "",
            "count": count,
            "rate": self.rate,
            "at_once": 8192 if self.rate else self.at_once,
            "timeout": self.timeout,
        }

    def _targets(self, context: Context) -> list[dict[str, Any]]:
        client = context.cluster.client
        if self.services is None:
            namespace, _, name = self.service.rpartition("/")
            return [client.get(f"/api/v1/namespaces/{namespace or 'default'}/services/{name}")]
        every = [
            one
            for one in client.get("/api/v1/services")["items"]
            if one["metadata"]["name"].startswith(self.services.prefix)
        ]
        chosen = min(self.services.choose, len(every))
        return [every[number * len(every) // chosen] for number in range(chosen)]

    def _judge(self, context: Context, title: str, samples: Sequence[Sample]) -> None:
        failed = sum(sample.verdict != "ok" for sample in samples)
        seen = counts(samples)
        if self.at_least is not None:
            expected = f"at least {self.at_least:,} conversations"
            context.expect(title, expected, f"{len(samples):,}", len(samples) >= self.at_least)
        if self.failed_at_most is not None:
            expected = f"at most {self.failed_at_most} of {len(samples):,} conversations failed"
            context.expect(title, expected, seen, failed <= self.failed_at_most)
        if self.failed_at_least is not None:
            expected = f"at least {self.failed_at_least} of {len(samples):,} conversations failed"
            context.expect(title, expected, seen, failed >= self.failed_at_least)
        if self.even is not None:
            shares = Counter(sample.answer for sample in samples if sample.verdict == "ok")
            chance = evenness(shares.values())
            expected = f"equal shares of the servers that answer, p above {self.even:g}"
            found = f"p = {chance:.3g}: " + ", ".join(f"{count:,}" for count in shares.values())
            context.expect(title, expected, found, len(shares) > 1 and chance > self.even)


def counts(samples: Sequence[Sample]) -> str:
    """``15,990 ok (median 0.8 ms), 10 timeout (no answer)``."""
    found = Counter((sample.verdict, sample.reason) for sample in samples)
    middle = metrics.quantile([sample for sample in samples if sample.verdict == "ok"], 0.5)
    about = "" if math.isnan(middle) else f" (median {middle * 1e3:.2f} ms)"
    parts = (
        f"{number:,} {verdict}" + (f" ({reason})" if reason else about)
        for (verdict, reason), number in found.most_common()
    )
    return ", ".join(parts)
