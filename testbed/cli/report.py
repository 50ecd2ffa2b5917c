"""``testbed report``: the report of a run or a campaign, or the comparison of several, the first being the
baseline.

Of a comparison each may also be a folder that holds several runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from testbed.cli.output import add_output_option, description, print_data


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report", help="report on runs from their folders", description=description(__doc__)
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of runs or campaigns")
    parser.add_argument("--format", choices=("html", "md"), default="html", help="default: html")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html or report.md in the (first) folder"
    )
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write it and print its path."""
    from testbed.report.html import write_report
    from testbed.report.markdown import write_markdown

    single = len(args.folders) == 1
    target = args.out or args.folders[0] / f"{'report' if single else 'comparison'}.{args.format}"
    (write_report if args.format == "html" else write_markdown)(args.folders, target)
    if args.output:
        print_data({"report": str(target)}, args.output)
    else:
        print(target)
    return 0
