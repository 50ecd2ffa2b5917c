"""What a cluster leaves on the host: one directory with its lock, its socket, its log and a few facts.

Liveness is the lock and nothing else: the launcher takes it, init inherits it and holds it until it
dies, however it dies; no reuse of a pid and no reboot can fake that. The lock is an open-file-description
lock, so it can be tested without being taken. Its file says which process init is, so that a cluster can be
ended whatever has become of its facts.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from testbed.errors import InputError

LOCK, FACTS, SOCKET, LOG = "lock", "cluster.json", "api.sock", "log"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid

State = Literal["running", "starting", "stale"]


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """``cluster.json``. created: seconds since the epoch; spec: path of the spec; nodes, pods: -1 unknown."""

    name: str
    version: str
    created: float
    spec: str = ""
    ready: bool = False
    nodes: int = -1
    pods: int = -1


@dataclass(frozen=True)
class ClusterEntry:
    """One cluster of this user. pid, started_ticks: its init on the host and its start in ticks since boot,
    0 if not known; started: seconds since the epoch; nodes, pods: None if not known."""

    name: str
    state: State
    pid: int
    started: float
    directory: Path
    started_ticks: int = 0
    spec: str = ""
    nodes: int | None = None
    pods: int | None = None

    @property
    def socket(self) -> Path:
        """The Unix socket of the control API."""
        return self.directory / SOCKET


_UNKNOWN = Facts(name="", version="", created=0.0)


class NameTaken(InputError):
    """A cluster of that name runs or starts already."""


def root_directory(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Path:
    """The directory that holds one directory per cluster of this user; it may not exist yet.

    Root: /run/testbed. Others: $XDG_RUNTIME_DIR/testbed where that is a directory of theirs, else
    ``testbed-<uid>`` under the temporary directory.
    """
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    if uid == 0 and os.access("/run", os.W_OK):
        return Path("/run/testbed")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime) and os.stat(runtime).st_uid == uid:
        return Path(runtime) / "testbed"
    return Path(tempfile.gettempdir()) / f"testbed-{uid}"


def check_name(name: str) -> str:
    """``name`` if it is a DNS label, so that it can be a directory; else InputError."""
    if not _LABEL.fullmatch(name):
        raise InputError(
            f"cluster name {name!r} must be a DNS label: 1 to 63 lower case letters, digits and '-', "
            "with a letter or digit at both ends"
        )
    return name


def _check_private(directory: Path) -> None:
    """Refuse a directory that somebody else owns or could write: it may lie in a world-writable /tmp."""
    info = os.lstat(directory)
    if not stat.S_ISDIR(info.st_mode):
        raise InputError(f"{directory} is not a directory; remove it and try again")
    if info.st_uid != os.geteuid():
        raise InputError(f"{directory} belongs to user {info.st_uid}, not to you; remove it and try again")
    if info.st_mode & 0o077:
        raise InputError(
            f"{directory} is open to others (mode {stat.S_IMODE(info.st_mode):o}); chmod 700 it, or remove it"
        )


class Lock:
    """The lock of one cluster's directory, held while any process has this descriptor open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def name_init(self, pid: int, started_ticks: int) -> None:
        """Write down which process holds the lock for as long as the cluster lives."""
        os.pwrite(self.fd, f"{pid} {started_ticks}\n".encode(), 0)

    def close(self) -> None:
        """Close this process's descriptor; the lock is free when all are closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """For as long as it takes to make or to remove a directory, nobody else does."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _try_lock(directory: Path) -> Lock | None:
    """Take the lock of ``directory``, making its file; None if somebody holds it."""
    fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        os.close(fd)
        return None
    return Lock(fd)


def is_locked(directory: Path) -> bool:
    """Whether a launcher or an init holds the lock; does not take it."""
    try:
        fd = os.open(directory / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK)


def _read_init(directory: Path) -> tuple[int, int]:
    """(pid, started_ticks) of init; zeros where it is not written down (yet)."""
    try:
        pid, started_ticks = (directory / LOCK).read_text().split()
        return int(pid), int(started_ticks)
    except (FileNotFoundError, ValueError):
        return 0, 0


