"""A user's topology without a switch to put the gateway on."""

from mininet.topo import Topo


class Wire(Topo):
    def build(self):
        self.addLink(self.addHost("h1"), self.addHost("h2"))
