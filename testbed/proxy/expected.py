"""Where a flow to a Service should come out on a node, by what Services mean and without any rule.

Source: the tables in ``pkg/proxy/iptables/proxier.go`` and KEP 2438, in the words of ``proxy.services``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from testbed.proxy.services import BackedPort, Backend
from testbed.proxy.settings import Settings
from testbed.rules.flows import Flow, Host, Verdict, Verdicts, together

DROPPED, REJECTED = Verdict("drop"), Verdict("reject")


@dataclass(frozen=True)
class Mode:
    """What proxy modes answer differently.

    guards_own: whether the node's own packets for an external address are refused, too, where nobody serves
    it; without, they are sent on as they are. guards_node_ports: whether a node port without endpoints is
    closed on addresses, too, that no node port answers on. reserves_cluster_ips: whether what is for a
    cluster IP, but for no port of it, is refused, and what is for any other address of the service ranges
    dropped. guards_unserved: whether source ranges hold where nobody serves, too. hairpins_elsewhere: whether
    what endpoints of other nodes send to themselves is masqueraded.
    """

    guards_own: bool
    guards_node_ports: bool
    reserves_cluster_ips: bool
    guards_unserved: bool
    hairpins_elsewhere: bool


IPTABLES = Mode(
    guards_own=False,
    guards_node_ports=True,
    reserves_cluster_ips=False,
    guards_unserved=False,
    hairpins_elsewhere=True,
)
NFTABLES = Mode(
    guards_own=True,
    guards_node_ports=False,
    reserves_cluster_ips=True,
    guards_unserved=True,
    hairpins_elsewhere=False,
)


@dataclass(frozen=True)
class Services:
    """The ports that are served on a node, and how. ranges: those of ServiceCIDRs that are known."""

    ports: tuple[BackedPort, ...]
    settings: Settings
    host: Host
    mode: Mode
    ranges: tuple[str, ...] = ()

    def expected(self, flow: Flow) -> Verdicts:
        """What should become of the first packet of a flow."""
        return together(self._verdicts(flow))

    def _verdicts(self, flow: Flow) -> Iterator[tuple[Verdict, float]]:
        alike = [port for port in self.ports if port.protocol == flow.protocol]
        # Addresses of Services come before those of the node.
        for port in (port for port in alike if port.port == flow.port):
            if flow.destination == port.cluster_ip:
                return self._internal(port, flow)
            if flow.destination in port.external_ips:
                return self._external(port, flow)
            if flow.destination in port.vips:
                return self._external(port, flow) if self._lets_in(port, flow) else iter([(DROPPED, 1.0)])
        if self.host.is_local(flow.destination):
            for port in (port for port in alike if port.node_port == flow.port):
                if self._answers(flow.destination):
                    return self._external(port, flow)
                if self.mode.guards_node_ports and not port.external:
                    return iter([(DROPPED if port.anywhere else REJECTED, 1.0)])
        return iter([(self._unserved(flow), 1.0)])

    def _unserved(self, flow: Flow) -> Verdict:
        """What becomes of a flow to nothing that a Service has."""
        if self.mode.reserves_cluster_ips and not self.host.is_local(flow.destination):
            if any(flow.destination == port.cluster_ip for port in self.ports):
                return REJECTED
            if any(ip_address(flow.destination) in ip_network(cidr) for cidr in self.ranges):
                return DROPPED
        return Verdict("pass", flow.to)

    def _answers(self, address: str) -> bool:
        """Whether node ports answer on an address."""
        if not self.host.is_local(address):
            return False
        if ip_address(address).is_loopback:
            return self.settings.loopback
        ranges = self.settings.node_port_addresses
        return not ranges or any(ip_address(address) in ip_network(cidr) for cidr in ranges)

    def _internal(self, port: BackedPort, flow: Flow) -> Iterator[tuple[Verdict, float]]:
        if not port.internal:
            yield DROPPED if port.anywhere else REJECTED, 1.0
        hidden = self.settings.masquerade_all or (bool(self.settings.local) and not self._from_pod(flow))
        yield from self._spread(port.internal, flow, hidden)

    def _external(self, port: BackedPort, flow: Flow) -> Iterator[tuple[Verdict, float]]:
        own = self.host.is_local(flow.source)
        if not port.anywhere:
            # A node's own packets for an address that is not its own pass OUTPUT alone.
            guarded = flow.device or self.host.is_local(flow.destination) or self.mode.guards_own
            yield REJECTED if guarded else self._unserved(flow), 1.0
        elif not port.external_local:
            yield from self._spread(port.cluster, flow, True)
        elif self._from_pod(flow) or own:  # short-circuited, as if it were for the cluster IP
            yield from self._spread(port.cluster, flow, own)
        elif not port.local:
            yield DROPPED, 1.0
        else:
            yield from self._spread(port.local, flow, False)

    def _from_pod(self, flow: Flow) -> bool:
        return bool(self.settings.local) and ip_address(flow.source) in ip_network(self.settings.local)

    def _lets_in(self, port: BackedPort, flow: Flow) -> bool:
        """Whether a load balancer's source ranges admit a flow."""
        if not port.source_ranges or not (port.anywhere or self.mode.guards_unserved):
            return True
        admitted = (flow.source, *self.host.addresses) if flow.source in port.vips else (flow.source,)
        ranges = [ip_network(cidr) for cidr in port.source_ranges]
        return any(ip_address(each) in cidr for each in admitted for cidr in ranges)

    def _spread(
        self, backends: Iterable[Backend], flow: Flow, masqueraded: bool
    ) -> Iterator[tuple[Verdict, float]]:
        """To each endpoint with the same chance; what one sends to itself would else not come back."""
        among = tuple(backends)
        for backend in among:
            hairpin = backend.ip == flow.source and (backend.local or self.mode.hairpins_elsewhere)
            yield Verdict("pass", str(backend), masqueraded or hairpin), 1 / len(among)
