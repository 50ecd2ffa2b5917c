"""Where a cluster cannot give the recorded addresses: ranges that hold the same pods as before."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from testbed.conformance.network_policy.stage import rewritten

RECORDED = [f"10.244.{k}.{host}" for k in (1, 2, 3) for host in (2, 18, 34)]
BLOCKS: list[dict[str, Any]] = [
    {"cidr": "10.244.3.0/24"},
    {"cidr": "10.244.3.0/24", "except": ["10.244.3.32/28"]},
    {"cidr": "0.0.0.0/0"},
    {"cidr": "0.0.0.0/31"},
    {"cidr": "10.244.2.2/32"},
    {"cidr": "0.0.0.0/4", "except": ["10.244.2.2/32"]},
]


def held(block: dict[str, Any], address: str) -> bool:
    there = ip_address(address)
    excepts = (ip_network(each) for each in block.get("except", ()))
    return there in ip_network(block["cidr"]) and not any(there in each for each in excepts)


@given(
    st.sampled_from(BLOCKS),
    st.lists(st.integers(2, 250), min_size=len(RECORDED), max_size=len(RECORDED), unique=True),
)
def test_a_rewritten_range_holds_the_same_pods(block: dict[str, Any], hosts: list[int]) -> None:
    pairs = [(recorded, f"10.60.{host % 3}.{host}") for recorded, host in zip(RECORDED, hosts, strict=True)]
    new = rewritten(block, pairs)
    assert [held(new, real) for _, real in pairs] == [held(block, recorded) for recorded, _ in pairs]
    whole = ip_network(new["cidr"])
    assert all(ip_network(each).subnet_of(whole) for each in new.get("except", ()))  # type: ignore[arg-type]
    assert all(each != new["cidr"] for each in new.get("except", ()))
