"""What a cluster would be, decided without one: no root, no kernel, no daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from testbed.api.start import first_store, networks
from testbed.cluster.clock import ManualClock
from testbed.cluster.compile import Compiler
from testbed.cluster.controlplane import ControlPlane
from testbed.control import view
from testbed.control.snapshot import EndpointSlice, Router, ServiceKey, Snapshot
from testbed.dataplane import dataplanes, fitting
from testbed.dns import objects
from testbed.dns.dnsmasq import name_files
from testbed.dns.records import records
from testbed.dns.servers import node_cache_files
from testbed.errors import InputError
from testbed.objects.kinds import Object
from testbed.objects.manifests import Manifest, load_manifests
from testbed.objects.store import Store
from testbed.proxy import proxiers
from testbed.spec.load import load_spec
from testbed.state import NameFiles, NetnsState, NodeState
from testbed.topology.planning import build, plan
from testbed.topology.routing import routers

_STORED, _TYPED = ("Node", "Pod"), ("Service", "EndpointSlice")
"""Kinds of objects that, recorded from a real cluster, are taken as they are."""

T = TypeVar("T")


def node_state(
    spec_path: str | Path, manifests: Sequence[str | Path], overrides: Sequence[str], node: str
) -> tuple[NodeState, dict[str, NetnsState]]:
    """The desired state of one node once every pod runs, and what of it are service and policy rules.

    Nodes, Pods, Services and EndpointSlices that were recorded from a real cluster are taken as they are;
    then the Services and ranges that every cluster has from its start are those of the recording, too.
    Raises InputError.
    """
    snapshot, compiler = _decided(spec_path, manifests, overrides)
    if node not in snapshot.node:
        raise InputError(f"no node {node!r}: there are {', '.join(sorted(snapshot.node))}")
    state = compiler.compile(snapshot, snapshot.node[node])
    return state, {"services": compiler.services(node), "policy": compiler.policy(node)}


def names(
    spec_path: str | Path, manifests: Sequence[str | Path], overrides: Sequence[str]
) -> dict[str, NameFiles]:
    """What the DNS servers of the cluster read once every pod runs: what they are called → their files.

    Raises InputError, also where the cluster has no DNS.
    """
    snapshot, _ = _decided(spec_path, manifests, overrides)
    facts = snapshot.facts
    if not facts.dns_addresses:
        raise InputError("this cluster has no DNS (spec.dns.enabled)")
    found = {objects.NAME: name_files(records(snapshot), facts.upstream_dns, serial=1)}
    if facts.node_dns:
        found[objects.CACHE_NAME] = node_cache_files(facts)
    return found


def _decided(
    spec_path: str | Path, manifests: Sequence[str | Path], overrides: Sequence[str]
) -> tuple[Snapshot, Compiler]:
    spec = load_spec(spec_path, overrides)
    read = load_manifests([*spec.manifests, *manifests])
    recorded = [manifest for manifest in read if _is_recorded(manifest.object)]
    own = [manifest for manifest in read if manifest not in recorded]
    store = first_store(spec, own, recorded=bool(recorded))
    for manifest in recorded:
        if manifest.object["kind"] in _STORED:
            _store(store, manifest.object)
    dataplane = dataplanes.get(spec.network.dataplane)
    proxier = proxiers.get(spec.network.proxy_mode)
    fabric_plan = plan(spec, route_pods=dataplane.underlay_routes)
    wiring = networks(fabric_plan)
    found = routers(build(spec, fabric_plan))
    facts = replace(view.facts(spec), routers=tuple(Router(*each) for each in found))
    fitting.check(dataplane, facts)
    plane = ControlPlane(store, facts, dataplane, proxier, wiring, ManualClock())
    for each in spec.nodes:
        plane.heard(each.name)  # the kubelets are there: only then are pods' statuses written
    plane.step()
    while made := plane.not_running():
        plane.pods_made(made)
        plane.step()
    snapshot = _as_recorded(plane.snapshot(), read, recorded) if recorded else plane.snapshot()
    return snapshot, Compiler(dataplane, proxier)


def _is_recorded(obj: Object) -> bool:
    """Whether an object has what only an API server gives."""
    metadata = obj.get("metadata")
    known = bool(obj.get("status")) or (
        obj["kind"] in _TYPED and isinstance(metadata, dict) and bool(metadata.get("uid"))
    )
    return known and obj["kind"] in (*_STORED, *_TYPED)


def _store(store: Store, obj: Object) -> None:
    """Put an object into the store in place of one that is there."""
    metadata = obj["metadata"]
    namespaced = obj["kind"] == "Pod"
    key = (obj["kind"], metadata.get("namespace", "default") if namespaced else "")
    if store.find(*key, metadata["name"]) is not None:
        store.delete(*key, metadata["name"])
    scope = {"namespace": key[1]} if namespaced else {}
    store.create({**obj, "metadata": {**metadata, **scope}}, trusted=True)


def _as_recorded(snapshot: Snapshot, read: Iterable[Manifest], recorded: Iterable[Manifest]) -> Snapshot:
    """The snapshot with these files' Services alone; recorded slices replace those that were made here."""
    named = {_key(manifest) for manifest in read if manifest.object["kind"] == "Service"}
    services = {key: service for key, service in snapshot.services.items() if key in named}
    slices: dict[ServiceKey, list[EndpointSlice]] = {}
    for manifest in recorded:
        if manifest.object["kind"] == "Service":
            service = _typed(view.typed_service, manifest)
            services[service.namespace, service.name] = service
        elif manifest.object["kind"] == "EndpointSlice":
            each = _typed(view.typed_slice, manifest)
            slices.setdefault((each.namespace, each.service), []).append(each)
    taken = {key: tuple(sorted(found, key=lambda each: each.name)) for key, found in slices.items()}
    return replace(snapshot, services=services, slices=snapshot.slices | taken)


def _key(manifest: Manifest) -> ServiceKey:
    metadata = manifest.object.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    return str(named.get("namespace", "default")), str(named.get("name"))


def _typed(typed: Callable[[Object], T], manifest: Manifest) -> T:
    """An object, typed. Raises InputError where it is not what an API server would give."""
    try:
        metadata = manifest.object["metadata"]
        return typed({**manifest.object, "metadata": {"namespace": "default", **metadata}})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = f"is not as an API server gives it: {type(error).__name__}: {error}"
        raise InputError([manifest.problem((), why)]) from error
