"""The README's Python example is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

QUESTIONS = """
assert out.code == 0, out
assert out.stdout.startswith("frontend-"), out
assert len(frame) == 14 * 13
"""


def test_the_readmes_example_works_and_leaves_no_cluster() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    name = f"readme-{os.getpid()}"  # so that whoever runs a cluster of this spec here keeps it
    spec = '"topologies/three-nodes.yaml"'
    assert spec in example
    program = example.replace(spec, f"{spec}, name={name!r}") + QUESTIONS
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    clusters = [sys.executable, "-m", "testbed.cli.main", "ls"]
    assert name not in subprocess.run(clusters, check=True, capture_output=True, text=True).stdout
