"""Backend ``udp``: a TUN device and a proxy in user space (``relays.flannel``); IPv4 only.

Source: flannel v0.28 ``pkg/backend/udp``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from testbed.dataplane.flannel.backend import Made, Site, device_address
from testbed.spec.params import Param
from testbed.state import Daemon

PORT = 8285

OVERHEAD = 28
"""Bytes: IP 20, UDP 8 (``udp_amd64.go``: encapOverhead)."""

DEVICE = "flannel0"


class ByProxy:
    """The proxy makes the device itself."""

    needs = frozenset({"tun"})
    parameters: Mapping[str, Param] = {}
    carries_ipv6 = False
    kept_routes: tuple[str, ...] = ()

    def overhead(self, site: Site) -> int:
        """The outer headers'."""
        return OVERHEAD

    def compile(self, site: Site) -> Made:
        """The daemon, told of the peers."""
        own, cluster, listen = site.own(4), site.cluster(4), site.public(4)
        if own is None or cluster is None or listen is None:
            return Made()
        config = {
            "device": DEVICE,
            "address": device_address(DEVICE, own).address,
            "network": str(cluster),
            "mtu": site.underlay - OVERHEAD,
            "port": PORT,
            "peers": {str(network): public for _, network, public in site.peers() if network.version == 4},
        }
        argv = ("@PYTHON@", "-m", "testbed.relays.flannel", "@DIR@", listen)
        reload = ("pkill", "--signal", "HUP", "--pidfile", "@DIR@/pid")
        return Made(daemons={"flanneld": Daemon(argv, {"config.json": json.dumps(config)}, reload)})
