"""The words for what became of a probe, from errno values and ICMP types and codes. Pure.

Verdicts: ``ok``, ``refused``, ``timeout``, ``unreachable``, ``reset``, ``error``. Reasons per verdict:
refused: ``reset`` (TCP RST to the SYN), ``port unreachable`` (ICMP); timeout: ``no answer``, ``silent``
(connected, and then nothing); unreachable: ``network``, ``host``, ``protocol``, ``prohibited``,
``blackhole``, ``filtered`` (the source's own netfilter), ``too big``, ``ttl exceeded``; error: the name of
the errno, ``cut short``, ``status N`` (both of an HTTP answer).

ICMP codes: RFC 792, RFC 1812 5.2.7.1 (IPv4), RFC 4443 3.1 (IPv6).
"""

from __future__ import annotations

import errno
from typing import Final

from testbed.measure.messages import Outcome, VerdictName

NO_ANSWER: Final = "no answer"
SILENT: Final = "silent"
CUT_SHORT: Final = "cut short"
PORT_UNREACHABLE: Final = "port unreachable"

_ICMP4_UNREACHABLE: Final = {
    0: "network",
    1: "host",
    2: "protocol",
    4: "too big",
    6: "network",
    7: "host",
    9: "prohibited",
    10: "prohibited",
    11: "network",
    12: "host",
    13: "prohibited",
}
_ICMP6_UNREACHABLE: Final = {0: "network", 1: "prohibited", 3: "host", 5: "prohibited", 6: "prohibited"}

_LOCAL: Final = {
    errno.ENETUNREACH: "network",
    errno.EHOSTUNREACH: "host",
    errno.EACCES: "prohibited",  # a route of type prohibit
    errno.EINVAL: "blackhole",  # a route of type blackhole
    errno.EPERM: "filtered",  # netfilter dropped it on the way out
    errno.EMSGSIZE: "too big",
    errno.EPROTO: "protocol",
    errno.ENOPROTOOPT: "protocol",
}

TRANSIENT: Final = frozenset({errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""The machine is short of something for a moment: worth another attempt, never a verdict at once."""


def from_errno(code: int, attempts: int = 1) -> Outcome:
    """The outcome of a socket call that failed with errno ``code`` and no ICMP message to explain it."""
    if code == errno.ECONNREFUSED:
        return Outcome("refused", "reset", attempts=attempts)
    if code == errno.ECONNRESET:
        return Outcome("reset", "reset", attempts=attempts)
    if code == errno.ETIMEDOUT:
        return Outcome("timeout", NO_ANSWER, attempts=attempts)
    if code in _LOCAL:
        return Outcome("unreachable", _LOCAL[code], attempts=attempts)
    return Outcome("error", errno.errorcode.get(code, str(code)), attempts=attempts)


def from_icmp(version: int, kind: int, code: int, reporter: str) -> Outcome:
    """The outcome of an ICMP error. version: 4 or 6; kind, code: the message's type and code."""
    verdict, reason = _of_icmp(version, kind, code)
    return Outcome(verdict, reason, reporter, code=f"{kind}/{code}")


def _of_icmp(version: int, kind: int, code: int) -> tuple[VerdictName, str]:
    if (version, kind, code) in ((4, 3, 3), (6, 1, 4)):
        return "refused", PORT_UNREACHABLE
    if (version, kind) in ((4, 11), (6, 3)):
        return "unreachable", "ttl exceeded"
    if (version, kind) == (6, 2):
        return "unreachable", "too big"
    table = _ICMP4_UNREACHABLE if version == 4 else _ICMP6_UNREACHABLE
    if (version, kind) in ((4, 3), (6, 1)) and code in table:
        return "unreachable", table[code]
    return "error", f"icmp {kind}/{code}"
