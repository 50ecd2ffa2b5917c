"""Services, cluster DNS and network policy on every dataplane with every proxy mode.

The cells are dataplane x proxy mode x suite. A normal run has those that a pairwise choice leaves: each
dataplane meets each mode and each suite, each mode each suite. Each has a part of its suite's cases, another
than the suite's other cells. ``make test-all`` has them whole: every way between nodes with MODES, and every
dataplane with OTHER_MODES, but for LEFT_OUT. By hand, on any cluster: ``testbed conformance SUITE``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from testbed.conformance import Case, suites
from testbed.conformance.run import Status, run_cases
from testbed.dataplane import dataplanes, needs_of
from testbed.kernel.capabilities import CAPABILITIES, missing
from testbed.proxy import proxiers

GOLDEN = Path(__file__).parents[1] / "golden" / "network-policy"

DATAPLANES: dict[str, dict[str, Any]] = {
    "bridge": {"name": "bridge"},
    "cni": {"name": "cni"},
    "flannel": {"name": "flannel"},
    "calico": {"name": "calico", "timers": "fast"},
    "weave": {"name": "weave"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "flannel-host-gw": {"name": "flannel", "backend": "host-gw"},
    "flannel-udp": {"name": "flannel", "backend": "udp"},
    "flannel-wireguard": {"name": "flannel", "backend": "wireguard"},
    "flannel-ipip": {"name": "flannel", "backend": "ipip"},
    "calico-vxlan": {"name": "calico", "vxlanMode": "Always"},
    "calico-ipip": {"name": "calico", "ipipMode": "Always", "timers": "fast"},
    "weave-sleeve": {"name": "weave", "mode": "sleeve"},
    "weave-ovs": {"name": "weave", "datapath": "ovs"},
}
"""Other ways between nodes, which are tried at night alone."""
MODES = ("iptables", "nftables")
OTHER_MODES = ("ipvs",)
"""The VM lane's, where each dataplane meets it in one suite, and at night in all."""
SUITES = ("services", "dns", "network-policy")
PART = {"services": 5, "dns": 5, "network-policy": 20}
"""One case in so many is asked in a cell of the normal run, other ones in each of a suite's cells."""

FEWER = 3
"""So many times fewer in the VM lane, which is slow where it is emulated."""

Cell = tuple[str, str, str]
"""Dataplane, mode, suite."""

LEFT_OUT: dict[Cell, str] = {
    ("calico", "ipvs", "network-policy"): "there is no IPVS variant of felix's rules (docs/fidelity.md)",
}
NOT_HERE = frozenset({"no upstream", "dual stack"})
"""What no cell's cluster has, of all that cases need: such cases are deferred in each."""


def pairwise(*factors: Sequence[str]) -> list[Cell]:
    """Few cells in which any value of a factor meets any value of any other, found greedily."""
    everything: list[Cell] = [(a, b, c) for a, b, c in product(*factors)]
    missing = {pair for cell in everything for pair in pairs(cell)}
    chosen: list[Cell] = []
    while missing:
        best = max(everything, key=lambda cell: len(missing & pairs(cell)))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def met_once() -> Iterator[Cell]:
    """Each dataplane with each of the other modes, in the suites in turn."""
    for mode in OTHER_MODES:
        for dataplane, suite in zip(DATAPLANES, cycle(SUITES), strict=False):
            yield dataplane, mode, suite


def whole() -> list[Cell]:
    """The cells that are tried whole."""
    cells = [*product((*DATAPLANES, *VARIANTS), MODES, SUITES), *product(DATAPLANES, OTHER_MODES, SUITES)]
    return [cell for cell in cells if cell not in LEFT_OUT]


def pairs(cell: Cell) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(cell), 2))


def params(cells: Sequence[Cell]) -> list[Any]:
    """The cells as parameters: each numbered among its suite's, with what it needs."""
    return list(_params(cells))


def _params(cells: Sequence[Cell]) -> Iterator[Any]:
    numbers: Counter[str] = Counter()
    for cell in cells:
        dataplane, mode, suite = cell
        number = numbers[suite]
        numbers[suite] += 1
        options = {key: value for key, value in named(dataplane).items() if key != "name"}
        needs = needs_of(dataplanes.get(named(dataplane)["name"]), options) | proxiers.get(mode).needs
        marks = pytest.mark.needs(*sorted(needs))
        yield pytest.param(number, dataplane, mode, suite, id="-".join(cell), marks=marks)


