"""Services that are not the proxy's: labels that say so."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    PORT,
    answers,
    client,
    cluster_ip,
    is_not_served,
    server,
    service,
)


@services.case()
def another_proxys_services_are_left_alone(lab: Lab) -> None:
    """A Service with the label service.kubernetes.io/service-proxy-name is not served while it has it."""
    _is_left_alone(lab, "service.kubernetes.io/service-proxy-name", "another")


@services.case()
def services_that_are_labelled_headless_are_left_alone(lab: Lab) -> None:
    """A Service with the label service.kubernetes.io/headless is not served while it has it."""
    _is_left_alone(lab, "service.kubernetes.io/headless", "")


def _is_left_alone(lab: Lab, label: str, value: str) -> None:
    *_, made = lab.apply(server("web"), client(), service(labels={label: value}))
    ip = cluster_ip(made)
    lab.ready()
    lab.step("labelled from the start")
    lab.stays(lambda: _served(lab, ip), 1.5)
    lab.step("without the label")
    lab.patch("Service", "web", {"metadata": {"labels": {label: None}}})
    answers(lab, "client", ip, PORT, {"web"})
    lab.step("labelled again")
    lab.patch("Service", "web", {"metadata": {"labels": {label: value}}})
    is_not_served(lab, "client", ip, PORT)


def _served(lab: Lab, ip: str) -> str:
    (heard,) = lab.ask("client", ip, PORT, timeout=0.3)
    return f"client hears {heard} from {ip}:{PORT}" if heard.verdict == "ok" else ""
