"""Starting a cluster: everything that can be wrong is found before anything is built, then the launch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.control import view
from testbed.control.endpoints import apiserver
from testbed.control.snapshot import Router
from testbed.dataplane import Enforces, dataplanes, fitting, needs_of
from testbed.dns.objects import objects
from testbed.dns.upstream import resolv_conf
from testbed.errors import InputError
from testbed.kernel.capabilities import require
from testbed.kernel.paths import add_system_directories
from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_all, problems_for
from testbed.objects.defaults import TOLERATION_SECONDS
from testbed.objects.manifests import Manifest, load_manifests, with_source
from testbed.objects.status import ApiError
from testbed.objects.store import Store
from testbed.policy import enforcer_beside
from testbed.proxy import proxiers
from testbed.spec.load import load_spec
from testbed.spec.model import ClusterSpec
from testbed.topology.plan import FabricPlan
from testbed.topology.planning import build, plan, shaping
from testbed.topology.routing import routers

if TYPE_CHECKING:
    from mininet.topo import Topo

log = logging.getLogger(__name__)

DEADLINE_BASE, DEADLINE_PER_POD = 60.0, 0.2
"""Seconds an ``up`` may take before it says what still waits; a guard, not a target."""

SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


def start(
    spec_path: str | Path,
    *,
    manifests: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    name: str = "",
    allow_commands: bool = False,
    bound: bool = False,
) -> dict[str, Any]:
    """Bring a cluster up and return its status. bound: it ends when this process does.

    Raises InputError, MissingCapability, TestbedError.
    """
    from testbed.api.daemon import Order, serve
    from testbed.cluster.launcher import launch
    from testbed.fabric import process

    begun = time.monotonic()
    add_system_directories()
    spec = load_spec(spec_path, overrides)
    if name:
        spec = replace(spec, name=name)
    read = load_manifests([*spec.manifests, *manifests])
    store = first_store(spec, read)
    dataplane = dataplanes.get(spec.network.dataplane)
    fabric_plan = plan(spec, route_pods=dataplane.underlay_routes)
    topo = build(spec, fabric_plan)
    facts = view.facts(
        spec,
        host_resolv_conf=machine_resolv_conf(spec),
        allow_commands=allow_commands,
        spares_own_node=isinstance(dataplane, Enforces) and dataplane.spares_own_node,
    )
    facts = replace(facts, routers=tuple(Router(*each) for each in routers(topo)))
    fitting.check(dataplane, facts)
    pods = expected_pods(store, len(spec.nodes))
    check_machine(spec, topo, pods)
    deadline = DEADLINE_BASE + DEADLINE_PER_POD * pods
    order = Order(spec, topo, store, facts, networks(fabric_plan), deadline)
    info = {"spec": spec.source, "nodes": len(spec.nodes), "pods": pods}
    status = launch(
        spec.name,
        daemon=partial(serve, order=order),
        fabric=partial(process.main, topo=topo),
        info=info,
        deadline=deadline + 30,
        preload=("testbed.cluster.rehearsal:preload",),
        bound=bound,
    )
    status["stored"] = stored_only(read)
    status["total"] = round(time.monotonic() - begun, 3)
    return status


def first_store(spec: ClusterSpec, manifests: Sequence[Manifest], *, recorded: bool = False) -> Store:
    """The objects a cluster starts with: namespaces, nodes, the API's own service, the manifests.

    recorded: the manifests come from another cluster, whose service ranges are not the spec's.
    Raises InputError with every problem of every manifest, with file and line.
    """
    store = Store(ServiceRanges(spec.network.service_cidrs), toleration_seconds=toleration_seconds(spec))
    for namespace in SYSTEM_NAMESPACES:
        store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, trusted=True)
    for node in spec.nodes:
        store.create(view.node_object(node, ready=False), trusted=True)
    cidrs = list(map(str, spec.network.service_cidrs))
    if not recorded:
        store.create(apiserver.service_cidr(cidrs, store.timestamp()), trusted=True)
    store.create(_api_service(spec))
    for obj in dns_objects(spec):
        store.create(obj)
    for obj in apiserver.objects(
        [str(address) for address in spec.control_plane.addresses],
        [f"IPv{cidr.version}" for cidr in spec.network.service_cidrs],
        spec.control_plane.port,
    ):
        store.create(obj, trusted=True)
    if manifests:
        try:
            apply_all(store, [with_source(manifest) for manifest in manifests])
        except ApiError as error:
            raise InputError(problems_for(manifests, error)) from error
    return store


def toleration_seconds(spec: ClusterSpec) -> Mapping[str, int]:
    """How long pods stay on a node in trouble, as the spec's clocks say or by default."""
    clocks = {
        "not-ready": spec.kubelet.get("defaultNotReadyTolerationSeconds"),
        "unreachable": spec.kubelet.get("defaultUnreachableTolerationSeconds"),
    }
    if not any(value is not None for value in clocks.values()):
        return TOLERATION_SECONDS
    return {
        state: TOLERATION_SECONDS[state] if value is None else int(value) for state, value in clocks.items()
    }


