"""``testbed campaign``: a scenario under every combination of some factors' levels; results and a report.

Exit code 1 where an expectation of a cell was not met. Interrupted or killed, it loses the cells in flight;
--resume goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from testbed.cli.output import colour, description, print_data, print_table


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "campaign", help="run a scenario over factors and levels", description=description(__doc__)
    )
    parser.add_argument("campaign", type=Path, metavar="CAMPAIGN", help="the campaign, a YAML file")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="cells at once on this machine (default: 1)"
    )
    where.add_argument(
        "--scheduler", metavar="ADDR", help="run the cells on a dask cluster, such as tcp://10.0.0.1:8786"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the cells that are not done")
    parser.add_argument("--dry-run", action="store_true", help="tell cells, time and memory, and run nothing")
    parser.add_argument(
        "--disturbed",
        choices=("refuse", "mark"),
        default="refuse",
        help="what to do where several cells at once disturb each other (default: refuse)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="where results go (default: results)"
    )
    parser.add_argument("-o", "--output", choices=("json",), help="instead of a table")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Run it, or tell what it would do."""
    return _dry_run(args) if args.dry_run else _run(args)


def _dry_run(args: argparse.Namespace) -> int:
    from testbed.campaign.estimate import spoken
    from testbed.campaign.run import outlook

    ahead = outlook(args.campaign, out=args.out, workers=args.workers)
    if args.output:
        print_data(
            {
                "folder": str(ahead.folder),
                "cells": [
                    {"levels": dict(cell.levels), "replicate": cell.replicate, "seed": cell.seed}
                    for cell in ahead.cells
                ],
                "done": ahead.done,
                "seconds": ahead.seconds,
                "memory": ahead.memory,
                "source": ahead.source,
                "longest": ahead.longest,
            },
            args.output,
        )
        return 0
    factors = list(ahead.cells[0].levels) if ahead.cells else []
    print_table(
        ["#", *(name.upper() for name in factors), "REPLICATE", "SEED"],
        [[cell.position, *cell.levels.values(), cell.replicate, cell.seed] for cell in ahead.cells],
    )
    print(f"\n{len(ahead.cells)} cells to run, {ahead.done} done, in {ahead.folder}")
    memory = f"{ahead.memory >> 20} MiB" if ahead.memory else "unknown"
    print(f"time: {spoken(ahead.seconds)}, memory: {memory}; an estimate, from {ahead.source}")
    print(f"the limits allow {spoken(ahead.longest)} at most")
    return 0


def _run(args: argparse.Namespace) -> int:
    from testbed.campaign.run import run_campaign

    try:
        ended = run_campaign(
            args.campaign,
            out=args.out,
            workers=args.workers,
            scheduler=args.scheduler,
            resume=args.resume,
            disturbed=args.disturbed,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("interrupted; --resume goes on with what is left", file=sys.stderr)
        raise
    from testbed.records import REPORT
    from testbed.report.html import write_report

    target = ended.folder / REPORT
    write_report([ended.folder], target)
    if args.output:
        print_data(_as_data(ended, target), args.output)
        return ended.exit_code
    outcomes: dict[str, int] = {}
    for cell in ended.cells:
        outcomes[cell.outcome] = outcomes.get(cell.outcome, 0) + 1
    print_table(["OUTCOME", "CELLS"], sorted(outcomes.items()))
    done = sum(cell.done for cell in ended.cells)
    words = f"{done} of {ended.planned} cells have a result"
    print(f"\n{colour(words, 'green' if done == ended.planned else 'red')}")
    for cell in ended.cells:
        if not cell.done:
            levels = " ".join(f"{name}={label}" for name, label in cell.levels.items())
            print(f"  {levels} #{cell.replicate}: {cell.outcome}: {cell.error}")
    print(f"samples: {ended.folder / 'samples'}\nreport: {target}")
    return ended.exit_code


def _as_data(ended: Any, target: Path) -> dict[str, Any]:
    import msgspec

    return {
        "folder": str(ended.folder),
        "planned": ended.planned,
        "ran": ended.ran,
        "report": str(target),
        "cells": msgspec.to_builtins(list(ended.cells)),
    }
