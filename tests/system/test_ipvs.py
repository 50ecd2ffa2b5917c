"""Proxy mode ipvs on a kernel that has IPVS: it takes what is compiled, and connections arrive."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from sandboxed import in_sandbox
from scenes import Scene, scenes

from testbed import Cluster
from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.kernel import readback
from testbed.kernel.apply import RealKernel
from testbed.kernel.ipvs import Ipvs, listing
from testbed.kernel.run import run
from testbed.proxy.ipvs import DEVICE
from testbed.proxy.ipvs import Ipvs as Proxier
from testbed.rules.ipvs import parse_save, real_key, virtual_key
from testbed.state import NODE, NetnsState, NodeState, RealServer, VirtualServer
from testbed.wait import wait_until

pytestmark = pytest.mark.needs("ipvs", "dummy", "ipset", "iptables")


def scene(name: str) -> Scene:
    return next(each for each in scenes() if each.name == name)


def difference(old: NetnsState, new: NetnsState) -> list[ChangeNetns]:
    return [each for each in diff(NodeState(old), NodeState(new)) if isinstance(each, ChangeNetns)]


def wrong(found: NetnsState, wanted: NetnsState) -> list[str]:
    """What is there of what mode ipvs writes, and is not as wanted."""
    held = {key for key in found.addresses if key[0] == DEVICE}
    told = [f"addresses {held ^ wanted.addresses.keys()}"] if held != wanted.addresses.keys() else []
    for part in ("virtual_servers", "real_servers", "chains"):
        there, asked = getattr(found, part), getattr(wanted, part)
        told += [
            f"{part} {key}: {there.get(key)} for {each}"
            for key, each in asked.items()
            if there.get(key) != each
        ]
        told += [f"{part} {key}: {there[key]}" for key in there if key not in asked and "servers" in part]
    told += [
        f"set {name}: {found.ipsets.get(name)} for {each}"
        for name, each in wanted.ipsets.items()
        if name not in found.ipsets or found.ipsets[name].entries != each.entries
    ]
    return told


CASES = (
    "nodeport-cluster",
    "loadbalancer-local-healthcheck",
    "external-ips",
    "affinity-default",
    "dual-stack",
    "no-endpoints",
)


def test_the_kernel_takes_what_is_compiled_and_gives_it_back(tmp_path: Path) -> None:
    """One after the other on one kernel, so that each change is made of the case before."""

    def inside() -> list[str]:
        kernel, proxier, old, told = RealKernel(), Proxier(), NetnsState(), []
        for name in (*CASES, CASES[0]):
            case = scene(name)
            new = replace(proxier.compile(case.snapshot, case.node), udp={}, sysctls={})
            for change in difference(old, new):
                told += [f"{name}: {failure}" for failure in kernel.change(NODE, change.add, change.remove)]
            told += [f"{name}: {line}" for line in wrong(readback.read(), comparable(new))]
            old = new
        kernel.close()
        return told

    assert in_sandbox(inside, tmp_path / "run") == []


def comparable(state: NetnsState) -> NetnsState:
    """Chains as they are read: the kernel does not know which rules were put in front."""
    return replace(state, chains={key: replace(each, inserted=0) for key, each in state.chains.items()})


def test_a_server_with_connections_is_left_them(tmp_path: Path) -> None:
    """It gets weight 0, and goes when the look after the connection's end finds none; UDP goes at once."""

    def inside() -> list[object]:
        now = 0.0
        servers = Ipvs(lambda: now)
        run(["ip", "link", "set", "lo", "up"])
        run(["ip", "address", "add", "10.96.0.1/32", "dev", "lo"])
        run(["ip", "address", "add", "10.244.1.2/32", "dev", "lo"])
        run(["ipvsadm", "--set", "5", "1", "5"])  # seconds an idle, an ended and a UDP connection is known
        listener = socket.create_server(("10.244.1.2", 8080))
        tcp = VirtualServer("TCP", "10.96.0.1", 80)
        udp = VirtualServer("UDP", "10.96.0.1", 53)
        ends = (
            RealServer("TCP", "10.96.0.1:80", "10.244.1.2", 8080),
            RealServer("UDP", "10.96.0.1:53", "10.244.1.2", 53),
        )
        both = NetnsState(
            virtual_servers={virtual_key(each): each for each in (tcp, udp)},
            real_servers={real_key(each): each for each in ends},
        )
        servers.change(NODE, both, NetnsState())
        client = socket.create_connection(("10.96.0.1", 80), timeout=5)
        accepted, _ = listener.accept()
        servers.change(NODE, NetnsState(), NetnsState(real_servers=both.real_servers))
        left = parse_save(listing())[1]
        answers: list[object] = [[(key[0], one.weight) for key, one in left.items()]]
        client.sendall(b"still")
        answers.append(accepted.recv(5).decode())
        servers.change(NODE, NetnsState(real_servers={real_key(ends[0]): ends[0]}), NetnsState())
        answers.append([one.weight for one in parse_save(listing())[1].values()])
        servers.change(NODE, NetnsState(), NetnsState(real_servers={real_key(ends[0]): ends[0]}))
        for each in (client, accepted, listener):
            each.close()

        def gone() -> bool:
            nonlocal now
            now += 61
            servers.change(NODE, NetnsState(), NetnsState())
            return not parse_save(listing())[1]

        wait_until(gone, 150, "the real server is deleted", interval=1)
        return answers

    assert in_sandbox(inside, tmp_path / "run") == [[["TCP", 0]], "still", [1]]


