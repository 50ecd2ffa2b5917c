"""bpf(2): programs of a few instructions, put together here, and maps; no compiler and no library is needed.

Numbers: linux/bpf.h, linux/bpf_common.h. Only the real root may do this.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from testbed.errors import KernelRefused

SYSCALL = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, MAP_UPDATE, MAP_DELETE, PROG_LOAD = 0, 2, 3, 5
MAP_TYPE_LPM_TRIE, F_NO_PREALLOC = 11, 1
PROG_TYPE_SCHED_CLS = 3
LOAD_BYTES, STORE_BYTES, LOOKUP, REDIRECT, ADJUST_ROOM, REDIRECT_NEIGH = 26, 9, 1, 23, 50, 152
"""Helpers: skb_load_bytes, skb_store_bytes, map_lookup_elem, redirect, skb_adjust_room, redirect_neigh."""
ROOM_MAC, ENCAP_L3_IPV4, DECAP_L3_IPV4 = 1, 1 << 1, 1 << 7
INGRESS = 1
OK, SHOT = 0, 2
"""What a program of traffic control says of a packet."""

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
_INSN = struct.Struct("=BBhi")

_libc = ctypes.CDLL(None, use_errno=True)


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return _INSN.pack(code, dst | src << 4, off, imm if imm < 1 << 31 else imm - (1 << 32))


def move(dst: int, src: int) -> bytes:
    """dst = src."""
    return _insn(0xBF, dst, src)


def put(dst: int, value: int) -> bytes:
    """dst = value, of 32 bits."""
    return _insn(0xB4, dst, imm=value)


def add(dst: int, value: int) -> bytes:
    """dst += value."""
    return _insn(0x07, dst, imm=value)


def add_register(dst: int, src: int) -> bytes:
    """dst += src."""
    return _insn(0x0F, dst, src)


def keep(dst: int, mask: int) -> bytes:
    """dst &= mask."""
    return _insn(0x57, dst, imm=mask)


def flip(dst: int, mask: int) -> bytes:
    """dst ^= mask."""
    return _insn(0xA7, dst, imm=mask)


def shift_right(dst: int, bits: int) -> bytes:
    """dst >>= bits."""
    return _insn(0x77, dst, imm=bits)


def swap(dst: int, bits: int) -> bytes:
    """The lowest bits between the machine's order and the network's."""
    return _insn(0xDC, dst, imm=bits)


def load(dst: int, src: int, off: int) -> bytes:
    """dst = the 32 bits at src + off."""
    return _insn(0x61, dst, src, off)


_STORES = {1: 0x73, 2: 0x6B, 4: 0x63}


def store(size: int, dst: int, off: int, src: int) -> bytes:
    """size bytes of src, to dst + off."""
    return _insn(_STORES[size], dst, src, off)


def packet(size: int, off: int) -> bytes:
    """R0 = size (1, 2, 4) bytes of the packet, in the machine's order; R6 is the context."""
    return _insn({1: 0x30, 2: 0x28, 4: 0x20}[size], imm=off)


@dataclass(frozen=True)
class Unless:
    """Go on at a label where the 32 bits of dst are something else."""

    dst: int
    value: int
    to: str


@dataclass(frozen=True)
class IfThere:
    """Go on at a label where dst, a pointer, is not null."""

    dst: int
    to: str


Line = bytes | Unless | IfThere | str
"""An instruction, a jump, or the name of the place where the next one is."""


def assembled(lines: Iterable[Line]) -> bytes:
    """The code, with jumps to their places."""
    given = list(lines)
    places: dict[str, int] = {}
    at = 0
    for line in given:
        if isinstance(line, str):
            places[line] = at
        else:
            at += len(line) // _INSN.size if isinstance(line, bytes) else 1
    code = b""
    for line in given:
        if isinstance(line, Unless):
            skip = places[line.to] - len(code) // _INSN.size - 1
            code += _insn(0x56, line.dst, off=skip, imm=line.value)
        elif isinstance(line, IfThere):
            skip = places[line.to] - len(code) // _INSN.size - 1
            code += _insn(0x55, line.dst, off=skip)
        elif isinstance(line, bytes):
            code += line
    return code


def call(helper: int) -> bytes:
    """R0 = what a helper says of R1 to R5."""
    return _insn(0x85, imm=helper)


def leave() -> bytes:
    """The end; R0 says what becomes of the packet."""
    return _insn(0x95)


def of_map(dst: int, descriptor: int) -> bytes:
    """dst = a map (two instructions long)."""
    return _insn(0x18, dst, 1, imm=descriptor) + _insn(0)


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = SYSCALL.get(os.uname().machine)
    if number is None:
        raise KernelRefused(what, 0, f"not tried on {os.uname().machine}")
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = int(_libc.syscall(number, command, buffer, 128))
    if result < 0:
        error = ctypes.get_errno()
        raise KernelRefused(what, error, os.strerror(error))
    return result


def make_prefix_map(value_size: int, entries: int) -> int:
    """A map from IPv4 prefixes, the longest decides; a descriptor. Raises KernelRefused."""
    attributes = struct.pack("=5I", MAP_TYPE_LPM_TRIE, 8, value_size, entries, F_NO_PREALLOC)
    return _bpf(MAP_CREATE, attributes, "make a map of prefixes")


def set_prefix(descriptor: int, length: int, address: bytes, value: bytes) -> None:
    """Have a prefix lead to a value. Raises KernelRefused."""
    key = ctypes.create_string_buffer(struct.pack("=I", length) + address, 8)
    held = ctypes.create_string_buffer(value, len(value))
    attributes = struct.pack("=IxxxxQQQ", descriptor, ctypes.addressof(key), ctypes.addressof(held), 0)
    _bpf(MAP_UPDATE, attributes, "set a prefix")


def delete_prefix(descriptor: int, length: int, address: bytes) -> None:
    """Forget a prefix. Raises KernelRefused."""
    key = ctypes.create_string_buffer(struct.pack("=I", length) + address, 8)
    attributes = struct.pack("=IxxxxQ", descriptor, ctypes.addressof(key))
    _bpf(MAP_DELETE, attributes, "delete a prefix")


def load_program(lines: Iterable[Line], name: str) -> int:
    """A program of traffic control; a descriptor. Raises KernelRefused with the verifier's last words."""
    code = assembled(lines)
    text = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    attributes = struct.pack(
        "=IIQQIIQII16s",
        *(PROG_TYPE_SCHED_CLS, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence)),
        *(1, len(log), ctypes.addressof(log), 0, 0, name.encode()[:15]),
    )
    try:
        return _bpf(PROG_LOAD, attributes, f"load the program {name}")
    except KernelRefused as error:
        said = log.value.decode(errors="replace").strip().splitlines()[-4:]
        raise KernelRefused(f"load the program {name}", error.errno, "; ".join(said) or str(error)) from error
