"""The load balancers' health checks: a process in the gateway's netns that asks nodes over HTTP.

Any answer of status 200 is healthy; one success makes a target healthy, some failures in a row make it
unhealthy, as cloud load balancers count. The times are ours: real ones ask every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from testbed.cluster.messages import AnyMessage, CheckHealth, Health
from testbed.kernel.channel import AsyncChannel, ChannelClosed

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds from one question to a target to the next."""
TIMEOUT = 1.0
"""Seconds a target has to answer."""
FAILURES = 2
"""How many failures in a row make a target unhealthy."""
QUESTIONS_PER_SECOND = 200
"""At most; with more targets each is asked less often."""

Target = tuple[str, int]


def main(sock: socket.socket, name: str) -> None:
    """Check until the daemon at the other end of ``sock`` is gone; runs in the gateway's netns."""
    asyncio.run(_serve(sock))


async def _serve(sock: socket.socket) -> None:
    checker = Checker(AsyncChannel(sock, AnyMessage))
    try:
        await checker.run()
    finally:
        checker.close()


class Checker:
    """Asks targets as long as it is told to. channel: to the daemon."""

    def __init__(self, channel: AsyncChannel[AnyMessage]) -> None:
        self._channel = channel
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._healthy: dict[Target, bool] = {}
        self._flush: asyncio.Handle | None = None

    async def run(self) -> None:
        """Take orders until the daemon is gone."""
        try:
            while True:
                message, _ = await self._channel.receive()
                if isinstance(message, CheckHealth):
                    self._watch(frozenset(message.targets))
                else:
                    log.error("unexpected message %s", type(message).__name__)
        except ChannelClosed:
            return

    def close(self) -> None:
        """Ask no more."""
        self._watch(frozenset())

    def _watch(self, targets: frozenset[Target]) -> None:
        for target in self._tasks.keys() - targets:
            self._tasks.pop(target).cancel()
            self._healthy.pop(target, None)
        for target in sorted(targets - self._tasks.keys()):
            self._tasks[target] = asyncio.create_task(self._check(target))

    async def _check(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            begun = loop.time()
            healthy = await asks(*target)
            failures = 0 if healthy else failures + 1
            known = self._healthy.get(target)
            if healthy != known and (healthy or known is None or failures >= FAILURES):
                self._healthy[target] = healthy
                self._tell_soon()
            period = max(PERIOD, len(self._tasks) / QUESTIONS_PER_SECOND)
            await asyncio.sleep(max(0.0, begun + period - loop.time()))

    def _tell_soon(self) -> None:
        """Tell once for all that changes now."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._flush = None
        found = sorted(self._healthy.items())
        healthy = tuple(target for target, is_healthy in found if is_healthy)
        unhealthy = tuple(target for target, is_healthy in found if not is_healthy)
        if not self._channel.closed:
            self._channel.send(Health(healthy, unhealthy))


async def asks(address: str, port: int) -> bool:
    """Whether ``GET /healthz`` is answered with status 200 in time."""
    host = f"[{address}]" if ":" in address else address
    question = f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(question.encode())
            words = (await reader.readline()).split(b" ")
            return len(words) > 1 and words[0].startswith(b"HTTP/") and words[1] == b"200"
    except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: an endless line
        return False
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
