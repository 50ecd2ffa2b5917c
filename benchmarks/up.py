"""What a cluster costs: ``up`` and ``down`` of 1,000 pods on 20 nodes against Mininet's own way, in one run.

    python -m benchmarks.up [--pods 1000] [--nodes 20] [--proxy iptables]

Mininet: as many hosts on as many Linux bridges, built and started by Mininet, in namespaces of its own.
Raw: the kernel's own share of memory, as ``benchmarks/pods.py`` measures it, in turn with ours, three times;
medians count. Memory is the machine's
(``pods.memory``), so every process and the kernel are in it. Bars: at least 8 times faster than Mininet;
``down`` under 1 s and 90 % of the memory back within 15 s; at most raw + 0.25 MB and 3 descriptors a pod;
3 nodes with 30 pods in under 1.5 s. They are those of the pods and their network alone; what service rules
and cluster DNS add, as a spec has them by default, is printed beside. The machine should be idle, its
neighbour table large enough (``make setup``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.pods import MB, isolate, make_raw, memory
from testbed.cluster import statedir
from testbed.errors import NotConverged
from testbed.kernel import process
from testbed.wait import wait_until

ROOT = Path(__file__).parents[1]
TESTBED = [sys.executable, "-I", "-m", "testbed.cli.main"]
FASTER, DOWN_SECONDS, FREED_SECONDS, MEMORY, DESCRIPTORS, SMALL_SECONDS = 8.0, 1.0, 15.0, 0.25, 3.0, 1.5
ROUNDS = 3
"""Ours and raw in turn: slabs that earlier namespaces left half empty make whoever comes next look small."""
STILL = 10 * MB
"""kB: what may be missing of the memory there was at first, without it being called in use."""
LEFT = 0.1
"""The share of a cluster's memory that may be missing when all of it counts as freed."""

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: {nodes}}}
  network: {{proxy: {{mode: {proxy}}}}}
  dns: {{enabled: {dns}}}
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
    """Measure, print one line a figure, and return 1 where a bar is missed."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--pods", type=int, default=1000)
    arguments.add_argument("--nodes", type=int, default=20)
    arguments.add_argument("--proxy", default="iptables", help="the proxy mode of the cluster with services")
    options = arguments.parse_args()
    bars = Bars()
    first = memory()
    with tempfile.TemporaryDirectory() as folder:
        small = ours(Path(folder), first, "bench-small", 30, 3, options.proxy)
        bars.at_most("3 nodes, 30 pods, services and DNS: up", small["up"], SMALL_SECONDS, "s")
        rounds = [
            {
                **ours(Path(folder), first, "bench-big", options.pods, options.nodes),
                "raw": apart(lambda: raw_memory(options.pods, first))[0],
            }
            for _ in range(ROUNDS)
        ]
        big = {name: median(each[name] for each in rounds) for name in rounds[0]}
        full = ours(Path(folder), first, "bench-full", options.pods, options.nodes, options.proxy)
    mininet = apart(lambda: mininet_seconds(options.pods, options.nodes))
    print(f"Mininet: {options.pods} hosts up {mininet[0]:.2f} s, down {mininet[1]:.2f} s")
    ups = ", ".join(f"{each['up']:.2f}" for each in rounds)
    print(f"ours: {options.pods} pods up {ups} s")
    bars.at_least("times faster than Mininet", mininet[0] / big["up"], FASTER, "x")
    bars.at_most("down", big["down"], DOWN_SECONDS, "s")
    bars.at_most("kernel has freed all after", big["freed"], FREED_SECONDS, "s")
    for each in rounds:
        print(f"memory per pod: ours {each['memory']:.3f} MB, raw {each['raw']:.3f} MB")
    beyond = median(each["memory"] - each["raw"] for each in rounds)
    bars.at_most("memory per pod beyond the kernel's own", beyond, MEMORY, "MB")
    bars.at_most("descriptors per pod", big["descriptors"], DESCRIPTORS, "")
    print(
        f"with services ({options.proxy}) and DNS: up {full['up']:.2f} s, down {full['down']:.2f} s,"
        f" memory per pod {full['memory']:.3f} MB, descriptors per pod {full['descriptors']:.2f}"
    )
    return bars.status


class Bars:
    """Prints each figure beside its bar and remembers whether one was missed."""

    def __init__(self) -> None:
        self.status = 0

    def at_most(self, what: str, value: float, bar: float, unit: str) -> None:
        """A figure that must not be larger than its bar."""
        self._say(what, value, f"at most {bar:g}", unit, value <= bar)

    def at_least(self, what: str, value: float, bar: float, unit: str) -> None:
        """A figure that must not be smaller than its bar."""
        self._say(what, value, f"at least {bar:g}", unit, value >= bar)

    def _say(self, what: str, value: float, bar: str, unit: str, held: bool) -> None:
        print(f"{'ok  ' if held else 'MISS'} {what}: {value:.3f} {unit} ({bar} {unit})", flush=True)
        self.status |= not held


def apart(work: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """What ``work`` returns, in a child with namespaces of its own."""
    inside, outside = socket.socketpair()

    def body() -> None:
        isolate()
        inside.sendall(json.dumps(work()).encode() + b"\n")

    pid = process.fork(body, title="bench", keep=[inside.fileno()])
    inside.close()
    with outside.makefile() as said:
        line = said.readline()
    os.waitpid(pid, 0)
    return tuple(json.loads(line))


def mininet_seconds(hosts: int, bridges: int) -> tuple[float, float]:
    """Seconds Mininet takes to build and start, and to stop, hosts on Linux bridges in a chain."""
    from mininet.net import Mininet
    from mininet.nodelib import LinuxBridge
    from mininet.topo import Topo

    topo = Topo()
    for bridge in range(1, bridges + 1):
        topo.addSwitch(f"s{bridge}")
        if bridge > 1:
            topo.addLink(f"s{bridge - 1}", f"s{bridge}")
    for host in range(1, hosts + 1):
        topo.addLink(topo.addHost(f"h{host}"), f"s{(host - 1) % bridges + 1}")
    Mininet.inited = True  # its init() writes sysctls of the whole host
    begun = time.monotonic()
    net = Mininet(topo, switch=LinuxBridge, controller=None)
    net.start()
    up = time.monotonic() - begun
    begun = time.monotonic()
    net.stop()
    return up, time.monotonic() - begun


def raw_memory(pods: int, first: float) -> tuple[float]:
    """MB per pod of the kernel alone."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # not earlier: mnexec closes all possible ones
    before = quiet_memory(first)
    make_raw(pods)
    return ((before - memory()) / MB / pods,)


