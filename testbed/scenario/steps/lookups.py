"""``lookups``: names looked up from inside a pod by its own resolver, and the DNS messages that takes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Annotated, Any

import msgspec

from testbed.errors import CommandFailed, InputError
from testbed.measure.lookups import argv
from testbed.records import Sample
from testbed.scenario.model import Context, Step, step

KUBE_SYSTEM = "/api/v1/namespaces/kube-system/pods"


@step("lookups")
class Lookups(Step, frozen=True, kw_only=True):
    """forms: what a name is called in the report → the name; each is looked up ``count`` times from ``pod``.

    questions: form → how many different DNS questions a lookup takes (a resolver that gets no answer in 5 s
    asks the same again); fails: the forms that have no address. lose: a
    label selector in kube-system; after ``lose_after`` seconds one of its pods is deleted without notice.
    lost_at_most: share of lookups that may fail.
    """

    forms: dict[str, str]
    pod: str
    namespace: str = "default"
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 50
    interval: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    questions: dict[str, int] = msgspec.field(default_factory=dict)
    fails: tuple[str, ...] = ()
    lose: str = ""
    lose_after: float = 1.0
    lost_at_most: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def run(self, context: Context) -> None:
        """Look up, record a sample for each lookup, and compare."""
        timer = threading.Timer(self.lose_after, self._lose, (context,)) if self.lose else None
        if timer:
            timer.start()
        try:
            rows = self._rows(context)
        finally:
            if timer:
                timer.join()
        forms = {name: form for form, name in self.forms.items()}
        context.samples += [
            self._sample(context, forms[row["name"]], number, row) for number, row in enumerate(rows, 1)
        ]
        self._judge_questions(context, forms, rows)
        self._judge_failures(context, forms, rows)

    def _rows(self, context: Context) -> list[dict[str, Any]]:
        command = argv(list(self.forms.values()), self.count, self.interval)
        done = context.cluster.pod(self.pod, self.namespace).run(command)
        if done.code:
            raise CommandFailed(command, done.code, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _lose(self, context: Context) -> None:
        pods = context.cluster.client.get(KUBE_SYSTEM, labelSelector=self.lose)["items"]
        if not pods:
            raise InputError(f"lookups: no pod of kube-system is selected by {self.lose}")
        name = pods[0]["metadata"]["name"]
        context.cluster.client.delete(f"{KUBE_SYSTEM}/{name}", gracePeriodSeconds="0")
        context.note("lost", pod=name)

    def _sample(self, context: Context, form: str, sequence: int, row: dict[str, Any]) -> Sample:
        return Sample(
            kind="dns",
            step=self.name,
            variant=context.variant,
            source=self.pod,
            source_namespace=self.namespace,
            source_node="",
            destination=row["name"],
            destination_namespace="",
            destination_node="",
            ip="",
            protocol="dns",
            path=form,
            verdict="error" if row["error"] else "ok",
            reason=row["error"],
            attempts=len(row["questions"]),
            sequence=sequence,
            at=row["at"],
            seconds=row["seconds"],
            seconds_kernel=row["network"],
            answer=" ".join(row["addresses"])[:63],
        )

    def _judge_questions(self, context: Context, forms: dict[str, str], rows: list[dict[str, Any]]) -> None:
        for form, wanted in self.questions.items():
            counts = Counter(
                len({(name, kind) for name, kind in row["questions"]})
                for row in rows
                if forms[row["name"]] == form
            )
            seen = ", ".join(f"{count} in {times} lookups" for count, times in counts.items())
            context.expect(
                self.name, f"{form}: {wanted} questions", seen or "no lookup", set(counts) == {wanted}
            )

    def _judge_failures(self, context: Context, forms: dict[str, str], rows: list[dict[str, Any]]) -> None:
        for form in self.forms:
            of_form = [row for row in rows if forms[row["name"]] == form]
            failed = [row["error"] for row in of_form if row["error"]]
            seen = f"{len(failed)} of {len(of_form)} failed" + (f": {failed[0]}" if failed else "")
            if form in self.fails:
                context.expect(self.name, f"{form}: no address", seen, len(failed) == len(of_form) > 0)
            else:
                met = len(failed) <= self.lost_at_most * len(of_form)
                context.expect(self.name, f"{form}: at most {self.lost_at_most:.1%} fail", seen, met)
