"""The API server's own service, kept."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from testbed.cluster.controllers.apiserver import ApiServer
from testbed.control.endpoints import apiserver
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Event, Store


@pytest.fixture
def store() -> Store:
    made = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    spec = {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}
    metadata = {"name": "kubernetes", "namespace": "default"}
    made.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    for obj in apiserver.objects(["192.168.100.10"], ["IPv4"], 6443):
        made.create(obj, trusted=True)
    return made


@pytest.fixture
def controller(store: Store) -> ApiServer:
    made = ApiServer(store)
    store.subscribe(made.observe)
    return made


def feed(store: Store, controller: ApiServer) -> None:
    for obj in store.everything():
        controller.observe(Event("ADDED", obj))


@pytest.mark.parametrize("kind", ["Service", "Endpoints", "EndpointSlice"])
def test_what_is_deleted_comes_back(kind: str, store: Store, controller: ApiServer):
    feed(store, controller)
    before = store.get(kind, "default", "kubernetes")
    store.delete(kind, "default", "kubernetes")
    controller.run()
    after = store.get(kind, "default", "kubernetes")
    for part in ("spec", "subsets", "endpoints", "ports"):
        assert after.get(part) == before.get(part)
    assert not controller.due


@pytest.mark.parametrize(
    ("kind", "change"),
    [("Endpoints", {"subsets": []}), ("EndpointSlice", {"endpoints": [{"addresses": ["192.0.2.1"]}]})],
)
def test_what_is_changed_is_put_right(kind: str, change: Any, store: Store, controller: ApiServer):
    feed(store, controller)
    before = store.get(kind, "default", "kubernetes")
    store.update({**before, **change}, trusted=True)
    controller.run()
    after = store.get(kind, "default", "kubernetes")
    assert all(after[part] == before[part] for part in change)


def test_others_are_no_concern(store: Store, controller: ApiServer):
    feed(store, controller)
    metadata = {"name": "mine", "namespace": "default"}
    store.create({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}, trusted=True)
    store.delete("Endpoints", "default", "mine")
    controller.run()
    assert store.find("Endpoints", "default", "mine") is None
