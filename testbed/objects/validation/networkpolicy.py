"""Rules for NetworkPolicies. Source: ``pkg/apis/networking/validation/validation.go``."""

from __future__ import annotations

from testbed.documents import FieldPath
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, forbidden, invalid, required, unsupported
from testbed.objects.validation import meta, names

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_TYPES = ("Egress", "Ingress")


def validate(policy: Object) -> list[FieldError]:
    """A NetworkPolicy as a whole."""
    spec = policy.get("spec") or {}
    path: FieldPath = ("spec",)
    errors = meta.selector((*path, "podSelector"), spec.get("podSelector"))
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            here = (*path, direction, index)
            for position, port in enumerate(rule.get("ports") or ()):
                errors += _port((*here, "ports", position), port)
            for position, peer in enumerate(rule.get(peers) or ()):
                errors += _peer((*here, peers, position), peer)
    types = spec.get("policyTypes") or []
    if len(types) > len(_TYPES):
        errors.append(invalid((*path, "policyTypes"), types, "may not specify more than two policyTypes"))
        return errors
    for index, one in enumerate(types):
        if one not in _TYPES:
            errors.append(unsupported((*path, "policyTypes", index), one, _TYPES))
    return errors


def _port(path: FieldPath, port: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    if (protocol := port.get("protocol")) is not None and protocol not in _PROTOCOLS:
        errors.append(unsupported((*path, "protocol"), protocol, _PROTOCOLS))
    number, end = port.get("port"), port.get("endPort")
    if number is None:
        if end is not None:
            errors.append(
                invalid((*path, "endPort"), end, "may not be specified when `port` is not specified")
            )
        return errors
    if isinstance(number, str):
        if end is not None:
            why = "may not be specified when `port` is non-numeric"
            errors.append(invalid((*path, "endPort"), end, why))
        return errors + names.checked((*path, "port"), number, names.port_name(number))
    errors += names.checked((*path, "port"), number, names.port_number(number))
    if end is not None:
        if end < number:
            # Upstream reports the port as the value here, not endPort.
            why = "must be greater than or equal to `port`"
            errors.append(invalid((*path, "endPort"), number, why))
        errors += names.checked((*path, "endPort"), end, names.port_number(end))
    return errors


def _peer(path: FieldPath, peer: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    selectors = [name for name in ("podSelector", "namespaceSelector") if name in peer]
    for name in selectors:
        errors += meta.selector((*path, name), peer[name])
    if "ipBlock" in peer:
        errors += _ip_block((*path, "ipBlock"), peer["ipBlock"])
    if not selectors and "ipBlock" not in peer:
        errors.append(required(path, "must specify a peer"))
    elif selectors and "ipBlock" in peer:
        errors.append(forbidden(path, "may not specify both ipBlock and another peer"))
    return errors


def _ip_block(path: FieldPath, block: Object) -> list[FieldError]:
    text = block.get("cidr", "")
    if not text:
        return [required((*path, "cidr"))]
    errors = names.cidr((*path, "cidr"), text)
    whole = names.parse_cidr(text)
    for index, exception in enumerate(block.get("except") or ()):
        here = (*path, "except", index)
        wrong = names.cidr(here, exception)
        part = names.parse_cidr(exception)
        errors += wrong
        if wrong or whole is None or part is None:
            continue
        if part.version != whole.version or part == whole or not part.subnet_of(whole):  # type: ignore[arg-type]
            errors.append(invalid(here, exception, "must be a strict subset of `cidr`"))
    return errors
