"""The machine's noise floor: a bare veth pair between two netns of its own, with nothing in between.

What a probe takes there is what this machine, its load and the prober add to every figure.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from typing import Final

from testbed.measure.sockets import CLONE_NEWNET, enter

FLOOR: Final = "floor"
"""The name of the netns that it is measured from."""
FLOOR_PATH: Final = "bare veth"
_SETUP: Final = (
    "link add eth0 type veth peer name eth0 netns {peer}",
    "link set eth0 up",
    "addr add 192.0.2.1/24 dev eth0",
)
_SETUP_PEER: Final = ("link set eth0 up", "addr add 192.0.2.2/24 dev eth0")
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def bare_veth() -> Iterator[int]:
    """A netns descriptor with 192.0.2.1, whose peer answers at 192.0.2.2; gone at the end. Raises OSError."""
    with contextlib.ExitStack() as undo:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, home)
        undo.callback(enter, home)
        near, far = _new_netns(undo), _new_netns(undo)
        enter(near)
        _ip(line.format(peer=f"/proc/{os.getpid()}/fd/{far}") for line in _SETUP)
        enter(far)
        _ip(_SETUP_PEER)
        enter(home)
        yield near


def _new_netns(undo: contextlib.ExitStack) -> int:
    if _libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _ip(lines: Iterator[str] | tuple[str, ...]) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"ip: {done.stderr.strip()}")
