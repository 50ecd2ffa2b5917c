"""For tests of the VM lane: a row of hosts on links of their own, pings over them, and what is chance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, lgamma, log, log1p
from pathlib import Path
from statistics import median
from typing import Any

from mininet.topo import Topo
from sandboxed import in_sandbox

from testbed.fabric.network import ClusterNet


class Star(Topo):
    """A hub with hosts ``h1`` … at 10.0.K.2 and fd00:K::2, each on a link of its own.

    links: parameters of each host's link; ``params1`` is what the hub's end has, ``params2`` the host's.
    """

    def build(self, links: list[dict[str, Any]]) -> None:
        self.addHost("hub", ips=[])
        for number, link in enumerate(links, 1):
            self.addHost(f"h{number}", ips=[])
            sides = {
                f"params{side}": link.get(f"params{side}", {})
                | {"ips": [f"10.0.{number}.{side}/24", f"fd00:{number}::{side}/64"]}
                for side in (1, 2)
            }
            common = {key: value for key, value in link.items() if key not in sides}
            self.addLink("hub", f"h{number}", **common, **sides)


def on_star(links: list[dict[str, Any]], look: Callable[[ClusterNet], Any], root: Path) -> Any:
    """What ``look`` returns (JSON) of the started network, in a sandbox."""

    def inside() -> Any:
        net = ClusterNet(Star(links=links))
        net.start()
        return look(net)

    return in_sandbox(inside, root)


def out(net: ClusterNet, host: str, *argv: str) -> str:
    """What a command prints on a host; it must succeed."""
    text, errors, code = net[host].pexec(*argv)
    assert code == 0, f"{host}: {' '.join(argv)}: {errors}{text}"
    return str(text)


def qdisc(net: ClusterNet, host: str, dev: str, kind: str = "netem") -> dict[str, Any]:
    """The options of the one queueing discipline of a kind, read back from the kernel."""
    found = json.loads(out(net, host, "tc", "-json", "qdisc", "show", "dev", dev))
    (options,) = [each["options"] for each in found if each["kind"] == kind]
    return dict(options)


@dataclass(frozen=True)
class Echoes:
    """What a series of pings printed. rtts: ms, of the answers in the order in which they came."""

    text: str

    @cached_property
    def sent(self) -> int:
        return self._count("packets transmitted")

    @cached_property
    def received(self) -> int:
        return self._count("received")

    @cached_property
    def duplicates(self) -> int:
        return self._count("duplicates") if "duplicates" in self.text else 0

    @cached_property
    def rtts(self) -> list[float]:
        return [float(found) for found in re.findall(r"time=([0-9.]+) ms", self.text)]

    @cached_property
    def arrivals(self) -> list[float]:
        """Seconds since some time: when each answer came, of a ping with ``-D``."""
        return [float(found) for found in re.findall(r"\[([0-9.]+)\] .*time=", self.text)]

    @cached_property
    def median(self) -> float:
        """Seconds."""
        return median(self.rtts) / 1e3

    @cached_property
    def lost_runs(self) -> list[int]:
        """Lengths of the runs of echoes that nobody answered."""
        answered = {int(found) for found in re.findall(r"icmp_seq=([0-9]+)", self.text)}
        line = "".join("." if number in answered else "x" for number in range(1, self.sent + 1))
        return [len(run) for run in re.findall(r"x+", line)]

    def _count(self, what: str) -> int:
        found = re.search(rf"\+?([0-9]+) {what}", self.text)
        assert found, self.text[-500:]
        return int(found[1])


def by_chance(count: int, of: int, share: float) -> float:
    """How likely a count this far off, or further, is where each of ``of`` counts with chance ``share``.

    The exact two-sided binomial test: all outcomes that are no likelier than the one seen.
    """

    def likelihood(k: int) -> float:
        choose = lgamma(of + 1) - lgamma(k + 1) - lgamma(of - k + 1)
        return choose + k * log(share) + (of - k) * log1p(-share)

    seen = likelihood(count) + 1e-7
    return sum(exp(each) for k in range(of + 1) if (each := likelihood(k)) <= seen)
