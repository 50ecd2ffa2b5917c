"""Names as programs of pods use them: search lists, resolver files, host names.

Source: kubernetes v1.36 ``test/e2e/network/dns.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.conformance.dns import dns
from testbed.conformance.dns.parts import (
    Answer,
    client,
    cluster_ips,
    every,
    external,
    kind_of,
    pod_ips,
    says,
    server,
    servers,
    service,
    svc,
    zone,
)
from testbed.conformance.lab import Lab


def found(lab: Lab, expected: Sequence[str], *question: str, pod: str = "client") -> None:
    """A question with the pod's search list is answered by this, over UDP and TCP."""

    def problem(one: Answer) -> str:
        fine = one.status == "NOERROR" and sorted(one.data(question[-1])) == sorted(expected)
        return "" if fine else f"expected {', '.join(expected)}, got {one}"

    every(lab, problem, "+search", *question, pod=pod)


def resolves(lab: Lab, name: str, expected: Sequence[str], pod: str = "client") -> None:
    """The pod's own resolver finds one of the addresses."""
    lab.step(f"getent hosts {name} in {pod}")
    lab.running(pod)

    def problem() -> str:
        done = lab.pod(pod).run(["getent", "hosts", name])
        address = (done.stdout.split() or [""])[0]
        return "" if address in expected else f"expected one of {', '.join(expected)}, got {done.stdout!r}"

    lab.until(problem)


def prints(lab: Lab, pod: str, argv: Sequence[str], expected: str) -> None:
    """A program of the pod prints exactly this."""
    lab.step(f"{' '.join(argv)} in {pod}")
    lab.running(pod)
    said = lab.pod(pod).run(argv).stdout.strip()
    lab.check(said == expected, f"expected {expected!r}, got {said!r}")


def resolver_lines(lab: Lab, pod: str) -> dict[str, list[str]]:
    """The pod's resolv.conf: keyword → words of its lines."""
    lab.running(pod)
    lines: dict[str, list[str]] = {}
    for line in lab.pod(pod).run(["cat", "/etc/resolv.conf"]).stdout.splitlines():
        keyword, *words = line.split()
        lines.setdefault(keyword, []).extend(words)
    return lines


@dns.case()
def the_api_is_found_by_every_form_of_its_name(lab: Lab) -> None:
    """kubernetes.default resolves by its whole name and by the parts that the search list completes."""
    lab.apply(client())
    api = lab.cluster.client.get("/api/v1/namespaces/default/services/kubernetes")
    (address, *_) = cluster_ips(api)
    for name in ("kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{zone(lab)}"):
        found(lab, [address], name, kind_of(address))
        resolves(lab, name, [address])


@dns.case()
def services_are_found_by_short_names(lab: Lab) -> None:
    """The names of Services, their ports and their addresses resolve in part through the search list."""
    *_, web, db = lab.apply(client(), server("one"), service("web"), service("db", clusterIP="None"))
    lab.ready("app=web")
    (address, *_) = cluster_ips(web)
    (endpoint, *_) = pod_ips(lab, "one")
    lab.check(cluster_ips(db) == ["None"], "the headless Service has an address")
    for name in ("web", f"web.{lab.namespace}", f"web.{lab.namespace}.svc"):
        found(lab, [address], name, kind_of(address))
        resolves(lab, name, cluster_ips(web))
    found(lab, [endpoint], "db", kind_of(endpoint))
    says(lab, [svc(lab, "web")], "-x", address, kind="PTR")

    def srv(one: Answer) -> str:
        return "" if svc(lab, "web") in "".join(one.data("SRV")) else f"got {one}"

    for name in ("_http._tcp.web", f"_http._tcp.web.{lab.namespace}.svc"):
        every(lab, srv, "+search", name, "SRV")


@dns.case()
def http_goes_by_name(lab: Lab) -> None:
    """curl http://NAME from a pod is answered by the pod behind the Service."""
    lab.apply(client(), server("one"), service("web"))
    lab.ready("app=web")
    lab.running("client")

    def problem() -> str:
        said = lab.pod("client").run(["curl", "-s", "-m", "2", "http://web/hostname"]).stdout
        return "" if said.strip() == "one" else f"expected one, got {said!r}"

    lab.until(problem)


@dns.case()
def a_pod_finds_itself_and_its_fellows(lab: Lab) -> None:
    """A pod's host name is in its own /etc/hosts, and with a subdomain also in DNS."""
    lab.apply(
        client(hostname="me", subdomain="sub"),
        server("one", hostname="first", subdomain="sub"),
        service("sub", clusterIP="None"),
    )
    lab.ready("app=web")
    lab.running("client")
    own, other = pod_ips(lab, "client"), pod_ips(lab, "one")
    prints(lab, "client", ["hostname", "-f"], svc(lab, "me.sub"))
    for name in ("me", svc(lab, "me.sub")):
        resolves(lab, name, own)
    resolves(lab, "first.sub", other)


