"""What a pod's containers answer on, and what they run: from manifests to ``state.Listener`` and argv.

No image is pulled. Every declared containerPort is answered by the built-in application server, a well-known
image's usual ports too (``images.yaml`` beside this file), and those its probes ask. Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal, cast

import yaml

from testbed.control.podfiles import expand
from testbed.control.snapshot import Container, Pod
from testbed.state import Listener

Protocol = Literal["TCP", "UDP", "SCTP"]

NAMESERVER_IMAGE, NODE_CACHE_IMAGE = "testbed/kube-dns", "testbed/node-local-dns"
"""Images that stand for real dnsmasq: the cluster's DNS server, and the cache of NodeLocal DNSCache."""

ECHO_PORTS = frozenset({22, 25, 53, 389, 1433, 1521, 2181, 3306, 4222, 5432, 5672, 9042, 9092, 11211, 27017})
"""Well-known TCP ports whose service is not HTTP: connections are taken and what is sent comes back."""

WELL_KNOWN_PORTS = {6379: "redis"} | dict.fromkeys(ECHO_PORTS, "echo")

PORT_NAMES = {
    **dict.fromkeys(("http", "https", "web", "http2", "h2c", "metrics", "health", "admin"), "http"),
    "grpc": "grpc",
    "redis": "redis",
    **dict.fromkeys(
        ("tcp", "echo", "mysql", "postgres", "postgresql", "pg", "mongo", "mongodb", "memcached", "memcache",
         "cql", "amqp", "kafka", "ldap", "smtp", "ssh", "mqtt", "dns", "db", "client", "peer"),
        "echo",
    ),
}  # fmt: skip
"""App by the first word of a port's name, as service meshes read it (``grpc-api``, ``tcp-main``)."""


# --- listeners --------------------------------------------------------------------------------------


def listeners(pod: Pod, allow: bool = False) -> tuple[Listener, ...]:
    """Everything the application server answers on for the pod: sidecars, then containers in their order.

    A port that two containers claim is listed for both: as in a real pod, the second one cannot have it.
    allow: commands run (see ``commands``); a container with a command then serves its own ports.
    """
    return tuple(
        listener
        for container in (*pod.sidecars, *pod.containers)
        if not (allow and container.command)
        for listener in _container_listeners(container).values()
    )


def nameserver(container: Container) -> Literal["", "cluster", "node"]:
    """Whether a container is a DNS server: the cluster's, or a node's cache."""
    path = "/".join(image_path(container.image)[-2:])
    roles: dict[str, Literal["cluster", "node"]] = {NAMESERVER_IMAGE: "cluster", NODE_CACHE_IMAGE: "node"}
    return roles.get(path, "")


def _container_listeners(container: Container) -> dict[tuple[str, int], Listener]:
    if nameserver(container):  # what it declares it serves itself, but for its numbers over HTTP
        ports = [port for port in container.ports if port.name == "metrics"]
        numbers = [port.container_port for port in ports]
        return {("TCP", number): Listener(container.name, "TCP", number, "http") for number in numbers}
    usual = {(port.protocol, port.port): port for port in _usual_ports(container)}
    declared = {
        (port.protocol, port.container_port): Listener(
            container=container.name,
            protocol=cast(Protocol, port.protocol),
            port=port.container_port,
            app=_app(container, port.protocol, port.container_port, port.name),
        )
        for port in container.ports
    }
    return _asked_by_probes(container) | declared | usual


def _asked_by_probes(container: Container) -> dict[tuple[str, int], Listener]:
    """Ports that only the container's probes name: a program is asked for its health where it listens."""
    found = {}
    for probe in container.probes.values():
        for how, app in (("httpGet", "http"), ("tcpSocket", "echo"), ("grpc", "grpc")):
            action = probe.get(how) or {}
            port = str(action.get("port", ""))
            if port.isdecimal() and not action.get("host"):
                found["TCP", int(port)] = Listener(container.name, "TCP", int(port), app)
    return found


def _app(container: Container, protocol: str, port: int, name: str) -> str:
    if protocol != "TCP":
        return "echo"
    image = image_entry(container.image)
    image_apps = [_usual(container.name, entry).app for entry in image] if isinstance(image, list) else []
    return (
        PORT_NAMES.get(name.partition("-")[0])
        or (image_apps[0] if image_apps else None)
        or WELL_KNOWN_PORTS.get(port)
        or "http"
    )


def _usual_ports(container: Container) -> Iterator[Listener]:
    """What the image itself listens on, unless the manifest makes it run something else."""
    entry = image_entry(container.image)
    if not entry or not _runs_own_program(container):
        return
    if isinstance(entry, list):
        for port in entry:
            yield _usual(container.name, port)
    else:
        yield from ARGUMENT_READERS[entry["arguments"]](container)


def _usual(container: str, port: str | Mapping[str, Any]) -> Listener:
    if isinstance(port, str):
        app, _, where = port.partition(" ")
        number, _, protocol = where.partition("/")
        return Listener(container, cast(Protocol, protocol or "TCP"), int(number), app)
    return Listener(
        container, port.get("protocol", "TCP"), port["port"], port["app"], dict(port.get("options") or {})
    )


def _runs_own_program(container: Container) -> bool:
    """Whether ``command`` leaves the image's program in place (``redis-server`` for redis does)."""
    if not container.command:
        return True
    program = container.command[0].rpartition("/")[2]
    return program.startswith(image_path(container.image)[-1])


# --- images -----------------------------------------------------------------------------------------


