"""The problems that students meet with Calico, each switched on, seen by real clients, and healed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cell_lab import IPIP, captured, echoes, in_mode, in_modes, ok, told, written

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster, Place
from testbed.wait import wait_until

SPEC = """
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: faults-{mode}}}
spec:
  nodes: {{count: 3}}
  external:
  - {{name: client, address: 203.0.113.10}}
  - {{name: printer, address: 192.168.100.50, attach: nodes}}
  network: {{dataplane: {{name: calico, {options}}}}}
  dns: {{enabled: false}}
"""
OPTIONS = {"bgp": "timers: fast", "vxlan": "vxlanMode: Always", "ipip": "ipipMode: Always, timers: fast"}
PODS = {"p1": "node-1", "p2": "node-2", "near": "node-2", "p3": "node-3"}
CLIENT, PRINTER, WRONG = "203.0.113.10", "192.168.100.50", "172.17.0.1"
CONVERGED_WITHIN = 30.0


def pod(name: str, node: str, ip: str = "") -> dict[str, Any]:
    annotations = {"annotations": {"testbed/ip": ip}} if ip else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, **annotations},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "nginx"}]},
    }


class Lab:
    """Three nodes with a pod each, and one more on node-2."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        self.cluster, self.mode = cluster, mode

    def ip(self, name: str) -> str:
        found = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in self.cluster.pods()}
        return str(found[name])

    def block(self, name: str) -> str:
        return str(ip_network(f"{self.ip(name)}/26", strict=False))

    def node(self, number: int) -> Place:
        return self.cluster.node(f"node-{number}")

    def birds(self, number: int, *question: str) -> str:
        control = f"/run/testbed-daemons/node-{number}/bird/bird.ctl"
        return ok(self.node(number), "birdc", "-r", "-s", control, "show", *question)

    def reaches(self, source: str, target: str) -> bool:
        address = target if target[0].isdigit() else self.ip(target)
        return self.cluster.pod(source).run(["ping", "-n", "-c1", "-W1", address]).code == 0

    def api(self, source: str) -> bool:
        """Whether a pod reaches the API server by its Service."""
        argv = ["curl", "-sk", "-m2", "https://10.96.0.1/healthz"]
        return self.cluster.pod(source).run(argv).stdout == "ok"

    def whole(self) -> None:
        """As without any fault."""
        ways = [("p1", "p2"), ("p2", "p3"), ("p3", "p1"), ("p2", "near"), ("p2", PRINTER), ("p1", CLIENT)]
        for source, target in ways:
            wait_until(lambda s=source, t=target: self.reaches(s, t), CONVERGED_WITHIN, f"{source}-{target}")  # type: ignore[misc]
        if self.mode != "vxlan":
            wait_until(lambda: self.established() == 6, CONVERGED_WITHIN, "all sessions of the mesh")

    def established(self) -> int:
        return sum(self.birds(number, "protocols").count("Established") for number in (1, 2, 3))


@contextmanager
def running(mode: str, tmp: Path) -> Iterator[Lab]:
    (tmp / "lab.yaml").write_text(SPEC.format(mode=mode, options=OPTIONS[mode]))
    pods = written(tmp, *(pod(name, node) for name, node in PODS.items()))
    with Cluster.up(tmp / "lab.yaml", manifests=[pods]) as cluster:
        lab = Lab(cluster, mode)
        lab.whole()
        yield lab


bgp, vxlan, ipip = (in_mode(running, mode) for mode in OPTIONS)
lab = in_modes("bgp", "vxlan", *IPIP)
tunnelled = in_modes(*IPIP)


# --- wrong-autodetection ----------------------------------------------------------------------------------


def test_a_node_that_announces_the_wrong_address_keeps_its_pods_to_itself(lab: Lab) -> None:
    with lab.cluster.fault("wrong-autodetection", "node-2"):
        wait_until(lambda: not lab.reaches("p1", "p2"), CONVERGED_WITHIN, "node-2's pods are lost")
        assert not lab.reaches("p2", "p3")
        assert lab.reaches("p2", "near")
        assert lab.reaches("p1", "p3")
        assert lab.node(1).run(["ping", "-n", "-c1", "-W1", "192.168.100.12"]).code == 0
        (bridge,) = told(lab.node(2), "ip", "-json", "-4", "address", "show", "docker0")
        assert bridge["addr_info"][0]["local"] == WRONG
        match lab.mode:
            case "bgp":
                assert lab.block("p2") not in routes(lab.node(1))
            case "vxlan":
                fdb = told(lab.node(1), "bridge", "-json", "fdb", "show", "dev", "vxlan.calico")
                assert {entry["dst"] for entry in fdb} == {WRONG, "192.168.100.13"}
            case "ipip":
                assert routes(lab.node(1))[lab.block("p2")]["gateway"] == WRONG
    assert lab.node(2).run(["ip", "link", "show", "docker0"]).code != 0
    lab.whole()


