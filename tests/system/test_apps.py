"""The application server on real sockets and real clients, each test in a child with a netns of its own."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from probe_lab import in_child, ip, sysctl

from testbed.apps.server import MAX_PORT_CONNECTIONS, Server
from testbed.kernel import netns
from testbed.state import Listener, PodState
from testbed.wait import wait_until

HTTP, ECHO, REDIS, HOSTNAME = 8080, 7000, 6379, 9376
LISTENERS = (
    Listener("web", "TCP", HTTP, "http"),
    Listener("web", "TCP", ECHO, "echo"),
    Listener("web", "UDP", ECHO, "echo"),
    Listener("store", "TCP", REDIS, "redis"),
    Listener("web", "TCP", HOSTNAME, "hostname"),
)


def pod(*listeners: Listener, uid: str = "u1", name: str = "web-0", **fields: Any) -> PodState:
    fields = {"ips": ("127.0.0.1",), "node": "node-1", **fields}
    return PodState(uid=uid, namespace="shop", name=name, hostname=name, listeners=listeners, **fields)


class Serving:
    """A server whose loop runs in a thread; ``do`` calls a function there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = Server(self.loop)
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        async def call() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def add(self, state: PodState) -> tuple[str, ...]:
        problems: tuple[str, ...] = self.do(lambda: self.server.start(state, self.server.open(state)))
        return problems


@contextmanager
def serving(*states: PodState, ipv6: bool = True) -> Iterator[Serving]:
    ip(["link set lo up"])
    if not ipv6:
        sysctl("ipv6/conf/all/disable_ipv6", "1")
    both = Serving()
    thread = threading.Thread(target=both.loop.run_forever)
    thread.start()
    try:
        for state in states or (pod(*LISTENERS),):
            assert both.add(state) == ()
        yield both
        both.do(both.server.close)
    finally:
        both.loop.call_soon_threadsafe(both.loop.stop)
        thread.join()
        both.loop.close()
    assert both.failures == []


