"""The cluster spec: defaults, errors (one case a file), overrides, and specs nobody thought of."""

from __future__ import annotations

import json
import string
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.spec.load import load_spec, parse_spec
from testbed.spec.model import ClusterSpec

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "cases" / "spec"
HEADER = "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: lab}\n"
TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))


def load(body: str = "", *overrides: str) -> ClusterSpec:
    return parse_spec(HEADER + body, str(CASES / "lab.yaml"), overrides)


def texts(values: Any) -> list[str]:
    return [str(value) for value in values]


# --- errors: one file per case, with the exact message ------------------------------------------------


def message_of(case: dict[str, Any]) -> str:
    """What a case's spec is refused with, its own folder left out."""
    file = str(CASES / case.get("file", "lab.yaml"))
    with pytest.raises(InputError) as caught:
        parse_spec(case["spec"], file, case.get("set", ()))
    return str(caught.value).replace(f"{CASES}/", "") + "\n"


@pytest.mark.parametrize("path", sorted(CASES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bad_spec_is_refused_with_file_line_path_and_reason(path: Path) -> None:
    case = yaml.safe_load(path.read_text())
    assert message_of(case) == case["error"]


def test_missing_file_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"^/nowhere/lab\.yaml: cannot be read: No such file or directory$"):
        load_spec("/nowhere/lab.yaml")


# --- what a good spec becomes ---------------------------------------------------------------------------


def test_defaults_are_those_of_the_contract() -> None:
    spec = load()
    assert [(node.name, *texts(node.addresses), *texts(node.pod_cidrs)) for node in spec.nodes] == [
        ("node-1", "192.168.100.11", "10.244.1.0/24"),
        ("node-2", "192.168.100.12", "10.244.2.0/24"),
        ("node-3", "192.168.100.13", "10.244.3.0/24"),
    ]
    assert texts(spec.control_plane.addresses) == ["192.168.100.10"]
    assert spec.control_plane.port == 6443
    assert spec.topology.builder == "single"
    assert spec.topology.gateway == ("192.168.100.1/24",)
    assert texts(spec.network.service_cidrs) == ["10.96.0.0/12"]
    assert texts(spec.network.load_balancer_cidrs) == ["198.51.100.0/24"]
    assert spec.network.cluster_domain == "cluster.local"
    assert spec.network.dataplane == "bridge"
    assert spec.network.policy_on_change == "cut"
    assert (spec.dns.enabled, spec.dns.replicas, spec.dns.node_local) == (True, 2, False)
    assert texts(spec.dns.addresses) == ["10.96.0.10"]


def test_name_defaults_to_the_stem_of_the_file() -> None:
    assert parse_spec("apiVersion: testbed/v1\nkind: Cluster\n", "labs/my-lab.yaml").name == "my-lab"


def test_dual_stack_gives_everything_one_address_per_family_in_the_order_of_pod_cidr() -> None:
    spec = load('spec: {network: {podCIDR: ["fd00:10:244::/56", 10.244.0.0/16]}}')
    assert texts(spec.nodes[1].addresses) == ["fd00:192:168:100::c", "192.168.100.12"]
    assert texts(spec.nodes[1].pod_cidrs) == ["fd00:10:244:2::/64", "10.244.2.0/24"]
    assert spec.topology.gateway == ("fd00:192:168:100::1/64", "192.168.100.1/24")
    assert texts(spec.dns.addresses) == ["fd00:10:96::a", "10.96.0.10"]
    assert spec.network.node_masks == (64, 24)


def test_ipv6_only() -> None:
    spec = load('spec: {nodes: {count: 1}, network: {podCIDR: "fd00:10:244::/56"}}')
    assert texts(spec.nodes[0].addresses) == ["fd00:192:168:100::b"]
    assert texts(spec.nodes[0].pod_cidrs) == ["fd00:10:244:1::/64"]
    assert spec.network.load_balancer_cidrs == ()


def test_given_addresses_and_pod_ranges_are_kept_and_the_others_go_around_them() -> None:
    spec = load(
        "spec: {nodes: {items: [{name: a}, {name: b, address: 192.168.100.11, podCIDR: 10.244.99.0/25}]}}"
    )
    assert texts(spec.nodes[0].addresses + spec.nodes[1].addresses) == ["192.168.100.12", "192.168.100.11"]
    assert texts(spec.nodes[0].pod_cidrs + spec.nodes[1].pod_cidrs) == ["10.244.1.0/24", "10.244.99.0/25"]


def test_count_is_spread_over_zones() -> None:
    spec = load("spec: {nodes: {count: 4, zones: [a, b, c]}}")
    assert [node.zone for node in spec.nodes] == ["a", "b", "c", "a"]


def test_racks_decide_addresses_subnets_and_zones() -> None:
    spec = load(
        "spec: {nodes: {count: 4}, topology: {builder: racks, params: {racks: 2, mask: 24}},"
        " network: {nodeCIDR: 172.16.0.0/16}}"
    )
    assert [(node.zone, *texts(node.addresses + node.subnets)) for node in spec.nodes] == [
        ("rack-1", "172.16.1.11", "172.16.1.0/24"),
        ("rack-1", "172.16.1.12", "172.16.1.0/24"),
        ("rack-2", "172.16.2.11", "172.16.2.0/24"),
        ("rack-2", "172.16.2.12", "172.16.2.0/24"),
    ]
    assert spec.topology.gateway == ("172.16.0.1/24",)


def test_an_address_of_its_own_puts_a_node_into_that_rack() -> None:
    spec = load(
        "spec: {nodes: {items: [{name: a, address: 192.168.100.150}, {name: b}]}, topology: {builder: racks}}"
    )
    assert [node.zone for node in spec.nodes] == ["rack-2", "rack-2"]


def test_zones_decide_subnets() -> None:
    spec = load("spec: {nodes: {count: 3, zones: [p, q]}, topology: {builder: zones}}")
    assert [(node.zone, *texts(node.subnets)) for node in spec.nodes] == [
        ("p", "192.168.100.64/26"),
        ("q", "192.168.100.128/26"),
        ("p", "192.168.100.64/26"),
    ]


def test_units_become_bits_seconds_and_shares() -> None:
    link = load(
        "spec: {topology: {link: {bandwidth: 1Gbit, delay: 5ms, jitter: 250us, loss: 0.1%, mtu: 9000}}}"
    ).topology.link
    assert (link.bandwidth, link.delay, link.jitter, link.loss, link.mtu) == (
        1e9,
        0.005,
        0.00025,
        0.001,
        9000,
    )


def test_zero_delay_jitter_and_loss_need_no_shaping() -> None:
    link = load("spec: {topology: {link: {delay: 0ms, jitter: 0, loss: 0%}}}").topology.link
    assert (link.delay, link.jitter, link.loss) == (None, None, None)


def test_weave_has_its_own_pod_range(monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.dataplane import dataplanes

    dataplanes.discover()
    monkeypatch.setitem(dataplanes._things, "weave", dataplanes.get("bridge"))
    assert texts(load("spec: {network: {dataplane: {name: weave}}}").network.pod_cidrs) == ["10.32.0.0/12"]


@pytest.mark.parametrize("dataplane", ["calico", "weave"])
def test_where_pods_share_a_pool_nodes_need_no_ranges_of_their_own(dataplane: str) -> None:
    def ranges(more: str) -> list[list[str]]:
        network = f"{{dataplane: {{name: {dataplane}}}, {more}}}"
        loaded = load(f"spec: {{nodes: {{count: 2}}, network: {network}}}")
        assert_reloads(loaded)
        return [texts(node.pod_cidrs) for node in loaded.nodes]

    assert ranges("podCIDR: 10.244.0.0/26") == [[], []]
    assert ranges("podCIDR: 10.244.0.0/26, nodeMask: 27") == [["10.244.0.32/27"], []]
    assert ranges("podCIDR: 10.244.0.0/16, nodeMask: 31") == [["10.244.0.2/31"], ["10.244.0.4/31"]]
    with pytest.raises(InputError, match=r"nodeMask: /33 leaves no room"):
        ranges("podCIDR: 10.244.0.0/16, nodeMask: 33")
    assert ranges("podCIDR: 10.244.0.0/16") == [["10.244.1.0/24"], ["10.244.2.0/24"]]


def test_clocks_are_seconds() -> None:
    clocks = load("spec: {kubelet: {nodeMonitorGracePeriod: 1m30s, syncFrequency: 60}}").kubelet
    assert clocks == {"nodeMonitorGracePeriod": 90.0, "syncFrequency": 60.0}


def test_overrides_win_with_and_without_leading_spec_and_make_what_is_missing() -> None:
    spec = load(
        "spec: {nodes: {count: 1}}",
        "nodes.count=2",
        "spec.network.clusterDomain=lab.test",
        "external=[{name: client, address: 203.0.113.10}]",
        "external[0].attach=nodes",
        "external.0.address=192.168.100.77",
        "topology.link.mtu=1400",
        "metadata.name=other",
    )
    assert (len(spec.nodes), spec.network.cluster_domain, spec.name) == (2, "lab.test", "other")
    assert texts(spec.external[0].addresses) == ["192.168.100.77"]
    assert spec.topology.link.mtu == 1400


def test_override_with_a_dot_in_its_key() -> None:
    spec = load("spec: {nodes: {items: [{name: a}]}}", r"nodes.items[0].labels.lab\.test/disk=ssd")
    assert spec.nodes[0].labels == {"lab.test/disk": "ssd"}


def test_manifests_are_relative_to_the_file() -> None:
    spec = load_spec(ROOT / "topologies" / "three-nodes.yaml")
    assert spec.manifests == (ROOT / "topologies" / "demo",)


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_topology_loads_and_its_document_loads_to_the_same(path: Path) -> None:
    assert_reloads(load_spec(path))


def test_cni_lab_is_the_reference_lab() -> None:
    """Nodes 172.18.0.2 and .3, and a host .254 that is their default route."""
    spec = load_spec(ROOT / "topologies" / "cni-lab.yaml")
    assert [texts(node.addresses) for node in spec.nodes] == [["172.18.0.2"], ["172.18.0.3"]]
    assert (spec.topology.gateway_name, spec.topology.gateway) == ("o", ("172.18.0.254/24",))
    assert texts(spec.network.service_cidrs) == ["10.96.0.0/16"]


# --- specs nobody thought of ------------------------------------------------------------------------------


def assert_reloads(spec: ClusterSpec) -> None:
    again = parse_spec(json.dumps(spec.document), spec.source)
    assert again == spec


NAMES = st.sampled_from(["a", "b", "node-2", "x-1", "s1", "gateway", "Z"])
ADDRESSES = st.one_of(
    st.integers(0, 255).map(lambda last: f"192.168.100.{last}"),
    st.integers(0, 70000).map(lambda last: str(ip_address("fd00:192:168:100::") + last)),
    st.sampled_from(["10.244.1.5", "203.0.113.9", "127.0.0.1", "here"]),
)


def ranges(*bases: str) -> st.SearchStrategy[str]:
    return st.builds(
        lambda base, prefix: str(ip_network(f"{base}/{prefix + (48 if ':' in base else 0)}", strict=False)),
        st.sampled_from(bases),
        st.integers(8, 30),
    )


def one_or_two(items: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.one_of(items, st.lists(items, min_size=1, max_size=2))


NODES = st.one_of(
    st.fixed_dictionaries(
        {"count": st.integers(0, 12)},
        optional={"zones": st.lists(st.sampled_from("abcd"), max_size=4, unique=True)},
    ),
    st.fixed_dictionaries(
        {
            "items": st.lists(
                st.fixed_dictionaries(
                    {"name": NAMES},
                    optional={
                        "address": one_or_two(ADDRESSES),
                        "podCIDR": one_or_two(ranges("10.244.0.0", "10.244.9.0", "fd00:10:244::")),
                        "zone": st.sampled_from(["a", "b", "c"]),
                        "labels": st.dictionaries(NAMES, NAMES, max_size=2),
                        "taints": st.lists(
                            st.fixed_dictionaries(
                                {"key": NAMES, "effect": st.sampled_from(["NoSchedule", "NoExecute"])}
                            ),
                            max_size=2,
                        ),
                    },
                ),
                max_size=5,
            )
        }
    ),
)
TOPOLOGY = st.one_of(
    st.fixed_dictionaries(
        {"builder": st.just("racks")},
        optional={
            "params": st.fixed_dictionaries(
                {},
                optional={
                    "racks": st.integers(0, 9),
                    "spines": st.integers(0, 4),
                    "mask": st.integers(24, 31),
                    "linkCIDR": one_or_two(ranges("100.64.0.0", "10.244.0.0", "fd00:100::")),
                },
            )
        },
    ),
    st.fixed_dictionaries(
        {"builder": st.just("zones")},
        optional={"params": st.fixed_dictionaries({}, optional={"zones": st.integers(0, 6)})},
    ),
    st.fixed_dictionaries(
        {"builder": st.sampled_from(["tree", "linear", "single"])},
        optional={
            "params": st.dictionaries(
                st.sampled_from(["depth", "fanout", "switches", "hosts", "gateway"]),
                st.integers(-1, 9),
                max_size=2,
            ),
            "link": st.fixed_dictionaries(
                {},
                optional={
                    "bandwidth": st.integers(0, 2000).map(lambda rate: f"{rate}Mbit"),
                    "delay": st.integers(0, 99).map(lambda time: f"{time}ms"),
                    "loss": st.integers(0, 101).map(lambda share: f"{share}%"),
                },
            ),
        },
    ),
)
NETWORK = st.fixed_dictionaries(
    {},
    optional={
        "podCIDR": one_or_two(ranges("10.244.0.0", "10.0.0.0", "fd00:10:244::")),
        "serviceCIDR": one_or_two(ranges("10.96.0.0", "10.244.0.0", "fd00:10:96::")),
        "nodeCIDR": one_or_two(ranges("192.168.100.0", "fd00:192:168:100::")),
        "nodeMask": st.one_of(st.integers(0, 130), st.lists(st.integers(8, 126), max_size=3)),
        "loadBalancerCIDR": one_or_two(ranges("198.51.100.0", "10.0.0.0")),
    },
)
EXTERNAL = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "address": one_or_two(ADDRESSES)},
        optional={"attach": st.sampled_from(["gateway", "nodes"])},
    ),
    max_size=3,
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "nodes": NODES,
        "topology": TOPOLOGY,
        "network": NETWORK,
        "external": EXTERNAL,
        "controlPlane": st.fixed_dictionaries({"address": one_or_two(ADDRESSES)}),
        "kubelet": st.fixed_dictionaries({"syncFrequency": st.integers(0, 100)}),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ADDRESSES,
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)


