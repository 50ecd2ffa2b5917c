"""What the daemon and the prober say to each other, over ``kernel.channel``.

A request is preceded by ``Namespaces`` messages with every netns it needs. The prober closes them all
when the request is done: it never keeps the netns of a deleted pod alive.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Protocol = Literal["tcp", "udp", "icmp"]
Language = Literal["tcp", "http", "udp", "sctp"]
"""How to converse: ``tcp`` and ``sctp`` connect and, with a text, send it and take what comes first; ``http``
gets the path that is the text; ``udp`` sends the text and takes the first datagram."""
VerdictName = Literal["ok", "refused", "timeout", "unreachable", "reset", "error"]


class Flow(msgspec.Struct, frozen=True, array_like=True):
    """One flow to try. source: a name of ``Namespaces``; ip: where to; port: 0 for ICMP."""

    source: str
    ip: str
    port: int = 0


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of a flow.

    reason: empty when ok, else one of the words of ``measure.verdicts``. reporter: the address that said so
    in an ICMP message; empty where it was the source's own kernel, or a TCP reset. seconds: how long the
    answer took (TCP: the kernel's own measure from SYN to SYN-ACK; ICMP and UDP: send call to the kernel's
    receive timestamp); None where nothing answered. attempts: how many were made. code: type and code of the
    ICMP message, ``3/1``."""

    verdict: VerdictName
    reason: str = ""
    reporter: str = ""
    seconds: float | None = None
    attempts: int = 1
    code: str = ""


class NeighbourTable(msgspec.Struct, frozen=True, array_like=True):
    """The host-wide neighbour table of one family: entries now, the limit, times it was full so far."""

    entries: int
    limit: int
    overflows: int


class Trip(msgspec.Struct, frozen=True, array_like=True):
    """One echo of a series.

    at: wall clock when it was sent, in ns since the epoch. rtt: ns from the send call to the kernel's
    receive timestamp (what iputils ping calls time). rtt_kernel: ns from the kernel's transmit timestamp to
    its receive timestamp. None: not answered, or no transmit timestamp. error: an ICMP error or the
    kernel's refusal, in the words of ``measure.verdicts``. ttl: of the answer, 0 if unknown.
    """

    at: int
    rtt: int | None = None
    rtt_kernel: int | None = None
    ttl: int = 0
    error: str = ""


class Series(msgspec.Struct, frozen=True, array_like=True):
    """A series of echoes to send. size: bytes after the ICMP header, as ``ping -s``."""

    source: str
    ip: str
    size: int = 56


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Whom to ask. source: a name of ``Namespaces``; source_port: 0 for one that the kernel chooses."""

    source: str
    ip: str
    port: int
    source_port: int = 0


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """What became of one conversation.

    at: wall clock when it was begun, in ns since the epoch. verdict, reason, reporter: as of an Outcome.
    answer: what was said, ``http``: the body. seconds: from the first call to the end of the answer, or to
    the failure; None where nothing came. handshake: seconds from SYN to SYN-ACK as the kernel measures
    it, in steps of 1 µs; None without TCP.
    """

    at: int
    verdict: VerdictName
    reason: str = ""
    reporter: str = ""
    answer: str = ""
    seconds: float | None = None
    handshake: float | None = None


class ProbeFlow(msgspec.Struct, frozen=True, array_like=True):
    """A flow of a probe. source, target: names of ``Namespaces``; target "": that of nobody we know."""

    source: str
    ip: str
    port: int = 0
    target: str = ""


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base: the tag is the class name."""


class Namespaces(Message, frozen=True):
    """daemon → prober: the next request's netns. fds: one per name, at most 200 a message."""

    names: tuple[str, ...]


class Reach(Message, frozen=True):
    """daemon → prober: try these flows; answered by Reached. timeout: seconds per attempt."""

    id: int
    protocol: Protocol
    flows: tuple[Flow, ...]
    timeout: float = 1.0
    attempts: int = 2


class Reached(Message, frozen=True):
    """prober → daemon: one outcome per flow, in their order. seconds: what the whole request took.

    neighbours: family → the host's neighbour table before and after.
    """

    id: int
    outcomes: tuple[Outcome, ...]
    seconds: float
    neighbours: dict[str, tuple[NeighbourTable, NeighbourTable]] = {}


