"""The text of a pod's files and its environment, against what a kubelet writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.control.podfiles import (
    DEFAULT_PATH,
    expand,
    parse_resolv_conf,
    pod_env,
    pod_files,
    pod_hostname,
    resolver_warnings,
    sandbox_problem,
)
from testbed.control.snapshot import ClusterFacts, Container, Node, Pod, Service, ServicePort, Snapshot
from testbed.control.tokens import subject

FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12",),
    node_cidrs=("192.168.100.0/24",),
    dns_addresses=("10.96.0.10",),
    host_resolv_conf="# made by hand\nnameserver 10.0.0.53\nnameserver 10.0.1.53\n"
    "search old.example\nsearch example.com. corp.example .\noptions timeout:2 rotate\n",
)
NODE = Node(name="node-1", addresses=("192.168.100.11", "fd00:1::11"), pod_cidrs=("10.244.1.0/24",))
POD = Pod(uid="uid-1", namespace="shop", name="web-0", node="node-1", ips=("10.244.1.2",))
LOCAL = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "fe00::0\tip6-mcastprefix\n"
    "fe00::1\tip6-allnodes\n"
    "fe00::2\tip6-allrouters\n"
)


API = Service("default", "kubernetes", cluster_ips=("10.96.0.1",), ports=(ServicePort(443, "https"),))


def snapshot(**facts: Any) -> Snapshot:
    return Snapshot(replace(FACTS, **facts), (NODE,), services={("default", "kubernetes"): API})


def file(path: str, pod: Pod, **facts: Any) -> str:
    return pod_files(snapshot(**facts), pod)[path]


class TestHostname:
    def test_is_the_pods_name(self) -> None:
        assert pod_hostname(snapshot(), POD) == ("web-0", "")

    def test_is_the_asked_for_one_with_the_subdomains_domain(self) -> None:
        pod = replace(POD, hostname="first", subdomain="db")
        assert pod_hostname(snapshot(), pod) == ("first", "db.shop.svc.cluster.local")

    def test_is_cut_to_a_label_and_does_not_end_in_a_dash(self) -> None:
        pod = replace(POD, name="a" * 62 + "-.bcd")
        assert pod_hostname(snapshot(), pod) == ("a" * 62, "")

    def test_of_host_network_is_the_nodes(self) -> None:
        pod = replace(POD, host_network=True, hostname="ignored", subdomain="db")
        assert pod_hostname(snapshot(), pod) == ("node-1", "")

    def test_as_fqdn_is_the_whole_name(self) -> None:
        pod = replace(POD, subdomain="db", set_hostname_as_fqdn=True)
        domain = "db.shop.svc.cluster.local"
        assert pod_hostname(snapshot(), pod) == (f"web-0.{domain}", domain)
        assert file("/etc/hostname", pod) == f"web-0.{domain}\n"
        assert file("/etc/hosts", pod).endswith(f"\n10.244.1.2\tweb-0.{domain}\tweb-0\n")

    def test_as_fqdn_without_a_subdomain_is_the_short_name(self) -> None:
        assert pod_hostname(snapshot(), replace(POD, set_hostname_as_fqdn=True)) == ("web-0", "")

    @pytest.mark.parametrize(("length", "fits"), [(38, True), (39, False)])
    def test_as_fqdn_fits_into_what_the_kernel_takes(self, length: int, fits: bool) -> None:
        pod = replace(POD, name="n" * length, subdomain="db", set_hostname_as_fqdn=True)
        fqdn = "n" * length + ".db.shop.svc.cluster.local"
        problem = sandbox_problem(FACTS, pod)
        if fits:
            assert (problem, pod_hostname(snapshot(), pod)[0]) == ("", fqdn)
        else:
            assert problem == (
                "failed to construct FQDN from pod hostname and cluster domain, "
                f"FQDN {fqdn} is too long (64 characters is the max, 65 characters requested)"
            )
            assert pod_hostname(snapshot(), pod)[0] == "n" * length

    def test_of_an_ordinary_pod_is_no_problem(self) -> None:
        assert sandbox_problem(FACTS, replace(POD, name="n" * 200, subdomain="db")) == ""


class TestHosts:
    def test_of_a_pod(self) -> None:
        assert file("/etc/hosts", POD) == (
            "# Kubernetes-managed hosts file.\n" + LOCAL + "10.244.1.2\tweb-0\n"
        )

    def test_has_a_line_per_address_and_the_domain(self) -> None:
        pod = replace(POD, ips=("10.244.1.2", "fd00:10:244:1::2"), subdomain="db")
        assert file("/etc/hosts", pod) == (
            "# Kubernetes-managed hosts file.\n"
            + LOCAL
            + "10.244.1.2\tweb-0.db.shop.svc.cluster.local\tweb-0\n"
            + "fd00:10:244:1::2\tweb-0.db.shop.svc.cluster.local\tweb-0\n"
        )

    def test_with_aliases(self) -> None:
        aliases = ({"ip": "1.2.3.4", "hostnames": ["foo.remote", "bar.remote"]}, {"ip": "::5"})
        assert file("/etc/hosts", replace(POD, host_aliases=aliases)).endswith(
            "10.244.1.2\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\tfoo.remote\tbar.remote\n::5\n"
        )

    def test_of_host_network_is_the_nodes(self) -> None:
        pod = replace(POD, host_network=True, host_aliases=({"ip": "1.2.3.4", "hostnames": ["foo"]},))
        files = pod_files(snapshot(), pod, host_files={"/etc/hosts": "127.0.0.1 localhost node-1\n"})
        assert files["/etc/hosts"] == (
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost node-1\n"
            "\n# Entries added by HostAliases.\n1.2.3.4\tfoo\n"
        )
        assert files["/etc/hostname"] == "node-1\n"


class TestResolvConf:
    CLUSTER = "search shop.svc.cluster.local svc.cluster.local cluster.local example.com corp.example\n"
    HOST = (
        "search example.com corp.example\nnameserver 10.0.0.53\nnameserver 10.0.1.53\n"
        "options timeout:2 rotate\n"
    )

    @pytest.mark.parametrize(
        ("policy", "host_network", "expected"),
        [
            ("ClusterFirst", False, CLUSTER + "nameserver 10.96.0.10\noptions ndots:5\n"),
            ("ClusterFirst", True, HOST),
            ("ClusterFirstWithHostNet", True, CLUSTER + "nameserver 10.96.0.10\noptions ndots:5\n"),
            ("ClusterFirstWithHostNet", False, CLUSTER + "nameserver 10.96.0.10\noptions ndots:5\n"),
            ("Default", False, HOST),
            ("Default", True, HOST),
        ],
    )
    def test_by_policy(self, policy: str, host_network: bool, expected: str) -> None:
        pod = replace(POD, dns_policy=policy, host_network=host_network)
        assert file("/etc/resolv.conf", pod) == expected

    def test_policy_none_has_only_the_config(self) -> None:
        config = {
            "nameservers": ["192.0.2.1"],
            "searches": ["ns1.svc.cluster-domain.example", "my.dns.search.suffix"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        }
        assert file("/etc/resolv.conf", replace(POD, dns_policy="None", dns_config=config)) == (
            "search ns1.svc.cluster-domain.example my.dns.search.suffix\n"
            "nameserver 192.0.2.1\noptions ndots:2 edns0\n"
        )

    def test_config_is_appended_and_wins_among_options(self) -> None:
        config = {
            "nameservers": ["10.96.0.10", "192.0.2.1"],
            "searches": ["svc.cluster.local", "_tcp.example", "."],
            "options": [{"name": "ndots", "value": "2"}, {"name": "use-vc"}],
        }
        assert file("/etc/resolv.conf", replace(POD, dns_config=config)) == (
            self.CLUSTER.rstrip("\n") + " _tcp.example .\n"
            "nameserver 10.96.0.10\nnameserver 192.0.2.1\noptions ndots:2 use-vc\n"
        )

    def test_without_cluster_dns_is_the_nodes(self) -> None:
        assert file("/etc/resolv.conf", POD, dns_addresses=()) == self.HOST

    def test_of_both_families_names_both_servers(self) -> None:
        text = file("/etc/resolv.conf", POD, dns_addresses=("10.96.0.10", "fd00:10:96::a"))
        assert "nameserver 10.96.0.10\nnameserver fd00:10:96::a\n" in text

    def test_with_nothing_to_say_is_the_nodes_file(self) -> None:
        host = "# nobody knows anything\n"
        assert file("/etc/resolv.conf", replace(POD, dns_policy="Default"), host_resolv_conf=host) == host

    def test_has_at_most_three_servers(self) -> None:
        pod = replace(POD, dns_config={"nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3"]})
        text = file("/etc/resolv.conf", pod)
        assert [line for line in text.splitlines() if line.startswith("nameserver")] == [
            "nameserver 10.96.0.10",
            "nameserver 192.0.2.1",
            "nameserver 192.0.2.2",
        ]

    def test_cuts_searches_to_32_entries(self) -> None:
        pod = replace(POD, dns_config={"searches": [f"s{index}.example" for index in range(40)]})
        words = file("/etc/resolv.conf", pod).splitlines()[0].split()
        assert len(words) == 33
        assert words[-1] == "s26.example"

    def test_drops_a_search_that_is_too_long_and_cuts_the_line(self) -> None:
        searches = ["x" * 254, *(f"{index:02}" + "y" * 198 for index in range(11))]
        pod = replace(POD, dns_policy="None", dns_config={"nameservers": ["192.0.2.1"], "searches": searches})
        words = file("/etc/resolv.conf", pod).splitlines()[0].split()
        assert words == ["search", *searches[1:11]]

    def test_of_a_node_may_have_comments_and_odd_lines(self) -> None:
        resolver = parse_resolv_conf(
            "; c\n#c\n\nnameserver\nnameserver 1.1.1.1 extra\noptions a a:2\nsortlist x\n"
        )
        assert (resolver.nameservers, resolver.searches, resolver.options) == (("1.1.1.1",), (), ("a:2",))


def test_nsswitch_resolves_names_by_files_then_dns() -> None:
    assert "hosts: files dns\n" in file("/etc/nsswitch.conf", POD)


KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
    "KUBERNETES_PORT_443_TCP_PORT": "443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
}


def env(*entries: dict[str, Any], pod: Pod = POD, **facts: Any) -> dict[str, str]:
    container = Container(name="app", image="busybox", env=entries)
    return pod_env(snapshot(**facts), replace(pod, containers=(container,)))["app"]


class TestEnvironment:
    def test_of_a_plain_container(self) -> None:
        assert env() == {"PATH": DEFAULT_PATH, "HOME": "/root", "HOSTNAME": "web-0", **KUBERNETES}

    def test_is_per_container(self) -> None:
        one = Container(name="one", image="a", env=({"name": "X", "value": "1"},))
        two = Container(name="two", image="b")
        variables = pod_env(snapshot(), replace(POD, containers=(one, two)))
        assert variables["one"].get("X") == "1"
        assert "X" not in variables["two"]

    def test_of_the_user_beats_the_runtime_and_the_services(self) -> None:
        variables = env({"name": "HOME", "value": "/"}, {"name": "KUBERNETES_SERVICE_HOST", "value": "me"})
        assert variables["HOME"] == "/"
        assert variables["KUBERNETES_SERVICE_HOST"] == "me"

    def test_expands_earlier_entries_and_service_variables(self) -> None:
        variables = env(
            {"name": "A", "value": "a"},
            {"name": "B", "value": "$(A)-$(C)-$(KUBERNETES_SERVICE_HOST)"},
            {"name": "C", "value": "c"},
        )
        assert variables["B"] == "a-$(C)-10.96.0.1"

    def test_the_later_of_two_entries_wins(self) -> None:
        assert env({"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"})["A"] == "12"

    def test_without_a_value_is_empty(self) -> None:
        assert env({"name": "A"})["A"] == ""

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("metadata.name", "web-0"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "uid-1"),
            ("metadata.labels['app.kubernetes.io/name']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['note']", "n"),
            ("spec.nodeName", "node-1"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "192.168.100.11"),
            ("status.hostIPs", "192.168.100.11,fd00:1::11"),
            ("status.podIP", "10.244.1.2"),
            ("status.podIPs", "10.244.1.2,fd00::2"),
        ],
    )
    def test_of_the_downward_api(self, path: str, value: str) -> None:
        pod = replace(
            POD,
            ips=("10.244.1.2", "fd00::2"),
            labels={"app.kubernetes.io/name": "web"},
            annotations={"note": "n"},
            service_account="robot",
        )
        assert env({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}, pod=pod)["X"] == value

    def test_of_sources_that_are_not_there_is_not_set(self) -> None:
        entries = [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}}},
            {"name": "Y", "valueFrom": {"fieldRef": {"fieldPath": "spec.nonsense"}}},
        ]
        assert {"X", "Y"}.isdisjoint(env(*entries))

    def test_hostname_of_host_network_is_the_nodes(self) -> None:
        assert env(pod=replace(POD, host_network=True))["HOSTNAME"] == "node-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "a"),
        ("x$(A)y$(A)", "xaya"),
        ("$(Z)", "$(Z)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$$$$(A)", "$$(A)"),
        ("$A $ (A) $(", "$A $ (A) $("),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$$", "$"),
        ("$", "$"),
        ("$($(A)", "$($(A)"),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text, {"A": "a"}) == expected


def test_a_pod_that_mounts_its_token_finds_it_and_whom_to_trust() -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    facts = {"api_ca": "-----BEGIN CERTIFICATE-----\n", "token_key": "secret"}
    files = pod_files(snapshot(**facts), replace(POD, token=True))
    assert files[f"{folder}/namespace"] == "shop"
    assert files[f"{folder}/ca.crt"] == facts["api_ca"]
    assert subject("secret", files[f"{folder}/token"]) == "system:serviceaccount:shop:default"
    assert not any(path.startswith(folder) for path in pod_files(snapshot(**facts), POD))
    assert not any(path.startswith(folder) for path in pod_files(snapshot(), replace(POD, token=True)))


def test_what_is_cut_from_a_resolver_file_is_told() -> None:
    config = {"nameservers": [f"192.0.2.{n}" for n in range(4)], "searches": [f"s{n}.x" for n in range(40)]}
    told = {
        text.partition(" ")[0]: (reason, text)
        for reason, text in resolver_warnings(FACTS, replace(POD, dns_policy="None", dns_config=config))
    }
    assert told.keys() == {"Nameserver", "Search"}
    assert told["Nameserver"] == (
        "DNSConfigForming",
        "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line "
        "is: 192.0.2.0 192.0.2.1 192.0.2.2",
    )
    assert told["Search"][1].endswith("the applied search line is: " + " ".join(f"s{n}.x" for n in range(32)))


def test_a_missing_cluster_dns_is_told_to_those_who_asked_for_it() -> None:
    nobody = replace(FACTS, dns_addresses=())
    assert [reason for reason, _ in resolver_warnings(nobody, POD)] == ["MissingClusterDNS"]
    assert list(resolver_warnings(nobody, replace(POD, dns_policy="Default"))) == []
    assert list(resolver_warnings(FACTS, POD)) == []
