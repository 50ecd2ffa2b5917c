"""Felix's rules as enforcement, with traffic, beside kube-proxy's rules of both kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from policy_traffic import SPEC, Traffic
from test_policy import NO, YES, cluster_policy, open_connection_after, policy, reaches

from testbed.api.cluster import Cluster
from testbed.dataplane.calico.felix import Felix
from testbed.rules.ipset import parse_save as parse_sets
from testbed.rules.iptables import parse_save, with_numbers
from testbed.wait import wait_until

DENY = policy("none", {"matchLabels": {"app": "a"}}, ingress=[])


def spec(name: str, mode: str, on_change: str) -> str:
    text = SPEC.format(name=name, mode=mode, on_change=on_change)
    return text.replace("    proxy:", "    dataplane: {name: calico, timers: fast}\n    proxy:")


def begun(cluster: Cluster) -> Traffic:
    made = Traffic(cluster)
    made.begin()
    wait_until(lambda: reaches(made, "p0", "p1", 80) == YES, 20, "routes to the other node's pods")
    return made


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def traffic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    file = tmp_path_factory.mktemp("calico-policy") / "cluster.yaml"
    file.write_text(spec(f"felix-{request.param}", request.param, "cut"))
    with Cluster.up(file) as cluster:
        yield begun(cluster)


def test_one_policy_that_selects_a_pod_denies_the_rest(traffic: Traffic) -> None:
    traffic.enforce((DENY,))
    assert reaches(traffic, "p2", "p0", 80) == reaches(traffic, "outside", "p0", 80) == NO
    assert reaches(traffic, "p2", "p1", 80) == reaches(traffic, "p0", "p1", 80) == YES


def test_exceptions_of_a_range_and_named_ports(traffic: Traffic) -> None:
    blocks = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["203.0.113.0/24"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fd00:203::/64"]}},
    ]
    traffic.enforce((policy("open", {}, ingress=[{"from": blocks, "ports": [{"port": "web"}]}]),))
    assert reaches(traffic, "p2", "p0", 80) == YES
    assert reaches(traffic, "p2", "p0", 81) == reaches(traffic, "outside", "p0", 80) == NO


def test_each_of_many_ports_is_allowed_and_no_other(traffic: Traffic) -> None:
    def enforce(numbers: list[int]) -> None:
        ports = [{"port": number} for number in numbers]
        traffic.enforce((policy("many", {"matchLabels": {"app": "a"}}, ingress=[{"ports": ports}]),))

    enforce([80, *range(10, 42, 2), 82])  # in two matches, of 15 and of 3 ports: both are in the second
    assert [reaches(traffic, "p2", "p0", number) for number in (80, 81, 82)] == [YES, NO, YES]
    enforce([81, 82])
    assert [reaches(traffic, "p2", "p0", number) for number in (80, 81, 82)] == [NO, YES, YES]


def test_tiers_are_asked_in_their_order(traffic: Traffic) -> None:
    everybody = [{"namespaces": {}}]
    port = [{"tcp": {"destinationPort": {"number": number}}} for number in (80, 81)]
    admin = cluster_policy(
        "guard",
        "Admin",
        ingress=[
            {"action": "Accept", "from": everybody, "protocols": port[:1]},
            {"action": "Pass", "from": everybody, "protocols": port[1:]},
            {"action": "Deny", "from": everybody},
        ],
    )
    baseline = cluster_policy("base", "Baseline", ingress=[{"action": "Deny", "from": everybody}])
    isolate = policy("only-81", {"matchLabels": {"app": "a"}}, ingress=[{"ports": [{"port": 81}]}])
    traffic.enforce((admin, baseline, isolate))
    assert [reaches(traffic, "p2", "p0", number) for number in (80, 81, 82)] == [YES, YES, NO]
    assert [reaches(traffic, "p2", "p1", number) for number in (80, 81)] == [YES, NO]


def test_a_changed_policy_cuts_open_connections(traffic: Traffic) -> None:
    traffic.enforce(())
    heard = open_connection_after(traffic, lambda: traffic.enforce((DENY,)))
    assert heard[:2] == ["open", "answer"]
    assert heard[2] == "ConnectionResetError"


def test_rules_are_in_the_kernel_as_they_were_written(traffic: Traffic) -> None:
    """Word by word, in both families: so that a difference to a real node's iptables-save would show."""
    blocks = [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.1.2/32"]}}, {"ipBlock": {"cidr": "::/0"}}]
    many = [{"port": number} for number in range(1000, 1040, 2)]
    ports = [{"port": "web"}, {"port": 80, "endPort": 90}, *many, {"protocol": "UDP"}]
    rule = {"from": [*blocks, {"podSelector": {}}], "ports": ports}
    deny = [{"action": "Deny", "to": [{"nodes": {}}]}]
    traffic.enforce(
        (
            policy("all", {}, ingress=[rule], egress=[{}]),
            policy("more", {}, ingress=[{}]),
            cluster_policy("wide", "Baseline", egress=deny),
        )
    )
    taken = traffic.snapshot(traffic.policies)
    wanted = Felix().compile(taken, taken.node["node-1"])
    node = traffic.cluster.node("node-1")
    chains = {
        **parse_save(node.run(["iptables-save"]).stdout, "ipv4"),
        **parse_save(node.run(["ip6tables-save"]).stdout, "ipv6"),
    }
    for key, chain in wanted.chains.items():
        found = tuple(map(with_numbers, chains[key].rules))
        if chain.inserted:
            assert found[: chain.inserted] == chain.rules[: chain.inserted]
            assert set(chain.rules) <= set(found)
        else:
            assert found == chain.rules
    assert {name: len(each.entries) for name, each in wanted.ipsets.items()} == {
        name: len(each.entries)
        for name, each in parse_sets(node.run(["ipset", "save"]).stdout).items()
        if name.startswith("cali")
    }


def test_open_connections_live_on_where_the_spec_says_keep(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Calico's own way."""
    file = tmp_path_factory.mktemp("calico-kept") / "cluster.yaml"
    file.write_text(spec("felix-kept", "iptables", "keep"))
    with Cluster.up(file) as cluster:
        kept = begun(cluster)
        heard = open_connection_after(kept, lambda: kept.enforce((DENY,)))
        assert heard == ["open", "answer", "answer", "answer"]
        assert reaches(kept, "p2", "p0", 80) == NO
