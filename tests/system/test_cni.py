"""Real CNI plugins as dataplane ``cni`` runs them: on live clusters, and beside our own wiring."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from node_lab import FACTS, NODES, Host, isolated, pod, running_lab, snapshot

from testbed import Cluster
from testbed.cluster import membership, sandboxes
from testbed.cluster.compile import compile_node
from testbed.cluster.messages import (
    CheckSandbox,
    Done,
    Failed,
    SandboxFailed,
    SandboxGone,
    SandboxReady,
)
from testbed.cluster.sandboxes import Network, PluginFailed, Plugins
from testbed.control.snapshot import Container, ContainerPort, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.cni import DEFAULT, protocol
from testbed.dataplane.cni.protocol import Attachment
from testbed.dataplane.portmap import container_id
from testbed.kernel import netns, process
from testbed.kernel.capabilities import missing
from testbed.kernel.run import run
from testbed.proxy import proxiers
from testbed.state import NodeState
from testbed.wait import wait_until

pytestmark = pytest.mark.skipif(bool(missing(["cni-plugins"])), reason="needs containernetworking-plugins")

PLUGINS = Path(__file__).with_name("cni_plugins")
DIRECTORIES = (str(PLUGINS), "/usr/lib/cni")

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes: {{count: 2}}
  external: [{{name: client, address: 203.0.113.10}}]
  dns: {{enabled: false}}
  network: {{dataplane: {dataplane}}}
  manifests: [pods.yaml]
"""
PODS = """
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web}}
spec: {nodeName: node-1, containers: [{name: c, image: nginx, ports: [{containerPort: 80, hostPort: 8088}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web}}
spec: {nodeName: node-2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80}]}
"""


def up(directory: Path, name: str, dataplane: str, pods: str = PODS) -> Cluster:
    (directory / "pods.yaml").write_text(pods)
    (directory / "spec.yaml").write_text(SPEC.format(name=name, dataplane=dataplane))
    return Cluster.up(directory / "spec.yaml")


def address(cluster: Cluster, name: str) -> str:
    return str(cluster.client.get(f"/api/v1/namespaces/default/pods/{name}")["status"].get("podIP", ""))


def asked(cluster: Cluster, name: str, url: str) -> str:
    ran = cluster.pod(name).run(["curl", "-sS", "-m5", url])
    assert ran.code == 0, ran.stderr
    return ran.stdout.strip()


def calls(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    """Every call of a plugin on a node, from the node's own file."""
    said = cluster.node(node).run(["cat", f"{sandboxes.STATE}/{node}/{sandboxes.CALLS}"]).stdout
    return [json.loads(line) for line in said.splitlines()]


# --- a cluster of Debian's plugins ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    dataplane = "{name: cni, nonMasqueradeCIDR: 10.0.0.0/8}"
    with up(tmp_path_factory.mktemp("cni"), "cni-debian", dataplane) as cluster:
        cluster.reachability(port=80)  # the first measurement starts the prober, which stays
        yield cluster


def test_pods_have_the_addresses_that_host_local_gave_and_reach_each_other(cluster: Cluster) -> None:
    assert (address(cluster, "a"), address(cluster, "b")) == ("10.244.1.2", "10.244.2.2")
    assert asked(cluster, "a", "http://10.244.2.2/hostname") == "b"
    assert "10.244.1.2\ta" in cluster.pod("a").run(["cat", "/etc/hosts"]).stdout
    frame = cluster.reachability(port=80)
    assert set(frame["verdict"]) == {"ok"}


def test_services_host_ports_and_policies_work_on_it(cluster: Cluster) -> None:
    assert {asked(cluster, "a", "http://10.96.0.80/hostname") for _ in range(20)} == {"a", "b"}
    ran = cluster.host("client").run(["curl", "-sS", "-m5", "http://192.168.100.11:8088/hostname"])
    assert ran.stdout.strip() == "a"
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    }
    path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
    cluster.client.post(path, policy)
    blocked = ["curl", "-s", "-m1", "http://10.244.2.2/hostname"]
    wait_until(lambda: cluster.pod("a").run(blocked).code == 28, 10, "the policy is in force")
    cluster.client.delete(f"{path}/closed")
    wait_until(lambda: cluster.pod("a").run(blocked).code == 0, 10, "the policy is gone")


