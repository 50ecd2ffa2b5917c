"""Our probes against what others measure between the same two pods, in the same run. Exit 1 if a bar fails.

    python benchmarks/probes.py [--rounds 6] [--count 200] [--seed 1] [PART …]

Parts: ``connect``: time from SYN to SYN-ACK against a small C program (connect.c), medians and 99th
percentiles; bar: ours differs from the program's by no more than the program's from itself (bootstrap of
whole blocks, 95 %). ``rtt``: the same of the icmp probe against iputils ping. ``path``: the hop delays of a
request and its reply sum to the round trip of the same packets by the sender's socket; bar: medians within 5
%, for a pod on another node and through a Service (a pod on the same node is printed too). ``rate``: UDP
probes at 20,000 a second from one process for 10 s; bar: under 1 % of sends more than 100 µs late. What the
machine did meanwhile is printed with each. CPUs are kept awake, for all alike."""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._awake import awake
from testbed import Cluster
from testbed.measure import metrics
from testbed.measure.machine import Machine
from testbed.quantiles import quantile
from testbed.records import Sample, probe_samples

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {name: probes-bench}
spec: {nodes: {count: 2}, dns: {enabled: false}, manifests: [objects.yaml]}
"""
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  containers:
  - name: a
    image: agnhost
    args: [netexec, --http-port=8080, --udp-port=8081]
    ports: [{containerPort: 8080}, {containerPort: 8081, protocol: UDP}]
"""
SERVICE = """\
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: far}, ports: [{name: udp, port: 81, targetPort: 8081, protocol: UDP}]}
"""
PLACES = (("a", "a", "node-1"), ("near", "near", "node-1"), ("far", "far", "node-2"))
ROUNDS = 2000
WARM_UP = 2
Block = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="rtt, connect, path, rate (default: all)")
    parser.add_argument("--rounds", type=int, default=6, help="each has two blocks of theirs and one of ours")
    parser.add_argument("--count", type=int, default=200, help="probes a block")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with awake(), tempfile.TemporaryDirectory() as folder:
        Path(folder, "cluster.yaml").write_text(SPEC)
        Path(folder, "objects.yaml").write_text("".join(POD % place for place in PLACES) + SERVICE)
        name = f"probes-bench-{random.SystemRandom().getrandbits(20):x}"
        with Cluster.up(Path(folder, "cluster.yaml"), name=name) as cluster:
            cluster.settle()
            good = [PARTS[part](cluster, args) for part in args.parts or PARTS]
    return 0 if all(good) else 1


def probe(cluster: Cluster, kind: str, to: dict[str, Any], **fields: Any) -> list[Sample]:
    request = {"kind": kind, "from": {"pod": "a"}, "to": to, **fields}
    return probe_samples(kind, kind, cluster.client.post("/apis/testbed/v1/probe", request, timeout=None))


def address(cluster: Cluster, name: str) -> str:
    return next(str(one["status"]["podIP"]) for one in cluster.pods() if one["metadata"]["name"] == name)


# --- against others ---------------------------------------------------------------------------------------


def rtt(cluster: Cluster, args: argparse.Namespace) -> bool:
    far = address(cluster, "far")

    def ping() -> Block:
        argv = ["ping", "-n", "-c", str(args.count + WARM_UP), "-i", "0.01", far]
        done = cluster.pod("a").run(argv)
        return [float(ms) / 1e3 for ms in re.findall(r"time=([0-9.]+) ms", done.stdout)][WARM_UP:]

    def ours() -> Block:
        samples = probe(cluster, "icmp", {"pod": "far"}, rate=100, count=args.count + WARM_UP)
        return [one.seconds for one in samples if one.seconds is not None][WARM_UP:]

    return against("rtt", "ping", ping, ours, args)


def connect(cluster: Cluster, args: argparse.Namespace) -> bool:
    far = address(cluster, "far")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "connect"))
        source = str(Path(__file__).with_name("connect.c"))
        subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)

        def theirs() -> Block:
            done = cluster.pod("a").run([program, far, "8080", str(args.count + WARM_UP), "10000"])
            return [int(line.split()[1]) / 1e6 for line in done.stdout.splitlines()][WARM_UP:]

        def ours() -> Block:
            samples = probe(cluster, "tcp", {"pod": "far"}, rate=100, count=args.count + WARM_UP)
            return [one.seconds for one in samples if one.seconds is not None][WARM_UP:]

        return against("connect", "C program", theirs, ours, args)


