"""``throughput``: iperf3 from one netns to another; of TCP a row for each interval of its JSON, of UDP one
for all that arrived: the intervals that the client tells are of what was sent."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from testbed.measure.messages import ProbeFlow
from testbed.measure.probes import Program, probe
from testbed.measure.sockets import Namespaces

LISTENING = "Server listening"


@probe("throughput")
class Throughput(Program, frozen=True, kw_only=True):
    """protocol: TCP or UDP; streams: at once; bandwidth: of UDP, as iperf3 takes it (``100M``); interval:
    seconds that one row of TCP stands for. The destination is a pod, a node or a host: the server runs there,
    on its port."""

    needs: ClassVar[tuple[str, ...]] = ("iperf3",)
    reaches: ClassVar[bool] = True
    port: ClassVar[int] = 5201

    protocol: Literal["tcp", "udp"] = "tcp"
    streams: Annotated[int, msgspec.Meta(ge=1, le=128)] = 1
    bandwidth: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+)?[KMG]?$")] = "0"
    interval: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0

    def run(
        self, flows: Sequence[ProbeFlow], namespaces: Namespaces, seconds: float, timeout: float
    ) -> list[Mapping[str, Any]]:
        """One flow after the other. Raises OSError where iperf3 says nothing that can be read."""
        rows: list[Mapping[str, Any]] = []
        for number, flow in enumerate(flows):
            rows += [{"flow": number, **row} for row in self._flow(flow, namespaces, seconds, timeout)]
        return rows

    def _flow(
        self, flow: ProbeFlow, namespaces: Namespaces, seconds: float, timeout: float
    ) -> list[Mapping[str, Any]]:
        namespaces.enter(flow.target)
        serve = [
            "iperf3",
            "--server",
            "--one-off",
            "--forceflush",
            "--port",
            str(flow.port),
            "--bind",
            flow.ip,
        ]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            try:
                said = _until_listening(server)
                if said:
                    raise OSError(f"iperf3 in {flow.target}: {said}")
                namespaces.enter(flow.source)
                begun = time.time()
                done = subprocess.run(
                    self._client(flow, seconds, timeout),
                    capture_output=True,
                    text=True,
                    timeout=seconds + timeout + 10,
                    check=False,
                )
            finally:
                server.kill()
        return rows_of(done.stdout or done.stderr, begun)

    def _client(self, flow: ProbeFlow, seconds: float, timeout: float) -> list[str]:
        return [
            *("iperf3", "--client", flow.ip, "--port", str(flow.port), "--json"),
            *("--time", f"{max(1, round(seconds))}", "--interval", f"{self.interval:g}"),
            *("--parallel", str(self.streams), "--connect-timeout", str(round(timeout * 1000))),
            *(("--udp", "--bandwidth", self.bandwidth) if self.protocol == "udp" else ()),
        ]


def _until_listening(server: subprocess.Popen[str]) -> str:
    """What iperf3 says instead of listening; "" where it listens."""
    said = []
    for line in server.stdout or ():
        if line.startswith(LISTENING):
            return ""
        said.append(line.strip())
    return " ".join(word for word in said if word.strip("-"))


def rows_of(text: str, begun: float) -> list[Mapping[str, Any]]:
    """The rows of iperf3's JSON, a failed one at the end where it says that it failed. Raises OSError."""
    try:
        told = json.loads(text)
    except ValueError as error:
        raise OSError(f"iperf3 said no JSON: {text[:200]!r}") from error
    start = (told.get("start") or {}).get("timestamp") or {}
    at = float(start.get("timesecs") or begun)
    datagrams = (told.get("end") or {}).get("sum") or {}
    if datagrams.get("packets"):
        rows = [_arrived(datagrams, at)]
    else:
        rows = [
            _interval(one["sum"], at) for one in told.get("intervals") or () if "packets" not in one["sum"]
        ]
    if told.get("error"):
        rows.append({"at": at, "verdict": "error", "reason": str(told["error"])[:63]})
    return rows


def _interval(total: Mapping[str, Any], at: float) -> Mapping[str, Any]:
    """An interval of TCP, as the sender tells it; it sends what is taken."""
    again = total.get("retransmits")
    return {
        "at": at + float(total["start"]),
        "bits_per_second": float(total["bits_per_second"]),
        "size": int(total["bytes"]),
        "answer": "" if again is None else f"{again} retransmits",
        "verdict": "ok",
        "reason": "",
    }


def _arrived(total: Mapping[str, Any], at: float) -> Mapping[str, Any]:
    """What arrived of all datagrams: bytes are those that were sent, packets and lost_packets what the
    receiver counted."""
    lost, packets = int(total["lost_packets"]), int(total["packets"])
    size = int(total["bytes"]) * max(0, packets - lost) // packets
    return {
        "at": at + float(total["start"]),
        "bits_per_second": size * 8 / float(total["seconds"]),
        "size": size,
        "answer": f"{lost} of {packets} datagrams lost",
        "verdict": "ok" if size else "error",
        "reason": "" if size else "nothing arrived",
    }
