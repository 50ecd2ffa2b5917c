"""For tests: captures and small questions on a whole cluster, such as the reference lab of the dataplanes.

Beside ``node_lab``, which has agents alone: here there are Services, host ports and a control plane.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.api.cluster import Completed, Place
from testbed.cluster.messages import Exec, Exited, Signal, Started
from testbed.wait import wait_until

SNIFF = str(Path(__file__).with_name("sniff.py"))
Frame = dict[str, Any]
WARNING = 0x600000
"""The severity from which on tshark warns (epan/proto.h, PI_WARN); below are notes."""


@contextmanager
def captured(place: Place, interface: str, *, promiscuous: bool = False) -> Iterator[list[Frame]]:
    """What is seen on an interface during the block; the list is filled when the block ends."""
    seen: list[Frame] = []
    argv = (sys.executable, SNIFF, interface, *(["promiscuous"] if promiscuous else []))
    channel = place.client.channel(place.path)
    with tempfile.TemporaryFile() as output, open(os.devnull, "rb") as silence:
        channel.send(Exec(1, "", argv, {}), [silence.fileno(), output.fileno(), output.fileno()])
        answer, _ = channel.receive()
        assert isinstance(answer, Started), answer

        def text() -> str:
            return os.pread(output.fileno(), 1 << 26, 0).decode()

        wait_until(lambda: text().startswith("ready"), 10, f"capture on {interface} begins")
        try:
            yield seen
        finally:
            channel.send(Signal(1, signal.SIGTERM))
            while not isinstance(channel.receive()[0], Exited):
                continue
            channel.close()
            seen += [json.loads(line) for line in text().splitlines()[1:]]


def ok(place: Place, *argv: str) -> str:
    """What a program prints that must succeed."""
    done = place.run(argv)
    assert done.code == 0, f"{' '.join(argv)}: {done.code}: {done.stdout}{done.stderr}"
    return done.stdout


def told(place: Place, *argv: str) -> Any:
    """JSON that a program prints."""
    return json.loads(ok(place, *argv) or "[]")


def ping(place: Place, target: str, *options: str) -> int:
    """The TTL with which one answer came."""
    output = ok(place, "ping", "-n", "-c1", "-W2", *options, target)
    return int(re.search(r"ttl=(\d+)", output)[1])  # type: ignore[index]


def curl(place: Place, url: str, *options: str) -> Completed:
    return place.run(["curl", "-sS", "-m3", *options, url])


def mac(place: Place, interface: str) -> str:
    (link,) = told(place, "ip", "-json", "link", "show", interface)
    return str(link["address"])


def echoes(seen: Sequence[Frame], what: str = "echo") -> list[Frame]:
    return [frame for frame in seen if frame["what"] == what]


def counted(place: Place, table: str, chain: str, *words: str) -> int:
    """How many packets the one rule of a chain with these words has seen."""
    listing = ok(place, "iptables-save", "-c", "-t", table)
    lines = [
        line
        for line in listing.splitlines()
        if f"-A {chain} " in line and all(word in line for word in words)
    ]
    assert len(lines) == 1, (words, listing)
    return int(lines[0].removeprefix("[").partition(":")[0])


@dataclass(frozen=True)
class Outer:
    """The outer headers of an encapsulated frame, and the frame in it."""

    source: str
    destination: str
    ttl: int
    tos: int
    df: bool
    sport: int
    dport: int
    checksum: int
    payload: bytes

    @property
    def vni(self) -> int:
        return int.from_bytes(self.payload[4:7])

    @classmethod
    def of(cls, frame: Frame) -> Outer:
        raw = bytes.fromhex(frame["raw"])
        sport, dport, _, checksum = struct.unpack_from("!HHHH", raw, 34)
        return cls(
            socket.inet_ntoa(raw[26:30]),
            socket.inet_ntoa(raw[30:34]),
            raw[22],
            raw[15],
            bool(raw[20] & 0x40),
            sport,
            dport,
            checksum,
            raw[42:],
        )


def dissected(frames: Sequence[Frame], *options: str) -> list[dict[str, Any]]:
    """The layers of frames as tshark sees them. Fails where it warns of anything."""
    assert shutil.which("tshark"), "install the package tshark ('make setup' does)"
    with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            raw = bytes.fromhex(frame["raw"])
            file.write(struct.pack("=IIII", 0, 0, len(raw), len(raw)) + raw)
        file.flush()
        argv = ["tshark", "-r", file.name, "-T", "json", "--no-duplicate-keys", *options]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    layers = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    severities = set(map(int, re.findall(r'"_ws.expert.severity": "(\d+)"', done.stdout)))
    assert max(severities, default=0) < WARNING, done.stdout
    assert "_ws.malformed" not in done.stdout, done.stdout
    return layers
