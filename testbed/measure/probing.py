"""Probe requests: what a request asks for, as messages to a prober; what it said, as columns. Pure but for
``which``.

``POST /apis/testbed/v1/probe`` answers ``{"flows": […], "columns": {…}, "words": […], "schedule": …}``: the
ends of each flow; per probe its flow, times in seconds of CLOCK_MONOTONIC (``due``, ``begun``, ``sent``,
``received``; null: none), ``seconds``, ``copies``, ``order`` and ``outcome``, the number of its words
(verdict, reason, reporter, ICMP type/code, answer); ``offset``: seconds to add for the wall clock."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from testbed.errors import InputError, Lack, MissingCapability
from testbed.measure.floor import FLOOR, FLOOR_PATH
from testbed.measure.messages import Journey, ProbeFlow, ProbeRan, RunProbe, Seen, Trace, Traced
from testbed.measure.messages import Protocol as Transport
from testbed.measure.paths import Endpoint
from testbed.measure.probes import Kind, Program, probes
from testbed.measure.schedule import Arrivals, arrivals, digest
from testbed.measure.targets import End, Family, Known, Where, destinations, flows, sources
from testbed.objects.selectors import parse_labels

MOST: Final = 1_000_000
"""Probes of one request."""


class ProbeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """Which kind, from whom to whom, and when.

    rate: probes a second over all flows, which are used in turn: an open loop; 0: a closed loop, ``at_once``
    at a time with ``gap`` seconds between. burst: so many at one moment, as rarely as the rate still holds.
    count, or seconds: how many, how long. arrivals, seed: see ``schedule.arrivals``. timeout: seconds until
    a probe counts as lost. options: fields of the kind. floor: probe a bare veth pair instead, made for
    this: what the machine itself adds."""

    kind: str
    source: End
    to: End
    options: dict[str, Any] = {}
    rate: Annotated[float, msgspec.Meta(ge=0, le=200_000)] = 0.0
    count: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    arrivals: Arrivals = "constant"
    seed: int = 0
    at_once: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 1
    gap: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0
    family: Family | None = None
    floor: bool = False

    def moments(self) -> tuple[int, ...]:
        """The schedule of an open loop; () of a closed one. Raises InputError."""
        if not self.rate:
            return ()
        count = self.count or round(self.rate * self.seconds)
        if not 0 < count <= MOST:
            raise InputError(
                f"a probe needs a count, or a rate and seconds; from 1 to {MOST:,} probes, not {count:,}"
            )
        return arrivals(count, self.rate, burst=self.burst, process=self.arrivals, seed=self.seed)


def kind_of(name: str, options: dict[str, Any]) -> Kind:
    """The kind with its options. Raises InputError; MissingCapability where a program is not there."""
    wanted = probes.get(name)
    try:
        kind = msgspec.convert(options, wanted)
    except msgspec.ValidationError as error:
        raise InputError(f"probe {name}: {error}") from error
    if lacking := [program for program in wanted.needs if shutil.which(program) is None]:
        raise MissingCapability(
            [Lack(program, f"the probe {name} runs it", f"apt-get install {program}") for program in lacking]
        )
    return kind


@dataclass(frozen=True)
class Planned:
    """A request with everything filled in."""

    request: ProbeRequest
    kind: Kind
    flows: Sequence[tuple[Endpoint, Where]]
    moments: tuple[int, ...]

    @property
    def keys(self) -> list[str]:
        """Whose netns it takes."""
        if self.request.floor:
            return []
        return [
            key
            for source, to in self.flows
            for key in (source.key, to.key if self.kind.reaches else "")
            if key
        ]

    def message(self, number: int, *, favoured: bool) -> RunProbe:
        """What the prober is told. favoured: whether it may take the highest priority."""
        asked = self.request
        return RunProbe(
            number,
            asked.kind,
            asked.options,
            tuple(
                ProbeFlow(source.key, to.ip, to.port, to.key if self.kind.reaches else "")
                for source, to in self.flows
            ),
            self.moments,
            asked.count or (MOST // 10 if asked.seconds else 1),
            asked.at_once,
            asked.gap,
            asked.seconds,
            asked.timeout,
            favoured,
        )

    def answer(self, ran: ProbeRan) -> dict[str, Any]:
        """What is told of it."""
        ends = [_ends(source, to) for source, to in self.flows]
        if isinstance(self.kind, Program):
            return {"flows": ends, "rows": list(ran.rows)}
        columns: dict[str, list[Any]] = {
            name: [value / 1e9 if value else None for value in ran.columns[name]]
            for name in ("due", "begun", "sent", "received")
        }
        columns["seconds"], columns["seconds_kernel"] = seconds_of(ran.columns)
        for name in ("flow", "copies", "order", "outcome"):
            columns[name] = ran.columns[name]
        return {
            "flows": ends,
            "columns": columns,
            "words": [list(words) for words in ran.words],
            "offset": ran.offset / 1e9,
            "stepped": ran.stepped / 1e9,
            "schedule": digest(self.moments),
            "favoured": ran.favoured,
        }


def seconds_of(columns: dict[str, list[int]]) -> tuple[list[float | None], list[float | None]]:
    """How long each answer took: from the send call to the kernel's receive stamp; and by the kernel alone,
    from its transmit stamp on, or as it measures a handshake."""
    whole: list[float | None] = []
    kernel: list[float | None] = []
    for took, received, sent, begun in zip(
        columns["took"], columns["received"], columns["sent"], columns["begun"], strict=True
    ):
        whole.append((received - begun) / 1e9 if received else None)
        kernel.append(took / 1e9 if took else (received - sent) / 1e9 if received and sent else None)
    return whole, kernel


def plan(wanted: ProbeRequest, known: Known) -> Planned:
    """Resolve a request. Raises InputError, MissingCapability."""
    kind = kind_of(wanted.kind, wanted.options)
    if not wanted.rate and not wanted.count and not wanted.seconds:
        raise InputError("a probe needs a count, seconds, or a rate and one of them")
    if wanted.floor:
        return Planned(wanted, kind, [(FLOOR_SOURCE, FLOOR_TARGET)], wanted.moments())
    froms = sources(wanted.source, known)
    tos = destinations(wanted.to, known, kind.ports, kind.port, wanted.family)
    by_key = {one.key: one for one in (*known.endpoints, *known.nodes)}
    found = flows(froms, tos, by_key)
    if kind.reaches and any(not to.key for _, to in found):
        raise InputError(f"to: a probe {wanted.kind} goes to a pod, a node or a host, not to a {wanted.to}")
    return Planned(wanted, kind, found, wanted.moments())


FLOOR_SOURCE: Final = Endpoint(key=FLOOR, namespace="", name="bare veth", node="", ips=("192.0.2.1",))
FLOOR_TARGET: Final = Where("its peer", "", "", "192.0.2.2", 0, "", FLOOR_PATH)


def _ends(source: Endpoint, to: Where) -> dict[str, Any]:
    return {
        "source": source.name,
        "source_namespace": source.namespace,
        "source_node": source.node,
        "destination": to.name,
        "destination_namespace": to.namespace,
        "destination_node": to.node,
        "ip": to.ip,
        "port": to.port,
        "path": to.path,
    }


# --- the way of a packet ------------------------------------------------------------------------------------


class PathRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """Follow ``count`` packets from one end to another, ``interval`` seconds apart. size: bytes of
    payload."""

    source: End
    to: End
    protocol: Transport = "icmp"
    count: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    interval: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.02
    size: Annotated[int, msgspec.Meta(ge=24, le=65000)] = 56
    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0
    family: Family | None = None


@dataclass(frozen=True)
class Followed:
    """A path request with everything filled in. names: netns key → how it is called."""

    request: PathRequest
    source: Endpoint
    to: Where
    keys: list[str]
    ends: tuple[str, ...]
    names: dict[str, str]

    def message(self, number: int) -> Trace:
        """What the prober is told."""
        asked = self.request
        flow = ProbeFlow(self.source.key, self.to.ip, self.to.port)
        watched = tuple(self.keys)
        return Trace(
            number,
            flow,
            watched,
            self.ends,
            asked.protocol,
            asked.count,
            asked.interval,
            asked.size,
            asked.timeout,
        )

    def answer(self, traced: Traced) -> dict[str, Any]:
        """Ends, and per packet its hops, there and back."""
        return {
            **_ends(self.source, self.to),
            "protocol": self.request.protocol,
            "lost": traced.lost,
            "journeys": [self._journey(one, traced.offset) for one in traced.journeys],
        }

    def _journey(self, one: Journey, offset: int) -> dict[str, Any]:
        both = one.received and one.sent
        return {
            "number": one.number,
            "at": (one.sent + offset) / 1e9,
            "round_trip": (one.received - one.sent) / 1e9 if both else None,
            "hops": list(self._hops(one)),
        }

    def _hops(self, one: Journey) -> list[dict[str, Any]]:
        hops = []
        before: Seen | None = None
        for place, seen in enumerate(one.seen):
            leg: Literal["there", "back"] = "there" if place < one.turn else "back"
            hops.append(
                {
                    "leg": leg,
                    "where": self.names[seen.netns],
                    "interface": seen.interface,
                    "way": seen.way,
                    "at": seen.at / 1e9,
                    "seconds": (seen.at - before.at) / 1e9 if before is not None else 0.0,
                    "headers": seen.headers,
                    # Back it begins anew: what answers is another packet.
                    "rewritten": rewritten(before, seen) if before is not None and place != one.turn else {},
                }
            )
            before = seen
        return hops


def rewritten(before: Seen, seen: Seen) -> dict[str, list[str]]:
    """Header → [what it was, what it is now], of all that differs; "" where a header is not there."""
    names = dict.fromkeys((*before.headers, *seen.headers))
    return {
        name: [before.headers.get(name, ""), seen.headers.get(name, "")]
        for name in names
        if before.headers.get(name, "") != seen.headers.get(name, "")
    }


def plan_path(wanted: PathRequest, known: Known, between: Sequence[str]) -> Followed:
    """Resolve a path request: watched are the source, all nodes, the fabric between, and who may answer."""
    ports = "" if wanted.protocol == "icmp" else wanted.protocol
    source = sources(wanted.source, known)[0]
    tos = destinations(wanted.to, known, ports, 0, wanted.family)
    to = next((to for to in tos if to.key != source.key), tos[0])
    by_key = {one.key: one for one in (*known.endpoints, *known.nodes)}
    target = by_key.get(to.key)
    if target is not None:
        ends = [target]
        to = flows([source], [to], by_key)[0][1] if target.key != source.key else to
    elif wanted.to.how in ("service", "node_port"):
        name = wanted.to.service or wanted.to.node_port or ""
        ends = _behind(known.service(wanted.to.namespace, name), wanted.to.namespace, known)
    else:
        ends = [one for one in known.endpoints if to.ip in one.ips]
    names = {key: "switches" if place == 0 else key.partition(":")[2] for place, key in enumerate(between)}
    names |= {one.key: _called(one) for one in (source, *ends, *known.nodes)}
    return Followed(wanted, source, to, list(names), tuple(one.key for one in ends), names)


def _behind(service: Any, namespace: str, known: Known) -> list[Endpoint]:
    selector = (service.get("spec") or {}).get("selector") or {}
    chosen = parse_labels(",".join(f"{key}={value}" for key, value in selector.items()))
    return [
        one
        for one in known.endpoints
        if selector and not one.is_host and one.namespace == namespace and chosen(one.labels) and not one.gone
    ]


def _called(one: Endpoint) -> str:
    return (
        f"pod {one.name}"
        if one.namespace
        else f"node {one.name}"
        if one.key.startswith("node:")
        else one.name
    )
