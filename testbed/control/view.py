"""From Kubernetes objects as they are stored to the typed Snapshot that compilers read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from testbed.control import podstatus
from testbed.control.ipam import NOTHING, Held
from testbed.control.snapshot import (
    ClusterFacts,
    Container,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Pod,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.objects.defaults import TOKEN_VOLUME
from testbed.spec.model import ClusterSpec, NodeSpec

Object = dict[str, Any]

NODE_DNS = "169.254.20.10"
"""Where NodeLocal DNSCache answers on every node (cluster/addons/dns/nodelocaldns)."""

ZONE_LABEL = "topology.kubernetes.io/zone"
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
"""The taint of a node that an autoscaler deletes next. Source: ``pkg/proxy/healthcheck/proxy_health.go``."""
NOT_BALANCED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""The label, with any value, of a node that load balancers leave out."""


def facts(
    spec: ClusterSpec,
    *,
    host_resolv_conf: str = "",
    allow_commands: bool = False,
    spares_own_node: bool = False,
) -> ClusterFacts:
    """What compilers need to know of the spec itself."""
    network = spec.network
    return ClusterFacts(
        cluster_domain=network.cluster_domain,
        pod_cidrs=tuple(map(str, network.pod_cidrs)),
        service_cidrs=tuple(map(str, network.service_cidrs)),
        node_cidrs=tuple(map(str, network.node_cidrs)),
        dns_addresses=tuple(map(str, spec.dns.addresses)) if spec.dns.enabled else (),
        dataplane=network.dataplane,
        dataplane_options=network.dataplane_options,
        link_mtu=spec.topology.link.mtu or 1500,
        host_resolv_conf=host_resolv_conf,
        allow_commands=allow_commands,
        kubelet=spec.kubelet,
        proxy_options=network.proxy_options,
        load_balancer_cidrs=tuple(map(str, network.load_balancer_cidrs)),
        upstream_dns=tuple(str(address) for host in spec.external if host.zone for address in host.addresses),
        node_dns=NODE_DNS if spec.dns.enabled and spec.dns.node_local else "",
        policy_on_change=network.policy_on_change,
        node_names=tuple(node.name for node in spec.nodes),
        spares_own_node=spares_own_node,
    )


def node_object(node: NodeSpec, *, ready: bool) -> Object:
    """The Node object of a node of the spec, as a kubelet would register it."""
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        **({ZONE_LABEL: node.zone} if node.zone else {}),
        **node.labels,
    }
    spec: Object = {}
    if node.pod_cidrs:
        spec |= {"podCIDR": str(node.pod_cidrs[0]), "podCIDRs": [str(cidr) for cidr in node.pod_cidrs]}
    if node.taints:
        spec["taints"] = [
            {"key": taint.key, "effect": taint.effect, **({"value": taint.value} if taint.value else {})}
            for taint in node.taints
        ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": spec,
        "status": {
            "addresses": addresses(node),
            "conditions": ready_conditions(ready),
        },
    }


def addresses(node: NodeSpec) -> list[Object]:
    """``status.addresses`` of a node, as its kubelet writes them."""
    internal = [{"type": "InternalIP", "address": str(address)} for address in node.addresses]
    return [*internal, {"type": "Hostname", "address": node.name}]


def ready_conditions(ready: bool, why: str = "") -> list[Object]:
    """A node's conditions: Ready or not; why: what its agent could not do, "" where it does not answer."""
    if why:
        return [{"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": why}]
    return [
        {
            "type": "Ready",
            "status": "True" if ready else "Unknown",
            "reason": "KubeletReady" if ready else "NodeStatusUnknown",
            "message": "the node's agent answers" if ready else "the node's agent does not answer",
        }
    ]


def snapshot(
    facts: ClusterFacts,
    nodes: Iterable[Object],
    pods: Iterable[Object],
    networks: Mapping[str, tuple[str, ...]] = {},
) -> Snapshot:
    """The Snapshot of these nodes and pods; pods without a node or an address are left out.

    networks: node name → the subnets it is in; default: the whole node ranges (one flat segment).
    """
    typed_nodes = tuple(typed_node(node, networks.get(node["metadata"]["name"])) for node in nodes)
    if not networks:
        typed_nodes = tuple(Node(**{**vars(node), "networks": facts.node_cidrs}) for node in typed_nodes)
    typed_pods = tuple(typed_pod(pod) for pod in pods if is_placed(pod))
    return Snapshot(facts=facts, nodes=typed_nodes, pods=typed_pods)


def is_placed(pod: Object) -> bool:
    """Whether a pod has a node and an address, and so a place in the kernel."""
    return bool(pod["spec"].get("nodeName") and pod.get("status", {}).get("podIPs"))


def typed_node(
    node: Object,
    networks: tuple[str, ...] | None = None,
    *,
    had_pods: bool = False,
    pooled: bool = False,
    held: Held = NOTHING,
) -> Node:
    """One Node object, typed; networks, had_pods, pooled and held: see ``Node``."""
    metadata, spec, status = node["metadata"], node.get("spec", {}), node.get("status", {})
    cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    labels = metadata.get("labels") or {}
    return Node(
        name=metadata["name"],
        addresses=tuple(
            entry["address"] for entry in status.get("addresses") or () if entry["type"] == "InternalIP"
        ),
        pod_cidrs=tuple(cidrs),
        networks=networks or (),
        had_pods=had_pods,
        labels=labels,
        zone=labels.get(ZONE_LABEL, ""),
        ready=any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in status.get("conditions") or ()
        ),
        to_be_deleted="deletionTimestamp" in metadata
        or any(taint["key"] == TO_BE_DELETED for taint in spec.get("taints") or ()),
        balanced=NOT_BALANCED not in labels,
        pooled=pooled,
        held=held,
    )


