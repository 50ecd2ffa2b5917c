"""ClusterIPs and node ports of Services: which are free, and which a Service gets.

Asked-for ones are given if they are free; the others are drawn at random from the upper band of their
range, and from the lower one, which people pick from by hand, only when the upper is full.
Sources: ``pkg/registry/core/service/{ipallocator,portallocator,storage/alloc.go}``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from testbed.documents import FieldPath
from testbed.objects.kinds import BY_NAME, Object
from testbed.objects.status import ApiError, FieldError, duplicate, invalid

FAMILIES = {4: "IPv4", 6: "IPv6"}
NONE = "None"
_TRIES = 32


@dataclass(frozen=True)
class ServiceRanges:
    """Where Services get their addresses and ports. cidrs: one per family, the primary first."""

    cidrs: tuple[IPv4Network | IPv6Network, ...]
    node_ports: range = range(30000, 32768)

    @property
    def families(self) -> tuple[str, ...]:
        """``("IPv4", "IPv6")`` as the cluster has them, the primary first."""
        return tuple(FAMILIES[cidr.version] for cidr in self.cidrs)


def needs_cluster_ip(spec: Object) -> bool:
    """Whether a Service has an address of its own."""
    return spec.get("type") != "ExternalName" and spec.get("clusterIP") != NONE


def needs_node_ports(spec: Object) -> bool:
    """Whether each port gets a node port."""
    if spec.get("type") == "LoadBalancer":
        return bool(spec.get("allocateLoadBalancerNodePorts", True))
    return spec.get("type") == "NodePort"


def needs_health_check_port(spec: Object) -> bool:
    """Whether a load balancer asks the nodes which of them have endpoints."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


class _Full(Exception):
    """Nothing is left in a range."""


@dataclass
class _Pool:
    """Numbers in use out of ``numbers``; the first ``band`` are given last."""

    numbers: range
    band: int
    used: set[int] = field(default_factory=set)

    def copy(self) -> _Pool:
        """An independent copy."""
        return _Pool(self.numbers, self.band, set(self.used))

    def draw(self, rng: random.Random) -> int:
        """A free number. Raises _Full."""
        for band in (self.numbers[self.band :], self.numbers[: self.band]):
            if not band:
                continue
            for _ in range(_TRIES):
                if (number := rng.choice(band)) not in self.used:
                    self.used.add(number)
                    return number
            free = next((number for number in band if number not in self.used), None)
            if free is not None:
                self.used.add(free)
                return free
        raise _Full


