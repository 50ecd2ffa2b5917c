"""The records of the specification: what each name says."""

from __future__ import annotations

from testbed.conformance.dns import dns
from testbed.conformance.dns.parts import (
    PORT,
    Answer,
    client,
    cluster_ips,
    dashed,
    endpoints,
    every,
    external,
    kind_of,
    nodata,
    nxdomain,
    pod_ips,
    points_to,
    says,
    server,
    service,
    svc,
    upstream_zone,
    zone,
)
from testbed.conformance.lab import Lab


@dns.case()
def the_schema_version_is_a_text(lab: Lab) -> None:
    """dns-version.Z is the TXT 1.1.0, with CoreDNS' own TTL."""
    lab.apply(client())

    def problem(one: Answer) -> str:
        fine = one.data("TXT") == ['"1.1.0"'] and "aa" in one.flags and one.answer[0].ttl == "28800"
        return "" if fine else f"expected 1.1.0 for 28800 seconds, got {one}"

    every(lab, problem, f"dns-version.{zone(lab)}", "TXT")


@dns.case()
def a_cluster_ip_is_there_without_endpoints(lab: Lab) -> None:
    """S.N.svc.Z is the Service's ClusterIPs, whether or not it has endpoints."""
    *_, made = lab.apply(client(), service("web"))
    for address in cluster_ips(made):
        says(lab, [address], svc(lab, "web"), kind_of(address))
    if len(cluster_ips(made)) == 1:
        nodata(lab, svc(lab, "web"), "AAAA" if kind_of(cluster_ips(made)[0]) == "A" else "A")


@dns.case()
def a_cluster_ip_points_to_its_service(lab: Lab) -> None:
    """The reverse name of a ClusterIP is S.N.svc.Z, even where an endpoint has the same address."""
    *_, made = lab.apply(client(), service("web"))
    for address in cluster_ips(made):
        points_to(lab, address, svc(lab, "web"))
    lab.apply(service("other", selector=None), endpoints("other-1", "other", cluster_ips(made)[0]))
    (address, *_) = cluster_ips(made)
    says(lab, [address], svc(lab, f"{dashed(address)}.other"), kind_of(address))
    points_to(lab, cluster_ips(made)[0], svc(lab, "web"))


