"""ClusterIP Services: who answers behind one, and who is seen."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    HTTP,
    IMAGE,
    PORT,
    answers,
    client,
    cluster_ip,
    is_not_served,
    is_silent,
    node_port,
    porter,
    refuses,
    seen_as,
    server,
    service,
    udp_port,
)


@services.case()
def a_service_follows_its_pods(lab: Lab) -> None:
    """A Service is answered by the pods it selects as they come and go, and refuses when none is left."""
    *_, made = lab.apply(client(), service())
    ip = cluster_ip(made)
    lab.step("no pod")
    refuses(lab, "client", ip, PORT)
    for pods, gone in ((["one"], ""), (["one", "two"], ""), (["two"], "one"), ([], "two")):
        lab.step(f"pods {pods}")
        if gone:
            lab.delete("Pod", gone, grace=0)
        else:
            lab.apply(server(pods[-1]))
        if pods:
            answers(lab, "client", ip, PORT, pods)
    refuses(lab, "client", ip, PORT)


@services.case()
def each_port_of_a_service_leads_to_its_own_target(lab: Lab) -> None:
    """A Service of several ports leads each to the target port that it names."""
    ports = [
        {"name": "first", "port": 80, "targetPort": 8001},
        {"name": "second", "port": 81, "targetPort": 8002},
    ]
    *_, made = lab.apply(porter("web", {8001: "one", 8002: "two"}), client(), service(ports=ports))
    for port, text in ((80, "one"), (81, "two")):
        answers(lab, "client", cluster_ip(made), port, {text}, text="/")


@services.case()
def ports_can_be_added_and_removed(lab: Lab) -> None:
    """A port that is added to a Service works, one that is removed stops, the others stay."""
    *_, made = lab.apply(server("web"), client(), service())
    ip = cluster_ip(made)
    answers(lab, "client", ip, 80, {"web"})
    lab.step("a second port")
    first = {"name": "http", "port": 80, "targetPort": HTTP}
    second = {"name": "other", "port": 81, "targetPort": HTTP}
    lab.patch("Service", "web", {"spec": {"ports": [first, second]}})
    answers(lab, "client", ip, 81, {"web"})
    answers(lab, "client", ip, 80, {"web"})
    lab.step("without the first")
    lab.patch("Service", "web", {"spec": {"ports": [second]}})
    is_not_served(lab, "client", ip, 80)
    answers(lab, "client", ip, 81, {"web"})


@services.case("nodes:2")
def the_clients_address_is_kept(lab: Lab) -> None:
    """A pod behind a cluster IP sees the client pod's own address, on the same node and from another one."""
    near, far = lab.node_name(0), lab.node_name(1)
    *_, made = lab.apply(
        server("web", node=near), client("near", node=near), client("far", node=far), service()
    )
    lab.ready()
    for name in ("near", "far"):
        seen, own = seen_as(lab, name, cluster_ip(made), PORT), lab.pod_ip(name)
        lab.check(seen == own, f"{name}, {own}, is seen as {seen}")


@services.case()
def a_node_is_masqueraded(lab: Lab) -> None:
    """What comes from a node to a cluster IP is masqueraded: the answer has to come back that way."""
    *_, made = lab.apply(server("web", node=lab.node_name(0)), service())
    answers(lab, f"node:{lab.node_name(0)}", cluster_ip(made), PORT, {"web"})


@services.case()
def a_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    """The only pod behind a Service reaches itself by it, and sees another address than its own."""
    *_, made = lab.apply(server("web"), service())
    answers(lab, "web", cluster_ip(made), PORT, {"web"})
    seen = seen_as(lab, "web", cluster_ip(made), PORT)
    lab.check(seen != lab.pod_ip("web"), f"it is seen as itself, {seen}")


@services.case()
def services_come_and_go_without_disturbing_others(lab: Lab) -> None:
    """Deleting a Service ends it alone; one that is made later works beside those that were there."""
    _, _, _, _, first, second = lab.apply(
        server("a", app="a"),
        server("b", app="b"),
        server("c", app="c"),
        client(),
        service("a", app="a"),
        service("b", app="b"),
    )
    answers(lab, "client", cluster_ip(first), PORT, {"a"})
    answers(lab, "client", cluster_ip(second), PORT, {"b"})
    lab.step("without the first")
    lab.delete("Service", "a")
    is_not_served(lab, "client", cluster_ip(first), PORT)
    answers(lab, "client", cluster_ip(second), PORT, {"b"})
    lab.step("with a third")
    (third,) = lab.apply(service("c", app="c"))
    answers(lab, "client", cluster_ip(third), PORT, {"c"})
    answers(lab, "client", cluster_ip(second), PORT, {"b"})