DNS_HOST = {
    "name": "dns",
    "address": "203.0.113.53",
    "dns": {"zone": {"www.example.com": "203.0.113.80", "mail.example.com": "203.0.113.25"}},
}
"""Whom cluster DNS asks for names outside."""


def named(dataplane: str) -> dict[str, Any]:
    return (DATAPLANES | VARIANTS)[dataplane]


def cases(suite: str) -> list[Case]:
    return suites.get(suite).cases([GOLDEN] if suite == "network-policy" else [])


def conforms(dataplane: str, mode: str, cases: Sequence[Case], folder: Path) -> None:
    """Have cases judged on a cluster of this dataplane and mode; fail with all that did not pass."""
    expected = {case.name: foreseen(case, mode) for case in cases}
    proxy = {"mode": mode, "minSyncPeriod": "200ms", **({"syncPeriod": "2s"} if mode == "iptables" else {})}
    spec = {
        "apiVersion": "testbed/v1",
        "kind": "Cluster",
        "metadata": {"name": f"{dataplane}-{mode}"},
        "spec": {
            "nodes": {"count": 3, "zones": ["a", "b", "c"]},
            "external": [{"name": "client", "address": "203.0.113.10"}, DNS_HOST],
            "network": {"dataplane": named(dataplane), "proxy": proxy},
        },
    }
    (folder / "spec.yaml").write_text(json.dumps(spec))
    with Cluster.up(folder / "spec.yaml") as cluster:
        verdicts = run_cases(cluster, cases)
    number = Counter(verdict.status for verdict in verdicts)
    told = ", ".join(f"{many} {status}" for status, many in number.items())
    print(f"{dataplane}, {mode}, of {len(cases)}: {told}")
    assert [(verdict.name, verdict.why) for verdict in verdicts if verdict.status == "failed"] == []
    assert {verdict.name: verdict.status for verdict in verdicts} == expected


def foreseen(case: Case, mode: str) -> Status:
    """What is to become of a case: deferred where it is about what this mode, this kernel or no cell has."""
    modes = {f"mode:{each}" for each in (*MODES, *OTHER_MODES)}
    others = NOT_HERE | modes - {f"mode:{mode}"}
    if others & set(case.needs) or missing(need for need in case.needs if need in CAPABILITIES):
        return "deferred"
    return "differs" if case.differs else "passed"


@pytest.mark.parametrize(
    ("number", "dataplane", "mode", "suite"),
    params([*pairwise(tuple(DATAPLANES), MODES, SUITES), *met_once()]),
)
def test_some_cases_pass(number: int, dataplane: str, mode: str, suite: str, tmp_path: Path) -> None:
    every = PART[suite] * (FEWER if mode in OTHER_MODES else 1)
    conforms(dataplane, mode, cases(suite)[number % every :: every], tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("number", "dataplane", "mode", "suite"),
    params(whole()),
)
def test_all_cases_pass(number: int, dataplane: str, mode: str, suite: str, tmp_path: Path) -> None:
    conforms(dataplane, mode, cases(suite), tmp_path)


def test_every_dataplane_is_in_the_matrix() -> None:
    assert {options["name"] for options in DATAPLANES.values()} == set(dataplanes) - {"none"}
    assert {*MODES, *OTHER_MODES} == set(proxiers) - {"none"}


def test_what_is_tried_whole_is_all_but_what_is_left_out() -> None:
    cells = whole()
    assert len(cells) == len(set(cells))
    assert set(product(DATAPLANES, (*MODES, *OTHER_MODES), SUITES)) - set(cells) == set(LEFT_OUT)
    assert set(LEFT_OUT).isdisjoint([*pairwise(tuple(DATAPLANES), MODES, SUITES), *met_once()])


def test_what_pairwise_leaves_has_every_pair() -> None:
    factors = (tuple(DATAPLANES), MODES, SUITES)
    left = pairwise(*factors)
    assert {pair for cell in left for pair in pairs(cell)} == {
        pair for cell in product(*factors) for pair in pairs(cell)
    }
    assert len(left) < len(list(product(*factors))) * 2 / 3
