"""A cluster spec as a document again: plain data, every default filled in, that loads to the same spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.spec.model import ClusterSpec, ExternalSpec, NodeSpec


def document(spec: ClusterSpec, links: dict[str, Any]) -> dict[str, Any]:
    """The whole document. links: ``topology.link`` and ``links`` as the user wrote them, units and all."""
    return {
        "apiVersion": "testbed/v1",
        "kind": "Cluster",
        "metadata": {"name": spec.name},
        "spec": {
            "nodes": _zones(spec.zones) | {"items": [_node(node) for node in spec.nodes]},
            "controlPlane": {
                "address": _one_or_more(spec.control_plane.addresses),
                "port": spec.control_plane.port,
            },
            "topology": {
                "builder": spec.topology.builder,
                "params": spec.topology.params,
                "link": _given(links["link"]),
                "links": [_given(rule) for rule in links["links"]],
            },
            "network": _network(spec),
            "dns": {
                "enabled": spec.dns.enabled,
                "replicas": spec.dns.replicas,
                "nodeLocal": spec.dns.node_local,
            },
            "kubelet": spec.kubelet,
            "external": [_external(host) for host in spec.external],
            "manifests": [str(path) for path in spec.manifests],
        },
    }


def _given(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def _zones(zones: Sequence[str]) -> dict[str, Any]:
    return {"zones": list(zones)} if zones else {}


def _node(node: NodeSpec) -> dict[str, Any]:
    return {
        "name": node.name,
        "address": _one_or_more(node.addresses),
        "podCIDR": _one_or_more(node.pod_cidrs),
        "zone": node.zone,
        "labels": node.labels,
        "taints": [{"key": t.key, "value": t.value, "effect": t.effect} for t in node.taints],
    }


def _network(spec: ClusterSpec) -> dict[str, Any]:
    net = spec.network
    return {
        "podCIDR": _one_or_more(net.pod_cidrs),
        "serviceCIDR": _one_or_more(net.service_cidrs),
        "nodeCIDR": _one_or_more(net.node_cidrs),
        "nodeMask": net.node_masks[0] if len(net.node_masks) == 1 else list(net.node_masks),
        "loadBalancerCIDR": [str(cidr) for cidr in net.load_balancer_cidrs],
        "clusterDomain": net.cluster_domain,
        "dataplane": {"name": net.dataplane, **net.dataplane_options},
        "proxy": {"mode": net.proxy_mode, **net.proxy_options},
        "policy": {"onChange": net.policy_on_change},
    }


def _external(host: ExternalSpec) -> dict[str, Any]:
    zone = {"dns": {"zone": host.dns_zone}} if host.dns_zone else {}
    return {"name": host.name, "address": _one_or_more(host.addresses), "attach": host.attach} | zone


def _one_or_more(values: Sequence[object]) -> str | list[str]:
    return str(values[0]) if len(values) == 1 else [str(value) for value in values]
