"""Keeps the API's own service, its endpoints and the service range as the API server made them at first.

Upstream's API server looks every ten seconds (``pkg/controlplane/controller/kubernetesservice``); here a
change is put right at once.
"""

from __future__ import annotations

from typing import Any

from testbed.control.endpoints.apiserver import NAME, NAMESPACE
from testbed.objects.store import Event, Store

Object = dict[str, Any]

_KEPT = {
    "Service": (),  # only that it exists: its spec is anybody's to change
    "Endpoints": ("subsets",),
    "EndpointSlice": ("endpoints", "ports"),
    "ServiceCIDR": (),
}
"""Kind → the parts that nobody else may change for long."""


class ApiServer:
    """Puts ``default/kubernetes`` back where it is deleted or changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._first: dict[tuple[str, str], Object] = {}
        self._due: dict[tuple[str, str], None] = {}

    @property
    def due(self) -> bool:
        """Whether there is something to put back."""
        return bool(self._due)

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        metadata = event.object["metadata"]
        if event.kind not in _KEPT or metadata.get("namespace", NAMESPACE) != NAMESPACE:
            return
        key = event.kind, metadata["name"]
        if key in self._first:
            self._due[key] = None
        elif metadata["name"] in (NAME, f"{NAME}-v4", f"{NAME}-v6") and event.type == "ADDED":
            self._first[key] = event.object

    def run(self) -> None:
        """Put back what is due."""
        while self._due:
            key = next(iter(self._due))
            del self._due[key]
            kind, name = key
            first = self._first[key]
            now = self._store.find(kind, first["metadata"].get("namespace", ""), name)
            if now is None:
                self._store.create(first, trusted=True)
            elif any(now.get(part) != first.get(part) for part in _KEPT[kind]):
                self._store.update({**now, **{part: first[part] for part in _KEPT[kind]}}, trusted=True)
            self._due.pop(key, None)