def test_what_plugins_and_the_runtime_keep_goes_with_the_pod(cluster: Cluster) -> None:
    extra = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "extra", "namespace": "default"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "nginx"}]},
    }
    cluster.client.post("/api/v1/namespaces/default/pods", extra)
    wait_until(lambda: address(cluster, "extra"), 10, "the pod has an address")
    given, home = address(cluster, "extra"), f"{sandboxes.STATE}/node-1"
    reserved = f"{home}/networks/testbed/{given}"
    container = cluster.node("node-1").run(["cat", reserved]).stdout.splitlines()[0]
    assert cluster.node("node-1").run(["test", "-e", f"/run/netns/cni-{container[:32]}"]).code == 0
    kept = json.loads(cluster.node("node-1").run(["cat", f"{home}/results/testbed-{container}-eth0"]).stdout)
    assert (kept["kind"], kept["containerId"], kept["ifName"]) == ("cniCacheV1", container, "eth0")
    assert kept["result"]["ips"][0]["address"] == f"{given}/24"
    cluster.client.delete("/api/v1/namespaces/default/pods/extra")
    for path in (reserved, f"{home}/results/testbed-{container}-eth0", f"/run/netns/cni-{container[:32]}"):
        wait_until(lambda p=path: cluster.node("node-1").run(["test", "-e", p]).code == 1, 10, f"{path} goes")
    last = [
        call["plugin"].rpartition("/")[2] for call in calls(cluster, "node-1") if call["operation"] == "DEL"
    ]
    assert last[-3:] == ["bandwidth", "portmap", "bridge"]


