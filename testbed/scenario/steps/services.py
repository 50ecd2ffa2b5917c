"""``services``: as many Services as wanted, all leading to the same pods, made through the API."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from testbed.errors import InputError
from testbed.scenario.model import Context, Step, step

AT_ONCE = 10_000
"""Objects that are applied as one: each time they are, the nodes begin a sync of what there is so far."""


@step("services")
class Services(Step, frozen=True, kw_only=True):
    """Have ``count`` Services ``PREFIX-00000`` … with an EndpointSlice each; wait until they are in force.

    What is there already stays, so that steps of growing counts add to each other. backends: label selector
    of the pods that answer for all of them; each Service has ``endpoints`` of these, on ``port``.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=50_000)]
    backends: str
    prefix: str = "scale"
    namespace: str = "default"
    port: int = 8080
    endpoints: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    timeout: float = 300.0

    def run(self, context: Context) -> None:
        """Make what is absent and wait."""
        ips = [
            (pod["status"]["podIP"], pod["spec"]["nodeName"])
            for pod in context.cluster.pods(self.backends, self.namespace)
            if "podIP" in (pod.get("status") or {})
        ]
        if len(ips) < self.endpoints:
            raise InputError(
                f"services: {self.endpoints} endpoints asked for, {self.backends} are {len(ips)} pods"
            )
        listed = context.cluster.client.get(f"/api/v1/namespaces/{self.namespace}/services")["items"]
        there = {one["metadata"]["name"] for one in listed}
        begun = time.monotonic()
        objects = self._objects(ips, there)
        while some := list(itertools.islice(objects, AT_ONCE)):
            context.cluster.client.post("/apis/testbed/v1/manifests", {"objects": some}, timeout=None)
        written = time.monotonic()
        context.cluster.settle(self.timeout)
        settled = time.monotonic()
        spent = {"written": written - begun, "in_force": settled - written}
        context.note("services", count=self.count, **{key: round(value, 3) for key, value in spent.items()})
        shown = f"written in {spent['written']:.1f} s, in force {spent['in_force']:.1f} s later"
        context.report(f"  {self.count:,} Services: {shown}")

    def _objects(self, ips: list[tuple[str, str]], there: set[str]) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            name = f"{self.prefix}-{number:05}"
            if name in there:
                continue
            yield {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"ports": [{"name": "http", "port": 80, "targetPort": self.port}]},
            }
            chosen = [ips[(number + place) % len(ips)] for place in range(self.endpoints)]
            yield {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-1",
                    "namespace": self.namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": self.port, "protocol": "TCP"}],
                "endpoints": [{"addresses": [ip], "nodeName": node} for ip, node in chosen],
            }
