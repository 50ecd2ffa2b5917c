"""Resource quantities: ``500m``, ``1Gi``, ``2``. Source: ``apimachinery/pkg/api/resource/quantity.go``."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache

_FORM = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]*))(?:([eE][+-]?[0-9]+)|([numkMGTPE]|[KMGTPE]i)?)")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}

_DIGITS, _POWER = 100, 40  # what is beyond changes no number below the largest
_LARGEST = 2**63 - 1


@lru_cache(maxsize=4096)
def milli(value: str | int | float) -> int:
    """A quantity in thousandths, rounded up, 64 bits at most. Raises ValueError for what is none."""
    match = _FORM.fullmatch(str(value))
    if match is None:
        raise ValueError(f"not a quantity: {value!r}")
    digits, exponent, suffix = match[1], match[2], match[3] or ""
    number = Fraction(0 if digits.lstrip("+-") == "." else digits[:_DIGITS])  # upstream reads "." as 0
    if exponent:
        factor = Fraction(10) ** max(-_POWER, min(_POWER, int(exponent[1:_POWER])))
    elif suffix in _BINARY:
        factor = Fraction(1024) ** _BINARY[suffix]
    else:
        factor = Fraction(10) ** _DECIMAL[suffix]
    return max(-_LARGEST, min(_LARGEST, math.ceil(number * factor * 1000)))
