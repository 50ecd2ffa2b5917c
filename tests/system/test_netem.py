"""Links with delay, loss and the like: what the kernel says was set, and what packets meet."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
from stock_lab import Echoes, by_chance, on_star, out, qdisc

from testbed import Cluster
from testbed.fabric.links import HTB_BURST
from testbed.fabric.network import ClusterNet

pytestmark = pytest.mark.needs("netem")

LOSSES = (1, 5, 20)
"""Percent, each on what the hub sends to one host; the answers come back without loss."""
LINKS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"loss {loss}": {"params1": {"loss": loss}} for loss in LOSSES},
    "delay": {"delay": "20ms"},
    "one way": {"params2": {"delay": "30ms"}},
    "flows": {
        "flows": [
            {"match": {"protocol": "icmp", "dscp": 46}, "delay": "30ms"},
            {"match": {"protocol": "icmp", "destination": "fd00::/16"}, "bw": 1},
            {"match": {"protocol": "udp", "port": 4242}, "loss": 100},
        ],
    },
}
"""What every change is tested with."""
MORE_LINKS: dict[str, dict[str, Any]] = {
    "bursts": {"params1": {"burst_loss": (1, 20, 100, 0)}},
    "duplicates": {"params1": {"duplicate": 10}},
    "corrupt": {"params1": {"corrupt": 20}},
    "reorder": {"params1": {"delay": "40ms", "reorder": 25}},
    "uniform": {"params1": {"delay": "40ms", "jitter": "20ms"}},
    "normal": {"params1": {"delay": "40ms", "jitter": "5ms", "distribution": "normal"}},
    "pareto": {"params1": {"delay": "40ms", "jitter": "5ms", "distribution": "pareto"}},
    "paretonormal": {"params1": {"delay": "40ms", "jitter": "5ms", "distribution": "paretonormal"}},
    "rate": {"params1": {"bw": 1, "delay": "1ms"}},
    "flows": LINKS["flows"],
}
ADDRESS = {name: f"10.0.{number}.2" for links in (LINKS, MORE_LINKS) for number, name in enumerate(links, 1)}
ADDRESS["flows"] = f"10.0.{len(LINKS)}.2"
FLOWS_V6 = f"fd00:{len(MORE_LINKS)}::2"

TRIES, QUIET = 4, 0.001
"""QUIET: seconds; a round trip over the plain link this fast says that little is added to the others'."""
LOSS_COUNTS = {f"loss {loss}": 1500 for loss in LOSSES}
COUNTS = {
    "bursts": 2500,
    "duplicates": 1000,
    "corrupt": 1000,
    "reorder": 400,
    "uniform": 200,
    "normal": 300,
    "pareto": 200,
}
FULL_FRAME = "1208"  # with headers 1,250 bytes: 10 ms at 1 Mbit/s
AT_ONCE = 60
"""Echoes that a link has to take at once."""
UDP_ANSWERED = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(2)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.send(b"x")
try:
    sock.recv(1)
except ConnectionRefusedError:
    print("refused")
except TimeoutError:
    print("silence")