def try_load(document: Any, overrides: tuple[str, ...] = ()) -> ClusterSpec | None:
    try:
        return parse_spec(json.dumps(document), "lab.yaml", overrides)
    except InputError as error:
        refusal = error
    assert refusal.problems
    assert all(problem.message for problem in refusal.problems)
    return None


def whole(spec: Any) -> dict[str, Any]:
    return {"apiVersion": "testbed/v1", "kind": "Cluster", "metadata": {"name": "lab"}, "spec": spec}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SPECS)
def test_any_spec_is_refused_or_loads_to_something_consistent(spec: Any) -> None:
    """Addresses are distinct and in their subnets, pod ranges disjoint; the document loads to the same."""
    loaded = try_load(whole(spec))
    if loaded is None:
        return
    assert_reloads(loaded)
    held = [address for node in loaded.nodes for address in node.addresses]
    held += loaded.control_plane.addresses
    assert len(set(held)) == len(held)
    for node in loaded.nodes:
        assert all(a in s for a, s in zip(node.addresses, node.subnets, strict=True))
        assert len(node.pod_cidrs) == len(loaded.network.pod_cidrs)
    pods = [cidr for node in loaded.nodes for cidr in node.pod_cidrs]
    assert not any(
        one.version == other.version and one.overlaps(other)  # type: ignore[arg-type]
        for number, one in enumerate(pods)
        for other in pods[:number]
    )


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(found for key, child in children for found in paths(child, (*path, key)))]


