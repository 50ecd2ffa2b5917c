"""Every scenario of the library, whole and as it is: what it expects comes true, what it breaks is healed.

`make test` runs those that take a few seconds; the others are run by CI and by `make test-all`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.scenario.run import run_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"
QUICK = frozenset(
    {"article", "dns", "first-packet", "hairpin-and-snat", "mtu", "pod-network", "topology-aware"}
)
"""About 15 s at most, on a busy machine with two CPUs."""
FAULTS = {
    "cni-compare": ["node-crash"] * 10,
    "conntrack-exhaustion": ["conntrack-full"],
    "dns-failure": ["dns-down", "dns-servfail", "dns-slow"],
    "link-failure": ["link-down"],
    "mtu": ["mtu-black-hole"],
    "node-failure": ["node-crash"],
    "partition": ["partition"],
}


def library() -> list[Any]:
    names = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.nightly]) for name in names]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", library())
def test_a_scenario_shows_what_it_says(name: str, tmp_path: Path) -> None:
    lines: list[str] = []
    done = run_scenario(SCENARIOS / f"{name}.yaml", out=tmp_path, report=lines.append)
    assert done.error is None, "\n".join(lines)
    assert done.met, "\n".join(lines)
    assert done.expectations
    assert (done.folder / "report.html").stat().st_size > 10_000
    told = [event for event in events(done.folder) if event["what"].startswith("fault ")]
    assert [(event["what"], event["detail"]["fault"]) for event in told] == [
        (what, fault) for fault in FAULTS.get(name, []) for what in ("fault applied", "fault healed")
    ]
    assert all(event["detail"].keys() - {"variant"} == {"fault", "id", "target"} for event in told)
    assert [event["monotonic"] for event in told] == sorted(event["monotonic"] for event in told)
