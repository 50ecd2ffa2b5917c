"""How CoreDNS answers, beyond the records themselves."""

from __future__ import annotations

import time

from testbed.conformance.dns import dns
from testbed.conformance.dns.parts import (
    TTL,
    Answer,
    client,
    cluster_ips,
    dig,
    endpoints,
    every,
    kind_of,
    nodata,
    nxdomain,
    says,
    service,
    svc,
    upstream_zone,
    zone,
)
from testbed.conformance.lab import Lab


@dns.case()
def names_are_found_in_any_case(lab: Lab) -> None:
    """Names match whatever their case, and the answer repeats the question's."""
    *_, made = lab.apply(client(), service("web"))
    (address, *_) = cluster_ips(made)
    asked = svc(lab, "web").upper()

    def problem(one: Answer) -> str:
        fine = one.data() == [address] and one.answer[0].name == asked
        return "" if fine else f"expected {asked} {address}, got {one.answer or one}"

    every(lab, problem, asked, kind_of(address))


@dns.case()
def answers_come_in_changing_order(lab: Lab) -> None:
    """The addresses of one name do not always come in one order."""
    addresses = [f"192.0.2.{number}" for number in range(1, 5)]
    db = service("db", clusterIP="None", selector=None, ipFamilyPolicy="SingleStack")
    lab.apply(client(), db, endpoints("db-1", "db", *addresses))
    says(lab, addresses, svc(lab, "db"), "A")
    seen = {tuple(one.data()) for _ in range(4) for one in dig(lab, svc(lab, "db"), "A")}
    lab.check(len(seen) > 1, f"always {seen}")


@dns.case()
def weights_are_shared_and_never_nothing(lab: Lab) -> None:
    """An SRV answer's weight is 100 over the number of answers, rounded down, and at least 1."""
    db = service("db", clusterIP="None", selector=None, ipFamilyPolicy="SingleStack")
    lab.apply(client(), db, endpoints("db-1", "db", *(f"192.0.2.{number}" for number in range(1, 4))))

    def weight(expected: int, answers: int) -> None:
        def problem(one: Answer) -> str:
            fields = [data.split() for data in one.data("SRV")]
            fine = len(fields) == answers and {(p, w) for p, w, *_ in fields} == {("0", str(expected))}
            return "" if fine else f"expected {answers} of priority 0 and weight {expected}, got {one}"

        every(lab, problem, svc(lab, "_http._tcp.db"), "SRV", ways=[("+tcp",)])

    weight(33, 3)
    slices = [
        endpoints(f"db-{n}", "db", *(f"198.51.100.{n * 60 + number}" for number in range(1, 61)))
        for n in (2, 3)
    ]
    lab.apply(*slices)
    weight(1, 123)


@dns.case()
def unknown_names_do_not_exist(lab: Lab) -> None:
    """Unknown services, namespaces and labels are NXDOMAIN, and so is a name with too many labels."""
    lab.apply(client(), service("web"))
    domain = zone(lab)
    nodata(lab, svc(lab, "web"), "TXT")
    for name in (
        svc(lab, "no-such"),
        f"web.no-such.svc.{domain}",
        f"no-such.svc.{domain}",
        f"no-such.{domain}",
        svc(lab, "no-such.web"),
        svc(lab, "a.b.c.d.web"),
    ):
        nxdomain(lab, name, "A")
    nxdomain(lab, svc(lab, "no-such"), "TXT")


@dns.case()
def names_without_records_are_empty(lab: Lab) -> None:
    """The zone, svc.Z, pod.Z and namespaces are there without records, and so is a missing type of a name."""
    lab.apply(client(), service("web"))
    domain = zone(lab)
    for name in (domain, f"svc.{domain}", f"pod.{domain}", svc(lab, "web").partition(".")[2]):
        nodata(lab, name, "A")
        nodata(lab, name, "TXT")
    nodata(lab, f"{lab.namespace}.pod.{domain}", "A")
    nodata(lab, svc(lab, "web"), "MX")
    nodata(lab, svc(lab, "_http._tcp.web"), "TXT")


@dns.case()
def a_namespace_without_services_is_there(lab: Lab) -> None:
    """N.svc.Z is NODATA as long as the namespace is."""
    lab.apply(client())
    nodata(lab, f"{lab.namespace}.svc.{zone(lab)}", "A")


@dns.case()
def the_zone_has_an_authority(lab: Lab) -> None:
    """The zone's SOA and NS are those of CoreDNS."""
    lab.apply(client())
    domain = zone(lab)

    def soa(one: Answer) -> str:
        fields = (one.data("SOA") or [""])[0].split()
        fine = fields[:2] == [f"ns.dns.{domain}.", f"hostmaster.{domain}."] and fields[3:] == [
            *("7200", "1800", "86400", "30")
        ]
        return "" if fine and one.answer[0].ttl == TTL else f"got {one}"

    every(lab, soa, domain, "SOA")
    says(lab, [f"ns.dns.{domain}"], domain, "NS")


