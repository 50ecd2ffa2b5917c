"""Running a scenario: a cluster of its own, its steps in order, the run folder and the report.

Whatever happens, the cluster is gone afterwards, and what was measured until then is kept.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from testbed.errors import TestbedError
from testbed.measure.floor import FLOOR_PATH
from testbed.quantiles import quantile
from testbed.records import (
    LOOPBACK,
    NODE_CHANGES,
    REACHABILITY,
    REPORT,
    SAMPLES,
    SUMMARY,
    Event,
    Expectation,
    RunRecord,
    Sample,
    appearing,
    event,
    new_run_folder,
    programming_samples,
    write_run,
)
from testbed.scenario.load import load_scenario
from testbed.scenario.model import Context, Scenario, Step
from testbed.scenario.steps.fault import heal_what_is_left
from testbed.scenario.timeline import run_steps

if TYPE_CHECKING:
    from testbed.api.cluster import Cluster

log = logging.getLogger(__name__)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A run that is over. error: why it ended early, if it did."""

    folder: Path
    expectations: Sequence[Expectation]
    summary: Any  # pandas.DataFrame
    error: TestbedError | None = None

    @property
    def met(self) -> bool:
        """Whether it came to its end and every expectation was met."""
        return self.error is None and all(one.met for one in self.expectations)


