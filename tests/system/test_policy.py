"""Network policy on real kernels: both forms of rules, generated and by hand, over both families."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from policy_traffic import CHANGES, POLICY_SETS, SPEC, Traffic
from policy_worlds import Object, compiled

from testbed.api.cluster import Cluster, Completed
from testbed.cli.main import main
from testbed.conformance.network_policy.cases import complete
from testbed.policy.meaning import Flow
from testbed.rules.ipset import parse_save as parse_sets
from testbed.rules.iptables import parse_save
from testbed.rules.nft import parse_ruleset
from testbed.wait import wait_until

MODES = ("iptables", "nftables")


@pytest.fixture(scope="module", params=MODES)
def traffic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    spec = tmp_path_factory.mktemp("policy") / "cluster.yaml"
    spec.write_text(SPEC.format(name=f"policy-{request.param}", mode=request.param, on_change="cut"))
    with Cluster.up(spec) as cluster:
        made = Traffic(cluster)
        made.begin()
        yield made


def policy(name: str, selector: Object, **directions: Any) -> Object:
    """A NetworkPolicy in namespace x that says something of the directions given."""
    types = [direction.capitalize() for direction in directions]
    spec = {"podSelector": selector, "policyTypes": types, **directions}
    return complete(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "x"},
            "spec": spec,
        }
    )


def cluster_policy(name: str, tier: str, **directions: Any) -> Object:
    """A ClusterNetworkPolicy about every pod of namespace x."""
    subject = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}
    return complete(
        {
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": {"tier": tier, "priority": 1, "subject": subject, **directions},
        }
    )


def address(traffic: Traffic, name: str, version: int = 4) -> str:
    """A pod's address."""
    found = next(pod for pod in traffic.plain.pods if pod.name == name)
    return next(ip for ip in found.ips if (":" in ip) == (version == 6))


def reaches(traffic: Traffic, source: str, target: str, port: int, protocol: str = "TCP") -> tuple[bool, ...]:
    """Whether ``source`` (a pod, or "outside") reaches a pod's port over IPv4 and over IPv6."""
    outside = {4: "203.0.113.10", 6: "fd00:203::10"}
    flows = [
        Flow(
            outside[version] if source == "outside" else address(traffic, source, version),
            address(traffic, target, version),
            protocol,
            port,
        )
        for version in (4, 6)
    ]
    seen = traffic.observed(flows)
    return tuple(seen[flow] for flow in flows)


YES, NO = (True, True), (False, False)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_traffic_does_what_generated_policies_mean_and_rules_say(
    traffic: Traffic, data: st.DataObject
) -> None:
    policies = data.draw(POLICY_SETS)
    flows = data.draw(st.lists(traffic.flows(), min_size=40, max_size=40))
    traffic.enforce(policies)
    assert traffic.disagreements(policies, flows) == []


@pytest.fixture(scope="module", params=MODES)
def moving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    """A cluster whose pods and namespaces do not stay as they are."""
    spec = tmp_path_factory.mktemp("moving") / "cluster.yaml"
    spec.write_text(SPEC.format(name=f"moving-{request.param}", mode=request.param, on_change="cut"))
    with Cluster.up(spec) as cluster:
        made = Traffic(cluster)
        made.begin()
        yield made


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_traffic_follows_every_change_of_labels_namespaces_and_pods(
    moving: Traffic, data: st.DataObject
) -> None:
    policies = data.draw(POLICY_SETS)
    moving.enforce(policies)
    for change in data.draw(st.lists(CHANGES, min_size=3, max_size=3)):
        moving.change(change)
        flows = data.draw(st.lists(moving.flows(), min_size=30, max_size=30))
        assert moving.disagreements(policies, flows) == []


def test_exceptions_of_a_range_are_not_in_it(traffic: Traffic) -> None:
    blocks = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [f"{address(traffic, 'p2')}/32"]}},
        {"ipBlock": {"cidr": "::/0", "except": [f"{address(traffic, 'p2', 6)}/128"]}},
    ]
    traffic.enforce((policy("open", {"matchLabels": {"app": "a"}}, ingress=[{"from": blocks}]),))
    assert reaches(traffic, "p2", "p0", 80) == NO
    assert reaches(traffic, "p3", "p0", 80) == reaches(traffic, "outside", "p0", 80) == YES
    assert reaches(traffic, "p2", "p1", 80) == YES