def test_a_plugin_is_told_of_its_pod_as_by_a_container_runtime(cluster: Cluster) -> None:
    added = [call for call in calls(cluster, "node-1") if call["operation"] == "ADD"]
    first = {
        call["plugin"].rpartition("/")[2]: call
        for call in added
        if "K8S_POD_NAME=a;" in call["env"]["CNI_ARGS"]
    }
    assert list(first) == ["bridge", "portmap", "bandwidth"]
    arguments = dict(pair.split("=") for pair in first["bridge"]["env"]["CNI_ARGS"].split(";"))
    assert (arguments["IgnoreUnknown"], arguments["K8S_POD_NAMESPACE"]) == ("1", "default")
    assert arguments["K8S_POD_INFRA_CONTAINER_ID"] == first["bridge"]["env"]["CNI_CONTAINERID"]
    assert first["bridge"]["env"]["CNI_PATH"] == "/usr/lib/cni:/opt/cni/bin"
    assert first["bridge"]["ended"] == "exit status 0"
    assert "prevResult" not in first["bridge"]["stdin"]
    assert "capabilities" not in first["bridge"]["stdin"]
    assert first["bridge"]["stdin"]["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.244.1.0/24"}]]}
    mapping = {"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}
    assert first["portmap"]["stdin"]["runtimeConfig"] == {"portMappings": [mapping]}
    assert first["portmap"]["stdin"]["prevResult"] == json.loads(first["bridge"]["stdout"])


# --- a student's own plugin -----------------------------------------------------------------------------

MINE = {
    "cniVersion": "1.0.0",
    "name": "mine",
    "plugins": [{"type": "mine", "prefix": "@PREFIX@", "dir": "{{.Dir}}", "refuse": "/run/refuse"}],
}


def test_a_plugin_of_ones_own_wires_pods_is_seen_called_and_its_errors_are_the_kubelets(
    tmp_path: Path,
) -> None:
    text = json.dumps(MINE).replace("@PREFIX@", "10.244.77")
    (tmp_path / "mine.conflist").write_text(text)
    os.symlink(PLUGINS, tmp_path / "bin")
    only_a = PODS.split("---")[0]
    with up(tmp_path, "cni-mine", "{name: cni, conflist: mine.conflist, path: bin}", only_a) as cluster:
        assert address(cluster, "a") == "10.244.77.10"
        ran = cluster.node("node-1").run(["curl", "-sS", "-m5", "http://10.244.77.10/hostname"])
        assert ran.stdout.strip() == "a"
        (call,) = calls(cluster, "node-1")
        assert (call["operation"], call["stderr"]) == ("ADD", "adding 10.244.77.10\n")
        assert call["plugin"] == str(tmp_path / "bin" / "mine")

        cluster.node("node-1").run(["touch", "/run/refuse"])
        late = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "late", "namespace": "default"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "nginx"}]},
        }
        cluster.client.post("/api/v1/namespaces/default/pods", late)

        def told() -> list[str]:
            events = cluster.client.get("/api/v1/namespaces/default/events")["items"]
            return [each["message"] for each in events if each["reason"] == "FailedCreatePodSandBox"]

        wait_until(told, 10, "an event")
        expected = (
            r"Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for "
            r'sandbox "[0-9a-f]{64}": plugin type="mine" name="mine" failed \(add\): try again later'
        )
        assert re.fullmatch(expected, told()[0])
        assert [call["operation"] for call in calls(cluster, "node-1")][-2:] == ["ADD", "DEL"]
        wait_until(lambda: len(calls(cluster, "node-1")) >= 7, 15, "it is tried again and again")
        cluster.node("node-1").run(["rm", "/run/refuse"])
        wait_until(lambda: address(cluster, "late"), 15, "the pod is tried again")
        made = [
            (call["operation"], call["env"]["CNI_CONTAINERID"], call["env"]["CNI_NETNS"])
            for call in calls(cluster, "node-1")[1:]
        ]
        assert [operation for operation, _, _ in made] == ["ADD", "DEL"] * (len(made) // 2) + ["ADD"]
        adds, dels = ([each[1:] for each in made if each[0] == operation] for operation in ("ADD", "DEL"))
        assert dels == adds[:-1], "each sandbox that could not be wired is ended"
        assert len(set(adds)) == len(adds) == len({path for _, path in adds}), "and the next is another"
        names = cluster.node("node-1").run(["ls", "/run/netns"]).stdout.split()
        assert Path(adds[-1][1]).name in names
        assert not [path for _, path in dels if Path(path).name in names]


NOT_READY = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:"
    'Network plugin returns error: plugin type="mine" name="mine" failed (status): no agent here'
)


