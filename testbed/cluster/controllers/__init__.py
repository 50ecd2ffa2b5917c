"""Controllers: each watches the store, and acts on what is due when it is told to; one file each.

The decisions are pure functions in ``control``; a controller here only remembers what is due, asks them, and
writes what they answer into the store. It never waits: what is due later is asked for by ``Clock.later``.
"""

from __future__ import annotations

from typing import Protocol

from testbed.cluster.clock import Clock
from testbed.cluster.events import Recorder
from testbed.control.snapshot import ClusterFacts
from testbed.objects.store import Event, Store


class Controller(Protocol):
    """What the control plane asks of a controller."""

    @property
    def due(self) -> bool:
        """Whether there is something to do now."""
        ...

    def observe(self, event: Event) -> None:
        """Take note of one change in the store."""
        ...

    def run(self) -> None:
        """Do what is due, including what becomes due by it."""
        ...


def all_controllers(
    store: Store, clock: Clock, recorder: Recorder, facts: ClusterFacts
) -> tuple[Controller, ...]:
    """Every controller of a cluster, in the order in which they look at a change.

    Without a range for load balancers there is no cloud, and nobody to give them addresses.
    """
    from testbed.cluster.controllers.apiserver import ApiServer
    from testbed.cluster.controllers.endpoints import Endpoints
    from testbed.cluster.controllers.ipaddresses import IpAddresses
    from testbed.cluster.controllers.loadbalancers import LoadBalancers
    from testbed.cluster.controllers.namespaces import Namespaces
    from testbed.cluster.controllers.workloads import Workloads

    return (
        Namespaces(store, facts.api_ca),
        Workloads(store, clock, recorder),
        Endpoints(store, recorder),
        ApiServer(store),
        IpAddresses(store),
        *([LoadBalancers(store, recorder, cidrs)] if (cidrs := facts.load_balancer_cidrs) else []),
    )
