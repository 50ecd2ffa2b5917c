"""Rules for Services. Source: ``pkg/apis/core/validation/validation.go`` (ValidateService and below)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.documents import FieldPath
from testbed.objects.allocate import FAMILIES, NONE, needs_health_check_port
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, duplicate, forbidden, invalid, required, unsupported
from testbed.objects.validation import names
from testbed.objects.validation.pod import PROTOCOLS

_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_AFFINITIES = ("ClientIP", "None")
_POLICIES = ("Cluster", "Local")
_FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
_IP_MODES = ("Proxy", "VIP")
_MAX_AFFINITY_SECONDS = 86400

Spec = dict[str, Any]
_SPEC: FieldPath = ("spec",)


def _at(*names_below: str | int) -> FieldPath:
    return (*_SPEC, *names_below)


def validate(service: Object) -> list[FieldError]:
    """A Service as a whole."""
    spec: Spec = service.get("spec") or {}
    errors = _ports(spec) + _by_type(spec)
    if (affinity := spec.get("sessionAffinity")) not in _AFFINITIES:
        errors.append(unsupported(_at("sessionAffinity"), affinity, _AFFINITIES))
    errors += _affinity(spec)
    errors += names.label_map(_at("selector"), spec.get("selector"))
    errors += _addresses(spec)
    if spec.get("type") not in _TYPES:
        errors.append(unsupported(_at("type"), spec.get("type"), _TYPES))
    errors += _external(spec)
    return errors + _only_load_balancer(spec)


def validate_service_cidr(obj: Object) -> list[FieldError]:
    """A ServiceCIDR. Source: ``pkg/apis/networking/validation/validation.go`` (ValidateServiceCIDR)."""
    cidrs: list[str] = (obj.get("spec") or {}).get("cidrs") or []
    if not cidrs:
        return [required(_at("cidrs"), "at least one CIDR required")]
    if len(cidrs) > 2:
        return [invalid(_at("cidrs"), cidrs, "may only hold up to 2 values")]
    errors = [error for index, cidr in enumerate(cidrs) for error in names.cidr(_at("cidrs", index), cidr)]
    if not errors and len({":" in cidr for cidr in cidrs}) < len(cidrs):
        why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
        errors.append(invalid(_at("cidrs"), cidrs, why))
    return errors


def _ports(spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    ports: Sequence[Object] = spec.get("ports") or []
    headless = spec.get("clusterIP") == NONE
    if not ports and not headless and spec.get("type") != "ExternalName":
        errors.append(required(_at("ports")))
    seen_names: set[str] = set()
    for index, port in enumerate(ports):
        errors += _port(_at("ports", index), port, len(ports) > 1, headless, seen_names)
    seen: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        key = (port.get("protocol", ""), port.get("port", 0))
        if key in seen:
            errors.append(duplicate(_at("ports", index), {"port": key[1], "protocol": key[0]}))
        seen.add(key)
    return errors


def _port(path: FieldPath, port: Object, several: bool, headless: bool, seen: set[str]) -> list[FieldError]:
    errors: list[FieldError] = []
    name, number = port.get("name", ""), port.get("port", 0)
    if name:
        errors += names.checked((*path, "name"), name, names.label(name))
        if name in seen:
            errors.append(duplicate((*path, "name"), name))
        seen.add(name)
    elif several:
        errors.append(required((*path, "name")))
    errors += names.checked((*path, "port"), number, names.port_number(number))
    if (protocol := port.get("protocol")) not in PROTOCOLS:
        errors.append(unsupported((*path, "protocol"), protocol, PROTOCOLS))
    target: Any = port.get("targetPort", number)
    wrong = names.port_name(target) if isinstance(target, str) else names.port_number(target)
    errors += names.checked((*path, "targetPort"), target, wrong)
    if (app := port.get("appProtocol")) is not None:
        errors += names.checked((*path, "appProtocol"), app, names.qualified_name(app))
    return errors


def _by_type(spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    kind, headless = spec.get("type"), spec.get("clusterIP") == NONE
    if kind in ("NodePort", "LoadBalancer") and headless:
        why = "may not be set to 'None' for LoadBalancer services"
        errors.append(invalid(_at("clusterIPs", 0), NONE, why.replace("LoadBalancer", str(kind))))
    if kind == "ExternalName":
        for name in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(name):
                errors.append(forbidden(_at(name), "may not be set for ExternalName services"))
        external = spec.get("externalName", "")
        if external:
            wrong = names.subdomain(external.removesuffix("."))
            errors += names.checked(_at("externalName"), external, wrong)
        else:
            errors.append(required(_at("externalName")))
    if kind in ("ClusterIP", "ExternalName"):
        for index, port in enumerate(spec.get("ports") or ()):
            if port.get("nodePort"):
                why = f"may not be used when `type` is '{kind}'"
                errors.append(forbidden(_at("ports", index, "nodePort"), why))
    return errors


def _affinity(spec: Spec) -> list[FieldError]:
    if spec.get("sessionAffinity") != "ClientIP":
        return []
    seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds", 0)
    if 0 < seconds <= _MAX_AFFINITY_SECONDS:
        return []
    why = f"must be greater than 0 and less than {_MAX_AFFINITY_SECONDS}"
    return [invalid(_at("sessionAffinityConfig", "clientIP", "timeoutSeconds"), seconds, why)]


def _addresses(spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    families: list[str] = spec.get("ipFamilies") or []
    addresses: list[str] = spec.get("clusterIPs") or []
    if (policy := spec.get("ipFamilyPolicy")) is not None and policy not in _FAMILY_POLICIES:
        errors.append(unsupported(_at("ipFamilyPolicy"), policy, _FAMILY_POLICIES))
    if spec.get("type") == "ExternalName":
        return errors
    for index, family in enumerate(families):
        if family not in FAMILIES.values():
            errors.append(unsupported(_at("ipFamilies", index), family, sorted(FAMILIES.values())))
        elif family in families[:index]:
            errors.append(duplicate(_at("ipFamilies", index), family))
    if policy == "SingleStack" and len(families) > 1:
        errors.append(
            invalid(
                _at("ipFamilies"), families, "may only hold one value when `ipFamilyPolicy` is SingleStack"
            )
        )
    if spec.get("clusterIP", "") != (addresses[0] if addresses else ""):
        errors.append(invalid(_at("clusterIPs"), addresses, "first value must match `clusterIP`"))
    if len(addresses) > 2:
        errors.append(invalid(_at("clusterIPs"), addresses, "may only hold up to 2 values"))
    for index, address in enumerate(addresses):
        if address == NONE and (index or len(addresses) > 1):
            why = "'None' must be the first and only value"
            errors.append(invalid(_at("clusterIPs", index), address, why))
        elif address != NONE:
            errors += _address(_at("clusterIPs", index), address, families[index : index + 1])
    return errors


def _address(path: FieldPath, text: str, family: Sequence[str]) -> list[FieldError]:
    errors = names.ip(path, text)
    address = names.parse_ip(text)
    if not errors and address and family and FAMILIES[address.version] != family[0]:
        errors.append(
            invalid(path, text, f"expected an {family[0]} value as indicated by `ipFamilies[{path[-1]}]`")
        )
    return errors


def externally_accessible(spec: Spec) -> bool:
    """Whether traffic can come from outside the cluster to this service's own ports."""
    kind = spec.get("type")
    return kind in ("LoadBalancer", "NodePort") or (kind == "ClusterIP" and bool(spec.get("externalIPs")))