def test_while_status_fails_its_node_is_not_ready_and_new_pods_wait(tmp_path: Path) -> None:
    plugin = {**MINE["plugins"][0], "prefix": "10.244.78", "ill": f"{tmp_path}/ill-{{{{.NodeName}}}}"}
    (tmp_path / "mine.conflist").write_text(json.dumps({**MINE, "cniVersion": "1.1.0", "plugins": [plugin]}))
    os.symlink(PLUGINS, tmp_path / "bin")
    ill = tmp_path / "ill-node-1"
    ill.touch()
    none = PODS.split("---")[-1]
    with up(tmp_path, "cni-ill", "{name: cni, conflist: mine.conflist, path: bin}", none) as cluster:
        node = cluster.node("node-1")

        def ready() -> tuple[str, str]:
            conditions = cluster.client.get("/api/v1/nodes/node-1")["status"]["conditions"]
            (found,) = [each for each in conditions if each["type"] == "Ready"]
            return found["status"], found["message"]

        def said(name: str, reason: str) -> list[str]:
            events = cluster.client.get("/api/v1/namespaces/default/events")["items"]
            return [
                each["message"]
                for each in events
                if (each["involvedObject"]["name"], each["reason"]) == (name, reason)
            ]

        def create(name: str, **spec: Any) -> None:
            made = {
                "metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "image": "nginx"}], **spec},
            }
            cluster.client.post(
                "/api/v1/namespaces/default/pods", {"apiVersion": "v1", "kind": "Pod", **made}
            )

        wait_until(lambda: ready() == ("False", NOT_READY), 15, "it is not ready before it has a pod")
        ill.unlink()
        wait_until(lambda: ready()[0] == "True", 15, "the node is ready")
        create("a", nodeName="node-1")
        wait_until(lambda: address(cluster, "a"), 15, "a pod is wired")
        ill.touch()
        wait_until(
            lambda: ready() == ("False", NOT_READY), 15, "the node is not ready", detail=lambda: str(ready())
        )
        assert said("node-1", "NodeNotReady")[-1] == "Node node-1 status is now: NodeNotReady"
        create("chosen", nodeSelector={"kubernetes.io/hostname": "node-1"})
        create("bound", nodeName="node-1")
        create("free")
        wait_until(lambda: address(cluster, "free"), 15, "the other node takes a pod")
        free = cluster.client.get("/api/v1/namespaces/default/pods/free")
        assert free["spec"]["nodeName"] == "node-2"
        wait_until(lambda: said("bound", "NetworkNotReady"), 15, "a pod that is bound to it waits, too")
        assert said("bound", "NetworkNotReady") == [f"network is not ready: {NOT_READY}"]
        (why,) = said("chosen", "FailedScheduling")
        assert "1 node(s) had untolerated taint(s)" in why
        adds = [call for call in calls(cluster, "node-1") if call["operation"] == "ADD"]
        assert len(adds) == 1, "nothing was wired meanwhile"
        assert (
            node.run(["curl", "-sS", "-m5", f"http://{address(cluster, 'a')}/hostname"]).stdout.strip() == "a"
        )
        ill.unlink()
        wait_until(lambda: ready()[0] == "True", 15, "the node is ready again")
        wait_until(lambda: address(cluster, "chosen") and address(cluster, "bound"), 15, "its pods are wired")


def test_a_node_leaves_though_a_plugin_hangs_and_may_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "WITHIN", 2.0)
    stuck = tmp_path / "stuck"
    plugin = {**MINE["plugins"][0], "prefix": "10.244.79", "stuck": str(stuck)}
    (tmp_path / "mine.conflist").write_text(json.dumps({**MINE, "plugins": [plugin]}))
    os.symlink(PLUGINS, tmp_path / "bin")
    only_a = PODS.split("---")[0]
    with up(tmp_path, "cni-hangs", "{name: cni, conflist: mine.conflist, path: bin}", only_a) as cluster:
        other = cluster.node("node-2")
        assert other.run(["ls", "/run/netns"]).stdout.startswith("cni-")
        stuck.touch()
        cluster.client.delete("/api/v1/nodes/node-1")
        assert [each["metadata"]["name"] for each in cluster.client.get("/api/v1/nodes")["items"]] == [
            "node-2"
        ]
        assert other.run(["ls", "/run/netns"]).stdout == ""
        assert other.run(["ls", str(sandboxes.STATE)]).stdout.split() == ["node-2"]
        wait_until(
            lambda: other.run(["pgrep", "-f", f"{tmp_path}/bin/mine"]).code == 1, 10, "the plugin ends"
        )
        stuck.unlink()
        cluster.client.post(
            "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
        )
        container = {"name": "c", "image": "nginx"}
        again = {"metadata": {"name": "again"}, "spec": {"nodeName": "node-1", "containers": [container]}}
        cluster.client.post("/api/v1/namespaces/default/pods", {"apiVersion": "v1", "kind": "Pod", **again})
        wait_until(lambda: address(cluster, "again"), 15, "a pod is wired on it")


# --- the same list by plugins and by our own wiring -----------------------------------------------------

