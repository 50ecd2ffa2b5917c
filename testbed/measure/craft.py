"""Packets that are crafted and dissected, with Scapy. It never times anything.

Scapy is imported when first asked for (it takes about 0.4 s), and only in the prober's process.
"""

from __future__ import annotations

import functools
import string
from typing import Any


@functools.cache
def _inet() -> tuple[Any, Any]:
    from scapy.config import conf

    conf.ipv6_enabled = True
    import scapy.layers.inet
    import scapy.layers.inet6

    return scapy.layers.inet, scapy.layers.inet6


def echo_template(version: int, identifier: int, size: int) -> bytes:
    """An ICMP (4) or ICMPv6 (6) echo request with sequence number 0 and ``size`` bytes of payload.

    The checksum is right for IPv4; for IPv6 it is left to the kernel.
    """
    inet, inet6 = _inet()
    letters = string.ascii_letters.encode()
    payload = (letters * (size // len(letters) + 1))[:size]
    if version == 4:
        return bytes(inet.ICMP(type="echo-request", id=identifier, seq=0) / payload)
    return bytes(inet6.ICMPv6EchoRequest(id=identifier, seq=0, data=payload, cksum=0))


def describe(version: int, packet: bytes) -> str:
    """One line on a received packet: for IPv4 from the IP header on, for IPv6 from the ICMPv6 header."""
    if not packet:
        return ""
    inet, inet6 = _inet()
    if version == 4:
        return str(inet.IP(packet).summary())
    kind = inet6.icmp6typescls.get(packet[0], inet6.ICMPv6Unknown)
    return str(kind(packet).summary())


# --- packets for ``probes.crafted``: whole IPv4 packets; the kernel only adds what is zero ------------------


def sized_echo(head: dict[str, Any], size: int, mark: int) -> bytes:
    """An echo request of ``size`` bytes in all that may not be fragmented (DF). mark: its identifier."""
    inet, _ = _inet()
    return bytes(inet.IP(**head, flags="DF") / inet.ICMP(id=mark, seq=1) / bytes(max(0, size - 28)))


def fragments(head: dict[str, Any], size: int, fragment: int, mark: int) -> list[bytes]:
    """An echo request of ``size`` bytes in all, in fragments of so many bytes of payload."""
    inet, _ = _inet()
    whole = inet.IP(**head) / inet.ICMP(id=mark, seq=1) / bytes(max(0, size - 28))
    return [bytes(part) for part in inet.fragment(whole, fragsize=fragment)]


def bad_checksum(head: dict[str, Any], mark: int, port: int) -> bytes:
    """A UDP datagram from port ``mark`` whose checksum is off by one."""
    inet, _ = _inet()
    right = bytes(inet.IP(**head) / inet.UDP(sport=mark, dport=port) / b"testbed")
    checksum = int.from_bytes(right[26:28], "big")
    wrong = (checksum ^ 1) or 2  # zero would mean that there is none
    return right[:26] + wrong.to_bytes(2, "big") + right[28:]


def segment(head: dict[str, Any], mark: int, port: int, flags: str) -> bytes:
    """A TCP segment from port ``mark`` with these flags, in Scapy's letters."""
    inet, _ = _inet()
    return bytes(inet.IP(**head) / inet.TCP(sport=mark, dport=port, flags=flags, seq=1000))


def mark_of(packet: bytes) -> int | None:
    """The mark that an IPv4 packet answers, or whose packet it quotes; None where it is neither."""
    inet, _ = _inet()
    read = inet.IP(packet)
    if read.haslayer(inet.ICMP):
        icmp = read[inet.ICMP]
        if icmp.type == 0:
            return int(icmp.id)
        if inet.IPerror in read:
            return int(read[inet.IPerror].id)
        return None
    for layer in (inet.TCP, inet.UDP):
        if read.haslayer(layer):
            return int(read[layer].dport)
    return None


# --- what captures show, for ``trace`` ----------------------------------------------------------------------

_VXLAN_PORTS = (4789, 8472, 6784)
"""IANA's, Linux' own default (Flannel, Cilium), Weave's fastdp."""


@functools.cache
def load() -> Any:
    """Scapy's layers, with VXLAN on every port that dataplanes use; called early, it keeps 0.4 s out of a
    trace."""
    inet, _ = _inet()
    from scapy.layers import l2, vxlan
    from scapy.packet import bind_layers

    for port in _VXLAN_PORTS:
        bind_layers(inet.UDP, vxlan.VXLAN, dport=port)
    return l2, vxlan


def headers(frame: bytes, ethernet: bool) -> dict[str, str]:
    """What may be rewritten on the way, by name; of an encapsulated packet that of the inner one, and the
    outer's.

    ethernet: whether the frame begins with an Ethernet header, else with an IP one.
    """
    inet, inet6 = _inet()
    l2, vxlan = load()
    version6 = bool(frame) and frame[0] >> 4 == 6
    packet = l2.Ether(frame) if ethernet else inet6.IPv6(frame) if version6 else inet.IP(frame)
    found: dict[str, str] = {}
    layers = [layer for layer in _layers(packet) if isinstance(layer, inet.IP | inet6.IPv6)]
    layers = [layer for layer in layers if not isinstance(layer, inet.IPerror | inet6.IPerror6)]
    if isinstance(packet, l2.Ether):
        found |= {"MAC source": packet.src, "MAC destination": packet.dst}
    for outer in layers[:-1]:
        tunnel = packet.getlayer(vxlan.VXLAN)
        kind = f"VXLAN {tunnel.vni}" if tunnel is not None else "IP in IP"
        found["encapsulated in"] = f"{kind}, {outer.src} → {outer.dst}"
    if not layers:
        return found
    inner = layers[-1]
    found |= {"source": inner.src, "destination": inner.dst}
    found["TTL"] = str(inner.ttl if isinstance(inner, inet.IP) else inner.hlim)
    payload = inner.payload
    if isinstance(payload, inet.TCP | inet.UDP):
        found |= {"source port": str(payload.sport), "destination port": str(payload.dport)}
    elif isinstance(payload, inet.ICMP):
        found["ICMP identifier"] = str(payload.id)
    return found


def _layers(packet: Any) -> Any:
    while packet:
        yield packet
        packet = packet.payload


def syn_of(frame: bytes) -> tuple[bytes, int] | None:
    """(source port as two bytes, sequence number) of an Ethernet frame that is a SYN; None where it is
    none."""
    inet, _ = _inet()
    l2, _ = load()
    tcp = l2.Ether(frame).getlayer(inet.TCP)
    if tcp is None or tcp.flags != "S":
        return None
    return int(tcp.sport).to_bytes(2, "big"), int(tcp.seq)
