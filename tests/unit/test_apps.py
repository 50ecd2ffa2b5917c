"""The applications without sockets: bytes in, bytes out."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.apps import About, Conversation, Endpoint, apps, endpoint
from testbed.apps.wire import MAX_BODY

ABOUT = About("web-0", "shop", "node-1", "web-0", ("10.244.1.2", "fd00::2"), "app")
CLIENT = Endpoint("10.244.2.9", 40000)
LOCAL = Endpoint("10.244.1.2", 80)


def connect(app: str, **options: str) -> Conversation:
    return apps.get(app)(ABOUT, options).connect(CLIENT, lambda: LOCAL)


def get(target: str, **options: str) -> tuple[str, str]:
    """Status line and body of one GET."""
    answer = connect("http", **options).receive(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body.decode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80"),
        (("fd00::1", 80, 0, 0), "[fd00::1]:80"),
    ],
)
def test_endpoint_is_of_the_family_the_client_used(name: Any, expected: str) -> None:
    assert str(endpoint(name)) == expected


class TestHttp:
    def test_root_says_who_answers_and_who_asked(self) -> None:
        status, body = get("/some/path?q=1")
        assert status == "HTTP/1.1 200 OK"
        assert json.loads(body) == {
            "pod": "web-0",
            "namespace": "shop",
            "node": "node-1",
            "ips": ["10.244.1.2", "fd00::2"],
            "hostname": "web-0",
            "container": "app",
            "client": {"address": "10.244.2.9", "port": 40000},
            "local": {"address": "10.244.1.2", "port": 80},
            "protocol": "HTTP/1.1",
            "method": "GET",
            "path": "/some/path?q=1",
            "headers": [["host", "x"]],
            "bodyBytes": 0,
        }

    @pytest.mark.parametrize(
        ("target", "status", "body"),
        [
            ("/hostname", 200, "web-0"),
            ("/hostName", 200, "web-0"),
            ("/clientip", 200, "10.244.2.9:40000"),
            ("/healthz", 200, "ok"),
            ("/echo?msg=hi+there%21", 200, "hi there!"),
            ("/echo?msg=x&code=503", 503, "x"),
            ("/echo?code=99999999999", 400, "argument 'code' must be an HTTP status, not '99999999999'\n"),
            ("/echo?code=-1", 400, "argument 'code' must be an HTTP status, not '-1'\n"),
            ("/echo", 200, ""),
            ("http://other:80/hostname", 200, "web-0"),
            ("http://[/hostname", 400, "Invalid IPv6 URL\n"),
        ],
    )
    def test_pages_of_agnhost(self, target: str, status: int, body: str) -> None:
        line, text = get(target)
        assert (line.split()[1], text) == (str(status), body)

    def test_root_may_be_the_host_name(self) -> None:
        assert get("/", root="hostname")[1] == "web-0"
        assert get("/healthz", root="hostname")[1] == "ok"

    def test_root_may_be_a_text_at_every_path(self) -> None:
        assert get("/any", root="text", text="hello\n")[1] == "hello\n"

    def test_requests_in_one_packet_are_answered_in_order(self) -> None:
        both = b"GET /echo?msg=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /echo?msg=2 HTTP/1.1\r\nHost: x\r\n\r\n"
        conversation = connect("http")
        answer = conversation.receive(both)
        assert [part[0:1] for part in answer.split(b"\r\n\r\n")[1:]] == [b"1", b"2"]
        assert not conversation.done

    def test_a_request_in_pieces_is_answered_at_its_end(self) -> None:
        request = b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n"
        conversation = connect("http")
        pieces = [conversation.receive(bytes([byte])) for byte in request]
        assert not any(pieces[:-1])
        assert pieces[-1].endswith(b"\r\n\r\nweb-0")

    def test_head_has_the_length_but_no_body(self) -> None:
        conversation = connect("http")
        answer = conversation.receive(b"HEAD /hostname HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Content-Length: 5\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")
        assert not conversation.done

    def test_a_chunked_body_is_counted(self) -> None:
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        assert b'"bodyBytes": 5}' in connect("http").receive(chunked)

    def test_expect_continue_is_answered_before_the_body(self) -> None:
        conversation = connect("http")
        head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        assert conversation.receive(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert conversation.receive(b"ok").startswith(b"HTTP/1.1 200 OK\r\n")

    @pytest.mark.parametrize(
        "request_head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
    )
    def test_the_connection_ends_where_the_client_wants_it(self, request_head: bytes) -> None:
        conversation = connect("http")
        assert b"Connection: close" in conversation.receive(request_head)
        assert conversation.done

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"nonsense\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, 431),
            (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ],
    )
    def test_bad_requests_are_refused_and_the_connection_ends(self, data: bytes, status: int) -> None:
        conversation = connect("http")
        answer = conversation.receive(data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert conversation.done

    def test_a_body_without_end_is_refused(self) -> None:
        conversation = connect("http")
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
        answer = conversation.receive(head)
        for _ in range(MAX_BODY // 65536 + 1):
            assert not answer
            answer = conversation.receive(bytes(65536))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert conversation.done


class Http2Client:
    """The other end of an HTTP/2 conversation."""

    def __init__(self, app: str = "http", **options: str) -> None:
        self.server = connect(app, **options)
        self.wire = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.wire.initiate_connection()
        self.events: list[Event] = []
        self.flush()

    def flush(self) -> None:
        while data := self.wire.data_to_send():
            self.events += self.wire.receive_data(self.server.receive(data))

    def ask(
        self, path: str, *headers: tuple[str, str], method: str = "GET", body: bytes | None = None
    ) -> int:
        stream = self.wire.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.wire.send_headers(stream, [*pseudo, *headers], end_stream=body is None)
        if body is not None:
            self.wire.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def body(self, stream: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, DataReceived) and event.stream_id == stream
        )

    def headers(self, kind: type[ResponseReceived] | type[TrailersReceived], stream: int) -> dict[str, str]:
        return next(
            (dict(one.headers) for one in self.events if isinstance(one, kind) and one.stream_id == stream),
            {},
        )

    def ended(self, stream: int) -> bool:
        return any(isinstance(event, StreamEnded) and event.stream_id == stream for event in self.events)


GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


class TestHttp2:
    def test_says_the_same_as_http1(self) -> None:
        client = Http2Client()
        stream = client.ask("/hostname")
        assert client.headers(ResponseReceived, stream)[":status"] == "200"
        assert (client.body(stream), client.ended(stream)) == (b"web-0", True)

    def test_root_names_the_protocol_and_the_host(self) -> None:
        client = Http2Client()
        document = json.loads(client.body(client.ask("/")))
        assert (document["protocol"], document["headers"]) == ("HTTP/2", [["host", "x"]])

    def test_streams_of_one_connection_are_answered_each(self) -> None:
        client = Http2Client()
        streams = [client.ask(f"/echo?msg={index}") for index in range(5)]
        assert [client.body(stream) for stream in streams] == [b"0", b"1", b"2", b"3", b"4"]

    def test_head_and_empty_answers_end_with_the_headers(self) -> None:
        client = Http2Client()
        for stream in (client.ask("/hostname", method="HEAD"), client.ask("/echo")):
            assert (client.body(stream), client.ended(stream)) == (b"", True)

    def test_a_body_larger_than_the_window_waits_for_it(self) -> None:
        text = "x" * 200_000
        client = Http2Client(root="text", text=text)
        stream = client.ask("/")
        assert len(client.body(stream)) == 65535
        client.wire.increment_flow_control_window(1_000_000)
        client.wire.increment_flow_control_window(1_000_000, stream)
        client.flush()
        assert (client.body(stream).decode(), client.ended(stream)) == (text, True)

    def test_a_body_without_end_is_reset(self) -> None:
        client = Http2Client()
        stream = client.wire.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
        client.wire.send_headers(stream, pseudo)
        for _ in range(MAX_BODY // 16384 + 1):
            client.wire.send_data(stream, bytes(16384))
            client.flush()
        assert any(isinstance(event, StreamReset) for event in client.events)
        assert client.body(client.ask("/hostname")) == b"web-0"

    def test_headers_that_are_no_text_are_answered_too(self) -> None:
        wire, server = H2Connection(H2Configuration(header_encoding=None)), connect("http")
        wire.initiate_connection()
        pseudo = [(b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"x")]
        wire.send_headers(1, [*pseudo, (b"x-y", b"\xff\xfe")], end_stream=True)
        events = wire.receive_data(server.receive(wire.data_to_send()))
        data = next(event.data for event in events if isinstance(event, DataReceived))
        assert ["x-y", "\xff\xfe"] in json.loads(data)["headers"]

    def test_nonsense_after_the_preface_ends_the_connection(self) -> None:
        client = Http2Client()
        client.server.receive(b"\x00\xff\xff\x00" + b"\xff" * 65_540)
        assert client.server.done

    def test_a_frame_that_never_ends_ends_the_connection(self) -> None:
        client = Http2Client()
        client.server.receive(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01")
        for _ in range(MAX_BODY // 65536):
            assert not client.server.done
            client.server.receive(bytes(65536))
        assert client.server.done

    @pytest.mark.parametrize("app", ["http", "grpc"])
    def test_grpc_health_check_says_serving(self, app: str) -> None:
        client = Http2Client(app)
        stream = client.ask(
            "/grpc.health.v1.Health/Check", *GRPC, method="POST", body=struct.pack("!BI", 0, 0)
        )
        head = client.headers(ResponseReceived, stream)
        assert (head[":status"], head["content-type"]) == ("200", "application/grpc")
        assert client.body(stream) == struct.pack("!BI", 0, 2) + b"\x08\x01"
        assert client.headers(TrailersReceived, stream) == {"grpc-status": "0"}
        assert client.ended(stream)

    def test_grpc_health_watch_stays_open(self) -> None:
        client = Http2Client("grpc")
        stream = client.ask("/grpc.health.v1.Health/Watch", *GRPC, method="POST", body=bytes(5))
        assert client.body(stream).endswith(b"\x08\x01")
        assert not client.ended(stream)

    def test_other_grpc_methods_are_unimplemented(self) -> None:
        client = Http2Client("grpc")
        stream = client.ask("/shop.Cart/Get", *GRPC, method="POST", body=bytes(5))
        assert client.headers(ResponseReceived, stream)["grpc-status"] == "12"
        assert client.ended(stream)


class TestEcho:
    def test_gives_back_a_stream(self) -> None:
        assert connect("echo").receive(b"\x00abc") == b"\x00abc"

    @pytest.mark.parametrize(
        ("data", "answer"),
        [
            (b"hostname", b"web-0"),
            (b"HostName\n", b"web-0"),
            (b"clientip", b"10.244.2.9:40000"),
            (b"echo some Text", b"some Text"),
            (b"echo", b"echo"),
            (b"", b""),
            (b"\xff\x00", b"\xff\x00"),
        ],
    )
    def test_answers_datagrams_as_agnhost_does(self, data: bytes, answer: bytes) -> None:
        assert apps.get("echo")(ABOUT, {}).datagram(data, CLIENT) == answer


def test_hostname_speaks_first_and_hangs_up() -> None:
    app = apps.get("hostname")(ABOUT, {})
    conversation = app.connect(CLIENT, lambda: LOCAL)
    assert (app.speaks_first, conversation.receive(b""), conversation.done) == (True, b"web-0", True)
    assert app.datagram(b"?", CLIENT) == b"web-0"


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class TestRedis:
    @pytest.mark.parametrize(
        ("data", "answer"),
        [
            (b"PING\r\n", b"+PONG\r\n"),
            (b"ping hi\n", b"$2\r\nhi\r\n"),
            (resp(b"ECHO", b"a\r\nb"), b"$4\r\na\r\nb\r\n"),
            (resp(b"GET", b"none"), b"$-1\r\n"),
            (resp(b"SET", b"k", b"v", b"EX", b"10") + resp(b"GET", b"k"), b"+OK\r\n$1\r\nv\r\n"),
            (resp(b"INCR", b"n") + resp(b"INCR", b"n"), b":1\r\n:2\r\n"),
            (resp(b"SET", b"k", b"--1") + resp(b"INCR", b"k"),
             b"+OK\r\n-ERR value is not an integer or out of range\r\n"),
            (resp(b"DEL", b"k"), b":0\r\n"),
            (resp(b"COMMAND", b"DOCS"), b"*0\r\n"),
            (resp(b"HELLO", b"3"), b"-ERR unknown command 'HELLO'\r\n"),
            (resp(b"GET"), b"-ERR wrong number of arguments for 'get' command\r\n"),
            (b"\r\n\r\nPING\r\n", b"+PONG\r\n"),
        ],
    )  # fmt: skip
    def test_replies(self, data: bytes, answer: bytes) -> None:
        assert connect("redis").receive(data) == answer

    @pytest.mark.parametrize(
        "data", [b"*99\r\n", b"*1\r\n:1\r\n", b"*1\r\n$9999999\r\n", b"*x\r\n", b"*-1\r\n", b"y" * 200_000]
    )
    def test_nonsense_ends_the_connection(self, data: bytes) -> None:
        conversation = connect("redis")
        assert conversation.receive(data).startswith(b"-ERR Protocol error")
        assert conversation.done

    def test_connections_of_one_port_share_the_store(self) -> None:
        app = apps.get("redis")(ABOUT, {})
        one, two = (app.connect(CLIENT, lambda: LOCAL) for _ in range(2))
        one.receive(resp(b"SET", b"k", b"v"))
        assert two.receive(resp(b"GET", b"k")) == b"$1\r\nv\r\n"

    def test_store_is_bounded(self) -> None:
        conversation = connect("redis")
        answers = [conversation.receive(resp(b"SET", b"k%d" % index, b"v")) for index in range(1001)]
        assert answers[:1000] == [b"+OK\r\n"] * 1000
        assert answers[1000].startswith(b"-OOM")
        assert conversation.receive(resp(b"SET", b"k0", b"x" * 5000)).startswith(b"-ERR")

    @given(st.lists(st.binary(max_size=20), min_size=1, max_size=10), st.integers(1, 7))
    @settings(max_examples=50)
    def test_replies_do_not_depend_on_how_the_bytes_arrive(self, texts: list[bytes], step: int) -> None:
        data = b"".join(resp(b"ECHO", text) for text in texts)
        conversation = connect("redis")
        pieces = [conversation.receive(data[at : at + step]) for at in range(0, len(data), step)]
        assert b"".join(pieces) == connect("redis").receive(data)


@given(st.sampled_from(["http", "redis"]), st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=200)
def test_nothing_that_is_sent_makes_an_app_fail(app: str, pieces: list[bytes]) -> None:
    conversation = connect(app)
    for piece in pieces:
        if not conversation.done:
            assert isinstance(conversation.receive(piece), bytes)
