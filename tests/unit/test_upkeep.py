"""What a node's daemons look after: what was made of it, and what is to be done where it is not so."""

from __future__ import annotations

from typing import Any

from testbed.cluster.messages import AddPods, ChangeNetns, DeletePods
from testbed.cluster.upkeep import (
    Made,
    alone,
    chains_to_make,
    entries_to_change,
    routes_to_change,
    sets_to_change,
    versions,
)
from testbed.dataplane import dataplanes
from testbed.kernel.readback import parse_routes
from testbed.rules.iptables import key
from testbed.state import NODE, Chain, FdbEntry, IpSet, Link, NetnsState, PodState, Route, Upkeep

ROUTES = Upkeep("routes", 10, ("cali", "vxlan.calico"), protocols=("80",), exclusive=True)
LOOSE = Upkeep("routes", 10, ("eth0",))
RULES = Upkeep("chains", 5, ("cali-",), comment="cali:")
IN_FRONT = Upkeep("chains", 5, ("cali-",), comment="cali:", exclusive=True)
SETS = Upkeep("ipsets", 5, ("cali4", "cali6"))
POD = Route("10.0.0.2/32", dev="cali1", scope="link")
PEER = Route("10.0.1.0/26", via="10.0.1.0", dev="vxlan.calico", proto="80", onlink=True)
HOLE = Route("10.0.0.0/26", kind="blackhole", proto="80")
TO_CALI = '-m comment --comment "cali:x" -j cali-FORWARD'


def of(*routes: Route) -> dict[str, Route]:
    return {route.dst: route for route in routes}


def chains(*those: Chain) -> dict[Any, Chain]:
    return {key(each): each for each in those}


def forward(*rules: str, inserted: int = 0) -> Chain:
    return Chain("ipv4", "filter", "FORWARD", rules, inserted)


def own(*rules: str) -> Chain:
    return Chain("ipv4", "filter", "cali-FORWARD", rules)


def change(add: NetnsState = NetnsState(), remove: NetnsState = NetnsState()) -> ChangeNetns:  # noqa: B008
    return ChangeNetns(NODE, add, remove)


def test_an_empty_chain_that_is_gone_is_made_again() -> None:
    made = chains(own(), forward(TO_CALI, inserted=1))
    assert chains_to_make(RULES, made, made) == {}
    assert chains_to_make(RULES, made, chains(forward(TO_CALI))) == chains(own())


def test_alone_a_built_in_chain_has_only_the_daemons_rules() -> None:
    services = "-j KUBE-SERVICES"
    whole = chains(own(services), forward(TO_CALI, services, services, TO_CALI, inserted=2))
    assert alone(RULES, whole) == chains(own(services), forward(TO_CALI, TO_CALI, inserted=1))


# --- routes ---------------------------------------------------------------------------------------------


def test_missing_routes_come_back_and_what_is_there_stays() -> None:
    wish = routes_to_change(LOOSE, of(PEER, POD), [POD, Route("10.9.0.0/16", dev="eth0")])
    assert wish == (NetnsState(routes=of(PEER)), NetnsState())


def test_a_route_that_leads_elsewhere_is_led_back_only_by_who_is_exclusive() -> None:
    astray = Route(PEER.dst, via="172.18.0.9", dev="eth0")
    assert routes_to_change(LOOSE, of(PEER), [astray]) == (NetnsState(), NetnsState())
    assert routes_to_change(ROUTES, of(PEER), [astray]) == (NetnsState(routes=of(PEER)), NetnsState())


def test_a_route_of_another_metric_has_nobodys_place() -> None:
    astray = Route(PEER.dst, via="172.18.0.9", dev="eth0", metric=100)
    assert routes_to_change(LOOSE, of(PEER), [astray]) == (NetnsState(routes=of(PEER)), NetnsState())
    same = Route(PEER.dst, via=PEER.via, dev=PEER.dev, metric=100)
    assert routes_to_change(LOOSE, of(PEER), [astray, same]) == (NetnsState(), NetnsState())


def test_strange_routes_of_ones_own_go_and_those_of_others_stay() -> None:
    strange = [Route("10.0.0.9/32", dev="cali1"), Route("10.0.2.0/26", dev="eth0", proto="80")]
    others = [Route("default", via="172.18.0.1", dev="eth0"), Route("10.0.3.0/26", dev="eth0", proto="bird")]
    add, remove = routes_to_change(ROUTES, of(POD), [POD, *strange, *others])
    assert (add, remove) == (NetnsState(), NetnsState(routes=of(*strange)))


