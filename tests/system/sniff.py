"""Prints one JSON line per IPv4 or ARP frame seen on an interface, until SIGTERM; run inside a netns.

    python sniff.py INTERFACE [promiscuous]          prints "ready" first

Not promiscuous: what tcpdump -p shows. raw: the frame, its first 2,000 bytes; of a
device without a link layer it is the packet, and "from" and "to" mean nothing.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys

KINDS = ("in", "broadcast", "multicast", "other", "out")


ETHERNET, LOOPBACK = 1, 772
"""Kinds of devices whose frames have an Ethernet header (linux/if_arp.h)."""
SOL_PACKET, ADD_MEMBERSHIP, PROMISCUOUS = 263, 1, 1


def main(interface: str, promiscuous: bool) -> None:
    stop, stopper = socket.socketpair()
    stopper.setblocking(False)
    signal.set_wakeup_fd(stopper.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.bind((interface, 3))
        if promiscuous:
            wish = struct.pack("=iHH8s", socket.if_nametoindex(interface), PROMISCUOUS, 0, b"")
            sock.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, wish)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([sock, stop], [], [])
            if sock not in ready:  # everything that came before the signal was read
                return
            frame, address = sock.recvfrom(65535)
            link_layer = b"" if address[3] in (ETHERNET, LOOPBACK) else bytes(12) + frame_type(frame)
            if (seen := dissect(link_layer + frame)) is not None:
                more = {"way": KINDS[address[2]], "length": len(frame), "raw": frame[:2000].hex()}
                print(json.dumps({**seen, **more}), flush=True)


def frame_type(packet: bytes) -> bytes:
    """What an Ethernet header would call a packet of a device that has none: a tunnel, or WireGuard."""
    return b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"


def dissect(frame: bytes) -> dict[str, object] | None:
    to, source, kind = frame[:6].hex(":"), frame[6:12].hex(":"), struct.unpack_from("!H", frame, 12)[0]
    if kind == 0x0806:
        who = {"src": socket.inet_ntoa(frame[28:32]), "dst": socket.inet_ntoa(frame[38:42])}
        return {"what": "arp", "op": frame[21], **who, "to": to, "from": source}
    if kind != 0x0800:
        return None
    header = 14 + 4 * (frame[14] & 15)
    who = {"src": socket.inet_ntoa(frame[26:30]), "dst": socket.inet_ntoa(frame[30:34])}
    what = {1: "icmp", 6: "tcp", 17: "udp"}.get(frame[23], frame[23])
    if what == "icmp":
        what = {8: "echo", 0: "reply"}.get(frame[header], "icmp")
    port = {"dport": struct.unpack_from("!H", frame, header + 2)[0]} if what in ("tcp", "udp") else {}
    return {"what": what, **who, **port, "ttl": frame[22], "to": to, "from": source}


main(sys.argv[1], "promiscuous" in sys.argv[2:])