SHARED = (Container("main", "nginx", ports=(ContainerPort(8080, host_port=8081),)),)
LIMITS = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "5M"}
TWO = (
    pod("a1", "a", 2, containers=SHARED, annotations=LIMITS),
    pod("a2", "a", 3),
)
KUBENET = DEFAULT | {"name": "kubenet"}


def observed(host: Host, pods: tuple[Pod, ...]) -> dict[str, Any]:
    """Everything that wiring makes on a node and in its pods, names and MACs aside that are random."""
    names: dict[str, str] = {}
    seen: dict[str, Any] = {}
    for each in pods:
        (link,) = host.json("ip", "-json", "-details", "address", "show", "eth0", where=each.uid)
        seen[each.name] = {
            "mtu": link["mtu"],
            "addresses": sorted(
                (info["local"], info["prefixlen"], info.get("broadcast"), info["scope"])
                for info in link["addr_info"]
                if info["scope"] == "global"
            ),
            "routes": _routes(host, each.uid),
            "arp_notify": host.ok("cat", "/proc/sys/net/ipv4/conf/eth0/arp_notify", where=each.uid),
        }
        names[_with_index(host, link["link_index"])] = f"veth-{each.name}"
    ports = {}
    for link in host.json("ip", "-json", "-details", "address", "show"):
        name = names.get(link["ifname"], link["ifname"])
        if name in ("lo", "eth0") or link["linkinfo"]["info_kind"] == "ifb":
            continue
        slave = link["linkinfo"].get("info_slave_data", {})
        ports[name] = {
            "kind": link["linkinfo"]["info_kind"],
            "mtu": link["mtu"],
            "master": link.get("master"),
            "hairpin": slave.get("hairpin"),
            "addresses": sorted(
                (info["local"], info["prefixlen"], info.get("broadcast"))
                for info in link["addr_info"]
                if info["scope"] == "global"
            ),
        }
    seen["links"] = ports
    seen["routes"] = _routes(host, "node")
    rules = host.ok("iptables-save", "-t", "nat") + host.ok("ip6tables-save", "-t", "nat")
    rules += host.ok("iptables-save", "-t", "filter")
    lines = [re.sub(r"\[\d+:\d+\]", "", line) for line in rules.splitlines() if line[0] in ":-"]
    seen["rules"] = _renamed(sorted(lines), names)
    seen["qdiscs"] = _renamed(sorted(_words(host.ok("tc", "qdisc", "show"))), names)
    for path in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        seen[path] = host.ok("cat", f"/proc/sys/{path}").strip()
    for name, standing in names.items():
        key = f"{standing} route_localnet"
        seen[key] = host.ok("cat", f"/proc/sys/net/ipv4/conf/{name}/route_localnet").strip()
    return seen


def _routes(host: Host, where: str) -> list[tuple[Any, ...]]:
    return sorted(
        (route["dst"], route.get("gateway", ""), route["dev"], route.get("prefsrc", ""))
        for version in ("-4", "-6")
        for route in host.json("ip", version, "-json", "route", where=where)
        if not route["dst"].startswith("fe80")
    )


def _with_index(host: Host, index: int) -> str:
    return next(link["ifname"] for link in host.json("ip", "-json", "link") if link["ifindex"] == index)


def _words(text: str) -> list[str]:
    return [re.sub(r" refcnt \d+", "", line).strip() for line in text.splitlines()]


def _renamed(lines: list[str], names: dict[str, str]) -> list[str]:
    for name, standing in names.items():
        lines = [line.replace(name, standing) for line in lines]
    return sorted(lines)


