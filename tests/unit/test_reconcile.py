from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_states import NoTenants, host_end, netns, nodes, pod

from testbed.cluster.apply import apply
from testbed.cluster.messages import AddPods, Change, ChangeNetns, DeletePods, UpdatePod
from testbed.cluster.reconcile import Conflict, diff, merge, restarted
from testbed.errors import KernelRefused
from testbed.kernel.fake import FakeKernel
from testbed.rules.nft import fragment
from testbed.state import (
    NODE,
    Address,
    Chain,
    IpSet,
    Link,
    NetnsState,
    NftChain,
    NftElement,
    NftSet,
    NftTable,
    NodeState,
    PodState,
    Route,
    Vxlan,
)

EMPTY = NodeState()


def node(*pods: PodState, **more: Any) -> NodeState:
    """A node with a bridge and its pods on it."""
    links = [Link("cni0", "bridge", mtu=1500), *(host_end(pod.uid) for pod in pods)]
    return NodeState(
        netns(**{"links": links, "addresses": [Address("cni0", "10.1.0.1/24")], **more}),
        {pod.uid: pod for pod in pods},
    )


def state_of(kernel: FakeKernel, pods: dict[str, PodState]) -> NodeState:
    """What is in the fake kernel, with those parts of pods that no kernel holds."""
    held = {
        uid: PodState(
            **{
                **{field: getattr(pods[uid], field) for field in PodState.__struct_fields__},
                "netns": kernel.read(uid),
            }
        )
        for uid in kernel.pods
        if uid in pods
    }
    assert set(held) == set(kernel.pods)
    return NodeState(kernel.read(NODE), held)


def walk(*states: NodeState) -> FakeKernel:
    """A kernel taken from empty through each state in turn, checked at each."""
    kernel = FakeKernel()
    before = EMPTY
    for state in states:
        outcome = apply(kernel, diff(before, state), NoTenants())
        assert outcome.failed == {}
        assert state_of(kernel, state.pods) == state
        before = state
    return kernel


def kinds(changes: tuple[Change, ...]) -> list[type]:
    return [type(change) for change in changes]


# --- diff ---------------------------------------------------------------------------------------------


def test_bridge_is_made_before_pods_and_host_ends_get_their_master_after_them():
    first, pods, last = diff(None, node(pod("a")))
    assert isinstance(first, ChangeNetns)
    assert list(first.add.links) == ["cni0"]
    assert isinstance(pods, AddPods)
    assert isinstance(last, ChangeNetns)
    assert list(last.add.links) == ["vetha"]


def test_deleting_a_pod_does_not_remove_its_host_end_again():
    changes = diff(node(pod("a"), pod("b", 3)), node(pod("b", 3)))
    assert changes == (DeletePods(("a",)),)


def test_changed_file_is_an_update_without_a_change_of_the_netns():
    changes = diff(node(pod("a")), node(pod("a", files={"/etc/hosts": "x"})))
    assert kinds(changes) == [UpdatePod]


def test_changed_address_of_a_pod_sets_its_default_route_again():
    (change,) = diff(node(pod("a")), node(pod("a", 9)))
    assert isinstance(change, ChangeNetns)
    assert change.where == "a"
    assert list(change.remove.addresses) == [("eth0", "10.1.0.2/24")]
    assert list(change.add.routes) == ["default"]


def test_changed_host_end_makes_the_pod_anew():
    old, new = pod("a"), pod("a")
    new.netns.links["eth0"] = Link("eth0", "veth", mtu=1500, peer="vethz")
    after = node()
    after.netns.links["vethz"] = host_end("z")
    after.pods["a"] = new
    assert kinds(diff(node(old), after)) == [DeletePods, AddPods, ChangeNetns]
    walk(node(old), after)


def test_pod_added_again_after_a_failure_gets_its_host_end_set_although_the_node_did_not_change():
    whole = node(pod("a"))
    without_pod = NodeState(whole.netns, {})
    pods, after = diff(without_pod, whole)
    assert isinstance(pods, AddPods)
    assert isinstance(after, ChangeNetns)
    assert list(after.add.links) == ["vetha"]


