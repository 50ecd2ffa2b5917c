"""A user's topology of two hosts, which knows nothing of clusters."""

from mininet.topo import Topo


class Pair(Topo):
    def build(self):
        switch = self.addSwitch("s1")
        for name in ("h1", "h2"):
            self.addLink(self.addHost(name), switch)