@dns.case(differs="dnsmasq takes the serial of a zone from its configuration, and only when it starts")
def the_serial_is_the_time_of_the_last_change(lab: Lab) -> None:
    """The serial of the SOA is the time of the last change of the zone."""
    lab.apply(client())
    (serial, *_) = {one.data("SOA")[0].split()[2] for one in dig(lab, zone(lab), "SOA")}
    lab.until(lambda: "" if time.time() > int(serial) + 2 else "waiting for another second")
    begun = time.time()
    lab.apply(service("late"))
    (address, *_) = cluster_ips(lab.get("Service", "late"))
    says(lab, [address], svc(lab, "late"), kind_of(address))
    (serial, *_) = {one.data("SOA")[0].split()[2] for one in dig(lab, zone(lab), "SOA")}
    lab.check(int(serial) >= int(begun), f"serial {serial}, last change {begun:.0f}")


@dns.case()
def wildcards_mean_nothing(lab: Lab) -> None:
    """A star is a label like any other."""
    lab.apply(client(), service("web"))
    nodata(lab, svc(lab, "web"), "TXT")
    nxdomain(lab, f"*.{lab.namespace}.svc.{zone(lab)}", "A")
    nxdomain(lab, f"web.*.svc.{zone(lab)}", "A")
    nxdomain(lab, svc(lab, "*.web"), "A")


@dns.case(differs="dnsmasq takes the labels above _port._proto.S for names without records of their own")
def the_labels_above_a_port_do_not_exist(lab: Lab) -> None:
    """_proto.S.N.svc.Z is no name: CoreDNS takes it for an endpoint's."""
    lab.apply(client(), service("web"))
    nodata(lab, svc(lab, "_http._tcp.web"), "TXT")
    nxdomain(lab, svc(lab, "_tcp.web"), "A")


@dns.case()
def long_answers_are_truncated_over_udp(lab: Lab) -> None:
    """What does not fit is marked as truncated over UDP, and whole over TCP, with EDNS and without."""
    addresses = [f"192.0.2.{number}" for number in range(1, 101)]
    db = service("db", clusterIP="None", selector=None, ipFamilyPolicy="SingleStack")
    lab.apply(client(), db, endpoints("db-1", "db", *addresses))
    name = svc(lab, "db")

    def truncated(one: Answer) -> str:
        fine = "tc" in one.flags and len(one.answer) < 100  # none at all, from dnsmasq 2.91 on
        return "" if fine else f"{len(one.answer)} answers, flags {one.flags}"

    def whole(one: Answer) -> str:
        return "" if sorted(one.data()) == sorted(addresses) and "tc" not in one.flags else f"got {one}"

    every(lab, whole, name, "A", ways=[("+tcp",)])
    every(lab, truncated, name, "A", ways=[("+ignore",), ("+ignore", "+noedns")])
    every(lab, whole, name, "A", ways=[()])  # dig asks again over TCP by itself


@dns.case()
def zones_are_not_handed_out(lab: Lab) -> None:
    """A zone transfer is refused."""
    lab.apply(client())

    def problem(one: Answer) -> str:
        return "" if one.status == "REFUSED" and not one.answer else f"got {one}: {one.text[-200:]}"

    every(lab, problem, zone(lab), "AXFR", "+comments", ways=[("+tcp",)])


@dns.case("upstream")
def names_outside_are_forwarded_and_kept(lab: Lab) -> None:
    """Names outside come from the DNS host outside, with a TTL of at most 30 seconds; unknown ones do not
    exist."""
    lab.apply(client())
    name, address = next(
        (name, one) for name, one in upstream_zone(lab).items() if isinstance(one, str) and "." in one
    )

    def problem(one: Answer) -> str:
        fine = one.data() == [address] and int(one.answer[0].ttl) <= 30
        return "" if fine else f"expected {address} for at most 30 seconds, got {one.answer or one}"

    every(lab, problem, name, "A")

    def absent(one: Answer) -> str:
        return "" if one.status == "NXDOMAIN" else f"got {one}"

    every(lab, absent, f"no-such.{name}", "A")


@dns.case("no upstream", differs="without anybody to ask dnsmasq refuses (EDE 14); it makes no SERVFAIL up")
def nobody_to_ask_is_a_failure_of_the_server(lab: Lab) -> None:
    """CoreDNS says SERVFAIL where no server outside answers."""
    lab.apply(client())

    def problem(one: Answer) -> str:
        return "" if one.status == "SERVFAIL" else f"got {one}"

    every(lab, problem, "www.example.com", "A")
