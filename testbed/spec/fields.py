"""Reading a document field by field: every problem is noted with its place, and reading goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from testbed.documents import Document, FieldPath, format_path, read_documents
from testbed.errors import InputError, Problem
from testbed.spec.model import IPAddress, IPNetwork
from testbed.spec.params import DNS_LABEL, unknown
from testbed.units import describe, parse_integer

T = TypeVar("T")

_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_INDEX = re.compile(r"\[([0-9]{1,4})\]")


@dataclass
class Source:
    """A document under reading: what is wrong with it so far.

    overridden: path → the ``--set`` argument that put it there; misread: paths whose value is unusable
    (an unknown key is a problem, but not one that keeps the rest from being understood).
    """

    document: Document
    overridden: dict[FieldPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    misread: set[FieldPath] = field(default_factory=set)

    def note(self, path: FieldPath, message: str) -> None:
        """Note a problem at ``path``, which stands in the file or in an override."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                where = f"--set {self.overridden[path[:length]]}"
                self.problems.append(Problem(message, where, 0, format_path(path)))
                return
        self.problems.append(self.document.problem(path, message))

    def misreads(self, path: FieldPath, message: str) -> None:
        """Note a value that cannot be used."""
        self.misread.add(path)
        self.note(path, message)

    def understood(self, *paths: FieldPath) -> bool:
        """Whether everything below these paths could be read."""
        return not any(bad[: len(path)] == path for bad in self.misread for path in paths)


class Fields:
    """One mapping. Each method asks for a key; ``finish`` notes the keys nobody asked for."""

    def __init__(self, source: Source, data: Any, path: FieldPath) -> None:
        self.source, self.path = source, path
        self._known: list[str] = []
        self._data: dict[str, Any] = {}
        if isinstance(data, dict):
            self._data = data
        elif data is not None:
            source.misreads(path, f"must be a mapping, not {describe(data)}")

    def having(self, other: Mapping[str, Any]) -> Fields:
        """The same mapping, with other values of some keys."""
        return Fields(self.source, {**self._data, **other}, self.path)

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self._data.get(key) is not None

    def raw(self, key: str) -> Any:
        """The value as it stands, None where there is none."""
        self._known.append(key)
        return self._data.get(key)

    def get(self, key: str, default: T, parse: Callable[[Any], T]) -> T:
        """The parsed value; the default where there is none or it cannot be parsed."""
        value = self.raw(key)
        return default if value is None else self._parse((*self.path, key), value, default, parse)

    def section(self, key: str) -> Fields:
        """The mapping at ``key``, empty where there is none."""
        return Fields(self.source, self.raw(key), (*self.path, key))

    def each(self, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """The items of a list, or one value that stands for a list of one; those that can be parsed."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            found = self._parse((*self.path, key), value, None, parse)
            return () if found is None else (found,)
        parsed = [self._parse((*self.path, key, i), item, None, parse) for i, item in enumerate(value)]
        return tuple(item for item in parsed if item is not None)

    def list(self, key: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
        """The items of a list, and nothing but a list."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, list):
            self._known.append(key)
            self.source.misreads((*self.path, key), f"must be a list, not {describe(value)}")
            return ()
        return self.each(key, parse)

    def sections(self, key: str) -> Iterator[Fields]:
        """The mappings of a list."""
        for index, item in enumerate(self.list(key, lambda value: (value,))):
            path = (*self.path, key, index)
            if isinstance(item[0], dict):
                yield Fields(self.source, item[0], path)
            else:
                self.source.misreads(path, f"must be a mapping, not {describe(item[0])}")

    def items(self) -> Iterable[tuple[str, Any]]:
        """Every key and value."""
        self._known += self._data
        return self._data.items()

    def note(self, key: str | None, message: str) -> None:
        """Note a problem of one key, or (None) of the whole mapping, as unusable."""
        self.source.misreads(self.path if key is None else (*self.path, key), message)

    def finish(self) -> None:
        """Note the keys that nobody asked for."""
        for key in self._data:
            if key not in self._known:
                self.source.note((*self.path, key), unknown("key", key, list(dict.fromkeys(self._known))))

    def _parse(self, path: FieldPath, value: Any, default: T, parse: Callable[[Any], T]) -> T:
        try:
            return parse(value)
        except ValueError as error:
            self.source.misreads(path, str(error))
            return default


# --- parsers: a value of the document in, ValueError with what was expected -----------------------------


def text(value: Any) -> str:
    """Any text but the empty one."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be text, not {_described(value)}")
    return value


def _described(value: Any) -> str:
    """A value, with a word on YAML 1.1, which takes unquoted y, n, on and off for booleans."""
    return describe(value) + (" (put y, n, on, off in quotes)" if isinstance(value, bool) else "")


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {describe(value)}")
    return value


def number(minimum: int, maximum: int) -> Callable[[Any], int]:
    """An integer within bounds."""
    return lambda value: parse_integer(value, minimum, maximum)


def choice(*known: str) -> Callable[[Any], Any]:
    """One of a few words."""

    def parse(value: Any) -> str:
        if value not in known:
            words = " or ".join(known) if len(known) < 3 else f"one of {', '.join(known)}"
            raise ValueError(f"must be {words}, not {describe(value)}")
        return str(value)

    return parse


def dns_label(value: Any) -> str:
    """A DNS label (RFC 1123): at most 63 of a-z, 0-9 and -."""
    if len(text(value)) > 63:
        raise ValueError("must be no more than 63 characters")
    if not DNS_LABEL.fullmatch(value):
        raise ValueError(
            f"must be a DNS label (a-z, 0-9 and -, a letter or digit at both ends), not {value!r}"
        )
    return str(value)


def dns_name(value: Any) -> str:
    """DNS labels joined by dots."""
    if len(text(value)) > 253 or not all(
        len(label) <= 63 and DNS_LABEL.fullmatch(label) for label in value.split(".")
    ):
        raise ValueError(f"must be a DNS name such as cluster.local, not {describe(value)}")
    return str(value)


def label_value(value: Any) -> str:
    """The value of a Kubernetes label."""
    if value == "":
        return ""
    if not isinstance(value, str) or not _LABEL_NAME.fullmatch(value):
        raise ValueError(
            f"must be a label value (up to 63 letters, digits, -, _ and .), not {_described(value)}"
        )
    return value


def label_key(value: Any) -> str:
    """The key of a Kubernetes label: a name, or a DNS name, a slash and a name."""
    prefix, slash, name = text(value).rpartition("/")
    if slash:
        dns_name(prefix)
    if not _LABEL_NAME.fullmatch(name):
        raise ValueError(f"must be a label key such as topology.kubernetes.io/zone, not {value!r}")
    return str(value)


def labels(value: Any) -> dict[str, str]:
    """Kubernetes labels."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {describe(value)}")
    for key, item in value.items():
        try:
            label_key(key)
            label_value(item)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return dict(value)


