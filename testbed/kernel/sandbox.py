"""The namespaces a cluster lives in: made by whoever starts it, with or without root.

User (only without root), network, mount, PID, IPC and UTS. When the PID namespace's init dies the kernel
kills every process in it, and with them go the namespaces, their links, rules and mounts.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import shutil
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import KernelRefused, Lack, MissingCapability
from testbed.kernel import syscalls as sc

log = logging.getLogger(__name__)

CAP_SYS_ADMIN = 21
_IFREQ = struct.Struct("16sH14x")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_BRIDGE_SYSCTLS = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")

ALLOW_NAMESPACES = (
    "as an ordinary user: sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
    "kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, or use sudo; "
    "in a container: start it privileged (see Containerfile)"
)
"""What to do where the kernel refuses the namespaces of a sandbox."""


@dataclass(frozen=True)
class Extent:
    """Ids ``inside`` … ``inside + count - 1`` of a user namespace are ``outside`` … on the host."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True)
class IdMaps:
    """How a user namespace maps ids. subordinate: written by newuidmap/newgidmap, which may map more
    than the caller's own id."""

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]
    subordinate: bool


def parse_subids(text: str, owners: Sequence[str]) -> list[tuple[int, int]]:
    """The ranges (first id, count) that /etc/subuid or /etc/subgid gives to one of ``owners``
    (login name, uid as text)."""
    ranges = []
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in owners and first.isdigit() and count.isdigit() and int(count) > 0:
            ranges.append((int(first), int(count)))
    return ranges


def plan_id_maps(
    uid: int, gid: int, subuids: Sequence[tuple[int, int]], subgids: Sequence[tuple[int, int]]
) -> IdMaps:
    """The caller becomes root inside; subordinate ids, where there are both kinds, follow from 1."""

    def extents(own: int, ranges: Sequence[tuple[int, int]]) -> tuple[Extent, ...]:
        result = [Extent(0, own, 1)]
        for first, count in ranges:
            result.append(Extent(result[-1].inside + result[-1].count, first, count))
        return tuple(result)

    if not subuids or not subgids:
        return IdMaps(extents(uid, ()), extents(gid, ()), subordinate=False)
    return IdMaps(extents(uid, subuids), extents(gid, subgids), subordinate=True)


def own_id_maps() -> IdMaps:
    """The maps this user can have on this machine."""
    uid, gid = os.geteuid(), os.getegid()
    owners = [str(uid)]
    with suppress(KeyError):
        owners.append(pwd.getpwuid(uid).pw_name)
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return plan_id_maps(uid, gid, (), ())
    return plan_id_maps(uid, gid, *(_ranges(path, owners) for path in ("/etc/subuid", "/etc/subgid")))


def _ranges(path: str, owners: Sequence[str]) -> list[tuple[int, int]]:
    try:
        return parse_subids(Path(path).read_text(), owners)
    except (FileNotFoundError, PermissionError):
        return []


def write_id_maps(pid: int, maps: IdMaps) -> bool:
    """Give the fresh user namespace of process ``pid`` its ids; called from outside it.

    Where newuidmap refuses (its set-uid bit may be void on this mount) one id is mapped instead.
    Returns whether there are subordinate ids. Raises KernelRefused.
    """
    if maps.subordinate:
        if _run_map_tool("newuidmap", pid, maps.uids) and _run_map_tool("newgidmap", pid, maps.gids):
            return True
        log.warning("newuidmap or newgidmap refused; running with one user id")
        maps = IdMaps(maps.uids[:1], maps.gids[:1], subordinate=False)
    try:
        # An ordinary user may map its group only after giving up setgroups (user_namespaces(7)).
        _write(f"/proc/{pid}/setgroups", "deny")
        for name, extents in (("gid_map", maps.gids), ("uid_map", maps.uids)):
            if not Path(f"/proc/{pid}/{name}").read_text():
                _write(f"/proc/{pid}/{name}", "".join(f"{e.inside} {e.outside} {e.count}\n" for e in extents))
    except OSError as error:
        raise KernelRefused("mapping this user's id", error.errno or 0, str(error)) from error
    return False


