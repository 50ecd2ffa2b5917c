"""Where traffic may go and as whom it is seen: traffic policies, load balancers, topology."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    HTTP,
    LINGERING,
    PORT,
    answers,
    client,
    cluster_ip,
    ending,
    is_silent,
    node_port,
    seen_as,
    server,
    service,
    vip,
)

LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}


@services.case("nodes:2")
def internal_policy_local_stays_on_the_node(lab: Lab) -> None:
    """With internalTrafficPolicy Local pods reach the servers of their own node; without any, nothing."""
    here, there = lab.node_name(0), lab.node_name(1)
    pods = (server("one", node=here), client("near", node=here), client("far", node=there))
    *_, made = lab.apply(*pods, service(internalTrafficPolicy="Local"))
    ip = cluster_ip(made)
    answers(lab, "near", ip, PORT, {"one"})
    is_silent(lab, "far", ip, PORT)
    lab.step("a server on the other node too")
    lab.apply(server("two", node=there))
    answers(lab, "far", ip, PORT, {"two"})
    answers(lab, "near", ip, PORT, {"one"})


@services.case("nodes:2")
def internal_policy_local_holds_for_host_network_pods(lab: Lab) -> None:
    """With internalTrafficPolicy Local the same holds for pods in their node's own network."""
    here, there = lab.node_name(0), lab.node_name(1)
    pods = (
        server("one", node=here),
        client("near", node=here, hostNetwork=True),
        client("far", node=there, hostNetwork=True),
    )
    *_, made = lab.apply(*pods, service(internalTrafficPolicy="Local"))
    answers(lab, "near", cluster_ip(made), PORT, {"one"})
    is_silent(lab, "far", cluster_ip(made), PORT)


@services.case("nodes:2", "outside")
def external_policy_cluster_hides_the_client(lab: Lab) -> None:
    """With externalTrafficPolicy Cluster a server sees a node in place of the client outside."""
    *_, made = lab.apply(server("web", node=lab.node_name(1)), service(type="NodePort"))
    seen = seen_as(lab, lab.outside, lab.node_ip(0), node_port(made))
    own = str(lab.spec["external"][0]["address"])
    lab.check(seen not in own, f"the server sees the client's own address, {seen}")


@services.case("nodes:2", "outside")
def external_policy_local_shows_the_client(lab: Lab) -> None:
    """With externalTrafficPolicy Local a server sees the client's address, and other nodes say nothing."""
    fields = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    *_, made = lab.apply(server("web", node=lab.node_name(0)), service(**fields))
    seen = seen_as(lab, lab.outside, lab.node_ip(0), node_port(made))
    own = str(lab.spec["external"][0]["address"])
    lab.check(seen in own, f"the server sees {seen}, the client is {own}")
    is_silent(lab, lab.outside, lab.node_ip(1), node_port(made))


@services.case("nodes:2")
def external_policy_local_lets_the_cluster_itself_in(lab: Lab) -> None:
    """With externalTrafficPolicy Local pods and nodes reach a node port of a node that has no server."""
    here = lab.node_name(0)
    fields = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    *_, made = lab.apply(server("web", node=lab.node_name(1)), client(node=here), service(**fields))
    answers(lab, "client", lab.node_ip(0), node_port(made), {"web"})
    answers(lab, f"node:{here}", lab.node_ip(0), node_port(made), {"web"})


@services.case("nodes:2", "outside")
def a_load_balancer_spreads_over_all_servers(lab: Lab) -> None:
    """The address of a LoadBalancer Service is answered by all of its servers, outside and inside."""
    pods = (server("one", node=lab.node_name(0)), server("two", node=lab.node_name(1)), client())
    lab.apply(*pods, service(type="LoadBalancer"))
    ip = vip(lab)
    answers(lab, lab.outside, ip, PORT, {"one", "two"})
    answers(lab, "client", ip, PORT, {"one", "two"})


