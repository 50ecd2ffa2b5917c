"""The keys of WireGuard: a node's private key out of its name, and its public key (X25519, RFC 7748).

A node's key is no secret: it follows from its name, so that a cluster is the same in every run.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from functools import lru_cache
from typing import Any

P = 2**255 - 19
A24 = 121665
BASE_POINT = 9


def private_key(node: str) -> str:
    """A node's private key, in base64."""
    return b64encode(_clamped(_seed(node)).to_bytes(32, "little")).decode()


@lru_cache(maxsize=4096)
def public_key(node: str) -> str:
    """The public key that belongs to it, in base64. Takes a few milliseconds the first time."""
    return b64encode(multiplied(_seed(node), BASE_POINT)).decode()


def shared_key(value: Any) -> str:
    """Reads a preshared key: 32 bytes in base64, as ``wg genpsk`` makes them; "" is none."""
    try:
        whole = isinstance(value, str) and (not value or len(b64decode(value, validate=True)) == 32)
    except ValueError:
        whole = False
    if not whole:
        raise ValueError("must be 32 bytes in base64, as 'wg genpsk' prints them")
    return str(value)


def _seed(node: str) -> bytes:
    return hashlib.sha256(f"flannel-wg {node}".encode()).digest()


def _clamped(scalar: bytes) -> int:
    """The number that 32 bytes stand for."""
    return int.from_bytes(scalar, "little") & ~7 & (1 << 255) - 1 | 1 << 254


def multiplied(scalar: bytes, point: int) -> bytes:
    """X25519: the u-coordinate of a point, 32 bytes, multiplied; Montgomery's ladder, RFC 7748 section 5."""
    number = _clamped(scalar)
    x2, z2, x3, z3, swapped = 1, 0, point, 1, 0
    for at in range(254, -1, -1):
        bit = number >> at & 1
        if bit != swapped:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, point * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + A24 * e) % P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")
