"""``announce DEVICE ADDRESS``: a gratuitous ARP, as from a host that has just taken an address (RFC 5227)."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import IPv4Address

ETH_P_ARP, REQUEST, TIMES = 0x0806, 1, 3
BROADCAST = b"\xff" * 6


def frame(mac: bytes, address: str) -> bytes:
    """An ARP request of an address for itself."""
    ip = IPv4Address(address).packed
    header = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    return header + struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST) + mac + ip + bytes(6) + ip


def main(device: str, address: str) -> None:
    """Send it from the device's own MAC."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        for _ in range(TIMES):
            sock.send(frame(sock.getsockname()[4], address))


if __name__ == "__main__":
    main(*sys.argv[1:])
