"""Rules for ClusterNetworkPolicies and their forerunners, as their CRDs' schemas say them.

Source: kubernetes-sigs/network-policy-api ``apis/v1alpha2/clusternetworkpolicy_types.go``, ``apis/v1alpha1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.documents import FieldPath
from testbed.objects.kinds import Object
from testbed.objects.schema import missing
from testbed.objects.status import FieldError, invalid, required, unsupported
from testbed.objects.validation import meta, names

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_MAX_NAME = 100
_MAX_CIDR = 43


@dataclass(frozen=True)
class _Version:
    """What differs between the kinds. ports: the name of a rule's list of them; most: list lengths."""

    actions: tuple[str, ...]
    ports: str
    most: int
    priority: bool = True
    tier: bool = False


_VERSIONS: Mapping[str, _Version] = {
    "ClusterNetworkPolicy": _Version(("Accept", "Deny", "Pass"), "protocols", 25, tier=True),
    "AdminNetworkPolicy": _Version(("Allow", "Deny", "Pass"), "ports", 100),
    "BaselineAdminNetworkPolicy": _Version(("Allow", "Deny"), "ports", 100, priority=False),
}


def validate(policy: Object) -> list[FieldError]:
    """A policy of one of the kinds as a whole."""
    if errors := missing(policy):
        return errors
    version, spec, path = _VERSIONS[policy["kind"]], policy["spec"], ("spec",)
    if not version.priority and policy["metadata"].get("name") != "default":
        errors.append(invalid(("metadata", "name"), policy["metadata"].get("name"), 'must be "default"'))
    if version.tier and spec["tier"] not in ("Admin", "Baseline"):
        errors.append(unsupported((*path, "tier"), spec["tier"], ("Admin", "Baseline")))
    if version.priority and not 0 <= spec["priority"] <= 1000:
        errors.append(invalid((*path, "priority"), spec["priority"], "must be between 0 and 1000, inclusive"))
    errors += _selection((*path, "subject"), spec["subject"])
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        rules = spec.get(direction) or ()
        errors += _length((*path, direction), rules, version.most)
        for index, rule in enumerate(rules):
            errors += _rule((*path, direction, index), rule, peers, version)
    return errors


def _length(path: FieldPath, items: object, most: int, least: int = 0) -> list[FieldError]:
    count = len(items)  # type: ignore[arg-type]
    if count > most:
        return [invalid(path, count, f"must have at most {most} items")]
    return [required(path, f"must have at least {least} items")] if count < least else []


def _one_of(path: FieldPath, given: Object, known: tuple[str, ...]) -> list[FieldError]:
    if len(given) == 1:
        return []
    return [invalid(path, given, f"must have exactly one of {', '.join(known)}")]


def _selection(path: FieldPath, given: Object) -> list[FieldError]:
    errors = _one_of(path, given, ("namespaces", "pods"))
    errors += meta.selector((*path, "namespaces"), given.get("namespaces"))
    pods = given.get("pods") or {}
    for name in ("namespaceSelector", "podSelector"):
        errors += meta.selector((*path, "pods", name), pods.get(name))
    return errors


def _rule(path: FieldPath, rule: Object, peers: str, version: _Version) -> list[FieldError]:
    errors: list[FieldError] = []
    if rule["action"] not in version.actions:
        errors.append(unsupported((*path, "action"), rule["action"], version.actions))
    if len(rule.get("name", "")) > _MAX_NAME:
        errors.append(invalid((*path, "name"), rule["name"], f"must have at most {_MAX_NAME} characters"))
    errors += _length((*path, peers), rule.get(peers) or (), version.most, least=1)
    named_only = False
    for index, peer in enumerate(rule.get(peers) or ()):
        errors += _peer((*path, peers, index), peer, rule["action"])
        named_only |= not {"networks", "nodes", "domainNames"}.isdisjoint(peer)
    ports = rule.get(version.ports) or ()
    errors += _length((*path, version.ports), ports, version.most)
    for index, port in enumerate(ports):
        here = (*path, version.ports, index)
        errors += _protocol(here, port) if version.tier else _admin_port(here, port)
        if named_only and ("destinationNamedPort" in port or "namedPort" in port):
            why = (
                "networks/nodes/domainNames peer cannot be set with namedPorts since there are no namedPorts "
                "for networks/nodes/domainNames"
            )
            errors.append(invalid(path, rule, why))
    return errors


def _peer(path: FieldPath, peer: Object, action: str) -> list[FieldError]:
    if {"namespaces", "pods"} & peer.keys() or not peer:
        return _selection(path, peer)
    errors = _one_of(path, peer, ("namespaces", "pods", "nodes", "networks", "domainNames"))
    errors += meta.selector((*path, "nodes"), peer.get("nodes"))
    for index, cidr in enumerate(peer.get("networks") or ()):
        here = (*path, "networks", index)
        if names.parse_cidr(cidr) is None or len(cidr) > _MAX_CIDR:
            errors.append(invalid(here, cidr, "Invalid CIDR format provided"))
    if "domainNames" in peer and action not in ("Accept", "Allow"):
        errors.append(
            invalid((*path, "domainNames"), peer["domainNames"], "is only supported for Accept rules")
        )
    return errors


def _protocol(path: FieldPath, entry: Object) -> list[FieldError]:
    errors = _one_of(path, entry, ("tcp", "udp", "sctp", "destinationNamedPort"))
    for protocol in ("tcp", "udp", "sctp"):
        if protocol not in entry:
            continue
        port = (entry[protocol] or {}).get("destinationPort")
        if port is None:
            errors.append(required((*path, protocol), "must have at least 1 properties"))
            continue
        here = (*path, protocol, "destinationPort")
        errors += _one_of(here, port, ("number", "range"))
        errors += _number((*here, "number"), port.get("number"))
        errors += _range((*here, "range"), port.get("range"))
    return errors


def _admin_port(path: FieldPath, entry: Object) -> list[FieldError]:
    errors = _one_of(path, entry, ("portNumber", "namedPort", "portRange"))
    for name in ("portNumber", "portRange"):
        given = entry.get(name) or {}
        protocol = given.get("protocol")
        if protocol is not None and protocol not in _PROTOCOLS:
            errors.append(unsupported((*path, name, "protocol"), protocol, _PROTOCOLS))
    errors += _number((*path, "portNumber", "port"), (entry.get("portNumber") or {}).get("port"))
    errors += _range((*path, "portRange"), entry.get("portRange"))
    return errors


def _number(path: FieldPath, number: int | None) -> list[FieldError]:
    return [] if number is None else names.checked(path, number, names.port_number(number))


def _range(path: FieldPath, span: Object | None) -> list[FieldError]:
    if span is None:
        return []
    errors = _number((*path, "start"), span["start"]) + _number((*path, "end"), span["end"])
    if span["start"] >= span["end"]:
        errors.append(invalid(path, span, "Start port must be less than End port"))
    return errors
