"""What the cases of DNS are made of: servers with names, questions by dig, what is expected of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.conformance.lab import Lab

Object = dict[str, Any]

IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"
PORT = 8080
TTL = "30"


# --- objects ----------------------------------------------------------------------------------------------


def client(name: str = "client", **spec: Any) -> Object:
    """A pod to ask from."""
    containers = [{"name": "shell", "image": "busybox"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": containers, **spec},
    }


def server(name: str, *, ready: bool = True, **spec: Any) -> Object:
    """A pod that the Services select. ready: whether it ever gets Ready."""
    port = {"name": "http", "containerPort": PORT}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": "web"},
            "annotations": {} if ready else {"testbed/ready": "false"},
        },
        "spec": {
            "containers": [{"name": "server", "image": IMAGE, "args": ["netexec"], "ports": [port]}],
            **spec,
        },
    }


def service(name: str, **spec: Any) -> Object:
    """A Service of the servers with one named port, both families where the cluster has two."""
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    known = {"selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack", "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {**known, **spec}}


def external(name: str, target: str) -> Object:
    """An ExternalName Service."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"type": "ExternalName", "externalName": target},
    }


def endpoints(name: str, service: str, *addresses: str, ready: bool | None = True) -> Object:
    """An EndpointSlice that nobody else keeps."""
    conditions = {} if ready is None else {"ready": ready}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv6" if ":" in addresses[0] else "IPv4",
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": conditions} for address in addresses],
    }


# --- the cluster ------------------------------------------------------------------------------------------


def zone(lab: Lab) -> str:
    """The cluster's domain."""
    return str(lab.spec["network"]["clusterDomain"])


def svc(lab: Lab, name: str) -> str:
    """``NAME.NAMESPACE.svc.ZONE``; name may be several labels."""
    return f"{name}.{lab.namespace}.svc.{zone(lab)}"


def servers(lab: Lab) -> list[str]:
    """The addresses of Service kube-dns."""
    found = lab.cluster.client.get("/api/v1/namespaces/kube-system/services/kube-dns")["spec"]["clusterIPs"]
    return [str(address) for address in found]


def pod_ips(lab: Lab, *pods: str) -> list[str]:
    """Every address of these pods."""
    return [entry["ip"] for pod in pods for entry in lab.get("Pod", pod)["status"]["podIPs"]]


def cluster_ips(obj: Object) -> list[str]:
    """The addresses of a Service."""
    return [str(address) for address in obj["spec"]["clusterIPs"]]


def dashed(address: str) -> str:
    """An address as a DNS label."""
    return address.replace(".", "-").replace(":", "-")


def kind_of(address: str) -> str:
    """A or AAAA."""
    return "AAAA" if ":" in address else "A"


def upstream_zone(lab: Lab) -> Object:
    """The zone of the DNS host outside; {} without."""
    zones = [host["dns"]["zone"] for host in lab.spec.get("external") or () if host.get("dns")]
    return zones[0] if zones else {}


# --- answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One line of an answer."""

    name: str
    ttl: str
    type: str
    data: str


@dataclass(frozen=True)
class Answer:
    """One answer as dig shows it. how: whom was asked, and over what; status "": none came."""

    how: str
    status: str = ""
    flags: tuple[str, ...] = ()
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    text: str = ""

    def data(self, kind: str = "") -> list[str]:
        """What the answers of a type (default: all) say, names without trailing dot."""
        return [record.data.rstrip(".") for record in self.answer if kind in ("", record.type)]

    def __str__(self) -> str:
        said = ", ".join(f"{record.type} {record.data}" for record in self.answer)
        return f"{self.status or 'no answer'} [{' '.join(self.flags)}] {said or 'nothing'}"


def parse_dig(text: str, how: str) -> Answer:
    """The one answer in dig's output."""
    status = re.search(r"status: (\w+)", text)
    flags = re.search(r";; flags: ([a-z ]*);", text)
    sections: dict[str, list[Record]] = {}
    current: list[Record] = []
    for line in text.splitlines():
        if match := re.fullmatch(r";; (ANSWER|AUTHORITY|ADDITIONAL) SECTION:", line):
            current = sections.setdefault(match[1], [])
        elif line and not line.startswith(";"):
            name, ttl, _, kind, data = (line.split(None, 4) + [""] * 5)[:5]
            current.append(Record(name.rstrip("."), ttl, kind, data))
    answer, authority, additional = (
        tuple(sections.get(name, ())) for name in ("ANSWER", "AUTHORITY", "ADDITIONAL")
    )
    return Answer(
        how,
        status[1] if status else "",
        tuple(flags[1].split()) if flags else (),
        answer,
        authority,
        additional,
        text,
    )


WAYS: tuple[tuple[str, ...], ...] = ((), ("+tcp",))


def dig(
    lab: Lab, *question: str, pod: str = "client", ways: Sequence[tuple[str, ...]] = WAYS
) -> list[Answer]:
    """Ask a question (``NAME TYPE`` or ``-x ADDRESS``, and options) of every server in every way."""
    lab.running(pod)
    answers = []
    for server_address in servers(lab):
        for way in ways:
            how = f"@{server_address} {' '.join(way)}".strip()
            argv = ["dig", f"@{server_address}", "+tries=1", "+time=2", *way, *question]
            answers.append(parse_dig(lab.pod(pod).run(argv).stdout, how))
    return answers


def every(lab: Lab, problem: Callable[[Answer], str], *question: str, **how: Any) -> None:
    """Ask until no answer has a problem any more."""
    lab.step(" ".join(question))

    def wrong() -> str:
        for one in dig(lab, *question, **how):
            if what := problem(one):
                return f"{one.how}: {what}"
        return ""

    lab.until(wrong)


def says(lab: Lab, expected: Collection[str], *question: str, kind: str = "") -> None:
    """Every answer is authoritative, has the TTL of the zone and says exactly these, in any order."""
    wanted = sorted(text.lower() for text in expected)

    def problem(one: Answer) -> str:
        said = sorted(data.lower() for data in one.data(kind or question[-1]))
        if one.status != "NOERROR" or said != wanted:
            return f"expected {', '.join(wanted)}, got {one}"
        if "aa" not in one.flags:
            return f"not authoritative: {one}"
        if any(record.ttl != TTL for record in one.answer):
            return f"a TTL other than {TTL}: {one.answer}"
        return ""

    every(lab, problem, *question)


def points_to(lab: Lab, address: str, *names: str) -> None:
    """The PTR question of an address is answered by exactly these names."""
    says(lab, names, "-x", address, kind="PTR")


def negative(lab: Lab, status: str, *question: str) -> None:
    """NXDOMAIN or (NOERROR) NODATA, authoritative, with the zone's SOA."""
    domain = zone(lab)
    soa = re.compile(rf"ns\.dns\.{domain}\. hostmaster\.{domain}\. \d+ 7200 1800 86400 30")

    def problem(one: Answer) -> str:
        if one.status != status or one.answer:
            return f"expected {status} and nothing, got {one}"
        if "aa" not in one.flags:
            return f"not authoritative: {one}"
        found = [record for record in one.authority if record.type == "SOA"]
        if len(found) != 1 or found[0].ttl != TTL or not soa.fullmatch(found[0].data):
            return f"expected the SOA of {domain}, got {one.authority}"
        return ""

    every(lab, problem, *question)


def nxdomain(lab: Lab, *question: str) -> None:
    """There is no such name."""
    negative(lab, "NXDOMAIN", *question)


def nodata(lab: Lab, *question: str) -> None:
    """The name is there, without such records."""
    negative(lab, "NOERROR", *question)
