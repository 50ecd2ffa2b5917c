"""What containers are told of Services, against what a kubelet tells them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.control.envvars import ServiceLinks, links, variables
from testbed.control.podfiles import pod_env
from testbed.control.snapshot import ClusterFacts, Container, Pod, Service, ServicePort, Snapshot

FACTS = ClusterFacts("cluster.local", ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ())
API = Service("default", "kubernetes", cluster_ips=("10.96.0.1",), ports=(ServicePort(443, "https"),))
WEB = Service(
    "shop",
    "my-web",
    cluster_ips=("10.96.10.20", "fd00::20"),
    ports=(ServicePort(80, "http", target=8080, node_port=30080), ServicePort(53, "dns", "UDP")),
)
POD = Pod("uid-1", "shop", "web-0", "node-1", ("10.244.1.2",), containers=(Container("c", "busybox"),))


def snapshot(*services: Service) -> Snapshot:
    return Snapshot(FACTS, services={(one.namespace, one.name): one for one in services})


def told(pod: Pod, *services: Service) -> dict[str, str]:
    return {name: value for one in links(snapshot(*services), pod) for name, value in one.items()}


def test_a_service_with_two_named_ports_gives_thirteen_variables() -> None:
    assert variables(WEB) == {
        "MY_WEB_SERVICE_HOST": "10.96.10.20",
        "MY_WEB_SERVICE_PORT": "80",
        "MY_WEB_SERVICE_PORT_HTTP": "80",
        "MY_WEB_SERVICE_PORT_DNS": "53",
        "MY_WEB_PORT": "tcp://10.96.10.20:80",
        "MY_WEB_PORT_80_TCP": "tcp://10.96.10.20:80",
        "MY_WEB_PORT_80_TCP_PROTO": "tcp",
        "MY_WEB_PORT_80_TCP_PORT": "80",
        "MY_WEB_PORT_80_TCP_ADDR": "10.96.10.20",
        "MY_WEB_PORT_53_UDP": "udp://10.96.10.20:53",
        "MY_WEB_PORT_53_UDP_PROTO": "udp",
        "MY_WEB_PORT_53_UDP_PORT": "53",
        "MY_WEB_PORT_53_UDP_ADDR": "10.96.10.20",
    }


def test_an_ipv6_address_has_brackets_in_urls_only() -> None:
    made = variables(replace(API, cluster_ips=("fd00:10:96::1",)))
    assert made["KUBERNETES_PORT"] == "tcp://[fd00:10:96::1]:443"
    assert made["KUBERNETES_SERVICE_HOST"] == made["KUBERNETES_PORT_443_TCP_ADDR"] == "fd00:10:96::1"


def test_of_two_port_names_that_fold_to_one_variable_the_later_wins() -> None:
    ports = (ServicePort(1, "a-b"), ServicePort(2, "a_b".replace("_", "-")))
    assert variables(replace(WEB, ports=ports))["MY_WEB_SERVICE_PORT_A_B"] == "2"


def test_a_port_without_a_name_has_no_variable_of_its_name() -> None:
    assert [name for name in variables(replace(WEB, ports=(ServicePort(80),))) if "SERVICE" in name] == [
        "MY_WEB_SERVICE_HOST",
        "MY_WEB_SERVICE_PORT",
    ]


def test_services_of_the_own_namespace_and_the_api_are_told_others_never() -> None:
    other = replace(WEB, namespace="blue", name="other")
    names = told(POD, API, WEB, other)
    assert {name.partition("_SERVICE_HOST")[0] for name in names if name.endswith("_SERVICE_HOST")} == {
        "KUBERNETES",
        "MY_WEB",
    }


def test_without_service_links_only_the_api_is_told() -> None:
    pod = replace(POD, enable_service_links=False)
    own = replace(WEB, name="kubernetes")
    assert set(told(pod, API, WEB)) == set(variables(API))
    assert told(pod, API, own)["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"


def test_an_own_service_called_kubernetes_replaces_the_api() -> None:
    assert told(POD, API, replace(WEB, name="kubernetes"))["KUBERNETES_SERVICE_HOST"] == "10.96.10.20"


@pytest.mark.parametrize(
    "changed", [{"headless": True, "cluster_ips": ()}, {"type": "ExternalName", "cluster_ips": ()}]
)
def test_a_service_without_a_cluster_ip_is_not_told(changed: dict[str, object]) -> None:
    assert told(POD, replace(WEB, **changed)) == {}  # type: ignore[arg-type]


def test_the_users_variables_win_and_expand_the_services() -> None:
    entries = (
        {"name": "URL", "value": "http://$(MY_WEB_SERVICE_HOST)/$(NOT_THERE)"},
        {"name": "MY_WEB_SERVICE_PORT", "value": "mine"},
        {"name": "PORT", "value": "$(MY_WEB_SERVICE_PORT)"},
    )
    pod = replace(POD, containers=(Container("c", "busybox", env=entries),))
    env = pod_env(snapshot(API, WEB), pod)["c"]
    assert env["URL"] == "http://10.96.10.20/$(NOT_THERE)"
    assert (env["MY_WEB_SERVICE_PORT"], env["PORT"]) == ("mine", "mine")


def test_what_is_told_stays_the_same_object_while_it_is_the_same() -> None:
    kept = ServiceLinks()
    first = snapshot(API, WEB)
    one = kept.of(first, POD)
    assert kept.of(first, POD) is one
    assert kept.of(snapshot(API, WEB, replace(WEB, namespace="blue")), POD) is one
    more = kept.of(snapshot(API, WEB, replace(WEB, name="api")), POD)
    assert "API_SERVICE_HOST" in {name for service in more for name in service}
