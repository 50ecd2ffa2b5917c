"""Asks the kernel what it can do, in a throw-away child with namespaces of its own.

The child makes things in its network namespace and goes away with it: nothing on the host is touched and no
right is needed. A modular kernel loads the module at the question, as it would at the use.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping

from testbed.errors import CommandFailed, KernelRefused, NotConverged
from testbed.kernel import sandbox, syscalls
from testbed.kernel.netlink import NLMSG_ERROR, Request, answers, attribute, encode
from testbed.kernel.run import run
from testbed.wait import patient

log = logging.getLogger(__name__)

DEADLINE = 20.0
"""Seconds all probes may take together; they take milliseconds, unless the kernel loads modules for them."""

NETLINK_NETFILTER, NETLINK_GENERIC = 12, 16
RTM_NEWLINK, RTM_NEWQDISC = 16, 36
NLM_F_REQUEST, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x200, 0x400
IFLA_LINKINFO, IFLA_INFO_KIND, TCA_KIND = 18, 1, 1
LOOPBACK_INDEX = 1
TC_H_ROOT, TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
NFT_MSG_GETGEN = (10 << 8) | 16
"""NFNL_SUBSYS_NFTABLES: linux/netfilter/nfnetlink.h and nf_tables.h."""
IPSET_CMD_PROTOCOL = (6 << 8) | 1
"""NFNL_SUBSYS_IPSET: linux/netfilter/ipset/ip_set.h."""
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME = 16, 3, 2
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY = 0, 2

Probe = Callable[[], str]
"""Returns why the kernel cannot, or "" where it can."""

USER_NAMESPACE = "userns"


def _ask(protocol: int, kind: int, body: bytes, flags: int = 0) -> int:
    """Send one netlink request; the errno of its acknowledgement, 0 for success."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.send(encode([Request(kind, NLM_F_REQUEST | flags, body, "probe")]))
        while True:
            data = sock.recv(1 << 16)
            # The answer proper, where there is one, comes in a datagram before that of the acknowledgement.
            if struct.unpack_from("=IH", data)[1] == NLMSG_ERROR:
                return next(iter(answers(data)))[1]


def _link(kind: str) -> Probe:
    """Whether links of this kind can be made. A kind that is there may refuse for want of attributes."""

    def probe() -> str:
        info = attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind.encode() + b"\0"))
        refused = _ask(0, RTM_NEWLINK, bytes(16) + info, NLM_F_CREATE | NLM_F_EXCL)
        return "the kernel does not know this kind of link" if refused == errno.EOPNOTSUPP else ""

    return probe


def _qdisc(kind: str, parent: int = TC_H_ROOT) -> Probe:
    """Whether the queueing discipline exists. One that is there may refuse for want of options."""

    def probe() -> str:
        handle = parent & 0xFFFF0000 if parent == TC_H_INGRESS else 0
        body = struct.pack("=BxxxiIII", 0, LOOPBACK_INDEX, handle, parent, 0)
        refused = _ask(0, RTM_NEWQDISC, body + attribute(TCA_KIND, kind.encode() + b"\0"), NLM_F_CREATE)
        return "the kernel does not know this queueing discipline" if refused == errno.ENOENT else ""

    return probe


def _netfilter(kind: int, family: int, attributes: bytes = b"") -> Probe:
    """Whether a subsystem of nfnetlink answers."""

    def probe() -> str:
        refused = _ask(NETLINK_NETFILTER, kind, struct.pack("=BBH", family, 0, 0) + attributes)
        return os.strerror(refused) if refused else ""

    return probe


def _generic_netlink(family: str) -> Probe:
    """Whether a family of generic netlink is there."""

    def probe() -> str:
        body = struct.pack("=BBH", CTRL_CMD_GETFAMILY, 1, 0)
        refused = _ask(
            NETLINK_GENERIC, GENL_ID_CTRL, body + attribute(CTRL_ATTR_FAMILY_NAME, family.encode() + b"\0")
        )
        if refused == errno.ENOENT:
            return "the kernel does not know this family of generic netlink"
        return os.strerror(refused) if refused else ""

    return probe


def _bridge_netfilter() -> str:
    return (
        "" if os.path.exists("/proc/sys/net/bridge/bridge-nf-call-iptables") else "br_netfilter is not loaded"
    )


def _tun() -> str:
    with open("/dev/net/tun", "rb+", buffering=0) as device:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"probe", IFF_TUN | IFF_NO_PI))
    return ""


def _sctp() -> str:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    return ""


def _iptables(*programs: str) -> Probe:
    """Whether the iptables that is installed can write the kinds of rules that a node has."""

    def probe() -> str:
        rules = (
            "*nat\n-A POSTROUTING -m comment --comment probe -m mark ! --mark 0x1 -j MASQUERADE\nCOMMIT\n"
            "*filter\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n"
        )
        # The legacy back-end locks a file that only the host's root may open; no two share this namespace.
        env = {**os.environ, "XTABLES_LOCKFILE": "/dev/null"}
        for program in programs:
            run([program], stdin=rules, deadline=DEADLINE, env=env)
        return ""

    return probe


def _in_first_user_namespace() -> bool:
    with open("/proc/self/uid_map") as uid_map:
        return uid_map.read().split() == ["0", "0", "4294967295"]


