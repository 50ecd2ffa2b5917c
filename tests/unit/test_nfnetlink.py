"""Which rules are written without nft, and that batches stay small; a system test loads them."""

from __future__ import annotations

import struct

import pytest

from testbed.kernel import nfnetlink
from testbed.kernel.nfnetlink import pick
from testbed.state import NftChain, NftElement, NftSet


def chain(*rules: str, family: str = "ip") -> NftChain:
    return NftChain(family, "kube-proxy", "service-X", rules)  # type: ignore[arg-type]


PICKS = "meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.1.1 . 80, 1 : 10.1.1.2 . 8080 }"
SIX = "meta l4proto udp dnat ip6 to numgen random mod 1 map { 0 : fd00::1 . 53 }"


def test_a_chain_that_only_picks_is_known() -> None:
    found = pick(chain(PICKS))
    assert found is not None
    assert (found.protocol, found.destinations) == ("tcp", (("10.1.1.1", 80), ("10.1.1.2", 8080)))
    six = pick(chain(SIX, family="ip6"))
    assert six is not None
    assert six.destinations == (("fd00::1", 53),)


@pytest.mark.parametrize(
    "other",
    [
        chain(),
        chain(PICKS, PICKS),
        chain(f'{PICKS} comment "x"'),
        chain(SIX),
        chain("meta l4proto tcp dnat to 10.1.1.1:80"),
        chain("numgen random mod 1 vmap { 0 : goto a }"),
        chain(PICKS.replace("}", "".join(f", {n} : 10.1.1.3 . {n}" for n in range(2, 501)) + " }")),
    ],
    ids=["empty", "two", "comment", "family", "plain", "vmap", "long"],
)
def test_every_other_chain_is_left_to_nft(other: NftChain) -> None:
    assert pick(other) is None


def test_messages_are_whole_and_batches_small() -> None:
    found = pick(chain(PICKS))
    assert found is not None
    batches = list(nfnetlink._batches(nfnetlink._rule(found, 1_000_000 + n) for n in range(300)))
    assert len(batches) > 1
    for batch in batches:
        at = 0
        kinds = []
        while at < len(batch):
            length, kind = struct.unpack_from("=IH", batch, at)
            kinds.append(kind & 0xFF)
            at += length
        assert at == len(batch) <= nfnetlink.BATCH_BYTES
        assert set(zip(*[iter(kinds)] * 3, strict=True)) == {(9, 12, 6)}


ADDRESSES = NftSet("ip", "t", "s", "ipv4_addr")


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        (ADDRESSES, NftElement("ip", "t", "s", "10.0.0.0/8")),
        (ADDRESSES, NftElement("ip", "t", "s", "10.0.0.1", comment="one")),
        (NftSet("ip", "t", "s", "ipv4_addr", flags=("interval",)), NftElement("ip", "t", "s", "10.0.0.1")),
        (NftSet("ip", "t", "s", "ipv4_addr", timeout=9), NftElement("ip", "t", "s", "10.0.0.1")),
        (NftSet("ip", "t", "s", "ifname"), NftElement("ip", "t", "s", "eth0")),
        (NftSet("ip", "t", "s", "inet_service"), NftElement("ip", "t", "s", "80-90")),
        (NftSet("ip", "t", "s", "ipv4_addr", "verdict"), NftElement("ip", "t", "s", "10.0.0.1", "drop")),
        (
            NftSet("ip", "t", "s", "ipv4_addr", "ipv4_addr"),
            NftElement("ip", "t", "s", "10.0.0.1", "10.0.0.2"),
        ),
    ],
    ids=["range", "comment", "interval", "timeout", "type", "ports", "verdict", "map"],
)
def test_every_other_element_is_left_to_nft(kind: NftSet, element: NftElement) -> None:
    assert not nfnetlink.change_elements({("ip", "t", "s"): kind}, [element], [])


def test_elements_of_unknown_sets_and_too_many_are_left_to_nft() -> None:
    one = NftElement("ip", "t", "s", "10.0.0.1")
    assert not nfnetlink.change_elements({}, [one], [])
    assert not nfnetlink.change_elements({("ip", "t", "s"): ADDRESSES}, [one] * 401, [])
    assert not nfnetlink.change_elements({}, [], [])