def _external(spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, address in enumerate(spec.get("externalIPs") or ()):
        path = _at("externalIPs", index)
        errors += names.ip(path, address) or names.endpoint_address(path, address)
    policy = spec.get("externalTrafficPolicy")
    if policy is not None and not externally_accessible(spec):
        why = "may only be set for externally-accessible services"
        errors.append(invalid(_at("externalTrafficPolicy"), policy, why))
    elif policy is not None and policy not in _POLICIES:
        errors.append(unsupported(_at("externalTrafficPolicy"), policy, _POLICIES))
    internal = spec.get("internalTrafficPolicy")
    if internal is not None and internal not in _POLICIES:
        errors.append(unsupported(_at("internalTrafficPolicy"), internal, _POLICIES))
    if spec.get("healthCheckNodePort") and not needs_health_check_port(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        errors.append(invalid(_at("healthCheckNodePort"), spec["healthCheckNodePort"], why))
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in _DISTRIBUTIONS:
        errors.append(unsupported(_at("trafficDistribution"), distribution, _DISTRIBUTIONS))
    return errors


def _only_load_balancer(spec: Spec) -> list[FieldError]:
    """Fields of load balancers. The capital L in one path is upstream's."""
    errors: list[FieldError] = []
    is_one = spec.get("type") == "LoadBalancer"
    why = "may only be used when `type` is 'LoadBalancer'"
    if spec.get("loadBalancerSourceRanges") and not is_one:
        errors.append(forbidden(_at("LoadBalancerSourceRanges"), why))
    elif is_one:
        for index, cidr in enumerate(spec.get("loadBalancerSourceRanges") or ()):
            errors += names.cidr(_at("LoadBalancerSourceRanges", index), cidr.strip())
    for name in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
        if name in spec and not is_one:
            errors.append(forbidden(_at(name), why))
    return errors


def validate_status(service: Object) -> list[FieldError]:
    """What somebody says of a Service's load balancer (ValidateLoadBalancerStatus)."""
    path: FieldPath = ("status", "loadBalancer", "ingress")
    listed = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    if listed and (service.get("spec") or {}).get("type") != "LoadBalancer":
        return [forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'")]
    errors: list[FieldError] = []
    for index, entry in enumerate(listed):
        address, mode = entry.get("ip"), entry.get("ipMode")
        if address:
            errors += names.ip((*path, index, "ip"), address)
        if mode is not None and not address:
            errors.append(forbidden((*path, index, "ipMode"), "may not be specified when `ip` is not set"))
        elif mode is not None and mode not in _IP_MODES:
            errors.append(unsupported((*path, index, "ipMode"), mode, _IP_MODES))
    return errors


# --- updates ----------------------------------------------------------------------------------------------


def prepare(new: Object, old: Object | None) -> Object:
    """A Service with clusterIP and clusterIPs in step, and with what an update silently keeps or drops.

    Source: ``pkg/registry/core/service/{strategy,storage/alloc}.go``: normalizeClusterIPs,
    patchAllocatedValues, dropTypeDependentFields.
    """
    spec = dict(new.get("spec") or {})
    before: Spec = old["spec"] if old else {}
    if old and _has_addresses(before) and _has_addresses(spec):
        if not spec.get("clusterIP"):
            spec["clusterIP"] = before["clusterIP"]
        elif spec["clusterIP"] != before.get("clusterIP") and spec.get("clusterIPs") == before.get(
            "clusterIPs"
        ):
            spec["clusterIPs"] = [spec["clusterIP"], *(spec.get("clusterIPs") or ())[1:]]
        if not spec.get("clusterIPs"):
            same = spec["clusterIP"] == before["clusterIP"]
            spec["clusterIPs"] = list(before["clusterIPs"]) if same else [spec["clusterIP"]]
    elif old and spec.get("type") == "ExternalName" and _has_addresses(before):
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(name) == before.get(name):
                spec.pop(name, None)
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIPs") and not spec.get("clusterIP"):
        spec["clusterIP"] = spec["clusterIPs"][0]
    if spec.get("clusterIP") == "":
        del spec["clusterIP"]
    if old:
        _keep_or_drop(spec, before)
    return {**new, "spec": spec}


def _has_addresses(spec: Spec) -> bool:
    return bool(spec.get("type") != "ExternalName")


def _keep_or_drop(spec: Spec, before: Spec) -> None:
    """Node ports and load balancer fields across an update."""
    external = ("NodePort", "LoadBalancer")
    old_ports = {(port["protocol"], port["port"]): port.get("nodePort") for port in before.get("ports") or ()}
    if spec.get("type") in external and before.get("type") in external:
        spec["ports"] = [
            {**port, "nodePort": kept}
            if not port.get("nodePort") and (kept := old_ports.get((port["protocol"], port["port"])))
            else port
            for port in spec.get("ports") or ()
        ]
        if needs_health_check_port(spec) and before.get("healthCheckNodePort"):
            spec.setdefault("healthCheckNodePort", before["healthCheckNodePort"])
    elif before.get("type") in external and spec.get("ports"):
        unchanged = {port for port in old_ports.values() if port}
        spec["ports"] = [
            {key: value for key, value in port.items() if key != "nodePort" or value not in unchanged}
            for port in spec["ports"]
        ]
    if spec.get("type") != before.get("type"):
        dropped = ["allocateLoadBalancerNodePorts"] if spec.get("type") != "LoadBalancer" else []
        if not externally_accessible(spec):
            dropped.append("externalTrafficPolicy")
        for name in dropped:
            if spec.get(name) == before.get(name):
                spec.pop(name, None)
    if not needs_health_check_port(spec) and spec.get("healthCheckNodePort") == before.get(
        "healthCheckNodePort"
    ):
        spec.pop("healthCheckNodePort", None)


def validate_update(new: Object, old: Object) -> list[FieldError]:
    """What stays as it is while a Service keeps its addresses."""
    errors: list[FieldError] = []
    spec, before = new["spec"], old["spec"]
    if "ExternalName" in (spec.get("type"), before.get("type")):
        return errors
    addresses, had = spec.get("clusterIPs") or [], before.get("clusterIPs") or []
    if had and addresses[:1] != had[:1]:
        errors.append(invalid(_at("clusterIPs", 0), addresses, "may not change once set"))
    families, had_families = spec.get("ipFamilies") or [], before.get("ipFamilies") or []
    if families and had_families and families[0] != had_families[0]:
        errors.append(invalid(_at("ipFamilies", 0), families, "may not change once set"))
    if needs_health_check_port(spec) and needs_health_check_port(before):
        number = spec.get("healthCheckNodePort")
        if number != before.get("healthCheckNodePort"):
            errors.append(invalid(_at("healthCheckNodePort"), number, "field is immutable"))
    both = spec.get("type") == before.get("type") == "LoadBalancer"
    chosen = spec.get("loadBalancerClass")
    if both and chosen != before.get("loadBalancerClass"):
        errors.append(invalid(_at("loadBalancerClass"), chosen, "may not change once set"))
    return errors
