"""Every dataplane that is registered: host ports, bandwidth limits, and that it converges whatever changes.

A dataplane is found by itself; with which proxy mode it is tried here is chosen so that each meets some (the
conformance suites run all pairs). A kernel without what it needs defers it by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cell_lab import ok, told

from testbed import Cluster
from testbed.api.client import RequestFailed
from testbed.dataplane import dataplanes, needs_of
from testbed.proxy import proxiers
from testbed.wait import wait_until

WITHIN = 30.0
"""Seconds in which a change must be in force everywhere; how long it takes is a benchmark's to say."""

VARIANTS: dict[str, dict[str, Any]] = {
    "flannel-host-gw": {"name": "flannel", "backend": "host-gw"},
    "flannel-udp": {"name": "flannel", "backend": "udp"},
    "flannel-wireguard": {"name": "flannel", "backend": "wireguard"},
    "flannel-ipip": {"name": "flannel", "backend": "ipip"},
}
OPTIONS = {name: {"name": name} for name in dataplanes if name != "none"} | VARIANTS
MODES = ("iptables", "nftables")


def mode_of(variant: str) -> str:
    return MODES[list(OPTIONS).index(variant) % len(MODES)]


def needs(variant: str) -> frozenset[str]:
    """What a dataplane with its options and its proxy mode needs, and what is asked of each of them."""
    options = {key: value for key, value in OPTIONS[variant].items() if key != "name"}
    dataplane = dataplanes.get(OPTIONS[variant]["name"])
    return needs_of(dataplane, options) | proxiers.get(mode_of(variant)).needs | {"ifb"}


EACH = [pytest.param(variant, marks=pytest.mark.needs(*sorted(needs(variant)))) for variant in OPTIONS]

LEFT_BY_PLUGINS = frozenset({"cni0"})
"""What DEL leaves on a node, as on a real one: the bridge, and the chains that host ports had rules in."""

LIMITS = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "10M"}


def pod(name: str, node: str, **more: Any) -> dict[str, Any]:
    ports = [{"containerPort": 80, **({"hostPort": 8088} if name == "a" else {})}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}, **more},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx", "ports": ports}]},
    }


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "b", "namespace": "default"},
    "spec": {"clusterIP": "10.96.0.80", "selector": {"app": "b"}, "ports": [{"port": 80}]},
}


@pytest.fixture(scope="module", params=EACH)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(request.param, tmp_path_factory.mktemp("every")) as running:
        yield running


