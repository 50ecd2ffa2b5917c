"""The capture program on real interfaces, its files read back by tcpdump; each test in a netns of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from probe_lab import in_child, ip

from testbed.cli.capture import _on_screen, compile_filter
from testbed.errors import InputError, TestbedError
from testbed.kernel import capture, netns

PAIR = (
    "link set lo up",
    "link add left type veth peer name right netns {inner}",
    "addr add 10.9.0.1/24 dev left",
    "link set left up",
)


@pytest.fixture(autouse=True)
def tcpdump_for_one_id(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of a user namespace with one id is a user that tcpdump tries, in vain, to stop being."""
    program = shutil.which("tcpdump")
    if os.geteuid() != 0 and program:
        folder = tmp_path_factory.mktemp("bin")
        wrapper = folder / "tcpdump"
        wrapper.write_text(f'#!/bin/sh\nexec unshare --user --map-user=1000 -- {program} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class Capturing:
    """A running capture program; ``end`` stops it and returns what it said."""

    def __init__(self, out: int | IO[bytes], interface: str = "any", count: int = 0, words: str = "") -> None:
        code = capture.parse_code(compile_filter(words.split())) if words else []
        argv = capture.argv(interface, count, code, "a test")
        self.process = subprocess.Popen(argv, stdout=out, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        self.begun = self.stderr.readline()

    def end(self, number: int | None = signal.SIGINT) -> str:
        """number None: it ends by itself."""
        if number is not None:
            self.process.send_signal(number)
        said = self.stderr.read()
        assert self.process.wait(10) == 0
        self.stderr.close()
        return said


@contextmanager
def capturing(path: Path, interface: str = "any", words: str = "") -> Iterator[Capturing]:
    with path.open("wb") as out:
        one = Capturing(out, interface, words=words)
    yield one
    one.end()


def tcpdump(path: Path, *words: str) -> list[str]:
    """What tcpdump reads of a file, without times."""
    command = ["tcpdump", "-n", "-t", *words, "-r", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def send(data: bytes, port: int = 5000, address: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, (address, port))


def sink(port: int = 5000) -> socket.socket:
    """Takes datagrams, so that no ICMP errors come back."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    return sock


def in_netns(body: Callable[[Path], None], path: Path) -> None:
    def prepared() -> None:
        ip(["link set lo up"])
        body(path)

    in_child(prepared)


def test_loopback_shows_each_packet_once(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        with sink(), capturing(path, "lo"):
            send(b"one")
            send(b"two!")
        assert tcpdump(path) == [
            f"IP 127.0.0.1.{port} > 127.0.0.1.5000: UDP, length {length}"
            for port, length in zip(ports(path), (3, 4), strict=True)
        ]

    in_netns(body, tmp_path / "file")


def ports(path: Path) -> list[str]:
    return [re.findall(r"\.(\d+) >", line)[0] for line in tcpdump(path)]


def test_times_are_the_kernels_in_nanoseconds(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        import time

        with sink(), capturing(path, "lo"):
            before = time.time_ns()
            send(b"x")
            after = time.time_ns()
        command = ["tcpdump", "-n", "-tt", "--nano", "-r", str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds, _, nanoseconds = out.split()[0].partition(".")
        assert before <= int(seconds) * 1_000_000_000 + int(nanoseconds) <= after

    in_netns(body, tmp_path / "file")


def test_the_filter_is_tcpdumps(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        with sink(5001), sink(5002), capturing(path, "lo", "udp and (port 5001 or len > 200)"):
            send(b"yes", 5001)
            send(b"no", 5002)
            send(bytes(300), 5002)
        assert [line.split("length ")[1] for line in tcpdump(path)] == ["3", "300"]

    in_netns(body, tmp_path / "file")


@pytest.mark.parametrize("words", ["tcp prot 80", "host", "-w /tmp/x", "port 99999999999"])
def test_a_filter_that_tcpdump_refuses_is_an_error_that_names_it(words: str) -> None:
    with pytest.raises(InputError, match=f"^filter '{re.escape(words)}': "):
        compile_filter(words.split())


def test_count_ends_the_capture(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        with path.open("wb") as out:
            one = Capturing(out, "lo", count=2)
        with sink():
            for length in (1, 2, 3, 4):
                send(bytes(length))
        assert one.end(None).splitlines() == ["2 packets captured", "0 packets dropped by kernel"]
        assert [line[-1] for line in tcpdump(path)] == ["1", "2"]

    in_netns(body, tmp_path / "file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_with_a_whole_file_and_the_counts(tmp_path: Path, number: int) -> None:
    """The packets that the kernel still holds when the signal comes are written too."""

    def body(path: Path) -> None:
        with path.open("wb") as out:
            one = Capturing(out, "lo")
        assert one.begun == "listening on lo, snapshot length 262144 bytes\n"
        with sink():
            for _ in range(50):
                send(b"x")
        assert one.end(number).splitlines() == ["50 packets captured", "0 packets dropped by kernel"]
        assert len(tcpdump(path)) == 50

    in_netns(body, tmp_path / "file")


def test_any_means_interfaces_that_come_later_too(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        inner = netns.create()
        with capturing(path):
            ip([line.format(inner=f"/proc/{os.getpid()}/fd/{inner}") for line in PAIR])
            with netns.inside(inner):
                ip(["link set lo up", "addr add 10.9.0.2/24 dev right", "link set right up"])
            ping = ["ping", "-c", "1", "-W", "5", "10.9.0.2"]
            subprocess.run(ping, check=True, stdout=subprocess.DEVNULL)
            with sink():
                send(b"x")
        lines = [line for line in labelled(path) if "ICMP echo" in line or "UDP" in line]
        assert [re.sub(r", id.*|\.\d+ > 127.*", "", line) for line in lines] == [
            "left  Out IP 10.9.0.1 > 10.9.0.2: ICMP echo request",
            "left  In  IP 10.9.0.2 > 10.9.0.1: ICMP echo reply",
            "lo    In  IP 127.0.0.1",
        ]
        os.close(inner)

    in_netns(body, tmp_path / "file")


def labelled(path: Path) -> list[str]:
    """The file as the command shows it on the screen, without times."""
    reader, writer = os.pipe()
    screen, sys.stdout = sys.stdout, os.fdopen(writer, "w")
    try:
        with _on_screen([]) as out:
            os.write(out, path.read_bytes())
        sys.stdout.close()
    finally:
        sys.stdout = screen
    with os.fdopen(reader) as shown:
        return [line.split(" ", 1)[1] for line in shown.read().splitlines()]


def test_a_tag_that_the_kernel_keeps_beside_the_frame_is_in_the_file(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        inner = netns.create()
        ip([line.format(inner=f"/proc/{os.getpid()}/fd/{inner}") for line in PAIR])
        with netns.inside(inner):
            ip(["link set right up"])
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            raw.bind(("right", 0))
        with raw, capturing(path, "left"):
            raw.send(TAGGED_ARP)
        os.close(inner)
        tagged = [line for line in tcpdump(path, "-e") if "vlan" in line]
        assert len(tagged) == 1
        assert "ethertype 802.1Q (0x8100), length 46: vlan 7, p 0, ethertype ARP" in tagged[0]

    in_netns(body, tmp_path / "file")


TAGGED_ARP = bytes.fromhex(
    "ffffffffffff 020000000001 8100 0007 08060001 0800 06 04 0001 020000000001 0a090009 000000000000 0a090001"
)


def test_large_packets_are_whole(tmp_path: Path) -> None:
    def body(path: Path) -> None:
        with sink(), capturing(path, "lo"):
            send(bytes(60_000))
        assert tcpdump(path)[0].endswith("UDP, length 60000")

    in_netns(body, tmp_path / "file")


@pytest.mark.parametrize("interface", ["nope", "a-name-that-is-far-too-long"])
def test_an_interface_that_is_not_there_is_said_with_those_that_are(interface: str) -> None:
    def body() -> None:
        argv = capture.argv(interface, 0, [], "")
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"capture on {interface}: no such interface: there are lo\n"

    in_child(body)


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    def body() -> None:
        ip(["link set lo up"])
        reader, writer = os.pipe()
        one = Capturing(writer, "lo")
        os.close(writer)
        os.close(reader)
        with sink():
            send(b"x")
        assert one.end(None) == ""

    in_child(body)


def test_what_tcpdump_cannot_read_is_an_error(capfd: Any) -> None:
    with pytest.raises(TestbedError, match="unknown file format"), _on_screen([]) as out:
        os.write(out, b"nonsense" * 10)
