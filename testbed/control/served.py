"""The Services, EndpointSlices and service ranges of a cluster, typed, as they change one by one.

What compilers read of an object is often the same after a change (an annotation, a status): then the typed
object stays the one it was, and nobody has anything to do.
"""

from __future__ import annotations

from typing import Any

from testbed.control import view
from testbed.control.snapshot import EndpointSlice, Service, ServiceKey

Object = dict[str, Any]

KINDS = frozenset({"Service", "EndpointSlice", "ServiceCIDR"})
"""The kinds whose objects are kept here."""

Slices = tuple[EndpointSlice, ...]
_Frozen = tuple[dict[ServiceKey, Service], dict[ServiceKey, Slices], tuple[str, ...]]


class Served:
    """Typed Services and slices by Service, and the ranges of all ServiceCIDRs.

    The mappings are replaced, never changed, so that who holds one may compare it by identity.
    """

    def __init__(self) -> None:
        self._services: dict[ServiceKey, Service] = {}
        self._slices: dict[ServiceKey, dict[str, EndpointSlice]] = {}
        self._owners: dict[tuple[str, str], str] = {}  # slice → its Service's name
        self._ranges: dict[str, tuple[str, ...]] = {}
        self._frozen: _Frozen | None = None
        self._tuples: dict[ServiceKey, Slices] = {}

    def put(self, obj: Object) -> bool:
        """Take note of an object that is new or changed. Whether that changes what compilers see."""
        match obj["kind"]:
            case "Service":
                changed = self._put_service(view.typed_service(obj))
            case "EndpointSlice":
                changed = self._put_slice(view.typed_slice(obj))
            case "ServiceCIDR":
                name, ranges = obj["metadata"]["name"], tuple(obj["spec"].get("cidrs") or ())
                changed = self._ranges.get(name) != ranges
                self._ranges[name] = ranges
            case kind:
                raise ValueError(f"{kind} is not one of {', '.join(sorted(KINDS))}")
        return self._noted(changed)

    def drop(self, obj: Object) -> bool:
        """Forget a deleted object. Whether that changes what compilers see."""
        metadata = obj["metadata"]
        match obj["kind"]:
            case "Service":
                gone: object = self._services.pop((metadata["namespace"], metadata["name"]), None)
            case "EndpointSlice":
                gone = self._drop_slice(metadata["namespace"], metadata["name"], _owner(obj))
            case _:
                gone = self._ranges.pop(metadata["name"], None)
        return self._noted(gone is not None)

    @property
    def services(self) -> dict[ServiceKey, Service]:
        """Every Service, in the order in which they came."""
        return self._current()[0]

    @property
    def slices(self) -> dict[ServiceKey, Slices]:
        """The slices of each Service, in order of their names."""
        return self._current()[1]

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The ranges of all ServiceCIDRs."""
        return self._current()[2]

    def _put_service(self, service: Service) -> bool:
        key = service.namespace, service.name
        changed = self._services.get(key) != service
        if changed:
            self._services[key] = service
        return changed

    def _put_slice(self, each: EndpointSlice) -> bool:
        key = each.namespace, each.service
        slices = self._slices.setdefault(key, {})
        if slices.get(each.name) == each:
            return False
        owner = self._owners.get((each.namespace, each.name), each.service)
        if owner != each.service:  # its label leads to another Service now
            self._drop_slice(each.namespace, each.name, owner)
        self._owners[each.namespace, each.name] = each.service
        slices[each.name] = each
        self._tuples.pop(key, None)
        return True

    def _drop_slice(self, namespace: str, name: str, service: str) -> EndpointSlice | None:
        slices = self._slices.get((namespace, service), {})
        gone = slices.pop(name, None)
        self._owners.pop((namespace, name), None)
        if not slices:
            self._slices.pop((namespace, service), None)
        self._tuples.pop((namespace, service), None)
        return gone

    def _noted(self, changed: bool) -> bool:
        if changed:
            self._frozen = None
        return changed

    def _current(self) -> _Frozen:
        if self._frozen is None:
            for key, slices in self._slices.items():
                if key not in self._tuples:
                    self._tuples[key] = tuple(slices[name] for name in sorted(slices))
            self._frozen = (
                dict(self._services),
                dict(self._tuples),
                tuple(cidr for ranges in self._ranges.values() for cidr in ranges),
            )
        return self._frozen


def _owner(endpoint_slice: Object) -> str:
    labels = endpoint_slice["metadata"].get("labels") or {}
    return str(labels.get(view.SERVICE_NAME_LABEL, ""))