"""


def ping(count: int, interval: str, address: str, *options: str) -> list[str]:
    return ["ping", "-n", "-c", str(count), "-i", interval, "-W", "2", *options, address]


def echo(net: ClusterNet, name: str, *options: str, count: int = 60, to: str = "") -> str:
    """What ping prints; without answers it fails, which is for the test to judge."""
    return str(net["hub"].pexec(*ping(count, "0.01", to or ADDRESS[name], *options))[0])


def side_by_side(net: ClusterNet, counts: dict[str, int]) -> dict[str, str]:
    """Many echoes over several links at once, where their times do not matter."""
    begun = {name: net["hub"].popen(ping(count, "0.003", ADDRESS[name])) for name, count in counts.items()}
    return {name: process.communicate()[0].decode() for name, process in begun.items()}


def beside_plain(net: ClusterNet, name: str, *options: str, count: int = 50) -> list[str]:
    """Echoes over a link and at the same time over the plain one, which tells what the machine adds.

    A machine that is busy with other things adds much, never less than nothing: of a few tries the fastest
    counts, for each of the two.
    """
    tries = []
    for _ in range(TRIES):
        begun = [net["hub"].popen(ping(count, "0.02", ADDRESS[each], *options)) for each in ("plain", name)]
        tries.append([process.communicate()[0].decode() for process in begun])
        if Echoes(tries[-1][0]).median < QUIET:
            break
    return [min(texts, key=lambda text: Echoes(text).median) for texts in zip(*tries, strict=True)]


def least_spread(net: ClusterNet, name: str, count: int) -> str:
    """Of a few tries the echoes that are least apart: a busy machine only adds to what jitter does."""
    return min(
        (echo(net, name, count=count) for _ in range(TRIES)), key=lambda text: middle_half(Echoes(text).rtts)
    )


def delay_over_plain(pair: list[str]) -> float:
    """Seconds by which the median exceeds that of the plain link."""
    plain, other = map(Echoes, pair)
    return other.median - plain.median


def read_back(net: ClusterNet, links: dict[str, Any]) -> dict[str, Any]:
    """What the kernel says of the hub's netems, where a link has but one."""
    return {
        name: qdisc(net, "hub", f"eth{number}")
        for number, (name, link) in enumerate(links.items())
        if name != "flows" and link.get("params1", link).keys() - {"bw", "params2"}
    }


def measure(net: ClusterNet) -> dict[str, Any]:
    """What every change is tested with."""
    found: dict[str, Any] = side_by_side(net, LOSS_COUNTS)
    found |= {name: beside_plain(net, name) for name in ("delay", "one way")}
    found["plain flow"] = beside_plain(net, "flows")
    found["dscp flow"] = beside_plain(net, "flows", "-Q", "0xb8")
    for port in ("4242", "4243"):
        argv = ["/usr/bin/python3", "-c", UDP_ANSWERED, ADDRESS["flows"], port]
        found[f"udp {port}"] = out(net, "hub", *argv).strip()
    found["read"] = read_back(net, LINKS)
    return found


def measure_more(net: ClusterNet) -> dict[str, Any]:
    """The rest, and what is read back from the kernel."""
    found: dict[str, Any] = side_by_side(net, {name: each for name, each in COUNTS.items() if each > 500})
    found |= {name: least_spread(net, name, COUNTS[name]) for name in ("uniform", "normal")}
    found |= {name: echo(net, name, count=count) for name, count in COUNTS.items() if name not in found}
    found["rate"] = echo(net, "rate", "-D", "-s", FULL_FRAME, "-l", str(AT_ONCE), count=AT_ONCE)
    found["IPv6 flow"] = echo(net, "flows", "-s", "1188", count=20, to=FLOWS_V6)
    found["read"] = read_back(net, MORE_LINKS)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = on_star(list(LINKS.values()), measure, tmp_path_factory.mktemp("netem"))
    return found


