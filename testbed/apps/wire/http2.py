"""HTTP/2 with prior knowledge (h2c) over h2, and gRPC health checks (grpc.health.v1) on top of it."""

from __future__ import annotations

from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from testbed.apps import Conversation, Endpoint
from testbed.apps.wire import MAX_BODY, MAX_HEAD, Request, Respond

MAX_STREAMS = 100
_HEALTH = "/grpc.health.v1.Health/"
_SERVING = b"\x00\x00\x00\x00\x02\x08\x01"
"""gRPC frame (not compressed, 2 bytes) of HealthCheckResponse{status: SERVING}."""
_UNIMPLEMENTED = "12"


class Http2(Conversation):
    """One HTTP/2 connection."""

    __slots__ = ("_client", "_connection", "_local", "_pending", "_requests", "_respond", "_unsent")

    def __init__(self, respond: Respond, client: Endpoint, local: Callable[[], Endpoint]) -> None:
        super().__init__()
        self._respond, self._client, self._local = respond, client, local
        self._connection = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
            },
        )
        self._connection.initiate_connection()
        self._pending = 0
        self._requests: dict[int, Request] = {}
        self._unsent: dict[int, tuple[bytes, list[tuple[str, str]] | None]] = {}

    def receive(self, data: bytes) -> bytes:
        """Frames that answer ``data``."""
        try:
            events = self._connection.receive_data(data)
            for event in events:
                self._handle(event)
        except ProtocolError:  # h2 has queued the GOAWAY that says what was wrong
            self.done = True
        else:
            # h2 checks a frame's length only when the frame is whole, which may be 16 MB later.
            self._pending = 0 if events else self._pending + len(data)
            self.done = self.done or self._pending > MAX_BODY
        return self._connection.data_to_send()

    def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._open(event.stream_id, [(str(name), str(value)) for name, value in event.headers])
        elif isinstance(event, DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._count(event.stream_id, len(event.data))
        elif isinstance(event, StreamEnded):
            if request := self._requests.pop(event.stream_id, None):
                self._answer(event.stream_id, request)
        elif isinstance(event, StreamReset):
            self._requests.pop(event.stream_id, None)
            self._unsent.pop(event.stream_id, None)
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            for stream in list(self._unsent):
                self._flush(stream)
        elif isinstance(event, ConnectionTerminated):
            self.done = True

    def _open(self, stream: int, headers: list[tuple[str, str]]) -> None:
        pseudo = dict(header for header in headers if header[0].startswith(":"))
        host = [("host", pseudo[":authority"])] if ":authority" in pseudo else []
        self._requests[stream] = Request(
            method=pseudo.get(":method", ""),
            target=pseudo.get(":path", ""),
            version="HTTP/2",
            headers=host + [header for header in headers if not header[0].startswith(":")],
            client=self._client,
            local=self._local(),
        )

    def _count(self, stream: int, size: int) -> None:
        request = self._requests.get(stream)
        if request is None:
            return
        request.size += size
        if request.size > MAX_BODY:
            del self._requests[stream]
            self._connection.reset_stream(stream, ErrorCodes.ENHANCE_YOUR_CALM)

    def _answer(self, stream: int, request: Request) -> None:
        if dict(request.headers).get("content-type", "").startswith("application/grpc"):
            self._answer_grpc(stream, request)
            return
        response = self._respond(request)
        headers = [
            (":status", str(response.status)),
            ("content-type", response.content_type),
            ("content-length", str(len(response.body))),
            *response.headers,
        ]
        empty = request.method == "HEAD" or not response.body
        self._connection.send_headers(stream, headers, end_stream=empty)
        if not empty:
            self._unsent[stream] = (response.body, [])
            self._flush(stream)

    def _answer_grpc(self, stream: int, request: Request) -> None:
        """Health/Check says SERVING of every service, Watch says it and stays open; the rest is unknown."""
        head = [(":status", "200"), ("content-type", "application/grpc")]
        method = request.target.removeprefix(_HEALTH)
        if not request.target.startswith(_HEALTH) or method not in ("Check", "Watch"):
            status = [("grpc-status", _UNIMPLEMENTED), ("grpc-message", "unknown method")]
            self._connection.send_headers(stream, head + status, end_stream=True)
            return
        self._connection.send_headers(stream, head)
        self._unsent[stream] = (_SERVING, [("grpc-status", "0")] if method == "Check" else None)
        self._flush(stream)

    def _flush(self, stream: int) -> None:
        """Send as much as the windows allow; then trailers: [] none, None: the stream stays open."""
        data, trailers = self._unsent.pop(stream)
        while data:
            window = self._connection.local_flow_control_window(stream)
            room = min(window, self._connection.max_outbound_frame_size)
            if room <= 0:
                self._unsent[stream] = (data, trailers)
                return
            chunk, data = data[:room], data[room:]
            self._connection.send_data(stream, chunk, end_stream=not data and trailers == [])
        if trailers:
            self._connection.send_headers(stream, trailers, end_stream=True)