def run_scenario(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    out: Path = Path("results"),
    report: Report = lambda line: None,
    changes: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Finished:
    """Run the scenario of a file and write its folder below ``out``. report: gets a line per step.

    changes: of the file itself, as ``load_scenario`` takes them. seed: what is drawn by chance follows
    from it; None: the scenario's own.

    Raises InputError and MissingCapability where it could not begin; a failure later is in the result.
    """
    from testbed.scenario.environment import environment

    scenario = load_scenario(path, changes)
    if seed is not None:
        scenario = replace(scenario, seed=seed)
    for _, step in (*scenario.setup, *scenario.steps):
        step.needs()
    about = environment()
    about["seed"] = scenario.seed
    about["changes"] = dict(changes or {})
    running = _Running(scenario, [*scenario.overrides, *overrides], about, report)
    error = running.run()
    running.events.append(event("finished", error=str(error) if error else None))
    about["noise_floor"] = noise_floor(running.samples)
    record = RunRecord(scenario.name, running.events, running.expectations, about)
    folder, table = _write(out, record, running.samples, str(error) if error else "")
    return Finished(folder, running.expectations, table, error)


class _Running:
    """A scenario under way and what it has gathered so far. about: its environment, which is added to."""

    def __init__(
        self, scenario: Scenario, overrides: Sequence[str], about: dict[str, Any], report: Report
    ) -> None:
        self._scenario, self._overrides, self._about, self._report = scenario, overrides, about, report
        self.samples: list[Sample] = []
        self.events: list[Event] = [event("started", scenario=scenario.name)]
        self.expectations: list[Expectation] = []

    def run(self) -> TestbedError | None:
        """Every variant on a cluster of its own, then the conclusions; the error that ended it early, if any.

        Raises InputError and MissingCapability where the first cluster could not begin.
        """
        from testbed.spec.load import load_spec

        scenario = self._scenario
        asked = {name: [*self._overrides, *more] for name, more in scenario.variants.items()}
        specs = {name: load_spec(scenario.cluster, overrides) for name, overrides in asked.items()}
        self._about |= {
            "spec": next(iter(specs.values())).document,
            "overrides": list(self._overrides),
            "variants": {name: list(more) for name, more in scenario.variants.items() if name},
            "description": scenario.description,
        }
        for variant in specs:
            self._plan(variant)
        for variant, spec in specs.items():
            name = f"{spec.name[:56]}-{secrets.token_hex(3)}"
            shown = f"{variant}: " if variant else ""
            self._report(f"{shown}cluster {name}: {len(spec.nodes)} nodes, {scenario.cluster}")
            if error := self._on_own_cluster(variant, name, asked[variant]):
                return error
        return self._steps(scenario.conclusions, self._context(None, ""))

    def _plan(self, variant: str) -> None:
        """Say what will be done, before anything is: the same for the same seed."""
        context = self._context(None, variant)
        for number, (kind, step) in enumerate((*self._scenario.setup, *self._scenario.steps), 1):
            plan = step.plan(context.at_place(str(number)))
            context.note("plan", number=number, kind=kind, plan=plan)

    def _on_own_cluster(self, variant: str, name: str, overrides: Sequence[str]) -> TestbedError | None:
        from testbed.api.cluster import Cluster

        begun = len(self.events) > 1  # what was measured with a first cluster is kept, whatever a second does
        try:
            cluster = Cluster.up(self._scenario.cluster, name=name, overrides=overrides, bound=True)
        except TestbedError as unstarted:
            if not begun:
                raise
            return unstarted
        context = self._context(cluster, variant)
        with cluster:
            self._about["cluster"] = cluster.status
            context.note("cluster up", seconds=cluster.status.get("total"))
            error = self._steps([*self._scenario.setup, *self._scenario.steps], context)
            error = heal_what_is_left(context) or error
            self._about.setdefault("objects", {})[variant] = _placed(cluster)
            context.samples += programming_samples(programmed := cluster.programming())
            context.samples += programming_samples(cluster.programming(of="names"), "DNS programming")
            context.samples += programming_samples(cluster.programming(of="nodes"), NODE_CHANGES)
            if programmed["items"]:
                context.note("network programming", **_nodes_programmed(programmed))
        self.samples += (
            (msgspec.structs.replace(one, variant=variant) for one in context.samples)
            if variant
            else context.samples
        )
        return error

    def _context(self, cluster: Cluster | None, variant: str) -> Context:
        """A context for a cluster's steps, with samples of its own; for the conclusions, with all of them."""
        samples: list[Sample] = [] if cluster else self.samples
        return Context(
            cluster,
            self._scenario.folder,
            self._report,
            samples,
            self.events,
            self.expectations,
            variant,
            self._scenario.seed,
        )

    @staticmethod
    def _steps(steps: Sequence[tuple[str, Step]], context: Context) -> TestbedError | None:
        try:
            run_steps(steps, context, report=True)
        except TestbedError as error:
            log.debug("a step failed", exc_info=True)
            context.note("failed", error=str(error))
            return error
        return None


def _nodes_programmed(answer: dict[str, Any]) -> dict[str, Any]:
    """Node → how many changes of Services came into force there, and after how many seconds on average."""
    return {
        node: {"changes": seen["count"], "mean_seconds": seen["sum"] / seen["count"]}
        for node, seen in sorted(answer["nodes"].items())
        if seen["count"]
    }


def _placed(cluster: Cluster) -> dict[str, Any]:
    """Pods and Services at the end of the run, for the report's drawing of the cluster."""
    services = cluster.client.get("/api/v1/services")["items"]
    return {
        "pods": [
            {
                "name": pod["metadata"]["name"],
                "namespace": pod["metadata"].get("namespace", ""),
                "labels": pod["metadata"].get("labels") or {},
                "node": (pod.get("spec") or {}).get("nodeName", ""),
                "ip": (pod.get("status") or {}).get("podIP", ""),
                "phase": (pod.get("status") or {}).get("phase", ""),
            }
            for pod in cluster.pods()
        ],
        "services": [
            {
                "name": one["metadata"]["name"],
                "namespace": one["metadata"].get("namespace", ""),
                "type": one["spec"].get("type", "ClusterIP"),
                "ip": one["spec"].get("clusterIP", ""),
                "selector": one["spec"].get("selector") or {},
                "ports": [
                    f"{port.get('port')}/{port.get('protocol', 'TCP')}"
                    for port in one["spec"].get("ports") or ()
                ],
            }
            for one in services[:100]
        ],
    }


def noise_floor(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Median and 95th percentile, in seconds, of the echoes over a bare veth pair, or else over loopback;
    None without any."""
    paths = {FLOOR_PATH} if any(one.path == FLOOR_PATH for one in samples) else {LOOPBACK}
    times = sorted(one.seconds for one in samples if one.path in paths and one.seconds is not None)
    if not times:
        return None
    return {"median": quantile(times, 0.5), "p95": quantile(times, 0.95)}


def _write(out: Path, record: RunRecord, samples: Sequence[Sample], error: str) -> tuple[Path, Any]:
    # pandas loads only now: the cluster's processes are forks of this one, and are gone.
    from testbed.measure.frames import frame_of, reachability_table, summary
    from testbed.report.html import write_report

    frame = frame_of(samples)
    table = summary(frame)
    record.environment["error"] = error or None
    folder = new_run_folder(out, record.scenario)
    with appearing(folder) as draft:
        tables = {SAMPLES: frame, REACHABILITY: reachability_table(frame), SUMMARY: table}
        write_run(draft, record, tables)
        write_report([draft], draft / REPORT, title=folder.name)
    return folder, table
