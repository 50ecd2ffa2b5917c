"""Faults for a user without privileges, by hand: each is applied and healed, and the host is as before."""

from __future__ import annotations

import json
from pathlib import Path

from test_users import Person, folder
from users import NOBODY, as_nobody, become, shared

__all__ = ["folder", "shared"]  # fixtures

FAULTS = (
    "link-down node-2",
    "link-flap node-2",
    "impair node-2 --set bandwidth=1Mbit",
    "loss node-2 --set loss=0.5",
    "mtu-black-hole node-2",
    "partition node-2",
    "route-withdrawn node-1",
    "duplicate-ip node-2 --set of=node-1",
    "stale-neighbour node-2 --set of=node-1",
    "forwarding-off node-2",
    "bridge-netfilter-off node-2",
    "no-default-route node-2",
    "node-not-ready node-2",
    "proxier-frozen node-2",
    "policy-frozen node-2",
    "rules-flushed node-2",
    "conntrack-full node-2 --set share=0.05",
    "udp-race web-0",
    "dns-down",
    "dns-servfail",
    "dns-slow --set delay=0.2",
    "node-crash node-2",
)


@as_nobody
def test_every_fault_as_nobody(folder: Path) -> None:
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    person = Person(become(NOBODY, NOBODY), folder)
    person.testbed("up", "spec.yaml")
    try:
        for words in FAULTS:
            person.testbed("fault", "apply", *words.split())
            listed = json.loads(person.testbed("fault", "list", "-o", "json"))["items"]
            assert [each["fault"] for each in listed] == words.split()[:1]
            person.testbed("fault", "heal", "--all")
        assert json.loads(person.testbed("fault", "list", "-o", "json"))["items"] == []
    finally:
        person.testbed("down", "mine")
    assert limit.read_text() == before
