"""UDP through Services: a client that keeps its port follows the servers, although conntrack knows old ones.

Without anybody's doing an entry of conntrack would send such a client's packets to a pod that is gone, for as
long as they come. Source: kubernetes ``test/e2e/network/conntrack.go``, ``pkg/proxy/conntrack/cleanup.go``.
"""

from __future__ import annotations

from typing import Any

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    IMAGE,
    PORT,
    UDP,
    Object,
    client,
    cluster_ip,
    node_port,
    server,
    service,
    udp_port,
)

CLIENT_PORT = 12345
"""The one port that a case's client sends from, so that all it sends is one flow to conntrack."""


def _hears(lab: Lab, ip: str, port: int, name: str, text: str = "hostname") -> None:
    """Wait until the client, always from the same port, is answered by ``name``."""

    def problem() -> str:
        (heard,) = lab.ask(
            "client", ip, port, language="udp", text=text, source_port=CLIENT_PORT, timeout=0.4
        )
        fine = heard.verdict == "ok" and heard.answer == name
        return "" if fine else f"the client hears {heard} from {ip}:{port}, expected '{name}'"

    lab.until(problem)


def _udp_service(**spec: Any) -> Object:
    return service(ports=[udp_port()], **spec)


def _follows(lab: Lab, ip: str, port: int, node: str) -> None:
    """Replace the server that a client talks to, and check that the client hears the new one."""
    lab.step("the first server")
    lab.apply(server("one", node=node))
    _hears(lab, ip, port, "one")
    lab.step("the second server in its place")
    lab.apply(server("two", node=node))
    lab.ready()
    lab.delete("Pod", "one", grace=0)
    _hears(lab, ip, port, "two")


@services.case("nodes:2")
def udp_follows_the_servers_of_a_cluster_ip(lab: Lab) -> None:
    """A UDP client of a cluster IP that keeps its port is answered by the server that follows its first."""
    *_, made = lab.apply(client(node=lab.node_name(0)), _udp_service())
    _follows(lab, cluster_ip(made), PORT, lab.node_name(1))


@services.case("nodes:2")
def udp_follows_the_servers_of_a_node_port(lab: Lab) -> None:
    """The same by a node port."""
    *_, made = lab.apply(client(node=lab.node_name(0)), _udp_service(type="NodePort"))
    _follows(lab, lab.node_ip(1), node_port(made), lab.node_name(1))


@services.case()
def udp_follows_the_servers_of_the_node(lab: Lab) -> None:
    """The same with internalTrafficPolicy Local, where servers and client share a node."""
    node = lab.node_name(0)
    *_, made = lab.apply(client(node=node), _udp_service(internalTrafficPolicy="Local"))
    _follows(lab, cluster_ip(made), PORT, node)


@services.case("nodes:2", alone=True)
def udp_follows_the_servers_for_host_network_pods(lab: Lab) -> None:
    """The same for a client in its node's own network."""
    *_, made = lab.apply(client(node=lab.node_name(0), hostNetwork=True), _udp_service())
    _follows(lab, cluster_ip(made), PORT, lab.node_name(1))


@services.case()
def udp_reaches_a_server_that_becomes_ready(lab: Lab) -> None:
    """A UDP client that began while no server was ready is answered when one is."""
    unready = {"testbed/ready": "false"}
    *_, made = lab.apply(server("web", annotations=unready), client(), _udp_service())
    ip = cluster_ip(made)
    lab.step("not ready")
    for _ in range(3):
        (heard,) = lab.ask("client", ip, PORT, language="udp", text="hostname", source_port=CLIENT_PORT)
        lab.check(heard.verdict != "ok", f"the client hears {heard} from a server that is not ready")
    lab.step("ready")
    lab.patch("Pod", "web", {"metadata": {"annotations": {"testbed/ready": None}}})
    _hears(lab, ip, PORT, "web")


@services.case()
def udp_follows_a_target_port_that_changes(lab: Lab) -> None:
    """A UDP client that keeps its port is answered by the new target port of a Service."""
    pod = server("web", udp=UDP)
    pod["spec"]["containers"].append(
        {"name": "other", "image": IMAGE, "args": ["serve-hostname", "--http=false", "--udp", "--port=8091"]}
    )
    *_, made = lab.apply(pod, client(), _udp_service())
    ip = cluster_ip(made)
    _hears(lab, ip, PORT, "marco", text="marco")  # the first server gives back what it gets
    lab.step("another target port")
    lab.patch("Service", "web", {"spec": {"ports": [udp_port(target=8091)]}})
    _hears(lab, ip, PORT, "web", text="marco")  # the other one says its name, whatever it gets
