"""``ask_dns ADDRESS NAME SECONDS``: one question over UDP; prints ``RCODE SECONDS``, or ``timeout``."""

from __future__ import annotations

import socket
import sys
import time

from testbed.apps.wire import dns

NUMBER = 0x7E57


def main(address: str, name: str, patience: str) -> str:
    """What came of it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(float(patience))
        sock.connect((address, 53))
        begun = time.monotonic()
        try:
            sock.send(dns.question(NUMBER, name, "A"))
            answer = dns.parse(sock.recv(4096))
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return f"{error.strerror}"
        return f"{answer.rcode} {time.monotonic() - begun:.6f}"


if __name__ == "__main__":
    sys.stdout.write(main(*sys.argv[1:]))
