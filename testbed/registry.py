"""Named things that register themselves in their own file: dataplanes, proxiers, topologies, probes.

A registry refuses a second thing of the same name and, asked for an unknown one, lists those it knows.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from testbed.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to things of one kind; ``package`` is searched, once, when a name is first asked for."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._things: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds the decorated thing under ``name``; a name taken is a ValueError."""

        def add(thing: T) -> T:
            if name in self._things:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: {self._things[name]!r} and {thing!r}"
                )
            self._things[name] = thing
            return thing

        return add

    def discover(self) -> None:
        """Import every module of the package, so that each registers what it defines."""
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")

    def get(self, name: str) -> T:
        """The thing called ``name``. Raises InputError that lists the known names."""
        self.discover()
        if name not in self._things:
            raise InputError(f"unknown {self.kind} {name!r}: known are {', '.join(self)}")
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        self.discover()
        return iter(sorted(self._things))

    def __contains__(self, name: object) -> bool:
        self.discover()
        return name in self._things