# --- a cluster ----------------------------------------------------------------------------------------

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {name: ipvs}
spec:
  nodes: {count: 2}
  dns: {enabled: false}
  network: {proxy: {mode: ipvs}}
"""
WEB = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.100.1, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {run: client}}
spec: {containers: [{name: client, image: busybox}]}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ipvs")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "web.yaml").write_text(WEB)
    with Cluster.up(
        folder / "spec.yaml", name=f"ipvs-{os.getpid()}", manifests=[folder / "web.yaml"]
    ) as running:
        running.wait(ready="app=web", timeout=60)
        yield running


def test_a_service_answers_at_its_address_and_on_every_node(cluster: Cluster) -> None:
    """By turns; who asks at the Service's own address is seen as who it is."""
    client = cluster.pod("client")
    for to in ("http://10.96.100.1", "http://192.168.100.11:30080", "http://192.168.100.12:30080"):
        answers = [json.loads(client.run(["curl", "-s", "-m", "20", to]).stdout) for _ in range(4)]
        pods = [answer["pod"] for answer in answers]
        assert sorted(map(pods.count, set(pods))) == [2, 2], (to, pods)
        seen = {answer["client"]["address"] for answer in answers}
        own = set(client.run(["hostname", "-I"]).stdout.split())
        assert (seen <= own) == to.startswith("http://10.96."), (to, seen)


POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: one}
spec:
"""
TO_WEB = (
    POLICY
    + """\
  podSelector: {matchLabels: {run: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
"""
)
TO_NOBODY = TO_WEB.replace("app: web", "app: nobody")
FROM_NOBODY = (
    POLICY
    + """\
  podSelector: {matchLabels: {app: web}}
  ingress: []
"""
)


def test_policies_judge_where_a_service_leads(cluster: Cluster, tmp_path: Path) -> None:
    """Not its address; and a pod that is not reached by itself is not by a Service, on its own node too."""
    client = cluster.pod("client")
    pods = [pod["status"]["podIP"] for pod in cluster.pods() if pod["metadata"]["name"] != "client"]
    places = [f"http://{to}" for to in ("10.96.100.1", "192.168.100.11:30080", "192.168.100.12:30080", *pods)]

    def answered(to: str) -> bool:
        return client.run(["curl", "-s", "-m", "10", to]).code == 0

    path = tmp_path / "policy.yaml"
    for text, wanted in ((TO_WEB, True), (TO_NOBODY, False), (FROM_NOBODY, False)):
        path.write_text(text)
        cluster.apply(path)
        cluster.settle()
        for to in (places[0], *places):  # by turns: either of the two pods is asked by the Service
            if wanted and ":30080" in to:
                continue  # another node's port is that node's address, which the policy does not speak of
            assert answered(to) is wanted, (text, to)
    cluster.delete(path)
    cluster.settle()
    assert all(map(answered, places))
