"""The DNS hosts outside the cluster: a dnsmasq on each host of the fabric that has a zone."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from testbed.cluster.messages import AnyMessage, Exec, Exited, Failed
from testbed.dns.upstream import upstream_config
from testbed.errors import TestbedError
from testbed.kernel.channel import AsyncChannel
from testbed.spec.model import ExternalSpec

log = logging.getLogger(__name__)

STATE = Path("/run/testbed-dns")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


async def serve_zone(fabric: AsyncChannel[AnyMessage], host: ExternalSpec) -> None:
    """Run the host's DNS server until it ends. One that is ended stays so: it is a machine like any other.

    Raises TestbedError where it cannot be run.
    """
    STATE.mkdir(exist_ok=True)
    config = STATE / f"{host.name}.conf"
    config.write_text(upstream_config(host.zone, map(str, host.addresses)))
    argv = ("dnsmasq", "--keep-in-foreground", f"--conf-file={config}")
    order = Exec(fabric.new_id(), host.name, argv, {"PATH": PATH})
    with open(os.devnull, "rb") as nothing, fabric.expect(order.id) as answers:
        fabric.send(order, [nothing.fileno(), sys.stdout.fileno(), sys.stderr.fileno()])
        while True:
            answer, _ = await answers.next()
            match answer:
                case Failed():
                    raise TestbedError(f"the DNS server of {host.name}: {answer.message}")
                case Exited():
                    log.warning("the DNS server of %s ended with code %d", host.name, answer.code)
                    return
