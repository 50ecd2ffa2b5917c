"""Round trips between hand-made pods: complete series, plausible stamps, errors and losses told apart."""

from __future__ import annotations

import itertools
from statistics import median
from typing import Any

from probe_lab import Lab, in_child

from testbed.measure.messages import Series, Trip
from testbed.measure.rtt import round_trips
from testbed.measure.sockets import Namespaces


def run(lab: Lab, series: list[Series], **options: Any) -> tuple[list[tuple[Trip, ...]], list[str]]:
    with Namespaces(lab.fds) as namespaces:
        return round_trips(series, namespaces, **{"count": 50, "interval": 0.002, "timeout": 1.0, **options})


def test_every_echo_has_both_figures_and_the_kernels_is_the_smaller() -> None:
    def body() -> Any:
        lab = Lab(4)
        series = [
            Series("pod-0", lab.ips["pod-2"]),
            Series("pod-0", lab.ips["pod-1"]),
            Series("pod-0", "127.0.0.1"),
        ]
        result = run(lab, series)
        lab.close()
        return result

    trips, answers = in_child(body)
    assert [len(line) for line in trips] == [50, 50, 50]
    for line in trips:
        for trip in line:
            assert trip.rtt is not None
            assert trip.rtt_kernel is not None
            assert 0 < trip.rtt_kernel <= trip.rtt
            assert trip.error == ""
    assert [line[0].ttl for line in trips] == [64, 62, 64]  # two routers on the way across nodes
    assert all("echo-reply" in answer for answer in answers)


def test_ipv6_series_are_complete() -> None:
    def body() -> Any:
        lab = Lab(2, nodes=1, ipv6=True)
        result = run(lab, [Series("pod-0", lab.ips["pod-1"]), Series("pod-0", "::1")])
        lab.close()
        return result

    trips, _ = in_child(body)
    assert all(trip.rtt is not None and trip.rtt_kernel is not None for line in trips for trip in line)
    assert trips[0][0].ttl == 64


def test_echoes_go_out_at_the_interval_asked_for() -> None:
    def body() -> Any:
        lab = Lab(2)
        result = run(lab, [Series("pod-0", lab.ips["pod-1"])], count=20, interval=0.01)
        lab.close()
        return result

    (line,), _ = in_child(body)
    spans = [(later.at - earlier.at) / 1e9 for earlier, later in itertools.pairwise(line)]
    assert median(spans) >= 0.01 * 0.9  # one that was late is followed sooner, as the schedule stays


def test_size_is_that_of_ping() -> None:
    def body() -> Any:
        lab = Lab(2)
        result = run(lab, [Series("pod-0", lab.ips["pod-1"], 1000)], count=3)
        lab.close()
        return result

    (line,), (answer,) = in_child(body)
    assert all(trip.rtt is not None for trip in line)
    assert "Raw" in answer


def test_silence_is_a_loss_and_a_refusal_is_an_error() -> None:
    def body() -> Any:
        lab = Lab(4)
        lab.inside("node-0", [f"route add blackhole {lab.ips['pod-1']}"])
        reject = ["-j", "REJECT", "--reject-with", "icmp-host-unreachable"]
        lab.run("node-0", ["iptables", "-A", "FORWARD", "-d", lab.ips["pod-3"], *reject])
        lab.inside("pod-2", ["link set eth0 down"])
        series = [
            Series("pod-0", lab.ips["pod-1"]),
            Series("pod-0", lab.ips["pod-3"]),
            Series("pod-2", lab.ips["pod-0"]),
        ]
        result = run(lab, series, count=3, interval=0.01, timeout=0.2)
        lab.close()
        return result

    (silent, told, down), answers = in_child(body)
    assert {(trip.rtt, trip.error) for trip in silent} == {(None, "")}
    assert {trip.error for trip in told} == {"host"}
    assert {trip.error for trip in down} == {"network"}
    assert answers == ["", "", ""]