def test_bird_gets_no_session_with_a_wrong_address(bgp: Lab) -> None:
    with bgp.cluster.fault("wrong-autodetection", "node-2"):
        seen = bgp.birds(1, "protocols", "all", "Mesh_172_17_0_1")
        assert re.search(r"BGP state: +(Active|Connect)", seen), seen
        assert f"Router ID is {WRONG}" in bgp.birds(2, "status")
        assert "Established" not in bgp.birds(2, "protocols")
        wait_until(lambda: bgp.established() == 2, 10, "node-1 and node-3 speak with each other")
    with bgp.cluster.fault("wrong-autodetection", "node-2", device="virbr0", address="192.168.122.1/24"):
        seen = bgp.birds(1, "protocols", "all", "Mesh_192_168_122_1")
        assert re.search(r"BGP state: +Passive", seen), "whose address sorts lexically after waits"
    bgp.whole()


# --- same-host-name ---------------------------------------------------------------------------------------


def test_of_two_nodes_with_one_name_the_later_swallows_what_is_for_the_others_pods(bgp: Lab) -> None:
    block = bgp.block("p2")
    with bgp.cluster.fault("same-host-name", "node-3", of="node-2"):
        wait_until(
            lambda: routes(bgp.node(1)).get(block, {}).get("gateway") == "192.168.100.13",
            CONVERGED_WITHIN,
            "the block leads to the other node of that name",
        )
        wait_until(lambda: bgp.reaches("p1", "p3"), CONVERGED_WITHIN, "p3 by a route of its own")
        assert routes(bgp.node(3))[block]["type"] == "blackhole"
        assert routes(bgp.node(1))[bgp.ip("p3")]["gateway"] == "192.168.100.13"
        with captured(bgp.node(3), "eth0") as seen:
            assert not bgp.reaches("p1", "p2")
        assert {echo["dst"] for echo in echoes(seen)} == {bgp.ip("p2")}, "they arrive, and end there"
        assert bgp.reaches("p2", "near")
        assert bgp.established() == 2
        assert "Established" not in bgp.birds(2, "protocols")
    bgp.whole()
    assert bgp.ip("p3") not in routes(bgp.node(1))