def _run_map_tool(tool: str, pid: int, extents: Sequence[Extent]) -> bool:
    path = shutil.which(tool)
    if path is None:
        return False
    numbers = [str(number) for e in extents for number in (e.inside, e.outside, e.count)]
    quiet = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(path, [tool, str(pid), *numbers], os.environ, file_actions=quiet)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def needs_user_namespace() -> bool:
    """Whether this process lacks the right to make namespaces by itself."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return not int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1
    return True


def enter_user_namespace() -> None:
    """Move this (single-threaded) process into a user namespace of its own, still without ids."""
    try:
        sc.unshare(sc.CLONE_NEWUSER)
    except OSError as error:
        raise _no_namespaces(error) from error


def _no_namespaces(error: OSError) -> MissingCapability:
    """Ubuntu's AppArmor lets a user namespace be made, but not be used: the refusal comes with the others."""
    lack = Lack(
        "namespaces for a sandbox",
        f"a cluster lives in some of its own, and the kernel refused ({error.strerror})",
        ALLOW_NAMESPACES,
    )
    return MissingCapability([lack])


def enter_namespaces() -> None:
    """Move into new network, mount, IPC and UTS namespaces; the next child is init of a new PID one.

    Once mapped to root by a user namespace, this is allowed to anybody. Raises MissingCapability.
    """
    flags = sc.CLONE_NEWNET | sc.CLONE_NEWNS | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWPID
    try:
        sc.unshare(flags)
    except OSError as error:
        raise _no_namespaces(error) from error


def prepare(keep: Path) -> None:
    """Make the sandbox's own mounts and network ready; called by its PID 1.

    keep: a host directory that stays visible even below /run. Raises KernelRefused, MissingCapability.
    """
    try:
        _prepare_mounts(keep)
        _prepare_terminals()
        _prepare_network()
    except PermissionError as error:  # as an unprivileged container's masked /proc, or AppArmor, brings
        raise _no_namespaces(error) from error
    except OSError as error:
        raise KernelRefused("setting the sandbox up", error.errno or 0, str(error)) from error


def _prepare_mounts(keep: Path) -> None:
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    mount_proc()
    mount_sysfs()
    kept = os.open(keep, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount_run()
    if not os.path.samefile("/run", "/var/run"):
        sc.mount("/run", "/var/run", None, sc.MS_BIND)
    if not keep.exists():
        keep.mkdir(parents=True)
        sc.mount(f"/proc/self/fd/{kept}", str(keep), None, sc.MS_BIND)
    os.close(kept)
    # Network namespaces that a program on a node names ('ip netns add') the next one there finds.
    os.mkdir("/run/netns")
    sc.mount("/run/netns", "/run/netns", None, sc.MS_BIND)
    sc.mount("none", "/run/netns", None, sc.MS_SHARED)


def mount_proc() -> None:
    """A /proc that shows this process's PID namespace. Raises OSError."""
    sc.mount("proc", "/proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)


def mount_sysfs(flags: int = 0) -> None:
    """A /sys that shows this process's network namespace; Mininet's mnexec needs to be able to mount it too.

    In a user namespace within a container the kernel refuses it, and /proc, where something of the
    container's own is masked or read-only (``mount_too_revealing`` of fs/namespace.c). Raises OSError.
    """
    try:
        sc.mount("sysfs", "/sys", "sysfs", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | flags)
    except OSError as error:
        if error.errno != errno.EBUSY:  # EBUSY: the one of this very namespace is there already
            raise


def mount_run() -> None:
    """An empty /run, with the one directory that tools expect in it."""
    sc.mount("tmpfs", "/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)  # noqa: S103 - as every distribution has it


def cover_file(path: Path, text: str) -> None:
    """Have everything in the sandbox see ``text`` at ``path`` of the host's file system. Raises OSError."""
    real = Path(os.path.realpath(path))
    if real.is_relative_to("/run"):  # the sandbox's own
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)
        return
    cover = Path("/run/testbed-cover") / str(path).strip("/").replace("/", "-")
    cover.parent.mkdir(exist_ok=True)
    cover.write_text(text)
    sc.mount(str(cover), str(real), None, sc.MS_BIND)


def _prepare_terminals() -> None:
    """Pseudo-terminals must work here; where the host's do not, the sandbox gets a set of its own."""
    try:
        for fd in os.openpty():
            os.close(fd)
    except OSError:
        sc.mount(
            "devpts", "/dev/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, "newinstance,ptmxmode=666,mode=620"
        )
        sc.mount("/dev/pts/ptmx", "/dev/ptmx", None, sc.MS_BIND)


def _prepare_network() -> None:
    loopback_up()
    for name in _BRIDGE_SYSCTLS:
        with suppress(FileNotFoundError):  # without the br_netfilter module bridges do not call netfilter
            _write(f"/proc/sys/net/bridge/{name}", "0")


def loopback_up() -> None:
    """Set ``lo`` up in this process's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = _IFREQ.pack(b"lo", 0)
        flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
