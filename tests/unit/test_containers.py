"""Which ports a pod answers on, by its manifest and its images, and what it runs."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.control.containers import ARGUMENT_READERS, _images, commands, image_path, listeners
from testbed.control.snapshot import Container, ContainerPort, Pod
from testbed.control.view import typed_pod


def pod(*containers: Container) -> Pod:
    return Pod(uid="u", namespace="default", name="p", node="n", ips=("10.0.0.1",), containers=containers)


def container(image: str, *ports: ContainerPort, name: str = "c", **more: Any) -> Container:
    return Container(name=name, image=image, ports=ports, **more)


def answers(image: str, *ports: ContainerPort, **more: Any) -> list[str]:
    return [
        " ".join([f"{one.app} {one.port}/{one.protocol}", *(f"{k}={v}" for k, v in one.options.items())])
        for one in listeners(pod(container(image, *ports, **more)))
    ]


def env(**variables: str) -> tuple[dict[str, Any], ...]:
    return tuple({"name": name, "value": value} for name, value in variables.items())


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("nginx", ("nginx",)),
        ("nginx:1.27-alpine", ("nginx",)),
        ("docker.io/library/nginx:latest", ("library", "nginx")),
        ("registry.example:5000/team/web@sha256:0123", ("team", "web")),
        ("localhost/web:1@sha256:0123", ("web",)),
        ("localhost:5000/web", ("web",)),
        ("team/web", ("team", "web")),
        ("", ("",)),
    ],
)
def test_image_path_is_without_registry_tag_and_digest(image: str, path: tuple[str, ...]) -> None:
    assert image_path(image) == path


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("nginx:1.27", ["http 80/TCP"]),
        ("docker.io/library/httpd", ["http 80/TCP"]),
        ("redis:alpine", ["redis 6379/TCP"]),
        ("postgres:15-alpine", ["echo 5432/TCP"]),
        ("mysql:8", ["echo 3306/TCP"]),
        ("mongo", ["echo 27017/TCP"]),
        ("memcached", ["echo 11211/TCP"]),
        ("example/google-samples/hello-app:2.0", ["http 8080/TCP"]),
        ("coredns/coredns:1.9.4", ["echo 53/TCP", "echo 53/UDP"]),
        ("kicbase/echo-server:1.0", ["http 8080/TCP"]),
        ("ealen/echo-server", ["http 80/TCP"]),
        ("stefanprodan/podinfo", ["http 9898/TCP", "grpc 9999/TCP"]),
        ("busybox:1.38.0@sha256:fd8d", []),
        ("registry.example/pause:3.10", []),
        ("my-app", []),
        ("", []),
    ],
)
def test_usual_port_of_a_well_known_image_answers(image: str, expected: list[str]) -> None:
    assert answers(image) == expected


@pytest.mark.parametrize(
    ("image", "port", "expected"),
    [
        ("my-app", ContainerPort(8080), ["http 8080/TCP"]),
        ("my-app", ContainerPort(53, protocol="UDP"), ["echo 53/UDP"]),
        ("my-app", ContainerPort(3868, protocol="SCTP"), ["echo 3868/SCTP"]),
        ("my-app", ContainerPort(50051, name="grpc"), ["grpc 50051/TCP"]),
        ("my-app", ContainerPort(50051, name="grpc-api"), ["grpc 50051/TCP"]),
        ("my-app", ContainerPort(9999, name="tcp-main"), ["echo 9999/TCP"]),
        ("my-app", ContainerPort(443, name="https"), ["http 443/TCP"]),
        ("my-app", ContainerPort(6379), ["redis 6379/TCP"]),
        ("my-app", ContainerPort(5432), ["echo 5432/TCP"]),
        ("my-app", ContainerPort(5432, name="http"), ["http 5432/TCP"]),
        ("redis", ContainerPort(7000), ["redis 7000/TCP", "redis 6379/TCP"]),
        ("redis", ContainerPort(6379), ["redis 6379/TCP"]),
        ("postgres", ContainerPort(5433), ["echo 5433/TCP", "echo 5432/TCP"]),
        ("nginx", ContainerPort(8080), ["http 8080/TCP", "http 80/TCP"]),
        ("busybox", ContainerPort(8080), ["http 8080/TCP"]),
    ],
)
def test_declared_port_answers_by_name_image_and_number(
    image: str, port: ContainerPort, expected: list[str]
) -> None:
    assert answers(image, port) == expected


def test_a_port_declared_twice_is_listed_once() -> None:
    assert answers("my-app", ContainerPort(80, name="a"), ContainerPort(80, name="b")) == ["http 80/TCP"]


def test_two_containers_that_claim_one_port_are_both_listed() -> None:
    both = listeners(pod(container("nginx", name="a"), container("httpd", name="b")))
    assert [(one.container, one.port) for one in both] == [("a", 80), ("b", 80)]


@pytest.mark.parametrize(
    ("image", "command", "expected"),
    [
        ("nginx", ("sleep", "1d"), []),
        ("nginx", ("/bin/sh", "-c", "nginx"), []),
        ("nginx", ("/usr/sbin/nginx", "-g", "daemon off;"), ["http 80/TCP"]),
        ("redis", ("redis-server",), ["redis 6379/TCP"]),
    ],
)
def test_a_command_replaces_the_images_program(
    image: str, command: tuple[str, ...], expected: list[str]
) -> None:
    assert answers(image, command=command) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["netexec"], ["http 8080/TCP", "echo 8081/UDP"]),
        (["netexec", "--http-port=80", "--udp-port=-1"], ["http 80/TCP"]),
        (["netexec", "--http-port", "80", "--udp-port", "53", "--sctp-port", "99"],
         ["http 80/TCP", "echo 53/UDP", "echo 99/SCTP"]),
        (["netexec", "--http-port=$(PORT)"], ["http 8083/TCP", "echo 8081/UDP"]),
        (["netexec", "--http-port=99999"], ["echo 8081/UDP"]),
        (["serve-hostname"], ["http 9376/TCP root=hostname"]),
        (["serve-hostname", "--tcp", "--port", "80"], ["hostname 80/TCP"]),
        (["serve-hostname", "--tcp", "--udp", "--http=false", "--port=80"],
         ["hostname 80/TCP", "hostname 80/UDP"]),
        (["serve-hostname", "--http=false"], []),
        (["test-webserver"], ["http 80/TCP"]),
        (["grpc-health-checking", "--port=9000"], ["grpc 9000/TCP"]),
        (["porter"], ["http 80/TCP root=text text=foo", "echo 81/SCTP root=text text=bar"]),
        (["pause"], []),
        ([], []),
        (["connect", "10.0.0.1:80"], []),
    ],
)  # fmt: skip
def test_agnhost_answers_what_its_arguments_say(args: list[str], expected: list[str]) -> None:
    variables = env(PORT="8083", SERVE_PORT_80="foo", SERVE_SCTP_PORT_81="bar", SERVE_PORT_x="no")
    assert answers("e2e-test-images/agnhost:2.53", args=tuple(args), env=variables) == expected


def test_agnhost_takes_its_subcommand_from_the_command_too() -> None:
    assert answers("agnhost", command=("/agnhost", "test-webserver")) == ["http 80/TCP"]
    assert answers("agnhost", command=("/agnhost",), args=("test-webserver",)) == ["http 80/TCP"]


@pytest.mark.parametrize(
    ("args", "variables", "expected"),
    [
        (["-text=hi there"], {}, ["http 5678/TCP root=text text=hi there\n"]),
        (["-listen=:80", "-text", "x"], {}, ["http 80/TCP root=text text=x\n"]),
        (["-listen", "0.0.0.0:81"], {"ECHO_TEXT": "env"}, ["http 81/TCP root=text text=env\n"]),
    ],
)
def test_http_echo_says_its_text(args: list[str], variables: dict[str, str], expected: list[str]) -> None:
    assert answers("hashicorp/http-echo:1.0", args=tuple(args), env=env(**variables)) == expected


def test_image_file_holds_only_what_the_readers_know() -> None:
    for image, entry in _images().items():
        if isinstance(entry, dict):
            assert entry["arguments"] in ARGUMENT_READERS
        else:
            assert answers(image, command=()) is not None
            assert all(0 < one.port < 65536 for one in listeners(pod(container(image))))


class TestCommands:
    SHELL = container("busybox", name="sh", command=("sh", "-c", "echo $(WHO)"), args=("$$(WHO)", "$(NO)"))
    ARGS = container("nginx", name="args", args=("-g", "x"))

    def test_are_refused_unless_allowed(self) -> None:
        assert commands(pod(self.SHELL), allow=False) == {}

    def test_are_command_and_args_expanded(self) -> None:
        assert commands(pod(self.SHELL, self.ARGS), allow=True, env={"sh": {"WHO": "me"}}) == {
            "sh": ("sh", "-c", "echo me", "$(WHO)", "$(NO)")
        }

    def test_that_run_serve_their_own_ports(self) -> None:
        serving = container("python", ContainerPort(80), name="py", command=("python3", "-m", "http.server"))
        assert [one.port for one in listeners(pod(serving))] == [80]
        assert listeners(pod(serving), allow=True) == ()


def test_a_container_answers_where_its_probes_ask() -> None:
    probes = {
        "readiness": {"httpGet": {"port": 8181, "path": "/ready"}},
        "liveness": {"tcpSocket": {"port": "9000"}},
        "startup": {"grpc": {"port": 80}},
    }
    found = set(answers("unheard/of", ContainerPort(80), probes=probes))
    assert found == {"http 8181/TCP", "echo 9000/TCP", "http 80/TCP"}
    elsewhere = {"readiness": {"httpGet": {"port": 8181, "host": "192.0.2.1"}}}
    assert answers("unheard/of", probes=elsewhere) == []


def test_sidecars_answer_beside_the_containers() -> None:
    side = container("agnhost", name="side", args=("netexec", "--http-port=9191", "--udp-port=-1"))
    both = Pod(
        uid="u",
        namespace="default",
        name="p",
        node="n",
        ips=("10.0.0.1",),
        containers=(container("nginx"),),
        sidecars=(side,),
    )
    assert [(one.container, one.port) for one in listeners(both)] == [("side", 9191), ("c", 80)]


def test_a_restartable_init_container_is_a_sidecar() -> None:
    spec = {
        "nodeName": "n",
        "containers": [{"name": "c", "image": "nginx"}],
        "initContainers": [
            {"name": "first", "image": "busybox"},
            {"name": "side", "image": "nginx", "restartPolicy": "Always"},
        ],
    }
    metadata = {"uid": "u", "namespace": "default", "name": "p"}
    typed = typed_pod({"metadata": metadata, "spec": spec}, ("10.0.0.1",))
    assert [one.name for one in typed.sidecars] == ["side"]
