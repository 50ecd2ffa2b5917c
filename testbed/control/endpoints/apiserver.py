"""The endpoints of ``default/kubernetes``, which the API server itself writes.

Source: ``pkg/controlplane/reconcilers/endpointsadapter.go``: neither object says who manages it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.control.endpoints.legacy import SKIP_MIRROR
from testbed.control.endpoints.slices import SERVICE_NAME

Object = dict[str, Any]

NAMESPACE, NAME = "default", "kubernetes"


def service_cidr(cidrs: Sequence[str], now: str) -> Object:
    """The ServiceCIDR of the ranges an API server was started with, ready; now: a timestamp.

    Sources: ``pkg/controlplane/controller/defaultservicecidr``, ``pkg/controller/servicecidrs``.
    """
    ready = {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": now,
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": NAME, "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": list(cidrs)},
        "status": {"conditions": [ready]},
    }


def ip_address(address: str, namespace: str, service: str) -> Object:
    """The object that says whose an address of a service range is.

    Source: ``pkg/registry/core/service/ipallocator/ipallocator.go`` (createIPAddress).
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": address,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv6" if ":" in address else "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    }


def objects(addresses: Sequence[str], families: Sequence[str], port: int) -> list[Object]:
    """The Endpoints object and the slices of an API server at these addresses.

    families: ``IPv4``, ``IPv6`` in the order of the cluster's service ranges; the second one's slice is
    called ``kubernetes-v6`` or ``kubernetes-v4``.
    """
    listed = {"name": "https", "port": port, "protocol": "TCP"}
    made: list[Object] = []
    for family in families:
        own = [address for address in addresses if (":" in address) == (family == "IPv6")]
        if not own:
            continue
        if not made:
            made.append(
                {
                    "apiVersion": "v1",
                    "kind": "Endpoints",
                    "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {SKIP_MIRROR: "true"}},
                    "subsets": [{"addresses": [{"ip": address} for address in own], "ports": [listed]}],
                }
            )
        made.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": NAME if family == families[0] else f"{NAME}-v{family[-1]}",
                    "namespace": NAMESPACE,
                    "labels": {SERVICE_NAME: NAME},
                },
                "addressType": family,
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in own],
                "ports": [listed],
            }
        )
    return made
