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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed.api.cluster import Cluster, Completed, Place
from testbed.cluster.messages import Exec, Exited, Signal, Started
from testbed.wait import wait_until

ROOT = Path(__file__).parents[2]
A, B, OUTSIDE = "172.18.0.2", "172.18.0.3", "172.18.0.254"
VIP = {"one": "10.96.0.11", "near": "10.96.0.12", "self": "10.96.0.13"}
BACKEND = {"one": "b1", "near": "a2", "self": "a1"}
NODE_PORT = {"one": 30081, "near": 30082}
"""The reference lab: nodes a and b, outside host o on their segment; Services and what answers them."""

SNIFF = str(Path(__file__).with_name("sniff.py"))
Frame = dict[str, Any]
WARNING = 0x600000
"""The severity from which on tshark warns (epan/proto.h, PI_WARN); below are notes."""


class Lab:
    """The running lab by the names of the comparison: places, and the host ends of pods."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        self.cluster, self.mode = cluster, mode
        self.a, self.b, self.o = cluster.node("a"), cluster.node("b"), cluster.host("o")
        self.a1, self.a2, self.b1 = (cluster.pod(name) for name in ("a1", "a2", "b1"))

    def host_end(self, pod: str) -> str:
        """The name of a pod's device on its node."""
        (link,) = told(self.cluster.pod(pod), "ip", "-json", "link", "show", "eth0")
        found = told(self.cluster.node(pod[0]), "ip", "-json", "link")
        return str(next(each["ifname"] for each in found if each["ifindex"] == link["link_index"]))

    @property
    def o_device(self) -> str:
        """The outside host's device on the nodes' segment."""
        return ok(self.o, "ip", "-o", "route", "get", A).split("dev ")[1].split()[0]


def in_mode(running: Callable[[str, Path], AbstractContextManager[Any]], mode: str) -> Any:
    """A fixture: the lab in one mode, up from the first test that asks for it to the end of the module.

    running: (mode, folder for its files) → the lab while it is up.
    """

    @pytest.fixture(scope="module")
    def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        with running(mode, tmp_path_factory.mktemp(mode)) as lab:
            yield lab

    return lab


def in_modes(*modes: Any) -> Any:
    """A fixture: the labs of some modes in turn. modes: names of fixtures of ``in_mode``, or params."""

    @pytest.fixture(scope="module", params=modes)
    def lab(request: pytest.FixtureRequest) -> Any:
        return request.getfixturevalue(request.param)

    return lab


IPIP = (
    pytest.param("ipip", id="ipip", marks=pytest.mark.needs("ipip-tunnel")),
    pytest.param("ipip", id="ipip-device", marks=pytest.mark.needs("ipip")),
)
"""For ``in_modes``: without the kernel's device programs do the same; the device is the VM lane's."""


def lab_spec(name: str, dataplane: str, more: str = "") -> str:
    """The reference lab with a dataplane: its name and options as a flow mapping; more: of network."""
    text = (ROOT / "topologies" / "cni-lab.yaml").read_text().replace("name: cni-lab", f"name: {name}")
    text = text.replace("  network:\n", f"  network:\n    dataplane: {{{dataplane}}}\n{more}")
    return text.replace("spec:\n", "spec:\n  dns: {enabled: false}\n", 1)


def pod(name: str, **port: Any) -> dict[str, Any]:
    """A pod on the node that its name begins with, which answers on port 8080. port: more of that port."""
    container = {"name": "web", "image": "nginx", "ports": [{"containerPort": 8080, **port}]}
    metadata = {"name": name, "labels": {"app": name}}
    spec = {"nodeName": name[0], "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def services() -> Iterator[dict[str, Any]]:
    """The lab's Services."""
    for name, vip in VIP.items():
        port = {"port": 80, "targetPort": 8080}
        kind = {"type": "NodePort"} if name in NODE_PORT else {}
        if name in NODE_PORT:
            port["nodePort"] = NODE_PORT[name]
        spec = {"clusterIP": vip, "selector": {"app": BACKEND[name]}, "ports": [port], **kind}
        yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def written(folder: Path, *objects: dict[str, Any]) -> Path:
    """A manifest with these objects."""
    path = folder / "objects.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    return path


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
