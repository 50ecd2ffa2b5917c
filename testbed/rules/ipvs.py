"""IPVS servers as objects and as text: ``ipvsadm --restore`` input, ``ipvsadm --save --numeric`` output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from testbed.state import RealServer, VirtualServer

VirtualKey = tuple[str, str]
RealKey = tuple[str, str, str]

OPTIONS = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}
"""How ipvsadm is told of a virtual server."""


def at(address: str, port: int) -> str:
    """``address:port``; IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def virtual_key(server: VirtualServer) -> VirtualKey:
    """The key of a virtual server in a ``NetnsState``."""
    return server.protocol, at(server.address, server.port)


def real_key(server: RealServer) -> RealKey:
    """The key of a real server in a ``NetnsState``."""
    return server.protocol, server.server, at(server.address, server.port)


def edit_input(
    virtual: Mapping[VirtualKey, VirtualServer],
    real: Mapping[RealKey, RealServer],
    held: Mapping[VirtualKey, VirtualServer],
    held_real: Mapping[RealKey, RealServer],
) -> str:
    """Input that adds these servers, or edits those among them that are there already."""
    lines = [
        *(_virtual("-E" if key in held else "-A", server) for key, server in virtual.items()),
        *(_real("-e" if key in held_real else "-a", server) for key, server in real.items()),
    ]
    return "".join(f"{line}\n" for line in lines)


def removal_input(virtual: Iterable[VirtualKey], real: Iterable[RealKey]) -> str:
    """Input that deletes these; a virtual server takes its real servers along."""
    gone = set(virtual)
    lines = [
        *(
            f"-d {OPTIONS[protocol]} {server} -r {to}"
            for protocol, server, to in real
            if (protocol, server) not in gone
        ),
        *(f"-D {OPTIONS[protocol]} {server}" for protocol, server in sorted(gone)),
    ]
    return "".join(f"{line}\n" for line in lines)


def _virtual(verb: str, server: VirtualServer) -> str:
    words = [verb, OPTIONS[server.protocol], at(server.address, server.port), "-s", server.scheduler]
    if server.persistence:
        words += ["-p", str(server.persistence)]
    if server.flags:
        words += ["-b", ",".join(server.flags)]
    return " ".join(words)


def _real(verb: str, server: RealServer) -> str:
    to = at(server.address, server.port)
    return f"{verb} {OPTIONS[server.protocol]} {server.server} -r {to} -m -w {server.weight}"


def parse_save(text: str) -> tuple[dict[VirtualKey, VirtualServer], dict[RealKey, RealServer]]:
    """The servers in the output of ``ipvsadm -S -n``. A line that is not understood is a ValueError."""
    virtual: dict[VirtualKey, VirtualServer] = {}
    real: dict[RealKey, RealServer] = {}
    for line in filter(str.strip, text.splitlines()):
        match line.split():
            case ["-A", option, server, *words]:
                address, port = _split(server)
                named = dict(_pairs(words, line))
                made = VirtualServer(
                    _protocol(option, line),  # type: ignore[arg-type]
                    address,
                    port,
                    scheduler=named["-s"],
                    persistence=int(named.get("-p", 0)),
                    flags=tuple(filter(None, named.get("-b", "").split(","))),
                )
                virtual[virtual_key(made)] = made
            case ["-a", option, server, "-r", to, "-m", "-w", weight]:
                address, port = _split(to)
                one = RealServer(_protocol(option, line), server, address, port, int(weight))  # type: ignore[arg-type]
                real[real_key(one)] = one
            case _:
                raise ValueError(f"a line of ipvsadm --save is not understood: {line}")
    return virtual, real


def parse_connections(text: str) -> dict[RealKey, int]:
    """How many connections, active or not, real servers have, of the output of ``ipvsadm -L -n``."""
    found: dict[RealKey, int] = {}
    protocol = server = ""
    for line in text.splitlines():
        match line.split():
            case ["TCP" | "UDP" | "SCTP" as protocol, server, *_]:
                continue
            case ["->", to, "Masq", _, active, inactive]:
                found[protocol, server, to] = int(active) + int(inactive)
    return found


def _protocol(option: str, line: str) -> str:
    for protocol, known in OPTIONS.items():
        if option == known:
            return protocol
    raise ValueError(f"a line of ipvsadm --save is not understood: {line}")


def _pairs(words: list[str], line: str) -> Iterator[tuple[str, str]]:
    if len(words) % 2 or {*words[::2]} - {"-s", "-p", "-b"}:
        raise ValueError(f"a line of ipvsadm --save is not understood: {line}")
    yield from zip(words[::2], words[1::2], strict=True)


def _split(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)
