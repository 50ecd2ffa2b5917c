"""``testbed run``: one scenario on a cluster of its own; results and a report.

Exit code 1 where an expectation was not met.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from testbed.cli.output import colour, description, print_table


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run", help="run a scenario and report on it", description=description(__doc__)
    )
    parser.add_argument("scenario", type=Path, metavar="SCENARIO", help="the scenario, a YAML or Python file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value of the cluster's spec",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="where results go (default: results)"
    )
    parser.add_argument("--seed", type=int, help="of what is drawn by chance (default: the scenario's own)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the expectations as JUnit XML, too")
    parser.add_argument("-o", "--output", choices=("json",), help="instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run it and print what came out."""
    from testbed.scenario.run import run_scenario

    finished = run_scenario(
        args.scenario,
        overrides=args.set,
        out=args.out,
        report=lambda line: print(line, file=sys.stderr),
        seed=args.seed,
    )
    if args.junit:
        from testbed.report.junit import junit

        args.junit.write_text(junit(finished.folder))
    unmet = [one for one in finished.expectations if not one.met]
    if args.output == "json":
        _print_json(finished)
    else:
        _print_summary(finished.summary)
        total = len(finished.expectations)
        verdict = f"{total - len(unmet)} of {total} expectations met"
        print(f"\n{colour(verdict, 'red' if unmet else 'green')}")
        for one in unmet:
            print(f"  not met: {one.expected}; observed: {one.observed}")
        print(f"report: {finished.folder / 'report.html'}")
    if finished.error is not None:
        print(f"the run ended early: {finished.error}", file=sys.stderr)
        return finished.error.exit_code
    return 1 if unmet else 0


def _print_json(finished: Any) -> None:
    import json

    import msgspec

    result = {
        "folder": str(finished.folder),
        "met": finished.met,
        "error": str(finished.error) if finished.error else None,
        "expectations": msgspec.to_builtins(list(finished.expectations)),
        "summary": json.loads(finished.summary.to_json(orient="records")),
    }
    print(json.dumps(result, indent=4))


def _print_summary(summary: Any) -> None:
    columns = ("median", "p95", "p99")
    print()
    print_table(
        ["STEP", "PROTOCOL", "PATH", "PROBES", "OK", *(f"{name.upper()} µs" for name in columns)],
        [
            [
                f"{row['variant']}: {row['step']}" if row["variant"] else row["step"],
                row["protocol"],
                row["path"],
                row["probes"],
                row["ok"],
            ]
            + [_microseconds(row[name]) for name in columns]
            for row in summary.to_dict("records")
        ],
    )


def _microseconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return "lost" if math.isinf(seconds) else f"{seconds * 1e6:.1f}"
