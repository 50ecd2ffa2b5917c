"""What this kernel and machine can do, by name: asked for, never assumed.

A spec that needs what is not there is refused before anything is built, with the name of what is missing
and the way to get it. Only what is asked for is probed: the kernel by ``kernel.probe``, programs by looking
for them, limits of the whole machine by ``kernel.limits``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import CommandFailed, Lack, MissingCapability, NotConverged
from testbed.kernel import limits
from testbed.kernel.paths import search_path
from testbed.kernel.probe import PROBES, USER_NAMESPACE, probe
from testbed.kernel.run import run
from testbed.kernel.sandbox import ALLOW_NAMESPACES

TOOL = "tool:"
"""Prefix of a capability that is a program of that name: ``tool:kubectl``."""


@dataclass(frozen=True)
class Capability:
    """One thing to have. why: what it is for; fix: how to get it; programs: those that come with it.

    optional: what Testbed does without, so that doctor says so and nobody is alarmed. version: the option
    with which the first of its programs tells its version.
    """

    name: str
    why: str
    fix: str
    programs: tuple[str, ...] = ()
    optional: bool = False
    version: str = ""


def _module(
    name: str,
    why: str,
    config: str,
    *,
    module: str = "",
    optional: bool = False,
    programs: tuple[str, ...] = (),
) -> Capability:
    fix = f"load the module ('sudo modprobe {module or name}'), or use a kernel built with {config}"
    return Capability(name, why, fix, programs, optional, "--version" if programs else "")


def _program(
    name: str,
    why: str,
    package: str = "",
    *programs: str,
    optional: bool = False,
    version: str = "--version",
) -> Capability:
    fix = f"install the package {package or name} ('make setup' does)"
    return Capability(name, why, fix, programs or (name,), optional, version)


CAPABILITIES: Mapping[str, Capability] = {
    each.name: each
    for each in (
        Capability(
            USER_NAMESPACE,
            "a cluster lives in namespaces of its own, without root in a user namespace",
            ALLOW_NAMESPACES,
        ),
        _module("veth", "pods and links are made of it", "CONFIG_VETH"),
        _module("bridge", "switches and the pods' bridge", "CONFIG_BRIDGE"),
        _module("br_netfilter", "bridged packets meet iptables, as on a node", "CONFIG_BRIDGE_NETFILTER"),
        _module("vxlan", "overlays", "CONFIG_VXLAN"),
        _module("tun", "user-space tunnels, on a /dev/net/tun open to you", "CONFIG_TUN", optional=True),
        _module("ipip", "overlays of IP in IP", "CONFIG_NET_IPIP", optional=True),
        Capability(
            "ipip-tunnel",
            "pods' packets in IP in IP (ipipMode of dataplane calico, backend ipip of flannel)",
            "load the module ('sudo modprobe ipip'), or run as root (sudo): then eBPF programs do the same; "
            "or use VXLAN",
            optional=True,
        ),
        Capability(
            "wireguard",
            "encrypted overlays (backend wireguard of dataplane flannel)",
            "load the module ('sudo modprobe wireguard') and install the package wireguard-tools ('make "
            "setup' does), or use a kernel built with CONFIG_WIREGUARD",
            ("wg",),
            optional=True,
            version="--version",
        ),
        _module(
            "openvswitch", "switches of Open vSwitch's kernel module", "CONFIG_OPENVSWITCH", optional=True
        ),
        _module("dummy", "links that lead nowhere", "CONFIG_DUMMY", optional=True),
        _module("ifb", "shaping of what comes in", "CONFIG_IFB", optional=True),
        _module("macvlan", "pods on the node's own segment", "CONFIG_MACVLAN", optional=True),
        _module("ipvlan", "pods on the node's own segment, with its MAC", "CONFIG_IPVLAN", optional=True),
        _module("vrf", "routing domains of their own", "CONFIG_NET_VRF", optional=True),
        _module("htb", "link bandwidth", "CONFIG_NET_SCH_HTB", module="sch_htb"),
        _module("tbf", "link bandwidth", "CONFIG_NET_SCH_TBF", module="sch_tbf"),
        _module(
            "netem", "link delay, jitter and loss", "CONFIG_NET_SCH_NETEM", module="sch_netem", optional=True
        ),
        _module(
            "ingress",
            "acting on what comes in",
            "CONFIG_NET_SCH_INGRESS",
            module="sch_ingress",
            optional=True,
        ),
        _module(
            "clsact", "eBPF programs on links", "CONFIG_NET_SCH_INGRESS", module="sch_ingress", optional=True
        ),
        _module("fq_codel", "fair queueing", "CONFIG_NET_SCH_FQ_CODEL", module="sch_fq_codel", optional=True),
        _module("nf_tables", "nftables rules", "CONFIG_NF_TABLES", programs=("nft",)),
        _module(
            "iptables",
            "service and masquerade rules",
            "CONFIG_NETFILTER_XTABLES",
            module="nft_compat",
            programs=("iptables-restore", "iptables-save"),
        ),
        _module(
            "ip6tables",
            "service and masquerade rules of IPv6",
            "CONFIG_NETFILTER_XTABLES",
            module="nft_compat",
            programs=("ip6tables-restore", "ip6tables-save"),
        ),
        _module(
            "iptables-legacy",
            "service rules with iptables' legacy backend",
            "CONFIG_IP_NF_IPTABLES_LEGACY",
            module="ip_tables",
            programs=("iptables-legacy-restore", "ip6tables-legacy-restore"),
            optional=True,
        ),
        _module("ipset", "sets of addresses in rules", "CONFIG_IP_SET", module="ip_set", programs=("ipset",)),
        Capability(
            "ipvs",
            "proxy mode ipvs",
            "load the module ('sudo modprobe ip_vs'), or use a kernel built with CONFIG_IP_VS, and run as "
            "root (sudo); or use proxy mode iptables or nftables",
            ("ipvsadm",),
            optional=True,
            version="--version",
        ),
        _module("sctp", "Services and policies of SCTP", "CONFIG_IP_SCTP", optional=True),
        Capability(
            "bpf", "eBPF dataplane", "run as root on a kernel built with CONFIG_BPF_SYSCALL", (), True
        ),
        _program("mininet", "the fabric", "mininet", "mnexec", version="-v"),
        _program("brctl", "Mininet's bridges", "bridge-utils"),
        _program("ip", "Mininet, and looking at a node", "iproute2", "ip", "tc", version="-V"),
        _program("dnsmasq", "cluster DNS", "dnsmasq-base"),
        _program("bird", "routing daemons of nodes", "bird2", "bird", "birdc"),
        _program("openssl", "pods that ask the API over HTTPS", optional=True),
        _program(
            "cni-plugins",
            "dataplane cni",
            "containernetworking-plugins",
            *(f"/usr/lib/cni/{name}" for name in ("bridge", "host-local", "portmap", "bandwidth")),
            optional=True,
            version="",
        ),
        _program("conntrack", "looking at connections", optional=True),
        _program(
            "openvswitch-switch",
            "dataplane weave with datapath: ovs",
            "openvswitch-switch",
            "ovs-vswitchd",
            "ovsdb-server",
            "ovs-vsctl",
            "ovs-ofctl",
            optional=True,
        ),
        _program("tcpdump", "looking at packets", optional=True),
        _program("ethtool", "looking at links", optional=True),
        _program(
            "ping", "round-trip times to compare ours with", "iputils-ping", optional=True, version="-V"
        ),
        _program("curl", "trying a pod's port by hand", optional=True),
        _program(
            "newuidmap",
            "more than one user id for ordinary users",
            "uidmap",
            "newuidmap",
            "newgidmap",
            optional=True,
            version="",
        ),
    )
}


def capability(name: str) -> Capability:
    """What is known of a name. Raises KeyError for one that is not in the table and is no ``tool:``."""
    if name.startswith(TOOL):
        program = name.removeprefix(TOOL)
        return Capability(
            name, f"the program {program}", f"install {program} and have it on PATH", (program,)
        )
    return CAPABILITIES[name]


def missing(names: Iterable[str], *, pods: int = 0, nodes: int = 0, proc: Path = limits.PROC) -> list[Lack]:
    """What of ``names`` this machine lacks, and which limits are too low for this many pods and nodes.

    names: of CAPABILITIES, or ``tool:PROGRAM``; KeyError for others. pods, nodes 0: limits are not looked at.
    proc: where ``/proc`` is. Takes milliseconds, needs no root and changes nothing.
    """
    asked = [capability(name) for name in dict.fromkeys(names)]
    lacks = [_lack(each, f"no program {absent}") for each in asked if (absent := _absent_program(each))]
    without = {lack.name for lack in lacks}
    answers = probe(each.name for each in asked if each.name in PROBES and each.name not in without)
    lacks += [_lack(CAPABILITIES[name], reason) for name, reason in answers.items() if reason]
    if pods or nodes:
        lacks += [limit_lack(limit) for limit in limits.limits(pods, nodes, proc) if not limit.holds]
    return lacks


def version_of(each: Capability) -> str:
    """The version that its program tells, "" where it tells none."""
    if not each.version:
        return ""
    try:
        said = run([each.programs[0], each.version], deadline=5)
    except (CommandFailed, NotConverged):
        return ""
    found = re.search(r"[0-9]+(\.[0-9]+)+[-.a-z0-9]*|20[0-9]{6}", said.stdout + said.stderr)
    return found[0] if found else ""


def require(names: Iterable[str], *, pods: int = 0, nodes: int = 0) -> None:
    """Raise MissingCapability (exit code 3) with everything of ``missing``."""
    lacks = missing(names, pods=pods, nodes=nodes)
    if lacks:
        raise MissingCapability(lacks)


def limit_lack(limit: limits.Limit) -> Lack:
    """A limit that is too low, as something missing."""
    return Lack(
        limit.name, f"{limit.need:,} needed, this machine allows {limit.have:,} ({limit.why})", limit.fix
    )


def _lack(each: Capability, reason: str) -> Lack:
    return Lack(each.name, f"{each.why} ({reason})", each.fix)


def _absent_program(each: Capability) -> str:
    """The first of its programs that is not found, or ""."""
    path = search_path()
    return next((program for program in each.programs if shutil.which(program, path=path) is None), "")