def wire_by_plugins(host: Host, pods: tuple[Pod, ...], taken: Snapshot) -> None:
    """As the control plane does: sandboxes first, then, with the addresses that plugins gave, the pods."""
    node = NODES[0]
    dataplane, none = dataplanes.get("cni"), proxiers.get("none")
    waiting = replace(taken, pods=(), unaddressed={"a": tuple(replace(each, ips=()) for each in pods)})
    for count in range(1, len(pods) + 1):  # one after the other, so that addresses come in order
        first = replace(waiting, unaddressed={"a": waiting.unaddressed["a"][:count]})
        host.become(compile_node(first, node, dataplane, none))
        ready, _ = host.answer(0)
        assert isinstance(ready, SandboxReady), ready
        assert (ready.uid, ready.addresses) == (pods[count - 1].uid, pods[count - 1].ips)
    host.become(compile_node(taken, node, dataplane, none))


def test_plugins_make_the_same_as_the_bridge_dataplane_of_the_same_list() -> None:
    """Links, addresses, routes, rules, shapers and sysctls; dual stack, with a host port and limits."""
    with running_lab() as lab:
        facts = replace(FACTS, dataplane_options={})
        ours = compile_node(
            snapshot(*TWO, facts=facts), NODES[0], dataplanes.get("bridge"), proxiers.get("none")
        )
        lab.a.become(ours)
        native = observed(lab.a, TWO)
    with running_lab() as lab:
        options = {"conflist": KUBENET, "nonMasqueradeCIDR": "10.0.0.0/8"}
        wire_by_plugins(lab.a, TWO, snapshot(*TWO, facts=replace(FACTS, dataplane_options=options)))
        real = observed(lab.a, TWO)
        lab.a.become(NodeState())
        gone = {lab.a.answer(0)[0].uid for _ in TWO}
        assert gone == {each.uid for each in TWO}
    assert real == native


def test_a_sandbox_that_cannot_be_wired_leaves_nothing_and_one_that_goes_is_taken_down_twice() -> None:
    listed = {
        "cniVersion": "1.0.0",
        "name": "full",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipam": {"type": "host-local", "subnet": "10.5.0.0/30"},
            }
        ],
    }
    facts = replace(FACTS, dataplane_options={"conflist": listed})
    with running_lab() as lab:
        unaddressed = {"a": tuple(replace(each, ips=()) for each in (*TWO, pod("a3", "a", 4)))}
        taken = Snapshot(facts, NODES, (), unaddressed=unaddressed)
        lab.a.become(compile_node(taken, NODES[0], dataplanes.get("cni"), proxiers.get("none")))
        answers = [lab.a.answer(0)[0] for _ in range(3)]
        ready = [each for each in answers if isinstance(each, SandboxReady)]
        failed = [each for each in answers if isinstance(each, SandboxFailed)]
        assert [each.addresses for each in ready] == [("10.5.0.2",)]
        assert len(failed) == 2
        assert "no IP addresses available in range set: 10.5.0.1-10.5.0.2" in failed[0].message
        ports = lab.a.json("ip", "-json", "link", "show", "master", "cni0")
        (named,) = [each["name"] for each in lab.a.json("ip", "-json", "netns") if _is_of(each, ready[0].uid)]
        checked, _ = lab.a.ask(CheckSandbox(lab.a.new_id(), ready[0].uid))
        assert isinstance(checked, Done)
        lab.a.ok("ip", "-n", named, "address", "flush", "dev", "eth0")
        checked, _ = lab.a.ask(CheckSandbox(lab.a.new_id(), ready[0].uid))
        assert isinstance(checked, Failed)
        assert 'plugin type="bridge" name="full" failed (check)' in checked.message
        assert len(ports) == 1  # a failed ADD leaves its host end behind, which the DEL after it takes away
        lab.a.become(NodeState())
        left = set()
        while len(left) < 3:
            answer, _ = lab.a.answer(0)
            if isinstance(answer, SandboxGone):
                left.add(answer.uid)
        assert lab.a.json("ip", "-json", "link", "show", "master", "cni0") == []


