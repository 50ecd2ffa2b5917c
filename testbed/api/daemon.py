"""The daemon: one asyncio loop with the store, the control plane and the control API.

Runs as a fork of the launcher, so everything it was given is already in memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.cluster.launcher import DaemonContext
from testbed.control.snapshot import ClusterFacts
from testbed.dataplane import dataplanes
from testbed.errors import TestbedError
from testbed.kernel.sandbox import cover_file
from testbed.objects.store import Store
from testbed.proxy import proxiers
from testbed.spec.model import ClusterSpec

if TYPE_CHECKING:
    from mininet.topo import Topo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the daemon is to run: the spec, the objects it starts with, and what compilers need.

    topo: the fabric's graph; networks: node name → its on-link subnets; deadline: seconds for everything to
    become ready.
    """

    spec: ClusterSpec
    topo: Topo
    store: Store
    facts: ClusterFacts
    networks: Mapping[str, tuple[str, ...]]
    deadline: float


def serve(context: DaemonContext, order: Order) -> None:
    """Run the cluster until the process is killed; reports readiness or failure through ``context``."""
    asyncio.run(_serve(context, order))


async def _serve(context: DaemonContext, order: Order) -> None:
    # aiohttp's client, which comes along and asks nobody, would read all certificates of the system, twice.
    os.environ["SSL_CERT_FILE"] = os.devnull
    # Imported here: in the daemon they load while the fabric builds, and no other process pays for them.
    from aiohttp import web

    from testbed.api import fault_routes, incluster, node_routes, policy_routes
    from testbed.api.server import application
    from testbed.api.sources import ClusterSources
    from testbed.api.testbed_routes import routes
    from testbed.cluster.clock import LoopClock
    from testbed.cluster.controlplane import ControlPlane
    from testbed.cluster.membership import Membership
    from testbed.cluster.runtime import AgentsEnded, Runtime
    from testbed.faults.hands import Hands
    from testbed.faults.node import empty
    from testbed.faults.service import Faults
    from testbed.kernel import certificates
    from testbed.measure.service import Measurements

    if order.facts.upstream_dns:  # what every machine of the fabric has; pods have their own
        cover_file(Path("/etc/resolv.conf"), order.facts.host_resolv_conf)
    facts, identity = order.facts, None
    if certificates.available():
        identity = incluster.identity_of(order.spec)
        facts = replace(facts, api_ca=identity.authority, token_key=incluster.new_key())
    network = order.spec.network
    plane = ControlPlane(
        order.store,
        facts,
        dataplanes.get(network.dataplane),
        proxiers.get(network.proxy_mode),
        order.networks,
        LoopClock(),
    )
    runtime = Runtime(context.name, order.spec, plane, context.fabric, context.zygote, order.topo)
    hands = Hands(runtime)
    membership = Membership(runtime, partial(empty, hands))
    measurements = Measurements(ClusterSources(runtime))
    faults = Faults(runtime, hands)
    order.store.subscribe(faults.node_changed, "Node")
    own = [
        *routes(runtime, measurements, membership),
        *policy_routes.routes(runtime, measurements),
        *fault_routes.routes(faults),
        *node_routes.routes(membership, faults),
    ]
    app = application(order.store, own)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await runtime.start(
            order.deadline,
            *([partial(incluster.serve, runtime, facts, order.store, identity)] if identity else []),
        )
        await web.SockSite(runner, context.api_socket).start()
    except TestbedError as error:
        context.failed(error.exit_code, str(error), log=isinstance(error, AgentsEnded))
        return
    context.ready(runtime.status())
    await asyncio.Event().wait()
