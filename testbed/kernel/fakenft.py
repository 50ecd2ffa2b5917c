"""The nftables part of the fake kernel: it refuses a change that the real one, or nft, would refuse."""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.errors import KernelRefused
from testbed.rules import nft
from testbed.state import NetnsState, NftChain, NftElement, NftSet, NftTable


@dataclass
class FakeNftables:
    """The tables of one netns."""

    tables: dict[nft.TableKey, NftTable] = field(default_factory=dict)
    chains: dict[nft.Key, NftChain] = field(default_factory=dict)
    sets: dict[nft.Key, NftSet] = field(default_factory=dict)
    elements: dict[nft.ElementKey, NftElement] = field(default_factory=dict)

    def parts(self) -> dict[str, dict[Any, Any]]:
        """What is there, as parts of a ``NetnsState``."""
        return {
            "nft_tables": dict(self.tables),
            "nft_chains": dict(self.chains),
            "nft_sets": dict(self.sets),
            "nft_elements": dict(self.elements),
        }

    def changed(self, add: NetnsState, remove: NetnsState) -> FakeNftables:
        """What is there after a change. Raises KernelRefused, and nothing is changed."""
        new = FakeNftables(dict(self.tables), dict(self.chains), dict(self.sets), dict(self.elements))
        void = {*add.nft_tables, *remove.nft_tables}
        _take("delete table", new.tables, remove.nft_tables)
        _drop(new.chains, void, 2)
        _drop(new.sets, void, 2)
        _drop(new.elements, void, 2)
        _take("delete element", new.elements, remove.nft_elements)
        _take("delete chain", new.chains, remove.nft_chains)
        _take("delete set", new.sets, remove.nft_sets)
        _drop(new.elements, remove.nft_sets, 3)
        new.tables |= add.nft_tables
        for chain in add.nft_chains.values():
            new._add_chain(chain)
        for each in add.nft_sets.values():
            new._add_set(each)
        for element in add.nft_elements.values():
            new._add_element(element)
        new._check()
        return new

    def _table(self, what: str, thing: NftChain | NftSet) -> None:
        if nft.table_key(thing) not in self.tables:
            raise KernelRefused(what, errno.ENOENT, f"no table {thing.family} {thing.table}")

    def _add_chain(self, chain: NftChain) -> None:
        what = f"add chain {chain.name}"
        self._table(what, chain)
        there = self.chains.get(nft.key(chain), chain)
        if not nft.same_place(there, chain):
            raise KernelRefused(what, errno.EEXIST, "there is one, and it is different")
        if bool(chain.hook) != bool(chain.type and chain.priority):
            raise KernelRefused(what, errno.EINVAL, "a base chain has a type, a hook and a priority")
        self.chains[nft.key(chain)] = chain

    def _add_set(self, each: NftSet) -> None:
        what = f"add set {each.name}"
        self._table(what, each)
        if self.sets.get(nft.key(each), each) != each:
            raise KernelRefused(what, errno.EEXIST, "there is one, and it is different")
        self.sets[nft.key(each)] = each

    def _add_element(self, element: NftElement) -> None:
        what = f"add element {element.set} {element.key}"
        each = self.sets.get(nft.element_set(element))
        if each is None:
            raise KernelRefused(what, errno.ENOENT, f"no set {element.set}")
        if bool(each.value) != bool(element.value) or len(element.key.split(" . ")) != len(
            each.type.split(" . ")
        ):
            raise KernelRefused(what, errno.EINVAL, f"{each.name} is of type {each.type} : {each.value}")
        if self.elements.get(nft.element_key(element), element) != element:
            raise KernelRefused(what, errno.EEXIST, "there is one, and it is different")
        self.elements[nft.element_key(element)] = element

    def _check(self) -> None:
        """Everything that something refers to must be there."""
        for key, chain in self.chains.items():
            for rule in chain.rules:
                self._need(f"add rule {chain.name} {rule}", key, nft.targets(rule), nft.sets_of(rule))
        for element in self.elements.values():
            what = f"add element {element.set} {element.key} : {element.value}"
            self._need(what, nft.element_set(element), nft.targets(element.value), ())

    def _need(self, what: str, key: nft.Key, chains: Iterable[str], sets: Iterable[str]) -> None:
        family, table, _ = key
        for name in chains:
            target = self.chains.get((family, table, name))
            if target is None:
                raise KernelRefused(what, errno.ENOENT, f"no chain {name}")
            if nft.is_base(target):
                raise KernelRefused(what, errno.EOPNOTSUPP, f"{name} is a base chain")
        for name in sets:
            if (family, table, name) not in self.sets:
                raise KernelRefused(what, errno.ENOENT, f"no set {name}")


def _drop(there: dict[Any, Any], within: Container[Any], length: int) -> None:
    """Take out what is in these tables or sets: the first parts of its key say so."""
    for key in [key for key in there if key[:length] in within]:
        del there[key]


def _take(what: str, there: dict[Any, Any], gone: Mapping[Any, Any]) -> None:
    for key in gone:
        if there.pop(key, None) is None:
            raise KernelRefused(f"{what} {' '.join(key)}", errno.ENOENT, "not there")
