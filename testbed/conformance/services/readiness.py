"""Which pods answer: those that are ready; else those that end and still serve."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    LINGERING,
    PORT,
    UNREADY,
    answers,
    client,
    cluster_ip,
    ending,
    node_port,
    refuses,
    server,
    service,
)


@services.case()
def pods_that_are_not_ready_get_nothing(lab: Lab) -> None:
    """A pod whose readiness probe fails gets no traffic of a Service, unless the Service publishes it."""
    *_, made = lab.apply(server("web", container=UNREADY), client(), service())
    refuses(lab, "client", cluster_ip(made), PORT)
    lab.step("published")
    lab.patch("Service", "web", {"spec": {"publishNotReadyAddresses": True}})
    answers(lab, "client", cluster_ip(made), PORT, {"web"})


@services.case()
def ready_pods_come_before_ending_ones(lab: Lab) -> None:
    """While a ready pod is there, one that ends gets no new connections."""
    *_, made = lab.apply(server("old", **LINGERING), server("new"), client(), service())
    answers(lab, "client", cluster_ip(made), PORT, {"old", "new"})
    with ending(lab, "old"):
        answers(lab, "client", cluster_ip(made), PORT, {"new"})


@services.case("nodes:2")
def ending_pods_answer_when_no_other_is_left(lab: Lab) -> None:
    """Where no pod is ready, those that end and still serve are used (internalTrafficPolicy Cluster)."""
    pod = server("web", node=lab.node_name(1), **LINGERING)
    *_, made = lab.apply(pod, client(node=lab.node_name(0)), service())
    answers(lab, "client", cluster_ip(made), PORT, {"web"})
    with ending(lab, "web"):
        _wait_terminating(lab)
        lab.stays(lambda: _unheard(lab, "client", cluster_ip(made), PORT), 2.0)
    refuses(lab, "client", cluster_ip(made), PORT)


@services.case("nodes:2")
def ending_local_pods_answer_under_internal_policy_local(lab: Lab) -> None:
    """With internalTrafficPolicy Local an ending pod of the node is used before a ready one elsewhere."""
    pods = (server("near", node=lab.node_name(0), **LINGERING), server("far", node=lab.node_name(1)))
    *_, made = lab.apply(*pods, client(node=lab.node_name(0)), service(internalTrafficPolicy="Local"))
    answers(lab, "client", cluster_ip(made), PORT, {"near"})
    with ending(lab, "near"):
        _wait_terminating(lab)
        lab.stays(lambda: _unheard(lab, "client", cluster_ip(made), PORT, "near"), 2.0)


@services.case("nodes:2", "outside")
def ending_pods_answer_under_external_policy_cluster(lab: Lab) -> None:
    """With externalTrafficPolicy Cluster a node port falls back to pods that end, on any node."""
    *_, made = lab.apply(server("web", node=lab.node_name(1), **LINGERING), service(type="NodePort"))
    answers(lab, lab.outside, lab.node_ip(0), node_port(made), {"web"})
    with ending(lab, "web"):
        _wait_terminating(lab)
        lab.stays(lambda: _unheard(lab, lab.outside, lab.node_ip(0), node_port(made)), 2.0)


@services.case("nodes:2", "outside")
def ending_local_pods_answer_under_external_policy_local(lab: Lab) -> None:
    """With externalTrafficPolicy Local a node port falls back to ending pods of the same node."""
    pods = (server("near", node=lab.node_name(0), **LINGERING), server("far", node=lab.node_name(1)))
    *_, made = lab.apply(*pods, service(type="NodePort", externalTrafficPolicy="Local"))
    answers(lab, lab.outside, lab.node_ip(0), node_port(made), {"near"})
    with ending(lab, "near"):
        _wait_terminating(lab)
        lab.stays(lambda: _unheard(lab, lab.outside, lab.node_ip(0), node_port(made), "near"), 2.0)


def _wait_terminating(lab: Lab) -> None:
    """Wait until an EndpointSlice says that an endpoint terminates and serves."""

    def problem() -> str:
        conditions = [
            endpoint.get("conditions") or {}
            for listed in lab.objects("EndpointSlice")
            for endpoint in listed.get("endpoints") or ()
        ]
        found = any(each.get("terminating") and each.get("serving") for each in conditions)
        return "" if found else f"no endpoint terminates and serves: {conditions}"

    lab.until(problem)


def _unheard(lab: Lab, source: str, ip: str, port: int, name: str = "web") -> str:
    """What is wrong with one answer, that of ``name``."""
    (heard,) = lab.ask(source, ip, port)
    fine = heard.verdict == "ok" and heard.answer == name
    return "" if fine else f"{source} hears {heard} from {ip}:{port} while {name} ends"
