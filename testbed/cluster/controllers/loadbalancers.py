"""Gives Services of type LoadBalancer their addresses, as a cloud's service controller does.

How traffic to these addresses reaches the nodes is ``cluster.balancer``'s.
Source: ``cloud-provider/controllers/service/controller.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from testbed.cluster.events import Recorder
from testbed.control import loadbalancers
from testbed.control.loadbalancers import FINALIZER, Addresses, NoAddress
from testbed.objects.store import Event, Store

Object = dict[str, Any]
Key = tuple[str, str]

COMPONENT = "service-controller"


class LoadBalancers:
    """Writes ``status.loadBalancer``, the finalizer and the events. cidrs: where addresses come from."""

    def __init__(self, store: Store, recorder: Recorder, cidrs: Sequence[str]) -> None:
        self._store, self._recorder = store, recorder
        self._addresses = Addresses(cidrs)
        self._due: dict[Key, None] = {}
        self._waiting: dict[Key, str] = {}  # Services that got none, and why

    @property
    def due(self) -> bool:
        """Whether any Service waits to be looked at."""
        return bool(self._due)

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        if event.kind != "Service":
            return
        metadata = event.object["metadata"]
        key = metadata["namespace"], metadata["name"]
        if event.type == "DELETED":
            self._due.pop(key, None)
            self._waiting.pop(key, None)
            self._free(metadata["uid"])
        elif (event.old is None or _view(event.old) != _view(event.object)) and (
            loadbalancers.wants(event.object) or FINALIZER in (metadata.get("finalizers") or ())
        ):
            self._due[key] = None

    def run(self) -> None:
        """Do what is due."""
        while self._due:
            key = next(iter(self._due))
            del self._due[key]
            service = self._store.find("Service", *key)
            if service is None:
                continue
            if loadbalancers.wants(service):
                self._ensure(key, service)
            else:
                self._remove(key, service)

    def _ensure(self, key: Key, service: Object) -> None:
        recorded = [entry["ip"] for entry in _ingress(service) if entry.get("ip")]
        has = self._addresses.of(service["metadata"]["uid"])
        if not has and not all(map(self._addresses.covers, recorded)):  # somebody else's, who keeps it
            return
        try:
            given = self._addresses.give(service, recorded)
        except NoAddress as error:
            if self._waiting.get(key) != str(error):
                self._waiting[key] = str(error)
                text = f"Error syncing load balancer: failed to ensure load balancer: {error}"
                self._say(service, "Warning", "SyncLoadBalancerFailed", text)
            self._write(service, ())
            if has:
                self._retry()
            return
        self._waiting.pop(key, None)
        if has == given and tuple(recorded) == given:
            return
        self._say(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        service = self._with_finalizer(service, there=True)
        self._write(service, given)
        self._say(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")

    def _remove(self, key: Key, service: Object) -> None:
        self._waiting.pop(key, None)
        self._say(service, "Normal", "DeletingLoadBalancer", "Deleting load balancer")
        self._write(service, ())
        self._free(service["metadata"]["uid"])
        self._say(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer")
        self._with_finalizer(self._store.get("Service", *key), there=False)

    def _free(self, uid: str) -> None:
        if self._addresses.release(uid):
            self._retry()

    def _retry(self) -> None:
        """An address is free: those that wait for one look again."""
        self._due |= dict.fromkeys(self._waiting)

    def _write(self, service: Object, addresses: Sequence[str]) -> None:
        """The status alone, upon whatever the Service is now."""
        now = self._store.get("Service", service["metadata"]["namespace"], service["metadata"]["name"])
        self._store.update_status({**now, "status": loadbalancers.status(now, addresses)})

    def _with_finalizer(self, service: Object, *, there: bool) -> Object:
        finalizers = list(service["metadata"].get("finalizers") or ())
        if (FINALIZER in finalizers) == there:
            return service
        wanted = [*finalizers, FINALIZER] if there else [one for one in finalizers if one != FINALIZER]
        metadata = {**service["metadata"], "finalizers": wanted}
        return self._store.update({**service, "metadata": metadata}, trusted=True)

    def _say(self, service: Object, kind: Literal["Normal", "Warning"], reason: str, text: str) -> None:
        namespace = self._store.find("Namespace", "", service["metadata"]["namespace"])
        if namespace is not None and "deletionTimestamp" not in namespace["metadata"]:
            self._recorder.record(service, kind, reason, text, COMPONENT)


def _view(service: Object) -> tuple[Any, ...]:
    """What of a Service concerns its load balancer."""
    metadata, spec = service["metadata"], service["spec"]
    wanted = [spec.get(name) for name in ("type", "loadBalancerClass", "loadBalancerIP", "ipFamilies")]
    finalized = FINALIZER in (metadata.get("finalizers") or ())
    return (*wanted, "deletionTimestamp" in metadata, _ingress(service), finalized)


def _ingress(service: Object) -> list[Object]:
    found: list[Object] = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return found
