"""The packets of flannel's proxy, byte by byte."""

from __future__ import annotations

import json
import os
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.relays.checksum import checksum
from testbed.relays.flannel import Config, Proxy, decremented, is_ipv4, unreachable


def packet(ttl: int = 64, payload: bytes = b"12345678rest", options: bytes = b"") -> bytes:
    length = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        0,
        length + len(payload),
        7,
        0,
        ttl,
        17,
        0,
        ip_address("10.244.1.2").packed,
        ip_address("10.244.2.2").packed,
    )
    return header[:10] + struct.pack("!H", checksum(header + options)) + header[12:] + options + payload


@settings(deadline=None)
@given(st.integers(2, 255), st.binary(max_size=100), st.sampled_from([b"", b"\1\1\1\1"]))
def test_a_packet_goes_on_with_one_ttl_less_and_a_right_checksum(
    ttl: int, payload: bytes, options: bytes
) -> None:
    before = packet(ttl, payload, options)
    after = decremented(before)
    assert after is not None
    assert after[8] == ttl - 1
    assert checksum(after[: 20 + len(options)]) == 0
    assert (after[:8], after[9], after[12:]) == (before[:8], before[9], before[12:])


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_whose_ttl_ends_is_dropped(ttl: int) -> None:
    assert decremented(packet(ttl)) is None


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_what_is_no_ipv4_packet_is_known(data: bytes) -> None:
    whole = len(data) >= 20 and data[0] >> 4 == 4 and (data[0] & 15) * 4 <= len(data)
    assert is_ipv4(data) == whole


def test_the_error_quotes_the_packet_and_its_checksums_are_right() -> None:
    said = unreachable(packet(), ip_address("10.244.1.0").packed)
    assert checksum(said[:20]) == checksum(said[20:]) == 0
    assert said[12:20] == ip_address("10.244.1.0").packed + ip_address("10.244.1.2").packed
    assert said[20:22] == bytes([3, 0])
    assert said[28:] == packet()[:28]


def test_the_configuration_says_which_node_has_an_address(tmp_path: Path) -> None:
    config = {
        "device": "flannel0",
        "address": "10.244.1.0/32",
        "network": "10.244.0.0/16",
        "mtu": 1472,
        "port": 8285,
        "peers": {"10.244.2.0/24": "172.18.0.3"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = Config.read(tmp_path / "config.json")
    assert read.peer_of(ip_address("10.244.2.9").packed) == "172.18.0.3"
    assert read.peer_of(ip_address("10.244.3.9").packed) is None


def test_a_device_that_takes_no_packet_does_not_end_the_proxy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config("flannel0", "10.244.1.0/32", "10.244.0.0/16", 1472, 8285, {})
    (tmp_path / "closed").touch()
    closed = os.open(tmp_path / "closed", os.O_RDONLY)  # stands for a device that is down
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            proxy = Proxy(config, closed, udp)
            proxy.from_udp([packet()])
            proxy.from_tun([packet()])
    finally:
        os.close(closed)
    assert capfd.readouterr().err.count("to flannel0: ") == 2