def address(value: Any) -> IPAddress:
    """An address that a host can have."""
    try:
        found = ip_address(text(value))
    except ValueError:
        raise ValueError(f"must be an IP address, not {describe(value)}") from None
    if found.is_loopback or found.is_multicast or found.is_unspecified or found.is_link_local:
        raise ValueError(f"must not be a loopback, link-local, multicast or unspecified address: {found}")
    if found.version == 6 and found.scope_id:
        raise ValueError(f"must not have a scope: {found}")
    return found


def network(value: Any) -> IPNetwork:
    """A range of addresses that hosts can have."""
    if "/" not in text(value):
        raise ValueError(f"must be a range such as 10.244.0.0/16, not {value!r}")
    try:
        found = ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"must be a range such as 10.244.0.0/16, not {value!r}") from None
    if ip_address(value.split("/")[0]) != found.network_address:
        raise ValueError(f"{value} has bits set beyond its prefix; did you mean {found}?")
    special = found.is_loopback or found.is_multicast or found.is_link_local
    if special or found.prefixlen == 0 or int(found.network_address) == 0:
        raise ValueError(f"must not be a loopback, link-local, multicast or unspecified range: {found}")
    return found


# --- overrides: --set key=value ---------------------------------------------------------------------------


def override(source: Source, argument: str) -> None:
    """Apply one ``key=value``: a dotted path below ``spec`` (or ``metadata``), and a value in YAML."""
    name, equals, value = argument.partition("=")
    path = _path_of(name.strip())
    if not equals or not path:
        message = f"must be key=value, such as nodes.count=5, not {argument!r}"
        source.problems.append(Problem(message, "--set"))
        return
    try:
        documents = read_documents(value, f"--set {argument}")
    except InputError as error:
        source.problems += [Problem(problem.message, problem.file) for problem in error.problems]
        return
    source.overridden[path] = argument
    _put(source, path, documents[0].data if documents else None)


def _path_of(name: str) -> FieldPath:
    """``external[0].name``, ``external.0.name`` and ``spec.external.0.name``; ``\\.`` is a dot in a key."""
    words = [word.replace("\\.", ".") for word in re.split(r"(?<!\\)\.", _INDEX.sub(r".\1", name))]
    if not all(words):
        return ()
    path = tuple(
        int(word) if word.isascii() and word.isdecimal() and len(word) < 5 else word for word in words
    )
    return path if path[0] in ("spec", "metadata") else ("spec", *path)


def _put(source: Source, path: FieldPath, value: Any) -> None:
    here: Any = source.document.data
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list) and isinstance(key, int):
            if key >= len(here):
                source.note(path, f"{format_path(path[:depth])} has {len(here)} items")
                return
        elif isinstance(here, dict):
            key = str(key)
        else:
            source.note(path, f"{format_path(path[:depth])} is {describe(here)}, not a mapping")
            return
        if last:
            here[key] = value
        elif isinstance(here, dict) and here.get(key) is None:
            here[key] = [] if isinstance(path[depth + 1], int) else {}
        here = here[key]


def overlapping(ranges: Sequence[tuple[T, IPNetwork]]) -> list[tuple[T, IPNetwork, T, IPNetwork]]:
    """Pairs of ranges that share an address; of many on one address, each with the one before it."""
    found = []
    for version in (4, 6):
        ordered = sorted(
            (item for item in ranges if item[1].version == version),
            key=lambda item: (int(item[1].network_address), item[1].prefixlen),
        )
        widest: tuple[T, IPNetwork] | None = None
        for name, range_ in ordered:
            if widest and int(widest[1].broadcast_address) >= int(range_.network_address):
                found.append((widest[0], widest[1], name, range_))
            if not widest or int(range_.broadcast_address) > int(widest[1].broadcast_address):
                widest = (name, range_)
    return found


def by_family(values: Iterable[T], version_of: Callable[[T], int]) -> Mapping[int, T]:
    """IP version → value; of two in one family the first."""
    found: dict[int, T] = {}
    for value in values:
        found.setdefault(version_of(value), value)
    return found
