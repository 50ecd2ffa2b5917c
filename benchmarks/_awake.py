"""CPUs that do not go idle: on a machine at rest, waking one takes longer than a packet's round trip."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEVICE = Path("/dev/cpu_dma_latency")
"""While it is open, no idle state is entered that takes longer to leave. Source: the kernel's
``Documentation/power/pm_qos_interface.rst``."""


@contextmanager
def awake() -> Iterator[None]:
    """Keep this machine's CPUs awake, for all programs alike; where that is not allowed, say so and go on."""
    try:
        opened = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        print(f"CPUs may go idle, which adds to each round trip: {error}")
        yield
        return
    try:
        os.write(opened, struct.pack("=i", 0))
        yield
    finally:
        os.close(opened)
