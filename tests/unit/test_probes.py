from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from testbed.apps import About, Endpoint, apps
from testbed.apps.wire.health import HealthCheck
from testbed.cluster import probers
from testbed.control.probes import Backoff, Probing, kinds, probes, restarts, skipped, waiting_text
from testbed.control.snapshot import Container, ContainerPort, Pod
from testbed.state import Probe

READY = Probe("readiness", "tcp", failures=3, successes=2)
LIVE = Probe("liveness", "tcp", failures=2)
START = Probe("startup", "tcp", failures=2)


def made(allow: bool = False, **given: dict[str, Any]) -> dict[str, tuple[Probe, ...]]:
    ports = (ContainerPort(8080, "web"), ContainerPort(9090))
    container = Container("c", "nginx", ports=ports, probes=given)
    pod = Pod("u", "default", "p", "node-1", ("10.244.1.2",), containers=(container,), stop_seconds=7)
    return probes(pod, allow, {"c": {"WHO": "me"}})


# --- from manifests -----------------------------------------------------------------------------------


def test_defaults_and_a_named_port_are_filled_in():
    (probe,) = made(readiness={"httpGet": {"port": "web"}})["c"]
    assert (probe.how, probe.host, probe.port, probe.target) == ("http", "10.244.1.2", 8080, "/")
    assert (probe.delay, probe.period, probe.timeout) == (0, 10, 1)
    assert (probe.successes, probe.failures, probe.grace) == (1, 3, 7)


def test_what_the_manifest_says_is_taken():
    action = {
        "host": "10.0.0.9",
        "port": 443,
        "path": "up",
        "scheme": "HTTPS",
        "httpHeaders": [{"name": "A", "value": "1"}],
    }
    clocks = {"initialDelaySeconds": 5, "periodSeconds": 2, "timeoutSeconds": 3, "failureThreshold": 1}
    (probe,) = made(liveness={"httpGet": action, **clocks, "terminationGracePeriodSeconds": 4})["c"]
    assert (probe.how, probe.host, probe.port, probe.target) == ("https", "10.0.0.9", 443, "/up")
    assert probe.headers == (("A", "1"),)
    assert (probe.delay, probe.period, probe.timeout, probe.failures, probe.grace) == (5, 2, 3, 1, 4)


@pytest.mark.parametrize(
    ("allow", "command", "how"), [(True, ("x",), "https"), (False, ("x",), "http"), (True, (), "http")]
)
def test_only_a_program_of_the_manifest_is_asked_with_tls(
    allow: bool, command: tuple[str, ...], how: str
) -> None:
    asked = {"readiness": {"httpGet": {"port": 8443, "scheme": "HTTPS"}}}
    container = Container("c", "nginx", command=command, probes=asked)
    pod = Pod("u", "default", "p", "node-1", ("10.244.1.2",), containers=(container,))
    assert [probe.how for probe in probes(pod, allow)["c"]] == [how]


def test_a_port_name_that_no_port_has_is_an_error_of_the_probe():
    (probe,) = made(readiness={"tcpSocket": {"port": "nope"}})["c"]
    assert "nope" in probe.problem


def test_a_command_is_a_probe_only_where_commands_run():
    given = {"exec": {"command": ["test", "$(WHO)"]}}
    assert made(readiness=given) == {}
    (probe,) = made(allow=True, readiness=given)["c"]
    assert probe.command == ("test", "me")
    container = Container("c", "nginx", probes={"readiness": given, "liveness": {"tcpSocket": {"port": 1}}})
    assert (skipped(container, False), kinds(container, False)) == (["readiness"], ["liveness"])
    assert (skipped(container, True), kinds(container, True)) == ([], ["readiness", "liveness"])


# --- thresholds ---------------------------------------------------------------------------------------


def fed(probing: Probing, probe: Probe, outcomes: str) -> list[str]:
    """The verdicts on outcomes written as ``+`` and ``-``."""
    return [probing.feed(probe, outcome == "+") for outcome in outcomes]


def test_readiness_is_failure_at_first_and_turns_after_as_many_in_a_row():
    probing = Probing((READY,))
    assert not probing.ready
    assert fed(probing, READY, "+-++") == ["same", "same", "same", "changed"]
    assert probing.ready
    assert fed(probing, READY, "--+--") == ["same"] * 5
    assert fed(probing, READY, "-") == ["changed"]
    assert not probing.ready


def test_without_a_readiness_probe_a_container_is_ready_once_it_is_started():
    assert Probing((LIVE,)).ready
    probing = Probing((START, LIVE))
    assert (probing.ready, probing.started) == (False, False)
    assert fed(probing, START, "+") == ["changed"]
    assert (probing.ready, probing.started) == (True, True)


def test_liveness_kills_at_its_threshold_and_not_before():
    assert fed(Probing((LIVE,)), LIVE, "-+--") == ["same", "same", "same", "kill"]


