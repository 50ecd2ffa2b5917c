"""Large changes of nftables in parts: nothing is lost, no part is too large, and what counts comes last."""

from __future__ import annotations

import pytest

from testbed.rules.nft import in_bulk
from testbed.state import NetnsState, NftChain, NftElement, NftSet, NftTable

TABLE = NftTable("ip", "t")
BASE = NftChain("ip", "t", "in", ("jump new-0",), "filter", "input", "0")
SET = NftSet("ip", "t", "m", "ipv4_addr", "verdict")


def state(chains: int, elements: int) -> NetnsState:
    made = [BASE, *(NftChain("ip", "t", f"new-{n}", (f"meta mark {n} accept",)) for n in range(chains))]
    listed = [
        NftElement("ip", "t", "m", f"10.0.{n // 256}.{n % 256}", f"goto new-{n}") for n in range(elements)
    ]
    return NetnsState(
        nft_tables={("ip", "t"): TABLE},
        nft_chains={("ip", "t", chain.name): chain for chain in made},
        nft_sets={("ip", "t", "m"): SET},
        nft_elements={("ip", "t", "m", each.key): each for each in listed},
    )


@pytest.mark.parametrize(("chains", "elements"), [(0, 0), (3, 3), (7, 25), (25, 7), (40, 40)])
def test_parts_are_small_and_together_the_whole(chains: int, elements: int) -> None:
    whole = state(chains, elements)
    parts = in_bulk(whole, NetnsState(), (), 5, 10)
    assert {name: chain for part in parts for name, chain in part.nft_chains.items()} == whole.nft_chains
    assert {name: one for part in parts for name, one in part.nft_elements.items()} == whole.nft_elements
    assert sum(len(part.nft_elements) for part in parts) == elements
    assert all(len(part.nft_chains) <= 11 and len(part.nft_elements) <= 10 for part in parts)
    assert ("ip", "t", "in") in parts[-1].nft_chains


def test_a_part_leads_only_to_chains_that_are_whole() -> None:
    written: dict[tuple[str, str, str], NftChain] = {}
    for part in in_bulk(state(40, 40), NetnsState(), (), 5, 10):
        for element in part.nft_elements.values():
            assert written["ip", "t", element.value.removeprefix("goto ")].rules
        written |= part.nft_chains


def test_elements_that_take_the_place_of_others_come_last() -> None:
    whole = state(2, 30)
    replaced = dict(list(whole.nft_elements.items())[:4])
    last = in_bulk(whole, NetnsState(nft_elements=replaced), (), 5, 10)[-1]
    assert replaced.keys() <= last.nft_elements.keys()


def test_without_a_limit_elements_stay_together() -> None:
    parts = in_bulk(state(40, 40), NetnsState(), (), 5)
    assert [len(part.nft_elements) for part in parts if part.nft_elements] == [40]