def test_as_the_kernel_shows_a_route_it_is_the_same() -> None:
    hole = Route("fd00::/122", kind="blackhole", proto="80")
    peer = Route("fd00:1::/122", via="fd00:0:0::1", dev="vxlan.calico", proto="80", onlink=True)
    there = [
        Route("fd00::/122", dev="lo", kind="blackhole", proto="80"),
        Route("fd00:1::/122", via="fd00::1", dev="vxlan.calico", proto="80"),
    ]
    assert routes_to_change(ROUTES, of(hole, peer), there) == (NetnsState(), NetnsState())


def test_the_metric_of_a_route_is_read_but_for_the_one_that_the_kernel_gives() -> None:
    def metrics(*shown: dict[str, Any], ipv6: bool) -> list[int]:
        return [route.metric for route in parse_routes(({"dst": "default", **each} for each in shown), ipv6)]

    assert metrics({}, {"metric": 1024}, ipv6=False) == [0, 1024]
    assert metrics({"metric": 1024}, {"metric": 32}, ipv6=True) == [0, 32]


def test_one_of_several_routes_to_a_place_is_enough() -> None:
    there = [Route(POD.dst, via="172.18.0.9", dev="eth0", proto="bird"), POD]
    assert routes_to_change(ROUTES, of(POD), there) == (NetnsState(), NetnsState())


def test_only_families_that_have_routes_are_read() -> None:
    assert versions(of(POD, PEER)) == [4]
    assert versions(["fd00::/122", "10.0.0.0/26"]) == [4, 6]


def test_entries_of_ones_own_devices_are_as_they_were_made() -> None:
    upkeep = Upkeep("fdb", 90, ("vxlan.calico",))

    def entries(*those: tuple[str, str, str]) -> dict[tuple[str, str, str], FdbEntry]:
        return {each: FdbEntry(*each) for each in those}

    b, c = (
        ("vxlan.calico", "02:00:00:00:00:0b", "172.18.0.3"),
        ("vxlan.calico", "02:00:00:00:00:0c", "172.18.0.4"),
    )
    other = ("flannel.1", *c[1:])
    assert entries_to_change(upkeep, entries(b), entries(c, other)) == (entries(b), entries(c))
    assert entries_to_change(upkeep, entries(b), entries(b, other)) == ({}, {})


# --- chains ---------------------------------------------------------------------------------------------


def test_chains_with_a_missing_rule_or_in_disorder_are_made_again() -> None:
    made = chains(forward(TO_CALI, "-j KUBE"), own("-j A", "-j B"))
    assert chains_to_make(RULES, made, made) == {}
    assert chains_to_make(RULES, made, chains(forward("-j KUBE"), own("-j A", "-j B"))) == chains(
        forward(TO_CALI, "-j KUBE")
    )
    assert chains_to_make(RULES, made, chains(forward(TO_CALI), own("-j B", "-j A"))) == chains(
        own("-j A", "-j B")
    )
    assert chains_to_make(RULES, made, {}) == made


def test_strange_rules_in_ones_own_chain_stay_unless_one_is_exclusive() -> None:
    made = chains(own("-j A", "-j B"))
    there = chains(own("-j SOMEBODY", "-j A", "-j A", "-j ELSE", "-j B"))
    assert chains_to_make(RULES, made, there) == {}
    assert chains_to_make(IN_FRONT, made, there) == made


def test_rules_that_are_made_again_come_behind_strange_ones() -> None:
    made = chains(own("-j A", "-j B"))
    whole = chains(own("-j SOMEBODY", "-j A", "-j B"))
    for there in (("-j A", "-j SOMEBODY"), ("-j B", "-j SOMEBODY", "-j A")):
        assert chains_to_make(RULES, made, chains(own(*there))) == whole


def test_a_protocol_that_the_machine_has_a_name_for_is_the_same() -> None:
    assert chains_to_make(RULES, chains(own("-p 4 -j DROP")), chains(own("-p ipencap -j DROP"))) == {}


def test_who_is_exclusive_wants_its_rules_in_front() -> None:
    made = chains(forward("-j CUT", TO_CALI, "-j KUBE", inserted=3))
    behind = chains(forward("-j SOMEBODY", "-j CUT", TO_CALI, "-j KUBE"))
    assert chains_to_make(RULES, made, behind) == {}
    assert chains_to_make(IN_FRONT, made, behind) == made
    between = chains(forward("-j CUT", TO_CALI, "-j SOMEBODY", "-j KUBE"))
    assert chains_to_make(IN_FRONT, made, between) == {}


# --- ipsets ---------------------------------------------------------------------------------------------


