"""Looks names up as any program of a pod does, and counts the DNS messages that takes: run in the pod itself.

``python -m testbed.measure.lookups --count N --interval S NAME…`` asks the machine's own resolver
(getaddrinfo, both families) with the pod's resolver files, one name after the other, and prints one JSON
object per lookup. The messages are those that AF_PACKET sees on the pod's interfaces; times the kernel's.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from testbed.apps.wire import dns

ETH_P_ALL = 3
SO_TIMESTAMPNS = 35
SETTLE_SECONDS = 0.02
"""How long after a lookup is waited for answers that the capture has not shown yet; there may be none."""
DNS_PORT = 53
UDP = 17


def argv(names: Sequence[str], count: int, interval: float) -> list[str]:
    """The command that looks names up. interval: seconds between two lookups."""
    return [
        *(sys.executable, "-m", "testbed.measure.lookups"),
        *("--count", str(count), "--interval", str(interval), *names),
    ]


class Watch:
    """The DNS messages that pass through this netns, from now on."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sock.setblocking(False)

    def taken(self) -> Iterator[tuple[float, dns.Message]]:
        """What has come since the last look: kernel time (seconds since 1970) and message."""
        while True:
            try:
                data, ancillary, _, _ = self._sock.recvmsg(65535, 128)
            except BlockingIOError:
                return
            if (payload := dns_payload(data)) is None:
                continue
            at = 0.0
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("@ll", value[:16])
                    at = seconds + nanoseconds / 1e9
            try:
                yield at, dns.parse(payload)
            except dns.Malformed:
                continue

    def settled(self) -> list[tuple[float, dns.Message]]:
        """What has come since the last look, once every question in it has its answer or SETTLE_SECONDS are
        over."""
        found = list(self.taken())
        end = time.monotonic() + SETTLE_SECONDS
        while unanswered(one for _, one in found) and (left := end - time.monotonic()) > 0:
            select.select([self._sock], [], [], left)
            found += self.taken()
        return found

    def close(self) -> None:
        """Look no more."""
        self._sock.close()


def unanswered(messages: Iterable[dns.Message]) -> bool:
    """Whether a question has had fewer answers than times it was asked."""
    open_ = Counter[tuple[int, str, str]]()
    for one in messages:
        open_[one.number, one.name, one.type] += -1 if one.answer else 1
    return any(count > 0 for count in open_.values())


def dns_payload(packet: bytes) -> bytes | None:
    """The DNS message of an IP packet over UDP to or from port 53; None where it is none."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) > 9 and packet[9] == UDP:
        datagram = packet[(packet[0] & 15) * 4 :]
    elif version == 6 and len(packet) > 6 and packet[6] == UDP:
        datagram = packet[40:]
    else:
        return None
    if len(datagram) < 8 or DNS_PORT not in struct.unpack_from("!HH", datagram):
        return None
    return datagram[8:]


def look_up(name: str, watch: Watch) -> dict[str, Any]:
    """Look one name up. seconds: as the program sees it; network: from the first question to the last answer
    in the capture; questions: name and type of each that was sent."""
    for _ in watch.taken():
        pass
    begun, at = time.monotonic(), time.time()
    error, addresses = "", list[str]()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        addresses = sorted({str(entry[4][0]) for entry in found})
    except socket.gaierror as failure:
        error = str(failure.strerror)
    seconds = time.monotonic() - begun
    messages = watch.settled()
    asked = [(when, one) for when, one in messages if not one.answer]
    said = [(when, one) for when, one in messages if one.answer]
    return {
        "name": name,
        "at": at,
        "seconds": seconds,
        "network": said[-1][0] - asked[0][0] if asked and said else None,
        "addresses": addresses,
        "error": error,
        "questions": [[one.name, one.type] for _, one in asked],
        "answers": [[one.name, one.type, one.rcode] for _, one in said],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Look up and print."""
    parser = argparse.ArgumentParser(prog="lookups", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args(arguments)
    watch = Watch()
    try:
        for _ in range(args.count):
            for name in args.names:
                print(json.dumps(look_up(name, watch)), flush=True)
                if args.interval:
                    time.sleep(args.interval)  # the distance that was asked for: nothing is waited for
    finally:
        watch.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