def test_a_plugin_that_is_not_there_is_told_until_it_is_and_what_was_wired_before_is_no_hindrance(
    tmp_path: Path,
) -> None:
    full = listed(
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.5.0.0/24"}},
        {"type": "late"},
    )
    facts = replace(FACTS, dataplane_options={"conflist": full, "path": str(tmp_path)})
    with running_lab() as lab:
        unaddressed = {"a": (replace(TWO[0], ips=()),)}
        taken = Snapshot(facts, NODES, (), unaddressed=unaddressed)
        lab.a.become(compile_node(taken, NODES[0], dataplanes.get("cni"), proxiers.get("none")))
        first, second = (lab.a.answer(0)[0] for _ in range(2))
        assert isinstance(first, SandboxFailed)
        assert isinstance(second, SandboxFailed)
        why = 'plugin type="late" name="net" failed (add): failed to find plugin "late" in path'
        assert why in first.message
        assert why in second.message
        assert "DEL of what is left fails" in second.message
        (tmp_path / "late").symlink_to(PLUGINS / "complete")
        while isinstance(answer := lab.a.answer(0)[0], SandboxFailed):
            pass
        assert isinstance(answer, SandboxReady)
        assert len(lab.a.json("ip", "-json", "link", "show", "master", "cni0")) == 1


def _is_of(named: dict[str, Any], uid: str) -> bool:
    return str(named["name"]) == f"cni-{container_id(pod('x', 'a', 9, uid=uid))[:32]}"


# --- the operations, alone ------------------------------------------------------------------------------


def alone(work: Callable[[Callable[[dict[str, Any]], Network], str], Awaitable[Any]], home: Path) -> Any:
    """What ``work(network of a list, path of a fresh netns)`` returns, called in a netns of its own."""

    def inside() -> Any:
        sandboxes.STATE = home

        async def whole() -> Any:
            loop = asyncio.get_running_loop()
            plugins = Plugins(loop, process.Children(loop), "n")
            plugins.directory.mkdir(parents=True)
            held = netns.create()

            def make(listed: dict[str, Any]) -> Network:
                return Network(plugins, protocol.parse(listed), DIRECTORIES)

            return await work(make, f"/proc/{os.getpid()}/fd/{held}")

        return asyncio.run(whole())

    return isolated(inside)


def listed(*plugins: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", **more, "plugins": list(plugins)}


async def failing(work: Awaitable[Any]) -> str:
    try:
        await work
    except PluginFailed as error:
        return str(error)
    return ""


def local(home: Path, **more: Any) -> dict[str, Any]:
    return {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(home / "networks"), **more}


@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan"])
def test_check_passes_after_add_and_fails_once_something_is_not_as_it_was_left(
    kind: str, tmp_path: Path
) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> list[str]:
        plugin = {"type": kind, "ipam": local(tmp_path)} | ({"master": "eth0"} if kind == "macvlan" else {})
        network = make(listed(plugin, {"type": "tuning", "mtu": 1400}))
        one = Attachment("one", path, "eth0")
        await network.add(one)
        found = [await failing(network.check(one))]
        fd = os.open(path, os.O_RDONLY)
        with netns.inside(fd):
            run(["ip", "address", "flush", "dev", "eth0"])
        found.append(await failing(network.check(one)))
        await network.delete(one)
        await network.delete(one)  # again, as the runtime may
        return [*found, *sorted(os.listdir(tmp_path / "networks" / "net"))]

    good, bad, *left = alone(work, tmp_path / "state")
    assert good == ""
    assert f'plugin type="{kind}" name="net" failed (check)' in bad
    assert left == ["last_reserved_ip.0", "lock"]


def test_static_addresses_a_firewall_and_tuning_are_chained(tmp_path: Path) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> Any:
        static = {"type": "static", "addresses": [{"address": "10.7.0.9/24", "gateway": "10.7.0.1"}]}
        network = make(
            listed(
                {"type": "bridge", "bridge": "br7", "ipam": static},
                {"type": "firewall", "backend": "iptables"},
                {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_ignore": "2"}},
            )
        )
        one = Attachment("one", path, "eth0")
        found = await network.add(one)
        checked = await failing(network.check(one))
        rules = run(["iptables-save", "-t", "filter"]).stdout
        await network.delete(one)
        return (
            protocol.addresses(found, "eth0"),
            checked,
            rules,
            run(["iptables-save", "-t", "filter"]).stdout,
        )

    addresses, checked, rules, after = alone(work, tmp_path / "state")
    assert (addresses, checked) == (["10.7.0.9"], "")
    assert "-A CNI-FORWARD -s 10.7.0.9/32 -j ACCEPT" in rules
    assert "10.7.0.9" not in after


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        ({"type": "nowhere"}, 'failed to find plugin "nowhere" in path ['),
        ({"type": "portmap"}, "must be called as chained plugin"),
        ({"type": "ptp", "ipam": {"type": "nobody"}}, 'failed to find plugin "nobody" in path'),
        ({"type": "endless"}, "y\\ny\\n…"),
    ],
)
def test_a_failure_is_told_in_libcnis_words(plugin: dict[str, Any], text: str, tmp_path: Path) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> str:
        return await failing(make(listed(plugin)).add(Attachment("one", path, "eth0")))

    said = alone(work, tmp_path / "state")
    assert said.startswith(f'plugin type="{plugin["type"]}" name="net" failed (add): ')
    assert text in said


