"""Programs as code: places of jumps, and that the programs of a tunnel are whole."""

from __future__ import annotations

import struct

from testbed.kernel import bpf
from testbed.kernel.bpf import IfThere, Unless
from testbed.kernel.ipip import decapsulation, encapsulation


def jumps(code: bytes) -> dict[int, int]:
    """Place of each conditional jump → where it leads."""
    found = {}
    for at in range(len(code) // 8):
        kind, _, offset, _ = struct.unpack_from("=BBhi", code, 8 * at)
        if kind in (0x55, 0x56):
            found[at] = at + 1 + offset
    return found


def test_jumps_lead_to_their_labels() -> None:
    lines = [Unless(0, 7, "end"), bpf.of_map(1, 3), IfThere(0, "end"), bpf.put(0, 1), "end", bpf.leave()]
    code = bpf.assembled(lines)
    assert len(code) == 8 * 6
    assert jumps(code) == {0: 5, 3: 5}


def test_every_jump_of_a_tunnels_programs_stays_inside_and_each_ends() -> None:
    for program in (encapsulation(3, 2, "172.18.0.2"), decapsulation(4, "172.18.0.2")):
        code = bpf.assembled(program)
        assert all(at < to < len(code) // 8 for at, to in jumps(code).items())
        assert code.endswith(bpf.leave())


def test_a_value_with_its_highest_bit_set_is_kept() -> None:
    assert struct.unpack("=BBhI", bpf.put(1, 0xC0A80001))[3] == 0xC0A80001