def test_entries_that_are_missing_come_and_strange_ones_go() -> None:
    made = {"cali40a": IpSet("cali40a", "hash:net", entries=frozenset({"10.0.0.1", "10.0.0.2"}))}
    there = {"cali40a": IpSet("cali40a", "hash:net", entries=frozenset({"10.0.0.2", "10.0.0.3"}))}
    add, remove = sets_to_change(made, there)
    assert {name: each.entries for name, each in add.ipsets.items()} == {"cali40a": {"10.0.0.1"}}
    assert {name: each.entries for name, each in remove.ipsets.items()} == {"cali40a": {"10.0.0.3"}}
    assert sets_to_change(made, {}) == (NetnsState(ipsets=made), NetnsState())
    assert sets_to_change(made, made) == (NetnsState(), NetnsState())


# --- what was made --------------------------------------------------------------------------------------


def test_what_was_made_follows_the_changes_of_the_node_and_of_nothing_else() -> None:
    made = Made([RULES, SETS, ROUTES])
    others = Chain("ipv4", "filter", "KUBE-SERVICES")
    some = IpSet("cali40a", "hash:net", entries=frozenset({"10.0.0.1", "10.0.0.2"}))
    made.applied(
        [
            change(
                NetnsState(
                    chains=chains(forward(TO_CALI), own(), others),
                    ipsets={"cali40a": some, "KUBE-X": IpSet("KUBE-X", "hash:ip")},
                    routes=of(PEER, Route("10.9.0.0/16", dev="eth0")),
                )
            ),
            ChangeNetns("uid", NetnsState(routes=of(POD)), NetnsState()),
        ]
    )
    assert made.chains == chains(forward(TO_CALI), own())
    assert made.ipsets == {"cali40a": some}
    assert made.on_devices["routes"] == of(PEER)
    changed = IpSet("cali40a", "hash:net", entries=frozenset({"10.0.0.3"}))
    less = IpSet("cali40a", "hash:net", entries=frozenset({"10.0.0.1"}))
    made.applied([change(NetnsState(ipsets={"cali40a": changed}), NetnsState(ipsets={"cali40a": less}))])
    assert made.ipsets["cali40a"].entries == {"10.0.0.2", "10.0.0.3"}
    gone = NetnsState(chains=chains(own()), ipsets={"cali40a": less}, routes=of(PEER))
    made.applied([change(remove=gone)])
    assert (made.chains, made.ipsets, made.on_devices["routes"]) == (chains(forward(TO_CALI)), {}, {})


def test_a_route_goes_with_the_pod_or_the_device_it_leads_to() -> None:
    made = Made([ROUTES])
    link = Link("eth0", "veth", peer="cali1")
    pod = PodState("uid", "default", "a", "a", netns=NetnsState(links={"eth0": link}))
    made.applied([AddPods((pod,)), change(NetnsState(routes=of(POD, PEER, HOLE)))])
    made.applied([DeletePods(("uid",))])
    assert made.on_devices["routes"] == of(PEER, HOLE)
    made.applied([change(remove=NetnsState(links={"vxlan.calico": Link("vxlan.calico", "vxlan")}))])
    assert made.on_devices["routes"] == of(HOLE)


# --- dataplanes -----------------------------------------------------------------------------------------


def test_flannel_looks_after_its_rules_and_only_with_two_backends_after_routes() -> None:
    flannel: Any = dataplanes.get("flannel")

    def kept(**options: Any) -> list[tuple[str, float, tuple[str, ...]]]:
        return [(each.part, each.period, each.names) for each in flannel.upkeep(options)]

    rules = ("chains", 5.0, ("FLANNEL-POSTRTG", "FLANNEL-FWD"))
    for backend in ("vxlan", "udp", "wireguard"):
        assert kept(backend=backend) == [rules]
    assert kept() == [rules]
    assert kept(backend="host-gw") == [rules, ("routes", 10.0, ("eth0",))]
    assert kept(backend="ipip") == [rules, ("routes", 10.0, ("flannel.ipip", "eth0"))]


def test_felix_looks_after_what_is_its_own_as_often_as_it_is_told() -> None:
    calico: Any = dataplanes.get("calico")

    def periods(**options: Any) -> dict[str, float]:
        return {each.part: each.period for each in calico.upkeep(options)}

    assert periods() == {"chains": 180, "ipsets": 90, "routes": 90, "neighbours": 90, "fdb": 90}
    told = periods(iptablesRefreshInterval="1m30s", ipsetsRefreshInterval=0, routeRefreshInterval="2s")
    assert told == {"chains": 90, "ipsets": 0, "routes": 2, "neighbours": 2, "fdb": 2}
