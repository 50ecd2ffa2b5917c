"""``testbed lab``: start a lab, and check how far it is.

Exit code of check: 0 where everything holds, 1 where something does not yet.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from testbed.cli import output


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "lab", help="start a lab, check how far it is", description=output.description(__doc__)
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the labs there are")
    listing.set_defaults(run=run_list)
    output.add_output_option(listing)
    start = actions.add_parser("start", help="start a lab's cluster")
    start.add_argument("lab", metavar="LAB", help="its name or number")
    output.add_output_option(start)
    start.set_defaults(run=run_start)
    check = actions.add_parser("check", help="what holds and what does not yet")
    check.add_argument("lab", metavar="LAB", help="its name or number")
    output.add_output_option(check)
    check.set_defaults(run=run_check)


def run_list(args: argparse.Namespace) -> int:
    """Print the labs."""
    from testbed.labs import known

    if args.output:
        output.print_data([{"name": lab.name, "title": lab.title} for lab in known()], args.output)
    else:
        output.print_table(("LAB", "TITLE"), [(lab.name, lab.title) for lab in known()])
    return 0


def run_start(args: argparse.Namespace) -> int:
    """Start the cluster and say how to go on."""
    from testbed.labs import find

    lab = find(args.lab)
    lab.start()
    if args.output:
        said = {"name": lab.name, "title": lab.title, "cluster": lab.cluster_name, "text": str(lab.text)}
        output.print_data(said, args.output)
        return 0
    number = lab.name.split("-")[0]
    print(f"{lab.title}: cluster {lab.cluster_name} is up.")
    print(f"Read {lab.text}")
    print(f"Check your work with: testbed lab check {number}")
    print(f"Stop, and lose it, with: testbed down {lab.cluster_name}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Print a line per check; what does not hold is explained by what was seen and what was expected."""
    from testbed.labs import find

    findings = []
    for finding in find(args.lab).check():
        findings.append(finding)
        if args.output:
            continue
        verdict = output.colour("ok     ", "green") if finding.met else output.colour("not yet", "red")
        print(f"{verdict}  {finding.subject}")
        if not finding.met:
            print(f"         expected: {finding.expected}\n         seen:     {finding.seen}")
    met = sum(finding.met for finding in findings)
    if args.output:
        output.print_data([asdict(finding) for finding in findings], args.output)
    else:
        print(f"\n{met} of {len(findings)} checks hold")
    return 0 if met == len(findings) else 1