def typed_pod(pod: Object, ips: tuple[str, ...] | None = None) -> Pod:
    """One bound Pod object, typed. ips: its addresses where its status does not have them yet."""
    metadata, spec = pod["metadata"], pod["spec"]
    if ips is None:
        ips = tuple(entry["ip"] for entry in pod["status"]["podIPs"])
    return Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec["nodeName"],
        ips=ips,
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        host_network=bool(spec.get("hostNetwork")),
        hostname=spec.get("hostname", ""),
        subdomain=spec.get("subdomain", ""),
        token=any(
            mount["name"].startswith(TOKEN_VOLUME)
            for container in spec.get("containers") or ()
            for mount in container.get("volumeMounts") or ()
        ),
        set_hostname_as_fqdn=bool(spec.get("setHostnameAsFQDN")),
        service_account=spec.get("serviceAccountName") or "default",
        enable_service_links=spec.get("enableServiceLinks", True) is not False,
        dns_policy=spec.get("dnsPolicy", "ClusterFirst"),
        dns_config=spec.get("dnsConfig") or {},
        host_aliases=tuple(spec.get("hostAliases") or ()),
        containers=tuple(_container(container) for container in spec.get("containers") or ()),
        sidecars=tuple(
            _container(container)
            for container in spec.get("initContainers") or ()
            if container.get("restartPolicy") == "Always"
        ),
        restart_policy=spec.get("restartPolicy", "Always"),
        stop_seconds=float(spec.get("terminationGracePeriodSeconds", podstatus.DEFAULT_GRACE)),
        grace=podstatus.grace_given(pod),
        linger=podstatus.linger(pod),
    )


def _container(container: Object) -> Container:
    return Container(
        name=container["name"],
        image=container.get("image", ""),
        command=tuple(container.get("command") or ()),
        args=tuple(container.get("args") or ()),
        ports=tuple(
            ContainerPort(
                container_port=port["containerPort"],
                name=port.get("name", ""),
                protocol=port.get("protocol", "TCP"),
                host_port=port.get("hostPort", 0),
                host_ip=port.get("hostIP", ""),
            )
            for port in container.get("ports") or ()
        ),
        env=tuple(container.get("env") or ()),
        probes={
            kind: container[f"{kind}Probe"]
            for kind in ("startup", "readiness", "liveness")
            if f"{kind}Probe" in container
        },
    )


SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""The label that says whose endpoints a slice holds. Source: ``discovery/v1/well_known_labels.go``."""


def typed_service(service: Object) -> Service:
    """One Service object, typed."""
    metadata, spec = service["metadata"], service["spec"]
    cluster_ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    affinity = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return Service(
        namespace=metadata["namespace"],
        name=metadata["name"],
        type=spec.get("type", "ClusterIP"),
        cluster_ips=tuple(address for address in cluster_ips if address != "None"),
        headless="None" in cluster_ips,
        families=tuple(spec.get("ipFamilies") or ("IPv4",)),
        ports=tuple(
            ServicePort(
                port=port["port"],
                name=port.get("name", ""),
                protocol=port.get("protocol", "TCP"),
                target=port.get("targetPort", port["port"]),
                node_port=port.get("nodePort", 0),
            )
            for port in spec.get("ports") or ()
        ),
        selector=spec.get("selector") or {},
        labels=metadata.get("labels") or {},
        external_ips=tuple(spec.get("externalIPs") or ()),
        external_name=spec.get("externalName", ""),
        vips=tuple(
            entry["ip"]
            for entry in (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or ()
            if entry.get("ip") and entry.get("ipMode", "VIP") == "VIP"
        ),
        source_ranges=tuple(text.strip() for text in spec.get("loadBalancerSourceRanges") or ()),
        affinity_seconds=(
            affinity.get("timeoutSeconds", 10800) if spec.get("sessionAffinity") == "ClientIP" else 0
        ),
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
        health_check_node_port=spec.get("healthCheckNodePort", 0),
        publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
    )


def typed_slice(obj: Object) -> EndpointSlice:
    """One EndpointSlice object, typed."""
    metadata = obj["metadata"]
    labels = metadata.get("labels") or {}
    return EndpointSlice(
        namespace=metadata["namespace"],
        name=metadata["name"],
        service=labels.get(SERVICE_NAME_LABEL, ""),
        address_type=obj["addressType"],
        ports=tuple(
            EndpointPort(port.get("port"), port.get("name") or "", port.get("protocol") or "TCP")
            for port in obj.get("ports") or ()
        ),
        endpoints=tuple(_endpoint(endpoint) for endpoint in obj.get("endpoints") or ()),
        labels=labels,
    )


def _endpoint(endpoint: Object) -> Endpoint:
    conditions, hints = endpoint.get("conditions") or {}, endpoint.get("hints") or {}
    target = endpoint.get("targetRef") or {}
    ready = conditions.get("ready")
    serving = conditions.get("serving")
    return Endpoint(
        addresses=tuple(endpoint["addresses"]),
        ready=ready is None or ready,  # unknown counts as true: discovery/v1 types.go, EndpointConditions
        serving=serving is None or serving,
        terminating=bool(conditions.get("terminating")),
        hostname=endpoint.get("hostname") or "",
        node=endpoint.get("nodeName") or "",
        zone=endpoint.get("zone") or "",
        hint_zones=tuple(hint.get("name", "") for hint in hints.get("forZones") or ()),
        hint_nodes=tuple(hint.get("name", "") for hint in hints.get("forNodes") or ()),
        pod=(target.get("namespace", ""), target["name"])
        if target.get("kind") == "Pod" and target.get("name")
        else None,
    )
