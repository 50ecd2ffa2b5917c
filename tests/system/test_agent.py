"""The node agent and the real kernel: pods come and go, refusals are told, any state leads to any other."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from node_lab import Host, Lab, isolated, pod, running_lab
from node_states import netns, nodes
from node_states import pod as pod_state

from testbed.cluster.apply import apply
from testbed.cluster.messages import AddPods, Applied, ChangeNetns, DeletePods, Exec, Failed, GetNetns
from testbed.cluster.reconcile import diff
from testbed.dataplane import dataplanes
from testbed.dataplane.plugins import host_end_name
from testbed.kernel.apply import RealKernel
from testbed.state import (
    NODE,
    Address,
    Chain,
    Link,
    Neighbour,
    NetnsState,
    NodeState,
    PodState,
    Route,
    Vxlan,
)
from testbed.wait import wait_until

BRIDGE = dataplanes.get("bridge")
A1, A2 = pod("a1", "a", 2), pod("a2", "a", 3)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        lab.wire(A1, A2, dataplane=BRIDGE)
        yield lab


def links(host: Host) -> set[str]:
    return {link["ifname"] for link in host.json("ip", "-json", "link", "show")}


def test_checksums_of_a_device_are_left_to_it_again(lab: Lab):
    def told(whole: bool) -> str:
        lab.b.become(NodeState(NetnsState(links={"br9": Link("br9", "bridge", tx_checksum=not whole)})))
        return lab.b.ok("ethtool", "-k", "br9").split("tx-checksumming: ")[1].split()[0]

    before = lab.b.state
    assert [told(whole=False), told(whole=True), told(whole=False)] == ["on", "off", "on"]
    lab.b.become(before)


# --- programs -----------------------------------------------------------------------------------------


def test_program_in_a_pod_has_its_hostname_files_and_network(lab: Lab):
    assert lab.a.ok("hostname", where="uid-a1").strip() == "a1"
    assert "10.244.1.2\ta1" in lab.a.ok("cat", "/etc/hosts", where="uid-a1")
    assert "10.244.1.2/24" in lab.a.ok("ip", "-brief", "address", where="uid-a1")


def test_program_on_a_node_has_the_nodes_name_and_network(lab: Lab):
    assert lab.a.ok("hostname").strip() == "a"
    assert "cni0" in links(lab.a)


def test_exit_code_and_signal_are_those_of_a_shell(lab: Lab):
    assert lab.a.run("sh", "-c", "exit 7", where="uid-a1").code == 7
    running = lab.a.start(["sleep", "60"], "uid-a1")
    assert running.stop().code == 128 + signal.SIGTERM


def exec_failure(host: Host, where: str, *argv: str) -> Failed:
    with open(os.devnull) as null:
        answer, _ = host.ask(Exec(host.new_id(), where, argv), (null.fileno(),) * 3)
    assert isinstance(answer, Failed)
    return answer


def test_missing_program_and_missing_pod_are_told(lab: Lab):
    assert exec_failure(lab.a, "uid-a1", "no-such-program").exit_code == 127
    assert "no such pod" in exec_failure(lab.a, "uid-none", "true").message


def test_namespaces_are_handed_out_by_name(lab: Lab):
    fds = lab.a.netns("node", "uid-a1", "uid-a2")
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    for fd in fds:
        os.close(fd)
    assert len(set(names)) == 3
    answer, _ = lab.a.ask(GetNetns(lab.a.new_id(), ("uid-none",)))
    assert isinstance(answer, Failed)


# --- pods ---------------------------------------------------------------------------------------------


def test_deleted_pod_leaves_no_link_and_kills_its_programs(lab: Lab):
    extra = pod("a9", "a", 9)
    lab.wire(A1, A2, extra, dataplane=BRIDGE)
    running = lab.a.start(["sleep", "60"], "uid-a9")
    assert host_end_name("uid-a9") in links(lab.a)
    lab.wire(A1, A2, dataplane=BRIDGE)
    assert host_end_name("uid-a9") not in links(lab.a)
    assert running.wait().code == 128 + signal.SIGKILL


def test_pod_that_cannot_be_made_is_told_by_uid_and_the_rest_goes_on(lab: Lab):
    good, twin = pod("good", "a", 20), pod("twin", "a", 21)
    state = lab.states(A1, A2, good, twin, dataplane=BRIDGE)["a"]
    taken = replace_link(state.pods["uid-twin"], peer=host_end_name("uid-good"))
    del state.netns.links[host_end_name("uid-twin")]
    changed = NodeState(state.netns, {**state.pods, "uid-twin": taken})
    applied = lab.a.apply(diff(lab.a.state, changed))
    assert list(applied.failed) == ["uid-twin"]
    assert "File exists" in applied.failed["uid-twin"]
    assert (
        lab.a.ok("curl", "-sS", "-m5", "http://10.244.1.20:8080/hostname", where="uid-a1").strip() == "good"
    )
    lab.a.state = NodeState(state.netns, {uid: p for uid, p in state.pods.items() if uid != "uid-twin"})
    lab.wire(A1, A2, dataplane=BRIDGE)
    assert host_end_name("uid-good") not in links(lab.a)


def replace_link(state: PodState, peer: str) -> PodState:
    state.netns.links["eth0"] = Link("eth0", "veth", peer=peer)
    return state


def test_half_made_pod_is_removed_and_can_be_made_again(lab: Lab):
    broken = pod_state("broken", gateway=1)
    broken.netns.routes["10.9.0.0/24"] = Route("10.9.0.0/24", via="1.2.3.4", dev="eth0")
    applied = lab.a.apply([AddPods((broken,))])
    assert "add unicast route 10.9.0.0/24 via 1.2.3.4 dev eth0" in applied.failed["broken"]
    assert "vethbroken" not in links(lab.a)
    assert lab.a.apply([AddPods((pod_state("broken"),))]).failed == {}
    assert lab.a.apply([DeletePods(("broken",))]).failed == {}


def test_port_that_is_taken_does_not_keep_the_pod_from_running(lab: Lab):
    first, second = (pod(name, "a", 0, host_network=True, ips=("172.18.0.2",)) for name in ("h1", "h2"))
    lab.wire(A1, A2, first, second, dataplane=BRIDGE)
    assert lab.a.ok("curl", "-sS", "-m5", "http://172.18.0.2:8080/hostname", where="uid-a1").strip() == "a"
    lab.wire(A1, A2, dataplane=BRIDGE)


def test_command_of_a_manifest_runs_in_its_pod(lab: Lab):
    container = replace(A1.containers[0], command=("sh", "-c", "exec sleep 4242"))
    facts = replace(lab_facts(), allow_commands=True)
    lab.wire(A1, A2, pod("cmd", "a", 30, containers=(container,)), dataplane=BRIDGE, facts=facts)
    assert "sleep 4242" in lab.a.ok("ps", "-eo", "args")
    lab.wire(A1, A2, dataplane=BRIDGE)
    wait_until(lambda: "sleep 4242" not in lab.a.ok("ps", "-eo", "args"), 5, "the command is killed")


def lab_facts() -> Any:
    from node_lab import FACTS

    return FACTS


# --- what the kernel refuses: as in tests/unit/test_fake_kernel.py -----------------------------------------

BRIDGE_LINK = Link("br0", "bridge")
VXLAN = Link("vx", "vxlan", vxlan=Vxlan(1, 8472, "eth0", "172.18.0.2"))

REFUSED = [
    (netns(addresses=[Address("br0", "10.1.0.1/24")]), "no such device"),
    (netns(links=[Link("veth1", "peer")]), "No such device"),
    (netns(links=[Link("eth0", "existing", master="br0")]), "no such device"),
    (netns(links=[VXLAN, Link("eth0", "existing", master="vx")]), "set eth0"),
    (netns(links=[VXLAN, Link("vy", "vxlan", vxlan=VXLAN.vxlan)]), "add vxlan vy"),
    (netns(links=[Link("vx", "vxlan", vxlan=Vxlan(1, 8472, "eth9", "172.18.0.2"))]), "no such device"),
    (netns(routes=[Route("10.2.0.0/24", via="172.18.0.3")]), "add unicast route 10.2.0.0/24 via 172.18.0.3"),
    (netns(routes=[Route("10.2.0.0/24", dev="br0", scope="link")]), "no such device"),
    (netns(links=[Link("br0", "bridge", up=False)], routes=[Route("10.2.0.0/24", dev="br0")]), "add unicast"),
    (netns(routes=[Route("10.2.0.0/24", dev="eth0", src="10.1.0.1")]), "add unicast route 10.2.0.0/24"),
    (netns(neighbours=[Neighbour("vx", "10.2.0.0", "0a:00:00:00:00:01")]), "no such device"),
    (netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j KUBE-X",))]), "2: -A POSTROUTING -j KUBE-X"),
    (netns(sysctls={"net/ipv4/conf/br0/proxy_arp": "1"}), "set br0 proxy_arp 1"),
    (netns(sysctls={"net/ipv4/neigh/br0/proxy_delay": "0"}), "no such device"),
    (
        netns(sysctls={"net/ipv4/neigh/br0/gc_stale_time": "9"}),
        "set sysctl net/ipv4/neigh/br0/gc_stale_time to 9",
    ),
]


@pytest.mark.parametrize(("asked", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_refused(asked: NetnsState, reason: str):
    def refusals() -> list[str]:
        kernel = RealKernel()
        return [failure.message for failure in kernel.change(NODE, asked, NetnsState())]

    messages = isolated(refusals)
    assert any(reason in message for message in messages), messages


# --- any state to any other ---------------------------------------------------------------------------


class Nobody:
    """No server, no program."""

    def open(self, pod: PodState) -> None: ...

    def start(self, pod: PodState) -> None: ...

    def update(self, pod: PodState) -> None: ...

    def stop(self, uid: str) -> None: ...


def lacking(kernel: RealKernel, state: NodeState) -> list[str]:
    """What of a state is not in the kernel as it should be, and what is there that should not be."""
    wrong = compare(NODE, state.netns, kernel.read(NODE))
    for uid, one in state.pods.items():
        wrong += compare(uid, one.netns, kernel.read(uid))
    return wrong


def compare(where: str, wanted: NetnsState, found: NetnsState) -> list[str]:
    wrong = []
    for part in ("addresses", "routes", "neighbours", "fdb", "chains"):
        want, have = getattr(wanted, part), getattr(found, part)
        missing = {key: value for key, value in want.items() if not same(value, have.get(key))}
        wrong += [f"{where}: {part} {key}: {have.get(key)} for {value}" for key, value in missing.items()]
        wrong += [f"{where}: {part} {key} is there: {have[key]}" for key in have if key not in want]
    for name, link in wanted.links.items():
        if not same(link, found.links.get(name)):
            wrong.append(f"{where}: link {name}: {found.links.get(name)} for {link}")
    made = {name for name, link in found.links.items() if link.kind != "existing"}
    wrong += [f"{where}: link {name} is there" for name in made - set(wanted.links) - {"eth0"}]
    return wrong


def same(wanted: Any, found: Any) -> bool:
    """Whether what is there is what was wanted, where anything was."""
    if isinstance(wanted, Chain) and wanted.name == "POSTROUTING" and not wanted.rules:
        return found is None
    if found is None:
        return False
    skipped = {"kind", "peer"} if isinstance(wanted, Link) else set()
    if isinstance(wanted, Route):
        skipped |= {"nexthops"} if not wanted.nexthops else {"via", "dev"}
        skipped |= {"dev"} if wanted.kind != "unicast" else set()
    asked = {name: getattr(wanted, name) for name in wanted.__struct_fields__ if name not in skipped}
    return all(matches(value, getattr(found, name)) for name, value in asked.items() if value is not None)


def matches(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, tuple) and wanted and hasattr(wanted[0], "via"):
        return [hop.via for hop in wanted] == [hop.via for hop in found]
    return bool(wanted == found)


def walked(*states: NodeState) -> list[str]:
    """Take a real kernel through the states and say what is wrong after each."""
    kernel, before, wrong = RealKernel(), NodeState(), []
    for state in states:
        outcome = apply(kernel, diff(before, state), Nobody())
        wrong += [f"{where}: {message}" for where, message in outcome.failed.items()] + lacking(kernel, state)
        before = state
    kernel.close()
    return wrong


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(nodes(), nodes())
def test_difference_of_any_two_states_leads_from_one_to_the_other(old: NodeState, new: NodeState):
    assert isolated(lambda: walked(old, new)) == []


def test_asking_for_a_whole_node_again_changes_nothing_and_doubles_no_rule():
    """As after a failed apply, when the daemon asks for everything once more."""
    rule = Chain("ipv4", "nat", "POSTROUTING", ("-s 10.0.0.0/8 -j RETURN",))
    state = NodeState(netns(links=[BRIDGE_LINK], addresses=[Address("br0", "10.1.0.1/24")], chains=[rule]))

    def twice() -> list[str]:
        kernel = RealKernel()
        for _ in range(2):
            assert apply(kernel, diff(None, state), Nobody()).failed == {}
        return lacking(kernel, state)

    assert isolated(twice) == []


def test_rules_of_others_in_built_in_chains_stay():
    mine = Chain("ipv4", "nat", "POSTROUTING", ("-s 10.0.0.0/8 -j RETURN",))
    other = "-s 192.0.2.0/24 -j ACCEPT"

    def work() -> list[list[str]]:
        from testbed.kernel import netfilter

        netfilter.restore(f"*nat\n-A POSTROUTING {other}\nCOMMIT\n", "ipv4")
        kernel, seen = RealKernel(), []
        states = [
            netns(chains=[mine]),
            netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j RETURN",))]),
            netns(),
        ]
        before = NodeState()
        for state in states:
            assert apply(kernel, diff(before, NodeState(state)), Nobody()).failed == {}
            before = NodeState(state)
            seen.append(list(kernel.read(NODE).chains["ipv4", "nat", "POSTROUTING"].rules))
        return seen

    assert isolated(work) == [[other, mine.rules[0]], [other, "-j RETURN"], [other]]


def test_flushed_table_is_healed_by_applying_the_difference_to_it():
    own = Chain("ipv4", "nat", "KUBE-X", ("-j RETURN",))
    first = Chain("ipv4", "nat", "POSTROUTING", ("-s 10.0.0.0/8 -j KUBE-X",))
    then = Chain("ipv4", "nat", "POSTROUTING", ("-s 10.0.0.0/9 -j KUBE-X",))

    def work() -> list[str]:
        from testbed.kernel.run import run

        kernel = RealKernel()
        before, after = (NodeState(netns(chains=[own, chain])) for chain in (first, then))
        assert apply(kernel, diff(None, before), Nobody()).failed == {}
        run(("iptables-nft", "-t", "nat", "-F"))
        assert apply(kernel, diff(NodeState(), after), Nobody()).failed == {}
        return lacking(kernel, after)

    assert isolated(work) == []


def test_sysctl_that_is_no_longer_asked_for_gets_its_value_back():
    def work() -> list[str]:
        from testbed.kernel import sysctl

        path, kernel = "net/ipv4/ip_forward", RealKernel()
        values = [sysctl.read(path)]
        asked = netns(sysctls={path: "1" if values[0] == "0" else "0"})
        for change in (ChangeNetns(NODE, asked, NetnsState()), ChangeNetns(NODE, NetnsState(), asked)):
            assert apply(kernel, [change], Nobody()).failed == {}
            values.append(sysctl.read(path))
        return values

    before, during, after = isolated(work)
    assert before == after != during


def test_rehearsal_makes_its_pods_and_leaves_nothing_behind():
    def work() -> list[Any]:
        from testbed.cluster import rehearsal

        def there() -> list[Any]:
            return [
                sorted(os.listdir("/proc/self/fd")),
                socket.if_nameindex(),
                os.readlink("/proc/self/ns/net"),
            ]

        before = there()
        answer = rehearsal.rehearse()
        assert isinstance(answer, Applied), answer
        return [answer.failed, there() == before]

    assert isolated(work) == [{}, True]
