"""Keeps an IPAddress object for every address that a Service has, so that anybody can see whose it is.

Upstream's API server writes them as it gives the addresses, and repairs what does not fit
(``pkg/registry/core/service/ipallocator``, ``…/controller/repairip.go``); here that is one thing.
"""

from __future__ import annotations

from typing import Any

from testbed.control.endpoints.apiserver import ip_address
from testbed.objects.store import Event, Store

Object = dict[str, Any]
Key = tuple[str, str]


class IpAddresses:
    """Writes and deletes the objects of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owner: dict[str, Key] = {}
        self._due: dict[str, None] = {}

    @property
    def due(self) -> bool:
        """Whether any address waits to be looked at."""
        return bool(self._due)

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        if event.kind == "IPAddress":
            if event.type != "ADDED":
                self._due[event.object["metadata"]["name"]] = None
            return
        if event.kind != "Service":
            return
        metadata = event.object["metadata"]
        key = metadata["namespace"], metadata["name"]
        before = _addresses(event.old) if event.old else set()
        now = set() if event.type == "DELETED" else _addresses(event.object)
        for address in before - now:
            if self._owner.get(address) == key:
                del self._owner[address]
                self._due[address] = None
        for address in now:
            if self._owner.get(address) != key:
                self._owner[address] = key
                self._due[address] = None

    def run(self) -> None:
        """Write what is due."""
        while self._due:
            address = next(iter(self._due))
            del self._due[address]
            owner, now = self._owner.get(address), self._store.find("IPAddress", "", address)
            wanted = ip_address(address, *owner) if owner else None
            if now is not None and (wanted is None or now["spec"] != wanted["spec"]):
                self._store.delete("IPAddress", "", address)
                now = None
            if now is None and wanted is not None:
                self._store.create(wanted, trusted=True)
            self._due.pop(address, None)


def _addresses(service: Object) -> set[str]:
    spec = service["spec"]
    listed = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return {address for address in listed if address != "None"}
