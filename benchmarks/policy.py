"""How soon a label bites with 1,000 pods and 200 policies, and what packets cost under others' policies.

    python -m benchmarks.policy [--pods 1000] [--policies 200] [--mode iptables|nftables] [--out policy.svg]

Bars: a first label change is in force on the pod's node in under 50 ms (median of --changes, from the request
to the first answer that only the new rules allow); round trips and handshakes of pods that no policy selects
grow by at most 10 % (rounds with 0 and with all policies in turn, in one run). Of each round the fastest
tenth counts, and of the rounds the median: what else the machine does only ever makes a packet later, and on
one that is not at rest the median of all packets is mostly that. The medians are printed, too, and the
figure shows both distributions for each number of policies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from testbed import Cluster
from testbed.report import plots

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: policy-bench}}
spec:
  nodes: {{count: {nodes}}}
  dns: {{enabled: false}}
  network: {{proxy: {{mode: {mode}}}}}
"""
IN_FORCE_SECONDS = 0.050
GROWTH = 1.10
RATE = 2000.0
"""Questions a second while a change is watched: what it shows is in steps of half a millisecond."""
COLOURS = ("#3b6ea5", "#7a9e3d", "#d08a2e", "#a5433b")
Object = dict[str, Any]


def pod(name: str, node: str, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "agnhost", "ports": [{"containerPort": 80}]}],
        },
    }


def policy(number: int) -> Object:
    """Selects the pods of one application and lets in those of another, and whoever is a client."""
    peers = [{"podSelector": {"matchLabels": {"app": f"a{number + 1}"}}}]
    peers.append({"podSelector": {"matchLabels": {"role": "client"}}})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"np{number}", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"a{number}"}},
            "ingress": [{"from": peers, "ports": [{"port": 80}]}],
        },
    }


Costs = dict[int, dict[str, list[list[float]]]]
"""Number of policies → kind → seconds of every packet, for each round."""


class Bench:
    """A cluster with pods of many applications, and two pairs of pods that are measured."""

    def __init__(self, cluster: Cluster, args: argparse.Namespace) -> None:
        self.cluster, self.args = cluster, args
        self.policies = [policy(number) for number in range(args.policies)]
        names = [f"node-{k + 1}" for k in range(args.nodes)]
        pods = [
            pod(f"p{number}", names[number % len(names)], {"app": f"a{number % args.policies}"})
            for number in range(args.pods - 4)
        ]
        # Nobody selects one and two; a0 isolates the target, which the asker may not reach at first.
        pods += [pod("one", names[0], {}), pod("two", names[1], {})]
        pods += [pod("asker", names[0], {"role": "none"}), pod("target", names[0], {"app": "a0"})]
        cluster.client.post("/apis/testbed/v1/manifests", {"objects": pods}, timeout=None)
        cluster.wait(ready="", timeout=120)
        cluster.settle(60)
        for name in names:
            cluster.node(name).run(["sysctl", "-q", "-w", "net.ipv4.icmp_ratemask=0"])
        self.ip = {p["metadata"]["name"]: p["status"]["podIP"] for p in cluster.pods()}

    def have(self, count: int) -> None:
        """Have the first ``count`` policies in force, and no others."""
        base = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
        there = {item["metadata"]["name"] for item in self.cluster.client.get(base)["items"]}
        wanted = {each["metadata"]["name"]: each for each in self.policies[:count]}
        for name in there - wanted.keys():
            self.cluster.client.delete(f"{base}/{name}")
        new = [each for name, each in wanted.items() if name not in there]
        if new:
            self.cluster.client.post("/apis/testbed/v1/manifests", {"objects": new}, timeout=None)
        self.cluster.settle(60)

    # --- how soon

    def in_force(self) -> list[float]:
        """Seconds from each request that changes a label to the first flow that only it lets through."""
        found = []
        for number in range(self.args.changes):
            self._label("none")
            self.cluster.settle(60)
            time.sleep(0.3)  # the change has to come to a cluster at rest
            found.append(self._one_change(number))
        return found

    def _label(self, role: str) -> None:
        self.cluster.client.request(
            "PATCH",
            "/api/v1/namespaces/default/pods/asker",
            {"metadata": {"labels": {"role": role}}},
            content_type="application/merge-patch+json",
        )

    def _one_change(self, number: int) -> float:
        replies: list[dict[str, list[Any]]] = []
        request = {
            "questions": [{"source": "default/asker", "ip": self.ip["target"], "port": 80}],
            "language": "tcp",
            "text": "",
            "count": int(RATE * 1.0),
            "rate": RATE,
            "at_once": 512,
            "timeout": 0.3,
        }
        path = "/apis/testbed/v1/conversations"
        asking = threading.Thread(
            target=lambda: replies.append(self.cluster.client.post(path, request)["replies"])
        )
        asking.start()
        time.sleep(0.4)  # well into the questions
        begun = time.time()
        self._label("client")
        asking.join()
        answered = [
            at for at, verdict in zip(replies[0]["at"], replies[0]["verdict"], strict=True) if verdict == "ok"
        ]
        if not answered or min(answered) < begun:
            raise SystemExit(f"change {number}: the label was not what decided")
        return min(answered) - begun

    # --- what it costs

    def costs(self, counts: list[int], rounds: int) -> Costs:
        """Round trips and handshakes of pods that no policy selects."""
        found: Costs = {n: {"round trip": [], "handshake": []} for n in counts}
        for number in range(rounds):
            for count in counts if number % 2 else reversed(counts):  # neither end always comes after a rest
                self.have(count)
                trips = self.cluster.client.post(
                    "/apis/testbed/v1/roundtrips",
                    {
                        "pairs": [{"source": "default/one", "destination": "default/two"}],
                        "count": 500,
                        "interval": 0.001,
                        "noise_floor": False,
                    },
                    timeout=None,
                )["series"][0]["samples"]
                found[count]["round trip"].append([value for value in trips["rtt_kernel"] if value])
                replies = self.cluster.client.post(
                    "/apis/testbed/v1/conversations",
                    {
                        "questions": [{"source": "default/one", "ip": self.ip["two"], "port": 80}],
                        "language": "tcp",
                        "text": "",
                        "count": 500,
                        "rate": 1000,
                    },
                )["replies"]
                found[count]["handshake"].append([value for value in replies["handshake"] if value])
        return found