def create(name: str, root: Path) -> tuple[Path, Lock]:
    """Make the directory of a new cluster and take its lock. Raises NameTaken, InputError."""
    directory = root / check_name(name)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(root)
    with _alone(root):
        directory.mkdir(mode=0o700, exist_ok=True)
        _check_private(directory)
        if (lock := _try_lock(directory)) is None:
            state = "is running already" if (read_facts(directory) or _UNKNOWN).ready else "is starting"
            raise NameTaken(
                f"cluster {name!r} {state}; stop it: 'testbed down {name}', or choose another name"
            )
        _empty(directory)  # of what an earlier one that was killed left
        os.ftruncate(lock.fd, 0)
    return directory, lock


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove(directory: Path, lock: Lock | None = None) -> bool:
    """Remove a cluster's directory, unless it is in use; ``lock``: held by the caller, and closed here.

    Returns whether it is gone.
    """
    with _alone(directory.parent):
        if not directory.exists():
            return True
        if (lock := lock or _try_lock(directory)) is None:
            return False
        try:
            _empty(directory)
            (directory / LOCK).unlink()
            directory.rmdir()
        finally:
            lock.close()
    return True


def write_facts(directory: Path, facts: Facts) -> None:
    """Replace ``cluster.json`` as a whole."""
    temporary = directory / (FACTS + ".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    temporary.rename(directory / FACTS)


def read_facts(directory: Path) -> Facts | None:
    """``cluster.json``; None where it is not there (yet) or not readable as one."""
    try:
        return msgspec.json.decode((directory / FACTS).read_bytes(), type=Facts)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


def read_entry(directory: Path) -> ClusterEntry | None:
    """The cluster in ``directory``; None where there is no such directory."""
    try:
        made = directory.stat().st_mtime
        locked = is_locked(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    facts = read_facts(directory) or Facts(name=directory.name, version="", created=made)
    state: State = "stale" if not locked else "running" if facts.ready else "starting"
    pid, started_ticks = _read_init(directory)
    return ClusterEntry(
        name=directory.name,
        state=state,
        pid=pid,
        started=facts.created,
        directory=directory,
        started_ticks=started_ticks,
        spec=facts.spec,
        nodes=None if facts.nodes < 0 else facts.nodes,
        pods=None if facts.pods < 0 else facts.pods,
    )


def list_clusters(root: Path | None = None) -> list[ClusterEntry]:
    """Every cluster of this user, by name, stale ones too. Raises InputError for an unsafe directory."""
    root = root or root_directory()
    try:
        _check_private(root)
    except FileNotFoundError:
        return []
    entries = (read_entry(path) for path in sorted(root.iterdir()) if _LABEL.fullmatch(path.name))
    return [entry for entry in entries if entry is not None]


def clean_stale(root: Path | None = None) -> list[ClusterEntry]:
    """Remove what killed clusters left; every command that deals with clusters does. Returns what it was."""
    return [entry for entry in list_clusters(root) if entry.state == "stale" and remove(entry.directory)]


def resolve(name: str | None = None, root: Path | None = None) -> ClusterEntry:
    """The running cluster ``name``, or the only one; stale ones are removed on the way.

    Raises InputError that lists what there is.
    """
    clean_stale(root)
    entries = list_clusters(root)
    running = [entry for entry in entries if entry.state == "running"]
    names = ", ".join(entry.name for entry in running)
    if name is not None:
        check_name(name)
        for entry in entries:
            if entry.name == name and entry.state == "running":
                return entry
            if entry.name == name and entry.state == "starting":
                raise InputError(f"cluster {name!r} is still starting")
        raise InputError(f"no cluster named {name!r} is running; running: {names or 'none'}")
    if not running:
        raise InputError("no cluster is running; start one with 'testbed up SPEC'")
    if len(running) > 1:
        raise InputError(f"several clusters are running ({names}); choose one with --cluster NAME")
    return running[0]
