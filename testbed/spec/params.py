"""The parameters of a topology builder: which there are, and how each is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from testbed.errors import InputError, Problem
from testbed.units import describe, parse_integer

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

LINK_CIDRS = ("100.64.0.0/16", "fd00:100:64::/64")
"""Where links between routers have their addresses: carrier-grade NAT space (RFC 6598), in nobody's way."""


@dataclass(frozen=True)
class Param:
    """One parameter. parse: reads a value of the spec or of ``mn``'s command line, or raises ValueError;
    default: as it would stand in the spec, None where the builder works it out; file: text that does not
    begin with ``{`` is the path of a file whose text is meant, or (paths) each item is a path; both are
    relative to the spec."""

    parse: Callable[[Any], Any]
    default: Any = None
    file: Literal["", "text", "paths"] = ""


def problems(parameters: Mapping[str, Param] | None, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of every parameter that is unknown or cannot be read."""
    found: list[tuple[str, str]] = []
    if parameters is None:
        return found
    for key, value in given.items():
        if key not in parameters:
            found.append((key, unknown("parameter", key, parameters)))
            continue
        if value is None:
            continue
        try:
            parameters[key].parse(value)
        except ValueError as error:
            found.append((key, str(error)))
    return found


def read(parameters: Mapping[str, Param] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter parsed, defaults filled in (None: they are a stranger's). Raises InputError."""
    if parameters is None:
        return dict(given)
    found = problems(parameters, given)
    if found:
        raise InputError([Problem(message, path=f"params.{key}") for key, message in found])
    values = {key: param.default for key, param in parameters.items()}
    values |= {key: value for key, value in given.items() if value is not None}
    return {key: None if value is None else parameters[key].parse(value) for key, value in values.items()}


def unknown(kind: str, key: str, known: Mapping[str, Any] | list[str]) -> str:
    """The message for a name that does not exist, with the one that was probably meant."""
    close = difflib.get_close_matches(key, list(known), n=1)
    if close:
        return f"unknown {kind}; did you mean {close[0]}?"
    return f"unknown {kind}; known are {', '.join(sorted(known))}" if known else f"unknown {kind}"


def integer(minimum: int, maximum: int) -> Callable[[Any], int]:
    """Reads an integer within bounds."""
    return lambda value: parse_integer(value, minimum, maximum)


def name(value: Any) -> str:
    """Reads a DNS label."""
    if not isinstance(value, str) or len(value) > 63 or not DNS_LABEL.fullmatch(value):
        raise ValueError(f"must be a DNS label (a-z, 0-9, -), not {describe(value)}")
    return value


def addresses(value: Any) -> tuple[str, ...]:
    """Reads one address or a list of one per family, as text."""
    return tuple(_read(ip_address, "an IP address", item) for item in _listed(value))


def networks(value: Any) -> tuple[str, ...]:
    """Reads one range or a list of one per family, as text."""
    return tuple(_read(ip_network, "a range such as 100.64.0.0/16", item) for item in _listed(value))


def prefix_lengths(value: Any) -> tuple[int, ...]:
    """Reads one prefix length, or a list of one per family."""
    return tuple(parse_integer(item, 1, 127) for item in _listed(value))


def _listed(value: Any) -> list[Any]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not 1 <= len(items) <= 2:
        raise ValueError("must be one value, or a list of one per family")
    return items


def _read(parse: Callable[[str], Any], what: str, item: Any) -> str:
    try:
        if not isinstance(item, str):
            raise ValueError("not text")
        return str(parse(item))
    except ValueError as error:
        raise ValueError(f"must be {what}, not {describe(item)}") from error
