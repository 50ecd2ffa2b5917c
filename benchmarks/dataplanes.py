"""What a dataplane costs a large cluster: ``up`` of 500 pods on 50 nodes, each dataplane against ``bridge``.

    python -m benchmarks.dataplanes [--nodes 50] [--pods 500] [--rounds 3] [DATAPLANE …]

In turn, medians count. Bar: within 2 times of ``bridge``. Besides: how long after ``up`` every node has a
route to every other one's pods, which with BGP is up to its timers (asking 50 nodes takes a second or two);
how long it takes, once a node without power is healed, until another node's pod reaches one of its own; and
how long, when the last node has left and joins again, until the others have what leads to it: bar 1 s. The
machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

from testbed import Cluster
from testbed.wait import wait_until

TIMES = 2.0
JOINED_WITHIN = 1.0
"""Seconds."""


def spec(name: str, nodes: int, pods: int) -> dict[str, object]:
    return {
        "apiVersion": "testbed/v1",
        "kind": "Cluster",
        "metadata": {"name": f"bench-{name}"},
        "spec": {
            "nodes": {"count": nodes},
            "dns": {"enabled": False},
            "network": {"dataplane": {"name": name}, "proxy": {"mode": "none"}},
            "manifests": ["web.json"],
        },
    }


def web(pods: int) -> dict[str, object]:
    container = {"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": pods, "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }


def measured(name: str, nodes: int, pods: int) -> tuple[float, float, float, float]:
    """Seconds of ``up``, from then to all routes, of a node's joining, and from a healing to an answer."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "web.json").write_text(json.dumps(web(pods)))
        (Path(folder) / "spec.yaml").write_text(json.dumps(spec(name, nodes, pods)))
        begun = time.monotonic()
        with Cluster.up(Path(folder) / "spec.yaml") as cluster:
            seconds = time.monotonic() - begun
            routed = wait_until(lambda: all_routed(cluster, nodes), 120, "routes to all nodes on all nodes")
            by_node = {pod["spec"]["nodeName"]: pod for pod in cluster.pods(namespace="default")}
            last = by_node[f"node-{nodes}"]["status"]["podIP"]
            source = cluster.pod(by_node["node-1"]["metadata"]["name"])
            ask = ["curl", "-s", "-m", "0.5", f"http://{last}/hostname"]
            wait_until(lambda: source.run(ask).code == 0, 30, "the last node's pod answers")
            fault = cluster.fault("node-crash", f"node-{nodes}")
            healed = time.monotonic()
            fault.heal()
            wait_until(lambda: source.run(ask).code == 0, 60, "it answers again", interval=0.02)
            back = time.monotonic() - healed
            cluster.client.delete(f"/api/v1/nodes/node-{nodes}")
            cluster.settle()
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{nodes}"}}
            cluster.client.post("/api/v1/nodes", node)
            changes = cluster.programming(of="nodes")["items"]
            joined = max(each["seconds"] for each in changes if each["what"] == "added")
            return seconds, routed, joined, back


def all_routed(cluster: Cluster, nodes: int) -> bool:
    """Whether every node has a route to each other one's pods, and its default route."""
    tables = (cluster.node(f"node-{number}").run(["ip", "route"]).stdout for number in range(1, nodes + 1))
    return all(table.count(" via ") >= nodes for table in tables)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataplanes", nargs="*", default=["flannel", "calico"])
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    names = ["bridge", *wanted.dataplanes]
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in names}
    for _ in range(wanted.rounds):
        for name in names:
            found[name].append(measured(name, wanted.nodes, wanted.pods))
    base = median(seconds for seconds, *_ in found["bridge"])
    good = True
    for name in names:
        seconds, routed, joined, back = (median(column) for column in zip(*found[name], strict=True))
        met = seconds <= TIMES * base and joined < JOINED_WITHIN
        good = good and met
        print(
            f"{name}: up {seconds:.2f} s ({seconds / base:.2f} x bridge), all routes {routed:.2f} s later, "
            f"node joined in {joined:.2f} s, node back in {back:.2f} s"
        )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
