"""Verdicts as JUnit XML, as CI systems read it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from testbed.conformance.run import Verdict, counts


def junit(suite: str, verdicts: Sequence[Verdict]) -> str:
    """The document. suite: the name of the suite; times in seconds."""
    number = counts(verdicts)
    about = {
        "name": f"conformance {suite}",
        "tests": str(len(verdicts)),
        "failures": str(number["failed"]),
        "skipped": str(number["deferred"] + number["differs"]),
        "time": f"{sum(verdict.seconds for verdict in verdicts):.3f}",
    }
    root = ElementTree.Element("testsuites")
    listed = ElementTree.SubElement(root, "testsuite", about)
    for verdict in verdicts:
        one = ElementTree.SubElement(
            listed,
            "testcase",
            {"classname": f"conformance.{suite}", "name": verdict.name, "time": f"{verdict.seconds:.3f}"},
        )
        if verdict.status != "passed":
            tag = "failure" if verdict.status == "failed" else "skipped"
            ElementTree.SubElement(one, tag, {"message": verdict.why}).text = verdict.promise
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
