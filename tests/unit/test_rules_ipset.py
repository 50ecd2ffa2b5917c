"""ipsets as text: what is made, changed and destroyed, and what the tool prints read back."""

from __future__ import annotations

from typing import Literal

import pytest

from testbed.cluster.apply import apply
from testbed.cluster.reconcile import diff
from testbed.kernel.fake import FakeKernel
from testbed.rules.ipset import destruction, filling, full_input, isolation, parse_save
from testbed.state import NODE, Chain, IpSet, NetnsState, NodeState

KINDS: tuple[Literal["any", "isolated", "spared"], ...] = ("any", "isolated", "spared")

SAVED = """\
create KUBE-SRC-A hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x8a3c
add KUBE-SRC-A 10.244.1.2
create inet6:KUBE-DST-B hash:net family inet6 hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1
add inet6:KUBE-DST-B fd00::/8
add inet6:KUBE-DST-B fd00:1::/32 nomatch
"""


def ips(name: str, *entries: str) -> IpSet:
    return IpSet(name, "hash:ip", "inet", frozenset(entries))


def node(*sets: IpSet, rules: tuple[str, ...] = ()) -> NodeState:
    chains = {("ipv4", "filter", "MINE"): Chain("ipv4", "filter", "MINE", rules)} if rules else {}
    return NodeState(NetnsState(ipsets={each.name: each for each in sets}, chains=chains))  # type: ignore[arg-type]


def test_what_was_saved_is_read() -> None:
    assert parse_save(SAVED) == {
        "KUBE-SRC-A": ips("KUBE-SRC-A", "10.244.1.2"),
        "inet6:KUBE-DST-B": IpSet(
            "inet6:KUBE-DST-B", "hash:net", "inet6", frozenset({"fd00::/8", "fd00:1::/32 nomatch"})
        ),
    }
    strange = "create mine bitmap:port range 80-90\nadd mine 80\ncreate more list:set size 8\nadd more A\n"
    assert parse_save(strange + SAVED) == parse_save(SAVED)
    with pytest.raises(ValueError, match="is not understood: flush"):
        parse_save("flush A\n")


def test_a_new_set_is_made_with_its_entries_in_order() -> None:
    assert full_input({"A": ips("A", "10.0.0.2", "10.0.0.1")}) == (
        "create A hash:ip family inet -exist\nadd A 10.0.0.1 -exist\nadd A 10.0.0.2 -exist\n"
    )


def test_a_change_is_the_entries_that_go_and_come() -> None:
    old, new = node(ips("A", "10.0.0.1", "10.0.0.2"), ips("B")), node(ips("A", "10.0.0.2", "10.0.0.3"))
    (change,) = diff(old, new)
    add, remove = change.add.ipsets, change.remove.ipsets  # type: ignore[union-attr]
    assert filling(add, remove) == (
        "create A hash:ip family inet -exist\ndel A 10.0.0.1 -exist\nadd A 10.0.0.3 -exist\n"
    )
    assert destruction(add, remove) == "destroy B\n"


def test_whom_rules_may_refuse_is_told_after_the_rules_and_its_contrary_before() -> None:
    def state(isolated: set[str], spared: set[str]) -> NodeState:
        return node(
            IpSet("A", "hash:ip", entries=frozenset(isolated), members="isolated"),
            IpSet("B", "hash:ip", entries=frozenset(spared), members="spared"),
        )

    (change,) = diff(state({"10.0.0.1"}, {"10.0.0.2"}), state({"10.0.0.2"}, {"10.0.0.1"}))
    add, remove = change.add.ipsets, change.remove.ipsets  # type: ignore[union-attr]
    made = "create A hash:ip family inet -exist\ncreate B hash:ip family inet -exist\n"
    before, after = filling(add, remove), isolation(add, remove)
    assert before.replace("del A 10.0.0.1 -exist\n", "") == made + "add B 10.0.0.1 -exist\n"
    assert before.startswith("del A 10.0.0.1 -exist\n")
    assert after == "add A 10.0.0.2 -exist\ndel B 10.0.0.2 -exist\n"


def test_a_set_that_isolates_waits_for_the_rules_only_where_rules_look_at_it_already() -> None:
    def state(*entries: str) -> NodeState:
        return node(IpSet("A", "hash:ip", entries=frozenset(entries), members="isolated"))

    (first,) = diff(node(), state("10.0.0.1"))
    assert filling(first.add.ipsets, first.remove.ipsets).endswith("add A 10.0.0.1 -exist\n")  # type: ignore[union-attr]
    assert isolation(first.add.ipsets, first.remove.ipsets) == ""  # type: ignore[union-attr]
    (more,) = diff(state("10.0.0.1"), state("10.0.0.1", "10.0.0.2"))
    assert "add" not in filling(more.add.ipsets, more.remove.ipsets)  # type: ignore[union-attr]
    assert isolation(more.add.ipsets, more.remove.ipsets) == "add A 10.0.0.2 -exist\n"  # type: ignore[union-attr]


def test_sets_that_go_are_left_as_they_are_until_no_rule_needs_them() -> None:
    old = node(*(IpSet(kind, "hash:ip", entries=frozenset({"10.0.0.1"}), members=kind) for kind in KINDS))
    (change,) = diff(old, node())
    add, remove = change.add.ipsets, change.remove.ipsets  # type: ignore[union-attr]
    assert filling(add, remove) == isolation(add, remove) == ""
    assert destruction(add, remove) == "".join(f"destroy {kind}\n" for kind in sorted(KINDS))


def become(kernel: FakeKernel, old: NodeState, new: NodeState) -> dict[str, str]:
    return apply(kernel, diff(old, new), None).failed  # type: ignore[arg-type]


def test_rules_find_their_sets_and_sets_outlive_the_rules_that_look_at_them() -> None:
    kernel = FakeKernel()
    rules = ("-m set --match-set A src -j RETURN",)
    first, second = node(ips("A", "10.0.0.1"), rules=rules), node(ips("C", "10.0.0.9"))
    assert become(kernel, NodeState(), first) == {}
    assert become(kernel, first, second) == {}
    assert kernel.read(NODE) == second.netns


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (node(rules=("-m set --match-set A src -j RETURN",)), "no set A"),
        (node(ips("A" * 32)), "at most 31 characters"),
        (node(ips("A", "fd00::1")), "an address of the other family"),
        (node(IpSet("A", "hash:net", "inet", frozenset({"0.0.0.0/0"}))), "no such entry"),
        (node(ips("A", "web")), "does not appear to be"),
    ],
)
def test_what_the_kernel_refuses_is_refused(state: NodeState, why: str) -> None:
    assert why in become(FakeKernel(), NodeState(), state)[NODE]


def test_a_set_of_another_type_does_not_take_its_place() -> None:
    kernel, old = FakeKernel(), node(ips("A", "10.0.0.1"))
    assert become(kernel, NodeState(), old) == {}
    other = NodeState(NetnsState(ipsets={"A": IpSet("A", "hash:net", "inet", frozenset({"10.0.0.0/8"}))}))
    assert "there is one of another type" in become(kernel, old, other)[NODE]
