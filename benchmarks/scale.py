"""One Deployment from none to 500 pods and back, on 20 nodes. Prints the figures; exit 1 if a bar is missed.

    python benchmarks/scale.py [--pods 500] [--nodes 20]

Up ends when a pod has connected to every one of them over TCP, down when the store and every agent have let
the last one go. Bars: under 5 s and under 3 s. For comparison: a real cluster promises one pod in 5 s
(99th percentile), and KWOK, without any network, makes 20 pods a second.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from testbed import Cluster
from testbed.wait import wait_until

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: scale-bench}}
spec: {{nodes: {{count: {nodes}}}, dns: {{enabled: false}}, manifests: [objects.yaml]}}
"""
OBJECTS = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {containers: [{name: c, image: busybox}]}
"""
CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def answers(address):
    try:
        socket.create_connection((address, 80), 2).close()
        return True
    except OSError:
        return False

addresses = json.load(sys.stdin)
with ThreadPoolExecutor(64) as pool:
    print(json.dumps([a for a, ok in zip(addresses, pool.map(answers, addresses)) if not ok]))
"""
"""Prints which of the addresses it is given do not answer on port 80."""

UP_SECONDS, DOWN_SECONDS = 5.0, 3.0
SCALE = "/apis/apps/v1/namespaces/default/deployments/web/scale"
GUARD = 60.0
"""Seconds after which a wait gives up."""


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--nodes", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "cluster.yaml")
        spec.write_text(SPEC.format(nodes=options.nodes))
        Path(folder, "objects.yaml").write_text(OBJECTS)
        with Cluster.up(spec, name=f"scale-bench-{os.getpid()}") as cluster:
            up = scale_up(cluster, options.pods)
            down = scale_down(cluster)
            left = links_left(cluster, options.nodes)
    good = judge(f"0 → {options.pods} pods, each answering", up, UP_SECONDS)
    good &= judge(f"{options.pods} → 0 pods, gone from store and agents", down, DOWN_SECONDS)
    if left:
        print(f"MISS links of pods left on nodes: {left}")
    return 0 if good and not left else 1


def judge(what: str, seconds: float, bar: float) -> bool:
    """Print one figure beside its bar."""
    print(f"{'ok  ' if seconds < bar else 'MISS'} {what}: {seconds:.2f} s (under {bar:g} s)", flush=True)
    return seconds < bar


def scale_up(cluster: Cluster, pods: int) -> float:
    """Seconds until every pod answers."""
    begun = time.monotonic()
    cluster.client.put(SCALE, {"spec": {"replicas": pods}})
    wait_until(lambda: counted(cluster, "running") > pods, GUARD, "all pods running", interval=0.05)
    running = time.monotonic() - begun
    addresses = [pod["status"]["podIP"] for pod in cluster.pods("app=web")]
    silent = json.loads(
        cluster.pod("client").run([sys.executable, "-Ic", CONNECT], stdin=json.dumps(addresses)).stdout
    )
    seconds = time.monotonic() - begun
    if len(addresses) != pods or silent:
        raise SystemExit(f"{len(addresses)} pods, of which {silent} do not answer")
    print(f"     all running after {running:.2f} s")
    wait_until(lambda: endpoints(cluster) == pods, GUARD, "every pod an endpoint", interval=0.05)
    print(f"     all endpoints of their service after {time.monotonic() - begun:.2f} s")
    return seconds


def counted(cluster: Cluster, what: str) -> int:
    """How many pods there are, or are ``running``."""
    return int(cluster.client.get("/apis/testbed/v1/cluster")[what])


def endpoints(cluster: Cluster) -> int:
    """Endpoints of the service."""
    path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    slices = cluster.client.get(path, labelSelector="kubernetes.io/service-name=web")["items"]
    return sum(len(one.get("endpoints") or ()) for one in slices)


def scale_down(cluster: Cluster) -> float:
    """Seconds until no pod is left but the client."""
    begun = time.monotonic()
    cluster.client.put(SCALE, {"spec": {"replicas": 0}})
    wait_until(lambda: counted(cluster, "pods") == 1, GUARD, "all pods gone", interval=0.05)
    cluster.settle(GUARD)
    return time.monotonic() - begun


def links_left(cluster: Cluster, nodes: int) -> list[str]:
    """Ends of pods' links that are still on a node, but the client's."""
    names = []
    for number in range(1, nodes + 1):
        listed = cluster.node(f"node-{number}").run(["ip", "-j", "link", "show", "type", "veth"]).stdout
        names += [f"node-{number} {one['ifname']}" for one in json.loads(listed or "[]") if "master" in one]
    return names if len(names) > 1 else []


if __name__ == "__main__":
    sys.exit(main())
