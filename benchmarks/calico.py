"""What Calico's routing costs: ``up`` of many nodes on dataplane calico (BGP alone) against dataplane bridge.

    python -m benchmarks.calico [--nodes 50] [--pods 500] [--rounds 3]

In turn, several times; medians count. Bar: calico is up within twice the time of bridge. Beside it: how long
after ``up`` every node's kernel has the routes to all blocks, which BGP's timers decide (connect after 2 s).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from testbed.api.cluster import Cluster
from testbed.wait import wait_until

BAR = 2.0
SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: bench-{name}}}
spec:
  nodes: {{count: {nodes}}}
  dns: {{enabled: false}}
  network: {{dataplane: {{name: {dataplane}}}, nodeCIDR: 192.168.0.0/20}}
  manifests: [web.yaml]
"""
WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec: {{containers: [{{name: c, image: nginx, ports: [{{containerPort: 80}}]}}]}}
"""


def main() -> int:
    """Measure, print one line a figure, and return 1 where the bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--nodes", type=int, default=50)
    arguments.add_argument("--pods", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    ups: dict[str, list[float]] = {"bridge": [], "calico": []}
    routed = []
    print(f"load: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name in ups:
                seconds, after = measured(Path(folder), name, options.nodes, options.pods)
                ups[name].append(seconds)
                routed += [after] if name == "calico" else []
                print(f"{name}: up {seconds:.2f} s" + (f", all routes {after:.2f} s later" if after else ""))
    ratio = median(ups["calico"]) / median(ups["bridge"])
    print(f"up: calico / bridge = {ratio:.2f} (bar {BAR}); all routes {median(routed):.1f} s after up")
    return int(ratio > BAR)


def measured(folder: Path, dataplane: str, nodes: int, pods: int) -> tuple[float, float]:
    """Seconds of ``up`` and, with BGP, from then on until the last node has all routes."""
    (folder / "web.yaml").write_text(WEB.format(pods=pods))
    spec = folder / f"{dataplane}.yaml"
    spec.write_text(SPEC.format(name=dataplane, dataplane=dataplane, nodes=nodes))
    begun = time.monotonic()
    with Cluster.up(spec) as cluster:
        seconds = time.monotonic() - begun
        if dataplane != "calico":
            return seconds, 0.0

        def all_routed() -> bool:
            return all(
                cluster.node(f"node-{number}").run(["ip", "route"]).stdout.count("proto bird") >= nodes
                for number in range(1, nodes + 1)
            )

        return seconds, wait_until(all_routed, 120, "all blocks in every kernel")


if __name__ == "__main__":
    raise SystemExit(main())
