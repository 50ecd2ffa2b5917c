"""What a link of the fabric is like: its part of a spec, read; and as Mininet's keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from ipaddress import ip_network
from typing import Any

from testbed.spec.model import BurstLoss, FlowMatch, FlowSpec, LinkSpec
from testbed.spec.params import integer, unknown
from testbed.units import describe, parse_rate, parse_share, parse_time

DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")
"""How jitter is spread: netem's own, and the tables that iproute2 brings (/usr/lib/tc/*.dist)."""
PROTOCOLS = ("icmp", "sctp", "tcp", "udp")
MAX_FLOWS = 15
"""One band of the kernel's prio each, which has 16, and one for the rest."""

SHAPING = (
    "bw",
    "delay",
    "jitter",
    "distribution",
    "loss",
    "burst_loss",
    "duplicate",
    "corrupt",
    "reorder",
    "flows",
)
"""What ``link_options`` has that slows or harms packets; all but bw is netem's."""

Parser = Callable[[Any], Any]


def _one_of(*values: str) -> Parser:
    def parse(value: Any) -> str:
        if value not in values:
            raise ValueError(f"must be one of {', '.join(values)}, not {describe(value)}")
        return str(value)

    return parse


def _range(value: Any) -> str:
    try:
        return str(ip_network(value if isinstance(value, str) else ""))
    except ValueError as error:
        raise ValueError(f"must be a range such as 10.244.0.0/16, not {describe(value)}") from error


def _mapping(value: Any, parsers: Mapping[str, Parser]) -> dict[str, Any]:
    """Each key read by its parser; what is None is absent. Raises ValueError that names the key."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {describe(value)}")
    parsed: dict[str, Any] = {}
    for key, item in value.items():
        if key not in parsers:
            raise ValueError(f"{key}: {unknown('key', str(key), parsers)}")
        if item is not None:
            try:
                parsed[FIELDS.get(str(key), str(key))] = parsers[key](item)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    return parsed


def _burst_loss(value: Any) -> BurstLoss:
    parsed = _mapping(
        value, dict.fromkeys(("enter", "leave", "lossInBurst", "lossBetweenBursts"), parse_share)
    )
    if not parsed.get("enter") or not parsed.get("leave"):
        raise ValueError("must have enter and leave, both more than 0%")
    return BurstLoss(**parsed)


def _flows(value: Any) -> tuple[FlowSpec, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_FLOWS:
        raise ValueError(f"must be a list of 1 to {MAX_FLOWS} mappings")
    return tuple(_flow(item) for item in value)


def _flow(value: Any) -> FlowSpec:
    parsed = _mapping(value, {"match": lambda match: _mapping(match, MATCH_PARSERS)} | IMPAIRMENTS)
    match = FlowMatch(**parsed.pop("match", {}))
    if match == FlowMatch():
        raise ValueError("match: must say something of the flow")
    if (match.port or match.source_port) and match.protocol not in ("sctp", "tcp", "udp"):
        raise ValueError("match: a port needs a protocol: sctp, tcp or udp")
    families = {ip_network(each).version for each in (match.source, match.destination) if each}
    if len(families) > 1:
        raise ValueError("match: from and to must be of one family")
    flow = FlowSpec(match, LinkSpec(**parsed))
    if complaint := contradiction(flow.link):
        raise ValueError(": ".join(complaint))
    return flow


FIELDS = {
    "burstLoss": "burst_loss",
    "lossInBurst": "loss_in_burst",
    "lossBetweenBursts": "loss_between_bursts",
    "from": "source",
    "to": "destination",
    "sourcePort": "source_port",
}
"""Where a key's field is not called as the key."""
MATCH_PARSERS: dict[str, Parser] = {
    "protocol": _one_of(*PROTOCOLS),
    "from": _range,
    "to": _range,
    "port": integer(1, 65535),
    "sourcePort": integer(1, 65535),
    "dscp": integer(0, 63),
}
IMPAIRMENTS: dict[str, Parser] = {
    "bandwidth": parse_rate,
    # Zero is what a link has anyway: nothing to shape, and nothing the kernel needs for it.
    "delay": lambda value: parse_time(value) or None,
    "jitter": lambda value: parse_time(value) or None,
    "distribution": _one_of(*DISTRIBUTIONS),
    "loss": lambda value: parse_share(value) or None,
    "burstLoss": _burst_loss,
    "duplicate": lambda value: parse_share(value) or None,
    "corrupt": lambda value: parse_share(value) or None,
    "reorder": lambda value: parse_share(value) or None,
}
LINK_PARSERS: dict[str, Parser] = IMPAIRMENTS | {"mtu": integer(68, 65535), "flows": _flows}


def contradiction(link: LinkSpec) -> tuple[str, str] | None:
    """The key that does not go with the others, and why."""
    if link.jitter and not link.delay:
        return "jitter", "needs a delay"
    if link.distribution and not link.jitter:
        return "distribution", "needs a jitter"
    if link.reorder and not link.delay:
        return "reorder", "needs a delay: what is reordered is sent without it"
    if link.loss and link.burst_loss:
        return "burstLoss", "excludes loss: give one of the two"
    return None


def link(value: Any) -> dict[str, object]:
    """Reads link options that stand in one value into Mininet's (see ``link_options``)."""
    parsed = LinkSpec(**_mapping(value, LINK_PARSERS))
    if complaint := contradiction(parsed):
        raise ValueError(": ".join(complaint))
    return link_options(parsed)


def link_options(link: LinkSpec) -> dict[str, object]:
    """Mininet's keyword arguments of a link, and ours in its units; what is not shaped is absent.

    bw: Mbit/s; delay, jitter: text; loss, duplicate, corrupt, reorder: percent; burst_loss: netem's p, r,
    1-h and 1-k in percent; flows: a list of such arguments, each with its ``match``.
    """
    options: dict[str, object] = {
        "bw": link.bandwidth and link.bandwidth / 1e6,
        "delay": link.delay and f"{link.delay * 1e3:.10g}ms",
        "jitter": link.jitter and f"{link.jitter * 1e3:.10g}ms",
        "distribution": link.distribution,
        "burst_loss": link.burst_loss
        and tuple(
            share * 100
            for share in (
                link.burst_loss.enter,
                link.burst_loss.leave,
                link.burst_loss.loss_in_burst,
                link.burst_loss.loss_between_bursts,
            )
        ),
        "mtu": link.mtu,
        "flows": [{"match": _said(flow.match)} | link_options(flow.link) for flow in link.flows],
    }
    for key in ("loss", "duplicate", "corrupt", "reorder"):
        share = getattr(link, key)
        options[key] = share and share * 100
    return {key: value for key, value in options.items() if value}


def _said(match: FlowMatch) -> dict[str, Any]:
    return {key: value for key, value in asdict(match).items() if value is not None}
