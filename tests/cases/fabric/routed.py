"""A topology file of a user who knows our node classes; plain Mininet runs it in system tests."""

from typing import Any

from mininet.topo import Topo

from testbed.fabric.nodes import Bridge, ClusterHost, Router


class Routed(Topo):
    """Two dual-stack nodes on a switch, a router, and a host behind it."""

    def build(self, **_params: Any) -> None:
        self.addSwitch("s1", cls=Bridge)
        self.addHost("r1", cls=Router, routes=[("10.9.0.0/16", ["10.0.0.11", "10.0.0.12"])])
        for number in (1, 2):
            self.addHost(
                f"h{number}",
                cls=ClusterHost,
                role="node",
                ips=[f"10.0.0.1{number}/24", f"fd00::1{number}/64"],
                routes=[("default", "10.0.0.1"), ("default", "fd00::1")],
            )
            self.addLink(f"h{number}", "s1")
        self.addHost("x", cls=ClusterHost, ips=["10.1.0.2/24"], routes=[("default", "10.1.0.1")])
        self.addLink("r1", "s1", params1={"ips": ["10.0.0.1/24", "fd00::1/64"]})
        self.addLink("r1", "x", params1={"ips": ["10.1.0.1/24"]})


topos = {"routed": Routed}
