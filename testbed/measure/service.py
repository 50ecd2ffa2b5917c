"""The daemon's side of measuring: requests as JSON in, rows out; it keeps one prober and asks it.

``POST /apis/testbed/v1/reachability``: fields of ``ReachRequest``; answers ``{"rows": […], "skipped": […],
"seconds": s}`` with a row as ``records.ReachRow``.
``POST /apis/testbed/v1/roundtrips``: fields of ``RoundTripsRequest``; answers ``{"series": […]}``, each with
its ends, ``path``, ``samples`` (columns) and ``answer``, what the first reply was.
``POST /apis/testbed/v1/conversations``: fields of ``AskRequest``; answers ``{"replies": …}``, the columns of
``measure.messages.Reply`` and ``question``, the number of what was asked; a reply per conversation, in order.
``POST /apis/testbed/v1/probe``: fields of ``probing.ProbeRequest``; ``POST /apis/testbed/v1/path``: those of
``probing.PathRequest``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec

from testbed.errors import InputError, Lack, MissingCapability, TestbedError
from testbed.kernel.channel import MAX_FDS, AsyncChannel, ChannelClosed
from testbed.measure import messages
from testbed.measure.messages import (
    Ask,
    Asked,
    Flow,
    FromProber,
    NeighbourTable,
    Outcome,
    ProbeFailed,
    ProbeRan,
    Question,
    Reach,
    Reached,
    Reply,
    RoundTrips,
    RunProbe,
    Series,
    Trace,
    Traced,
    Trip,
    Trips,
)
from testbed.measure.paths import Endpoint, Path, choose_pairs, path_of, rotate
from testbed.measure.probing import PathRequest, ProbeRequest, plan, plan_path
from testbed.measure.targets import Known
from testbed.objects.selectors import parse_labels
from testbed.records import LOOPBACK

_FLOWS_A_REQUEST: Final = 20_000
_MOST_PROBERS: Final = 12
"""How many sets of conversations may go on at a time; a further one waits."""
T = TypeVar("T")


class Sources(Protocol):
    """What measuring needs of the cluster."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Every pod that has its netns and addresses, and the hosts outside the cluster."""
        ...

    def nodes(self) -> Sequence[Endpoint]:
        """The nodes themselves, with keys ``node:NAME``."""
        ...

    async def netns(self, keys: Sequence[str]) -> list[int]:
        """A netns descriptor per endpoint key; they belong to the caller. Raises TestbedError."""
        ...

    async def spawn_prober(self) -> socket.socket:
        """Start a prober (``measure.prober:main``); our end of its channel."""
        ...

    def service(self, namespace: str, name: str) -> Mapping[str, Any]:
        """A Service. Raises InputError where there is none."""
        ...

    def fabric(self) -> Sequence[str]:
        """Keys of the fabric's netns that are between nodes: a switch (they share one), routers."""
        ...


Seconds = Annotated[float, msgspec.Meta(gt=0, le=60)]
PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class ReachRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which flows to try: every pod of the selection to every other one.

    port: None asks each destination on the first port it declares for the protocol; pods without one are
    skipped, and named. namespace "": all. hosts: the hosts outside the cluster take part too. family: by
    default each pod's primary address. timeout: seconds per attempt.
    """

    protocol: messages.Protocol = "tcp"
    port: PortNumber | None = None
    namespace: str = ""
    selector: str = ""
    hosts: bool = False
    family: Annotated[str, msgspec.Meta(pattern="^ipv[46]$")] | None = None
    timeout: Seconds = 1.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=5)] = 2


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two ends by name: ``namespace/pod``, ``pod`` (namespace default) or ``host:NAME``."""

    source: str
    destination: str


class RoundTripsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which series to run: the pairs given, or else ``per_path`` pairs for each of ``paths``.

    interval: seconds between two echoes of a series; size: payload bytes; noise_floor: a series over
    loopback runs beside them.
    """

    pairs: tuple[Pair, ...] = ()
    paths: tuple[Path, ...] = ("same-node", "cross-node", "outside")
    per_path: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200
    interval: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.01
    size: Annotated[int, msgspec.Meta(ge=0, le=65000)] = 56
    timeout: Seconds = 1.0
    family: Annotated[str, msgspec.Meta(pattern="^ipv[46]$")] | None = None
    noise_floor: bool = True


class Asker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who asks whom. source: ``namespace/pod``, ``pod``, ``host:NAME`` or ``node:NAME``."""

    source: str
    ip: str
    port: PortNumber
    source_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class AskRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Conversations to hold, as of ``messages.Ask``. count 0: each question once."""

    questions: Annotated[tuple[Asker, ...], msgspec.Meta(min_length=1)]
    language: messages.Language = "http"
    text: str = "/hostname"
    count: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    rate: Annotated[float, msgspec.Meta(ge=0, le=100_000)] = 0.0
    at_once: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 64
    timeout: Seconds = 1.0


class Measurements:
    """Serves the requests; reachability and round trips one at a time: neither disturbs the other.

    Sets of conversations go on beside them, each by a prober of its own: they are loads and checks.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._channel: AsyncChannel[FromProber] | None = None
        self._busy = asyncio.Lock()
        self._idle: list[AsyncChannel[FromProber]] = []
        self._room = asyncio.Semaphore(_MOST_PROBERS)
        self._favoured = False

    async def reach(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reachability now. Raises InputError, MissingCapability (neighbour table full), TestbedError."""
        wanted = _decode(request, ReachRequest)
        async with self._busy:
            pairs, ports, skipped = select_flows(self._sources.endpoints(), wanted)
            rows: list[dict[str, Any]] = []
            seconds = 0.0
            for chunk in _chunks(pairs, _FLOWS_A_REQUEST):
                flows = tuple(
                    Flow(source.key, target.ip(wanted.family) or "", ports.get(target.key, 0))
                    for source, target in chunk
                )
                channel = await self._prober()
                await self._prepare(channel, (flow.source for flow in flows))
                ask = Reach(channel.new_id(), wanted.protocol, flows, wanted.timeout, wanted.attempts)
                answer = await self._request(channel, ask, Reached)
                refuse_false_failures(answer)
                seconds += answer.seconds
                rows += [
                    _row(wanted.protocol, source, target, flow, outcome)
                    for (source, target), flow, outcome in zip(chunk, flows, answer.outcomes, strict=True)
                ]
        return {"rows": rows, "skipped": skipped, "seconds": seconds}

    async def rtt(self, request: dict[str, Any]) -> dict[str, Any]:
        """Round-trip times now. Raises InputError, TestbedError."""
        wanted = _decode(request, RoundTripsRequest)
        async with self._busy:
            endpoints = self._sources.endpoints()
            pairs = named_pairs(endpoints, wanted.pairs) or choose_pairs(
                endpoints, wanted.paths, wanted.per_path
            )
            if not pairs:
                raise InputError("no pair of pods to measure between")
            plan = [_planned(source, target, wanted) for source, target in pairs]
            if wanted.noise_floor:
                plan.append(_noise_floor(pairs[0][0], wanted))
            series = tuple(Series(source.key, about["ip"], wanted.size) for source, about in plan)
            channel = await self._prober()
            await self._prepare(channel, (one.source for one in series))
            ask = RoundTrips(channel.new_id(), series, wanted.count, wanted.interval, wanted.timeout)
            answer = await self._request(channel, ask, Trips)
        return {
            "series": [
                {**about, "answer": words, "samples": _columns(trips)}
                for (_, about), trips, words in zip(plan, answer.trips, answer.answers, strict=True)
            ]
        }

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Conversations now, beside whatever else is measured. Raises InputError, TestbedError."""
        wanted = _decode(request, AskRequest)
        questions = asked(wanted.questions, [*self._sources.endpoints(), *self._sources.nodes()])
        count = wanted.count or len(questions)
        async with self._own_prober() as channel:
            await self._prepare(channel, (question.source for question in questions))
            ask = Ask(
                channel.new_id(),
                wanted.language,
                questions,
                wanted.text,
                count,
                wanted.rate,
                wanted.at_once,
                wanted.timeout,
            )
            answer = await self._request(channel, ask, Asked)
        columns: dict[str, list[Any]] = {
            name: [getattr(reply, name) for reply in answer.replies] for name in Reply.__struct_fields__
        }
        columns["at"] = [at / 1e9 for at in columns["at"]]
        columns["question"] = [number % len(questions) for number in range(count)]
        return {"replies": columns}

    async def probe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a probe kind, beside whatever else is measured. Raises InputError, MissingCapability,
        TestbedError."""
        wanted = _decode(request, ProbeRequest)
        planned = plan(wanted, self._known())
        async with self._own_prober() as channel:
            await self._prepare(channel, planned.keys)
            first, self._favoured = not self._favoured, True
            try:
                message = planned.message(channel.new_id(), favoured=first)
                answer = await self._request(channel, message, ProbeRan)
            finally:
                self._favoured = self._favoured and not first
        return planned.answer(answer)

    async def path(self, request: dict[str, Any]) -> dict[str, Any]:
        """Follow packets of a flow through every interface. Raises InputError, TestbedError."""
        wanted = _decode(request, PathRequest)
        traced = plan_path(wanted, self._known(), self._sources.fabric())
        async with self._own_prober() as channel:
            await self._prepare(channel, traced.keys)
            answer = await self._request(channel, traced.message(channel.new_id()), Traced)
        return traced.answer(answer)

    def _known(self) -> Known:
        return Known(self._sources.endpoints(), self._sources.nodes(), self._sources.service)

    async def _prober(self) -> AsyncChannel[FromProber]:
        """The prober of the measurements that are made one at a time."""
        if self._channel is None or self._channel.closed:
            self._channel = AsyncChannel(await self._sources.spawn_prober(), FromProber)
        return self._channel

    @contextlib.asynccontextmanager
    async def _own_prober(self) -> AsyncIterator[AsyncChannel[FromProber]]:
        """A prober that nobody else uses meanwhile; it is kept for the next who asks."""
        async with self._room:
            idle = [channel for channel in self._idle if not channel.closed]
            channel = idle.pop() if idle else AsyncChannel(await self._sources.spawn_prober(), FromProber)
            self._idle = idle
            try:
                yield channel
            except BaseException:
                channel.close()  # it may be in the middle of something
                raise
            self._idle.append(channel)

    async def _prepare(self, channel: AsyncChannel[FromProber], keys: Iterable[str]) -> None:
        """Give a prober the netns of these endpoints for its next request."""
        names = list(dict.fromkeys(keys))
        for batch in _chunks(names, MAX_FDS):
            fds = await self._sources.netns(batch)
            try:
                channel.send(messages.Namespaces(tuple(batch)), fds)
            except ChannelClosed as error:
                raise TestbedError("the prober ended") from error
            finally:
                for fd in fds:
                    os.close(fd)

    async def _request(
        self,
        channel: AsyncChannel[FromProber],
        ask: Reach | RoundTrips | Ask | RunProbe | Trace,
        kind: type[T],
    ) -> T:
        try:
            answer, _ = await channel.request(ask)
        except ChannelClosed as error:
            raise TestbedError("the prober ended while measuring") from error
        if isinstance(answer, ProbeFailed):
            raise TestbedError(f"measuring failed: {answer.message}")
        if not isinstance(answer, kind):
            raise TestbedError(f"the prober answered with {type(answer).__name__}")
        return answer


def select_flows(
    endpoints: Sequence[Endpoint], wanted: ReachRequest
) -> tuple[list[tuple[Endpoint, Endpoint]], dict[str, int], list[dict[str, str]]]:
    """The pairs to try, the port of each destination by its key, and who is skipped and why. Pure."""
    selected = parse_labels(wanted.selector)
    chosen = [
        endpoint
        for endpoint in endpoints
        if (wanted.hosts if endpoint.is_host else wanted.namespace in ("", endpoint.namespace))
        and (endpoint.is_host or selected(endpoint.labels))
    ]
    why_not = {
        e.key: e.gone or ("" if e.ip(wanted.family) else f"has no {wanted.family} address") for e in chosen
    }
    ends = [endpoint for endpoint in chosen if not why_not[endpoint.key]]
    skipped = [
        {"namespace": e.namespace, "name": e.name, "why": why_not[e.key]} for e in chosen if why_not[e.key]
    ]
    ports: dict[str, int] = {}
    if wanted.protocol != "icmp":
        for endpoint in ends:
            port = wanted.port or endpoint.port(wanted.protocol)
            if port is None:
                why = f"declares no {wanted.protocol.upper()} port"
                skipped.append({"namespace": endpoint.namespace, "name": endpoint.name, "why": why})
            else:
                ports[endpoint.key] = port
    targets = [end for end in ends if wanted.protocol == "icmp" or end.key in ports]
    return rotate(ends, targets), ports, skipped


def named_pairs(endpoints: Sequence[Endpoint], pairs: Sequence[Pair]) -> list[tuple[Endpoint, Endpoint]]:
    """Endpoints by the names of a request. Raises InputError that names every unknown one."""
    found = _named(endpoints, [name for pair in pairs for name in (pair.source, pair.destination)])
    return [(found[pair.source], found[pair.destination]) for pair in pairs]


def asked(askers: Sequence[Asker], endpoints: Sequence[Endpoint]) -> tuple[Question, ...]:
    """Questions with the keys of those who ask. Raises InputError that names every unknown one."""
    found = _named(endpoints, [asker.source for asker in askers])
    return tuple(
        Question(found[asker.source].key, _address(asker.ip), asker.port, asker.source_port)
        for asker in askers
    )


def _named(endpoints: Sequence[Endpoint], names: Sequence[str]) -> dict[str, Endpoint]:
    known = {_name_of(endpoint): endpoint for endpoint in endpoints}
    found = {
        name: known.get(name if "/" in name or ":" in name else f"default/{name}")
        for name in dict.fromkeys(names)
    }
    if unknown := [name for name, endpoint in found.items() if endpoint is None]:
        raise InputError(f"no such pod or outside host: {', '.join(unknown)}")
    return {name: endpoint for name, endpoint in found.items() if endpoint is not None}


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError as error:
        raise InputError(f"not an IP address: {text!r}") from error


def refuse_false_failures(answer: Reached) -> None:
    """Raise MissingCapability where the host's neighbour table was full while flows failed."""
    silent = sum(outcome.verdict in ("timeout", "unreachable") for outcome in answer.outcomes)
    for family, (before, after) in answer.neighbours.items():
        if silent and after.overflows > before.overflows:
            raise MissingCapability([_lack(family, before, after, silent)])


def _lack(family: str, before: NeighbourTable, after: NeighbourTable, silent: int) -> Lack:
    return Lack(
        "neighbour table entries",
        f"the host's {family} neighbour table, one for all its namespaces, was full "
        f"{after.overflows - before.overflows} times while probing (limit {after.limit}), so that {silent} "
        "failures may be false; pods of one node that all talk to each other need one entry per pair",
        f"raise net.{family}.neigh.default.gc_thresh3 (`make setup` does) or select fewer pods",
    )


def _decode(request: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(request, kind)
    except msgspec.ValidationError as error:
        raise InputError(str(error)) from error


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _name_of(endpoint: Endpoint) -> str:
    return endpoint.key if ":" in endpoint.key else f"{endpoint.namespace}/{endpoint.name}"


def _ends(source: Endpoint, target: Endpoint) -> dict[str, Any]:
    return {
        "source": source.name,
        "source_namespace": source.namespace,
        "source_node": source.node,
        "destination": target.name,
        "destination_namespace": target.namespace,
        "destination_node": target.node,
    }


def _row(protocol: str, source: Endpoint, target: Endpoint, flow: Flow, outcome: Outcome) -> dict[str, Any]:
    return {
        **_ends(source, target),
        "ip": flow.ip,
        "protocol": protocol,
        "port": flow.port,
        "path": path_of(source, target),
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "reporter": outcome.reporter,
        "seconds": outcome.seconds,
        "attempts": outcome.attempts,
        "code": outcome.code,
    }


def _planned(
    source: Endpoint, target: Endpoint, wanted: RoundTripsRequest
) -> tuple[Endpoint, dict[str, Any]]:
    ip = target.ip(wanted.family)
    if ip is None:
        raise InputError(f"{_name_of(target)} has no {wanted.family} address")
    return source, {**_ends(source, target), "ip": ip, "path": path_of(source, target)}


def _noise_floor(source: Endpoint, wanted: RoundTripsRequest) -> tuple[Endpoint, dict[str, Any]]:
    """A series over the loopback of one source: what the machine and this process add to any figure."""
    ip = "::1" if wanted.family == "ipv6" else "127.0.0.1"
    return source, {**_ends(source, source), "ip": ip, "path": LOOPBACK}


def _columns(trips: Sequence[Trip]) -> dict[str, list[Any]]:
    """Samples as columns; times in seconds, ``at`` since the epoch."""
    return {
        "sequence": list(range(1, len(trips) + 1)),
        "at": [trip.at / 1e9 for trip in trips],
        "rtt": [None if trip.rtt is None else trip.rtt / 1e9 for trip in trips],
        "rtt_kernel": [None if trip.rtt_kernel is None else trip.rtt_kernel / 1e9 for trip in trips],
        "ttl": [trip.ttl for trip in trips],
        "error": [trip.error for trip in trips],
    }