def _own_mounts() -> str:
    """Whether a sandbox gets a /proc and a /sys of its own, which some containers do not allow."""
    if _in_first_user_namespace():
        return ""

    def mounts() -> None:
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        sandbox.mount_proc()
        sandbox.mount_sysfs()

    def namespaces() -> None:  # of which the PID namespace begins with the next child
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
        if refused := _in_child(mounts):
            raise OSError(refused, os.strerror(refused))

    refused = _in_child(namespaces)
    return f"a sandbox's own /proc and /sys: {os.strerror(refused)}" if refused else ""


def _in_child(body: Callable[[], None]) -> int:
    """Call ``body`` in a child of its own; the errno of the OSError that it raised, or 0."""
    child = os.fork()
    if child == 0:
        status = errno.EPROTO  # for what is no OSError
        try:
            body()
            status = 0
        except OSError as error:
            status = error.errno or errno.EPROTO
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _bpf() -> str:
    """Real root and bpf(2); a user namespace's root may load no program that touches packets."""
    import ctypes

    number = BPF_SYSCALL.get(os.uname().machine)
    if number is None:
        return f"not tried on {os.uname().machine}"
    if not _in_first_user_namespace():
        return "only the real root may load programs"
    attributes = (ctypes.c_uint32 * 32)(BPF_MAP_TYPE_ARRAY, 4, 4, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    return "" if result >= 0 else os.strerror(ctypes.get_errno())


def _ipip_tunnel() -> str:
    """The kernel's own device, or what stands in for it."""
    own = _link("ipip")()
    instead = own and _bpf()
    return f"{own}, and without it {instead}" if instead else ""


def _ipvs() -> str:
    """Whether IPVS is there and real root asks: a user namespace has neither its commands nor sysctls.

    Source: net/netfilter/ipvs/ip_vs_ctl.c (GENL_ADMIN_PERM; ip_vs_control_net_init_sysctl).
    """
    absent = _generic_netlink("IPVS")()
    return absent or ("" if _in_first_user_namespace() else "only the real root may configure it")


PROBES: Mapping[str, Probe] = {
    USER_NAMESPACE: str,  # asked first, as nothing else is asked without one
    "veth": _link("veth"),
    "bridge": _link("bridge"),
    "br_netfilter": _bridge_netfilter,
    "vxlan": _link("vxlan"),
    "tun": _tun,
    "ipip": _link("ipip"),
    "ipip-tunnel": _ipip_tunnel,
    "wireguard": _link("wireguard"),
    "openvswitch": _generic_netlink("ovs_datapath"),
    "dummy": _link("dummy"),
    "ifb": _link("ifb"),
    "macvlan": _link("macvlan"),
    "ipvlan": _link("ipvlan"),
    "vrf": _link("vrf"),
    "htb": _qdisc("htb"),
    "tbf": _qdisc("tbf"),
    "netem": _qdisc("netem"),
    "ingress": _qdisc("ingress", TC_H_INGRESS),
    "clsact": _qdisc("clsact", TC_H_INGRESS),
    "fq_codel": _qdisc("fq_codel"),
    "nf_tables": _netfilter(NFT_MSG_GETGEN, 0),
    "iptables": _iptables("iptables-restore"),
    "ip6tables": _iptables("ip6tables-restore"),
    "iptables-legacy": _iptables("iptables-legacy-restore", "ip6tables-legacy-restore"),
    "ipset": _netfilter(IPSET_CMD_PROTOCOL, socket.AF_INET, attribute(1, b"\7")),
    "ipvs": _ipvs,
    "sctp": _sctp,
    "bpf": _bpf,
}


def probe(names: Iterable[str]) -> dict[str, str]:
    """Ask for these names of PROBES; name → why not, or "" for yes.

    Without the right to make namespaces the answer is about USER_NAMESPACE alone. Raises NotConverged.
    """
    wanted = set(names)
    asked = [name for name in PROBES if name in wanted]
    if not asked:
        return {}
    begun = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(asked, writing)
    os.close(writing)
    try:
        answered: dict[str, str] = json.loads(_read_all(reading))
    except NotConverged:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    log.debug("probed %s in %.1f ms", " ".join(asked), (time.monotonic() - begun) * 1e3)
    return answered


def _read_all(fd: int) -> bytes:
    data, end = b"", time.monotonic() + patient(DEADLINE)
    while True:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise NotConverged("probing the kernel", patient(DEADLINE))
        more = os.read(fd, 1 << 16)
        if not more:
            return data
        data += more


def _child(asked: Iterable[str], writing: int) -> None:
    """The child's whole life; nothing of the parent's, such as its exit handlers, may run here."""
    status = 1
    try:
        os.write(writing, json.dumps(_answer(asked)).encode())
        status = 0
    finally:
        os._exit(status)


def _answer(asked: Iterable[str]) -> dict[str, str]:
    try:
        enter()
    except (KernelRefused, OSError) as error:
        return {USER_NAMESPACE: os.strerror(error.errno or 0)}
    if USER_NAMESPACE in asked and (refused := _own_mounts()):
        return {USER_NAMESPACE: refused}
    return {name: _guarded(PROBES[name]) for name in asked}


def _guarded(question: Probe) -> str:
    try:
        return question()
    except OSError as error:
        return error.strerror or str(error)
    except (CommandFailed, NotConverged) as error:
        return str(error)


def enter() -> None:
    """Move this process into a network namespace of its own, with the rights to change it. Raises OSError."""
    if sandbox.needs_user_namespace():
        maps = sandbox.plan_id_maps(os.geteuid(), os.getegid(), (), ())
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        sandbox.write_id_maps(os.getpid(), maps)
    syscalls.unshare(syscalls.CLONE_NEWNET)