def _ip_pool(cidr: IPv4Network | IPv6Network) -> _Pool:
    first, last = int(cidr.network_address) + 1, int(cidr.broadcast_address)
    size = cidr.num_addresses
    # IPv6 has no broadcast address, so its last one is given, too.
    return _Pool(range(first, last + (cidr.version == 6)), min(max(16, size // 16), 256))


class Allocator:
    """What the Services of one store use. ``ranges`` says of what; seed makes the draws repeatable."""

    def __init__(self, ranges: ServiceRanges, seed: int | None = None) -> None:
        self.ranges = ranges
        self._random = random.Random(seed)  # noqa: S311 - addresses, not secrets
        self._ips = {FAMILIES[cidr.version]: _ip_pool(cidr) for cidr in ranges.cidrs}
        ports = len(ranges.node_ports)
        self._ports = _Pool(ranges.node_ports, min(max(16, ports // 32), 128) if ports > 16 else 0)

    def copy(self) -> Allocator:
        """An independent copy: what it gives is not given here."""
        twin = copy.copy(self)
        twin._random = random.Random()  # noqa: S311
        twin._random.setstate(self._random.getstate())
        twin._ips = {family: pool.copy() for family, pool in self._ips.items()}
        twin._ports = self._ports.copy()
        return twin

    def admit(self, new: Object, old: Object | None) -> Object:
        """The Service with families, addresses and node ports; what ``old`` had and it has not is free again.

        Raises ApiError (422) for what cannot be given; then nothing is.
        """
        trial = self.copy()
        if old is not None:
            trial.release(old)
        spec = dict(new["spec"])
        errors: list[FieldError] = []
        trial._give_families(spec, errors)
        if not errors:
            trial._give_addresses(spec, errors)
            trial._give_ports(spec, errors)
        if errors:
            raise ApiError.invalid(BY_NAME["Service"], new["metadata"]["name"], errors)
        self._ips, self._ports, self._random = trial._ips, trial._ports, trial._random
        return {**new, "spec": spec}

    def release(self, service: Object) -> None:
        """Free what the Service has."""
        spec = service["spec"]
        for address in _addresses(spec):
            if pool := self._ips.get(FAMILIES[address.version]):
                pool.used.discard(int(address))
        self._ports.used.difference_update(_node_ports(spec))

    # --- address families -------------------------------------------------------------------------------

    def _give_families(self, spec: Object, errors: list[FieldError]) -> None:
        """ipFamilies and ipFamilyPolicy (initIPFamilyFields)."""
        if spec["type"] == "ExternalName":
            for name in ("ipFamilies", "ipFamilyPolicy", "clusterIP", "clusterIPs"):
                spec.pop(name, None)
            return
        given: list[str] = list(spec.get("ipFamilies") or ())
        families = given or [FAMILIES[address.version] for address in _addresses(spec)]
        families = families or [self.ranges.families[0]]
        if spec.get("clusterIP") == NONE and not spec.get("selector"):
            # Whoever makes the endpoints by hand may use either family, on any cluster.
            policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack")
            both = policy != "SingleStack" and len(families) == 1
            spec["ipFamilies"] = [*families, _other(families[0])] if both else families
            return
        policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(families) > 1 else "SingleStack")
        errors.extend(
            invalid(("spec", "ipFamilies", index), family, "not configured on this cluster")
            for index, family in enumerate(families)
            if family not in self.ranges.families
        )
        if policy == "RequireDualStack" and len(self.ranges.families) < 2:
            why = "this cluster is not configured for dual-stack services"
            errors.append(invalid(("spec", "ipFamilyPolicy"), policy, why))
        if policy != "SingleStack" and len(families) == 1 and len(self.ranges.families) == 2:
            families = [*families, _other(families[0])]
        spec["ipFamilies"] = families[:1] if policy == "SingleStack" else families

    # --- addresses --------------------------------------------------------------------------------------

    def _give_addresses(self, spec: Object, errors: list[FieldError]) -> None:
        if spec["type"] == "ExternalName":
            return
        if spec.get("clusterIP") == NONE:
            spec["clusterIPs"] = [NONE]
            return
        asked = {FAMILIES[address.version]: address for address in _addresses(spec)}
        path: FieldPath = ("spec", "clusterIPs")
        given: list[str] = []
        for family in spec["ipFamilies"]:
            pool = self._ips[family]
            address = asked.get(family)
            if address is None:
                try:
                    given.append(str(ip_address(self._draw_address(family))))
                except _Full:
                    errors.append(invalid(path, spec.get("clusterIPs") or [], "range is full"))
                continue
            why = ""
            if int(address) not in pool.numbers:
                why = "the provided network does not match the current range"
            elif int(address) in pool.used:
                why = "provided IP is already allocated"
            if why:
                value = list(spec.get("clusterIPs") or [str(address)])
                errors.append(invalid(path, value, f"failed to allocate IP {address}: {why}"))
            pool.used.add(int(address))
            given.append(str(address))
        spec["clusterIPs"] = given
        if given:
            spec["clusterIP"] = given[0]

    def _draw_address(self, family: str) -> int | bytes:
        number = self._ips[family].draw(self._random)
        return number if family == "IPv4" else number.to_bytes(16, "big")

    # --- ports ------------------------------------------------------------------------------------------

    def _give_ports(self, spec: Object, errors: list[FieldError]) -> None:
        ports = [dict(port) for port in spec.get("ports") or ()]
        if needs_node_ports(spec):
            self._give_node_ports(ports, errors)
        if ports:
            spec["ports"] = ports
        if not needs_health_check_port(spec):
            spec.pop("healthCheckNodePort", None)
        elif asked := spec.get("healthCheckNodePort"):
            self._take_port(asked, ("spec", "healthCheckNodePort"), errors)
        else:
            try:
                spec["healthCheckNodePort"] = self._ports.draw(self._random)
            except _Full:
                errors.append(FieldError(("spec", "healthCheckNodePort"), "Internal error: range is full"))

    def _give_node_ports(self, ports: list[Object], errors: list[FieldError]) -> None:
        """Asked-for ones first; one number may serve several protocols of one service."""
        taken: dict[int, set[str]] = {}
        for index, port in enumerate(ports):
            number, protocol = port.get("nodePort"), port["protocol"]
            if not number:
                continue
            path = ("spec", "ports", index, "nodePort")
            if number not in taken:
                self._take_port(number, path, errors)
            elif protocol in taken[number]:
                errors.append(duplicate(path, number))
            taken.setdefault(number, set()).add(protocol)
        for index, port in enumerate(ports):
            if port.get("nodePort"):
                continue
            try:
                port["nodePort"] = self._shared(port, ports) or self._ports.draw(self._random)
            except _Full:
                why = "Internal error: failed to allocate a nodePort: range is full"
                errors.append(FieldError(("spec", "ports", index, "nodePort"), why))

    @staticmethod
    def _shared(port: Object, ports: Iterable[Object]) -> int:
        """The node port of another protocol's entry for the same port, if there is one."""
        for other in ports:
            if (
                other.get("nodePort")
                and other["port"] == port["port"]
                and other["protocol"] != port["protocol"]
            ):
                number: int = other["nodePort"]
                return number
        return 0

    def _take_port(self, number: int, path: FieldPath, errors: list[FieldError]) -> None:
        numbers = self._ports.numbers
        if number not in numbers:
            why = (
                "provided port is not in the valid range. "
                f"The range of valid ports is {numbers.start}-{numbers.stop - 1}"
            )
            errors.append(invalid(path, number, why))
        elif number in self._ports.used:
            errors.append(invalid(path, number, "provided port is already allocated"))
        else:
            self._ports.used.add(number)


def _other(family: str) -> str:
    return "IPv6" if family == "IPv4" else "IPv4"


def _addresses(spec: Object) -> Iterator[Any]:
    listed = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    for text in listed:
        if text and text != NONE:
            yield ip_address(text)


def _node_ports(spec: Object) -> set[int]:
    ports = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
    return ports | ({spec["healthCheckNodePort"]} if spec.get("healthCheckNodePort") else set())
