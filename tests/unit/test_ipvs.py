"""Proxy mode ipvs: every set, chain and server of services-nftables-ipvs, for Services that fill them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_sets import snapshots

from testbed.cluster.messages import ChangeNetns
from testbed.cluster.reconcile import diff
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.kernel.fake import FakeKernel
from testbed.proxy.ipvs import Ipvs
from testbed.rules import ipset, ipvs
from testbed.state import NODE as NODE_NETNS
from testbed.state import Family, NetnsState, NodeState, RealServer, VirtualServer

NODE = Node("node-1", ("192.168.100.11", "fd00:192::b"), ("10.244.1.0/24",))
FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16", "fd00:10:244::/56"), (), (), ())


def service(name: str, last: int, node_port: int = 0, protocol: str = "TCP", **more: Any) -> Service:
    ports = (ServicePort(80, "p", protocol, node_port=node_port),)
    return Service("ns", name, cluster_ips=(f"10.96.0.{last}", f"fd00:96::{last}"), ports=ports, **more)


def slices(name: str, protocol: str, *ends: tuple[str, str]) -> tuple[EndpointSlice, ...]:
    endpoints = tuple(Endpoint((ip,), node=node) for ip, node in ends)
    return (EndpointSlice("ns", name, name, "IPv4", (EndpointPort(8080, "p", protocol),), endpoints),)


HERE, THERE = ("10.244.1.2", "node-1"), ("10.244.2.2", "node-2")
LB = {"type": "LoadBalancer"}
SERVICES = (
    service("plain", 1),
    service("sticky", 2, affinity_seconds=600, external_ips=("198.51.100.1", "192.168.100.11")),
    service("kept", 3, 30003, "UDP", type="NodePort", external_local=True, external_ips=("198.51.100.2",)),
    service("near", 4, internal_local=True),
    service("all", 5, 30005, vips=("203.0.113.5",), **LB),
    service(
        "ranged",
        6,
        30006,
        vips=("203.0.113.6",),
        source_ranges=("192.168.0.0/16", "172.16.0.1/32"),
        external_local=True,
        health_check_node_port=32000,
        **LB,
    ),
    service("shut", 7, 30007, "SCTP", vips=("203.0.113.7",), source_ranges=("172.16.0.0/12",), **LB),
    service("empty", 8),
)
PROTOCOLS = {each.name: each.ports[0].protocol for each in SERVICES}
ENDS = {"near": (THERE,), "empty": ()}


def world(**options: Any) -> Snapshot:
    return Snapshot(
        replace(FACTS, proxy_options=options),
        (NODE,),
        services={("ns", each.name): each for each in SERVICES},
        slices={
            ("ns", name): slices(name, protocol, *ENDS.get(name, (HERE, THERE)))
            for name, protocol in PROTOCOLS.items()
        },
    )


def compiled(**options: Any) -> NetnsState:
    return Ipvs().compile(world(**options), NODE)


def rules(state: NetnsState, table: str, chain: str, family: Family = "ipv4") -> list[str]:
    return list(state.chains[family, table, chain].rules)


SETS = {
    "KUBE-LOOP-BACK": {f"10.244.1.2,{protocol}:8080,10.244.1.2" for protocol in ("tcp", "udp", "sctp")},
    "KUBE-CLUSTER-IP": {f"10.96.0.{n},tcp:80" for n in (1, 2, 4, 5, 6, 8)}
    | {"10.96.0.3,udp:80", "10.96.0.7,sctp:80"},
    "KUBE-EXTERNAL-IP": {"198.51.100.1,tcp:80", "192.168.100.11,tcp:80"},
    "KUBE-EXTERNAL-IP-LOCAL": {"198.51.100.2,udp:80"},
    "KUBE-LOAD-BALANCER": {"203.0.113.5,tcp:80", "203.0.113.6,tcp:80", "203.0.113.7,sctp:80"},
    "KUBE-LOAD-BALANCER-LOCAL": {"203.0.113.6,tcp:80"},
    "KUBE-LOAD-BALANCER-FW": {"203.0.113.6,tcp:80", "203.0.113.7,sctp:80"},
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": {
        "203.0.113.6,tcp:80,192.168.0.0/16",
        "203.0.113.6,tcp:80,172.16.0.1",
        "203.0.113.7,sctp:80,172.16.0.0/12",
    },
    "KUBE-LOAD-BALANCER-SOURCE-IP": {"203.0.113.6,tcp:80,203.0.113.6"},
    "KUBE-NODE-PORT-TCP": {"30005", "30006"},
    "KUBE-NODE-PORT-LOCAL-TCP": {"30006"},
    "KUBE-NODE-PORT-UDP": {"30003"},
    "KUBE-NODE-PORT-LOCAL-UDP": {"30003"},
    "KUBE-NODE-PORT-SCTP-HASH": {"192.168.100.11,sctp:30007"},
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": set(),
    "KUBE-HEALTH-CHECK-NODE-PORT": {"32000"},
    "KUBE-IPVS-IPS": {f"10.96.0.{n}" for n in range(1, 9)}
    | {f"198.51.100.{n}" for n in (1, 2)}
    | {f"203.0.113.{n}" for n in (5, 6, 7)},
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_holds(name: str) -> None:
    assert compiled().ipsets[name].entries == SETS[name]


def test_there_are_these_sets_in_both_families() -> None:
    sets = compiled().ipsets
    six = {name.replace("KUBE-", "KUBE-6-", 1)[:31] for name in SETS}
    assert sets.keys() == SETS.keys() | six
    assert {each.family for name, each in sets.items() if name in six} == {"inet6"}
    assert sets["KUBE-6-CLUSTER-IP"].entries == {
        *(f"fd00:96::{n},tcp:80" for n in (1, 2, 4, 5, 6, 8)),
        *("fd00:96::3,udp:80", "fd00:96::7,sctp:80"),
    }


def test_addresses_are_on_the_dummy_device_but_for_the_node_s_own() -> None:
    state = compiled()
    assert state.links["kube-ipvs0"].kind == "dummy"
    held = {address for dev, address in state.addresses if dev == "kube-ipvs0" and ":" not in address}
    assert held == {f"{ip}/32" for ip in SETS["KUBE-IPVS-IPS"]}
    assert ("kube-ipvs0", "192.168.100.11/32") not in state.addresses


def reals(state: NetnsState, server: str) -> set[str]:
    return {to for _, name, to in state.real_servers if name == server}


def test_each_address_is_a_virtual_server_with_the_endpoints_of_its_policy() -> None:
    state = compiled()
    here, both = {"10.244.1.2:8080"}, {"10.244.1.2:8080", "10.244.2.2:8080"}
    assert state.virtual_servers["TCP", "10.96.0.1:80"] == VirtualServer("TCP", "10.96.0.1", 80, "rr")
    assert state.virtual_servers["TCP", "10.96.0.2:80"].persistence == 600
    assert state.virtual_servers["TCP", "198.51.100.1:80"].persistence == 600
    assert reals(state, "10.96.0.1:80") == both
    assert reals(state, "10.96.0.3:80") == both  # externalTrafficPolicy is none of the cluster IP's
    assert reals(state, "198.51.100.2:80") == here
    assert reals(state, "192.168.100.11:30003") == here
    assert reals(state, "192.168.100.11:30005") == both
    assert reals(state, "203.0.113.6:80") == here
    assert reals(state, "10.96.0.8:80") == set()


def test_local_policy_without_local_endpoints_falls_back() -> None:
    assert reals(compiled(), "10.96.0.4:80") == {"10.244.2.2:8080"}


def test_the_scheduler_is_asked_for() -> None:
    plain = compiled(scheduler="lc").virtual_servers["TCP", "10.96.0.1:80"]
    assert (plain.scheduler, plain.flags) == ("lc", ())
    hashed = compiled(scheduler="mh").virtual_servers["TCP", "10.96.0.1:80"]
    assert (hashed.scheduler, hashed.flags) == ("mh", ("mh-port",))


def said(text: str) -> str:
    return f'-m comment --comment "{text}"'


CLUSTER = said("Kubernetes service cluster ip + port for masquerade purpose")
OUTSIDE = said("Kubernetes service external ip + port for masquerade and filter purpose")
OUTSIDE_LOCAL = said("Kubernetes service external ip + port with externalTrafficPolicy=local")
SCTP = "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'"
OFF_MACHINE = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT"
HERE_ONLY = "-m addrtype --dst-type LOCAL -j ACCEPT"

CHAINS = {
    ("nat", "KUBE-SERVICES"): [
        "-s 127.0.0.0/8 -j RETURN",
        f"{said('Kubernetes service lb portal')} -m set --match-set KUBE-LOAD-BALANCER dst,dst"
        " -j KUBE-LOAD-BALANCER",
        f"! -s 10.244.0.0/16 {CLUSTER} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
        f"{OUTSIDE} -m set --match-set KUBE-EXTERNAL-IP dst,dst -j KUBE-MARK-MASQ",
        f"{OUTSIDE} -m set --match-set KUBE-EXTERNAL-IP dst,dst {OFF_MACHINE}",
        f"{OUTSIDE} -m set --match-set KUBE-EXTERNAL-IP dst,dst {HERE_ONLY}",
        f"{OUTSIDE_LOCAL} -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst {OFF_MACHINE}",
        f"{OUTSIDE_LOCAL} -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst {HERE_ONLY}",
        "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
        "-m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
        "-m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT",
    ],
    ("nat", "KUBE-POSTROUTING"): [
        f"{said('Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose')}"
        " -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE",
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        f"{said('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully",
    ],
    ("nat", "KUBE-MARK-MASQ"): ["-j MARK --set-xmark 0x4000/0x4000"],
    ("nat", "KUBE-NODE-PORT"): [
        f"-p tcp {said('Kubernetes nodeport TCP port with externalTrafficPolicy=local')}"
        " -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -j RETURN",
        f"-p tcp {said('Kubernetes nodeport TCP port for masquerade purpose')}"
        " -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ",
        f"-p udp {said('Kubernetes nodeport UDP port with externalTrafficPolicy=local')}"
        " -m set --match-set KUBE-NODE-PORT-LOCAL-UDP dst -j RETURN",
        f"-p udp {said('Kubernetes nodeport UDP port for masquerade purpose')}"
        " -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ",
        f"-p sctp {said(SCTP)} -m set --match-set KUBE-NODE-PORT-SCTP-HASH dst,dst -j KUBE-MARK-MASQ",
    ],
    ("nat", "KUBE-LOAD-BALANCER"): [
        f"{said('Kubernetes service load balancer ip + port with externalTrafficPolicy=local')}"
        " -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j RETURN",
        "-j KUBE-MARK-MASQ",
    ],
    ("filter", "KUBE-FORWARD"): [
        f"{said('kubernetes forwarding rules')} -m mark --mark 0x4000/0x4000 -j ACCEPT",
        f"{said('kubernetes forwarding conntrack rule')}"
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ],
    ("filter", "KUBE-NODE-PORT"): [
        f"{said('Kubernetes health check node port')}"
        " -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT"
    ],
    ("filter", "KUBE-PROXY-FIREWALL"): [
        f"{said('Kubernetes service load balancer ip + port for load balancer with sourceRange')}"
        " -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL"
    ],
    ("filter", "KUBE-SOURCE-RANGES-FIREWALL"): [
        f"{said('Kubernetes service load balancer ip + port + source cidr for packet filter purpose')}"
        " -m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN",
        f"{said('Kubernetes service load balancer ip + port + source IP for packet filter purpose')}"
        " -m set --match-set KUBE-LOAD-BALANCER-SOURCE-IP dst,dst,src -j RETURN",
        "-j DROP",
    ],
    ("filter", "KUBE-IPVS-FILTER"): [
        *(
            f"-m set --match-set KUBE-{name} dst,dst -j RETURN"
            for name in ("LOAD-BALANCER", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL")
        ),
        "-m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j RETURN",
        "-m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst"
        " -j REJECT --reject-with icmp-port-unreachable",
    ],
    ("filter", "KUBE-IPVS-OUT-FILTER"): [
        "-s 203.0.113.7/32 -m ipvs --vaddr 203.0.113.7 --vproto 132 --vport 80 -j DROP"
    ],
}


@pytest.mark.parametrize("chain", CHAINS, ids=" ".join)
def test_a_chain_says(chain: tuple[str, str]) -> None:
    assert rules(compiled(), *chain) == CHAINS[chain]


def test_there_are_no_chains_but_these_and_jumps_in_front_of_built_in_ones() -> None:
    state = compiled()
    own = {(table, name) for family, table, name in state.chains if family == "ipv4"}
    built_in = {("nat", "OUTPUT"), ("nat", "PREROUTING"), ("nat", "POSTROUTING")} | {
        ("filter", name) for name in ("INPUT", "FORWARD", "OUTPUT")
    }
    assert own == CHAINS.keys() | built_in
    assert all(
        state.chains["ipv4", *key].inserted == len(state.chains["ipv4", *key].rules) for key in built_in
    )
    assert rules(state, "filter", "INPUT") == [
        f"{said('kubernetes ipvs access filter')} -j KUBE-IPVS-FILTER",
        f"{said('kube-proxy firewall rules')} -j KUBE-PROXY-FIREWALL",
        f"{said('kubernetes health check rules')} -j KUBE-NODE-PORT",
    ]


def test_masquerading_follows_what_is_known_of_pods() -> None:
    everything = rules(compiled(masqueradeAll=True), "nat", "KUBE-SERVICES")
    assert f"{CLUSTER} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ" in everything
    known = world()
    nothing = Ipvs().compile(replace(known, facts=replace(known.facts, pod_cidrs=())), NODE)
    from_vips = f"{CLUSTER} -m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ"
    assert from_vips in rules(nothing, "nat", "KUBE-SERVICES")


def test_sysctls() -> None:
    plain = compiled().sysctls
    assert (
        plain.items()
        >= {
            "net/ipv4/vs/conntrack": "1",
            "net/ipv4/vs/expire_nodest_conn": "1",
            "net/ipv4/vs/expire_quiescent_template": "1",
            "net/ipv4/ip_forward": "1",
        }.items()
    )
    assert "net/ipv4/conf/all/route_localnet" not in plain
    strict = compiled(strictARP=True).sysctls
    assert strict["net/ipv4/conf/all/arp_ignore"] == "1"
    assert strict["net/ipv4/conf/all/arp_announce"] == "2"


# --- text ---------------------------------------------------------------------------------------------

VIRTUAL = VirtualServer("TCP", "10.96.0.1", 443, "mh", 10800, ("mh-port",))
SIX = VirtualServer("UDP", "fd00:96::1", 53)
REAL = RealServer("TCP", "10.96.0.1:443", "10.244.1.2", 8443)


def test_servers_are_written_as_ipvsadm_saves_them() -> None:
    virtual = {ipvs.virtual_key(each): each for each in (VIRTUAL, SIX)}
    real = {ipvs.real_key(REAL): REAL}
    text = ipvs.edit_input(virtual, real, {}, {})
    assert text.splitlines() == [
        "-A -t 10.96.0.1:443 -s mh -p 10800 -b mh-port",
        "-A -u [fd00:96::1]:53 -s rr",
        "-a -t 10.96.0.1:443 -r 10.244.1.2:8443 -m -w 1",
    ]
    assert ipvs.parse_save(text) == (virtual, real)
    assert ipvs.edit_input(virtual, real, virtual, real).splitlines()[::2] == [
        "-E -t 10.96.0.1:443 -s mh -p 10800 -b mh-port",
        "-e -t 10.96.0.1:443 -r 10.244.1.2:8443 -m -w 1",
    ]


def test_a_virtual_server_takes_its_real_ones_along() -> None:
    keys = [ipvs.real_key(REAL), ("UDP", "[fd00:96::1]:53", "[fd00::1]:53")]
    assert ipvs.removal_input([ipvs.virtual_key(SIX)], keys).splitlines() == [
        "-d -t 10.96.0.1:443 -r 10.244.1.2:8443",
        "-D -u [fd00:96::1]:53",
    ]


def test_connections_are_counted() -> None:
    listed = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.1:443 rr persistent 10800
  -> 10.244.1.2:8443              Masq    1      2          3
UDP  [fd00:96::1]:53 rr
  -> [fd00::1]:53                 Masq    1      0          0
"""
    assert ipvs.parse_connections(listed) == {
        ipvs.real_key(REAL): 5,
        ("UDP", "[fd00:96::1]:53", "[fd00::1]:53"): 0,
    }


def test_an_unknown_line_is_an_error() -> None:
    with pytest.raises(ValueError, match="not understood"):
        ipvs.parse_save("-A -f 1 -s rr")


def test_every_kind_of_set_is_written_and_parsed() -> None:
    sets = compiled().ipsets
    text = ipset.full_input(sets).replace(" -exist", "")
    assert "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535\nadd KUBE-NODE-PORT-TCP 30005\n" in text
    assert ipset.parse_save(text) == sets


# --- changes ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(snapshots(), min_size=1, max_size=4))
def test_what_is_kept_from_before_changes_nothing(snapshots: list[Snapshot]) -> None:
    proxier, kernel, old = Ipvs(), FakeKernel(), NetnsState()
    for each in snapshots:
        new = proxier.compile(each, NODE)
        assert new == Ipvs().compile(each, NODE)
        for change in diff(NodeState(old), NodeState(new)):
            assert isinstance(change, ChangeNetns)
            assert kernel.change(NODE_NETNS, change.add, change.remove) == []
        assert kernel.read(NODE_NETNS) == new
        old = new