def test_a_startup_probe_holds_the_others_back_until_it_succeeds_and_then_stops():
    probing = Probing((START, READY, LIVE))
    assert [probing.runs(kind) for kind in ("startup", "readiness", "liveness")] == [True, False, False]
    fed(probing, START, "-+")
    assert [probing.runs(kind) for kind in ("startup", "readiness", "liveness")] == [False, True, True]
    assert probing.started
    assert not probing.ready
    assert fed(Probing((START,)), START, "--") == ["same", "kill"]


# --- restarts -----------------------------------------------------------------------------------------


def test_back_off_doubles_to_its_limit_and_is_forgotten_after_a_quiet_time():
    backoff = Backoff(10, 60)
    assert [backoff.wait(ended) for ended in (0, 20, 60, 120, 190, 260)] == [0, 10, 20, 40, 60, 60]
    assert backoff.wait(260 + 121) == 0


@pytest.mark.parametrize(
    ("policy", "code", "killed", "expected"),
    [
        ("Always", 0, False, True),
        ("OnFailure", 0, False, False),
        ("OnFailure", 1, False, True),
        ("OnFailure", 0, True, True),
        ("Never", 1, True, False),
    ],
)
def test_the_restart_policy_decides(policy: str, code: int, killed: bool, expected: bool):
    assert restarts(policy, code, killed=killed) is expected


def test_a_long_back_off_is_written_as_go_writes_it():
    assert waiting_text(160, "c", "p", "default", "u").startswith("back-off 2m40s restarting failed")
    assert waiting_text(10, "c", "p", "default", "u").endswith("container=c pod=p_default(u)")


# --- gRPC, without a network --------------------------------------------------------------------------


def asked(service: str) -> HealthCheck:
    """A health check answered by the built-in application server."""
    app = apps.get("grpc")(About("p", "default", "n", "p", ("10.0.0.1",), "c"), {})
    server = app.connect(Endpoint("10.0.0.2", 5), lambda: Endpoint("10.0.0.1", 50))
    check = HealthCheck("10.0.0.1:50", service, "kube-probe/1.36")
    for _ in range(5):
        if check.done:
            break
        check.receive(server.receive(check.unsent()))
    return check


@pytest.mark.parametrize("service", ["", "liveness"])
def test_a_health_check_reads_what_the_application_server_says(service: str):
    check = asked(service)
    assert (check.done, check.problem, check.grpc_status, check.serving) == (True, "", 0, "SERVING")


def test_a_health_check_of_what_speaks_no_http2_has_a_problem():
    check = HealthCheck("10.0.0.1:50", "", "x")
    check.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    check.receive(b"")
    assert check.done
    assert check.problem == "error reading server preface: EOF"


# --- over the loopback --------------------------------------------------------------------------------


def probed(answer: bytes | None, make: Callable[[int], Probe]) -> tuple[probers.Outcome, str]:
    """A probe of a server that answers so to any request (None: never); and what it was asked."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is not None:
            writer.write(answer)
            writer.close()
        else:
            await reader.read()

    async def main() -> probers.Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await probers.run(make(server.sockets[0].getsockname()[1]))

    return asyncio.run(main()), heard[0].decode() if heard else ""


def http(port: int, **more: Any) -> Probe:
    return Probe("readiness", "http", host="127.0.0.1", port=port, target="/up?x=1", **more)


@pytest.mark.parametrize(
    ("head", "success", "text"),
    [
        ("200 OK", True, ""),
        ("302 Found\r\nLocation: http://elsewhere.example/", True, ""),
        ("500 Oops", False, "HTTP probe failed with statuscode: 500"),
        ("404 Not Found", False, "HTTP probe failed with statuscode: 404"),
    ],
)
def test_an_http_probe_goes_by_the_status_code(head: str, success: bool, text: str):
    outcome, request = probed(f"HTTP/1.1 {head}\r\n\r\n".encode(), http)
    assert (outcome.success, outcome.text) == (success, text)
    assert bool(outcome.warning) == head.startswith("302")
    assert request.startswith("GET /up?x=1 HTTP/1.1\r\n")
    assert "User-Agent: kube-probe/1.36" in request


def test_headers_of_the_manifest_replace_our_own():
    _, request = probed(b"HTTP/1.1 200 OK\r\n\r\n", lambda port: http(port, headers=(("Host", "me"),)))
    assert "Host: me\r\n" in request
    assert "127.0.0.1" not in request


def test_silence_garbage_and_a_closed_port_are_failures_in_the_kubelets_words():
    silent, _ = probed(None, lambda port: http(port, timeout=0.05))
    assert silent.text.endswith("(Client.Timeout exceeded while awaiting headers)")
    garbage, _ = probed(b"SSH-2.0\r\n\r\n", http)
    assert 'malformed HTTP response "SSH-2.0"' in garbage.text
    closed = asyncio.run(probers.run(Probe("readiness", "tcp", host="127.0.0.1", port=1)))
    assert closed == probers.Outcome(False, "dial tcp 127.0.0.1:1: connect: connection refused")
