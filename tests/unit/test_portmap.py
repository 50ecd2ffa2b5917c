"""hostPorts as the plugin portmap makes them."""

from __future__ import annotations

from dataclasses import replace

from testbed.control.snapshot import ClusterFacts, Container, ContainerPort, Node, Pod, Snapshot
from testbed.dataplane import dataplanes
from testbed.dataplane.portmap import chain_name, compile_ports, container_id
from testbed.state import NetnsState

FACTS = ClusterFacts(
    "cluster.local",
    ("10.244.0.0/16", "fd00:10:244::/56"),
    ("10.96.0.0/12",),
    ("192.168.100.0/24",),
    (),
)
NODE = Node("node-1", ("192.168.100.11",), ("10.244.1.0/24", "fd00:10:244:1::/64"))
NAT = ("ipv4", "nat")


def pod(*ports: ContainerPort, **changed: object) -> Pod:
    made = Pod(
        "uid-1", "default", "web", "node-1", ("10.244.1.2",), containers=(Container("c", "x", ports=ports),)
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def compiled(*pods: Pod) -> NetnsState:
    wiring = dataplanes.get("bridge").compile(Snapshot(FACTS, (NODE,), pods), NODE)
    return compile_ports(wiring, NODE, pods)


def rules(netns: NetnsState, name: str, family: str = "ipv4") -> tuple[str, ...]:
    return netns.chains[family, "nat", name].rules


def test_a_port_is_marked_from_its_own_subnet_and_from_localhost_then_translated() -> None:
    one = pod(ContainerPort(80, host_port=8080))
    netns = compiled(one)
    assert rules(netns, chain_name(one)) == (
        "-s 10.244.1.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80",
    )
    said = f'dnat name: \\"kubenet\\" id: \\"{container_id(one)}\\"'
    match = f'-p tcp -m comment --comment "{said}" -m multiport --dports 8080'
    assert rules(netns, "CNI-HOSTPORT-DNAT") == (f"{match} -j {chain_name(one)}",)
    assert netns.sysctls == {"net/ipv4/conf/cni0/route_localnet": "1"}


def test_the_masquerade_comes_first_and_the_translation_last_in_built_in_chains() -> None:
    netns = compiled(pod(ContainerPort(80, host_port=8080)))
    assert netns.chains[*NAT, "POSTROUTING"].inserted == 1
    assert netns.chains[*NAT, "PREROUTING"].inserted == netns.chains[*NAT, "OUTPUT"].inserted == 0


def test_an_address_of_the_node_limits_a_port_to_it_and_to_its_family() -> None:
    limited = ContainerPort(80, host_port=8080, host_ip="192.168.100.11")
    everywhere = ContainerPort(81, host_port=8081, host_ip="0.0.0.0")
    one = pod(limited, everywhere, ips=("10.244.1.2", "fd00:10:244:1::2"))
    netns = compiled(one)
    assert [rule for rule in rules(netns, chain_name(one)) if "DNAT" in rule] == [
        "-d 192.168.100.11/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80",
        "-p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.244.1.2:81",
    ]
    assert rules(netns, chain_name(one), "ipv6") == ()


def test_ipv6_has_no_localhost_rule_and_brackets() -> None:
    one = pod(ContainerPort(53, protocol="UDP", host_port=53), ips=("fd00:10:244:1::2",))
    assert rules(compiled(one), chain_name(one), "ipv6") == (
        "-s fd00:10:244:1::/64 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
        "-p udp -m udp --dport 53 -j DNAT --to-destination [fd00:10:244:1::2]:53",
    )


def test_fifteen_ports_a_rule_and_a_rule_a_protocol() -> None:
    ports = [ContainerPort(n, host_port=n) for n in range(1, 18)]
    one = pod(*ports, ContainerPort(9, protocol="UDP", host_port=9))
    lead = [
        rule.partition("--dports ")[2].split(" ")[0] for rule in rules(compiled(one), "CNI-HOSTPORT-DNAT")
    ]
    assert lead == [",".join(map(str, range(1, 16))), "16,17", "9"]


def test_without_host_ports_and_on_the_hosts_network_there_is_nothing() -> None:
    assert compiled(pod(ContainerPort(80))) == NetnsState()
    assert compiled(pod(ContainerPort(80, host_port=80), host_network=True)) == NetnsState()


def test_a_chain_name_is_as_long_as_the_plugins() -> None:
    assert len(chain_name(pod())) == 28


def test_udp_clients_that_were_there_before_the_pod_are_led_to_it() -> None:
    netns = compiled(pod(ContainerPort(5353, protocol="UDP", host_port=53), ContainerPort(80, host_port=80)))
    assert {(each.address, each.port): each.serving for each in netns.udp.values()} == {
        ("192.168.100.11", 53): ("10.244.1.2:5353",),
        ("127.0.0.1", 53): ("10.244.1.2:5353",),
    }
