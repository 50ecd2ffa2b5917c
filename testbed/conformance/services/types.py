"""The types of Services: node ports, external addresses, and changes from one type to another."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    HTTP,
    PORT,
    Object,
    answers,
    client,
    cluster_ip,
    is_not_served,
    node_port,
    server,
    service,
    udp_port,
)


@services.case("nodes:2")
def a_node_port_answers_on_every_node(lab: Lab) -> None:
    """A node port answers on every node's address, to pods and nodes, wherever the pods behind it are."""
    near, far = lab.node_name(0), lab.node_name(1)
    pods = (server("one", node=near), server("two", node=far), client(node=near))
    *_, made = lab.apply(*pods, service(type="NodePort"))
    for number in range(2):
        for source in ("client", f"node:{near}"):
            answers(lab, source, lab.node_ip(number), node_port(made), {"one", "two"})


@services.case("nodes:2", "outside")
def a_node_port_answers_the_outside(lab: Lab) -> None:
    """A node port answers a client outside the cluster on every node."""
    pods = (server("one", node=lab.node_name(0)), server("two", node=lab.node_name(1)))
    *_, made = lab.apply(*pods, service(type="NodePort"))
    for number in range(2):
        answers(lab, lab.outside, lab.node_ip(number), node_port(made), {"one", "two"})


@services.case()
def an_external_ip_that_no_node_has_is_served(lab: Lab) -> None:
    """An external IP of a Service is served on the nodes although none of them has it."""
    ip = "203.0.113.250"
    lab.apply(server("one"), server("two"), client(), service(externalIPs=[ip]))
    answers(lab, "client", ip, PORT, {"one", "two"})
    answers(lab, f"node:{lab.node_name(0)}", ip, PORT, {"one", "two"})


@services.case()
def one_node_port_serves_two_protocols(lab: Lab) -> None:
    """The same node port number may be asked for over TCP and over UDP."""
    http: Object = {"name": "http", "port": PORT, "targetPort": HTTP}
    *_, made = lab.apply(server("web"), client(), service(type="NodePort", ports=[http]))
    number = node_port(made)
    lab.patch(
        "Service",
        "web",
        {"spec": {"ports": [{**http, "nodePort": number}, {**udp_port(), "nodePort": number}]}},
    )
    answers(lab, "client", lab.node_ip(0), number, {"web"})
    answers(lab, "client", lab.node_ip(0), number, {"web"}, language="udp")


EXTERNAL_NAME: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"type": "ExternalName", "externalName": "example.com"},
}

PORTS: Object = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": PORT, "targetPort": HTTP}]}


@services.case()
def an_external_name_can_become_a_cluster_ip(lab: Lab) -> None:
    """A Service of type ExternalName that becomes ClusterIP gets an address and is served."""
    lab.apply(server("web"), client(), EXTERNAL_NAME)
    made = lab.patch("Service", "web", {"spec": {"type": "ClusterIP", "externalName": None, **PORTS}})
    answers(lab, "client", cluster_ip(made), PORT, {"web"})


@services.case()
def an_external_name_can_become_a_node_port(lab: Lab) -> None:
    """A Service of type ExternalName that becomes NodePort is served on its address and on the nodes."""
    lab.apply(server("web"), client(), EXTERNAL_NAME)
    made = lab.patch("Service", "web", {"spec": {"type": "NodePort", "externalName": None, **PORTS}})
    answers(lab, "client", cluster_ip(made), PORT, {"web"})
    answers(lab, "client", lab.node_ip(0), node_port(made), {"web"})


@services.case()
def a_cluster_ip_can_become_an_external_name(lab: Lab) -> None:
    """A Service of type ClusterIP that becomes ExternalName gives its address up."""
    *_, made = lab.apply(server("web"), client(), service())
    ip = cluster_ip(made)
    answers(lab, "client", ip, PORT, {"web"})
    changed = _to_external_name(lab)
    lab.check("clusterIP" not in changed["spec"] or not changed["spec"]["clusterIP"], "it keeps its address")
    is_not_served(lab, "client", ip, PORT)


@services.case()
def a_node_port_can_become_an_external_name(lab: Lab) -> None:
    """A Service of type NodePort that becomes ExternalName is served nowhere any more."""
    *_, made = lab.apply(server("web"), client(), service(type="NodePort"))
    ip, port = cluster_ip(made), node_port(made)
    answers(lab, "client", lab.node_ip(0), port, {"web"})
    _to_external_name(lab)
    is_not_served(lab, "client", lab.node_ip(0), port)
    is_not_served(lab, "client", ip, PORT)


def _to_external_name(lab: Lab) -> Object:
    gone = {"clusterIP": None, "clusterIPs": None, "ports": None, "selector": None}
    return lab.patch(
        "Service", "web", {"spec": {"type": "ExternalName", "externalName": "example.com", **gone}}
    )


@services.case()
def a_cluster_ip_can_become_a_node_port_and_back(lab: Lab) -> None:
    """A Service gets a node port with its type, keeps its address, and loses the port with the type."""
    *_, made = lab.apply(server("web"), client(), service())
    ip = cluster_ip(made)
    port = node_port(lab.patch("Service", "web", {"spec": {"type": "NodePort"}}))
    answers(lab, "client", lab.node_ip(0), port, {"web"})
    back = {"type": "ClusterIP", "ports": [{"name": "http", "port": PORT, "targetPort": HTTP}]}
    lab.patch("Service", "web", {"spec": back})
    is_not_served(lab, "client", lab.node_ip(0), port)
    answers(lab, "client", ip, PORT, {"web"})


@services.case()
def a_node_port_is_given_once(lab: Lab) -> None:
    """A node port that is taken is refused to a second Service, and free again when the first one goes."""
    (made,) = lab.apply(service("first", type="NodePort"))
    port = node_port(made)
    ports = [{"name": "http", "port": PORT, "targetPort": HTTP, "nodePort": port}]
    second = service("second", type="NodePort", ports=ports)
    why = lab.refused(lambda: lab.create(second))
    lab.check("provided port is already allocated" in why, f"refused with: {why}")
    lab.delete("Service", "first")
    lab.check(node_port(lab.create(second)) == port, "the port is not given again")


@services.case()
def a_node_port_out_of_range_is_refused(lab: Lab) -> None:
    """A node port outside 30000-32767 is refused, of a new Service and of one that is there."""
    ports = [{"name": "http", "port": PORT, "targetPort": HTTP, "nodePort": 29999}]
    why = lab.refused(lambda: lab.create(service(type="NodePort", ports=ports)))
    lab.check("not in the valid range" in why, f"refused with: {why}")
    lab.apply(service(type="NodePort"))
    why = lab.refused(lambda: lab.patch("Service", "web", {"spec": {"ports": ports}}))
    lab.check("not in the valid range" in why, f"refused with: {why}")
