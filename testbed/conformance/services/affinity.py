"""Session affinity: one client, one server, for as long as the timeout says."""

from __future__ import annotations

import math
import time

from testbed.conformance.lab import Lab
from testbed.conformance.services import services
from testbed.conformance.services.parts import (
    PORT,
    affinity,
    answers,
    client,
    cluster_ip,
    node_port,
    server,
    service,
    sticks,
)
from testbed.wait import patient

SERVERS = ("one", "two", "three")
SHORT = math.ceil(patient(0.5))
"""Seconds of an affinity that ends; whole ones are to be had."""
WELL_WITHIN = 0.9 * SHORT
TRIES = 14
"""Choices of a server after each other; that all of them fall on the same of three has p = 2e-7."""


@services.case()
def affinity_holds_on_a_cluster_ip(lab: Lab) -> None:
    """With ClientIP affinity a pod gets the same server again and again by the cluster IP."""
    *_, made = lab.apply(*map(server, SERVERS), client(), service(**affinity()))
    name = sticks(lab, "client", cluster_ip(made), PORT)
    lab.check(name in SERVERS, f"an unknown server answers: {name}")


@services.case("outside")
def affinity_holds_on_a_node_port(lab: Lab) -> None:
    """With ClientIP affinity a client outside gets the same server again and again by a node port."""
    *_, made = lab.apply(*map(server, SERVERS), service(type="NodePort", **affinity()))
    sticks(lab, lab.outside, lab.node_ip(0), node_port(made))


@services.case()
def affinity_ends_with_its_timeout_on_a_cluster_ip(lab: Lab) -> None:
    """Affinity lasts as long as connections follow each other within its timeout, and ends after it."""
    *_, made = lab.apply(*map(server, SERVERS), client(), service(**affinity(SHORT)))
    _ends_with_its_timeout(lab, "client", cluster_ip(made), PORT)


@services.case("outside")
def affinity_ends_with_its_timeout_on_a_node_port(lab: Lab) -> None:
    """The same by a node port, from outside the cluster."""
    *_, made = lab.apply(*map(server, SERVERS), service(type="NodePort", **affinity(SHORT)))
    _ends_with_its_timeout(lab, lab.outside, lab.node_ip(0), node_port(made))


def _ends_with_its_timeout(lab: Lab, source: str, ip: str, port: int) -> None:
    """Check an affinity of SHORT."""
    lab.step("in time")
    last = sticks(lab, source, ip, port)
    asked, judged = float("-inf"), 0

    def other() -> str:
        """Each connection begins the time anew; those that came later, on a busy machine, say nothing."""
        nonlocal asked, last, judged
        before, asked = asked, time.monotonic()
        (heard,) = lab.ask(source, ip, port)
        expected, last = last, heard.answer
        if time.monotonic() - before >= WELL_WITHIN:
            return ""
        judged += 1
        return "" if last == expected else f"within its timeout {source} hears {heard}, not '{expected}'"

    lab.stays(other, 2.5 * SHORT)
    lab.check(judged > 0, "no connection followed another one within the timeout: the machine is too slow")
    lab.step("after it")
    heard = {last}
    for _ in range(TRIES):
        time.sleep(1.3 * SHORT)  # the timeout, and a little
        heard |= {one.answer for one in lab.ask(source, ip, port)}
        if len(heard) > 1:
            return
    lab.fail(f"{source} hears only '{last}' from {ip}:{port} in {TRIES} tries, each after the timeout")


@services.case()
def affinity_can_be_switched_on_a_cluster_ip(lab: Lab) -> None:
    """Affinity of a Service can be switched on and off by its cluster IP."""
    *_, made = lab.apply(*map(server, SERVERS), client(), service())
    _can_be_switched(lab, "client", cluster_ip(made), PORT)


@services.case("outside")
def affinity_can_be_switched_on_a_node_port(lab: Lab) -> None:
    """Affinity of a Service can be switched on and off by its node port."""
    *_, made = lab.apply(*map(server, SERVERS), service(type="NodePort"))
    _can_be_switched(lab, lab.outside, lab.node_ip(0), node_port(made))


def _can_be_switched(lab: Lab, source: str, ip: str, port: int) -> None:
    answers(lab, source, ip, port, SERVERS)
    lab.step("switched on")
    lab.patch("Service", "web", {"spec": affinity()})
    sticks(lab, source, ip, port)
    lab.step("switched off")
    lab.patch("Service", "web", {"spec": {"sessionAffinity": "None", "sessionAffinityConfig": None}})
    answers(lab, source, ip, port, SERVERS)