def quiet_memory(first: float) -> float:
    """``memory()`` once it is what it was at first, in kB: the kernel frees namespaces in its own time."""
    try:
        wait_until(lambda: memory() >= first - STILL, FREED_SECONDS, "memory given back", interval=0.1)
    except NotConverged as late:
        print(f"{late}; other programs may have taken {(first - memory()) / MB:.0f} MB meanwhile")
    return memory()


def ours(
    folder: Path, first: float, name: str, pods: int, nodes: int, proxy: str = "none"
) -> dict[str, float]:
    """Figures of one cluster, with DNS if it has services, started and stopped by the command line."""
    dns = "false" if proxy == "none" else "true"
    (folder / f"{name}.yaml").write_text(SPEC.format(name=name, nodes=nodes, proxy=proxy, dns=dns))
    (folder / "web.yaml").write_text(WEB.format(pods=pods))
    before = quiet_memory(first)
    begun = time.monotonic()
    up = subprocess.run(
        [*TESTBED, "up", str(folder / f"{name}.yaml"), "-o", "json"], capture_output=True, check=True
    )
    seconds = time.monotonic() - begun
    status = json.loads(up.stdout)
    if status["waiting"] or status["running"] < pods:  # the cluster's DNS servers run beside them
        raise SystemExit(f"{status['running']} pods run, of {pods} and more: {status['waiting']}")
    used = (before - memory()) / MB / pods
    descriptors = agent_descriptors(statedir.resolve(name).pid)
    begun = time.monotonic()
    subprocess.run([*TESTBED, "down", name], check=True, capture_output=True)
    down = time.monotonic() - begun
    # What of a namespace is last to go shows in no list; the memory does, but for a share that other
    # programs on the machine take meanwhile.
    enough = before - LEFT * used * MB * pods
    try:
        freed = wait_until(lambda: memory() >= enough, 60, "memory given back", interval=0.05) + down
    except NotConverged:
        freed = math.inf
    return {
        "up": seconds,
        "memory": used,
        "descriptors": descriptors / pods,
        "down": down,
        "freed": freed,
    }


def agent_descriptors(init: int) -> int:
    """Descriptors open in all agents of the cluster whose init has this pid on the host."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns/pid") == namespace and (
                (entry / "comm").read_text().startswith("testbed-agent")
            ):
                total += len(list((entry / "fd").iterdir()))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