@services.case("nodes:2", "outside")
def a_local_load_balancer_keeps_the_client(lab: Lab) -> None:
    """With externalTrafficPolicy Local a load balancer asks only nodes with servers; they see the client."""
    lab.apply(server("web", node=lab.node_name(1)), service(**LOCAL))
    ip = vip(lab)
    answers(lab, lab.outside, ip, PORT, {"web"})
    lab.until(lambda: _unanswered(lab, ip))
    seen, own = seen_as(lab, lab.outside, ip, PORT), str(lab.spec["external"][0]["address"])
    lab.check(seen in own, f"the server sees {seen}, the client is {own}")


def _unanswered(lab: Lab, ip: str) -> str:
    heard = lab.ask(lab.outside, ip, PORT, count=20)
    lost = sum(one.verdict != "ok" for one in heard)
    return f"{lost} of {len(heard)} connections to {ip}:{PORT} fail" if lost else ""


@services.case("outside")
def source_ranges_close_a_load_balancer(lab: Lab) -> None:
    """A client outside loadBalancerSourceRanges hears nothing from the load balancer's address."""
    lab.apply(server("web"), service(type="LoadBalancer"))
    ip = vip(lab)
    answers(lab, lab.outside, ip, PORT, {"web"})
    lab.step("another range")
    lab.patch("Service", "web", {"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}})
    is_silent(lab, lab.outside, ip, PORT)
    lab.step("the client's range")
    lab.patch("Service", "web", {"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24", "203.0.113.0/24"]}})
    answers(lab, lab.outside, ip, PORT, {"web"})


@services.case("nodes:2", "outside")
def the_health_check_port_tells_who_has_servers(lab: Lab) -> None:
    """The healthCheckNodePort says 200 on nodes with a ready server and 503 elsewhere, ending ones aside."""
    *_, made = lab.apply(server("web", node=lab.node_name(0), **LINGERING), service(**LOCAL))
    port = int(made["spec"]["healthCheckNodePort"])
    lab.until(lambda: _health(lab, 0, port, "ok"))
    lab.until(lambda: _health(lab, 1, port, "status 503"))
    lab.step("only an ending server is left")
    with ending(lab, "web"):
        lab.until(lambda: _health(lab, 0, port, "status 503"))


def _health(lab: Lab, node: int, port: int, expected: str) -> str:
    (heard,) = lab.ask(lab.outside, lab.node_ip(node), port, text="/")
    if expected in (heard.verdict, heard.reason):
        return ""
    return f"{lab.node_name(node)} says {heard} on its health check port {port}, expected {expected}"


@services.case("nodes:2")
def traffic_can_prefer_the_same_node(lab: Lab) -> None:
    """With trafficDistribution PreferSameNode a pod reaches servers of its node, and others where none is."""
    here, there = lab.node_name(0), lab.node_name(1)
    pods = (server("one", node=here), server("two", node=there), client(node=here))
    *_, made = lab.apply(*pods, service(trafficDistribution="PreferSameNode"))
    answers(lab, "client", cluster_ip(made), PORT, {"one"})
    lab.step("no server on the node")
    lab.delete("Pod", "one", grace=0)
    answers(lab, "client", cluster_ip(made), PORT, {"two"})


@services.case("zones:2")
def traffic_can_prefer_the_same_zone(lab: Lab) -> None:
    """With trafficDistribution PreferSameZone a pod reaches servers of its zone, and others where none is."""
    here, there = lab.node_name(0), lab.node_of_another_zone(0)
    pods = (server("one", node=here), server("two", node=there), client(node=here))
    *_, made = lab.apply(*pods, service(trafficDistribution="PreferSameZone"))
    answers(lab, "client", cluster_ip(made), PORT, {"one"})
    lab.step("no server in the zone")
    lab.delete("Pod", "one", grace=0)
    answers(lab, "client", cluster_ip(made), PORT, {"two"})


@services.case("nodes:2")
def a_host_port_leads_to_its_pod(lab: Lab) -> None:
    """A pod's hostPort answers on its node's address, from other nodes, from pods and from itself."""
    here, there = lab.node_name(0), lab.node_name(1)
    ports = [{"containerPort": HTTP, "hostPort": 18080}]
    lab.apply(server("web", node=here, container={"ports": ports}), client(node=there))
    for source in ("client", "web", f"node:{there}", f"node:{here}"):
        answers(lab, source, lab.node_ip(0), 18080, {"web"})