def against(
    part: str, other: str, theirs: Callable[[], Block], ours: Callable[[], Block], args: argparse.Namespace
) -> bool:
    """Blocks of theirs, ours and theirs again in an order drawn per round; see the module's docstring."""
    draw, machine = random.Random(args.seed), Machine()  # noqa: S311 - a drawing to repeat
    them, us = [], []
    for _ in range(args.rounds):
        order = [(them, theirs), (them, theirs), (us, ours)]
        draw.shuffle(order)
        for blocks, take in order:
            blocks.append(take())
            if len(blocks[-1]) < args.count:
                raise SystemExit(f"{part}: {len(blocks[-1])} of {args.count} answers")
    good = True
    for share in (0.5, 0.99):
        difference = abs(figure(us, share) - figure(them, share))
        own = sorted(
            abs(figure(draw.choices(them, k=len(us)), share) - figure(draw.choices(them, k=len(them)), share))
            for _ in range(ROUNDS)
        )
        bar = own[int(0.95 * ROUNDS)]
        # The C program, the kernel and ping count in steps of 1 µs: less than one is no difference.
        met = difference <= max(bar, 1e-6)
        good &= met
        print(
            f"{part} p{share * 100:g}: {other} {figure(them, share) * 1e6:.1f} µs, "
            f"ours {figure(us, share) * 1e6:.1f} µs, difference {difference * 1e6:.2f} µs; "
            f"{other} from itself {bar * 1e6:.2f} µs: {'met' if met else 'NOT MET'}",
            flush=True,
        )
    tell(machine)
    return good


def figure(blocks: Sequence[Block], share: float) -> float:
    return quantile(sorted(value for block in blocks for value in block), share)


# --- paths and rates --------------------------------------------------------------------------------------


def path(cluster: Cluster, args: argparse.Namespace) -> bool:
    good, machine = True, Machine()
    cases = (
        ("same node", {"pod": "near"}, "icmp", False),
        ("other node", {"pod": "far"}, "icmp", True),
        ("Service", {"service": "web", "port": "udp"}, "udp", True),
    )
    for name, to, protocol, counts in cases:
        request = {
            "from": {"pod": "a"},
            "to": to,
            "protocol": protocol,
            "count": args.count,
            "interval": 0.01,
        }
        answer = cluster.client.post("/apis/testbed/v1/path", request, timeout=None)
        pairs = [
            (sum(hop["seconds"] for hop in one["hops"]), one["round_trip"])
            for one in answer["journeys"]
            if one["round_trip"] is not None
        ]
        hops, trips = (statistics.median(column) for column in zip(*pairs, strict=True))
        off = statistics.median(abs(one / trip - 1) for one, trip in pairs)
        met = off <= 0.05
        good &= met or not counts
        print(
            f"path {name}: hops sum to {hops * 1e6:.1f} µs, round trip {trips * 1e6:.1f} µs "
            f"(medians of {len(pairs)}), off by {off:.1%}: "
            f"{('met' if met else 'NOT MET') if counts else 'no bar'}",
            flush=True,
        )
    tell(machine)
    return good


def rate(cluster: Cluster, args: argparse.Namespace) -> bool:
    machine = Machine()
    samples = probe(cluster, "udp", {"pod": "near"}, rate=20_000, seconds=10, timeout=2)
    late, count = metrics.late(samples), metrics.sent_late(samples)
    behind = sorted(one.late or 0.0 for one in samples)
    began = [one.at for one in samples if one.at is not None]
    sustained = (len(began) - 1) / (began[-1] - began[0])
    print(
        f"rate: {len(samples):,} sent, {sustained:,.0f} a second; "
        f"{count:,} ({late:.2%}) more than 100 µs late, "
        f"median {behind[len(behind) // 2] * 1e6:.1f} µs, at most {behind[-1] * 1e3:.1f} ms; "
        f"{metrics.loss(samples):.1%} not answered: {'met' if late < 0.01 else 'NOT MET'}",
        flush=True,
    )
    tell(machine)
    return late < 0.01


def tell(machine: Machine) -> None:
    used = machine.since()
    print(
        f"  machine meanwhile: {used['busy']:.0%} busy, {used['steal']:.1%} stolen, "
        f"{used['softirq']:.1%} soft interrupts, load {used['load']}, {os.cpu_count()} CPUs",
        flush=True,
    )


PARTS: dict[str, Callable[[Cluster, argparse.Namespace], bool]] = {
    "rtt": rtt,
    "connect": connect,
    "path": path,
    "rate": rate,
}

if __name__ == "__main__":
    sys.exit(main())
