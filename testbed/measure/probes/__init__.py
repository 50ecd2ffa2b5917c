"""Probe kinds. One file each, which registers what makes its lines: ``@probe("name")``.

A kind opens one line for each flow (a source, an address, a port). A line sends when the loop says so and
writes into the book what it sees; when to send, what is late, and what counts as silence is the loop's
(``measure.loop``). Every kind's samples have the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from testbed.measure.book import Book
from testbed.measure.messages import ProbeFlow
from testbed.measure.sockets import Namespaces
from testbed.measure.watch import Watch
from testbed.registry import Registry


class Line(Protocol):
    """One flow under way."""

    def send(self, number: int) -> None:
        """Send probe ``number`` now; raises nothing: what fails is written into the book."""
        ...

    def expire(self, number: int) -> None:
        """Probe ``number`` was not answered in time: let go of what it holds."""
        ...

    def close(self) -> None:
        """Close everything."""
        ...


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all kinds: its fields are the options of a request.

    needs: programs that have to be there; reaches: whether it takes the netns of the destination, too;
    port: where it goes if nobody says.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    reaches: ClassVar[bool] = False
    ports: ClassVar[str] = ""
    port: ClassVar[int] = 0

    def line(self, flow: ProbeFlow, namespaces: Namespaces, watch: Watch, book: Book) -> Line:
        """Open a flow, in its source's netns. Raises OSError."""
        raise NotImplementedError


class Program(Kind, frozen=True, kw_only=True):
    """A kind that runs programs instead of sending by itself."""

    def run(
        self, flows: Sequence[ProbeFlow], namespaces: Namespaces, seconds: float, timeout: float
    ) -> list[Mapping[str, Any]]:
        """Rows: columns of the samples by name. Raises OSError."""
        raise NotImplementedError


probes: Registry[type[Kind]] = Registry("probe", "testbed.measure.probes")
probe = probes.register
