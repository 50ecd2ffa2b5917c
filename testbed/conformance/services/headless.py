"""Services without an address: no proxy touches them."""

from __future__ import annotations

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import HTTP, answers, client, server, service


@services.case()
def a_headless_service_lists_its_pods_and_has_no_address(lab: Lab) -> None:
    """A headless Service has no cluster IP; its EndpointSlice names the pods, which answer themselves."""
    lab.apply(server("one"), server("two"), client(), service(clusterIP="None"))
    lab.ready()
    lab.check(lab.get("Service", "web")["spec"]["clusterIP"] == "None", "it has a cluster IP")
    (listed,) = lab.objects("EndpointSlice", "kubernetes.io/service-name=web")
    addresses = {address for endpoint in listed["endpoints"] for address in endpoint["addresses"]}
    ips = {lab.pod_ip(name): name for name in ("one", "two")}
    lab.check(addresses == set(ips), f"the slice lists {sorted(addresses)}, the pods have {sorted(ips)}")
    for ip, name in ips.items():
        answers(lab, "client", ip, HTTP, {name})