def test_a_named_port_is_each_pods_own_number(traffic: Traffic) -> None:
    traffic.enforce((policy("web", {}, ingress=[{"ports": [{"port": "web"}]}]),))
    assert (reaches(traffic, "p2", "p0", 80), reaches(traffic, "p2", "p0", 81)) == (YES, NO)
    assert (reaches(traffic, "p2", "p1", 80), reaches(traffic, "p2", "p1", 81)) == (NO, YES)
    assert reaches(traffic, "p2", "p5", 80) == NO


def test_a_range_of_ports_ends_where_it_says(traffic: Traffic) -> None:
    rule = {"ports": [{"port": 80, "endPort": 81, "protocol": "UDP"}]}
    traffic.enforce((policy("range", {}, ingress=[rule]),))
    seen = [reaches(traffic, "p2", "p0", port, "UDP") for port in (80, 81, 82)]
    assert seen == [YES, YES, NO]
    assert reaches(traffic, "p2", "p0", 80, "TCP") == NO


def test_pings_pass_by_rules_without_ports_alone(traffic: Traffic) -> None:
    """And so do the errors and neighbour discovery that every connection needs, whatever the rules say."""

    def pings() -> tuple[bool, ...]:
        place = traffic.cluster.pod("p2", "y")
        argv = [["ping", "-c1", "-W1", address(traffic, "p0", version)] for version in (4, 6)]
        return tuple(place.run(each).code == 0 for each in argv)

    a = {"matchLabels": {"app": "a"}}
    traffic.enforce((policy("ports", a, ingress=[{"ports": [{"protocol": "TCP"}, {"protocol": "UDP"}]}]),))
    assert pings() == NO
    assert reaches(traffic, "p2", "p0", 80) == YES
    traffic.enforce((policy("any", a, ingress=[{"from": [{"namespaceSelector": {}}]}]),))
    assert pings() == YES


def test_tiers_are_asked_in_their_order(traffic: Traffic) -> None:
    everybody = [{"namespaces": {}}]
    port_80 = [{"tcp": {"destinationPort": {"number": 80}}}]
    port_81 = [{"tcp": {"destinationPort": {"number": 81}}}]
    admin = cluster_policy(
        "guard",
        "Admin",
        ingress=[
            {"action": "Accept", "from": everybody, "protocols": port_80},
            {"action": "Pass", "from": everybody, "protocols": port_81},
            {"action": "Deny", "from": everybody},
        ],
    )
    baseline = cluster_policy("base", "Baseline", ingress=[{"action": "Deny", "from": everybody}])
    isolate = policy("only-81", {"matchLabels": {"app": "a"}}, ingress=[{"ports": [{"port": 81}]}])
    traffic.enforce((admin, baseline, isolate))
    assert [reaches(traffic, "p2", "p0", port) for port in (80, 81, 82)] == [YES, YES, NO]
    assert [reaches(traffic, "p2", "p1", port) for port in (80, 81, 82)] == [YES, NO, NO]
    assert reaches(traffic, "p0", "p2", 82) == YES


def test_the_forerunners_are_tiers_too(traffic: Traffic) -> None:
    """AdminNetworkPolicy before, BaselineAdminNetworkPolicy after NetworkPolicies, in v1alpha1's words."""

    def older(kind: str, name: str, rules: list[Object], **more: Any) -> Object:
        subject = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}
        return complete(
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha1",
                "kind": kind,
                "metadata": {"name": name},
                "spec": {"subject": subject, "ingress": rules, **more},
            }
        )

    everybody = [{"namespaces": {}}]
    admin = [
        {"action": "Allow", "from": everybody, "ports": [{"namedPort": "web"}]},
        {
            "action": "Deny",
            "from": everybody,
            "ports": [{"portRange": {"protocol": "TCP", "start": 80, "end": 81}}],
        },
    ]
    base = [{"action": "Deny", "from": everybody, "ports": [{"portNumber": {"protocol": "TCP", "port": 82}}]}]
    traffic.enforce(
        (
            older("AdminNetworkPolicy", "guard", admin, priority=5),
            older("BaselineAdminNetworkPolicy", "default", base),
            policy("only-82", {"matchLabels": {"app": "a"}}, ingress=[{"ports": [{"port": 82}]}]),
        )
    )
    # p0 calls 80 web, p1 81; only p0 has a NetworkPolicy, which is asked before the baseline.
    assert [reaches(traffic, "p2", "p0", port) for port in (80, 81, 82)] == [YES, NO, YES]
    assert [reaches(traffic, "p2", "p1", port) for port in (80, 81, 82)] == [NO, YES, NO]
    assert reaches(traffic, "p2", "p1", 82, "UDP") == YES


