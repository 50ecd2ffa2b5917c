"""What a cloud's load balancers decide: which Services get one, with which addresses, over which nodes.

Sources: ``cloud-provider/controllers/service/controller.go``, ``service/helpers/helper.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from testbed.control.snapshot import Node
from testbed.errors import TestbedError
from testbed.objects.saved import LOAD_BALANCER_CLEANUP

Object = dict[str, Any]

FINALIZER = LOAD_BALANCER_CLEANUP


class NoAddress(TestbedError):
    """A load balancer cannot have the address it needs."""


def wants(service: Object) -> bool:
    """Whether a Service is to have a load balancer of ours; one of a class is somebody else's."""
    spec = service["spec"]
    return (
        spec.get("type") == "LoadBalancer"
        and not spec.get("loadBalancerClass")
        and "deletionTimestamp" not in service["metadata"]
    )


class Addresses:
    """The addresses of load balancers. cidrs: where they come from, one range a family at most."""

    def __init__(self, cidrs: Sequence[str]) -> None:
        self._ranges: dict[str, IPv4Network | IPv6Network] = {
            f"IPv{network.version}": network for network in map(ip_network, cidrs)
        }
        self._given: dict[str, str] = {}  # address → uid of the Service that has it

    def give(self, service: Object, recorded: Sequence[str] = ()) -> tuple[str, ...]:
        """The addresses of a Service, one per family; those it had already, if they still serve.

        recorded: those its status says it has. Raises NoAddress; then it keeps none.
        """
        uid, spec = service["metadata"]["uid"], service["spec"]
        had = {_family(address): address for address in (*recorded, *self.of(uid))}
        asked = spec.get("loadBalancerIP") or ""
        self.release(uid)
        given: list[str] = []
        if asked and not _is_address(asked):  # the API takes any text
            raise NoAddress(f"loadBalancerIP {asked} is no address")
        try:
            for family in spec.get("ipFamilies") or ("IPv4",):
                wanted = asked if asked and _family(asked) == family else ""
                given.append(self._one(uid, family, wanted, "" if wanted else had.get(family, "")))
        except NoAddress:
            self.release(uid)
            raise
        return tuple(given)

    def covers(self, address: str) -> bool:
        """Whether an address is of our ranges."""
        network = self._ranges.get(_family(address))
        return network is not None and ip_address(address) in network

    def of(self, uid: str) -> tuple[str, ...]:
        """What a Service has."""
        return tuple(address for address, owner in self._given.items() if owner == uid)

    def release(self, uid: str) -> bool:
        """Free what a Service has. Whether it had anything."""
        had = self.of(uid)
        for address in had:
            del self._given[address]
        return bool(had)

    def _one(self, uid: str, family: str, asked: str, had: str) -> str:
        network = self._ranges.get(family)
        if network is None:
            raise NoAddress(f"there is no {family} range for load balancers (spec.network.loadBalancerCIDR)")
        if asked:
            if ip_address(asked) not in network:
                raise NoAddress(f"loadBalancerIP {asked} is not in loadBalancerCIDR {network}")
            if asked in self._given:
                raise NoAddress(f"loadBalancerIP {asked} is another Service's")
            address = asked
        elif had and had not in self._given and ip_address(had) in network:
            address = had
        else:
            free = (str(host) for host in network.hosts() if str(host) not in self._given)
            address = next(free, "")
            if not address:
                raise NoAddress(f"no address of loadBalancerCIDR {network} is free")
        self._given[address] = uid
        return address


def _family(address: str) -> str:
    return f"IPv{ip_address(address).version}"


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


def status(service: Object, addresses: Sequence[str]) -> Object:
    """The Service's status with these addresses of its load balancer."""
    ingress = [{"ip": address, "ipMode": "VIP"} for address in addresses]
    return {**service.get("status", {}), "loadBalancer": {"ingress": ingress} if ingress else {}}


def balanced(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes that load balancers may use; health checks choose among them."""
    return tuple(node for node in nodes if node.ready and node.balanced and not node.to_be_deleted)
