from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.control.ipam import AllocationError, NodeIpam, Range


def test_first_pod_gets_the_address_after_the_gateway():
    range_ = Range("10.244.1.0/24")
    assert range_.gateway == "10.244.1.1"
    assert [range_.allocate(f"p{n}") for n in range(3)] == ["10.244.1.2", "10.244.1.3", "10.244.1.4"]


def test_a_freed_address_is_not_reused_before_the_counter_wraps():
    range_ = Range("10.244.1.0/29")
    for n in range(3):
        range_.allocate(f"p{n}")
    range_.release("p0")
    assert [range_.allocate(f"q{n}") for n in range(3)] == ["10.244.1.5", "10.244.1.6", "10.244.1.2"]


def test_an_exhausted_range_says_what_host_local_says():
    range_ = Range("10.244.1.0/24")
    for n in range(253):
        range_.allocate(f"p{n}")
    with pytest.raises(
        AllocationError, match=r"^no IP addresses available in range set: 10.244.1.1-10.244.1.254$"
    ):
        range_.allocate("late")


def test_an_owner_cannot_allocate_twice():
    range_ = Range("10.244.1.0/24")
    range_.allocate("p")
    with pytest.raises(AllocationError, match="duplicate allocation is not allowed"):
        range_.allocate("p")


@pytest.mark.parametrize("asked", ["10.244.1.1", "10.244.1.255", "10.244.2.2"])
def test_an_address_that_no_pod_may_have_is_refused(asked: str):
    with pytest.raises(AllocationError):
        Range("10.244.1.0/24").allocate("p", asked)


def test_dual_stack_leaves_nothing_reserved_when_one_family_fails():
    ipam = NodeIpam(("10.244.1.0/30", "fd00:10:244:1::/64"))
    assert ipam.allocate("a") == ("10.244.1.2", "fd00:10:244:1::2")
    with pytest.raises(AllocationError):
        ipam.allocate("b")
    ipam.release("a")
    assert ipam.allocate("c") == ("10.244.1.2", "fd00:10:244:1::3")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("10.244.1.7,10.244.1.8", r"^failed to allocate all requested IPs: 10\.244\.1\.8$"),
        ("fd00::7, 10.244.1.7, fd00::8", r"^failed to allocate all requested IPs: fd00::7 fd00::8$"),
        ("192.168.1.1", r"^failed to allocate all requested IPs: 192\.168\.1\.1$"),
        ("10.244.1.255", r"^failed to allocate all requested IPs: 10\.244\.1\.255$"),
        (
            "10.244.1.7, soon",
            r"^annotation testbed/ip: 'soon' does not appear to be an IPv4 or IPv6 address$",
        ),
        ("fd00::7", r"^failed to allocate all requested IPs: fd00::7$"),
        ("10.244.1.1", r"^failed to allocate for range 0: requested ip 10.244.1.1 is subnet's gateway$"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_and_nothing_stays_reserved(asked: str, message: str):
    ipam = NodeIpam(("10.244.1.0/24",))
    with pytest.raises(AllocationError, match=message):
        ipam.allocate("a", asked)
    assert ipam.allocate("a", "10.244.1.7, 10.244.1.7") == ("10.244.1.7",)


def test_the_range_that_has_no_address_is_named_by_its_number():
    ipam = NodeIpam(("10.244.1.0/24", "fd00:10:244:1::/126"))
    for owner in ("a", "b"):
        ipam.allocate(owner)
    with pytest.raises(AllocationError, match=r"^failed to allocate for range 1: no IP addresses available"):
        ipam.allocate("c")


def test_asked_addresses_of_both_families():
    ipam = NodeIpam(("10.244.1.0/24", "fd00:10:244:1::/64"))
    assert ipam.allocate("a", "10.244.1.77, fd00:10:244:1::77") == ("10.244.1.77", "fd00:10:244:1::77")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_no_two_owners_ever_share_an_address(steps: list[tuple[bool, int]]):
    range_ = Range("10.0.0.0/28")
    held: dict[str, str] = {}
    for allocate, number in steps:
        owner = f"p{number}"
        if allocate and owner not in held:
            held[owner] = range_.allocate(owner)
            assert held[owner] not in ("10.0.0.0", "10.0.0.1", "10.0.0.15")
        elif not allocate:
            range_.release(owner)
            held.pop(owner, None)
        assert len(set(held.values())) == len(held)
