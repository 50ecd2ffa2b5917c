"""The environment variables that tell a container of Services, with the old docker-link form.

Sources: ``pkg/kubelet/envvars/envvars.go``; which Services: ``pkg/kubelet/kubelet_pods.go``
(getServiceEnvVarMap).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.control.snapshot import Pod, Service, ServiceKey, Snapshot

Links = tuple[Mapping[str, str], ...]
"""What containers are told of Services: one mapping a Service; of two that name a variable the later wins."""

MASTER: ServiceKey = ("default", "kubernetes")
"""The Service of the API, which every container is told of, unless its namespace has one of that name."""


class ServiceLinks:
    """What the containers of each namespace are told now; the same object as long as it is the same."""

    def __init__(self) -> None:
        self._services: dict[ServiceKey, Service] | None = None
        self._variables: dict[ServiceKey, tuple[Service, Mapping[str, str]]] = {}
        self._links: dict[tuple[str, bool], Links] = {}
        self._fresh: set[tuple[str, bool]] = set()

    def of(self, snapshot: Snapshot, pod: Pod) -> Links:
        """What a container of ``pod`` that starts now is told."""
        if snapshot.services is not self._services:
            self._services = snapshot.services
            self._fresh.clear()
            gone = self._variables.keys() - snapshot.services.keys()
            for key in gone:
                del self._variables[key]
        wanted = pod.namespace, pod.enable_service_links
        if wanted not in self._fresh:
            now = tuple(map(self._of, _chosen(snapshot.services, *wanted)))
            if self._links.get(wanted) != now:
                self._links[wanted] = now
            self._fresh.add(wanted)
        return self._links[wanted]

    def _of(self, service: Service) -> Mapping[str, str]:
        key = service.namespace, service.name
        known = self._variables.get(key)
        if known is None or known[0] is not service:
            known = self._variables[key] = service, variables(service)
        return known[1]


def links(snapshot: Snapshot, pod: Pod) -> Links:
    """What a container of ``pod`` that starts at this moment is told."""
    return ServiceLinks().of(snapshot, pod)


def _chosen(
    services: Mapping[ServiceKey, Service], namespace: str, enable_service_links: bool
) -> Iterator[Service]:
    """The API's, and those of the pod's own namespace, by name (upstream has no order)."""
    own = {key[1]: service for key, service in services.items() if key[0] == namespace}
    chosen = own if enable_service_links else {}
    if MASTER in services and (MASTER[0] == namespace or MASTER[1] not in chosen):
        chosen = {**chosen, MASTER[1]: services[MASTER]}
    return (chosen[name] for name in sorted(chosen) if chosen[name].cluster_ips)


def variables(service: Service) -> dict[str, str]:
    """The variables of one Service with a cluster IP: of its primary address and its ports alone."""
    if not service.ports:
        return {}
    prefix, address = _name(service.name), service.cluster_ips[0]
    first = service.ports[0]
    made = {f"{prefix}_SERVICE_HOST": address, f"{prefix}_SERVICE_PORT": str(first.port)}
    made |= {
        f"{prefix}_SERVICE_PORT_{_name(port.name)}": str(port.port) for port in service.ports if port.name
    }
    made[f"{prefix}_PORT"] = _url(first.protocol, address, first.port)
    for port in service.ports:
        link = f"{prefix}_PORT_{port.port}_{port.protocol.upper()}"
        made |= {
            link: _url(port.protocol, address, port.port),
            f"{link}_PROTO": port.protocol.lower(),
            f"{link}_PORT": str(port.port),
            f"{link}_ADDR": address,
        }
    return made


def _name(text: str) -> str:
    return text.upper().replace("-", "_")


def _url(protocol: str, address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{protocol.lower()}://{host}:{port}"
