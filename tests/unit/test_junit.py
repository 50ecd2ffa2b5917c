"""Expectations as JUnit XML."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from testbed.report.junit import junit


def test_what_was_not_met_is_a_failure_and_an_early_end_an_error(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"scenario": "mine", "error": "no pods"}))
    expectations = [
        {"step": "load", "expected": "loss < 1 %", "observed": "0 %", "met": True},
        {"step": "load", "expected": "p99 < 5 ms", "observed": "9 ms", "met": False},
    ]
    (tmp_path / "expectations.json").write_text(json.dumps(expectations))
    suite = ElementTree.fromstring(junit(tmp_path))[0]  # noqa: S314 - our own
    assert suite.attrib == {"name": "scenario mine", "tests": "3", "failures": "1", "errors": "1"}
    assert suite[0][0].attrib["message"] == "no pods"
    assert [len(case) for case in suite] == [1, 0, 1]
    assert suite[2][0].attrib["message"] == "observed: 9 ms"