def test_a_policy_of_any_namespace_stays_in_its_own(traffic: Traffic) -> None:
    """A peer's podSelector alone means the policy's namespace; with a namespaceSelector, those it selects."""
    chosen = {"matchLabels": {"app": "a"}}
    both = {"podSelector": chosen, "namespaceSelector": {"matchLabels": {"team": "s"}}}
    traffic.enforce((policy("same", {}, ingress=[{"from": [{"podSelector": chosen}]}]),))
    assert (reaches(traffic, "p0", "p1", 80), reaches(traffic, "p2", "p1", 80)) == (YES, NO)
    assert reaches(traffic, "p2", "p4", 80) == YES
    traffic.enforce((policy("other", {}, ingress=[{"from": [both]}]),))
    assert (reaches(traffic, "p0", "p1", 80), reaches(traffic, "p2", "p1", 80)) == (NO, YES)


def test_a_node_reaches_its_own_pods_and_a_pod_itself_by_a_service(traffic: Traffic) -> None:
    traffic.enforce((policy("none", {}, ingress=[], egress=[]),))
    traffic.apply(*only_endpoint("x", "self", address(traffic, "p0")))
    traffic.cluster.settle()
    client = traffic.cluster.client
    vip = client.get("/api/v1/namespaces/x/services/self")["spec"]["clusterIP"]
    asked = [("node:node-1", address(traffic, "p0")), ("x/p0", vip), ("x/p1", vip)]
    questions = [{"source": source, "ip": ip, "port": 80} for source, ip in asked]
    replies = client.post(
        "/apis/testbed/v1/conversations", {"questions": questions, "language": "tcp", "text": ""}
    )["replies"]
    client.delete("/api/v1/namespaces/x/services/self")
    assert replies["verdict"] == ["ok", "ok", "refused"]
    assert reaches(traffic, "p2", "p0", 80) == NO


def only_endpoint(namespace: str, name: str, ip: str) -> tuple[Object, ...]:
    """A Service that leads to port 80 of one address on node-1."""
    metadata = {"namespace": namespace, "name": name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{"port": 80}]},
    }
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "nodeName": "node-1"}],
    }
    return service, slices


def test_a_new_pod_is_isolated_before_anybody_reaches_it(traffic: Traffic) -> None:
    """The pod is asked from before it is there; whatever answers of it answers by policy."""
    traffic.enforce((policy("none", {"matchLabels": {"app": "new"}}, ingress=[]),))
    ip, seen, over = "10.244.1.99", set[str](), threading.Event()

    def watch() -> None:
        request = {
            "questions": [{"source": "y/p2", "ip": ip, "port": 80}],
            "language": "tcp",
            "text": "",
            "count": 50,
            "at_once": 8,
            "timeout": 0.05,
        }
        while not over.is_set():
            seen.update(
                traffic.cluster.client.post("/apis/testbed/v1/conversations", request)["replies"]["verdict"]
            )

    watching = threading.Thread(target=watch)
    watching.start()
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "new",
            "namespace": "x",
            "labels": {"app": "new"},
            "annotations": {"testbed/ip": ip},
        },
        "spec": {
            "nodeName": "node-1",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "agnhost", "ports": [{"containerPort": 80}]}],
        },
    }
    try:
        traffic.apply(pod)
        traffic.cluster.wait(ready="app=new", namespace="x", timeout=20)
        wait_until(lambda: "refused" in seen, 10, "the pod's rule was met")
    finally:
        over.set()
        watching.join()
        traffic.cluster.client.delete("/api/v1/namespaces/x/pods/new")
    assert "ok" not in seen


