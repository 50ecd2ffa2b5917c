"""``fill_conntrack MARK COUNT RATE``: fill this netns' connection table and keep it so; ``MARK`` alone: undo.

Entries are made by netlink at no more than RATE a second until the table holds COUNT, or takes no more. Then
what expires is filled up again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from testbed.kernel import conntrack

HELD = Path("/proc/sys/net/netfilter/nf_conntrack_count")
SLICE = 0.02
"""Seconds in which a share of the rate is spent at once."""
TIMEOUT = 86_400


def main(mark: int, count: int, rate: int) -> None:
    """Fill until killed."""
    number = 0
    while True:
        begun = time.monotonic()
        room = min(count - int(HELD.read_text()), max(1, int(rate * SLICE)))
        if room > 0:
            conntrack.add_made_up(number, room, mark, TIMEOUT)
            number += room
        time.sleep(max(0.001, begun + SLICE - time.monotonic()))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        conntrack.end_marked(int(sys.argv[1]))
    else:
        main(*map(int, sys.argv[1:]))