def test_recreated_bridge_gets_back_its_addresses_ports_and_sysctls():
    sysctls = {"net/ipv6/conf/cni0/accept_dad": "0", "net/ipv4/ip_forward": "1"}
    old = node(pod("a"), sysctls=sysctls)
    new = node(pod("a"), sysctls=sysctls, links=[Link("cni0", "bridge"), host_end("a")])
    (change,) = diff(old, new)
    assert isinstance(change, ChangeNetns)
    assert list(change.remove.links) == ["cni0"]
    assert set(change.add.links) == {"cni0", "vetha"}
    assert list(change.add.addresses) == [("cni0", "10.1.0.1/24")]
    assert list(change.add.sysctls) == ["net/ipv6/conf/cni0/accept_dad"]
    walk(old, new, old)


def test_changed_rule_of_a_built_in_chain_names_the_old_rule_to_remove():
    old = NodeState(netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j MASQUERADE",))]))
    new = NodeState(netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j RETURN",))]))
    (change,) = diff(old, new)
    assert isinstance(change, ChangeNetns)
    assert change.remove.chains == old.netns.chains
    assert change.add.chains == new.netns.chains


def test_changed_own_chain_is_only_set():
    old = NodeState(netns(chains=[Chain("ipv4", "nat", "KUBE-X", ("-j RETURN",))]))
    new = NodeState(netns(chains=[Chain("ipv4", "nat", "KUBE-X", ())]))
    assert diff(old, new) == (ChangeNetns(NODE, new.netns, NetnsState()),)


def test_route_whose_source_address_moves_to_another_device_is_set_again():
    route = Route("10.9.0.0/24", via="172.18.0.3", dev="eth0", src="10.1.0.1")
    uplink = Address("eth0", "172.18.0.2/16")
    links = [Link("cni0", "bridge"), Link("cni1", "bridge")]
    old, new = (
        NodeState(netns(links=links, addresses=[uplink, Address(dev, "10.1.0.1/24")], routes=[route]))
        for dev in ("cni0", "cni1")
    )
    walk(old, new)


def test_vxlan_that_stands_on_a_recreated_bridge_is_made_again():
    vxlan = Link("vx", "vxlan", vxlan=Vxlan(1, 4789, "cni0", "10.1.0.1"))
    old, new = (
        NodeState(
            netns(
                links=[Link("cni0", "bridge", mtu=mtu), vxlan],
                addresses=[Address("cni0", "10.1.0.1/24"), Address("vx", "10.2.0.0/32")],
            )
        )
        for mtu in (1400, None)
    )
    walk(old, new)


# --- any state to any other ---------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(nodes(), nodes())
def test_difference_of_any_two_states_leads_from_one_to_the_other(old: NodeState, new: NodeState):
    walk(old, new)


@settings(max_examples=50, deadline=None)
@given(nodes())
def test_difference_of_a_state_to_itself_is_empty(state: NodeState):
    assert diff(state, state) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(nodes(), min_size=2, max_size=4))
def test_any_way_through_states_ends_like_a_fresh_build(states: list[NodeState]):
    """Reversed, alone, and with an empty node between each pair: the last state is all that counts."""
    ways = [states, states[::-1], [state for pair in states for state in (EMPTY, pair)]]
    for way in ways:
        fresh = walk(way[-1])
        walked = walk(*way)
        assert state_of(walked, way[-1].pods) == state_of(fresh, way[-1].pods)


@settings(max_examples=60, deadline=None)
@given(nodes(), nodes())
def test_applying_a_state_twice_from_empty_is_accepted(old: NodeState, new: NodeState):
    """After a failure the whole node is asked for again: what is there already is no error."""
    kernel = walk(old)
    again = diff(NodeState(pods=old.pods), old)
    assert apply(kernel, again, NoTenants()).failed == {}
    assert state_of(kernel, old.pods) == old


# --- merge --------------------------------------------------------------------------------------------


def test_two_fragments_claiming_one_route_are_named():
    one = NodeState(netns(routes=[Route("10.0.0.0/8", via="1.1.1.1")]))
    with pytest.raises(Conflict, match=r"routes 10\.0\.0\.0/8 is claimed by both red and blue"):
        merge([("red", one), ("blue", one)])


def test_rules_of_a_built_in_chain_are_concatenated_in_the_order_of_the_fragments():
    one = NodeState(netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j A",))]))
    two = NodeState(netns(chains=[Chain("ipv4", "nat", "POSTROUTING", ("-j B",))]))
    (chain,) = merge([("one", one), ("two", two)]).netns.chains.values()
    assert chain.rules == ("-j A", "-j B")


def test_own_chain_filled_in_two_ways_is_a_conflict():
    one = NodeState(netns(chains=[Chain("ipv4", "nat", "KUBE-X", ("-j DROP",))]))
    two = NodeState(netns(chains=[Chain("ipv4", "nat", "KUBE-X", ("-j RETURN",))]))
    with pytest.raises(Conflict, match="one and two"):
        merge([("one", one), ("two", two)])


def test_own_chain_that_two_make_alike_or_one_leaves_empty_is_one_chain():
    filled = NodeState(netns(chains=[Chain("ipv4", "filter", "KUBE-FIREWALL", ("-j DROP",))]))
    empty = NodeState(netns(chains=[Chain("ipv4", "filter", "KUBE-FIREWALL")]))
    for pair in ((filled, filled), (filled, empty), (empty, filled)):
        assert merge(zip(("one", "two"), pair, strict=True)) == filled


def test_inserted_rules_of_a_later_fragment_stand_in_front_and_none_is_put_there_twice():
    def input_chain(*rules: str, inserted: int) -> NodeState:
        return NodeState(netns(chains=[Chain("ipv4", "filter", "INPUT", rules, inserted)]))

    first = input_chain("-j A", "-j LAST", inserted=1)
    then = input_chain("-j B", "-j A", "-j LATER", inserted=2)
    merged = merge([("one", first), ("two", then)])
    assert merged == input_chain("-j B", "-j A", "-j LAST", "-j LATER", inserted=2)


def test_sysctl_may_be_asked_for_twice_with_one_value_only():
    one, two = NodeState(netns(sysctls={"a": "1"})), NodeState(netns(sysctls={"a": "0"}))
    assert merge([("one", one), ("two", one)]) == one
    with pytest.raises(Conflict, match="one and two"):
        merge([("one", one), ("two", two)])


def test_pod_is_put_together_from_wiring_and_identity():
    wired = NodeState(pods={"a": pod("a", hostname="")})
    named = NodeState(pods={"a": PodState("a", "default", "a", "host", files={"/etc/hosts": "x"})})
    merged = merge([("wires", wired), ("names", named)]).pods["a"]
    assert (merged.hostname, merged.files) == ("host", {"/etc/hosts": "x"})
    assert merged.netns == wired.pods["a"].netns


def test_pod_called_differently_by_two_fragments_is_a_conflict():
    with pytest.raises(Conflict, match="hostname of pod a is claimed by both one and two"):
        merge(
            [("one", NodeState(pods={"a": pod("a")})), ("two", NodeState(pods={"a": pod("a", hostname="b")}))]
        )


class Unwilling(NoTenants):
    """Cannot serve one pod."""

    def __init__(self, uid: str) -> None:
        self.uid, self.stopped = uid, list[str]()

    def start(self, pod: PodState) -> None:
        if pod.uid == self.uid:
            raise KernelRefused("serve", 5)

    def stop(self, uid: str) -> None:
        self.stopped.append(uid)


def test_a_pod_that_cannot_be_served_is_taken_back_and_told_and_the_rest_goes_on() -> None:
    kernel, tenants = FakeKernel(), Unwilling("a")
    wanted = node(pod("a", 2), pod("b", 3))
    outcome = apply(kernel, diff(EMPTY, wanted), tenants)
    assert set(outcome.failed) == {"a"}
    assert (set(kernel.pods), set(tenants.stopped)) == ({"b"}, {"a"})


# --- nftables -----------------------------------------------------------------------------------------

TABLE = NftTable("ip", "t")
SEEN = NftSet("ip", "t", "seen", "ipv4_addr", flags=("dynamic", "timeout"), timeout=60)
LOOKING = NftChain("ip", "t", "looking", ("ip saddr @seen accept",))
OTHER = NftChain("ip", "t", "other", ("drop",))
BASE = NftChain("ip", "t", "in", ("jump looking",), "filter", "input", "filter")


def nft_changes(old: NetnsState, new: NetnsState) -> tuple[NetnsState, NetnsState]:
    kernel = FakeKernel()
    assert kernel.change(NODE, old, NetnsState()) == []
    changes = [each for each in diff(NodeState(old), NodeState(new)) if isinstance(each, ChangeNetns)]
    for each in changes:
        assert kernel.change(NODE, each.add, each.remove) == []
    assert kernel.read(NODE) == new
    return (changes[0].add, changes[0].remove) if changes else (NetnsState(), NetnsState())


def test_a_set_that_changes_is_made_anew_with_the_rules_that_look_at_it() -> None:
    old = fragment([TABLE], [LOOKING, OTHER, BASE], [SEEN])
    longer = msgspec.structs.replace(SEEN, timeout=90)
    add, remove = nft_changes(old, fragment([TABLE], [LOOKING, OTHER, BASE], [longer]))
    assert add == fragment(chains=[LOOKING], sets=[longer])
    assert remove == fragment(sets=[SEEN])


def test_elements_of_a_set_that_changes_come_back() -> None:
    held = [NftElement("ip", "t", "names", "10.0.0.1")]
    names = NftSet("ip", "t", "names", "ipv4_addr")
    old = fragment([TABLE], [], [names], held)
    ranges = msgspec.structs.replace(names, flags=("interval",))
    add, remove = nft_changes(old, fragment([TABLE], [], [ranges], held))
    assert add == fragment(sets=[ranges], elements=held)
    assert remove == fragment(sets=[names])


def test_a_base_chain_hooked_elsewhere_is_replaced_and_another_policy_set() -> None:
    old = fragment([TABLE], [LOOKING, BASE], [SEEN])
    closed = msgspec.structs.replace(BASE, policy="drop")
    assert nft_changes(old, fragment([TABLE], [LOOKING, closed], [SEEN])) == (
        fragment(chains=[closed]),
        NetnsState(),
    )
    moved = msgspec.structs.replace(BASE, hook="forward")
    assert nft_changes(old, fragment([TABLE], [LOOKING, moved], [SEEN])) == (
        fragment(chains=[moved]),
        fragment(chains=[BASE]),
    )


def test_a_chain_that_gets_another_comment_has_its_table_made_anew() -> None:
    """nft cannot change it in place, and others lead to it."""
    old = fragment([TABLE], [LOOKING, BASE], [SEEN])
    new = fragment([TABLE], [msgspec.structs.replace(LOOKING, comment="new"), BASE], [SEEN])
    assert nft_changes(old, new) == (new, NetnsState())


def test_a_table_goes_with_all_that_is_in_it() -> None:
    old = fragment([TABLE], [LOOKING, BASE], [SEEN])
    assert nft_changes(old, NetnsState()) == (NetnsState(), fragment([TABLE]))


def test_after_a_restart_what_is_set_over_what_is_there_counts_as_gone_and_devices_as_found():
    tunnel, bridge = (
        Link("flannel.1", "vxlan", vxlan=Vxlan(1, 8472, "eth0", "192.168.100.11")),
        Link("cni0", "bridge"),
    )
    one = IpSet("one", "hash:ip", entries=frozenset({"10.0.0.1"}), members="isolated")
    other = IpSet("other", "hash:ip")
    was = netns(
        links=[tunnel, bridge],
        addresses=[Address("flannel.1", "10.1.0.0/32"), Address("cni0", "10.1.0.1/24")],
        routes=[Route("10.2.0.0/24", via="10.2.0.0", dev="flannel.1")],
    )
    was = msgspec.structs.replace(was, ipsets={"one": one, "other": other})
    applied = NodeState(was, {"p": pod("p")}, files={"/run/flannel/subnet.env": "FLANNEL_MTU=1450"})
    emptied = msgspec.structs.replace(one, entries=frozenset(), members="any")
    there = netns(links=[bridge], addresses=[Address("cni0", "10.1.0.1/24")])
    found = msgspec.structs.replace(there, ipsets={"one": emptied})
    left = restarted(applied, found)
    left_of_one = msgspec.structs.replace(one, entries=frozenset())
    assert left.netns == msgspec.structs.replace(there, ipsets={"one": left_of_one})
    assert (left.pods, left.files, left.daemons) == (applied.pods, {}, {})
    (change, _) = diff(left, applied)
    assert isinstance(change, ChangeNetns)
    assert set(change.add.links) == {"flannel.1"}
    assert change.add.ipsets == {"one": one, "other": other}
    assert "other" not in change.remove.ipsets
