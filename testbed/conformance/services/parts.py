"""What the cases of Services are made of: servers, clients, Services, and what is expected of an address."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from testbed.conformance.lab import WITHIN, Lab, several
from testbed.measure.messages import Language

Object = dict[str, Any]

IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"
HTTP, UDP = 8080, 8081
"""Ports of every server: agnhost netexec's own."""
PORT = 80
"""The port of a Service unless a case says otherwise."""
SILENCE = 0.7
"""Seconds without any answer that count as dropped; a refusal comes within milliseconds."""


# --- objects ----------------------------------------------------------------------------------------------


def server(
    name: str, *, node: str = "", app: str = "web", http: int = HTTP, udp: int = UDP, **spec: Any
) -> Object:
    """A pod that answers over HTTP and UDP with its host name (its own name) or the client's address.

    spec: other fields of its spec, and ``annotations``, and ``container``: other fields of its container.
    """
    annotations, container_fields = spec.pop("annotations", {}), spec.pop("container", {})
    container = {
        "name": "server",
        "image": IMAGE,
        "args": ["netexec", f"--http-port={http}", f"--udp-port={udp}"],
        "ports": [
            {"name": "http", "containerPort": http},
            {"name": "udp", "containerPort": udp, "protocol": "UDP"},
        ],
        **container_fields,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}, "annotations": annotations},
        "spec": {"containers": [container], **({"nodeName": node} if node else {}), **spec},
    }


def porter(name: str, ports: dict[int, str], *, app: str = "web") -> Object:
    """A pod that answers on each of ``ports`` with a text of its own."""
    env = [{"name": f"SERVE_PORT_{port}", "value": text} for port, text in ports.items()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"containers": [{"name": "porter", "image": IMAGE, "args": ["porter"], "env": env}]},
    }


def client(name: str = "client", *, node: str = "", **spec: Any) -> Object:
    """A pod that serves nothing."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [{"name": "shell", "image": "busybox"}],
            **({"nodeName": node} if node else {}),
            **spec,
        },
    }


def service(name: str = "web", *, app: str = "web", **spec: Any) -> Object:
    """A Service of the servers of ``app``, by default TCP 80 to their HTTP port; spec: other fields of it."""
    labels = spec.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"app": app},
            "ports": [{"name": "http", "port": PORT, "targetPort": HTTP}],
            **spec,
        },
    }


@contextlib.contextmanager
def ending(lab: Lab, *names: str) -> Iterator[None]:
    """Pods that are being deleted and go on answering (they were made with ``LINGERING``), until the end."""
    for name in names:
        lab.delete("Pod", name, grace=120)
    try:
        yield
    finally:
        for name in names:
            lab.delete("Pod", name, grace=0)


LINGERING: Object = {
    "terminationGracePeriodSeconds": 120,
    "annotations": {"testbed/termination-delay": "120s"},
}
"""Of a server that takes its time when it is deleted."""

UNREADY: Object = {
    "readinessProbe": {"httpGet": {"path": "/echo?code=503", "port": HTTP}, "periodSeconds": 1}
}
"""A readiness probe that fails, of a server's container."""


def udp_port(port: int = PORT, target: int | str = UDP) -> Object:
    """An entry of ``ports`` for UDP."""
    return {"name": "udp", "port": port, "targetPort": target, "protocol": "UDP"}


def affinity(seconds: int | None = None) -> Object:
    """Fields of a Service with ClientIP affinity."""
    if seconds is None:
        return {"sessionAffinity": "ClientIP"}
    return {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    }


def cluster_ip(made: Object) -> str:
    """The cluster IP of a Service."""
    return str(made["spec"]["clusterIP"])


def node_port(made: Object, number: int = 0) -> int:
    """The nodePort of a Service's port."""
    return int(made["spec"]["ports"][number]["nodePort"])


def vip(lab: Lab, name: str = "web") -> str:
    """The load balancer's address of a Service, as soon as it has one."""

    def given() -> list[Object]:
        status: Object = lab.get("Service", name).get("status") or {}
        return list((status.get("loadBalancer") or {}).get("ingress") or ())

    lab.until(lambda: "" if given() else f"Service {name} has no load balancer address")
    return str(given()[0]["ip"])


# --- expectations -----------------------------------------------------------------------------------------


def answers(
    lab: Lab,
    source: str,
    ip: str,
    port: int,
    names: Collection[str],
    *,
    language: Language = "http",
    text: str = "",
    within: float = WITHIN,
) -> None:
    """Wait until ``ip:port`` is answered by all of the servers ``names`` and by nobody else.

    text: what is asked, by default the name; ``names`` are the answers to it.
    """
    text = text or ("/hostname" if language == "http" else "hostname")
    count = 1 if len(names) == 1 else 12 * len(names)

    def problem() -> str:
        heard = lab.ask(source, ip, port, text=text, language=language, count=count)
        if all(one.verdict == "ok" for one in heard) and {one.answer for one in heard} == set(names):
            return ""
        return f"{source} hears {several(heard)} from {ip}:{port}, expected {', '.join(sorted(names))}"

    lab.until(problem, within)


def is_not_served(lab: Lab, source: str, ip: str, port: int, *, language: Language = "http") -> None:
    """Wait until ``ip:port`` gives no answer, however that shows."""

    def problem() -> str:
        heard = lab.ask(source, ip, port, text="hostname", language=language, timeout=SILENCE)
        return "" if heard[0].verdict != "ok" else f"{source} still hears {heard[0]} from {ip}:{port}"

    lab.until(problem)


def refuses(lab: Lab, source: str, ip: str, port: int, *, language: Language = "http") -> None:
    """Wait until a connection to ``ip:port`` is refused."""

    def problem() -> str:
        (heard,) = lab.ask(source, ip, port, text="hostname", language=language)
        return "" if heard.verdict == "refused" else f"{source} hears {heard} from {ip}:{port}, not a refusal"

    lab.until(problem)


def is_silent(lab: Lab, source: str, ip: str, port: int, *, language: Language = "http") -> None:
    """Wait until nothing at all comes from ``ip:port``."""

    def problem() -> str:
        heard = lab.ask(source, ip, port, text="hostname", language=language, count=2, timeout=SILENCE)
        if all(one.verdict == "timeout" for one in heard):
            return ""
        return f"{source} hears {several(heard)} from {ip}:{port}, expected silence"

    lab.until(problem)


def sticks(lab: Lab, source: str, ip: str, port: int, count: int = 20) -> str:
    """Wait until all of ``count`` answers from ``ip:port`` are one server's; its name."""
    names: list[str] = []

    def problem() -> str:
        heard = lab.ask(source, ip, port, count=count)
        names[:] = {one.answer for one in heard}
        if all(one.verdict == "ok" for one in heard) and len(names) == 1:
            return ""
        return f"{source} hears {several(heard)} from {ip}:{port}, expected one server"

    lab.until(problem)
    return names[0]


def seen_as(lab: Lab, source: str, ip: str, port: int) -> str:
    """The address that the server behind ``ip:port`` sees ``source`` under, as soon as it answers."""
    seen = ""

    def problem() -> str:
        nonlocal seen
        (heard,) = lab.ask(source, ip, port, text="/clientip")
        seen = heard.answer.rpartition(":")[0].strip("[]")
        return "" if heard.verdict == "ok" else f"{source} hears {heard} from {ip}:{port}"

    lab.until(problem)
    return seen
