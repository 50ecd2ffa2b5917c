"""Network namespaces held by descriptors: making, entering and leaving them, in a process with one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.kernel import syscalls


def current() -> int:
    """A descriptor of the netns this thread is in; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(fd: int) -> None:
    """Move this thread into the netns behind ``fd``. Raises OSError."""
    syscalls.setns(fd, syscalls.CLONE_NEWNET)


def enter_new() -> int:
    """Move this thread into a fresh netns and return a descriptor of it. Raises OSError."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    return current()


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Be in the netns behind ``fd`` for the length of a ``with`` block, then where one was before."""
    home = current()
    try:
        enter(fd)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


def create() -> int:
    """A fresh netns, held by the descriptor alone: it is gone when the last descriptor of it is closed."""
    home = current()
    try:
        try:
            return enter_new()
        finally:
            enter(home)
    finally:
        os.close(home)