class RoundTrips(Message, frozen=True):
    """daemon → prober: send ``count`` echoes on every series, interleaved; answered by Trips.

    interval: seconds between two echoes of one series; timeout: seconds to wait for the last answers.
    """

    id: int
    series: tuple[Series, ...]
    count: int
    interval: float
    timeout: float = 1.0


class Trips(Message, frozen=True):
    """prober → daemon: per series its echoes in the order sent, and what its first answer was, in words."""

    id: int
    trips: tuple[tuple[Trip, ...], ...]
    answers: tuple[str, ...] = ()


class Ask(Message, frozen=True):
    """daemon → prober: hold ``count`` conversations, the questions in turn; answered by Asked.

    rate: conversations begun a second, 0: as fast as they end. at_once: how many may be open. timeout:
    seconds each may take.
    """

    id: int
    language: Language
    questions: tuple[Question, ...]
    text: str
    count: int
    rate: float = 0.0
    at_once: int = 64
    timeout: float = 1.0


class Asked(Message, frozen=True):
    """prober → daemon: one reply per conversation, in the order they were begun."""

    id: int
    replies: tuple[Reply, ...]


class RunProbe(Message, frozen=True):
    """daemon → prober: run a probe kind over flows, in turn; answered by ProbeRan.

    options: the kind's fields. moments: when each is due, in ns after the first (an open loop); none: a
    closed loop of ``count``, ``at_once`` at a time, ``gap`` seconds between, for at most ``seconds`` (0:
    any). timeout: seconds that each may take. favoured: it may take the highest priority."""

    id: int
    kind: str
    options: dict[str, Any]
    flows: tuple[ProbeFlow, ...]
    moments: tuple[int, ...] = ()
    count: int = 0
    at_once: int = 1
    gap: float = 0.0
    seconds: float = 0.0
    timeout: float = 1.0
    favoured: bool = False


class ProbeRan(Message, frozen=True):
    """prober → daemon: columns of a ``book.Book``, an entry per probe; ns of CLOCK_MONOTONIC, 0: none.

    outcome: index into words (verdict, reason, reporter, ICMP type/code, answer). offset: ns to add for
    CLOCK_REALTIME. favoured: whether the prober had the highest priority. stepped: by how many ns it changed
    meanwhile. rows: of a kind that runs a program."""

    id: int
    columns: dict[str, list[int]]
    words: tuple[tuple[str, str, str, str, str], ...] = ()
    offset: int = 0
    stepped: int = 0
    favoured: bool = False
    rows: tuple[dict[str, Any], ...] = ()


class Trace(Message, frozen=True):
    """daemon → prober: follow packets of one flow through every interface; answered by Traced.

    watched: the netns to capture in; ends: those of pods and hosts that may answer. protocol: icmp, udp or
    tcp; count: packets, ``interval`` seconds apart; size: bytes of payload.
    """

    id: int
    flow: ProbeFlow
    watched: tuple[str, ...]
    ends: tuple[str, ...]
    protocol: Protocol = "icmp"
    count: int = 10
    interval: float = 0.01
    size: int = 56
    timeout: float = 1.0


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A packet at an interface. at: ns of CLOCK_MONOTONIC; headers: what a reader compares, by name."""

    netns: str
    interface: str
    way: Literal["in", "out"]
    at: int
    headers: dict[str, str] = {}


class Journey(msgspec.Struct, frozen=True, array_like=True):
    """One packet and its answer. sent, received: ns of CLOCK_MONOTONIC by the sender's own socket, 0: none.

    turn: how many of ``seen`` belong to the way there; all of them where nothing answered.
    """

    number: int
    sent: int
    received: int
    turn: int
    seen: tuple[Seen, ...]


class Traced(Message, frozen=True):
    """prober → daemon: the journeys, in order; lost: packets that the captures had no room for."""

    id: int
    journeys: tuple[Journey, ...]
    offset: int = 0
    lost: int = 0


class ProbeFailed(Message, frozen=True):
    """prober → daemon: the request ``id`` could not be carried out."""

    id: int
    message: str


ToProber = Namespaces | Reach | RoundTrips | Ask | RunProbe | Trace
FromProber = Reached | Trips | Asked | ProbeRan | Traced | ProbeFailed
