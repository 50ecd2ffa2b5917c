"""Two topologies, and nothing that says which one is meant."""

from mininet.topo import Topo


class One(Topo):
    pass


class Two(Topo):
    pass
