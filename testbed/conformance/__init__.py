"""Conformance: small cases of what a cluster has to do, run with real traffic on one that is up.

A case is a function in a file of its suite's package::

    from testbed.conformance.services import services

    @services.case("nodes:2", "outside")
    def node_port_answers_on_every_node(lab: Lab) -> None:
        '''A NodePort Service answers on every node's address.'''

Its name is the function's, in words; its docstring is the promise it keeps. It gets a namespace of its own
(``lab.Lab``), which is gone afterwards, so cases run several at a time; one that disturbs others says
``alone=True``. What a case needs and the cluster or kernel lacks defers it: it is listed, never passed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from testbed.errors import InputError
from testbed.registry import Registry

if TYPE_CHECKING:
    from testbed.conformance.lab import Lab

Body = Callable[["Lab"], None]


@dataclass(frozen=True)
class Case:
    """One behaviour. needs: see ``run.absence``; alone: nothing else may run meanwhile.

    differs: why this testbed is known not to behave so, "" where it does. Such a case is run too: it is a
    known difference as long as it fails, and a failure when it no longer does.
    """

    name: str
    promise: str
    body: Body
    needs: tuple[str, ...] = ()
    alone: bool = False
    differs: str = ""


class Suite(Protocol):
    """A list of cases under one name of the command line."""

    def cases(self, folders: Sequence[Path]) -> list[Case]:
        """All of them; folders: where recorded ones are read from. Raises InputError."""
        ...


suites: Registry[Suite] = Registry("conformance suite", "testbed.conformance")


class WrittenSuite:
    """A suite whose cases are functions in the modules of one package."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._cases: dict[str, Case] = {}

    def case(self, *needs: str, alone: bool = False, differs: str = "") -> Callable[[Body], Body]:
        """Decorator that adds a case; one of the same name is a ValueError."""

        def add(body: Body) -> Body:
            name = body.__name__.replace("_", " ")
            if name in self._cases:
                raise ValueError(f"two conformance cases are called {name!r}")
            promise = " ".join((body.__doc__ or "").split())
            self._cases[name] = Case(name, promise, body, needs, alone, differs)
            return body

        return add

    def cases(self, folders: Sequence[Path]) -> list[Case]:
        """All cases, in the order of their files and lines. Raises InputError: there are no folders."""
        if folders:
            raise InputError(f"{folders[0]}: the cases of this suite are not read from folders")
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        return list(self._cases.values())