def curl(*words: str, stdin: bytes = b"") -> str:
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", "10", *words]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout.decode()


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((address, port), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_curl_gets_json_about_pod_and_client(version: str, address: str) -> None:
    def body() -> None:
        with serving():
            out = json.loads(curl(version, f"http://{address}:{HTTP}/x?y=z"))
        assert (out["pod"], out["namespace"], out["node"], out["container"]) == (
            "web-0",
            "shop",
            "node-1",
            "web",
        )
        assert out["client"]["address"] == out["local"]["address"] == address.strip("[]")
        assert (out["local"]["port"], out["path"], out["method"]) == (HTTP, "/x?y=z", "GET")
        assert out["protocol"] == ("HTTP/1.1" if version == "--http1.1" else "HTTP/2")

    in_child(body)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_sends_bodies_and_gets_the_refusal_of_one_too_large(version: str) -> None:
    def body() -> None:
        url = f"http://127.0.0.1:{HTTP}/"
        with serving():
            for more in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")):
                if version == "--http1.1" or not more:
                    out = curl(version, *more, "--data-binary", "@-", url, stdin=bytes(300_000))
                    assert json.loads(out)["bodyBytes"] == 300_000
            if version == "--http1.1":
                status = ("-o", "/dev/null", "-w", "%{http_code}")
                assert curl(*status, "--data-binary", "@-", url, stdin=bytes(3_000_000)) == "413"
            assert curl(version, "-I", url).splitlines()[0].split()[1] == "200"

    in_child(body)


def test_curl_keeps_one_connection_for_several_requests() -> None:
    def body() -> None:
        with serving():
            pages = [f"http://127.0.0.1:{HTTP}/{page}" for page in ("clientip", "clientip", "clientip")]
            out = curl("-w", " %{num_connects}\n", *pages)
        lines = [line.split() for line in out.splitlines()]
        assert [line[1] for line in lines] == ["1", "0", "0"]
        assert len({line[0] for line in lines}) == 1

    in_child(body)


def test_without_ipv6_ports_answer_over_ipv4() -> None:
    def body() -> None:
        with serving(ipv6=False):
            assert curl(f"http://127.0.0.1:{HTTP}/hostname") == "web-0"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(10)
                client.sendto(b"hostname", ("127.0.0.1", ECHO))
                assert client.recv(100) == b"web-0"

    in_child(body)


def test_echo_gives_back_more_than_the_buffers_hold() -> None:
    """The client sends it all before it reads: the server must stop reading, and must lose nothing."""

    def body() -> None:
        data = os.urandom(1 << 20) * 8
        with serving(), connect(ECHO) as client:
            sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
            sender.start()
            echoed = read_all(client)
            sender.join()
        assert echoed == data

    in_child(body)


def test_udp_is_answered_from_the_address_that_was_asked() -> None:
    def body() -> None:
        ip(["addr add 10.9.9.9/32 dev lo", "addr add fd00:9::9/128 dev lo nodad"])
        with serving():
            for family, address in ((socket.AF_INET, "10.9.9.9"), (socket.AF_INET6, "fd00:9::9")):
                with socket.socket(family, socket.SOCK_DGRAM) as client:
                    client.settimeout(10)
                    client.connect((address, ECHO))  # takes answers from there alone
                    for data in (b"hostname", b"echo words", b"", b"\x00" * 1400):
                        client.send(data)
                        answer = {b"hostname": b"web-0", b"echo words": b"words"}.get(data, data)
                        assert client.recv(2000) == answer

    in_child(body)


def test_hostname_is_said_at_once_and_the_connection_ends() -> None:
    def body() -> None:
        with serving(), connect(HOSTNAME) as client:
            assert read_all(client) == b"web-0"

    in_child(body)


def test_redis_answers_a_plain_socket() -> None:
    def body() -> None:
        with serving(), connect(REDIS) as client:
            client.sendall(b"PING\r\nQUIT\r\n")
            assert read_all(client) == b"+PONG\r\n+OK\r\n"

    in_child(body)


def test_a_port_taken_by_another_container_is_a_problem_of_that_port_alone() -> None:
    def body() -> None:
        twice = (Listener("a", "TCP", HTTP, "http"), Listener("b", "TCP", HTTP, "http"))
        with serving(pod(Listener("c", "TCP", ECHO, "echo"), uid="other")) as both:
            assert both.add(
                pod(*twice, Listener("b", "TCP", ECHO, "echo"), Listener("b", "UDP", ECHO, "echo"))
            ) == (
                f"container b: TCP port {HTTP} is already taken by container a",
                f"container b: TCP port {ECHO} is already in use",
            )
            assert json.loads(curl(f"http://127.0.0.1:{HTTP}/"))["container"] == "a"

    in_child(body)


def test_sctp_is_left_out_where_the_kernel_lacks_it() -> None:
    def body() -> None:
        with serving(pod(Listener("a", "SCTP", 99, "echo"), Listener("a", "TCP", HTTP, "http"))):
            assert curl(f"http://127.0.0.1:{HTTP}/healthz") == "ok"

    in_child(body)


def test_update_changes_identity_and_ports_and_keeps_connections() -> None:
    def body() -> None:
        with serving(pod(*LISTENERS)) as both, connect(ECHO) as kept, connect(REDIS) as dropped:
            changed = pod(*LISTENERS[:3], Listener("new", "TCP", 8081, "http"), ips=("10.9.9.9",))
            assert both.add(changed) == ()
            assert json.loads(curl(f"http://127.0.0.1:{HTTP}/"))["ips"] == ["10.9.9.9"]
            assert json.loads(curl("http://127.0.0.1:8081/"))["container"] == "new"
            kept.sendall(b"still")
            assert kept.recv(100) == b"still"
            assert dropped.recv(100) == b""
            with pytest.raises(ConnectionRefusedError):
                connect(REDIS)

    in_child(body)


def test_stop_closes_ports_and_connections_and_their_descriptors() -> None:
    def body() -> None:
        with serving(pod(uid="idle")) as both:
            before = len(os.listdir("/proc/self/fd"))
            both.add(pod(*LISTENERS))
            assert len(os.listdir("/proc/self/fd")) - before == len(LISTENERS)
            client = connect(ECHO)
            client.sendall(b"x")
            assert client.recv(10) == b"x"
            both.do(both.server.stop, "u1")
            assert client.recv(10) == b""
            client.close()
            assert len(os.listdir("/proc/self/fd")) == before
            with pytest.raises(ConnectionRefusedError):
                connect(ECHO)

    in_child(body)


def test_stop_lets_the_netns_go() -> None:
    """An open socket would keep it and its links for ever: here the near end of a veth shows it is gone."""

    def body() -> None:
        with serving(pod(uid="idle")) as both:
            inner = netns.create()
            ip([f"link add there netns /proc/{os.getpid()}/fd/{inner} type veth peer name here"])
            state = pod(*LISTENERS)

            def open_inside() -> None:
                with netns.inside(inner):
                    opened = both.server.open(state)
                both.server.start(state, opened)

            both.do(open_inside)
            os.close(inner)
            assert "here" in links()
            both.do(both.server.stop, state.uid)
            wait_until(lambda: "here" not in links(), 10, "the netns going")

    in_child(body)


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_connections_of_a_port_are_bounded() -> None:
    def body() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        with serving():
            clients = [connect(ECHO) for _ in range(MAX_PORT_CONNECTIONS + 1)]
            for client in clients:
                client.sendall(b"x")
            answers = []
            for client in clients:
                try:
                    answers.append(client.recv(1))
                except ConnectionResetError:
                    answers.append(b"")
            for client in clients:  # not before: the server may be behind, and has room again then
                client.close()
            assert answers.count(b"x") == MAX_PORT_CONNECTIONS

    in_child(body)


def test_accepting_goes_on_after_descriptors_were_short() -> None:
    def body() -> None:
        with serving() as both:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = socket.socket()
            client.settimeout(10)
            used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, limit[1]))
            client.connect(("127.0.0.1", ECHO))
            both.do(lambda: None)  # one turn of the loop: it has tried and failed
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.close()

    in_child(body)


def test_a_silent_connection_is_closed_after_its_time() -> None:
    def body() -> None:
        from testbed.apps import server
        from testbed.apps.http import Http

        server.SWEEP_SECONDS, Http.idle = 0.05, 0.2
        with serving(), connect(HTTP) as silent, connect(ECHO) as patient:
            assert silent.recv(1) == b""
            patient.sendall(b"x")
            assert patient.recv(1) == b"x"

    in_child(body)


def test_a_pod_costs_one_descriptor_a_port_and_little_memory() -> None:
    def body() -> None:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        pods = [pod(Listener("c", "TCP", 20000 + n, "http"), uid=str(n), name=f"p{n}") for n in range(600)]
        with serving(*pods[:100]) as both:
            files, memory = len(os.listdir("/proc/self/fd")), resident()
            for state in pods[100:]:
                both.add(state)
            assert len(os.listdir("/proc/self/fd")) - files == 500
            assert (resident() - memory) / 500 < 20_000

    in_child(body)
