"""Our round trips against iputils ping, between the same two pods. Prints both; exit 1 if the bar fails.

    python benchmarks/rtt.py [--rounds 6] [--count 200] [--interval 0.01] [--path cross-node] [--seed 1]

Blocks of ping, ours and ping again are interleaved, in an order drawn per round. Bar: our median differs from
ping's by no more than ping's from itself. Ping's difference from itself is bootstrapped: both sides are drawn
from ping's blocks alone (whole blocks, since echoes of one block are alike), as many as the real comparison
has, 2,000 times; the bar is the 95th percentile of the absolute differences of medians. CPUs are kept
awake, for both alike.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._awake import awake
from testbed import Cluster

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {name: rtt-bench}
spec:
  nodes: {count: 2}
  manifests: [pods.yaml]
"""
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  containers: [{name: web, image: nginx}]
"""
PLACES = {"a": "node-1", "same": "node-1", "cross": "node-2"}
ROUNDS = 2000
Block = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="each has two blocks of ping and one of ours")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.01)
    parser.add_argument("--path", choices=("same-node", "cross-node"), default="cross-node")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)  # noqa: S311 - a drawing to repeat
    with awake(), tempfile.TemporaryDirectory() as folder:
        Path(folder, "cluster.yaml").write_text(SPEC)
        Path(folder, "pods.yaml").write_text("".join(POD % place for place in PLACES.items()))
        with Cluster.up(
            Path(folder, "cluster.yaml"), name=f"rtt-bench-{random.SystemRandom().getrandbits(20):x}"
        ) as cluster:
            pings, ours, kernel = blocks(cluster, args, draw)
    return report(pings, ours, kernel, draw)


def blocks(
    cluster: Cluster, args: argparse.Namespace, draw: random.Random
) -> tuple[list[Block], list[Block], list[Block]]:
    target = args.path.removesuffix("-node")
    address = next(p["status"]["podIP"] for p in cluster.pods() if p["metadata"]["name"] == target)
    pings, ours, kernel = [], [], []
    for number in range(args.rounds):
        order = ["ping", "ping", "ours"]
        draw.shuffle(order)
        for who in order:
            if who == "ping":
                pings.append(ping(cluster, address, args.count, args.interval))
            else:
                mine = measure(cluster, target, args.count, args.interval)
                ours.append(mine[0])
                kernel.append(mine[1])
        latest = ", ".join(f"{statistics.median(block) * 1e6:.1f}" for block in pings[-2:])
        print(
            f"round {number + 1}: ping {latest} µs, ours {statistics.median(ours[-1]) * 1e6:.1f} µs",
            flush=True,
        )
    return pings, ours, kernel


def ping(cluster: Cluster, address: str, count: int, interval: float) -> Block:
    """One block of ping, in seconds. Its first two echoes do not count, as ours do not."""
    done = cluster.pod("a").run(["ping", "-n", "-c", str(count + 2), "-i", str(interval), address])
    times = [float(ms) / 1e3 for ms in re.findall(r"time=([0-9.]+) ms", done.stdout)]
    if len(times) != count + 2:
        raise SystemExit(f"ping: {len(times)} answers: {done.stdout[-300:]}{done.stderr}")
    return times[2:]


def measure(cluster: Cluster, target: str, count: int, interval: float) -> tuple[Block, Block]:
    """One block of ours, in seconds: by ping's definition, and kernel to kernel."""
    request = {
        "pairs": [{"source": "a", "destination": target}],
        "count": count,
        "interval": interval,
        "noise_floor": False,
    }
    answer = cluster.client.post("/apis/testbed/v1/roundtrips", request, timeout=None)
    samples = answer["series"][0]["samples"]
    return samples["rtt"], samples["rtt_kernel"]


def median_of(chosen: Sequence[Block]) -> float:
    return statistics.median([value for block in chosen for value in block])


def report(pings: list[Block], ours: list[Block], kernel: list[Block], draw: random.Random) -> int:
    difference = abs(median_of(ours) - median_of(pings))
    differences = sorted(
        abs(median_of(draw.choices(pings, k=len(ours))) - median_of(draw.choices(pings, k=len(pings))))
        for _ in range(ROUNDS)
    )
    bar = differences[int(0.95 * ROUNDS)]
    print(
        f"medians: ping {median_of(pings) * 1e6:.1f} µs ({len(pings)} blocks), "
        f"ours {median_of(ours) * 1e6:.1f} µs ({len(ours)} blocks; "
        f"kernel to kernel {median_of(kernel) * 1e6:.1f} µs)"
    )
    print(f"difference {difference * 1e6:.2f} µs; ping from itself, 95 % bootstrap: {bar * 1e6:.2f} µs")
    return 0 if difference <= bar else 1


if __name__ == "__main__":
    sys.exit(main())
