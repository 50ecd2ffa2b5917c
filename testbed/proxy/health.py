"""What a kube-proxy listens on beside its rules: its own health, and health check node ports.

In every mode that writes rules. Sources: ``pkg/proxy/healthcheck/{service_health,proxy_health}.go``,
``pkg/proxy/endpointschangetracker.go`` (LocalReadyEndpoints).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from testbed.control.snapshot import Node, Service, Snapshot
from testbed.proxy import Proxier
from testbed.proxy.parameters import PRIMARY
from testbed.proxy.services import is_for_others
from testbed.state import Listener

HEALTHZ_PORT = 10256
"""healthzBindAddress of kube-proxy's configuration."""


def listeners(snapshot: Snapshot, node: Node, proxier: Proxier) -> tuple[Listener, ...]:
    """The ports of ``node`` that its kube-proxy answers on; none where the mode has no kube-proxy."""
    if "nodePortAddresses" not in proxier.parameters:
        return ()
    addresses = _addresses(snapshot, node, proxier)
    checked = (
        service
        for service in snapshot.services.values()
        if is_checked(service) and not is_for_others(service.labels)
    )
    return (
        Listener(
            "kube-proxy", "TCP", HEALTHZ_PORT, "kubeproxy", {"eligible": str(not node.to_be_deleted).lower()}
        ),
        *(_check(snapshot, node, service, address) for service in checked for address in addresses),
    )


def is_checked(service: Service) -> bool:
    """Whether load balancers ask each node for endpoints of the Service."""
    return service.type == "LoadBalancer" and service.external_local and service.health_check_node_port > 0


def local_endpoints(snapshot: Snapshot, node: Node, service: Service) -> int:
    """How many ready endpoints of the Service, by their addresses, are on ``node``."""
    return len(
        {
            endpoint.addresses[0]
            for each in snapshot.slices.get((service.namespace, service.name), ())
            if each.address_type in service.families[:1]
            for endpoint in each.endpoints
            if endpoint.ready and endpoint.node == node.name
        }
    )


def _check(snapshot: Snapshot, node: Node, service: Service, address: str) -> Listener:
    options = {
        "namespace": service.namespace,
        "service": service.name,
        "endpoints": str(local_endpoints(snapshot, node, service)),
    }
    port = service.health_check_node_port
    return Listener("kube-proxy", "TCP", port, "kubeproxy", options, address)


def _addresses(snapshot: Snapshot, node: Node, proxier: Proxier) -> tuple[str, ...]:
    """Where health check node ports answer: the addresses that node ports answer on; "": all of them."""
    given = snapshot.facts.proxy_options.get("nodePortAddresses")
    asked = tuple(proxier.parameters["nodePortAddresses"].default if given is None else given)
    if PRIMARY in asked:
        return node.addresses
    if not asked or any(ip_network(cidr).prefixlen == 0 for cidr in asked):
        return ("",)
    return tuple(_matching((*node.addresses, "127.0.0.1"), asked))


def _matching(addresses: tuple[str, ...], ranges: tuple[str, ...]) -> Iterator[str]:
    for address in addresses:
        if any(ip_address(address) in ip_network(cidr) for cidr in ranges):
            yield address