FULL = load(
    "spec:\n  nodes: {count: 3, zones: [a, b]}\n  topology: {builder: racks, link: {bandwidth: 1Gbit}}\n"
    "  external: [{name: client, address: 203.0.113.10}]\n"
).document


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(paths(FULL)[1:]), JSON)
def test_anything_anywhere_in_a_spec_never_gives_a_traceback(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(FULL))
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    try_load(document)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60), st.text("{}[]:,-&*!|>'\"#%@ \n\tab01.", max_size=60), st.binary(max_size=40)
    )
)
def test_any_text_is_refused_without_a_traceback(text: str | bytes) -> None:
    with pytest.raises(InputError):
        parse_spec(text, "lab.yaml")


@settings(max_examples=150, deadline=None)
@given(st.text(string.ascii_letters + "[]0123.=\\{:", max_size=12), st.text(max_size=10))
def test_any_override_is_refused_or_applied_without_a_traceback(key: str, value: str) -> None:
    try_load(FULL, (f"{key}={value}", f"nodes.{key}={value}"))


def rewrite() -> None:
    """Write what is said now into every case; the difference is for review."""
    for path in sorted(CASES.glob("*.yaml")):
        case = yaml.safe_load(path.read_text())
        text = path.read_text().split("\nerror: ")[0].rstrip("\n") + "\n"
        lines = "".join(f"  {line}\n" for line in message_of(case).splitlines())
        path.write_text(f"{text}error: |\n{lines}")


if __name__ == "__main__":
    sys.exit(rewrite())
