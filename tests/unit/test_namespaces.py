from __future__ import annotations

from testbed.cluster.controllers.namespaces import Namespaces
from testbed.objects.store import Store


def furnished(store: Store, namespace: str) -> list[tuple[str, str]]:
    return [
        (obj["kind"], obj["metadata"]["name"])
        for obj in store.everything()
        if obj["metadata"].get("namespace") == namespace
    ]


def test_a_namespace_gets_its_account_and_its_certificates_and_keeps_them():
    store = Store(seed=1)
    controller = Namespaces(store)
    store.subscribe(controller.observe)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    controller.run()
    given = [("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")]
    assert furnished(store, "shop") == given
    store.delete("ServiceAccount", "shop", "default")
    assert controller.due
    controller.run()
    assert furnished(store, "shop") == given
    assert not controller.due


def test_a_namespace_that_goes_is_left_alone():
    store = Store(seed=1)
    controller = Namespaces(store)
    store.subscribe(controller.observe)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    controller.run()
    store.delete("Namespace", "", "shop")
    controller.run()
    assert furnished(store, "shop") == []
    assert store.find("Namespace", "", "shop") is None