@contextmanager
def up(variant: str, folder: Path, prefix: str = "every") -> Iterator[Cluster]:
    objects = [pod("a", "node-1", annotations=LIMITS), pod("b", "node-2"), pod("c", "node-3"), SERVICE]
    spec = {
        "apiVersion": "testbed/v1",
        "kind": "Cluster",
        "metadata": {"name": f"{prefix}-{variant}"},
        "spec": {
            "nodes": {"count": 3},
            "external": [{"name": "client", "address": "203.0.113.10"}],
            "dns": {"enabled": False},
            "network": {
                "dataplane": OPTIONS[variant],
                "proxy": {"mode": mode_of(variant), "minSyncPeriod": "100ms"},
            },
            "manifests": ["objects.json"],
        },
    }
    (folder / "objects.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    (folder / "spec.yaml").write_text(json.dumps(spec))
    with Cluster.up(folder / "spec.yaml") as running:
        eventually(lambda: all_reach(running), "all pods reach each other")
        yield running


def eventually(condition: Callable[[], bool], what: str) -> float:
    return wait_until(condition, WITHIN, what, interval=0.05)


def address(cluster: Cluster, name: str) -> str:
    found = [each for each in cluster.pods(namespace="default") if each["metadata"]["name"] == name]
    return str(found[0].get("status", {}).get("podIP", "")) if found else ""


def answers(cluster: Cluster, source: str, url: str, who: str) -> bool:
    ran = cluster.pod(source).run(["curl", "-s", "-m1", f"http://{url}/hostname"])
    return ran.code == 0 and ran.stdout.strip() == who


def all_reach(cluster: Cluster, names: str = "abc") -> bool:
    found = {name: address(cluster, name) for name in names}
    return all(found.values()) and all(
        answers(cluster, source, found[target], target)
        for source in names
        for target in names
        if source != target
    )


def replace(cluster: Cluster, name: str, node: str, **more: Any) -> None:
    """Delete a pod and, once it is gone, make one of its name."""
    path = "/api/v1/namespaces/default/pods"
    cluster.client.delete(f"{path}/{name}")
    eventually(lambda: not address(cluster, name) and name not in _names(cluster), f"{name} is gone")
    cluster.client.post(path, pod(name, node, **more))


def _names(cluster: Cluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.pods(namespace="default")}


def test_services_and_host_ports_answer_inside_and_outside(cluster: Cluster) -> None:
    eventually(lambda: answers(cluster, "a", "10.96.0.80", "b"), "the Service answers")
    for place in (cluster.host("client"), cluster.node("node-2"), cluster.node("node-1"), cluster.pod("c")):
        ran = place.run(["curl", "-sS", "-m3", "http://192.168.100.11:8088/hostname"])
        assert ran.stdout.strip() == "a", ran.stderr
    assert ok(cluster.node("node-1"), "curl", "-sS", "-m3", "http://127.0.0.1:8088/hostname").strip() == "a"


def test_bandwidth_annotations_shape_the_host_end_and_an_ifb(cluster: Cluster) -> None:
    (link,) = told(cluster.pod("a"), "ip", "-json", "link", "show", "eth0")
    node = cluster.node("node-1")
    host_end = next(
        each["ifname"] for each in told(node, "ip", "-json", "link") if each["ifindex"] == link["link_index"]
    )
    qdiscs = told(node, "tc", "-json", "qdisc", "show", "dev", host_end)
    assert {each["kind"] for each in qdiscs} >= {"tbf", "ingress"}
    assert [each["options"]["rate"] * 8 for each in qdiscs if each["kind"] == "tbf"] == [20_000_000]
    (ifb,) = told(node, "ip", "-json", "link", "show", "type", "ifb")
    (shaper,) = told(node, "tc", "-json", "qdisc", "show", "dev", ifb["ifname"])
    assert (shaper["kind"], shaper["options"]["rate"] * 8) == ("tbf", 10_000_000)
    filters = told(node, "tc", "-json", "filter", "show", "dev", host_end, "ingress")
    actions = [action for each in filters for action in each.get("options", {}).get("actions", ())]
    assert {action["to_dev"] for action in actions} == {ifb["ifname"]}


def test_pods_that_come_and_go_and_move_are_reached(cluster: Cluster) -> None:
    for node in ("node-3", "node-1", "node-2"):
        replace(cluster, "b", node)
        eventually(lambda: all_reach(cluster), f"b on {node} is reached")
        eventually(lambda: answers(cluster, "a", "10.96.0.80", "b"), "the Service follows")


@pytest.mark.parametrize("variant", EACH)
def test_node_that_leaves_is_forgotten_and_one_that_joins_is_reached(variant: str, tmp_path: Path) -> None:
    """The machine of a node that left is as it was; its pods are gone, and nothing leads there any more."""
    with up(variant, tmp_path, "member") as cluster:
        leave_and_join(cluster, LEFT_BY_PLUGINS if variant == "cni" else frozenset())


def leave_and_join(cluster: Cluster, left: frozenset[str]) -> None:
    address_of = {node: f"192.168.100.1{node[-1]}" for node in ("node-1", "node-2", "node-3")}
    cluster.client.delete("/api/v1/nodes/node-3")
    assert {node["metadata"]["name"] for node in cluster.client.get("/api/v1/nodes")["items"]} == {
        *("node-1", "node-2")
    }
    eventually(lambda: "c" not in _names(cluster), "its pod is gone")
    assert all_reach(cluster, "ab")
    machine = cluster.host("node-3")
    links = {link["ifname"] for link in told(machine, "ip", "-json", "link")}
    assert links - {"tunl0"} == {"lo", "eth0"} | left  # tunl0 is in every netns of a kernel that has it
    rules = [line for line in ok(machine, "iptables-save").splitlines() if line.startswith("-A ")]
    assert [rule for rule in rules if not (left and "CNI-" in rule)] == []
    eventually(
        lambda: all(address_of["node-3"] not in leading(cluster, node) for node in ("node-1", "node-2")),
        "nothing leads to the node any more",
    )
    with pytest.raises(RequestFailed, match="not found"):
        cluster.node("node-3").run(["true"])
    labels = {"tier": "spare"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-3", "labels": labels}}
    answer = cluster.client.post("/apis/testbed/v1/manifests", {"objects": [node]})
    assert answer["results"] == [["node", "node-3", "created"]]
    joined = cluster.client.get("/api/v1/nodes/node-3")
    assert joined["metadata"]["labels"].items() >= {**labels, "kubernetes.io/hostname": "node-3"}.items()
    cluster.client.post("/api/v1/namespaces/default/pods", pod("c", "node-3"))
    eventually(lambda: all_reach(cluster), "the node's new pod is reached")
    eventually(lambda: answers(cluster, "c", "10.96.0.80", "b"), "its Services are there")
    followed = cluster.programming(of="nodes")["items"]
    assert sorted((each["what"], each["name"], each["node"]) for each in followed) == [
        (what, "node-3", node) for what in ("added", "deleted") for node in address_of
    ]
    assert all(each["seconds"] > 0 for each in followed)


def leading(cluster: Cluster, node: str) -> str:
    """What on a node leads to others: routes, forwarding entries, sets of nodes, WireGuard's peers; what a
    device has learned ages by itself."""
    programs = (["ip", "route"], ["ip", "neigh", "show", "nud", "permanent"], ["ipset", "save"])
    shown = [ok(cluster.node(node), *argv) for argv in programs]
    shown += [line for line in ok(cluster.node(node), "bridge", "fdb").splitlines() if "permanent" in line]
    return "\n".join([*shown, cluster.node(node).run(["wg", "show", "all", "endpoints"]).stdout])


@pytest.mark.parametrize("variant", EACH)
def test_node_that_loses_its_power_is_not_missed_and_comes_back_with_its_pods(
    variant: str, tmp_path: Path
) -> None:
    """On a cluster of its own: the node's agent and daemons are others afterwards."""
    with up(variant, tmp_path, "own") as cluster:
        with cluster.fault("node-crash", "node-3"):
            assert all_reach(cluster, "ab")
            assert not answers(cluster, "a", address(cluster, "c"), "c")
        eventually(lambda: all_reach(cluster), "the node is back with its pod")
        eventually(lambda: answers(cluster, "c", "10.96.0.80", "b"), "its Services are back")


@pytest.mark.parametrize("variant", EACH)
def test_node_that_boots_with_another_address_is_reached_by_it_alone(variant: str, tmp_path: Path) -> None:
    with up(variant, tmp_path, "moved") as cluster:
        before = {name: address(cluster, name) for name in "abc"}
        cluster.client.post("/apis/testbed/v1/nodes/node-3/addresses", {"addresses": ["192.168.100.33"]})
        node = cluster.client.get("/api/v1/nodes/node-3")
        assert {"type": "InternalIP", "address": "192.168.100.33"} in node["status"]["addresses"]
        (eth0,) = told(cluster.node("node-3"), "ip", "-4", "-json", "address", "show", "eth0")
        assert [each["local"] for each in eth0["addr_info"]] == ["192.168.100.33"]
        eventually(lambda: all_reach(cluster), "all pods reach each other again")
        eventually(lambda: answers(cluster, "c", "10.96.0.80", "b"), "its Services are there")
        if variant != "cni":  # whose plugins give a pod that starts anew another address
            assert {name: address(cluster, name) for name in "abc"} == before
        eventually(
            lambda: all("192.168.100.13" not in leading(cluster, name) for name in ("node-1", "node-2")),
            "nothing leads to the address that it had",
        )
        followed = cluster.programming(of="nodes")["items"]
        assert {(each["what"], each["name"], each["node"]) for each in followed} == {
            ("readdressed", "node-3", name) for name in ("node-1", "node-2", "node-3")
        }


@pytest.mark.parametrize("variant", EACH)
def test_network_of_a_node_that_is_restarted_is_as_it_was_and_has_again_what_somebody_took_away(
    variant: str, tmp_path: Path
) -> None:
    """kube-proxy and the dataplane's agent set all of their own again when they start; daemons are others."""
    with up(variant, tmp_path, "again") as cluster:
        eventually(lambda: answers(cluster, "a", "10.96.0.80", "b"), "the Service answers")
        plugins = "CNI-" if variant == "cni" else None  # of what plugins have set nobody knows who restarts
        before, ruled = lines(leading(cluster, "node-1")), rules(cluster, "node-1", plugins)

        def is_as_it_was() -> None:
            eventually(lambda: lines(leading(cluster, "node-1")) == before, "what leads to others is there")
            assert rules(cluster, "node-1", plugins) == ruled
            eventually(lambda: all_reach(cluster), "all pods reach each other")
            eventually(lambda: answers(cluster, "a", "10.96.0.80", "b"), "the Service answers")

        restart(cluster, "node-1")
        is_as_it_was()
        assert take_away(cluster, "node-1") or not any("via" in line for line in before)
        ok(cluster.node("node-1"), "iptables", "-t", "nat", "-F", "POSTROUTING")
        restart(cluster, "node-1")
        is_as_it_was()
        last = [each for each in cluster.programming(of="nodes")["items"] if each["what"] == "restarted"][-1]
        assert (last["name"], last["node"]) == ("node-1", "node-1")


WHAT_A_START_MENDS = {
    "flannel": (["ip", "link", "delete", "flannel.1"],),
    "calico": (["ipset", "flush"],),
    "weave": (["ipset", "flush"], ["ip", "-4", "address", "flush", "dev", "weave"]),
}


@pytest.mark.parametrize("variant", WHAT_A_START_MENDS)
def test_a_start_mends_devices_addresses_and_sets_too(variant: str, tmp_path: Path) -> None:
    def shown() -> list[list[str]]:
        asked = (["ip", "route"], ["ip", "-4", "-brief", "address"], ["ipset", "save"])
        return [lines(ok(cluster.node("node-1"), *argv)) for argv in asked]

    with up(variant, tmp_path, "mended") as cluster:
        before = shown()
        for argv in WHAT_A_START_MENDS[variant]:
            ok(cluster.node("node-1"), *argv)
        assert shown() != before
        cluster.client.post("/apis/testbed/v1/nodes/node-1/restart", {})
        assert shown() == before
        eventually(lambda: all_reach(cluster), "all pods reach each other")


def test_a_machine_boots_with_its_address_whatever_somebody_made_of_it_and_waits_for_faults(
    tmp_path: Path,
) -> None:
    with up("flannel", tmp_path, "odd") as cluster:
        ok(cluster.node("node-3"), "ip", "address", "flush", "dev", "eth0")
        path = "/apis/testbed/v1/nodes/node-3/addresses"
        cluster.client.post(path, {"addresses": ["192.168.100.33"]})
        eventually(lambda: all_reach(cluster), "all pods reach each other again")
        with (
            cluster.fault("missing-fdb", "node-3"),
            pytest.raises(RequestFailed, match=r"missing-fdb\) is about it: heal it first"),
        ):
            cluster.client.post(path, {"addresses": ["192.168.100.34"]})
        cluster.client.post(path, {"addresses": ["192.168.100.34"]})
        eventually(lambda: all_reach(cluster), "and again")


def restart(cluster: Cluster, node: str) -> None:
    """Restart a node's network; what its daemons are stays, and each is another process."""
    daemons = programs(cluster, node)
    cluster.client.post(f"/apis/testbed/v1/nodes/{node}/restart", {})
    again = programs(cluster, node)
    assert sorted(again.values()) == sorted(daemons.values())
    assert again.keys().isdisjoint(daemons)


def rules(cluster: Cluster, name: str, but: str | None = None) -> dict[tuple[str, str, str], list[str]]:
    """Program, table and chain → its policy and its rules in their order, without counters and canaries, and
    without rules of POSTROUTING that have ``but`` in them; what kube-proxy has in nft as it prints it."""
    node = cluster.node(name)
    found: dict[tuple[str, str, str], list[str]] = {}
    for program in ("iptables-save", "ip6tables-save"):
        table = ""
        for line in ok(node, program).splitlines():
            words = line.split()
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":") and "CANARY" not in line:
                found[program, table, words[0][1:]] = [words[1]]
            elif line.startswith("-A") and not (but and words[1] == "POSTROUTING" and but in line):
                found[program, table, words[1]].append(line)
    for family in ("ip", "ip6"):
        listed = node.run(["nft", "--stateless", "list", "table", family, "kube-proxy"]).stdout
        found["nft", family, "kube-proxy"] = lines(listed)
    return found


def take_away(cluster: Cluster, name: str) -> int:
    """Delete the routes, neighbours and forwarding entries that a dataplane has set itself; how many."""
    node, gone = cluster.node(name), 0
    for route in told(node, "ip", "-json", "route"):
        if route.get("protocol") not in ("kernel", "bird") and route["dst"] != "default":
            ok(node, "ip", "route", "delete", route["dst"])
            gone += 1
    for entry in told(node, "ip", "-json", "neigh", "show", "nud", "permanent"):
        ok(node, "ip", "neigh", "delete", entry["dst"], "dev", entry["dev"])
        gone += 1
    for entry in told(node, "bridge", "-json", "fdb", "show"):
        if "dst" in entry:
            ok(node, "bridge", "fdb", "delete", entry["mac"], "dev", entry["ifname"], "dst", entry["dst"])
            gone += 1
    return gone


def programs(cluster: Cluster, node: str) -> dict[str, str]:
    """The node's daemons: pid → command; nodes see each other's processes."""
    lines = ok(cluster.node(node), "ps", "-eo", "pid=,args=").splitlines()
    return dict(line.strip().split(" ", 1) for line in lines if f"/run/testbed-daemons/{node}/" in line)


def lines(text: str) -> list[str]:
    return sorted(text.splitlines())
