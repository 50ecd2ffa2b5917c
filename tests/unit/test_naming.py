"""Feeding DNS servers: who is told what, and how long it took."""

from __future__ import annotations

from dataclasses import replace

from testbed.cluster.clock import ManualClock
from testbed.cluster.messages import FeedNames
from testbed.cluster.naming import METRIC, METRIC_HELP, Naming
from testbed.cluster.proxying import Change, exposition
from testbed.control.policies import Namespace
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    Snapshot,
)

FACTS = ClusterFacts("cluster.local", (), ("10.96.0.0/12",), (), ("10.96.0.10",))
HTTP = ServicePort(80, "http")
WEB = Service("default", "web", cluster_ips=("10.96.0.50",), ports=(HTTP,))
OTHER = Service("default", "other", cluster_ips=("10.96.0.51",), ports=(HTTP,))
Served = tuple[Service, tuple[EndpointSlice, ...]]


def snapshot(*served: Served) -> Snapshot:
    return Snapshot(
        FACTS,
        services={(service.namespace, service.name): service for service, _ in served},
        slices={(service.namespace, service.name): slices for service, slices in served},
        namespaces={"default": Namespace("default")},
    )


def web(*addresses: str, service: Service = WEB) -> Served:
    endpoints = tuple(Endpoint((address,)) for address in addresses)
    port = EndpointPort(8080, "http")
    return service, (EndpointSlice("default", "web-1", "web", "IPv4", (port,), endpoints),)


class Fed:
    """A control plane's names and one node's servers."""

    def __init__(self, *served: Served) -> None:
        self.clock = ManualClock()
        self.now: Snapshot = snapshot(*served)
        self.progress: list[bool] = []
        self.naming = Naming(self.clock, lambda: self.now, lambda: self.progress.append(self.naming.behind))
        self.sent: list[FeedNames] = []

    def want(self) -> None:
        self.naming.wanted("node-1", self.sent.append)

    def change(self, now: Snapshot, version: int = 1) -> None:
        self.now = now
        self.naming.changed(Change(version, "EndpointSlice", "default", "web", "modified", self.clock.now()))
        self.naming.update()


def test_who_wants_names_gets_all_of_them() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    (message,) = fed.sent
    assert message.whole
    assert set(message.servers) == {"auth", "pods", "cache", "front"}
    assert set(message.hosts) == {"default.web"}


def test_nobody_is_told_where_nobody_wants_names() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.change(snapshot(web("10.244.1.3")))
    assert not fed.naming.behind


def test_then_only_what_changed_is_told() -> None:
    fed = Fed(web("10.244.1.2"), (OTHER, ()))
    fed.want()
    fed.change(snapshot(web("10.244.1.3"), (OTHER, ())))
    message = fed.sent[-1]
    assert (message.whole, set(message.hosts), message.servers) == (False, {"default.web"}, {})


def test_what_changes_no_name_is_not_told() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    count = len(fed.sent)
    fed.change(replace(fed.now))
    assert len(fed.sent) == count
    assert not fed.naming.behind


def test_a_change_counts_until_servers_answer_by_it() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    fed.change(snapshot(web("10.244.1.3")))
    serial = fed.sent[-1].serial
    assert fed.naming.behind
    fed.clock.advance(0.25)
    fed.naming.fed("node-1", serial, serial - 1)
    (told,) = fed.naming.since(0)
    assert (told.node, told.how, round(told.seconds, 3)) == ("node-1", "files", 0.25)
    assert not fed.naming.behind
    assert f'{METRIC}_count{{node="node-1"}} 1' in exposition(fed.naming.distribution, METRIC, METRIC_HELP)


def test_a_change_of_ports_counts_until_the_restart() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    ported = replace(WEB, ports=(replace(WEB.ports[0], port=81),))
    fed.change(snapshot(web("10.244.1.2", service=ported)))
    serial = fed.sent[-1].serial
    fed.naming.fed("node-1", serial, serial - 1)
    assert list(fed.naming.since(0)) == []
    fed.clock.advance(1.5)
    fed.naming.fed("node-1", serial, serial)
    assert [(told.how, told.seconds) for told in fed.naming.since(0)] == [("restart", 1.5)]


def test_a_node_that_is_gone_is_not_waited_for() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    fed.change(snapshot(web("10.244.1.3")))
    fed.naming.gone("node-1")
    assert not fed.naming.behind
    assert fed.progress == [False]


def test_who_waits_for_names_looks_again_when_servers_answer_by_them() -> None:
    fed = Fed(web("10.244.1.2"))
    fed.want()
    fed.change(snapshot(web("10.244.1.3")))
    fed.naming.fed("node-1", fed.sent[-1].serial, 0)
    assert fed.progress == [False]