FIRST = """
import socket, sys
for ip in sys.argv[1:]:
    try:
        socket.create_connection((ip, 80), timeout=10).close()
        print("open")
    except OSError as error:
        print(type(error).__name__)
"""
"""What a program does first of all: connect to each of these."""


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_holds_for_a_pods_first_process(mode: str, tmp_path: Path) -> None:
    """Programs that connect as soon as they run, in pods that come at once; some are not isolated."""
    spec = tmp_path / "cluster.yaml"
    spec.write_text(SPEC.format(name=f"first-{mode}", mode=mode, on_change="cut"))
    tmp_path.chmod(0o777)
    with Cluster.up(spec, allow_commands=True) as cluster:
        traffic = Traffic(cluster)
        traffic.begin()
        traffic.enforce((policy("none", {"matchLabels": {"app": "new"}}, egress=[]),))
        targets = [address(traffic, "p2", version) for version in (4, 6)]
        made = [(f"first-{number}", "new" if number % 2 else "free") for number in range(8)]
        traffic.apply(*(starting(name, label, tmp_path / name, targets) for name, label in made))
        lines = {name: (tmp_path / name, label) for name, label in made}

        def done() -> bool:
            return all(path.exists() and len(path.read_text().split()) == 2 for path, _ in lines.values())

        wait_until(done, 60, "every program has tried both")
        heard = {name: (label, path.read_text().split()) for name, (path, label) in lines.items()}
    wanted = {"new": ["ConnectionRefusedError"] * 2, "free": ["open"] * 2}
    assert {name: words for name, (_, words) in heard.items()} == {
        name: wanted[label] for name, (label, _) in heard.items()
    }


def starting(name: str, label: str, log: Path, targets: list[str]) -> Object:
    """A pod in namespace x whose program connects to these at once and says in a file how it went."""
    shell = 'exec /usr/bin/python3 -c "$0" "$@" >"$LOG" 2>&1'
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "x", "labels": {"app": label}},
        "spec": {
            "nodeName": "node-1",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "c",
                    "image": "busybox",
                    "command": ["sh", "-c", shell, FIRST, *targets],
                    "env": [{"name": "LOG", "value": str(log)}],
                }
            ],
        },
    }


