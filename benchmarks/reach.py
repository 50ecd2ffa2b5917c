"""Reachability of 100 pods, and whether a broken matrix equals the truth. Prints both; exit 1 if a bar fails.

    python benchmarks/reach.py [--pods 100] [--seed 1]

Bar: every TCP pair (9,900) in under 2 s, first contact, so ARP included. Then, on a second cluster and
drawn by seed: 5 % of the pods are asked on a port nobody listens on, the links of two pods are taken down
at their node and one pod's address gets a blackhole route on one other node; each verdict and reason must be
what follows from that.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed import Cluster
from testbed.api.cluster import Place

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: reach-bench}}
spec:
  nodes: {{count: 3}}
  manifests: [{manifests}]
"""
POD = """\
---
apiVersion: v1
kind: Pod
metadata: {{name: pod-{number}, labels: {{app: bench}}}}
spec:
  containers:
  - {{name: web, image: nginx, ports: [{{containerPort: {port}}}]}}
"""
OPEN, CLOSED = 8080, 9
BAR_SECONDS = 2.0
Flow = tuple[str, str]
Words = tuple[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cluster.yaml")
        spec.write_text(SPEC.format(manifests="pods.yaml"))
        pods = "".join(POD.format(number=number, port=OPEN) for number in range(args.pods))
        Path(folder, "pods.yaml").write_text(pods)
        name = f"reach-bench-{random.SystemRandom().getrandbits(20):x}"
        with Cluster.up(spec, name=name) as cluster:
            fast = measure_time(cluster)
        with Cluster.up(spec, name=name) as cluster:  # a fresh one: no pod knows another's link address yet
            right = measure_truth(cluster, random.Random(args.seed))  # noqa: S311 - a drawing to repeat
    return 0 if fast and right else 1


def measure(cluster: Cluster, port: int = OPEN, **extra: Any) -> dict[str, Any]:
    request = {"selector": "app=bench", "port": port, **extra}
    answer: dict[str, Any] = cluster.client.post("/apis/testbed/v1/reachability", request, timeout=None)
    return answer


def measure_time(cluster: Cluster) -> bool:
    answer = measure(cluster)
    rows, seconds = answer["rows"], answer["seconds"]
    good = sum(row["verdict"] == "ok" for row in rows)
    print(f"{len(rows)} TCP pairs in {seconds:.2f} s ({len(rows) / seconds:,.0f} a second), {good} ok")
    again = measure(cluster)["seconds"]
    print(f"  again, neighbours known: {again:.2f} s; bar: under {BAR_SECONDS} s")
    return good == len(rows) and seconds < BAR_SECONDS


def measure_truth(cluster: Cluster, draw: random.Random) -> bool:
    pods = {pod["metadata"]["name"]: pod for pod in cluster.pods("app=bench")}
    names = sorted(pods)
    nodes = {name: pods[name]["spec"]["nodeName"] for name in names}
    addresses = {name: pods[name]["status"]["podIP"] for name in names}
    drawn = draw.sample(names, len(names) // 20 + 3)
    closed, down, lost = set(drawn[3:]), drawn[:2], drawn[2]
    keeper = draw.choice(sorted({node for node in nodes.values() if node != nodes[lost]}))
    print(f"closed {sorted(closed)}, links down {down}, blackhole for {lost} on {keeper}")
    run(cluster.node(keeper), ["ip", "route", "add", "blackhole", addresses[lost]])
    for name in down:
        node = cluster.node(nodes[name])
        run(node, ["ip", "link", "set", node_end(cluster, name, node), "down"])
    rows = [
        *(row for row in measure(cluster)["rows"] if row["destination"] not in closed),
        *(row for row in measure(cluster, CLOSED)["rows"] if row["destination"] in closed),
    ]
    wrong = []
    for row in rows:
        right = truth(row["source"], row["destination"], nodes, closed, set(down), lost, keeper)
        if (row["verdict"], row["reason"]) not in right:
            said = f"{row['verdict']} ({row['reason']})"
            wrong.append(f"{row['source']} → {row['destination']}: {said}, not {right}")
    counts = Counter((row["verdict"], row["reason"]) for row in rows)
    print(f"{len(rows)} pairs of the broken matrix: {dict(counts)}; {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return not wrong


def truth(
    source: str, target: str, nodes: dict[str, str], closed: set[str], down: set[str], lost: str, keeper: str
) -> set[Words]:
    """What may be said of a flow: one thing, but where a far node gives up on ARP (3 s), maybe in time."""
    if source in down:
        return {("unreachable", "host")}
    if target in down:
        late = {("timeout", "no answer")} if nodes[source] != nodes[target] else set()
        return {("unreachable", "host")} | late
    if (target == lost and nodes[source] == keeper) or (source == lost and nodes[target] == keeper):
        return {("timeout", "no answer")}
    return {("refused", "reset")} if target in closed else {("ok", "")}


def node_end(cluster: Cluster, pod: str, node: Place) -> str:
    """The name of the end on the node of a pod's veth pair."""
    (link,) = json.loads(run(cluster.pod(pod), ["ip", "-j", "link", "show", "eth0"]))
    every = json.loads(run(node, ["ip", "-j", "link"]))
    return str(next(one["ifname"] for one in every if one["ifindex"] == link["link_index"]))


def run(place: Place, argv: list[str]) -> str:
    done = place.run(argv)
    if done.code:
        raise SystemExit(f"{' '.join(argv)}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
