"""How evenly a Service's connections are spread, and how long affinity holds. Exit 1 if a bar fails.

    python benchmarks/balance.py [--connections 10000]

Bar: in each proxy mode 10,000 connections over 2, 3 and 10 servers, in one run, pass a chi-square test of
equal shares with p > 0.001 (one run in a thousand of a perfect one does not). Affinity of 1 s and of 3 s:
one server answers while connections follow each other faster than that, and others do after longer pauses.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed import Cluster
from testbed.measure.balance import evenness

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {name: balance-bench}
spec:
  nodes: {count: 3}
  dns: {enabled: false}
"""
MODES, SERVERS = ("iptables", "nftables"), (2, 3, 10)
BAR = 0.001
AFFINITY = (1, 3)
TRIES = 14


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=10_000)
    args = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cluster.yaml")
        spec.write_text(SPEC)
        for mode in MODES:
            name = f"balance-bench-{secrets.token_hex(3)}"
            with Cluster.up(spec, name=name, overrides=[f"network.proxy.mode={mode}"]) as cluster:
                apply(cluster, {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "client"}, **CLIENT})
                for servers in SERVERS:
                    fine &= is_even(cluster, mode, servers, args.connections)
                for seconds in AFFINITY:
                    fine &= is_sticky(cluster, mode, seconds)
    return 0 if fine else 1


CLIENT = {"spec": {"containers": [{"name": "c", "image": "busybox"}]}}


def is_even(cluster: Cluster, mode: str, servers: int, connections: int) -> bool:
    ip = serve(cluster, f"even-{servers}", servers, {})
    begun = time.monotonic()
    replies = ask(cluster, ip, connections)
    seconds = time.monotonic() - begun
    shares = Counter(replies["answer"])
    lost = sum(verdict != "ok" for verdict in replies["verdict"])
    chance = evenness(shares.values())
    fine = lost == 0 and len(shares) == servers and chance > BAR
    counts = " ".join(str(count) for count in sorted(shares.values()))
    print(f"{mode}: {connections:,} connections over {servers} servers in {seconds:.1f} s: {counts}")
    print(f"  p = {chance:.4f}, {lost} lost; bar: p > {BAR}, none lost: {'met' if fine else 'MISSED'}")
    return fine


def is_sticky(cluster: Cluster, mode: str, seconds: int) -> bool:
    config = {"clientIP": {"timeoutSeconds": seconds}}
    fields = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}
    ip = serve(cluster, f"sticky-{seconds}", 3, fields)
    held: Counter[str] = Counter()
    deadline = time.monotonic() + 3 * seconds
    while time.monotonic() < deadline:
        held.update(ask(cluster, ip, 1)["answer"])
        time.sleep(0.1)
    after: list[str] = []
    while len(after) < TRIES and not set(after) - set(held):
        time.sleep(seconds + 0.3)
        after += ask(cluster, ip, 1)["answer"]
    fine = len(held) == 1 and len({*after, *held}) > 1
    print(
        f"{mode}: affinity of {seconds} s: {sum(held.values())} connections in {3 * seconds} s by "
        f"{len(held)} server, another after {len(after)} longer pauses: {'met' if fine else 'MISSED'}"
    )
    return fine


def serve(cluster: Cluster, name: str, servers: int, fields: dict[str, Any]) -> str:
    container = {"name": "c", "image": "agnhost", "args": ["netexec"]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    spec = {"replicas": servers, "selector": {"matchLabels": {"app": name}}, "template": template}
    ports = [{"port": 80, "targetPort": 8080}]
    apply(
        cluster,
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": ports, **fields},
        },
    )
    cluster.wait(ready=f"app={name}")
    cluster.settle()
    service = cluster.client.get(f"/api/v1/namespaces/default/services/{name}")
    return str(service["spec"]["clusterIP"])


def apply(cluster: Cluster, *objects: dict[str, Any]) -> None:
    cluster.client.post("/apis/testbed/v1/manifests", {"objects": list(objects)})


def ask(cluster: Cluster, ip: str, count: int) -> dict[str, Any]:
    request = {
        "questions": [{"source": "client", "ip": ip, "port": 80}],
        "count": count,
        "timeout": 30.0,
    }
    replies: dict[str, Any] = cluster.client.post("/apis/testbed/v1/conversations", request, timeout=None)[
        "replies"
    ]
    return replies


if __name__ == "__main__":
    sys.exit(main())
