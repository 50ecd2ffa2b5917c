"""Rules for EndpointSlices. Source: ``pkg/apis/discovery/validation/validation.go``."""

from __future__ import annotations

from testbed.documents import FieldPath
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, duplicate, forbidden, invalid, required, unsupported
from testbed.objects.validation import meta, names
from testbed.objects.validation.pod import PROTOCOLS

_TYPES = ("FQDN", "IPv4", "IPv6")
_MAX_ENDPOINTS = 1000
_MAX_ADDRESSES = 100
_MAX_PORTS = 20_000


def validate(endpoint_slice: Object) -> list[FieldError]:
    """An EndpointSlice as a whole."""
    errors: list[FieldError] = []
    kind = endpoint_slice.get("addressType", "")
    if not kind:
        return [required(("addressType",))]
    if kind not in _TYPES:
        return [unsupported(("addressType",), kind, _TYPES)]
    endpoints = endpoint_slice.get("endpoints") or []
    if len(endpoints) > _MAX_ENDPOINTS:
        why = f"Too many: {len(endpoints)}: must have at most {_MAX_ENDPOINTS} items"
        return [FieldError(("endpoints",), why, "FieldValueTooMany")]
    for index, endpoint in enumerate(endpoints):
        errors += _endpoint(("endpoints", index), endpoint, kind)
    return errors + _ports(endpoint_slice.get("ports") or [])


def _endpoint(path: FieldPath, endpoint: Object, kind: str) -> list[FieldError]:
    errors: list[FieldError] = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        errors.append(required((*path, "addresses"), "must contain at least 1 item"))
    if len(addresses) > _MAX_ADDRESSES:
        why = f"Too many: {len(addresses)}: must have at most {_MAX_ADDRESSES} items"
        errors.append(FieldError((*path, "addresses"), why, "FieldValueTooMany"))
    for index, address in enumerate(addresses):
        errors += _address((*path, "addresses", index), address, kind)
    if node := endpoint.get("nodeName"):
        errors += names.checked((*path, "nodeName"), node, names.subdomain(node))
    if hostname := endpoint.get("hostname"):
        errors += names.checked((*path, "hostname"), hostname, names.label(hostname))
    for index, zone in enumerate((endpoint.get("hints") or {}).get("forZones") or ()):
        here = (*path, "hints", "forZones", index, "name")
        errors += names.checked(here, zone.get("name", ""), names.label_value(zone.get("name", "")))
    return errors


def _address(path: FieldPath, address: str, kind: str) -> list[FieldError]:
    if kind == "FQDN":
        wrong = names.subdomain(address.removesuffix("."))
        return names.checked(path, address, wrong)
    errors = names.ip(path, address)
    parsed = names.parse_ip(address)
    if not errors and parsed is not None and f"IPv{parsed.version}" != kind:
        return [invalid(path, address, f"must be an {kind} address")]
    return errors or names.endpoint_address(path, address)


def _ports(ports: list[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    if len(ports) > _MAX_PORTS:
        why = f"Too many: {len(ports)}: must have at most {_MAX_PORTS} items"
        return [FieldError(("ports",), why, "FieldValueTooMany")]
    seen: set[str] = set()
    for index, port in enumerate(ports):
        path: FieldPath = ("ports", index)
        name = port.get("name") or ""
        if name:
            errors += names.checked((*path, "name"), name, names.label(name))
        if name in seen:
            errors.append(duplicate((*path, "name"), name))
        seen.add(name)
        if (number := port.get("port")) is not None:
            errors += names.checked((*path, "port"), number, names.port_number(number))
        if (protocol := port.get("protocol")) not in PROTOCOLS:
            errors.append(unsupported((*path, "protocol"), protocol, PROTOCOLS))
    return errors


def validate_update(new: Object, old: Object) -> list[FieldError]:
    """The address type stays as it is."""
    errors = meta.immutable(("addressType",), new.get("addressType"), old.get("addressType"))
    return [forbidden(("addressType",), "field is immutable")] if errors else []
