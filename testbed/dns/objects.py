"""The objects that serve cluster DNS, as kubeadm makes them: Service kube-dns and its Deployment; and the
DaemonSet of NodeLocal DNSCache.

Sources: kubernetes cmd/kubeadm/app/phases/addons/dns/manifests.go, cluster/addons/dns/nodelocaldns. The
Deployment is called as its Service, since it runs no CoreDNS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from testbed.control.containers import NAMESERVER_IMAGE, NODE_CACHE_IMAGE

Object = dict[str, Any]

NAMESPACE = "kube-system"
NAME = "kube-dns"
LABELS = {"k8s-app": NAME}
CACHE_NAME = "node-local-dns"
CACHE_DEVICE = "nodelocaldns"
METRICS_PORT = 9153


def objects(
    addresses: Sequence[str], families: Sequence[str], *, replicas: int, node_local: bool
) -> Iterable[Object]:
    """What kube-system starts with. addresses: the Service's, one per family (``IPv4``, ``IPv6``)."""
    yield _service(NAME, list(families), clusterIPs=list(addresses), clusterIP=addresses[0])
    yield _deployment(replicas)
    if node_local:
        yield _daemon_set()


def _service(name: str, families: list[str], **spec: Any) -> Object:
    policy = "SingleStack" if len(families) == 1 else "RequireDualStack"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {**LABELS, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "selector": LABELS,
            "ipFamilies": families,
            "ipFamilyPolicy": policy,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                {"name": "metrics", "port": METRICS_PORT, "protocol": "TCP", "targetPort": METRICS_PORT},
            ],
            **spec,
        },
    }


def _deployment(replicas: int) -> Object:
    spread = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": LABELS},
            "topologyKey": "kubernetes.io/hostname",
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": LABELS},
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": LABELS},
            "template": {
                "metadata": {"labels": LABELS},
                "spec": {
                    "dnsPolicy": "Default",
                    "tolerations": [
                        {"key": "CriticalAddonsOnly", "operator": "Exists"},
                        {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                    ],
                    "affinity": {
                        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [spread]}
                    },
                    "containers": [
                        {
                            "name": "dnsmasq",
                            "image": NAMESERVER_IMAGE,
                            "ports": [
                                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                                {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
                                {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
                            ],
                            # CoreDNS' own paths are asked in a real cluster; dnsmasq speaks only DNS.
                            "readinessProbe": {"tcpSocket": {"port": 53}, "periodSeconds": 10},
                            "livenessProbe": {
                                "tcpSocket": {"port": 53},
                                "initialDelaySeconds": 60,
                                "timeoutSeconds": 5,
                                "failureThreshold": 5,
                            },
                        }
                    ],
                },
            },
        },
    }


def _daemon_set() -> Object:
    labels = {"k8s-app": CACHE_NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": CACHE_NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": "10%"}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": True,
                    "dnsPolicy": "Default",
                    "tolerations": [
                        {"key": "CriticalAddonsOnly", "operator": "Exists"},
                        {"effect": "NoExecute", "operator": "Exists"},
                        {"effect": "NoSchedule", "operator": "Exists"},
                    ],
                    "containers": [{"name": "node-cache", "image": NODE_CACHE_IMAGE}],
                },
            },
        },
    }