SERVICE_RANGES = "kubernetes"
"""The ServiceCIDR of the ranges an API server is started with. Source: ``defaultservicecidr`` controller."""


def _api_service(spec: ClusterSpec) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": str(next(spec.network.service_cidrs[0].hosts())),
            "ports": [
                {"name": "https", "port": 443, "protocol": "TCP", "targetPort": spec.control_plane.port}
            ],
        },
    }


def dns_objects(spec: ClusterSpec) -> Iterable[dict[str, Any]]:
    """The objects of cluster DNS, none where the spec has none."""
    if not spec.dns.enabled:
        return ()
    return objects(
        [str(address) for address in spec.dns.addresses],
        [f"IPv{address.version}" for address in spec.dns.addresses],
        replicas=spec.dns.replicas,
        node_local=spec.dns.node_local,
    )


def machine_resolv_conf(spec: ClusterSpec) -> str:
    """The nodes' own resolv.conf: the DNS hosts of the spec or, without any, what this machine has."""
    servers = [str(address) for host in spec.external if host.zone for address in host.addresses]
    if servers:
        return resolv_conf(servers)
    path = Path("/etc/resolv.conf")
    return path.read_text(errors="replace") if path.is_file() else ""


def networks(fabric_plan: FabricPlan) -> dict[str, tuple[str, ...]]:
    """Node name → the subnets its own interface is in."""
    return {
        node.name: tuple(str(ip_interface(address).network) for address in node.addresses)
        for node in fabric_plan.nodes
    }


def expected_pods(store: Store, nodes: int) -> int:
    """How many pods the objects ask for, by their replica counts; enough for judging the machine."""
    count = len(store.list("Pod"))
    for kind in ("Deployment", "StatefulSet"):
        count += sum(obj["spec"].get("replicas", 1) for obj in store.list(kind))
    owned = [obj for obj in store.list("ReplicaSet") if not obj["metadata"].get("ownerReferences")]
    count += sum(obj["spec"].get("replicas", 1) for obj in owned)
    return int(count) + nodes * len(store.list("DaemonSet"))


def capabilities_needed(spec: ClusterSpec, topo: Topo) -> set[str]:
    """Names of ``kernel.capabilities`` that this cluster is built with."""
    needs = {"userns", "veth", "bridge", "mininet", "iptables", "ip6tables"}  # the kubelet writes for both
    if spec.network.proxy_options.get("backend") == "legacy":
        needs.add("iptables-legacy")
    dataplane, proxier = dataplanes.get(spec.network.dataplane), proxiers.get(spec.network.proxy_mode)
    needs |= needs_of(dataplane, spec.network.dataplane_options) | proxier.needs
    if not dataplane.enforces_policy:
        needs |= enforcer_beside(proxier.needs).needs
    if spec.dns.enabled or any(host.zone for host in spec.external):
        needs |= {"dnsmasq", "nf_tables"}
    shaped = shaping(topo)
    if shaped - {"bw"}:
        needs.add("netem")
    if "bw" in shaped:
        needs.add("htb")
    return needs


def check_machine(spec: ClusterSpec, topo: Topo, pods: int) -> None:
    """Refuse what this machine cannot do, before anything is built. Raises MissingCapability."""
    require(sorted(capabilities_needed(spec, topo)), pods=pods, nodes=len(spec.nodes))


def stored_only(manifests: Sequence[Manifest]) -> dict[str, int]:
    """Kinds that were stored but do nothing to the network yet, with how many there are."""
    from testbed.objects.kinds import BY_NAME

    counts: dict[str, int] = {}
    for manifest in manifests:
        kind = manifest.object["kind"]
        if not BY_NAME[kind].effect:
            counts[kind] = counts.get(kind, 0) + 1
    return counts