@dns.case()
def an_alias_follows_its_service(lab: Lab) -> None:
    """ExternalName is a CNAME; a changed target is answered, and so is a Service that becomes a ClusterIP."""
    lab.apply(client(), external("ext", "foo.example.com"))
    says(lab, ["foo.example.com"], svc(lab, "ext"), "CNAME")
    lab.patch("Service", "ext", {"spec": {"externalName": "bar.example.com"}})
    says(lab, ["bar.example.com"], svc(lab, "ext"), "CNAME")
    changed = {"type": "ClusterIP", "externalName": None, "ports": [{"name": "http", "port": 80}]}
    made = lab.patch("Service", "ext", {"spec": changed})
    (address, *_) = cluster_ips(made)
    says(lab, [address], svc(lab, "ext"), kind_of(address))


@dns.case()
def a_pod_can_bring_its_own_resolver(lab: Lab) -> None:
    """dnsPolicy None takes everything from dnsConfig."""
    config = {
        "nameservers": [servers(lab)[0]],
        "searches": [f"svc.{zone(lab)}"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    }
    *_, web = lab.apply(client(dnsPolicy="None", dnsConfig=config), service("web"))
    lines = resolver_lines(lab, "client")
    wanted = {
        "nameserver": [servers(lab)[0]],
        "search": [f"svc.{zone(lab)}"],
        "options": ["ndots:2", "edns0"],
    }
    lab.check(lines == wanted, f"expected {wanted}, got {lines}")
    resolves(lab, f"web.{lab.namespace}", cluster_ips(web))


@dns.case()
def search_lists_may_be_long(lab: Lab) -> None:
    """More than 6 search paths, and more than 256 characters, are all written and used."""
    searches = [f"{letter * 60}.example.com" for letter in "abcdefg"]
    *_, web = lab.apply(client(dnsConfig={"searches": searches}), service("web"))
    written = resolver_lines(lab, "client")["search"]
    lab.check([name for name in written if name in searches] == searches, f"got {written}")
    found(lab, [cluster_ips(web)[0]], f"web.{lab.namespace}", kind_of(cluster_ips(web)[0]))


@dns.case("upstream")
def search_lists_may_hold_underscores_and_the_root(lab: Lab) -> None:
    """An underscore and a single dot are allowed in searches."""
    searches = [".", f"_tcp.web.{lab.namespace}.svc.{zone(lab)}"]
    lab.apply(client(dnsConfig={"searches": searches}), service("web"))
    written = resolver_lines(lab, "client")["search"]
    lab.check(set(searches) <= set(written), f"expected {searches} in {written}")

    def srv(one: Answer) -> str:
        return "" if svc(lab, "web") in "".join(one.data("SRV")) else f"got {one}"

    every(lab, srv, "+search", "_http", "SRV")


@dns.case()
def a_pod_on_the_nodes_network_may_use_cluster_dns(lab: Lab) -> None:
    """ClusterFirstWithHostNet resolves short names; without it the pod has its node's resolver."""
    host: dict[str, Any] = {"hostNetwork": True}
    *_, web = lab.apply(
        client("with", **host, dnsPolicy="ClusterFirstWithHostNet"), client("without", **host), service("web")
    )
    (address, *_) = cluster_ips(web)
    found(lab, [address], f"web.{lab.namespace}", kind_of(address), pod="with")
    resolves(lab, "web", cluster_ips(web), pod="with")
    names = resolver_lines(lab, "without").get("search", [])
    lab.check(f"svc.{zone(lab)}" not in names, f"got search {names}")


@dns.case()
def a_host_name_is_the_specs_or_the_nodes(lab: Lab) -> None:
    """spec.hostname is the pod's host name on the pod network, and means nothing on the node's."""
    lab.apply(client("named", hostname="chosen"), client("host", hostname="chosen", hostNetwork=True))
    prints(lab, "named", ["hostname"], "chosen")
    prints(lab, "host", ["hostname"], lab.get("Pod", "host")["spec"]["nodeName"])


@dns.case()
def nothing_of_the_machine_helps_a_pod_to_resolve(lab: Lab) -> None:
    """A pod resolves by its own files and DNS alone: no sockets of resolvers or daemons of the machine."""
    lab.apply(client())
    prints(lab, "client", ["find", "/run", "-type", "s"], "")
    lab.step("nsswitch.conf")
    text = lab.pod("client").run(["grep", "^hosts:", "/etc/nsswitch.conf"]).stdout
    lab.check(text.split() == ["hosts:", "files", "dns"], f"got {text!r}")
