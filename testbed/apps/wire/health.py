"""The client's side of a gRPC health check (``grpc.health.v1.Health/Check``) over h2; no I/O."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, StreamEnded, StreamReset
from h2.exceptions import ProtocolError

STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


class HealthCheck:
    """One question on a connection of its own. service: "" asks about the server as a whole."""

    def __init__(self, authority: str, service: str, user_agent: str) -> None:
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._connection.initiate_connection()
        name = service.encode()
        question = b"\x0a" + _varint(len(name)) + name if name else b""
        stream = self._connection.get_next_available_stream_id()
        self._connection.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/grpc.health.v1.Health/Check"),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("user-agent", user_agent),
                ("te", "trailers"),
            ],
        )
        self._connection.send_data(
            stream, b"\x00" + len(question).to_bytes(4, "big") + question, end_stream=True
        )
        self._body = b""
        self._fields: dict[str, str] = {}
        self.done = False
        self.problem = ""
        """What was wrong with the answer, "" where it is one."""

    def unsent(self) -> bytes:
        """What to send now."""
        return self._connection.data_to_send()

    def receive(self, data: bytes) -> None:
        """Take in what the server sent; b"": it hung up."""
        if not data:
            self.done, self.problem = True, "error reading server preface: EOF"
            return
        try:
            for event in self._connection.receive_data(data):
                self._handle(event)
        except ProtocolError as error:
            self.done, self.problem = True, str(error)

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._body += event.data
        elif isinstance(event, StreamEnded):
            self.done = True
        elif isinstance(event, StreamReset | ConnectionTerminated):
            self.done, self.problem = True, "the server ended the stream"
        else:
            headers = getattr(event, "headers", None) or ()
            self._fields |= {str(name): str(value) for name, value in headers}

    @property
    def grpc_status(self) -> int:
        """The call's status code; 0 is OK."""
        text = self._fields.get("grpc-status", "0" if self._body else "2")
        return int(text) if text.isdecimal() else 2

    @property
    def serving(self) -> str:
        """What the server says of the service: a name of STATUSES."""
        message = self._body[5:]
        number = message[1] if len(message) >= 2 and message[0] == 0x08 else 0
        return STATUSES.get(number, "UNKNOWN")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
