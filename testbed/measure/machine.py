"""What the machine did meanwhile: how busy its CPUs were, what its host took away (steal), time in soft
interrupts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

BUSY: Final = 0.95
"""Share of CPU time from which on a machine is overloaded."""
STOLEN: Final = 0.02
"""Share of CPU time taken away by the host from which on times on a virtual machine are not its own."""
FLOORS: Final = 5.0
"""A time below so many noise floors says more of the machine than of the network."""

_FIELDS: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Machine:
    """Readings of /proc/stat (proc_stat(5)), which no namespace hides."""

    def __init__(self) -> None:
        self._before = _read()

    def since(self) -> dict[str, Any]:
        """Shares of all CPU time since this was made: busy, steal, softirq; and the load average now."""
        now = _read()
        spent = {name: now[name] - self._before[name] for name in _FIELDS}
        total = sum(spent.values())
        if not total:
            return {"busy": 0.0, "steal": 0.0, "softirq": 0.0, "load": os.getloadavg()[0]}
        idle = spent["idle"] + spent["iowait"]
        return {
            "busy": round(1 - (idle + spent["steal"]) / total, 4),
            "steal": round(spent["steal"] / total, 4),
            "softirq": round(spent["softirq"] / total, 4),
            "load": round(os.getloadavg()[0], 2),
        }


def overloaded(usage: dict[str, Any]) -> str:
    """Why figures that were taken meanwhile are not to be trusted; "" where they are."""
    if usage.get("steal", 0.0) > STOLEN:
        return f"{usage['steal']:.0%} of the CPU time was stolen by the host"
    if usage.get("busy", 0.0) > BUSY:
        return f"the CPUs were {usage['busy']:.0%} busy"
    return ""


def _read() -> dict[str, int]:
    first = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    return dict(zip(_FIELDS, map(int, first), strict=False))
