"""From a campaign to its cells: every combination that is not excluded, in random order in blocks. Pure."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from testbed.campaign.load import Campaign, as_override
from testbed.errors import InputError


@dataclass(frozen=True)
class Cell:
    """One combination, once. levels: factor → label; overrides: of the cluster's spec, as of ``--set``;
    changes: of the scenario's file; replicate: from 1, and the block it is in; position: in the order, from
    1."""

    levels: Mapping[str, str]
    scenario: Path
    overrides: tuple[str, ...]
    changes: Mapping[str, Any]
    replicate: int
    position: int
    seed: int

    @property
    def title(self) -> str:
        """What a person calls it: ``mode=iptables services=10 #2``."""
        return " ".join([*(f"{name}={label}" for name, label in self.levels.items()), f"#{self.replicate}"])


def plan(campaign: Campaign) -> list[Cell]:
    """The cells in the order they are run in: a block per replicate, each in a random order of its own.

    So whatever changes with time on the machine falls on all levels alike. The order follows from the
    campaign's seed. Raises InputError where every combination is excluded.
    """
    combinations = list(_combinations(campaign))
    if not combinations:
        raise InputError(f"campaign {campaign.name}: every combination is excluded")
    cells: list[Cell] = []
    for replicate in range(1, campaign.replicates + 1):
        block = list(combinations)
        random.Random(f"{campaign.seed}/{replicate}").shuffle(block)  # noqa: S311 - an order, no secret
        cells += [_cell(campaign, labels, replicate, len(cells) + at) for at, labels in enumerate(block, 1)]
    return cells


def _combinations(campaign: Campaign) -> Sequence[Mapping[str, str]]:
    names = [factor.name for factor in campaign.factors]
    every = product(*(factor.levels for factor in campaign.factors))
    labelled = [dict(zip(names, labels, strict=True)) for labels in every]
    return [labels for labels in labelled if not campaign.excluded(labels)]


def _cell(campaign: Campaign, labels: Mapping[str, str], replicate: int, position: int) -> Cell:
    chosen = [factor.levels[labels[factor.name]] for factor in campaign.factors]
    settings = [campaign.always, *chosen]
    spec: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for one in settings:
        spec |= one.spec
        changes |= one.scenario
    return Cell(
        levels=labels,
        scenario=campaign.scenario_of(settings),
        overrides=tuple(as_override(path, value) for path, value in spec.items()),
        changes=changes,
        replicate=replicate,
        position=position,
        seed=seed_of(campaign.seed, labels, replicate),
    )


def seed_of(seed: int, labels: Mapping[str, str], replicate: int) -> int:
    """A cell's own seed, 0 to 2**31 - 1, from the campaign's, its levels and its replicate alone: cells that
    are added or left out change no other's."""
    text = json.dumps([seed, sorted(labels.items()), replicate])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
