"""HTTP/1.0 and 1.1 over h11: keep-alive, pipelining, chunked bodies, 100-continue, HEAD."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import h11

from testbed.apps import Conversation, Endpoint
from testbed.apps.wire import MAX_BODY, MAX_HEAD, Request, Respond, Response

_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")


class Http1(Conversation):
    """One HTTP/1 connection."""

    __slots__ = ("_client", "_connection", "_head", "_local", "_respond", "_size")

    def __init__(self, respond: Respond, client: Endpoint, local: Callable[[], Endpoint]) -> None:
        super().__init__()
        self._respond, self._client, self._local = respond, client, local
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._head: h11.Request | None = None
        self._size = 0

    def receive(self, data: bytes) -> bytes:
        """Responses to every request that ``data`` completes."""
        self._connection.receive_data(data)
        out = bytearray()
        try:
            while not self.done and self._step(out):
                pass
        except h11.RemoteProtocolError as error:
            out += self._refuse(error.error_status_hint, str(error))
        return bytes(out)

    def _step(self, out: bytearray) -> bool:
        """Handle the next event; False: there is none until more data comes."""
        event = self._connection.next_event()
        if event is h11.NEED_DATA:
            if self._connection.they_are_waiting_for_100_continue:
                out += self._send(_CONTINUE)
            return False
        if isinstance(event, h11.Request):
            self._head, self._size = event, 0
            if event.method == b"CONNECT":
                out += self._refuse(405, "this is no proxy")
        elif isinstance(event, h11.Data):
            self._size += len(event.data)
            if self._size > MAX_BODY:
                out += self._refuse(413, f"a body has at most {MAX_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            out += self._answer()
        else:  # PAUSED, ConnectionClosed: nothing more can come
            self.done = True
        return True

    def _answer(self) -> bytes:
        assert self._head is not None  # noqa: S101 (h11 gives the head first)
        head = self._head
        request = Request(
            method=head.method.decode("ascii"),
            target=head.target.decode("latin-1"),
            version=f"HTTP/{head.http_version.decode('ascii')}",
            headers=[(name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers],
            client=self._client,
            local=self._local(),
            size=self._size,
        )
        sent = self._whole(self._respond(request))
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()
        else:
            self.done = True
        return sent

    def _refuse(self, status: int, why: str) -> bytes:
        self.done = True
        if self._connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return b""
        return self._whole(Response(f"{why}\n".encode(), status=status, headers=[("Connection", "close")]))

    def _whole(self, response: Response) -> bytes:
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
        ]
        reason = _reason(response.status)
        sent = self._send(h11.Response(status_code=response.status, headers=headers, reason=reason))
        if self._head is None or self._head.method != b"HEAD":
            sent += self._send(h11.Data(data=response.body))
        return sent + self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> bytes:
        return self._connection.send(event) or b""


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