@services.case()
def a_service_can_be_made_again(lab: Lab) -> None:
    """A Service that is deleted and made again under the same name and address works again."""
    *_, made = lab.apply(server("web"), client(), service())
    ip = cluster_ip(made)
    answers(lab, "client", ip, PORT, {"web"})
    lab.delete("Service", "web")
    is_not_served(lab, "client", ip, PORT)
    lab.apply(service(clusterIP=ip))
    answers(lab, "client", ip, PORT, {"web"})


@services.case()
def one_port_number_serves_two_protocols(lab: Lab) -> None:
    """TCP and UDP on the same port number of a Service are two ports, each with its own target."""
    ports = [{"name": "http", "port": PORT, "targetPort": HTTP}, udp_port()]
    *_, made = lab.apply(server("web"), client(), service(ports=ports))
    answers(lab, "client", cluster_ip(made), PORT, {"web"})
    answers(lab, "client", cluster_ip(made), PORT, {"web"}, language="udp")


@services.case("sctp")
def sctp_is_served(lab: Lab) -> None:
    """A Service of an SCTP port leads to the pods behind it."""
    pod = server("web", container={"args": ["netexec", "--sctp-port=8082"]})
    ports = [{"name": "sctp", "port": PORT, "targetPort": 8082, "protocol": "SCTP"}]
    *_, made = lab.apply(pod, client(), service(ports=ports))
    answers(lab, "client", cluster_ip(made), PORT, {"echo"}, language="sctp", text="echo")


@services.case()
def a_named_target_port_is_each_pods_own(lab: Lab) -> None:
    """A targetPort that is a name leads to each pod's port of that name, whatever its number."""
    ports = [{"name": "http", "port": PORT, "targetPort": "http"}]
    *_, made = lab.apply(server("one", http=8080), server("two", http=9090), client(), service(ports=ports))
    answers(lab, "client", cluster_ip(made), PORT, {"one", "two"})


@services.case()
def a_sidecars_port_is_served(lab: Lab) -> None:
    """A port of a restartable init container is a port of its pod, by number and by name."""
    sidecar = {
        "name": "sidecar",
        "image": IMAGE,
        "restartPolicy": "Always",
        "args": ["netexec", "--http-port=9191", "--udp-port=9192"],
        "ports": [{"name": "side", "containerPort": 9191}],
    }
    ports = [
        {"name": "name", "port": 80, "targetPort": "side"},
        {"name": "number", "port": 81, "targetPort": 9191},
    ]
    pod = client("web", initContainers=[sidecar])
    *_, made = lab.apply(pod, client(), service(ports=ports))
    for port in (80, 81):
        answers(lab, "client", cluster_ip(made), port, {"web"})


@services.case()
def without_endpoints_it_is_refused(lab: Lab) -> None:
    """A Service without endpoints refuses TCP and UDP from pods and nodes, on its address and node port."""
    ports = [{"name": "http", "port": PORT, "targetPort": HTTP}, udp_port()]
    *_, made = lab.apply(client(), service(type="NodePort", ports=ports))
    lab.ready()
    node = f"node:{lab.node_name(0)}"
    for source in ("client", node):
        refuses(lab, source, cluster_ip(made), PORT)
        refuses(lab, source, cluster_ip(made), PORT, language="udp")
    refuses(lab, "client", lab.node_ip(0), node_port(made))


@services.case("outside")
def without_endpoints_a_node_port_is_refused_outside(lab: Lab) -> None:
    """The node port of a Service without endpoints refuses a client outside the cluster."""
    (made,) = lab.apply(service(type="NodePort"))
    refuses(lab, lab.outside, lab.node_ip(0), node_port(made))


@services.case("mode:nftables")
def a_port_that_no_service_has_is_refused(lab: Lab) -> None:
    """In nftables mode a port that the Service of a cluster IP does not have is refused to pods and nodes."""
    *_, made = lab.apply(server("web"), client(), service())
    answers(lab, "client", cluster_ip(made), PORT, {"web"})
    refuses(lab, "client", cluster_ip(made), PORT + 1)
    refuses(lab, f"node:{lab.node_name(0)}", cluster_ip(made), PORT + 1)


@services.case("mode:nftables")
def an_address_that_no_service_has_is_dropped(lab: Lab) -> None:
    """In nftables mode packets to an address of the Service range that no Service has are dropped."""
    *_, made = lab.apply(server("web"), client(), service())
    ip = cluster_ip(made)
    answers(lab, "client", ip, PORT, {"web"})
    lab.delete("Service", "web")
    is_silent(lab, "client", ip, PORT)
