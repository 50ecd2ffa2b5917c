"""flannel's backend ``udp``, its proxy: packets out of a TUN device go in UDP to the node that has the pod.

Run on a node as ``python -m testbed.relays.flannel DIRECTORY ADDRESS`` (the node's own): it makes the
device and its route, then relays until it is ended. DIRECTORY holds ``config.json``: device, address (with
length), network, mtu, port, peers (subnet → public address); SIGHUP has it read again for its peers. Its
pid is in ``pid``.

As the original does: TTL is decremented on the way into UDP and on the way out of it, and a packet whose TTL
ends is dropped without a word; a destination that no peer has is answered with ICMP network unreachable, from
the device's own address (which Linux takes for a martian source and drops).
Source: flannel ``pkg/backend/udp/{proxy_amd64.c,udp_network_amd64.go}``.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_interface
from pathlib import Path
from typing import Any

from testbed.kernel import netlink
from testbed.kernel.netlink import Netlink
from testbed.relays.checksum import checksum
from testbed.state import Address, Route

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
UNREACHABLE, NETWORK = 3, 0
"""ICMP type and code."""
HEADER = struct.Struct("!BBHHHBBH4s4s")
"""Of IPv4: version and length, TOS, length, id, fragment, TTL, protocol, checksum, source, destination."""
MAX_PACKET = 65536
BURST = 64
"""Packets taken from one side before the other is looked at."""


def decremented(packet: bytes) -> bytes | None:
    """The packet with its TTL one less, None where that ends it."""
    ttl = packet[8] - 1
    if ttl <= 0:
        return None
    length = (packet[0] & 0x0F) * 4
    header = packet[:8] + bytes([ttl]) + packet[9:10] + b"\0\0" + packet[12:length]
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + packet[length:]


def is_ipv4(packet: bytes) -> bool:
    """Whether it is a whole IPv4 packet."""
    return len(packet) >= HEADER.size and packet[0] >> 4 == 4 and (packet[0] & 0x0F) * 4 <= len(packet)


def unreachable(packet: bytes, source: bytes) -> bytes:
    """ICMP network unreachable to who sent ``packet``, from ``source``."""
    quoted = packet[: (packet[0] & 0x0F) * 4 + 8]
    message = struct.pack("!BBHI", UNREACHABLE, NETWORK, 0, 0) + quoted
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    fields = [0x45, 0, HEADER.size + len(message), 0, 0, 64, socket.IPPROTO_ICMP, 0, source, packet[12:16]]
    fields[7] = checksum(HEADER.pack(*fields))
    return HEADER.pack(*fields) + message


@dataclass(frozen=True)
class Config:
    """What the proxy is told; peers: the node's public address by the pods' subnet."""

    device: str
    address: str
    network: str
    mtu: int
    port: int
    peers: Mapping[IPv4Network, str]

    @classmethod
    def read(cls, path: Path) -> Config:
        """Raises OSError, ValueError."""
        read: dict[str, Any] = json.loads(path.read_text())
        peers = {IPv4Network(subnet): str(address) for subnet, address in read.pop("peers").items()}
        return cls(**read, peers=peers)

    def peer_of(self, destination: bytes) -> str | None:
        """Where packets for an address go."""
        address = ip_address(destination)
        return next((peer for subnet, peer in self.peers.items() if address in subnet), None)


def open_tun(name: str) -> int:
    """A TUN device of that name, non-blocking. Raises OSError."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def configure(config: Config) -> None:
    """Address, MTU and the route to the cluster's network, as flanneld gives them to the device."""
    with Netlink() as links:
        index = links.index(config.device)
        route = Route(config.network, dev=config.device, scope="link")
        wishes = [
            netlink.add_address(Address(config.device, config.address, broadcast=False), index),
            netlink.set_link(config.device, up=True, mtu=config.mtu),
            netlink.add_route(route, {config.device: index}),
        ]
        for refusal in links.send(wishes):
            raise refusal.error


class Proxy:
    """Relays between a TUN device and a UDP socket."""

    def __init__(self, config: Config, tun: int, udp: socket.socket) -> None:
        self.config, self._tun, self._udp = config, tun, udp
        self._own = ip_interface(config.address).ip.packed

    def from_tun(self, packets: Iterable[bytes]) -> None:
        """Send packets to the nodes that have their destinations."""
        for packet in packets:
            if not is_ipv4(packet):
                continue
            peer = self.config.peer_of(packet[16:20])
            if peer is None:
                self._give(unreachable(packet, self._own))
            elif (onward := decremented(packet)) is not None:
                self._send(onward, peer)

    def _send(self, packet: bytes, peer: str) -> None:
        try:
            self._udp.sendto(packet, (peer, self.config.port))
        except OSError as error:
            print(f"to {peer}: {error}", file=sys.stderr, flush=True)

    def from_udp(self, packets: Iterable[bytes]) -> None:
        """Give packets of other nodes to this one."""
        for packet in packets:
            if is_ipv4(packet) and (onward := decremented(packet)) is not None:
                self._give(onward)

    def _give(self, packet: bytes) -> None:
        """Have the node receive a packet; a device that is down takes none."""
        try:
            os.write(self._tun, packet)
        except OSError as error:
            print(f"to {self.config.device}: {error}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Relay until ended."""
        poller = select.poll()
        poller.register(self._tun, select.POLLIN)
        poller.register(self._udp, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._tun:
                    self.from_tun(_several(lambda: os.read(self._tun, MAX_PACKET)))
                else:
                    self.from_udp(_several(lambda: self._udp.recv(MAX_PACKET)))


def _several(read: Any) -> Iterable[bytes]:
    for _ in range(BURST):
        try:
            yield read()
        except BlockingIOError:
            return


def main(directory: Path, listen: str) -> None:
    """Run the proxy of a node. Raises OSError, ValueError, KernelRefused."""
    path = directory / "config.json"
    config = Config.read(path)
    tun = open_tun(config.device)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    udp.bind((listen, config.port))
    configure(config)
    proxy = Proxy(config, tun, udp)

    def again(*_: object) -> None:
        proxy.config = Config.read(path)

    signal.signal(signal.SIGHUP, again)
    (directory / "pid").write_text(f"{os.getpid()}\n")
    proxy.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
