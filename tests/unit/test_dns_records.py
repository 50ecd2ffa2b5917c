"""Which records a cluster has, by the DNS specification and CoreDNS, and how they become dnsmasq's files."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from testbed.control.policies import Namespace
from testbed.control.snapshot import (
    ClusterFacts,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePort,
    Snapshot,
)
from testbed.dns.dnsmasq import UNASKED, change, name_files, with_ports
from testbed.dns.records import Records, Srv, records, service_records
from testbed.state import NameFiles

ZONE = "cluster.local"
FACTS = ClusterFacts(ZONE, ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.100.0/24",), ("10.96.0.10",))
HTTP = ServicePort(80, "http", "TCP", "http")
WEB = Service("default", "web", cluster_ips=("10.96.0.50",), ports=(HTTP,))
DB = Service("default", "db", headless=True, ports=(HTTP,))


def slice_of(
    service: str, *endpoints: Endpoint, number: int = 8080, kind: str = "IPv4", name: str = "s"
) -> EndpointSlice:
    ports = (EndpointPort(number, "http"),)
    return EndpointSlice("default", f"{service}-{name}", service, kind, ports, endpoints)


def snapshot(*served: tuple[Service, tuple[EndpointSlice, ...]]) -> Snapshot:
    return Snapshot(
        FACTS,
        services={(service.namespace, service.name): service for service, _ in served},
        slices={(service.namespace, service.name): slices for service, slices in served},
        namespaces={name: Namespace(name) for name in ("default", "kube-system")},
    )


def files(made: Records, *upstreams: str) -> NameFiles:
    return name_files(made, upstreams, 1)


def test_clusterip_service_has_its_address_and_named_ports() -> None:
    made = service_records(ZONE, WEB, ())
    assert made.addresses == ("10.96.0.50",)
    name = "web.default.svc.cluster.local"
    assert set(made.srv) == {Srv(f"_http._tcp.{name}", name, 80, 100), Srv(name, name, 80, 100)}


def test_an_unnamed_port_is_found_only_under_the_services_own_name() -> None:
    made = service_records(ZONE, replace(WEB, ports=(replace(HTTP, name=""),)), ())
    assert [srv.name for srv in made.srv] == ["web.default.svc.cluster.local"]


def test_endpoints_of_any_service_have_names_by_hostname_or_dashed_address() -> None:
    made = service_records(
        ZONE, WEB, (slice_of("web", Endpoint(("10.244.1.2",)), Endpoint(("10.244.1.3",), hostname="b")),)
    )
    assert made.endpoints == (
        ("10.244.1.2", "10-244-1-2.web.default.svc.cluster.local"),
        ("10.244.1.3", "b.web.default.svc.cluster.local"),
    )


def test_headless_service_has_ready_endpoints_with_their_own_ports_and_weights() -> None:
    endpoints = [Endpoint((f"10.244.1.{n}",), hostname=f"db-{n}", ready=n != 4) for n in (2, 3, 4, 5)]
    made = service_records(ZONE, DB, (slice_of("db", *endpoints),))
    assert made.addresses == ("10.244.1.2", "10.244.1.3", "10.244.1.5")
    asked = [srv for srv in made.srv if srv.name.startswith("_http._tcp.")]
    assert [(srv.target.partition(".")[0], srv.port, srv.weight) for srv in asked] == [
        (f"db-{n}", 8080, 33) for n in (2, 3, 5)
    ]


def test_headless_service_without_ready_endpoints_has_no_record_at_all() -> None:
    made = service_records(ZONE, DB, (slice_of("db", Endpoint(("10.244.1.2",), ready=False)),))
    assert (made.addresses, made.endpoints, made.srv) == ((), (), ())


def test_weights_of_more_than_a_hundred_answers_are_at_least_one() -> None:
    made = service_records(
        ZONE, DB, (slice_of("db", *(Endpoint((f"10.244.1.{n}",)) for n in range(1, 151))),)
    )
    assert {srv.weight for srv in made.srv} == {1}


def test_dual_stack_service_counts_both_families_for_the_weight() -> None:
    made = service_records(ZONE, replace(WEB, cluster_ips=("10.96.0.50", "fd00:10:96::50")), ())
    assert {srv.weight for srv in made.srv} == {50}
    assert made.addresses == ("10.96.0.50", "fd00:10:96::50")


def test_external_name_is_an_alias_and_an_address_makes_no_record() -> None:
    alias = Service("default", "ext", type="ExternalName", external_name="www.Example.com.")
    assert service_records(ZONE, alias, ()).alias == "www.example.com"
    assert service_records(ZONE, replace(alias, external_name="192.0.2.1"), ()).alias == ""


def test_pointer_of_an_address_in_several_services_has_every_name() -> None:
    shared = Endpoint(("10.244.1.2",))
    other = replace(DB, name="db2")
    made = records(snapshot((DB, (slice_of("db", shared),)), (other, (slice_of("db2", shared),))))
    assert made.pointers == {
        "10.244.1.2": (
            "10-244-1-2.db.default.svc.cluster.local",
            "10-244-1-2.db2.default.svc.cluster.local",
        )
    }


def test_pointer_of_a_clusterip_is_its_service_whatever_endpoints_say() -> None:
    made = records(snapshot((WEB, ()), (DB, (slice_of("db", Endpoint(("10.96.0.50",))),))))
    assert made.pointers == {"10.96.0.50": ("web.default.svc.cluster.local",)}


def test_an_address_of_one_service_needs_no_pointer_of_its_own() -> None:
    made = records(snapshot((WEB, (slice_of("web", Endpoint(("10.244.1.2",))),))))
    assert made.pointers == {}
    hosts = files(made).hosts["default.web"].splitlines()
    assert hosts == [
        "10.244.1.2 10-244-1-2.web.default.svc.cluster.local",
        "10.96.0.50 web.default.svc.cluster.local",
    ]


def test_namespaces_are_names_even_without_services() -> None:
    made = files(records(snapshot()))
    assert "txt-record=_.kube-system.svc.cluster.local,_" in made.servers["front"]
    assert "synth-domain=kube-system.pod.cluster.local,0.0.0.0,255.255.255.255" in made.servers["pods"]


def test_names_with_labels_that_are_too_long_make_no_record() -> None:
    """Valid objects all the same, and dnsmasq would not start with them."""
    long = Service("default", "ext", type="ExternalName", external_name="a" * 64 + ".example.com")
    assert service_records(ZONE, long, ()).alias == ""
    made = service_records(ZONE, replace(WEB, ports=(replace(HTTP, name="p" * 63),)), ())
    assert [srv.name for srv in made.srv] == ["web.default.svc.cluster.local"]


def test_every_server_answers_one_name_whatever_is_outside() -> None:
    """By it one knows that it has started: another name would wait for a silent host outside."""
    for text in files(records(snapshot()), "203.0.113.53").servers.values():
        assert f"local=/{UNASKED}/" in text.splitlines()


def test_ipv6_pods_are_named_in_the_nodes_ranges() -> None:
    node = Node("node-1", ("192.168.100.11",), ("10.244.1.0/24", "fd00:10:244:1::/64"))
    made = files(records(replace(snapshot(), nodes=(node,))))
    assert "synth-domain=default.pod.cluster.local,fd00:10:244:1::/64" in made.servers["pods"]


def test_aliases_in_circles_are_left_out_since_dnsmasq_would_not_start() -> None:
    def alias(name: str, target: str) -> tuple[Service, tuple[EndpointSlice, ...]]:
        return Service("default", name, type="ExternalName", external_name=target), ()

    inside = "{}.default.svc.cluster.local".format
    made = files(
        records(
            snapshot(alias("a", inside("b")), alias("b", inside("a")), alias("c", "example.com"), (WEB, ()))
        )
    )
    lines = [line for line in made.servers["front"].splitlines() if line.startswith("cname=")]
    assert lines == ["cname=c.default.svc.cluster.local,example.com"]
    assert made.externals == ("example.com",)


def test_a_new_address_changes_a_file_and_a_new_port_a_configuration() -> None:
    def made(service: Service, *addresses: str) -> NameFiles:
        endpoints = (Endpoint((address,)) for address in addresses)
        return files(records(snapshot((service, (slice_of("web", *endpoints),)))))

    before = made(WEB, "10.244.1.2")
    addressed = change(before, made(WEB, "10.244.1.2", "10.244.1.3"))
    assert (addressed.how, list(addressed.hosts), addressed.servers) == ("files", ["default.web"], {})
    ported = change(before, made(replace(WEB, ports=(replace(HTTP, port=81),)), "10.244.1.2"))
    assert (ported.how, list(ported.servers)) == ("restart", ["front"])
    assert change(before, before).how == "nothing"


def test_a_service_that_goes_takes_its_file_along() -> None:
    gone = change(files(records(snapshot((WEB, ())))), files(records(snapshot())))
    assert gone.hosts == {"default.web": ""}


def test_ports_are_filled_in() -> None:
    assert (
        with_ports("port=@front@ server=127.0.0.1#@auth@", {"front": 1, "auth": 2})
        == "port=1 server=127.0.0.1#2"
    )


ADDRESSES = st.integers(2, 6).map(lambda n: f"10.244.1.{n}")
ENDPOINTS = st.builds(
    Endpoint, st.tuples(ADDRESSES), ready=st.booleans(), hostname=st.sampled_from(("", "a", "b"))
)
SERVED = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.booleans(), st.lists(st.lists(ENDPOINTS, max_size=3), max_size=2)),
    max_size=4,
)


def built(served: dict[str, tuple[bool, list[list[Endpoint]]]]) -> Snapshot:
    pairs = []
    for number, (name, (headless, groups)) in enumerate(sorted(served.items())):
        ips = () if headless else (f"10.96.0.{number + 20}",)
        service = Service("default", name, cluster_ips=ips, headless=headless, ports=(HTTP,))
        slices = tuple(slice_of(name, *group, name=str(n)) for n, group in enumerate(groups))
        pairs.append((service, slices))
    return snapshot(*pairs)


@given(st.lists(SERVED, min_size=1, max_size=4))
def test_files_after_any_changes_are_those_of_a_fresh_start(
    sequence: list[dict[str, tuple[bool, list[list[Endpoint]]]]],
) -> None:
    """Feeding only what changed leads to what feeding everything would have."""
    known: tuple[Snapshot, Records] | None = None
    applied = NameFiles()
    for served in sequence:
        now = built(served)
        # Objects that are equal stay the same objects, as in a control plane.
        if known is not None:
            now = replace(
                now,
                services={
                    k: known[0].services[k] if known[0].services.get(k) == v else v
                    for k, v in now.services.items()
                },
                slices={
                    k: known[0].slices[k] if known[0].slices.get(k) == v else v for k, v in now.slices.items()
                },
            )
        made = records(now, known)
        different = change(applied, files(made))
        hosts = {name: text for name, text in {**applied.hosts, **different.hosts}.items() if text}
        applied = NameFiles(hosts, {**applied.servers, **different.servers}, ())
        known = now, made
    assert known is not None
    fresh = files(records(known[0]))
    assert (applied.hosts, applied.servers) == (fresh.hosts, fresh.servers)


@given(SERVED)
def test_every_ready_endpoint_and_no_other_is_found(
    served: dict[str, tuple[bool, list[list[Endpoint]]]],
) -> None:
    made = records(built(served))
    for name, (_, groups) in served.items():
        ready = {address for group in groups for one in group if one.ready for address in one.addresses}
        assert {address for address, _ in made.services["default", name].endpoints} == ready