def test_versions_are_negotiated_and_an_unsupported_one_is_the_plugins_own_error(tmp_path: Path) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> list[str]:
        bridge = {"type": "bridge", "ipam": local(tmp_path)}
        several = make(listed(bridge, cniVersions=["0.4.0", "1.0.0", "1.1.0"]))
        newer = make(listed(bridge, cniVersion="1.1.0"))
        ours = make(listed({"type": "complete"}, cniVersions=["1.0.0", "1.1.0"]))
        refused = await failing(newer.add(Attachment("one", path, "eth0")))
        return [await several.version(), await ours.version(), refused]

    old, new, refused = alone(work, tmp_path / "state")
    assert (old, new) == ("1.0.0", "1.1.0")
    assert 'incompatible CNI versions; config is "1.1.0", plugin supports' in refused


def test_status_is_asked_of_plugins_of_1_1_and_told_with_its_details(tmp_path: Path) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> list[str]:
        network = make(listed({"type": "complete", "ill": str(tmp_path / "ill")}, cniVersion="1.1.0"))
        well = await failing(network.status())
        (tmp_path / "ill").touch()
        older = make(listed({"type": "complete", "ill": str(tmp_path / "ill")}))
        return [well, await failing(network.status()), await failing(older.status())]

    well, ill, older = alone(work, tmp_path / "state")
    assert (well, older) == ("", "")
    assert ill == 'plugin type="complete" name="net" failed (status): no agent here; start it'


def test_what_nobody_knows_of_any_more_is_collected(tmp_path: Path) -> None:
    async def work(make: Callable[[dict[str, Any]], Network], path: str) -> list[Any]:
        network = make(listed({"type": "complete"}, cniVersion="1.1.0"))
        for container in ("stays", "stale"):
            await network.add(Attachment(container, path, "eth0"))
        failures = await network.collect([("stays", "eth0")])
        made = (sandboxes.directory("n") / sandboxes.CALLS).read_text().splitlines()
        return [
            failures,
            os.listdir(sandboxes.directory("n") / "results"),
            [json.loads(line) for line in made],
        ]

    failures, results, made = alone(work, tmp_path / "state")
    assert failures == []
    assert results == ["net-stays-eth0"]
    assert [(call["operation"], call["env"].get("CNI_CONTAINERID")) for call in made[-2:]] == [
        ("DEL", "stale"),
        ("GC", None),
    ]
    assert made[-1]["stdin"]["cni.dev/valid-attachments"] == [{"containerID": "stays", "ifname": "eth0"}]
