"""Faults without a kernel: who is chosen, what states become, and what a reading would have to show."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from testbed.apps.wire import dns
from testbed.cluster.reconcile import diff
from testbed.control.ipam import Held
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.weave.ring import EXPOSED
from testbed.errors import InputError, TestbedError
from testbed.fabric.links import Shaping
from testbed.faults import faults
from testbed.faults.hands import Hands
from testbed.faults.impair import unlike as shown_unlike
from testbed.faults.model import Fault, described
from testbed.faults.programs.announce import frame
from testbed.faults.programs.dns_front import servfail
from testbed.faults.readback import changed_netns, unlike
from testbed.faults.service import Faults, Request, _Active
from testbed.faults.target import Scene, Target, Wanted, choose
from testbed.faults.udp_race import counted
from testbed.kernel.channel import ChannelClosed
from testbed.objects.store import Event
from testbed.state import Chain, Listener, NetnsState, NodeState, PodState, Route

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
NODES = tuple(Node(f"node-{k}", (f"192.168.100.{10 + k}",), (f"10.244.{k}.0/24",)) for k in range(1, 7))
PODS = tuple(
    Pod(f"uid-{k}", "default", f"web-{k}", f"node-{k}", (f"10.244.{k}.2",), labels={"app": "web"})
    for k in range(1, 4)
)
LINKS = tuple((node.name, "eth0", "s1", f"s1-eth{k}") for k, node in enumerate(NODES, 1))
SCENE = Scene(Snapshot(FACTS, NODES, PODS), PODS, [*LINKS, ("r1", "eth1", "s1", "s1-eth9")])
ROUTES = {
    f"10.244.{k}.0/24": Route(f"10.244.{k}.0/24", via=f"192.168.100.{10 + k}", dev="eth0") for k in (2, 3)
}
STATES = {
    "node-1": NodeState(
        NetnsState(
            routes=ROUTES,
            chains={("ipv4", "raw", "PREROUTING"): Chain("ipv4", "raw", "PREROUTING", ("-j ACCEPT",))},
        ),
        {"uid-1": PodState("uid-1", "default", "web-1", "web-1", ips=("10.244.1.2",), node="node-1")},
    )
}


def make(name: str, **options: Any) -> Fault:
    return msgspec.convert(options, faults.get(name))


def aimed(fault: Fault, *names: str) -> Target:
    return fault.resolve(choose(fault.aim, Wanted(names), SCENE, "0"), SCENE)


# --- targets --------------------------------------------------------------------------------------------


def test_a_named_target_is_taken_as_it_is() -> None:
    assert choose("node", Wanted(("node-3", "node-1")), SCENE, "0").names == ["node-3", "node-1"]
    assert choose("pod", Wanted(("web-2",)), SCENE, "0").names == ["default/web-2"]
    assert choose("link", Wanted(("node-2", "r1:s1")), SCENE, "0").names == ["node-2:s1", "r1:s1"]


def test_what_is_chosen_by_a_seed_is_chosen_again() -> None:
    picks = {seed: choose("node", Wanted(count=2), SCENE, seed).names for seed in map(str, range(20))}
    assert picks == {seed: choose("node", Wanted(count=2), SCENE, seed).names for seed in picks}
    assert len({tuple(names) for names in picks.values()}) > 3


def test_a_selector_takes_one_pod_or_all_of_them() -> None:
    one = choose("pod", Wanted(selector="app=web"), SCENE, "7").names
    assert len(one) == 1
    every = choose("pod", Wanted(selector="app=web", count="all"), SCENE, "7").names
    assert every == ["default/web-1", "default/web-2", "default/web-3"]


@pytest.mark.parametrize(
    ("aim", "wanted", "message"),
    [
        ("node", Wanted(("node-9",)), "no node 'node-9': there are node-1, "),
        ("node", Wanted(count=7), "count: 7 asked for, there are 6 nodes"),
        ("node", Wanted(selector="a=b"), "a selector and a namespace are for pods"),
        ("pod", Wanted(("db",)), "no running pod default/db"),
        ("pod", Wanted(selector="app=db"), "there are no pods of that kind"),
        ("link", Wanted(("node-1:r1",)), "no link 'node-1:r1': node-1:s1"),
    ],
)
def test_a_target_that_is_not_there_is_refused(aim: Any, wanted: Wanted, message: str) -> None:
    with pytest.raises(InputError, match="^" + message):
        choose(aim, wanted, SCENE, "0")


# --- perturbing -----------------------------------------------------------------------------------------


def test_no_fault_changes_the_states_it_is_given() -> None:
    before = msgspec.json.encode(STATES["node-1"].netns.routes)
    loss = make("loss", loss=0.5)
    perturbed = loss.perturb(STATES, aimed(loss, "node-1"))
    assert perturbed["node-1"] != STATES["node-1"]
    assert msgspec.json.encode(STATES["node-1"].netns.routes) == before
    assert loss.perturb({}, aimed(loss, "node-1")) == {}


def test_loss_of_one_source_stands_in_front_of_what_is_there() -> None:
    loss = make("loss", loss=0.1, source="node-2")
    chain = loss.perturb(STATES, aimed(loss, "node-1"))["node-1"].netns.chains["ipv4", "raw", "PREROUTING"]
    assert chain.rules == (
        "-s 192.168.100.12/32 -i eth0 -m statistic --mode random --probability 0.10000000009 -j DROP",
        "-s 10.244.2.0/24 -i eth0 -m statistic --mode random --probability 0.10000000009 -j DROP",
        "-j ACCEPT",
    )
    assert chain.inserted == 2


# --- reading back ---------------------------------------------------------------------------------------


def test_a_reading_shows_what_was_changed_or_says_what_is_missing() -> None:
    before = STATES["node-1"]
    after = msgspec.structs.replace(
        before, netns=msgspec.structs.replace(before.netns, routes={"10.244.2.0/24": ROUTES["10.244.2.0/24"]})
    )
    ((where, old, new),) = changed_netns(before, after)
    assert where == ""
    assert unlike(old, new, new) == []
    assert unlike(old, new, old) == ["routes 10.244.3.0/24: is still there"]
    assert unlike(new, old, new) == ["routes 10.244.3.0/24: is not there"]


def test_a_rule_of_a_built_in_chain_is_looked_for_among_others() -> None:
    loss = make("loss", loss=1)
    before = STATES["node-1"].netns
    after = loss.perturb(STATES, aimed(loss, "node-1"))["node-1"].netns
    assert unlike(before, after, after) == []
    (four, six) = unlike(before, after, before)
    assert "no rule -i eth0 -m statistic" in four
    assert six.startswith("chains ipv6 raw PREROUTING")
    assert "still has" in unlike(after, before, after)[0]


def test_a_protocol_without_a_name_of_iptables_own_may_be_shown_by_that_of_the_machine() -> None:
    key = ("ipv4", "raw", "PREROUTING")
    ours = NetnsState(chains={key: Chain(*key, ("-i eth0 ! -p 4 -j DROP",))})
    shown = NetnsState(chains={key: Chain(*key, ("-i eth0 ! -p ipencap -j DROP",))})
    assert unlike(NetnsState(), ours, shown) == []
    assert "still has" in unlike(ours, NetnsState(), shown)[0]


# --- the registry ---------------------------------------------------------------------------------------


def test_every_fault_tells_what_it_is() -> None:
    kinds = {each["fault"]: each for each in described()}
    assert kinds["loss"]["acts on"] == "node"
    assert json.dumps(described())
    assert all(each["about"] for each in kinds.values())


# --- each fault -----------------------------------------------------------------------------------------


def test_a_withdrawn_route_is_that_of_the_named_node_alone() -> None:
    fault = make("route-withdrawn", to="node-2")
    state = fault.perturb(STATES, aimed(fault, "node-1"))["node-1"]
    assert list(state.netns.routes) == ["10.244.3.0/24"]
    everything = make("route-withdrawn")
    assert not everything.perturb(STATES, aimed(everything, "node-1"))["node-1"].netns.routes


def test_a_partition_drops_on_both_sides_what_comes_from_the_other() -> None:
    fault = make("partition")
    target = aimed(fault, "node-1", "node-2")
    one = fault.perturb(STATES, target)["node-1"].netns.chains["ipv4", "raw", "PREROUTING"]
    assert "-s 192.168.100.13/32 -i eth0 -j DROP" in one.rules
    assert "-s 10.244.3.0/24 -i eth0 -j DROP" in one.rules
    assert not any("192.168.100.12" in rule for rule in one.rules)
    other = fault.perturb({"node-3": NodeState()}, target)["node-3"]
    rules = other.netns.chains["ipv4", "raw", "PREROUTING"].rules
    assert rules == tuple(
        f"-s {each} -i eth0 -j DROP"
        for k in (1, 2)
        for each in (f"192.168.100.{10 + k}/32", f"10.244.{k}.0/24")
    )
    with pytest.raises(InputError, match="names all nodes"):
        aimed(fault, *(node.name for node in NODES))


def pooled(node: Node, *ranges: str, borrowed: tuple[str, ...] = ()) -> Node:
    """It has these ranges of a pool, and a podCIDR that says nothing of them."""
    return replace(node, pooled=True, held=Held(ranges, borrowed))


def test_the_pods_of_a_node_are_in_its_pod_cidrs_or_in_what_it_has_of_a_pool() -> None:
    node = replace(NODES[0], pod_cidrs=("10.244.1.0/24", "fd24:1::/64"))
    assert node.pod_ranges == ("10.244.1.0/24", "fd24:1::/64")
    assert pooled(node).pod_ranges == ()
    held = pooled(node, "10.244.150.0/26", "fd24::/122", borrowed=("10.244.7.9", "fd24::7"))
    assert held.pod_ranges == ("10.244.150.0/26", "fd24::/122", "10.244.7.9/32", "fd24::7/128")


def test_loss_and_partition_know_pods_by_what_nodes_have_of_a_pool_also_of_what_they_get_later() -> None:
    nodes = [pooled(node, f"10.244.{150 + k}.0/26") for k, node in enumerate(NODES[:2])]
    plane = SimpleNamespace(
        perturb=None, workers={}, snapshot=lambda: Snapshot(FACTS, tuple(nodes)), running=lambda: PODS
    )
    service = faults_of(plane)
    scene = Scene(plane.snapshot(), PODS, LINKS)
    for kind, options in (("loss", {"loss": 1, "source": "node-2"}), ("partition", {})):
        fault = make(kind, **options)
        target = fault.resolve(choose("node", Wanted(("node-1",)), scene, "0"), scene)
        service._active[kind] = _Active(kind, Request(kind), fault, target)

    def sources(node: str, state: NodeState) -> list[str]:
        rules = service.perturb(node, state).netns.chains["ipv4", "raw", "PREROUTING"].rules
        return [rule.split()[1] for rule in rules]

    there = NodeState()
    assert sources("node-1", there) == 2 * ["192.168.100.12/32", "10.244.151.0/26"]
    assert sources("node-2", there) == ["192.168.100.11/32", "10.244.150.0/26"]
    nodes[1] = pooled(NODES[1], "10.244.151.0/26", "10.244.9.0/26", borrowed=("10.244.150.7",))
    more = ["192.168.100.12/32", "10.244.151.0/26", "10.244.9.0/26", "10.244.150.7/32"]
    assert sources("node-1", there) == 2 * more
    del nodes[1]
    assert sources("node-1", there) == 2 * more[:1], "who has left has its address alone"


def test_links_add_up_what_faults_ask_of_them() -> None:
    down, short, slow = make("link-down"), make("mtu-black-hole", mtu=1300), make("impair", bandwidth="1Mbit")
    target = aimed(down, "node-2")
    ends = slow.perturb_ends(short.perturb_ends(down.perturb_ends({}, target), target), target)
    assert not ends["node-2", "eth0"].up
    assert ends["s1", "s1-eth2"].mtu == 1300
    assert ends["s1", "s1-eth2"].shaping == ends["node-2", "eth0"].shaping == {"bw": 1.0}
    assert (
        short.perturb_ends(make("mtu-black-hole", mtu=1200).perturb_ends({}, target), target)[
            "s1", "s1-eth2"
        ].mtu
        == 1200
    )


def test_impair_needs_netem_for_all_but_a_bandwidth_and_speaks_of_one_direction() -> None:
    assert make("impair", bandwidth="1Mbit").requires() == {"htb"}
    assert make("impair", delay="10ms", bandwidth="1Mbit").requires() == {"netem"}
    out = make("impair", loss="1%", direction="out")
    assert list(out.perturb_ends({}, aimed(out, "node-2"))) == [("node-2", "eth0")]
    with pytest.raises(InputError, match="says nothing"):
        aimed(make("impair"), "node-2")
    with pytest.raises(InputError, match="impair"):
        aimed(make("impair", delay="soon"), "node-2")


def test_a_qdisc_that_is_not_what_was_asked_for_is_told() -> None:
    shaping = Shaping.of(make("impair", delay="10ms", loss="1%").shaping)  # type: ignore[attr-defined]
    netem = {"kind": "netem", "options": {"delay": {"delay": 0.01}, "loss-random": {"loss": 0.01}}}
    assert shown_unlike(shaping, [netem]) == ""
    assert shown_unlike(shaping, []) == "no netem"
    other = {"kind": "netem", "options": {"delay": {"delay": 0.02}, "loss-random": {"loss": 0.01}}}
    assert shown_unlike(shaping, [other]) == "delay is 0.02, not 0.01"


def test_flushed_rules_leave_routes_and_pods() -> None:
    fault = make("rules-flushed")
    state = fault.perturb(STATES, aimed(fault, "node-1"))["node-1"]
    assert not state.netns.chains
    assert state.netns.routes == ROUTES
    assert state.pods == STATES["node-1"].pods


def test_a_dns_fault_turns_port_53_of_its_pods_and_of_no_others() -> None:
    fault = make("dns-servfail")
    target = choose("pod", Wanted(("web-1",)), SCENE, "0")
    pods = {**STATES["node-1"].pods, "uid-9": PodState("uid-9", "default", "other", "other")}
    states = {"node-1": msgspec.structs.replace(STATES["node-1"], pods=pods)}
    after = fault.perturb(states, target)["node-1"].pods
    assert after["uid-9"] == pods["uid-9"]
    assert {key[2] for key in after["uid-1"].netns.nft_chains} == {"questions", "answers", "connections"}
    assert fault.perturb({"node-1": NodeState()}, target) == {"node-1": NodeState()}, "the pod is gone"


def test_an_answer_of_servfail_holds_the_question_alone() -> None:
    asked = dns.question(7, "web.default.svc.cluster.local", "A")
    told = dns.parse(servfail(asked + bytes(11)))
    assert (told.number, told.answer, told.rcode) == (7, True, "SERVFAIL")
    assert (told.name, told.type) == ("web.default.svc.cluster.local", "A")
    assert told.answers == told.additional == ()


def test_counters_of_all_cpus_are_added() -> None:
    text = "cpu=0 found=1 insert_failed=2 drop=0 clash_resolve=15\ncpu=1 insert_failed=1 clash_resolve=45\n"
    assert counted(text) == {"insert_failed": 3, "clash_resolve": 60}


def test_an_announcement_is_an_arp_request_of_an_address_for_itself() -> None:
    sent = frame(bytes.fromhex("020000000001"), "192.168.100.11")
    assert len(sent) == 42
    assert sent[:14].hex() == "ffffffffffff0200000000010806"
    assert sent[28:32] == sent[38:42] == bytes([192, 168, 100, 11])


def test_what_the_guide_shows_is_the_file() -> None:
    root = Path(__file__).parents[2]
    shown = re.findall(r"```python\n(.*?)```", (root / "docs/extending.md").read_text(), re.S)
    assert (root / "testbed/faults/forwarding_off.py").read_text() in shown


def test_the_guide_names_faults_that_there_are() -> None:
    root = Path(__file__).parents[2]
    told = re.findall(r"^\| `([a-z-]+)` \|", (root / "docs/faults.md").read_text(), re.M)
    assert len(told) > 20
    assert [name for name in told if name not in faults] == []


def test_every_fault_is_in_the_guides() -> None:
    root = Path(__file__).parents[2]
    told = "".join((root / "docs" / name).read_text() for name in ("faults.md", "dataplanes.md"))
    assert [name for name in faults if f"`{name}`" not in told] == []


def faults_of(plane: Any) -> Faults:
    """The plane sees the scene, unless it says otherwise."""
    plane.snapshot = getattr(plane, "snapshot", lambda: SCENE.snapshot)
    runtime = cast(Any, SimpleNamespace(plane=plane, crashed={}))
    return Faults(runtime, Hands(runtime))


@pytest.mark.parametrize("name", ["proxier-frozen", "policy-frozen", "node-not-ready", "bird-down"])
def test_a_fault_on_a_node_that_has_left_is_healed(name: str) -> None:
    """Nothing is to be done for it there."""
    worker = SimpleNamespace(name="node-3", paused=True, pause=lambda: None)
    behind: set[str] = set()
    proxying = SimpleNamespace(changed=behind.add, behind=behind.__contains__)
    plane = SimpleNamespace(perturb=None, workers={"node-3": worker}, held={}, proxying=proxying)

    async def told() -> None:
        service, fault = faults_of(plane), make(name)
        active = _Active("fault-1", Request(name), fault, aimed(fault, "node-3"))
        service._active["fault-1"] = active
        record = service._record(active, 0.0)
        await fault.inject(service._hands, active.target)
        await fault.conclude(service._hands, active.target)
        plane.workers.clear()
        await service.heal("fault-1")
        assert (record.problem, record.healed is not None, behind) == ("", True, set())

    asyncio.run(told())


def left(node: str) -> Event:
    return Event("DELETED", {"kind": "Node", "metadata": {"name": node}})


def test_where_a_node_leaves_its_faults_are_over_and_those_of_the_network_stay() -> None:
    begun: list[Any] = []
    plane = SimpleNamespace(perturb=None, workers={})
    service = faults_of(plane)
    service._runtime.background = begun.append
    for number, (kind, names) in enumerate(
        {
            "forwarding-off": ("node-1",),
            "no-default-route": ("node-1", "node-2"),
            "partition": ("node-1",),
        }.items()
    ):
        fault = make(kind)
        service._active[f"fault-{number}"] = _Active(kind, Request(kind), fault, aimed(fault, *names))
    state = STATES["node-1"]
    assert service.perturb("node-1", state).netns.sysctls == {"net/ipv4/ip_forward": "0"}
    service.node_changed(left("node-3"))
    assert begun == []
    service.node_changed(left("node-1"))
    assert [work.cr_code.co_name for work in begun] == ["_heal_after", "_end_on"]
    for work in begun:
        work.close()
    begun.clear()
    service.node_changed(left("node-1"))
    assert begun == [], "there it is over already"
    joined = msgspec.structs.replace(state)
    assert service.perturb("node-1", joined).netns.sysctls == {}
    assert service.perturb("node-1", joined).netns.chains != state.netns.chains
    service.node_changed(left("node-2"))
    assert [work.cr_code.co_name for work in begun] == ["_heal_after"]
    begun[0].close()


def on(service: Faults, kind: str, *names: str, **options: Any) -> _Active:
    """A fault that is in force."""
    fault, number = make(kind, **options), f"fault-{len(service._active) + 1}"
    active = _Active(number, Request(kind), fault, aimed(fault, *names))
    service._active[number] = active
    service._record(active, 0.0)
    return active


def test_peers_know_the_truth_of_a_node_that_left_and_joined_again_and_not_of_the_others() -> None:
    service = faults_of(SimpleNamespace(perturb=None, workers={}))
    service._runtime.background = lambda work: work.close()
    on(service, "stale-subnet", "node-2", "node-3")
    state = STATES["node-1"]
    assert set(service.perturb("node-1", state).netns.routes).isdisjoint(state.netns.routes)
    service.node_changed(left("node-2"))
    assert set(state.netns.routes) - set(service.perturb("node-1", state).netns.routes) == {"10.244.3.0/24"}


class Filling:
    """Nodes whose connection tables are filled by programs; what these leave is removed by others."""

    def __init__(self, service: Faults) -> None:
        self.running: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.hands = cast(Any, service._hands)
        self.hands.start, self.hands.run = self.start, self.run

    async def start(self, node: str, argv: Any) -> Any:
        self.held[node] = 1_000

        async def fill() -> None:
            await asyncio.Event().wait()

        return asyncio.ensure_future(fill())

    async def run(self, node: str, argv: Any, **more: Any) -> str:
        if argv[0] != "cat":
            self.held[node] = 0
        return "1000" if argv[-1].endswith("_max") else str(self.held.get(node, 0))


def test_a_table_is_filled_no_more_where_its_node_has_left_and_goes_on_elsewhere() -> None:
    async def told() -> None:
        service = faults_of(SimpleNamespace(perturb=None, workers={}))
        filling, begun = Filling(service), []
        service._runtime.background = begun.append
        active = on(service, "conntrack-full", "node-1", "node-2")
        await active.fault.inject(service._hands, active.target)
        service.node_changed(left("node-2"))
        (work,) = begun
        await work
        assert filling.held == {"node-1": 1_000, "node-2": 0}
        assert list(service._hands.kept) == ["fault-1 node-1"]
        assert await active.fault.amiss(service._hands, active.target, on=True) == ""
        await service.heal("fault-1")
        assert filling.held == {"node-1": 0, "node-2": 0}
        assert service._hands.kept == {}
        assert service.records["fault-1"].problem == ""

    asyncio.run(told())


def test_what_could_not_be_undone_on_a_node_that_left_is_told() -> None:
    class Broken(Fault, frozen=True, kw_only=True):
        async def lift(self, hands: Any, target: Target) -> None:
            raise TestbedError(f"no way to {target.names}")

    async def told() -> None:
        service, begun = faults_of(SimpleNamespace(perturb=None, workers={})), []
        service._runtime.background = begun.append
        active = service._active["fault-1"] = _Active("fault-1", Request("x"), Broken(), Target(NODES[:2]))
        service._record(active, 0.0)
        service.node_changed(left("node-1"))
        (work,) = begun
        await work
        assert service.records["fault-1"].problem == "not ended on node-1: no way to ['node-1']"
        assert active.target.names == ["node-2"]

    asyncio.run(told())


@pytest.mark.parametrize("there", [True, False])
def test_a_pod_that_is_gone_need_not_say_where_it_is(there: bool) -> None:
    announced: list[str] = []

    class Machine:
        plane = SimpleNamespace(running=lambda: PODS if there else ())

        async def json(self, where: str, argv: Any) -> Any:
            return []

        async def run_in(self, pod: Pod, argv: Any) -> str:
            announced.append(pod.name)
            return ""

    fault = make("weave-mac-moved", to="node-3")
    asyncio.run(fault.lift(cast(Any, Machine()), Target(pods=(PODS[0],))))
    assert announced == (["web-1"] if there else [])


def test_whatever_keeps_one_fault_from_being_healed_the_others_are() -> None:
    healed: list[str] = []

    class Odd(Fault, frozen=True, kw_only=True):
        async def lift(self, hands: Any, target: Target) -> None:
            raise KeyError("node-3")

    class Fine(Fault, frozen=True, kw_only=True):
        async def lift(self, hands: Any, target: Target) -> None:
            healed.append("fine")

    async def told() -> None:
        service = faults_of(SimpleNamespace(perturb=None, workers={}))
        for number, fault in (("fault-1", Fine()), ("fault-2", Odd()), ("fault-3", Fine())):
            active = service._active[number] = _Active(number, Request(number), fault, Target())
            service._record(active, 0.0)
        with pytest.raises(KeyError):
            await service.heal_all()
        assert healed == ["fine", "fine"]
        assert [record.healed is not None for record in service.records.values()] == [True, False, True]

    asyncio.run(told())


def test_a_fault_whose_undoing_broke_off_can_be_healed_again() -> None:
    """Whoever had to undo it ends while it does: that is told, and not forgotten."""
    tries: list[str] = []

    class Broken(Fault, frozen=True, kw_only=True):
        async def lift(self, hands: Any, target: Target) -> None:
            tries.append("lift")
            if len(tries) == 1:
                raise ChannelClosed

    async def healed_twice() -> None:
        plane = SimpleNamespace(perturb=None, workers={})
        service = faults_of(plane)
        active = _Active("fault-1", Request("broken"), Broken(), Target())
        service._active["fault-1"] = active
        record = service._record(active, 0.0)
        with pytest.raises(TestbedError, match="ended meanwhile"):
            await service.heal("fault-1")
        assert (record.healed, record.problem[:18]) == (None, "not healed in full")
        await service.heal("fault-1")
        assert record.healed is not None
        assert (record.problem, tries) == ("", ["lift", "lift"])

    asyncio.run(healed_twice())


# --- flannel and its plugin -----------------------------------------------------------------------------

WIRED = Pod("uid-1", "default", "web-1", "node-1", ("10.244.1.2",))


def flannel_node(*uids: str) -> NodeState:
    """A node of flannel with these pods."""
    facts = replace(FACTS, dataplane="flannel")
    pods = tuple(Pod(uid, "default", uid, "node-1", (f"10.244.1.{k}",)) for k, uid in enumerate(uids, 2))
    nodes = tuple(replace(node, had_pods=True) for node in NODES[:3])
    state = dataplanes.get("flannel").compile(Snapshot(facts, nodes, pods), nodes[0])
    serving = {
        uid: msgspec.structs.replace(pod, listeners=(Listener("c", "TCP", 80, "http"),))
        for uid, pod in state.pods.items()
    }
    return msgspec.structs.replace(state, pods=serving)


def aimed_on_flannel(kind: str, **options: Any) -> tuple[Fault, Target]:
    fault = make(kind, **options)
    nodes = tuple(replace(node, had_pods=True) for node in NODES)
    seen = Snapshot(replace(FACTS, dataplane="flannel"), nodes, (WIRED,))
    scene = Scene(seen, (WIRED,), LINKS)
    return fault, fault.resolve(choose(fault.aim, Wanted(("node-1",)), scene, "0"), scene)


@pytest.mark.parametrize("kind", ["no-subnet-file", "subnet-changed"])
def test_a_plugin_that_refuses_leaves_pods_that_were_wired_and_makes_no_others(kind: str) -> None:
    fault, target = aimed_on_flannel(kind)
    true = flannel_node("uid-1", "uid-9")
    state = fault.perturb({"node-1": true}, target)["node-1"]
    assert state.pods["uid-1"] == true.pods["uid-1"]
    new = state.pods["uid-9"]
    assert 'plugin type="flannel" failed (add)' in new.refused
    assert (new.netns, new.listeners) == (NetnsState(), ())
    (end,) = (link.peer for link in true.pods["uid-9"].netns.links.values() if link.peer)
    assert end in true.netns.links
    assert end not in state.netns.links
    assert [type(change).__name__ for change in diff(state, true)][:1] == ["DeletePods"], "it is made anew"
    assert fault.perturb({"node-2": NodeState()}, target) == {"node-2": NodeState()}


def test_a_pod_of_the_hosts_network_needs_no_plugin() -> None:
    fault, target = aimed_on_flannel("no-subnet-file")
    states = {"node-1": NodeState(pods={"uid-9": PodState("uid-9", "a", "b", "c", host_network=True)})}
    assert fault.perturb(states, target) == states


def test_a_changed_subnet_is_that_of_the_node_and_of_its_peers_but_not_of_the_bridge() -> None:
    fault, target = aimed_on_flannel("subnet-changed", subnet="10.244.77.0/24")
    own = fault.perturb({"node-1": flannel_node("uid-1")}, target)["node-1"]
    assert {each.address for each in own.netns.addresses.values()} == {"10.244.1.1/24", "10.244.77.0/32"}
    assert "FLANNEL_SUBNET=10.244.77.1/24" in own.files["/run/flannel/subnet.env"]
    rules = own.netns.chains["ipv4", "nat", "FLANNEL-POSTRTG"].rules
    assert [rule for rule in rules if "10.244.1." in rule] == []
    assert len([rule for rule in rules if "10.244.77.0/24" in rule]) == 3
    nodes = tuple(replace(node, had_pods=True) for node in NODES[:3])
    seen = Snapshot(replace(FACTS, dataplane="flannel"), nodes)
    moved = (replace(nodes[0], pod_cidrs=("10.244.77.0/24",)), *nodes[1:])
    flannel = dataplanes.get("flannel")
    peer = fault.perturb({"node-2": flannel.compile(seen, nodes[1])}, target)["node-2"]
    assert peer == flannel.compile(replace(seen, nodes=moved), nodes[1]), "as if it had always been so"


def test_faults_of_flannel_are_refused_elsewhere() -> None:
    for kind in ("no-subnet-file", "subnet-changed", "flannel-rules-disordered"):
        with pytest.raises(InputError, match="dataplane is not flannel"):
            aimed(make(kind), "node-1")


# --- weave ----------------------------------------------------------------------------------------------


def weave_states(**options: Any) -> tuple[Snapshot, dict[str, NodeState]]:
    facts = replace(FACTS, dataplane="weave", pod_cidrs=("10.32.0.0/12",), dataplane_options=options)
    nodes = tuple(
        replace(node, pod_cidrs=(), pooled=True, held=Held((), own={EXPOSED: f"10.32.0.{k}"}))
        for k, node in enumerate(NODES[:3], 1)
    )
    pods = tuple(
        Pod(uid, "default", uid, "node-1", (f"10.32.1.{k}",)) for k, uid in enumerate(("uid-1", "uid-9"))
    )
    seen = Snapshot(facts, nodes, pods)
    return seen, {node.name: dataplanes.get("weave").compile(seen, node) for node in nodes}


@pytest.mark.parametrize(("mode", "other"), [("fastdp", "sleeve"), ("sleeve", "fastdp")])
def test_a_bridge_of_another_start_is_that_of_the_other_mode(mode: str, other: str) -> None:
    seen, states = weave_states(mode=mode)
    fault = make("weave-bridge-type")
    target = fault.resolve(
        choose("node", Wanted(("node-1",)), scene := Scene(seen, (WIRED,), ()), "0"), scene
    )
    found = fault.perturb(states, target)
    own, left = found["node-1"], set(weave_states(mode=other)[1]["node-1"].netns.links) - {"vxlan-6784"}
    assert {name for name in own.netns.links if not name.startswith("vethwepl")} == {
        name for name in left if not name.startswith("vethwepl")
    }
    assert (own.daemons, own.netns.fdb) == ({}, {})
    assert own.pods["uid-1"] == states["node-1"].pods["uid-1"]
    assert own.pods["uid-9"].refused.startswith("network is not ready: container runtime network not ready")
    config = json.loads(found["node-2"].daemons["weaver"].files["config.json"])
    assert [peer["node"] for peer in config["peers"].values()] == ["node-3"]
    assert {entry.dst for entry in found["node-2"].netns.fdb.values()} <= {"192.168.100.13"}


def test_a_bridge_of_another_start_is_not_for_open_vswitch() -> None:
    seen, _ = weave_states(datapath="ovs")
    fault, scene = make("weave-bridge-type"), Scene(seen, (), ())
    with pytest.raises(InputError, match="not with datapath: ovs"):
        fault.resolve(choose("node", Wanted(("node-1",)), scene, "0"), scene)