@dns.case()
def named_ports_of_a_service_have_srv_records(lab: Lab) -> None:
    """_port._proto.S.N.svc.Z is priority 0, the whole weight, the Service's port and its name."""
    ports = [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    *_, made = lab.apply(client(), service("web", ports=ports))
    weight = 100 // len(cluster_ips(made))
    says(lab, [f"0 {weight} 80 {svc(lab, 'web')}"], svc(lab, "_http._tcp.web"), "SRV")
    says(lab, [f"0 {weight} 53 {svc(lab, 'web')}"], svc(lab, "_dns._udp.web"), "SRV")
    nxdomain(lab, svc(lab, "_http._udp.web"), "SRV")
    nxdomain(lab, svc(lab, "_other._tcp.web"), "SRV")


@dns.case()
def a_service_without_labels_has_all_its_ports(lab: Lab) -> None:
    """S.N.svc.Z SRV is every port, the unnamed one too, and the weight is shared by them."""
    *_, made = lab.apply(client(), service("one", ports=[{"port": 81}]))
    weight = 100 // len(cluster_ips(made))
    says(lab, [f"0 {weight} 81 {svc(lab, 'one')}"], svc(lab, "one"), "SRV")
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    lab.apply(service("two", ports=ports))
    weight = 100 // (2 * len(cluster_ips(made)))
    says(lab, [f"0 {weight} {port} {svc(lab, 'two')}" for port in (80, 81)], svc(lab, "two"), "SRV")


@dns.case()
def srv_answers_bring_the_addresses_along(lab: Lab) -> None:
    """The Additional section of an SRV answer holds the target's addresses."""
    *_, made = lab.apply(client(), service("web"))

    def problem(one: Answer) -> str:
        found = sorted(record.data for record in one.additional if record.type in ("A", "AAAA"))
        return "" if found == sorted(cluster_ips(made)) else f"expected the addresses, got {one.additional}"

    every(lab, problem, svc(lab, "_http._tcp.web"), "SRV")


@dns.case()
def a_headless_service_is_its_ready_endpoints(lab: Lab) -> None:
    """S.N.svc.Z of a headless Service is every ready endpoint; without one there is no such name."""
    lab.apply(
        client(), service("db", clusterIP="None"), server("one"), server("two"), server("no", ready=False)
    )
    lab.ready("app!=web")
    lab.until(lambda: "" if len(_ready(lab)) == 2 else "waiting for the pods")
    for kind in ("A", "AAAA"):
        addresses = [ip for ip in pod_ips(lab, "one", "two") if kind_of(ip) == kind]
        if addresses:
            says(lab, addresses, svc(lab, "db"), kind)
        else:
            nodata(lab, svc(lab, "db"), kind)
    lab.delete("Pod", "one", grace=0)
    lab.delete("Pod", "two", grace=0)
    nxdomain(lab, svc(lab, "db"), "A")
    nxdomain(lab, svc(lab, "_http._tcp.db"), "SRV")


def _ready(lab: Lab) -> list[str]:
    pods = lab.objects("Pod", "app=web")
    return [
        pod["metadata"]["name"]
        for pod in pods
        for condition in pod.get("status", {}).get("conditions") or ()
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]


@dns.case()
def an_endpoint_is_named_by_hostname_or_address(lab: Lab) -> None:
    """H.S.N.svc.Z is one endpoint: H is the pod's hostname where its subdomain is the Service, else its
    address with dashes; and the address points back to it."""
    named = server("named", hostname="first", subdomain="db")
    elsewhere = server("elsewhere", hostname="second", subdomain="other")
    lab.apply(client(), service("db", clusterIP="None"), named, elsewhere, server("plain"))
    lab.ready("app=web")
    for pod, label in (("named", "first"), ("elsewhere", ""), ("plain", "")):
        for address in pod_ips(lab, pod):
            name = svc(lab, f"{label or dashed(address)}.db")
            says(lab, [address], name, kind_of(address))
            points_to(lab, address, name)
    nxdomain(lab, svc(lab, "second.db"), "A")


@dns.case()
def a_headless_srv_is_every_endpoint_with_its_own_port(lab: Lab) -> None:
    """_port._proto.S of a headless Service is each endpoint's name and the port it listens on."""
    lab.apply(client(), service("db", clusterIP="None"), server("one"), server("two"))
    lab.ready("app=web")
    addresses = pod_ips(lab, "one", "two")
    weight = 100 // len(addresses)
    expected = [f"0 {weight} {PORT} {svc(lab, f'{dashed(address)}.db')}" for address in addresses]
    says(lab, expected, svc(lab, "_http._tcp.db"), "SRV")


@dns.case()
def endpoints_of_services_with_an_address_have_names_too(lab: Lab) -> None:
    """CoreDNS names and points back to the endpoints of every Service, headless or not."""
    lab.apply(client(), service("web"), server("one"))
    lab.ready("app=web")
    for address in pod_ips(lab, "one"):
        name = svc(lab, f"{dashed(address)}.web")
        says(lab, [address], name, kind_of(address))
        points_to(lab, address, name)


@dns.case()
def an_endpoint_of_several_services_points_to_each(lab: Lab) -> None:
    """The reverse name of an address in several Services' endpoints has an answer for each."""
    lab.apply(client(), service("web"), service("db", clusterIP="None"), server("one"))
    lab.ready("app=web")
    (address, *_) = pod_ips(lab, "one")
    points_to(lab, address, *(svc(lab, f"{dashed(address)}.{name}") for name in ("web", "db")))


@dns.case()
def unready_addresses_are_published_where_asked_for(lab: Lab) -> None:
    """With publishNotReadyAddresses every endpoint counts as ready."""
    db = service("db", clusterIP="None", publishNotReadyAddresses=True)
    lab.apply(client(), db, server("no", ready=False))
    lab.until(lambda: "" if lab.get("Pod", "no").get("status", {}).get("podIPs") else "no address yet")
    for address in pod_ips(lab, "no"):
        says(lab, [address], svc(lab, "db"), kind_of(address))


@dns.case()
def conditions_of_endpoints_decide(lab: Lab) -> None:
    """An endpoint that says ready: false is not there; one that says nothing is."""
    db = service("db", clusterIP="None", selector=None, ipFamilyPolicy="SingleStack")
    lab.apply(
        client(),
        db,
        endpoints("db-1", "db", "192.0.2.1"),
        endpoints("db-2", "db", "192.0.2.2", ready=None),
        endpoints("db-3", "db", "192.0.2.3", ready=False),
    )
    says(lab, ["192.0.2.1", "192.0.2.2"], svc(lab, "db"), "A")


@dns.case()
def a_terminating_endpoint_leaves_at_once(lab: Lab) -> None:
    """A pod that is being deleted is no longer in DNS while it still answers."""
    lingering = server("one", terminationGracePeriodSeconds=60)
    lingering["metadata"]["annotations"] = {"testbed/termination-delay": "60s"}
    lab.apply(client(), service("db", clusterIP="None"), lingering, server("two"))
    lab.ready("app=web")
    kind = kind_of(pod_ips(lab, "one")[0])
    both = [ip for ip in pod_ips(lab, "one", "two") if kind_of(ip) == kind]
    says(lab, both, svc(lab, "db"), kind)
    lab.delete("Pod", "one", grace=60)
    says(lab, both[1:], svc(lab, "db"), kind)
    lab.check(lab.get("Pod", "one")["status"]["phase"] == "Running", "the pod ended before it was looked at")
    lab.delete("Pod", "one", grace=0)


@dns.case()
def an_external_name_is_an_alias(lab: Lab) -> None:
    """ExternalName is a CNAME, with the target's address where the cluster itself has it; the CNAME first."""
    target = svc(lab, "web")
    *_, made = lab.apply(client(), external("ext", target), service("web"))
    (address, *_) = cluster_ips(made)

    def problem(one: Answer) -> str:
        said = [(record.type, record.data.rstrip(".")) for record in one.answer]
        return "" if said == [("CNAME", target), (kind_of(address), address)] else f"got {one}"

    every(lab, problem, svc(lab, "ext"), kind_of(address))
    says(lab, [target], svc(lab, "ext"), "CNAME")


@dns.case("upstream")
def an_external_name_outside_is_chased(lab: Lab) -> None:
    """The answer to an alias of a name outside holds that name's addresses."""
    name, address = _outside_address(lab)
    lab.apply(client(), external("ext", name))

    def problem(one: Answer) -> str:
        said = [(record.type, record.data.rstrip(".")) for record in one.answer]
        return "" if said == [("CNAME", name), ("A", address)] else f"got {one}"

    every(lab, problem, svc(lab, "ext"), "A")


def _outside_address(lab: Lab) -> tuple[str, str]:
    found = ((name, one) for name, one in upstream_zone(lab).items() if isinstance(one, str) and "." in one)
    return next(found)


@dns.case()
def an_external_name_has_no_ports(lab: Lab) -> None:
    """ExternalName has no SRV records of its own, and one that is an address has no records at all."""
    lab.apply(client(), external("ext", "www.example.com"), external("ip", "192.0.2.1"))
    says(lab, ["www.example.com"], svc(lab, "ext"), "CNAME")
    nxdomain(lab, svc(lab, "_http._tcp.ext"), "SRV")
    nxdomain(lab, svc(lab, "ip"), "A")
    nxdomain(lab, svc(lab, "ip"), "CNAME")


@dns.case()
def every_address_is_a_pods_name(lab: Lab) -> None:
    """a-b-c-d.N.pod.Z is a.b.c.d in any namespace there is, whether or not such a pod is (pods insecure)."""
    lab.apply(client())
    names = f"{lab.namespace}.pod.{zone(lab)}"
    for address in ("10-244-1-2", "203-0-113-9", "255-255-255-255"):
        says(lab, [address.replace("-", ".")], f"{address}.{names}", "A")
        nodata(lab, f"{address}.{names}", "AAAA")
    for name in (f"not-an-address.{names}", f"1-2-3-256.{names}", f"1-2-3-4.no-such.pod.{zone(lab)}"):
        nxdomain(lab, name, "A")


@dns.case("dual stack")
def an_ipv6_pod_is_named_with_dashes(lab: Lab) -> None:
    """An IPv6 pod's name has dashes for colons."""
    lab.apply(client())
    lab.ready()
    (address,) = (ip for ip in pod_ips(lab, "client") if ":" in ip)
    says(lab, [address], f"{dashed(address)}.{lab.namespace}.pod.{zone(lab)}", "AAAA")


@dns.case(
    "dual stack",
    differs="dnsmasq makes names up for IPv6 ranges of at least 64 bits; it gets those of the nodes",
)
def any_ipv6_address_is_a_pods_name(lab: Lab) -> None:
    """With pods insecure, addresses outside the pods' ranges are names of pods too."""
    lab.apply(client())
    says(lab, ["2001:db8::1"], f"2001-db8--1.{lab.namespace}.pod.{zone(lab)}", "AAAA")


@dns.case()
def a_bare_pod_has_no_reverse_name(lab: Lab) -> None:
    """The address of a pod that no Service selects points to nothing of the cluster's."""
    lab.apply(client())
    lab.ready()

    def problem(one: Answer) -> str:
        return f"got {one}" if one.answer or not one.status else ""

    for address in pod_ips(lab, "client"):
        every(lab, problem, "-x", address)
