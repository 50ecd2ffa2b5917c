"""An IPAddress object for every address of a Service, whatever happens to either."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from testbed.cluster.controllers.ipaddresses import IpAddresses
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store

Object = dict[str, Any]


def make_store() -> tuple[Store, IpAddresses]:
    store = Store(ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112"))), seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    controller = IpAddresses(store)
    store.subscribe(controller.observe)
    return store, controller


def service(name: str, **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "default"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{"port": 80}], **spec},
    }


def owners(store: Store) -> dict[str, str]:
    return {one["metadata"]["name"]: one["spec"]["parentRef"]["name"] for one in store.list("IPAddress")}


def test_each_family_of_a_service_has_one_and_a_headless_one_none():
    store, controller = make_store()
    web = store.create(service("web", ipFamilyPolicy="RequireDualStack"))
    store.create(service("db", clusterIP="None"))
    controller.run()
    assert owners(store) == dict.fromkeys(web["spec"]["clusterIPs"], "web")
    families = {
        one["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"] for one in store.list("IPAddress")
    }
    assert families == {"IPv4", "IPv6"}


def test_it_goes_with_the_service_and_with_its_address():
    store, controller = make_store()
    store.create(service("web", clusterIP="10.96.0.50"))
    store.create(service("api", clusterIP="10.96.0.51"))
    controller.run()
    store.delete("Service", "default", "web")
    named = {"type": "ExternalName", "externalName": "example.com", "clusterIP": "", "clusterIPs": []}
    now = store.get("Service", "default", "api")
    store.update({**now, "spec": {**now["spec"], **named}})
    controller.run()
    assert owners(store) == {}


def test_what_somebody_deletes_or_changes_is_put_back():
    store, controller = make_store()
    store.create(service("web", clusterIP="10.96.0.50"))
    controller.run()
    store.delete("IPAddress", "", "10.96.0.50")
    controller.run()
    assert owners(store) == {"10.96.0.50": "web"}


def test_an_address_that_went_to_another_service_says_so():
    store, controller = make_store()
    store.create(service("web", clusterIP="10.96.0.50"))
    controller.run()
    store.delete("Service", "default", "web")
    store.create(service("api", clusterIP="10.96.0.50"))
    controller.run()
    assert owners(store) == {"10.96.0.50": "api"}