def image_path(image: str) -> tuple[str, ...]:
    """The parts of an image's path without registry host, tag and digest: ``(library, nginx)``."""
    parts = image.partition("@")[0].split("/")
    parts[-1] = parts[-1].partition(":")[0]
    if len(parts) > 1 and (set(parts[0]) & {".", ":"} or parts[0] == "localhost"):
        del parts[0]
    return tuple(parts)


def image_entry(image: str) -> Any:
    """What ``images.yaml`` says of an image by the longest end of its path, None if nothing."""
    path = image_path(image)
    known = _images()
    names = ("/".join(path[start:]) for start in range(len(path)))
    return next((known[name] for name in names if name in known), None)


@functools.cache
def _images() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = resources.files(__package__).joinpath("images.yaml").read_text("utf-8")
    return cast(dict[str, Any], yaml.load(text, Loader=loader))  # noqa: S506 (a safe loader, our own file)


# --- images whose arguments say what they listen on -------------------------------------------------


def _arguments(container: Container) -> list[str]:
    """The program's arguments: command (without the program) and args, expanded by the literal env."""
    env = _literal_env(container)
    return [expand(word, env) for word in (*container.command[1:], *container.args)]


def _literal_env(container: Container) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.env if isinstance(entry.get("value"), str)}


def _flags(words: Sequence[str]) -> dict[str, str]:
    """``--a=1 -b 2 --c`` as {a: 1, b: 2, c: true}, the way Go programs read them."""
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flags[name] = value if equals else following if not following.startswith("-") else "true"
    return flags


def _port(text: str) -> int:
    """A port out of ``8080`` or ``:8080``; 0 for what is none, negative or switched off (``-1``)."""
    digits = text.rpartition(":")[2]
    return int(digits) if digits.isdecimal() and len(digits) <= 5 and 0 < int(digits) < 65536 else 0


def _listener(
    container: Container, protocol: Protocol, port: int, app: str, **options: str
) -> Iterator[Listener]:
    if port:
        yield Listener(container.name, protocol, port, app, options)


def _agnhost(container: Container) -> Iterator[Listener]:
    """agnhost (kubernetes test/images/agnhost): a subcommand and its flags; the default is ``pause``."""
    subcommand, *words = _arguments(container) or ["pause"]
    flags = _flags(words)
    if subcommand == "netexec":
        yield from _listener(container, "TCP", _port(flags.get("http-port", "8080")), "http")
        yield from _listener(container, "UDP", _port(flags.get("udp-port", "8081")), "echo")
        yield from _listener(container, "SCTP", _port(flags.get("sctp-port", "-1")), "echo")
    elif subcommand == "serve-hostname":
        port = _port(flags.get("port", "9376"))
        on = {name: flags.get(name, default) != "false" for name, default in _SERVE_HOSTNAME.items()}
        if on["tcp"]:
            yield from _listener(container, "TCP", port, "hostname")
        elif on["http"]:
            yield from _listener(container, "TCP", port, "http", root="hostname")
        if on["udp"]:
            yield from _listener(container, "UDP", port, "hostname")
    elif subcommand in _AGNHOST_PORTS:
        default, app = _AGNHOST_PORTS[subcommand]
        yield from _listener(container, "TCP", _port(flags.get("port", default)), app)
    elif subcommand == "porter":
        yield from _porter(container)


_SERVE_HOSTNAME = {"tcp": "false", "udp": "false", "http": "true"}
_AGNHOST_PORTS = {
    "test-webserver": ("80", "http"),
    "liveness": ("8080", "http"),
    "guestbook": ("80", "http"),
    "grpc-health-checking": ("5000", "grpc"),
}


def _porter(container: Container) -> Iterator[Listener]:
    """porter answers what SERVE_PORT_n and SERVE_SCTP_PORT_n ask for: their values, as text."""
    for name, value in _literal_env(container).items():
        for prefix, protocol in _PORTER_PREFIXES:
            if name.startswith(prefix):
                app = "http" if protocol == "TCP" else "echo"
                yield from _listener(
                    container, protocol, _port(name.removeprefix(prefix)), app, root="text", text=value
                )


_PORTER_PREFIXES: tuple[tuple[str, Protocol], ...] = (
    ("SERVE_PORT_", "TCP"),
    ("SERVE_TLS_PORT_", "TCP"),
    ("SERVE_SCTP_PORT_", "SCTP"),
)


def _http_echo(container: Container) -> Iterator[Listener]:
    """hashicorp/http-echo: ``-listen :5678 -text WORDS``, ECHO_TEXT where there is no -text."""
    flags = _flags(_arguments(container))
    text = flags.get("text", _literal_env(container).get("ECHO_TEXT", "hello-world"))
    yield from _listener(
        container, "TCP", _port(flags.get("listen", ":5678")), "http", root="text", text=text + "\n"
    )


ARGUMENT_READERS: dict[str, Callable[[Container], Iterator[Listener]]] = {
    "agnhost": _agnhost,
    "http-echo": _http_echo,
}


# --- commands ---------------------------------------------------------------------------------------


def commands(pod: Pod, allow: bool, env: Mapping[str, Mapping[str, str]] = {}) -> dict[str, tuple[str, ...]]:
    """What each container runs on the host's file system: container name → argv.

    Only where ``allow`` is True, and only containers with a ``command``: args alone belong to a program
    inside an image. env: the containers' environments (``podfiles.pod_env``), for ``$(VAR)``.
    """
    if not allow:
        return {}
    return {
        container.name: tuple(
            expand(word, env.get(container.name, {})) for word in (*container.command, *container.args)
        )
        for container in pod.containers
        if container.command
    }
