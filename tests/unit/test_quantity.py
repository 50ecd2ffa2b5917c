from __future__ import annotations

import pytest

from testbed.objects.quantity import milli


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        ("500m", 500),
        ("2", 2000),
        ("1Ki", 1_024_000),
        ("1e3", 1_000_000),
        ("1n", 1),
        ("-1.5", -1500),
        (".5", 500),
        (".", 0),
    ],
)
def test_a_quantity_is_read_in_thousandths(text: str, thousandths: int) -> None:
    assert milli(text) == thousandths


@pytest.mark.parametrize("text", ["1e999999999", "9" * 6000, "1E" + "9" * 6000, "9" * 30 + "Ei"])
def test_a_quantity_beyond_64_bits_is_the_largest_one(text: str) -> None:
    assert milli(text) == 2**63 - 1
    assert milli(f"-{text}") == -(2**63 - 1)


def test_a_quantity_too_small_to_tell_is_rounded_up() -> None:
    assert milli("1e-999999999") == 1
