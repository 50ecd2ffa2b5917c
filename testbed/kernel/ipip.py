"""A tunnel of IP in IP where the kernel has no such device: a veth pair and two small programs.

What is routed out of ``tunl0`` comes in at its other end, where a program puts an outer header in front, to
the gateway of the route by which it left, and sends it to the underlay; what comes in there of protocol 4 for
this node loses its outer header and comes in at ``tunl0``. On the wire and on ``tunl0`` all is as with the
kernel's own device, which gives the outer header the inner packet's TTL and "don't fragment"; only pass
encapsulated packets no iptables. Two traps: ``tunl0`` must have the underlay MAC, or what was decapsulated is
for others; and the program must be at the other end, or a capture on ``tunl0`` would not see what leaves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket as sockets
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_address, ip_network

from testbed.kernel import bpf, netlink
from testbed.kernel.bpf import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, IfThere, Line, Unless
from testbed.kernel.netlink import Netlink
from testbed.state import Link, Route

OF_NETNS = "tunl0"
"""The device that every netns has by itself where the kernel knows IP in IP."""
OTHER_END = "tunl0x"
ETHERNET, HEADER = 14, 20
SIOCGIFHWADDR = 0x8927
DONT_FRAGMENT = 0x4000
MOST_ROUTES = 65536
NOT_THERE = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})
"""What the kernel says where there is no such device, or no clsact on it."""


def encapsulation(routes: int, uplink: int, local: str) -> list[Line]:
    """At the other end: an outer header to what the map says of the destination, then out by the underlay."""
    source = int(ip_address(local))
    fixed = 0x4500 + 4 + (source >> 16) + (source & 0xFFFF)
    head = -40  # of the outer header on the stack
    return [
        bpf.move(R6, R1),
        bpf.packet(2, 12),
        Unless(R0, 0x0800, "drop"),
        bpf.packet(2, ETHERNET + 6),
        bpf.keep(R0, DONT_FRAGMENT),
        bpf.move(R8, R0),
        # The key: length of the prefix, and the inner destination as on the wire.
        bpf.put(R2, 32),
        bpf.store(4, FP, -8, R2),
        bpf.packet(4, ETHERNET + 16),
        bpf.swap(R0, 32),
        bpf.store(4, FP, -4, R0),
        bpf.of_map(R1, routes),
        bpf.move(R2, FP),
        bpf.add(R2, -8),
        bpf.call(bpf.LOOKUP),
        IfThere(R0, "known"),
        bpf.put(R0, bpf.SHOT),
        bpf.leave(),
        "known",
        bpf.load(R7, R0, 0),  # the gateway, as on the wire
        bpf.load(R9, R6, 0),  # the frame's length
        bpf.add(R9, HEADER - ETHERNET),
        bpf.packet(2, ETHERNET + 8),
        bpf.keep(R0, 0xFF00),  # the inner TTL, where the outer one belongs
        # Checksum: the words that never change, then TTL, length, flags, gateway.
        bpf.put(R2, fixed),
        bpf.add_register(R2, R0),
        bpf.add_register(R2, R9),
        bpf.add_register(R2, R8),
        bpf.move(R3, R7),
        bpf.swap(R3, 32),
        bpf.move(R4, R3),
        bpf.shift_right(R3, 16),
        bpf.keep(R4, 0xFFFF),
        bpf.add_register(R2, R3),
        bpf.add_register(R2, R4),
        *(_fold() * 2),
        bpf.flip(R2, 0xFFFF),
        bpf.swap(R2, 16),
        bpf.store(2, FP, head + 10, R2),
        bpf.put(R2, 0x4500),
        bpf.swap(R2, 16),
        bpf.store(2, FP, head, R2),
        bpf.swap(R9, 16),
        bpf.store(2, FP, head + 2, R9),
        bpf.put(R2, 0),
        bpf.store(2, FP, head + 4, R2),
        bpf.swap(R8, 16),
        bpf.store(2, FP, head + 6, R8),
        bpf.add(R0, 4),
        bpf.swap(R0, 16),
        bpf.store(2, FP, head + 8, R0),
        bpf.put(R2, source),
        bpf.swap(R2, 32),
        bpf.store(4, FP, head + 12, R2),
        bpf.store(4, FP, head + 16, R7),
        bpf.move(R1, R6),
        bpf.put(R2, HEADER),
        bpf.put(R3, bpf.ROOM_MAC),
        bpf.put(R4, bpf.ENCAP_L3_IPV4),
        bpf.call(bpf.ADJUST_ROOM),
        Unless(R0, 0, "drop"),
        bpf.move(R1, R6),
        bpf.put(R2, ETHERNET),
        bpf.move(R3, FP),
        bpf.add(R3, head),
        bpf.put(R4, HEADER),
        bpf.put(R5, 0),
        bpf.call(bpf.STORE_BYTES),
        bpf.put(R1, uplink),
        bpf.put(R2, 0),
        bpf.put(R3, 0),
        bpf.put(R4, 0),
        bpf.call(bpf.REDIRECT_NEIGH),
        bpf.leave(),
        "drop",
        bpf.put(R0, bpf.SHOT),
        bpf.leave(),
    ]


def _fold() -> list[Line]:
    """R2: what the checksum carries over comes to its lower half."""
    return [
        bpf.move(R3, R2),
        bpf.shift_right(R3, 16),
        bpf.keep(R2, 0xFFFF),
        bpf.add_register(R2, R3),
    ]


def decapsulation(tunnel: int, local: str) -> list[Line]:
    """At the underlay: what is IP in IP and for this node comes in at the tunnel; the rest is left alone."""
    return [
        bpf.move(R6, R1),
        bpf.packet(2, 12),
        Unless(R0, 0x0800, "leave"),
        bpf.packet(1, ETHERNET),
        Unless(R0, 0x45, "leave"),
        bpf.packet(1, ETHERNET + 9),
        Unless(R0, 4, "leave"),
        bpf.packet(4, ETHERNET + 16),
        Unless(R0, int(ip_address(local)), "leave"),
        bpf.move(R1, R6),
        bpf.put(R2, -HEADER),
        bpf.put(R3, bpf.ROOM_MAC),
        bpf.put(R4, bpf.DECAP_L3_IPV4),
        bpf.call(bpf.ADJUST_ROOM),
        bpf.put(R1, tunnel),
        bpf.put(R2, bpf.INGRESS),
        bpf.call(bpf.REDIRECT),
        bpf.leave(),
        "leave",
        bpf.put(R0, bpf.OK),
        bpf.leave(),
    ]


@dataclass
class Tunnel:
    """A tunnel that is there. routes: descriptor of the map from destinations to gateways."""

    link: Link
    routes: int
    held: set[str] = field(default_factory=set)

    def set(self, route: Route) -> None:
        """Packets for the route's destination go to its gateway. Raises KernelRefused."""
        network = ip_network(route.dst)
        if not isinstance(network, IPv4Network) or route.via is None:
            return
        address = network.network_address.packed
        bpf.set_prefix(self.routes, network.prefixlen, address, ip_address(route.via).packed)
        self.held.add(route.dst)

    def delete(self, route: Route) -> None:
        """Forget it. Raises KernelRefused."""
        if route.dst in self.held:
            network = ip_network(route.dst)
            bpf.delete_prefix(self.routes, network.prefixlen, network.network_address.packed)
            self.held.discard(route.dst)

    def close(self) -> None:
        """Let go of the map; the programs go with the devices."""
        os.close(self.routes)


