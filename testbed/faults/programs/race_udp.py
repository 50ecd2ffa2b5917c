"""``race_udp ADDRESS PORT RATE NAME``: pairs of DNS questions sent at once from one socket, again and again.

Two threads, on CPUs of their own where there are two, send from a socket that has sent nothing before: both
packets meet connection tracking while it knows neither, as the A and AAAA questions of many resolvers do.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from testbed.apps.wire import dns


def main(address: str, port: str, rate: str, name: str) -> None:
    """Race until killed, at most ``rate`` pairs a second."""
    questions = [dns.question(number, name, kind) for number, kind in ((1, "A"), (2, "AAAA"))]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    start, done = threading.Barrier(2), threading.Barrier(2)
    current: list[socket.socket] = []
    cpus = sorted(os.sched_getaffinity(0))

    def second() -> None:
        os.sched_setaffinity(0, {cpus[-1]})
        while True:
            start.wait()
            _send(current[0], questions[1])
            done.wait()

    threading.Thread(target=second, daemon=True).start()
    os.sched_setaffinity(0, {cpus[0]})
    while True:
        begun = time.monotonic()
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, int(port)))
            current[:] = [sock]
            start.wait()
            _send(sock, questions[0])
            done.wait()
        time.sleep(max(0.0, begun + 1 / float(rate) - time.monotonic()))


def _send(sock: socket.socket, question: bytes) -> None:
    try:
        sock.send(question)
    except OSError:
        return  # what an earlier one met with, told late


if __name__ == "__main__":
    main(*sys.argv[1:])
