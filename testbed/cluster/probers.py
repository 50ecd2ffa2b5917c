"""Runs one probe from the node's own network namespace: HTTP, TCP and gRPC, in the kubelet's words.

Sources: kubernetes v1.36 ``pkg/probe/{http,tcp,grpc}``; exec probes are the agent's, see ``cluster.kubelet``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from testbed.state import Probe

USER_AGENT = "kube-probe/1.36"
MAX_HEAD = 64 << 10
"""Bytes of a response that are looked at."""
MAX_REDIRECTS = 10


@dataclass(frozen=True)
class Outcome:
    """What a probe found. success: None where it could not be run; warning: it succeeded, oddly;
    late: it failed because nothing answered in time."""

    success: bool | None
    text: str = ""
    warning: str = ""
    late: bool = False


async def run(probe: Probe) -> Outcome:
    """Run any probe but an exec one; takes at most its timeout and never raises for what it meets."""
    match probe.how:
        case "http" | "https":
            return await _http(probe)
        case "tcp":
            return await _tcp(probe)
        case "grpc":
            return await _grpc(probe)
    return Outcome(None, "missing probe handler")


def address(host: str, port: int) -> str:
    """``10.244.1.2:80``, ``[fd00::2]:80``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, tls: Any = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of its own. Raises OSError."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=MAX_HEAD)
    try:
        yield reader, writer
    finally:
        writer.close()


def _dial_error(error: OSError, host: str, port: int) -> str:
    """As Go's net package says that a connection could not be made."""
    why = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"dial tcp {address(host, port)}: connect: {why}"


# --- TCP ------------------------------------------------------------------------------------------------


async def _tcp(probe: Probe) -> Outcome:
    try:
        async with asyncio.timeout(probe.timeout), _connected(probe.host, probe.port):
            return Outcome(True)
    except TimeoutError:
        return Outcome(False, f"dial tcp {address(probe.host, probe.port)}: i/o timeout", late=True)
    except OSError as error:
        return Outcome(False, _dial_error(error, probe.host, probe.port))


# --- HTTP -----------------------------------------------------------------------------------------------


async def _http(probe: Probe) -> Outcome:
    url = f"{probe.how}://{address(probe.host, probe.port)}{probe.target}"
    try:
        async with asyncio.timeout(probe.timeout):
            return await _follow(probe, url)
    except TimeoutError:
        why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        return Outcome(False, f'Get "{url}": {why}', late=True)
    except ValueError as error:
        return Outcome(False, f'Get "{url}": {error}')
    except OSError as error:
        return Outcome(False, f'Get "{url}": {_dial_error(error, probe.host, probe.port)}')


async def _follow(probe: Probe, url: str) -> Outcome:
    """Follow redirects, but only to the same host. Raises OSError, ValueError for what is no HTTP."""
    first = urlsplit(url)
    for _ in range(MAX_REDIRECTS):
        status, location = await _get(probe, url)
        if status in (301, 302, 303, 307, 308) and location:
            target = urljoin(url, location)
            if urlsplit(target).hostname == first.hostname:
                url = target
                continue
        if 200 <= status < 300:
            return Outcome(True)
        if 300 <= status < 400:
            return Outcome(True, warning="Probe terminated redirects, Response body: ")
        return Outcome(False, f"HTTP probe failed with statuscode: {status}")
    raise ValueError("stopped after 10 redirects")


async def _get(probe: Probe, url: str) -> tuple[int, str]:
    """(status code, Location) of one GET."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    given = {name.lower(): (name, value) for name, value in probe.headers}
    headers = {
        "host": ("Host", parts.netloc),
        "user-agent": ("User-Agent", USER_AGENT),
        "accept": ("Accept", "*/*"),
        "connection": ("Connection", "close"),
    } | given
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.values()), "", ""]
    tls = _unverified() if parts.scheme == "https" else None
    async with _connected(parts.hostname or "", port, tls) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ValueError("EOF") from error
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        shown = first[:64]
        raise ValueError(f'net/http: HTTP/1.x transport connection broken: malformed HTTP response "{shown}"')
    location = next(
        (line.partition(":")[2].strip() for line in rest if line.lower().startswith("location:")), ""
    )
    return int(words[1]), location


def _unverified() -> Any:
    import ssl  # costs 20 ms, and few ask for https

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# --- gRPC -----------------------------------------------------------------------------------------------


async def _grpc(probe: Probe) -> Outcome:
    from testbed.apps.wire.health import HealthCheck

    where = address(probe.host, probe.port)
    try:
        async with asyncio.timeout(probe.timeout), _connected(probe.host, probe.port) as (reader, writer):
            check = HealthCheck(where, probe.target, USER_AGENT)
            while not check.done:
                writer.write(check.unsent())
                check.receive(await reader.read(MAX_HEAD))
    except OSError as error:
        why = f'timeout: failed to connect service "{where}" within {probe.timeout:g}s'
        late = isinstance(error, TimeoutError)
        return Outcome(False, f"{why}: context deadline exceeded", late=late)
    if check.problem:
        return Outcome(False, f"error: health rpc probe failed: {check.problem}")
    if check.grpc_status == 12:
        return Outcome(
            False, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
        )
    if check.grpc_status:
        return Outcome(False, f"error: health rpc probe failed: rpc error: code = {check.grpc_status}")
    if check.serving != "SERVING":
        return Outcome(False, f'service unhealthy (responded with "{check.serving}")')
    return Outcome(True)
