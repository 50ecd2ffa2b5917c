"""Runs a program as a process of a pod, a node or an outside host: in its namespaces, with its files.

A pod is a network namespace and nothing else until something is executed in it; the mounts, the hostname
and the privileges a container would have are made here, for this one program.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
import socket
import struct
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from testbed.errors import InputError, KernelRefused
from testbed.kernel import process, sandbox
from testbed.kernel import syscalls as sc

log = logging.getLogger(__name__)

CONTAINER_CAPABILITIES = frozenset(
    # containerd v2.0, pkg/oci/spec.go, defaultUnixCaps; numbers from linux/capability.h.
    {
        0,  # CHOWN
        1,  # DAC_OVERRIDE
        3,  # FOWNER
        4,  # FSETID
        5,  # KILL
        6,  # SETGID
        7,  # SETUID
        8,  # SETPCAP
        10,  # NET_BIND_SERVICE
        13,  # NET_RAW
        18,  # SYS_CHROOT
        27,  # MKNOD
        29,  # AUDIT_WRITE
        31,  # SETFCAP
    }
)
NOFILE = 1024
"""Soft limit of descriptors of a program, as systemd gives it; the hard limit stays."""

_REPORT = struct.Struct("!iB")  # errno, stage
_SETUP, _CHDIR, _EXEC = range(3)


@dataclass(frozen=True)
class _Program:
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdio: tuple[int, int, int]
    netns: int | None
    hostname: str | None
    domainname: str
    files: Mapping[str, str] = field(repr=False)
    volumes: Mapping[str, str]
    tty: bool
    drop_privileges: bool
    largest_file: int


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    stdio: tuple[int, int, int],
    netns: int | None = None,
    hostname: str | None = None,
    domainname: str = "",
    files: Mapping[str, str] | None = None,
    volumes: Mapping[str, str] | None = None,
    tty: bool = False,
    drop_privileges: bool = False,
    largest_file: int = resource.RLIM_INFINITY,
) -> int:
    """Start a program and return its pid when it runs. Its parent is this process; no thread may fork.

    env: the whole environment; its PATH finds the program. stdio: descriptors, still open here afterwards.
    netns: descriptor of the network namespace, None for ours. hostname: with one the program gets UTS, IPC
    and mount namespaces of its own, with ``files`` (absolute path → content) and a /sys that shows the netns.
    volumes: path below /run → directory of ours that is seen there; only with a hostname.
    tty: stdin is the terminal that becomes the controlling one of the program's session.
    drop_privileges: as in a container, at most CONTAINER_CAPABILITIES, an empty /run and a read-only /sys.
    largest_file: bytes that it may write to a file, standard output included; SIGXFSZ ends it beyond.
    The program leads a session and a process group and dies with this process.

    Raises FileNotFoundError or another OSError where the program or cwd cannot be used (see
    ``failure_code``), KernelRefused where its surroundings cannot be made, InputError for no program at all.
    """
    if not argv or not argv[0]:
        raise InputError("no program to run: the command is empty")
    if any("\0" in word for word in (*argv, *env, *env.values(), cwd)):
        raise InputError("a command, its environment and its directory cannot contain NUL characters")
    program = _Program(
        *(argv, env, cwd, stdio, netns, hostname, domainname, files or {}, volumes or {}, tty),
        *(drop_privileges, largest_file),
    )
    reader, writer = os.pipe()
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _child(program, writer, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(writer)
    with open(reader, "rb") as pipe:
        report = pipe.read()
    if report:
        os.waitpid(pid, 0)
        number, stage = _REPORT.unpack_from(report)
        raise _error(program, number, stage, report[_REPORT.size :].decode(errors="replace"))
    return pid


def failure_code(error: OSError) -> int:
    """The exit code a shell gives for a program that could not be started."""
    return 127 if isinstance(error, FileNotFoundError) else 126


def failure_text(error: OSError) -> str:
    """What a shell says of it: ``curl: command not found``."""
    return f"{error.filename}: {error.strerror}"


def _error(program: _Program, number: int, stage: int, text: str) -> OSError | KernelRefused:
    name = program.argv[0]
    if stage == _EXEC:
        # OSError's constructor picks FileNotFoundError, PermissionError … by the number.
        what = "command not found" if number == 2 else os.strerror(number)
        return OSError(number, what, name)
    if stage == _CHDIR:
        return NotADirectoryError(number, os.strerror(number), program.cwd)
    return KernelRefused(f"starting {name}", number, text)


def _child(program: _Program, report: int, parent: int) -> NoReturn:
    """Between fork and exec. Whatever goes wrong is written to ``report``, which exec closes."""
    stage = _SETUP
    try:
        process.reset_signals()
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 3)
        _take_stdio(program.stdio)
        _enter(program)
        _take_terminal(program.tty)
        _limit(program.drop_privileges, program.largest_file)
        stage = _CHDIR
        os.chdir(program.cwd)
        stage = _EXEC
        sc.close_range(3, process.MAX_FD, sc.CLOSE_RANGE_CLOEXEC)
        os.execvpe(program.argv[0], list(program.argv), dict(program.env))  # noqa: S606 - no shell is meant
    except OSError as error:
        os.write(report, _REPORT.pack(error.errno or 0, stage) + str(error).encode()[:1024])
    except BaseException as error:  # noqa: BLE001 - nothing of the parent may run on in this process
        os.write(report, _REPORT.pack(0, stage) + repr(error).encode()[:1024])
    finally:
        os._exit(127)


def _take_stdio(stdio: tuple[int, int, int]) -> None:
    # First out of the way: one of them may be another's target.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in stdio]
    for target, fd in enumerate(high):
        os.dup2(fd, target)


def _enter(program: _Program) -> None:
    if program.netns is not None:
        sc.setns(program.netns, sc.CLONE_NEWNET)
    if program.hostname is None:
        return
    sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC)
    socket.sethostname(program.hostname)
    sc.setdomainname(program.domainname)
    if program.drop_privileges:  # on a node /run/netns stays shared, all else is the sandbox's own already
        sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    sandbox.mount_sysfs(sc.MS_RDONLY if program.drop_privileges else 0)
    _mount_files(program.files)
    if program.drop_privileges:
        # Held open: the /run that they are in is about to be covered.
        held = {path: os.open(at, os.O_PATH | os.O_DIRECTORY) for path, at in program.volumes.items()}
        sandbox.mount_run()
        for path, fd in held.items():
            os.makedirs(path)
            sc.mount(f"/proc/self/fd/{fd}", path, None, sc.MS_BIND)
            os.close(fd)
    else:
        for path, at in program.volumes.items():
            os.makedirs(path, exist_ok=True)
            sc.mount(at, path, None, sc.MS_BIND)
    _make_in_run(program.files)


def _mount_files(files: Mapping[str, str]) -> None:
    """Put each file over the one of that path. One whose path does not exist cannot be: the file system
    below is the host's, where nothing may be made."""
    targets = {path: content for path, content in files.items() if not _in_run(path)}
    if not targets:
        return
    sc.mount("tmpfs", "/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=700")
    for number, (path, content) in enumerate(sorted(targets.items())):
        source = f"/run/{number}"
        Path(source).write_text(content)
        os.chmod(source, 0o644)
        try:
            sc.mount(source, path, None, sc.MS_BIND)
        except FileNotFoundError:
            print(f"{path}: not on this machine, so not in the pod", file=sys.stderr)
    # The binds keep the files; the directory itself is not to be seen.
    sc.umount("/run", sc.MNT_DETACH)


def _in_run(path: str) -> bool:
    """Whether ``path`` leads below /run (systemd-resolved makes /etc/resolv.conf such a link)."""
    return os.path.realpath(path).startswith(("/run/", "/var/run/"))


def _make_in_run(files: Mapping[str, str]) -> None:
    for path, content in files.items():
        if _in_run(path):
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)


def _take_terminal(tty: bool) -> None:
    os.setsid()
    if tty:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _limit(drop_privileges: bool, largest_file: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(NOFILE, hard), hard))
    if largest_file != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.umask(0o022)
    if not drop_privileges:
        return
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        if capability not in CONTAINER_CAPABILITIES:
            sc.prctl(sc.PR_CAPBSET_DROP, capability)
    sc.prctl(sc.PR_CAP_AMBIENT, sc.PR_CAP_AMBIENT_CLEAR_ALL)
    sc.clear_inheritable_capabilities()