TALK = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], 80), timeout=10)
print("open", flush=True)
for wait in (0, 1.5, 1.5):
    time.sleep(wait)
    try:
        client.send(b"GET /hostname HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print("answer" if client.recv(4096) else "end", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
"""Asks at once, and twice more with time for a change between."""


def open_connection_after(traffic: Traffic, change: Any) -> list[str]:
    """What a client in p2 hears on a connection to p0 that it opened before the change."""
    place, found = traffic.cluster.pod("p2", "y"), list[Completed]()
    argv = ["python3", "-c", TALK, address(traffic, "p0")]
    talking = threading.Thread(target=lambda: found.append(place.run(argv)))
    talking.start()

    def is_open() -> bool:
        listed = traffic.cluster.node("node-1").run(["conntrack", "-L", "-p", "tcp", "--dport", "80"])
        return "ESTABLISHED" in listed.stdout

    wait_until(is_open, 10, "the connection is open")
    change()
    talking.join()
    return found[0].stdout.split()


def test_a_changed_policy_cuts_open_connections(traffic: Traffic) -> None:
    traffic.enforce(())
    deny = policy("none", {"matchLabels": {"app": "a"}}, ingress=[])
    heard = open_connection_after(traffic, lambda: traffic.enforce((deny,)))
    assert heard[:2] == ["open", "answer"]
    assert heard[2] == "ConnectionResetError"


def test_rules_are_in_the_kernel_as_they_were_written(traffic: Traffic) -> None:
    """Nothing is lost or spelt otherwise on the way, or a later change would miss it."""
    blocks = [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.1.2/32", "10.244.2.0/24"]}}]
    ports = [
        {"port": "web"},
        {"port": 80, "endPort": 90},
        {"protocol": "UDP"},
        {"port": 7, "protocol": "SCTP"},
    ]
    peers = [*blocks, {"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}, {"podSelector": {}}]
    nodes = [{"nodes": {}}, {"networks": ["0.0.0.0/0", "fd00::/8"]}]
    traffic.enforce(
        (
            policy("all", {}, ingress=[{"from": peers, "ports": ports}], egress=[{}]),
            cluster_policy("wide", "Baseline", egress=[{"action": "Deny", "to": nodes}]),
        )
    )
    cluster = traffic.cluster
    mode = cluster.status["spec"]["spec"]["network"]["proxy"]["mode"]
    node = cluster.node("node-1")
    if mode == "iptables":
        wanted = compiled("iptables", traffic.snapshot(traffic.policies))["node-1"]
        chains = {
            **parse_save(node.run(["iptables-save"]).stdout, "ipv4"),
            **parse_save(node.run(["ip6tables-save"]).stdout, "ipv6"),
        }
        for key, chain in wanted.chains.items():
            assert chains[key].rules[: len(chain.rules)] == chain.rules
        sets = {name: replace(each, members="any") for name, each in wanted.ipsets.items()}
        assert parse_sets(node.run(["ipset", "save"]).stdout) == sets
    else:
        wanted = compiled("nft", traffic.snapshot(traffic.policies))["node-1"]
        found = parse_ruleset(node.run(["nft", "list", "ruleset"]).stdout)
        for part in ("nft_chains", "nft_sets", "nft_elements"):
            mine = {key: each for key, each in getattr(found, part).items() if key[1] == "network-policy"}
            assert mine == getattr(wanted, part)


ONLY_B = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-b, namespace: x}
spec:
  podSelector: {matchLabels: {app: a}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: b}}
"""


def test_check_names_the_line_of_the_manifest_and_table_matches_traffic(
    traffic: Traffic, tmp_path: Path
) -> None:
    traffic.enforce(())
    manifest = tmp_path / "only-b.yaml"
    manifest.write_text(ONLY_B)
    name = ("-C", traffic.cluster.name)
    client = traffic.cluster.client
    assert main([*name, "policy", "diff", "-f", str(manifest)]) == 0
    assert client.get("/apis/networking.k8s.io/v1/networkpolicies")["items"] == []
    traffic.cluster.apply(manifest)
    try:
        traffic.cluster.settle()
        asked = {"source": "x/p1", "target": "x/p0", "port": 80}
        (told,) = client.post("/apis/testbed/v1/policycheck", asked)["flows"]
        (decided,) = told["ingress"]["objects"]
        assert told["allowed"]
        assert (decided["file"], decided["line"]) == (str(manifest), 8)
        (told,) = client.post("/apis/testbed/v1/policycheck", {**asked, "source": "y/p2"})["flows"]
        assert not told["allowed"]
        assert told["ingress"]["objects"][0]["line"] == 5
        assert main([*name, "policy", "table", "--observed", "--protocol", "udp", "-o", "json"]) == 0
    finally:
        traffic.cluster.delete(manifest)


def test_a_change_says_what_it_would_close(traffic: Traffic) -> None:
    traffic.enforce(())
    deny = policy("none", {"matchLabels": {"app": "a"}}, ingress=[{"ports": [{"port": 80}]}])
    rows = traffic.cluster.client.post("/apis/testbed/v1/policydiff", {"objects": [deny]})["flows"]
    assert {row["change"] for row in rows} == {"closes"}
    assert {row["to"] for row in rows} == {"x/p0"}
    assert {(row["protocol"], row["port"]) for row in rows} == {
        ("TCP", 81),
        ("TCP", 82),
        ("UDP", 80),
        ("UDP", 81),
        ("UDP", 82),
    }
    assert json.dumps(rows)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    spec = tmp_path_factory.mktemp("kept") / "cluster.yaml"
    spec.write_text(SPEC.format(name="policy-kept", mode="iptables", on_change="keep"))
    with Cluster.up(spec) as cluster:
        made = Traffic(cluster)
        made.begin()
        yield made


def test_open_connections_live_on_where_the_spec_says_keep(kept: Traffic) -> None:
    deny = policy("none", {"matchLabels": {"app": "a"}}, ingress=[])
    heard = open_connection_after(kept, lambda: kept.enforce((deny,)))
    assert heard == ["open", "answer", "answer", "answer"]
    assert reaches(kept, "p2", "p0", 80) == NO
