"""``testbed doctor``: what this machine can and cannot do, and the fix; with a spec, whether it suffices."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from testbed.cli import output

ENOUGH_PROCESSORS = 2
REFERENCE_PODS, REFERENCE_NODES = 1000, 20
"""The size that limits are judged for where no spec says one."""


@dataclass(frozen=True)
class Finding:
    """One row. needed: by the spec, or without one by most clusters; fix: where the machine has it not."""

    name: str
    has: bool
    needed: bool
    purpose: str
    fix: str = ""

    @property
    def verdict(self) -> str:
        """In a word, with its colour."""
        if self.has:
            return output.colour("yes", "green")
        return output.colour("LACKING", "red") if self.needed else output.colour("no", "yellow")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can and cannot do, and the fix",
        description="What this machine can and cannot do, and the fix. Changes nothing and needs no root.",
        epilog="With SPEC the exit code is 3 where the machine lacks something that the cluster needs.",
    )
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="a cluster spec to judge the machine for")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the spec")
    output.add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Exit code 3 where a given spec needs what is not there."""
    from testbed.errors import MissingCapability
    from testbed.kernel.capabilities import CAPABILITIES
    from testbed.kernel.limits import start_seconds

    if args.spec is None:
        needs = frozenset(each.name for each in CAPABILITIES.values() if not each.optional)
        pods, nodes = REFERENCE_PODS, REFERENCE_NODES
    else:
        needs, pods, nodes = needs_of(args.spec, args.set)
    findings = examine([*CAPABILITIES, *sorted(needs - CAPABILITIES.keys())], needs, pods, nodes)
    findings += machine()
    seconds = start_seconds(pods, nodes)
    lacking = [each.name for each in findings if each.needed and not each.has]
    case, meaning = identity()
    if args.output:
        said = {"case": case, "pods": pods, "nodes": nodes, "start_seconds": seconds, "lacking": lacking}
        output.print_data(said | {"findings": [asdict(finding) for finding in findings]}, args.output)
    else:
        print(f"Clusters run {case}: {meaning}.")
        print(f"Limits are judged for {pods:,} pods on {nodes:,} nodes;")
        print(f"such a cluster takes about {seconds:.1f} s to start on two idle cores.\n")
        _print(findings)
        if args.spec is not None:
            print(f"\n{args.spec}: {judgement(lacking)}")
    return MissingCapability.exit_code if lacking and args.spec is not None else 0


def judgement(lacking: list[str]) -> str:
    """Whether the machine suffices, in a sentence."""
    if lacking:
        return f"does not fit this machine, which lacks {', '.join(lacking)}."
    return "fits this machine."


def needs_of(spec: str, overrides: list[str]) -> tuple[frozenset[str], int, int]:
    """What the cluster of a spec file needs: names of capabilities, pods, nodes. Raises InputError."""
    from testbed.api import start
    from testbed.objects.manifests import load_manifests
    from testbed.spec.load import load_spec
    from testbed.topology.planning import build, plan

    loaded = load_spec(spec, overrides)
    store = start.first_store(loaded, load_manifests(loaded.manifests))
    nodes = len(loaded.nodes)
    topo = build(loaded, plan(loaded))
    return frozenset(start.capabilities_needed(loaded, topo)), start.expected_pods(store, nodes), nodes


def examine(names: Iterable[str], needed: frozenset[str], pods: int, nodes: int) -> list[Finding]:
    """A finding for every capability in ``names`` and every limit of the machine."""
    from testbed.kernel import limits
    from testbed.kernel.capabilities import capability, limit_lack, missing, version_of
    from testbed.kernel.probe import PROBES, USER_NAMESPACE

    asked = list(names)
    lacks = {lack.name: lack for lack in missing(asked)}
    findings = []
    for each in map(capability, asked):
        lack, needs_it = lacks.get(each.name), each.name in needed
        if lack is None and USER_NAMESPACE in lacks and each.name in PROBES:
            fix = f"see {USER_NAMESPACE}"
            findings.append(
                Finding(
                    each.name,
                    False,
                    needs_it,
                    f"{each.why} (not known: there is no namespace to try it in)",
                    fix,
                )
            )
        elif lack is None:
            version = version_of(each)
            why = f"{each.why} ({each.programs[0]} {version})" if version else each.why
            findings.append(Finding(each.name, True, needs_it, why))
        else:
            findings.append(Finding(each.name, False, needs_it, lack.why, lack.fix))
    for limit in limits.limits(pods, nodes):
        if limit.holds:
            room = "not limited" if limit.have is None else f"{limit.have:,}"
            findings.append(Finding(limit.name, True, True, f"{room}, {limit.need:,} needed"))
        else:
            lack = limit_lack(limit)
            findings.append(Finding(limit.name, False, True, lack.why, lack.fix))
    return findings


def machine() -> list[Finding]:
    """What is no feature of the kernel: processors, ordinary users' rights, fitness for timing."""
    from testbed.errors import TestbedError
    from testbed.kernel import fitness, limits
    from testbed.kernel.sandbox import ALLOW_NAMESPACES

    processors = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    forbidding = limits.namespaces_forbidden_by()
    findings = [
        Finding(
            "processors",
            processors >= ENOUGH_PROCESSORS,
            False,
            f"{processors}, load {load:.1f}; with fewer than {ENOUGH_PROCESSORS} times say little",
            "" if processors >= ENOUGH_PROCESSORS else "give the machine more",
        ),
        Finding(
            "ordinary users",
            not forbidding,
            False,
            "clusters without root" + "".join(f" ({setting})" for setting in forbidding),
            ALLOW_NAMESPACES if forbidding else "",
        ),
    ]
    for name, measure, what in (
        ("wake-up delay", fitness.wake_up_delay, "how late a process runs that slept 1 ms"),
        ("veth round trip", fitness.veth_round_trip, "the noise floor: a datagram over a veth pair and back"),
    ):
        try:
            spread = measure()
        except TestbedError as error:
            findings.append(Finding(name, False, False, f"{what} ({error})", "see userns and veth"))
            continue
        fit = spread.p99 < fitness.LATE
        figures = f"median {spread.median * 1e6:.0f} µs, 99 % within {spread.p99 * 1e6:.0f} µs"
        fix = "" if fit else "leave the machine idle while measuring; give a VM whole processors, and KVM"
        findings.append(Finding(name, fit, False, f"{what}: {figures}", fix))
    return findings


def identity() -> tuple[str, str]:
    """As whom a cluster started here runs, and what that means: one of three cases."""
    from testbed.kernel.sandbox import needs_user_namespace, own_id_maps

    if not needs_user_namespace():
        return "as root", "everything works that the kernel has"
    ids = sum(extent.count for extent in own_id_maps().uids)
    user = f"as user {os.geteuid()} in a user namespace"
    if ids > 1:
        return user, f"with {ids:,} user ids; no eBPF programs, no loading of modules"
    return user, (
        "with one user id, as there are no subordinate ids (/etc/subuid, newuidmap): tcpdump and "
        "programs that change their user do not work inside, 'testbed capture' does"
    )


def _print(findings: list[Finding]) -> None:
    rows = [(each.name, each.verdict, each.purpose) for each in findings]
    output.print_table(("NAME", "HAS", "PURPOSE"), rows)
    fixes = [(each.name, each.fix) for each in findings if each.fix]
    if fixes:
        print("\nTo get what is not there:")
        output.print_table((), fixes)
