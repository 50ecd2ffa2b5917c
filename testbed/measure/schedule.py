"""When probes are sent: arrival schedules, the same for the same seed. Pure.

An open loop keeps its schedule whatever becomes of earlier probes: a slow answer delays no later question,
so that the time which a stall costs is in the samples (no coordinated omission).
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Sequence
from typing import Literal

Arrivals = Literal["constant", "poisson"]


def arrivals(
    count: int, rate: float, *, burst: int = 1, process: Arrivals = "constant", seed: int = 0
) -> tuple[int, ...]:
    """When each of ``count`` probes is due, in ns after the first.

    rate: probes a second on average, above 0; burst: how many are due at one moment; process: equal
    distances, or those of a Poisson process."""
    apart = burst / rate * 1e9
    if process == "constant":
        return tuple(round(number // burst * apart) for number in range(count))
    draw = random.Random(seed)  # noqa: S311 - a drawing to repeat
    moments, now = [], 0.0
    for number in range(count):
        if number and number % burst == 0:
            now += draw.expovariate(1.0) * apart
        moments.append(round(now))
    return tuple(moments)


def digest(moments: Sequence[int]) -> str:
    """A short fingerprint of a schedule."""
    return hashlib.sha256(struct.pack(f"<{len(moments)}q", *moments)).hexdigest()[:16]