def undisturbed(rounds: list[list[float]]) -> float:
    """The median of what the fastest tenth of each round takes at most."""
    return float(np.median([np.quantile(each, 0.1) for each in rounds]))


def figure(costs: Costs) -> str:
    """The distributions, as SVG."""
    lines = [
        plots.Line(f"{kind}, {count} policies", colour, np.concatenate(kinds[kind]))
        for kind in ("round trip", "handshake")
        for (count, kinds), colour in zip(costs.items(), COLOURS, strict=False)
    ]
    return plots.raincloud(lines)


def microseconds(seconds: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {n: {kind: round(value * 1e6, 1) for kind, value in kinds.items()} for n, kinds in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--policies", type=int, default=200)
    parser.add_argument("--changes", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mode", choices=("iptables", "nftables"), default="iptables")
    parser.add_argument("--out", type=Path, help="write the figure here (SVG)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cluster.yaml")
        spec.write_text(SPEC.format(nodes=args.nodes, mode=args.mode))
        with Cluster.up(spec) as cluster:
            bench = Bench(cluster, args)
            costs = bench.costs([0, args.policies // 4, args.policies // 2, args.policies], args.rounds)
            bench.have(args.policies)
            seconds = bench.in_force()
    if args.out:
        args.out.write_text(figure(costs))
    cost = {n: {kind: undisturbed(v) for kind, v in kinds.items()} for n, kinds in costs.items()}
    medians = {
        n: {kind: float(np.median(np.concatenate(v))) for kind, v in kinds.items()}
        for n, kinds in costs.items()
    }
    growth = {kind: cost[args.policies][kind] / cost[0][kind] for kind in ("round trip", "handshake")}
    in_force = statistics.median(seconds)
    print(
        json.dumps(
            {
                "mode": args.mode,
                "pods": args.pods,
                "policies": args.policies,
                "label change in force, s": {
                    "median": round(in_force, 4),
                    "all": [round(each, 4) for each in sorted(seconds)],
                },
                "us by policies, fastest tenth": microseconds(cost),
                "us by policies, median": microseconds(medians),
                "growth": {kind: round(value, 3) for kind, value in growth.items()},
            },
            indent=2,
        )
    )
    return 0 if in_force < IN_FORCE_SECONDS and max(growth.values()) <= GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
