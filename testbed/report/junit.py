"""A run's expectations as JUnit XML, as CI systems read it; from its folder alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from testbed.records import read_expectations


def junit(folder: Path) -> str:
    """The document: a test case per expectation, and one for the run, which fails where it ended early."""
    environment, expectations = read_expectations(folder)
    scenario, error = str(environment.get("scenario", folder.name)), environment.get("error")
    failed = sum(not one.met for one in expectations)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "name": f"scenario {scenario}",
            "tests": str(len(expectations) + 1),
            "failures": str(failed),
            "errors": str(int(bool(error))),
        },
    )
    whole = ElementTree.SubElement(suite, "testcase", {"classname": scenario, "name": "came to its end"})
    if error:
        ElementTree.SubElement(whole, "error", {"message": str(error)})
    for one in expectations:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"{scenario}.{one.step}", "name": one.expected}
        )
        if not one.met:
            ElementTree.SubElement(case, "failure", {"message": f"observed: {one.observed}"})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