@pytest.fixture(scope="module")
def measured_more(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = on_star(list(MORE_LINKS.values()), measure_more, tmp_path_factory.mktemp("netem"))
    return found


def echoes(measured: dict[str, Any], name: str) -> Echoes:
    return Echoes(measured[name])


def test_the_kernel_has_what_was_asked_for(measured: dict[str, Any], measured_more: dict[str, Any]) -> None:
    read = measured["read"] | measured_more["read"]
    assert read["loss 5"]["loss-random"]["loss"] == pytest.approx(0.05, rel=1e-3)
    gilbert_elliott = read["bursts"]["loss-gemodel"]
    assert [gilbert_elliott[key] for key in ("p", "r", "1-h", "1-k")] == pytest.approx([0.01, 0.2, 1, 0])
    assert read["duplicates"]["duplicate"]["duplicate"] == pytest.approx(0.1, rel=1e-3)
    assert read["corrupt"]["corrupt"]["corrupt"] == pytest.approx(0.2, rel=1e-3)
    assert read["reorder"]["reorder"]["reorder"] == pytest.approx(0.25, rel=1e-3)
    assert read["delay"]["delay"]["delay"] == pytest.approx(0.02)
    for name, jitter in (
        ("uniform", 0.02),
        *((name, 0.005) for name in ("normal", "pareto", "paretonormal")),
    ):
        assert (read[name]["delay"]["delay"], read[name]["delay"]["jitter"]) == pytest.approx((0.04, jitter))


@pytest.mark.every_change
@pytest.mark.parametrize("loss", LOSSES)
def test_as_many_are_lost_as_the_share_says(measured: dict[str, Any], loss: int) -> None:
    seen = echoes(measured, f"loss {loss}")
    assert by_chance(seen.sent - seen.received, seen.sent, loss / 100) > 0.001


@pytest.mark.every_change
def test_a_delay_is_met_once_each_way(measured: dict[str, Any]) -> None:
    """The round trip over a link of 20 ms is 40 ms, within 1 ms and 5 %."""
    assert delay_over_plain(measured["delay"]) == pytest.approx(0.04, abs=0.001 + 0.05 * 0.04)
    assert delay_over_plain(measured["one way"]) == pytest.approx(0.03, abs=0.001 + 0.05 * 0.03)


def test_losses_come_in_bursts(measured_more: dict[str, Any]) -> None:
    """Five at a time in the mean; without memory it would be 1.05 at this share."""
    seen = echoes(measured_more, "bursts")
    runs = seen.lost_runs
    assert 0.015 < sum(runs) / seen.sent < 0.1  # 4.8 %, of some thirty bursts
    assert sum(runs) / len(runs) > 2


def test_duplicates_arrive_as_often_as_asked_for(measured_more: dict[str, Any]) -> None:
    seen = echoes(measured_more, "duplicates")
    assert seen.received == seen.sent
    assert by_chance(seen.duplicates, seen.sent, 0.1) > 0.001


def test_what_is_corrupted_is_refused_by_the_receiver(measured_more: dict[str, Any]) -> None:
    """All but the few whose flipped bit nobody looks at (the sender's MAC: 6 in 98 bytes)."""
    seen = echoes(measured_more, "corrupt")
    lost = seen.sent - seen.received
    assert max(by_chance(lost, seen.sent, 0.2 * share) for share in (0.85, 0.9, 0.94, 1.0)) > 0.001


def test_reordered_packets_are_sent_without_the_delay(measured_more: dict[str, Any]) -> None:
    seen = echoes(measured_more, "reorder")
    early = sum(rtt < 20 for rtt in seen.rtts)
    assert seen.received == seen.sent
    assert by_chance(early, seen.sent, 0.25) > 0.001


def test_jitter_spreads_as_its_distribution_says(measured_more: dict[str, Any]) -> None:
    """Uniform: ± the jitter, half of it within half. Normal: the jitter is one sigma, a third is beyond it.

    By quartiles, which the few echoes that a busy machine holds up do not move.
    """
    uniform, normal = (echoes(measured_more, name).rtts for name in ("uniform", "normal"))
    assert min(uniform) > 19
    assert middle_half(uniform) == pytest.approx(20, rel=0.3)
    assert middle_half(normal) == pytest.approx(2 * 0.6745 * 5, rel=0.3)
    beyond = sum(abs(rtt - median(normal)) > 5 for rtt in normal)
    assert 0.18 < beyond / len(normal) < 0.5


def test_jitter_of_pareto_has_a_floor_and_a_long_tail(measured_more: dict[str, Any]) -> None:
    """iproute2's table is of alpha 3: nothing is earlier than 0.58 sigma, some is much later."""
    pareto = echoes(measured_more, "pareto").rtts
    low, middle, high = quantiles(pareto, n=4)
    assert min(pareto) > 40 - 0.7 * 5
    assert high - middle > middle - low


def middle_half(values: list[float]) -> float:
    """How far the quartiles are apart."""
    low, _, high = quantiles(values, n=4)
    return high - low


def test_a_rate_makes_full_frames_take_their_time(measured_more: dict[str, Any]) -> None:
    """1,250 bytes at 1 Mbit/s are 10 ms: so far apart arrive those that the burst did not let through.

    The median of the distances: while the machine does not run, no bytes are saved up for later.
    """
    burst = HTB_BURST // 1250 + 2
    arrived = echoes(measured_more, "rate").arrivals[burst:]
    assert len(arrived) == AT_ONCE - burst
    apart = [later - earlier for earlier, later in pairwise(arrived)]
    assert median(apart) == pytest.approx(0.01, rel=0.05)
    assert 0.0199 < echoes(measured_more, "IPv6 flow").median < 0.03  # each way


@pytest.mark.every_change
def test_a_flow_class_meets_its_own_and_others_do_not(measured: dict[str, Any]) -> None:
    assert delay_over_plain(measured["dscp flow"]) == pytest.approx(0.06, abs=0.001 + 0.05 * 0.06)
    assert delay_over_plain(measured["plain flow"]) < 0.015
    assert (measured["udp 4242"], measured["udp 4243"]) == ("silence", "refused")


# --- a cluster's own links ---------------------------------------------------------------------------

SPEC = """
apiVersion: testbed/v1
kind: Cluster
spec:
  nodes: {count: 3}
  topology:
    links:
    - between: [node-1, s1]
      direction: out
      delay: 30ms
      flows:
      - {match: {protocol: udp, port: 4242}, loss: 100%}
      - {match: {to: 10.244.3.0/24}, delay: 60ms}
    - {between: [node-2, s1], direction: in, delay: 10ms}
  network: {proxy: {mode: none}}
  dns: {enabled: false}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: far}
spec: {nodeName: node-3, containers: [{name: c, image: pause}]}
"""


@pytest.mark.every_change
def test_a_spec_s_links_are_met_by_its_nodes_and_pods(tmp_path: Path) -> None:
    """node-1 sends late, node-2 receives late, and what goes to the pods of node-3 is a class of its own."""
    spec, pod = tmp_path / "links.yaml", tmp_path / "pod.yaml"
    spec.write_text(SPEC)
    pod.write_text(POD)
    with Cluster.up(spec, name=f"links-{os.getpid()}", manifests=[pod]) as cluster:
        to_pod = next(each["status"]["podIP"] for each in cluster.pods())

        def median_of(node: str, address: str) -> float:
            """Of the fastest of a few tries, as others on this machine hold some up."""
            argv = ping(20, "0.02", address)
            return min(Echoes(cluster.node(node).run(argv).stdout).median for _ in range(TRIES))

        base = median_of("node-3", "192.168.100.1")
        medians = {
            "node-1 to node-2": median_of("node-1", "192.168.100.12") - base,
            "node-3 to node-2": median_of("node-3", "192.168.100.12") - base,
            "node-1 to a pod of node-3": median_of("node-1", to_pod) - base,
        }
        shown = {
            node: [
                each["options"]["delay"]["delay"]
                for each in json.loads(
                    cluster.node(node).run(["tc", "-j", "qdisc", "show", "dev", "eth0"]).stdout
                )
                if each["kind"] == "netem" and "delay" in each["options"]
            ]
            for node in ("node-1", "node-2")
        }
    for name, expected in (
        ("node-1 to node-2", 0.04),
        ("node-3 to node-2", 0.01),
        ("node-1 to a pod of node-3", 0.06),
    ):
        assert medians[name] == pytest.approx(expected, abs=0.001 + 0.05 * expected), (name, medians)
    assert (sorted(shown["node-1"]), shown["node-2"]) == (pytest.approx([0.03, 0.06]), [])
