"""What every namespace has from the start: a ServiceAccount ``default``, a ConfigMap ``kube-root-ca.crt``.

Whoever deletes one gets a new one. Sources: ``pkg/controller/serviceaccount/serviceaccounts_controller.go``,
``pkg/controller/certificates/rootcacertpublisher/publisher.go``.
"""

from __future__ import annotations

from typing import Any

from testbed.objects.defaults import ROOT_CA
from testbed.objects.store import Event, Store

Object = dict[str, Any]

_CONTENT: tuple[Object, ...] = (
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": ROOT_CA,
            "annotations": {
                "kubernetes.io/description": "Contains a CA bundle that can be used to verify the "
                "kube-apiserver when using internal endpoints such as the internal service IP or "
                "kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
                "clusters."
            },
        },
        "data": {"ca.crt": ""},
    },
)


def is_given(obj: Object) -> bool:
    """Whether an object is one of those every namespace has of itself."""
    return any(
        (obj["kind"], obj["metadata"]["name"]) == (given["kind"], given["metadata"]["name"])
        for given in _CONTENT
    )


class Namespaces:
    """Furnishes the namespaces of one store. api_ca: the API's authority (PEM), "" where it has none."""

    def __init__(self, store: Store, api_ca: str = "") -> None:
        self._store, self._api_ca = store, api_ca
        self._due: dict[str, None] = {}

    @property
    def due(self) -> bool:
        """Whether any namespace waits to be looked at."""
        return bool(self._due)

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        obj = event.object
        if obj["kind"] == "Namespace" and event.type == "ADDED":
            self._due[obj["metadata"]["name"]] = None
        elif event.type == "DELETED" and obj["kind"] in ("ServiceAccount", "ConfigMap") and is_given(obj):
            self._due[obj["metadata"]["namespace"]] = None

    def run(self) -> None:
        """Create what is absent."""
        while self._due:
            name = next(iter(self._due))
            del self._due[name]
            namespace = self._store.find("Namespace", "", name)
            if namespace is None or "deletionTimestamp" in namespace["metadata"]:
                continue
            for given in _CONTENT:
                if self._store.find(given["kind"], name, given["metadata"]["name"]) is None:
                    placed = {**given, "metadata": {**given["metadata"], "namespace": name}}
                    if "data" in placed:
                        placed["data"] = {"ca.crt": self._api_ca}
                    self._store.create(placed, trusted=True)
