"""What kube-system starts with for DNS, and what of it is on nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.cluster.nameserver import turning_rules
from testbed.control.containers import listeners, nameserver
from testbed.control.snapshot import ClusterFacts, Container, ContainerPort, Pod
from testbed.control.view import typed_pod
from testbed.dns.dnsmasq import FIRST_PORT, MIN_PORT
from testbed.dns.objects import objects
from testbed.dns.servers import nameservers, node_device
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store
from testbed.state import NameFiles

FACTS = ClusterFacts(
    "cluster.local",
    ("10.244.0.0/16",),
    ("10.96.0.0/12",),
    (),
    ("10.96.0.10",),
    upstream_dns=("203.0.113.53",),
)
CACHED = replace(FACTS, node_dns="169.254.20.10")


def dns_pod(image: str) -> Pod:
    ports = (ContainerPort(53, "dns", "UDP"), ContainerPort(53, "dns-tcp"), ContainerPort(9153, "metrics"))
    return Pod(
        "u", "kube-system", "p", "node-1", ("10.244.1.2",), containers=(Container("c", image, ports=ports),)
    )


def test_the_service_has_the_tenth_address_and_kubeadms_ports() -> None:
    service, deployment = objects(["10.96.0.10"], ["IPv4"], replicas=3, node_local=False)
    assert service["spec"]["clusterIP"] == "10.96.0.10"
    ports = [(one["name"], one["port"], one["protocol"]) for one in service["spec"]["ports"]]
    assert ports == [("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")]
    assert deployment["spec"]["replicas"] == 3
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("node_local", [False, True])
def test_the_api_takes_all_of_them(node_local: bool) -> None:
    from ipaddress import ip_network

    store = Store(ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112"))))
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}, trusted=True)
    families = ["IPv4", "IPv6"]
    made = [
        store.create(obj)
        for obj in objects(["10.96.0.10", "fd00:10:96::a"], families, replicas=2, node_local=node_local)
    ]
    assert [one["kind"] for one in made] == ["Service", "Deployment", *(["DaemonSet"] if node_local else [])]
    assert made[0]["spec"]["clusterIPs"] == ["10.96.0.10", "fd00:10:96::a"]


def test_their_containers_are_servers_by_their_images() -> None:
    _, deployment, caches = objects(["10.96.0.10"], ["IPv4"], replicas=2, node_local=True)
    kinds = []
    for workload in (deployment, caches):
        template = workload["spec"]["template"]
        spec = {**template["spec"], "nodeName": "node-1"}
        obj = {
            "metadata": {"uid": "u", "namespace": "n", "name": "p"},
            "spec": spec,
            "status": {"podIPs": []},
        }
        kinds += [nameserver(container) for container in typed_pod(obj).containers]
    assert kinds == ["cluster", "node"]
    assert nameserver(Container("c", "example.com/testbed/kube-dns:1")) == "cluster"
    assert nameserver(Container("c", "kube-dns")) == ""


def test_of_a_servers_ports_only_its_metrics_are_ours_to_answer() -> None:
    (listener,) = listeners(dns_pod("testbed/kube-dns"))
    assert (listener.port, listener.app) == (9153, "http")


def test_the_clusters_server_is_fed_and_the_nodes_cache_reads_what_never_changes() -> None:
    assert nameservers(FACTS, dns_pod("testbed/kube-dns")) == {"c": NameFiles()}
    assert nameservers(FACTS, dns_pod("nginx")) == {}
    (files,) = nameservers(CACHED, dns_pod("testbed/node-local-dns")).values()
    lines = files.servers["front"].splitlines()
    assert {"listen-address=169.254.20.10", "server=/cluster.local/10.96.0.10", "server=203.0.113.53"} <= {
        *lines
    }


def test_the_caches_address_is_on_nodes_that_have_one() -> None:
    assert list(node_device(CACHED).addresses) == [("nodelocaldns", "169.254.20.10/32")]
    assert node_device(FACTS).links == {}


def test_port_53_is_turned_and_answers_come_back_from_it() -> None:
    rules = turning_rules(1105)
    assert "udp dport 53 notrack udp dport set 1105" in rules
    assert "tcp dport 53 redirect to :1105" in rules
    assert "udp sport 1100-1115 notrack udp sport set 53" in rules


def test_no_question_ever_leaves_from_a_servers_port() -> None:
    assert max(FIRST_PORT.values()) + 100 < MIN_PORT
