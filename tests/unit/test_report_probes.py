"""Parts of a report: probes, ways, variants, nodes, the cluster and trust, from samples made by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from testbed.measure.frames import frame_of, median_interval, samples_of, summary
from testbed.measure.machine import overloaded
from testbed.records import NODE_CHANGES, READ, Event, Run, Sample, path_samples
from testbed.report.loads import loads, node_changes
from testbed.report.probes import probes
from testbed.report.svg import NOTHING
from testbed.report.topology import levels, topology
from testbed.report.trust import near_floor, overloads
from testbed.report.variants import side_by_side
from testbed.report.ways import ways


def sample(number: int, **fields: Any) -> Sample:
    base = {
        "kind": "probe",
        "step": "load",
        "source": "a",
        "source_namespace": "default",
        "source_node": "node-1",
        "destination": "b",
        "destination_namespace": "default",
        "destination_node": "node-2",
        "ip": "10.244.2.2",
        "protocol": "udp",
        "path": "cross-node",
        "sequence": number,
        "at": 1000.0 + number / 10,
        "seconds": 100e-6 + number * 1e-6,
        "copies": 1,
        "order": number,
        "late": 0.0,
    }
    return Sample(**{**base, **fields})


def run_of(samples: list[Sample], events: list[Event] | None = None, **environment: Any) -> Run:
    return Run(Path(), frame_of(samples), environment, events or [], [])


def lost(number: int) -> Sample:
    return sample(number, verdict="timeout", seconds=None, copies=0, order=0)


LOAD = Event(1.0, 999.0, "probe", {"step": "load", "rate": 10.0, "about": "what it shows"})


def test_figures_of_a_probe_stand_in_its_table() -> None:
    samples = [lost(n) if 20 <= n < 30 else sample(n) for n in range(1, 101)]
    shown = probes(run_of([*samples, sample(101, warm_up=True, seconds=9.0)]))
    assert "10<br><small>10.00%</small>" in shown
    assert "1.00 s" in shown  # from the first lost to the next answered
    assert "9.00 s" not in shown  # of the warm-up


def test_a_figure_near_the_floor_or_taken_under_overload_is_marked_with_the_reason() -> None:
    floor = [sample(n, kind="floor", path="bare veth", protocol="icmp", seconds=90e-6) for n in range(1, 20)]
    samples = [sample(n) for n in range(1, 50)]
    assert "below 5 noise floors of 90.0 µs" in probes(run_of([*samples, *floor]))
    low = [one.replaced({"seconds": 5e-6}) for one in floor]
    assert "noise floors of" not in probes(run_of([*samples, *low]))
    busy = Event(2.0, 1001.0, "machine", {"step": "load", "busy": 0.99, "steal": 0.0})
    assert "the CPUs were 99% busy" in probes(run_of([*samples, *low], [busy]))


def test_how_many_were_sent_late_and_what_p99_falls_on_is_told() -> None:
    samples = [sample(n, late=1e-3 if n <= 3 else 0.0) for n in range(1, 99)] + [lost(99), lost(100)]
    shown = probes(run_of(samples))
    assert "3<br><small>3.00%</small>" in shown
    assert ">lost</td>" in shown
    assert "infinitely late" in shown


def test_what_was_lost_keeps_a_curve_below_all() -> None:
    whole, half = (
        probes(run_of([sample(n) for n in range(1, 50)] + [lost(n) for n in lost_ones]))
        for lost_ones in ((), range(50, 99))
    )
    assert ", 49 lost" in half
    assert " lost" not in whole.split("<table")[0]
    tops = [min(map(float, re.findall(r"V([0-9.]+)", shown))) for shown in (whole, half)]
    assert tops == [10.0, 10.0 + (286.0 - 10.0) / 2], "half of them at half the height"


def test_what_makes_a_machine_overloaded() -> None:
    assert overloaded({"busy": 0.5, "steal": 0.1}) == "10% of the CPU time was stolen by the host"
    assert overloaded({"busy": 0.96, "steal": 0.0}) == "the CPUs were 96% busy"
    assert overloaded({"busy": 0.9, "steal": 0.01}) == ""
    assert near_floor(float("nan"), 1.0) == near_floor(1.0, float("nan")) == ""
    assert overloads([Event(0.0, 0.0, "step", {"step": "x"})]) == {}


def test_faults_are_bands_from_applied_to_healed_and_to_the_end_without() -> None:
    def fault(what: str, wall: float, number: str) -> Event:
        return Event(0.0, wall, what, {"fault": "link-down", "id": number, "target": ["node-2"]})

    events = [
        LOAD,
        fault("fault applied", 1002.1, "1"),
        fault("fault healed", 1004.1, "1"),
        fault("fault applied", 1008.1, "2"),
    ]
    (load,) = loads(run_of([sample(n) for n in range(1, 101)], events))
    assert [(round(begin, 6), round(end, 6), name) for begin, end, name in load.bands] == [
        (2.0, 4.0, "link-down node-2"),
        (8.0, 9.9, "link-down node-2"),
    ]


def test_each_variant_heals_its_own_fault_of_the_same_number() -> None:
    def fault(what: str, wall: float, variant: str) -> Event:
        detail = {"fault": "loss", "id": "fault-1", "target": ["node-2"], "variant": variant}
        return Event(0.0, wall, what, detail)

    events = [
        Event(1.0, 999.0, "probe", {"step": "load", "rate": 10.0, "variant": "one"}),
        fault("fault applied", 1002.1, "one"),
        fault("fault healed", 1004.1, "one"),
        fault("fault applied", 2002.1, "two"),
        fault("fault healed", 2004.1, "two"),
    ]
    (load,) = loads(run_of([sample(n, variant="one") for n in range(1, 101)], events))
    assert [(round(begin, 6), round(end, 6)) for begin, end, _ in load.bands] == [(2.0, 4.0)]


def test_convergence_counts_from_a_rollout_too() -> None:
    samples = [lost(n) if 30 <= n < 40 else sample(n) for n in range(1, 101)]
    shown = probes(run_of(samples, [Event(1.0, 1002.0, "rollout begun", {})]))
    assert "1.90 s" in shown  # from 1002.0 to the last one lost


ANSWER = {
    "source": "a",
    "destination": "web",
    "ip": "10.96.0.9",
    "port": 80,
    "protocol": "tcp",
    "journeys": [
        {
            "number": number,
            "at": 1000.0,
            "round_trip": 50e-6,
            "hops": [
                {
                    "leg": "there",
                    "where": "pod a",
                    "interface": "eth0",
                    "way": "out",
                    "at": 1.0,
                    "seconds": 0.0,
                    "rewritten": {},
                },
                {
                    "leg": "there",
                    "where": "node node-1",
                    "interface": "cni0",
                    "way": "in",
                    "at": 1.0,
                    "seconds": 40e-6,
                    "rewritten": {"destination": ["10.96.0.9", "10.244.2.2"]},
                },
                {
                    "leg": "back",
                    "where": "pod a",
                    "interface": "eth0",
                    "way": "in",
                    "at": 1.0,
                    "seconds": 10e-6,
                    "rewritten": {},
                },
            ],
        }
        for number in range(3)
    ],
}


def test_the_way_of_a_packet_is_drawn_with_what_is_rewritten() -> None:
    samples = path_samples("hop by hop", ANSWER)
    shown = ways(run_of(samples))
    assert "3 of 3 answered" in shown
    assert "destination 10.96.0.9 → 10.244.2.2" in shown
    assert "node node-1" in shown
    table = summary(frame_of(samples))
    assert list(table["path"]) == ["whole way"]
    assert float(table["median"].iloc[0]) == 50e-6


def test_the_fabric_is_drawn_by_its_distance_from_the_nodes() -> None:
    links = [("node-1", "s1"), ("node-2", "s1"), ("s1", "gateway"), ("gateway", "s2"), ("s2", "client")]
    assert levels(["node-1", "node-2"], links) == [["client"], ["s2"], ["gateway"], ["s1"]]


def test_a_pod_carries_the_services_that_lead_to_it() -> None:
    pod = {
        "name": "web-1",
        "namespace": "default",
        "labels": {"app": "web"},
        "node": "node-1",
        "ip": "10.244.1.2",
        "phase": "Running",
    }
    service = {
        "name": "web",
        "namespace": "default",
        "type": "ClusterIP",
        "ip": "10.96.0.9",
        "selector": {"app": "web"},
        "ports": ["80/TCP"],
    }
    about = {
        "cluster": {"links": [["node-1", "eth0", "s1", "s1-eth1"]], "hosts": {"node-1": "node"}},
        "objects": {"": {"pods": [pod], "services": [service]}},
    }
    assert "default/web-1, 10.244.1.2, Running, behind default/web" in topology(about)
    assert topology({}) == ""


def test_samples_come_back_from_a_frame_as_they_were() -> None:
    samples = [sample(1), lost(2), sample(3, warm_up=True, repetition=2)]
    assert samples_of(frame_of(samples)) == samples


def test_the_interval_of_repetitions_draws_whole_ones() -> None:
    """Between two repetitions that differ as wholes, nothing can be known more narrowly than their
    difference."""
    values = np.concatenate([np.full(500, 1.0), np.full(500, 2.0)])
    groups = np.repeat([1, 2], 500)
    assert median_interval(values, groups=groups) == (1.0, 2.0)


def rows(html: str) -> dict[str, list[str]]:
    """Label → cells of the table."""
    found = {}
    for row in re.findall("<tr>(.*?)</tr>", html):
        label, *cells = re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)
        found[label] = cells
    return found


def event(what: str, variant: str, **detail: Any) -> Event:
    return Event(0.0, 0.0, what, {"variant": variant, **detail})


def echoes(variant: str, path: str, *seconds: float | None) -> list[Sample]:
    return [
        sample(
            number,
            kind="rtt",
            step="trips",
            variant=variant,
            path=path,
            seconds=each,
            verdict="ok" if each else "timeout",
        )
        for number, each in enumerate(seconds)
    ]


def test_each_variant_is_a_column_and_what_it_has_not_is_empty() -> None:
    samples = [
        *echoes("one", "same-node", 10e-6, 30e-6, 20e-6),
        *echoes("one", "cross-node", 50e-6),
        *echoes("two", "same-node", 40e-6),
        *echoes("two", "loopback", 1e-6),
    ]
    samples += [
        sample(n, step="load", variant="two", verdict="ok" if n != 5 else "timeout") for n in range(9)
    ]
    samples += [
        sample(n, step="bulk", variant="one", protocol="throughput", bits_per_second=n * 1e8, seconds=None)
        for n in (1, 2, 3)
    ]
    events = [
        event("cluster up", "one", seconds=2.0),
        event("cluster up", "two", seconds=3.0),
        event(READ, "two", step="7", name="MTU", value="1450"),
    ]
    assert rows(side_by_side(run_of(samples, events))) == {
        "": ["one", "two"],
        "cluster up": ["2.00 s", "3.00 s"],
        "trips, same node": ["20.0 µs", "40.0 µs"],
        "trips, cross node": ["50.0 µs", NOTHING],
        "load": [NOTHING, "104 µs"],
        "load: longest outage": [NOTHING, "100 ms"],
        "bulk, Mbit/s": ["200", NOTHING],
        "MTU": [NOTHING, "1450"],
    }


def test_what_has_the_same_label_is_told_apart() -> None:
    samples = [
        sample(1, step="web", kind=kind, variant=variant, path="", seconds=seconds)
        for kind, seconds in (("ask", 10e-6), ("dns", 20e-6))
        for variant in ("one", "two")
    ]
    events = [
        event(READ, variant, step=step, name="MTU", value=f"{step} of {variant}")
        for variant in ("one", "two")
        for step in ("3", "5.1")
    ]
    assert rows(side_by_side(run_of(samples, events))) == {
        "": ["one", "two"],
        "web (ask)": ["10.0 µs", "10.0 µs"],
        "web (dns)": ["20.0 µs", "20.0 µs"],
        "MTU (step 3)": ["3 of one", "3 of two"],
        "MTU (step 5.1)": ["5.1 of one", "5.1 of two"],
    }


def test_without_variants_there_is_nothing_to_compare() -> None:
    assert side_by_side(run_of([sample(1)], [event(READ, "", step="7", name="MTU", value="1450")])) == ""
    assert side_by_side(run_of(echoes("one", "same-node", 1e-6))) == ""


def test_how_fast_nodes_follow_tells_the_node_itself_from_the_slowest_other() -> None:
    def change(what: str, node: str, seconds: float) -> Sample:
        return sample(
            1,
            kind="programming",
            step=NODE_CHANGES,
            source=f"{what} Node",
            destination="node-2",
            destination_node=node,
            seconds=seconds,
        )

    samples = [
        change("readdressed", "node-2", 0.5),
        change("readdressed", "node-1", 0.02),
        change("readdressed", "node-3", 0.03),
        change("restarted", "node-2", 0.1),
    ]
    assert rows(node_changes(run_of(samples).frame)) == {
        "change": ["the node itself", "the slowest other"],
        "node-2 readdressed": ["500 ms", "30.0 ms"],
        "node-2 restarted": ["100 ms", NOTHING],
    }
    assert node_changes(run_of([sample(1)]).frame) == ""
