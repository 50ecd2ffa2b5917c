"""``testbed conformance``: what the cluster has to do, checked on it with real traffic.

Each case runs in a namespace of its own and leaves nothing behind. Exit code 1 where one failed. A case
that needs what the cluster or the kernel lacks is deferred: it is listed, never passed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.cli.output import Progress, add_output_option, colour, description, print_data, print_table
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.conformance import Case
    from testbed.conformance.run import Verdict


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "conformance", help="check what the cluster has to do", description=description(__doc__)
    )
    parser.add_argument("suite", metavar="SUITE", help="what to check: services, …")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="where recorded cases are")
    parser.add_argument("-k", "--only", default="", metavar="WORDS", help="cases whose name has these words")
    parser.add_argument("-j", "--jobs", type=int, default=0, help="cases at a time (default 8)")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each case")
    parser.add_argument("--list", action="store_true", help="say what would be checked, and check nothing")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit report too")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the suite and print what came out."""
    from testbed.conformance import suites

    chosen = _chosen(suites.get(args.suite).cases(args.folders), args.only)
    if args.list:
        return _list(chosen, args.output)
    begun = time.monotonic()
    verdicts = _run(args, chosen)
    seconds = time.monotonic() - begun
    if args.junit:
        from testbed.conformance.junit import junit

        args.junit.write_text(junit(args.suite, verdicts))
    return _print(args, verdicts, seconds)


def _chosen(cases: list[Case], words: str) -> list[Case]:
    chosen = [case for case in cases if all(word in case.name for word in words.split())]
    if not chosen:
        raise InputError(f"no case has {words!r} in its name" if words else "there are no cases")
    return chosen


def _list(cases: list[Case], form: str | None) -> int:
    if form:
        print_data(
            [{"name": one.name, "promise": one.promise, "needs": list(one.needs)} for one in cases], form
        )
    else:
        print_table(["CASE", "PROMISE"], [[one.name, one.promise] for one in cases])
    return 0


def _run(args: argparse.Namespace, cases: list[Case]) -> list[Verdict]:
    from testbed.api.cluster import Cluster
    from testbed.conformance.run import JOBS, run_cases

    done: list[Verdict] = []
    with Progress() as progress:

        def report(verdict: Verdict) -> None:
            done.append(verdict)
            if args.verbose:
                progress.show("")
                print(f"{_mark(verdict)} {verdict.seconds:6.2f} s  {verdict.name}", file=sys.stderr)
            failed = sum(one.status == "failed" for one in done)
            progress.show(f"{len(done)} of {len(cases)} cases, {failed} failed: {verdict.name}")

        progress.show(f"{len(cases)} cases …")
        return run_cases(Cluster.attach(args.cluster), cases, jobs=args.jobs or JOBS, report=report)


def _mark(verdict: Verdict) -> str:
    tint = {"passed": "green", "failed": "red"}.get(verdict.status, "yellow")
    return colour(f"{verdict.status:8}", tint, sys.stderr)


def _print(args: argparse.Namespace, verdicts: list[Verdict], seconds: float) -> int:
    import msgspec

    from testbed.conformance.run import counts

    number = counts(verdicts)
    if args.output:
        print_data(
            {
                "suite": args.suite,
                "seconds": round(seconds, 3),
                **number,
                "cases": [msgspec.to_builtins(verdict) for verdict in verdicts],
            },
            args.output,
        )
        return 1 if number["failed"] else 0
    failed = [verdict for verdict in verdicts if verdict.status == "failed"]
    if failed:
        print_table(
            ["FAILED", "SECONDS", "WHY"], [[one.name, f"{one.seconds:.1f}", one.why] for one in failed]
        )
        print()
    for one in verdicts:
        if one.status in ("differs", "deferred"):
            print(f"{one.status}: {one.name}: {one.why}")
    words = f"{number['passed']} passed"
    words += f", {number['differs']} known differences" if number["differs"] else ""
    words += f", {number['failed']} failed"
    words += f", {number['deferred']} deferred" if number["deferred"] else ""
    print(f"{colour(words, 'red' if failed else 'green')} in {seconds:.1f} s")
    return 1 if failed else 0