def make(link: Link, home: int, socket: Netlink) -> Tunnel:
    """The devices of a tunnel in this thread's netns, up, with their programs; what is left of an earlier
    one, whose map nobody holds any more, goes first. Raises KernelRefused; nothing is left then."""
    if link.ipip is None:
        raise ValueError("an ipip link without its underlay")
    mac = _mac_of(link.ipip.dev)
    uplink = socket.index(link.ipip.dev)
    _clear(uplink, socket)
    with ExitStack() as undo:
        undo.callback(_clear, uplink, socket)
        _done(
            socket,
            netlink.add_veth(link.name, OTHER_END, home, link.mtu, mac),
            netlink.set_no_arp(link.name),
            netlink.set_no_arp(OTHER_END),
            netlink.set_link(OTHER_END, up=True),
        )
        routes = bpf.make_prefix_map(4, MOST_ROUTES)
        undo.callback(os.close, routes)
        inside, outside = socket.index(link.name), socket.index(OTHER_END)
        _decide(socket, outside, encapsulation(routes, uplink, link.ipip.local), "testbed_encap")
        _decide(socket, uplink, decapsulation(inside, link.ipip.local), "testbed_decap")
        undo.pop_all()
    return Tunnel(link, routes)


def _decide(socket: Netlink, index: int, lines: list[Line], name: str) -> None:
    """Have a program decide about what comes in by a device, which holds it from then on."""
    program = bpf.load_program(lines, name)
    try:
        _done(socket, netlink.add_clsact(index), netlink.add_program(index, program))
    finally:
        os.close(program)


def _clear(uplink: int, socket: Netlink) -> None:
    """Remove both ends, and what decides at the underlay, where they are there."""
    for refusal in socket.send([netlink.delete_clsact(uplink), netlink.delete_link(OTHER_END)]):
        if refusal.number not in NOT_THERE:
            raise refusal.error


def unmake(tunnel: Tunnel, socket: Netlink) -> None:
    """Remove a tunnel. Raises KernelRefused."""
    tunnel.close()
    if tunnel.link.ipip is not None:
        _clear(socket.index(tunnel.link.ipip.dev), socket)


def _mac_of(dev: str) -> str:
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFHWADDR, struct.pack("256s", dev.encode()))
    return ":".join(f"{byte:02x}" for byte in answer[18:24])


def _done(socket: Netlink, *requests: netlink.Request) -> None:
    for refusal in socket.send(requests):
        raise refusal.error
