"""``dns_front MODE ADDRESS DELAY``: answers for a DNS server that is slow or fails.

Listens on port 5399 over UDP and TCP. ``servfail``: every question is answered by SERVFAIL. ``slow``: it is
handed on after DELAY seconds to the true server, at ADDRESS (this pod's own), and so is the answer.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from testbed.dns.dnsmasq import FIRST_PORT
from testbed.faults.programs import FRONT_PORT

PATIENCE = 5.0
"""Seconds that the true server has to answer."""
PORTS = 16
"""How many ports the server has from its first (``cluster.nameserver``)."""
LISTENING = "0A"
QR, RD, RA, SERVFAIL = 0x8000, 0x0100, 0x0080, 2
HEADER = struct.Struct("!HHHHHH")


def servfail(question: bytes) -> bytes:
    """The answer: the question itself, without what follows it, marked as failed."""
    number, flags, _, _, _, _ = HEADER.unpack_from(question)
    at = HEADER.size
    while question[at]:
        at += 1 + question[at]
    return HEADER.pack(number, QR | flags & RD | RA | SERVFAIL, 1, 0, 0, 0) + question[HEADER.size : at + 5]


def true_port() -> int:
    """Where the true server takes connections: port 53 leads there only from outside."""
    tables = (Path("/proc/self/net", name).read_text() for name in ("tcp", "tcp6"))
    listening = {
        int(line.split()[1].rpartition(":")[2], 16)
        for table in tables
        for line in table.splitlines()[1:]
        if line.split()[3] == LISTENING
    }
    first = FIRST_PORT["front"]
    return max((port for port in listening if first <= port < first + PORTS), default=53)


@dataclass(frozen=True)
class Front:
    """What is done with a question."""

    mode: str
    address: str
    delay: float

    async def over_udp(self, question: bytes) -> bytes:
        """The answer; nothing where the true server gave none in time."""
        if self.mode == "servfail":
            return servfail(question)
        await asyncio.sleep(self.delay)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Asker(answer), remote_addr=(self.address, 53)
        )
        try:
            transport.sendto(question)
            return await asyncio.wait_for(answer, PATIENCE)
        except (TimeoutError, OSError):
            return b""
        finally:
            transport.close()

    async def over_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All questions of one connection, one after the other."""
        try:
            while True:
                question = await _message(reader)
                if self.mode == "servfail":
                    answer = servfail(question)
                else:
                    await asyncio.sleep(self.delay)
                    there, back = await asyncio.open_connection(self.address, true_port())
                    back.write(len(question).to_bytes(2, "big") + question)
                    answer = await asyncio.wait_for(_message(there), PATIENCE)
                    back.close()
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError, IndexError, struct.error):
            writer.close()  # it was over, or no DNS


async def _message(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(length)


class _Asker(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, front: Front) -> None:
        self._front = front
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            answer = await self._front.over_udp(data)
        except (IndexError, struct.error):
            return  # no DNS
        if answer and self._transport is not None:
            self._transport.sendto(answer, addr)


async def main(mode: str, address: str, delay: str) -> None:
    """Answer until killed."""
    front, loop = Front(mode, address, float(delay)), asyncio.get_running_loop()
    host = "::" if ":" in address else "0.0.0.0"  # noqa: S104 - inside a pod
    await loop.create_datagram_endpoint(lambda: _Listener(front), local_addr=(host, FRONT_PORT))
    server = await asyncio.start_server(front.over_tcp, host, FRONT_PORT)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