def test_a_name_is_shared_no_more_when_the_one_whose_it_was_has_left(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(SPEC.format(mode="shared", options=OPTIONS["bgp"]))
    pods = written(tmp_path, pod("p1", "node-1"), pod("p2", "node-2"), pod("p3", "node-3"))
    with Cluster.up(tmp_path / "lab.yaml", manifests=[pods]) as cluster:
        own = Lab(cluster, "bgp")
        wait_until(lambda: own.established() == 6, CONVERGED_WITHIN, "all sessions of the mesh")
        block, mine = own.block("p2"), own.block("p3")
        shared = cluster.fault("same-host-name", "node-3", of="node-2")
        assert block in own.birds(3, "route", "protocol", "blocks4")
        cluster.client.delete("/api/v1/nodes/node-2")

        def over() -> bool:
            (record,) = (each for each in cluster.faults() if each["id"] == shared.id)
            return "healed" in record and not record.get("problem")

        wait_until(over, CONVERGED_WITHIN, "the fault is over")
        assert block not in own.birds(3, "route", "protocol", "blocks4")
        wait_until(lambda: own.reaches("p1", "p3"), CONVERGED_WITHIN, "p3 is reached")
        wait_until(
            lambda: routes(own.node(1)).get(mine, {}).get("gateway") == "192.168.100.13",
            CONVERGED_WITHIN,
            "by its own node's block",
        )
        assert block not in routes(own.node(1))


def test_without_bridge_netfilter_is_refused(bgp: Lab) -> None:
    with pytest.raises(RequestFailed, match="with calico pods are on no bridge"):
        bgp.cluster.fault("bridge-netfilter-off", "node-1").__enter__()


@pytest.mark.parametrize(
    ("target", "of", "why"), [("node-2", "node-2", "of another one"), ("node-1", "node-9", "no node")]
)
def test_a_name_is_that_of_another_node(bgp: Lab, target: str, of: str, why: str) -> None:
    with pytest.raises(RequestFailed, match=why):
        bgp.cluster.fault("same-host-name", target, of=of).__enter__()


# --- pool-overlap -----------------------------------------------------------------------------------------


def test_a_pool_over_the_nodes_network_leaves_its_other_hosts_without_a_way_back(lab: Lab) -> None:
    printer = lab.cluster.host("printer")
    (device,) = {each["dev"] for each in told(printer, "ip", "-json", "route") if each["dst"] != "default"}
    with lab.cluster.fault("pool-overlap", "node-1", "node-2", "node-3"):
        members = ok(lab.node(1), "ipset", "list", "cali40all-ipam-pools").split("Members:\n")[1].split()
        assert sorted(members) == ["10.244.0.0/16", "192.168.0.0/16"]
        with captured(printer, device) as seen:
            assert not lab.reaches("p1", PRINTER)
        assert {echo["src"] for echo in echoes(seen)} == {lab.ip("p1")}, "not masqueraded"
        assert lab.reaches("p1", CLIENT), "outside the pool pods are masqueraded as ever"
        assert lab.reaches("p1", "p2")
        assert lab.reaches("p1", "192.168.100.12"), "other nodes know the way to pods"
        assert not lab.api("p1"), "the control plane's host is no node of Calico"
    with captured(printer, device) as seen:
        assert lab.reaches("p1", PRINTER)
    assert {echo["src"] for echo in echoes(seen)} == {"192.168.100.11"}
    assert lab.api("p1")
    lab.whole()


def test_bird_announces_the_nodes_network_where_a_pool_covers_it(bgp: Lab) -> None:
    def told_by_node_2() -> str:
        return bgp.birds(1, "route", "protocol", "Mesh_192_168_100_12")

    assert "192.168.100.0/24" not in told_by_node_2()
    with bgp.cluster.fault("pool-overlap", "node-2"):
        wait_until(lambda: "192.168.100.0/24" in told_by_node_2(), 10, "the nodes' network by BGP")
        assert routes(bgp.node(1))["192.168.100.0/24"]["protocol"] == "kernel", "the node's own wins"
    wait_until(lambda: "192.168.100.0/24" not in told_by_node_2(), 10, "withdrawn")


# --- missing-borrowed-route -------------------------------------------------------------------------------


def test_a_borrowed_address_that_nobody_is_told_of_ends_in_its_blocks_black_hole(
    lab: Lab, tmp_path: Path
) -> None:
    with pytest.raises(RequestFailed, match="no IPv4 address of another node's block"):
        lab.cluster.fault("missing-borrowed-route", "node-1").__enter__()
    borrowed = str(ip_network(lab.block("p2"))[40])
    guest = written(tmp_path, pod("guest", "node-1", borrowed))
    lab.cluster.apply(guest)
    lab.cluster.wait(ready="app=guest")
    assert lab.ip("guest") == borrowed
    for source in ("p2", "p3"):
        wait_until(lambda s=source: lab.reaches(s, "guest"), CONVERGED_WITHIN, f"{source} reaches it")  # type: ignore[misc]
    with lab.cluster.fault("missing-borrowed-route", "node-1"):
        assert borrowed not in routes(lab.node(2)) | routes(lab.node(3))
        assert routes(lab.node(2))[lab.block("p2")]["type"] == "blackhole"
        with captured(lab.node(2), "eth0") as seen:
            assert not lab.reaches("p3", "guest")
        if lab.mode == "bgp":
            assert {echo["dst"] for echo in echoes(seen)} == {borrowed}, "sent to the block's owner"
        assert not lab.reaches("p2", "guest")
        assert lab.reaches("p1", "guest"), "its own node knows it"
        assert lab.reaches("p3", "p2")
        assert lab.reaches("p3", "p1")
    wait_until(lambda: lab.reaches("p3", "guest"), CONVERGED_WITHIN, "the route is back")
    lab.cluster.delete(guest)
    lab.cluster.settle()


# --- ipip-filtered ----------------------------------------------------------------------------------------


def test_without_protocol_4_sessions_stay_and_no_pod_of_the_node_is_reached(tunnelled: Lab) -> None:
    lab = tunnelled
    with lab.cluster.fault("ipip-filtered", "node-2"):
        with captured(lab.node(2), "eth0") as seen:
            assert not lab.reaches("p1", "p2")
        assert [frame for frame in seen if frame["what"] == 4] == []
        assert not lab.reaches("p2", "p3")
        assert lab.established() == 6
        assert lab.block("p2") in routes(lab.node(1))
        assert lab.reaches("p1", "p3")
        assert lab.reaches("p2", "near")
        assert lab.reaches("p2", CLIENT)
        assert lab.node(1).run(["ping", "-n", "-c1", "-W1", "192.168.100.12"]).code == 0
    lab.whole()


def test_protocol_4_is_filtered_only_where_it_is_used(vxlan: Lab) -> None:
    with pytest.raises(RequestFailed, match="nothing goes in IP in IP here"):
        vxlan.cluster.fault("ipip-filtered", "node-2").__enter__()


def routes(place: Place) -> dict[str, dict[str, Any]]:
    return {route["dst"]: route for route in told(place, "ip", "-json", "-details", "route")}


# --- what is of all dataplanes ----------------------------------------------------------------------------


def sources(lab: Lab, number: int) -> set[str]:
    """What a node drops in table raw has these sources."""
    rules = ok(lab.node(number), "iptables", "-t", "raw", "-S", "PREROUTING")
    return set(re.findall(r"^-A PREROUTING -s (\S+) -i eth0 .*-j DROP$", rules, re.M))


def dropped(lab: Lab, number: int, source: str) -> int:
    """Packets of that source that a node has dropped."""
    rules = ok(lab.node(number), "iptables", "-t", "raw", "-nvxL", "PREROUTING")
    (line,) = (each for each in rules.splitlines() if " DROP " in each and f" {source} " in each)
    return int(line.split()[0])


def test_a_partition_divides_pods_too(lab: Lab) -> None:
    with lab.cluster.fault("partition", "node-2"):
        assert {lab.block("p2"), "192.168.100.12/32"} <= sources(lab, 1) & sources(lab, 3)
        assert {lab.block("p1"), lab.block("p3"), "192.168.100.11/32"} <= sources(lab, 2)
        for source, target in (("p1", "p2"), ("p2", "p1"), ("p2", "p3"), ("p3", "p2")):
            assert not lab.reaches(source, target), f"{source} reaches {target}"
        assert lab.reaches("p1", "p3")
        assert lab.reaches("p2", "near")
    assert sources(lab, 1) == set()
    lab.whole()


def test_what_comes_through_a_tunnel_is_lost_with_the_rest(tunnelled: Lab) -> None:
    lab = tunnelled
    with lab.cluster.fault("loss", "node-2", loss=1, source="node-1"):
        assert not lab.reaches("p1", "p2")
        assert lab.reaches("p3", "p2")
    lab.whole()
    with lab.cluster.fault("loss", "node-2", loss=1):
        assert not lab.reaches("p3", "p2")
        assert lab.reaches("p2", "near")
    lab.whole()


def test_loss_of_one_source_is_of_its_pods_too_in_whatever_block_they_come(bgp: Lab, tmp_path: Path) -> None:
    block = bgp.block("p1")
    taken = {bgp.block(name) for name in PODS}
    free = next(each for each in ip_network("10.244.0.0/16").subnets(new_prefix=26) if str(each) not in taken)
    late = written(tmp_path, pod("late", "node-1", str(free[5])))
    with bgp.cluster.fault("loss", "node-2", loss=1, source="node-1"):
        assert sources(bgp, 2) == {"192.168.100.11/32", block}
        assert not bgp.reaches("p1", "p2")
        assert dropped(bgp, 2, block) > 0
        assert bgp.reaches("p3", "p2")
        bgp.cluster.apply(late)
        bgp.cluster.wait(ready="app=late")
        bgp.cluster.settle()
        assert sources(bgp, 2) == {"192.168.100.11/32", block, str(free)}
        assert not bgp.reaches("late", "p2")
        wait_until(lambda: bgp.reaches("late", "p3"), CONVERGED_WITHIN, "another node hears it")
    bgp.cluster.delete(late)
    bgp.cluster.settle()
    bgp.whole()


def test_without_its_routes_a_node_does_not_reach_the_pods_of_another(vxlan: Lab) -> None:
    node = vxlan.node(1)
    before = routes(node)
    with vxlan.cluster.fault("route-withdrawn", "node-1", to="node-2"):
        assert routes(node).keys() == before.keys() - {vxlan.block("p2")}
        assert not vxlan.reaches("p1", "p2")
        assert vxlan.reaches("p1", "p3")
    with vxlan.cluster.fault("route-withdrawn", "node-1"):
        assert routes(node).keys() == before.keys() - {vxlan.block("p2"), vxlan.block("p3")}
        assert not vxlan.reaches("p1", "p3")
    assert routes(node).keys() == before.keys()
    vxlan.whole()


def test_routes_that_bird_learned_are_not_to_be_withdrawn(bgp: Lab) -> None:
    with pytest.raises(RequestFailed, match="route-withdrawn: would change nothing of node-1"):
        bgp.cluster.fault("route-withdrawn", "node-1", to="node-2").__enter__()
