"""The process of one cell: ``python -m testbed.campaign.cell FOLDER PARENT``.

It runs the scenario and leaves ``result.json`` in the folder. It ends when its parent does, and the cluster
when it does, so SIGKILL to whoever runs the campaign leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from testbed.errors import TestbedError
from testbed.kernel.paths import add_system_directories
from testbed.scenario.run import run_scenario

ORDER, RESULT, OUT, INPUT = "order.json", "result.json", "out", "input"
"""What lies in a cell's working folder: what to run, how it ended, the run folder's root, the files."""

OOM_SCORE: Final = "700"
"""Where the whole machine runs out of memory, a cell goes before who runs the campaign."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
"""linux/prctl.h."""


class Order(msgspec.Struct, frozen=True):
    """scenario: path below the folder ``input``."""

    scenario: str
    overrides: list[str]
    changes: dict[str, Any]
    seed: int


class Result(msgspec.Struct, frozen=True):
    """How it ended. folder: the run folder, relative to the working one, "" where there is none."""

    folder: str = ""
    expectations: int = 0
    met: int = 0
    error: str = ""
    exit_code: int = 0


def belong_to(parent: int) -> None:
    """End with the parent; take in orphans, so that the cluster's init counts as ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("whoever started this cell is gone")
    Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def run(folder: Path) -> Result:
    """Run the order of a working folder."""
    order = msgspec.json.decode((folder / ORDER).read_bytes(), type=Order)
    try:
        finished = run_scenario(
            folder / INPUT / order.scenario,
            overrides=order.overrides,
            changes=order.changes,
            seed=order.seed,
            out=folder / OUT,
            report=lambda line: print(line, flush=True),
        )
    except TestbedError as error:
        return Result(error=str(error), exit_code=error.exit_code)
    return Result(
        folder=str(finished.folder.relative_to(folder)),
        expectations=len(finished.expectations),
        met=sum(one.met for one in finished.expectations),
        error=str(finished.error) if finished.error else "",
        exit_code=finished.error.exit_code if finished.error else int(not finished.met),
    )


def main() -> int:
    """The process."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    belong_to(parent)
    add_system_directories()
    result = run(folder)
    draft = folder / f".{RESULT}"
    draft.write_bytes(msgspec.json.encode(result))
    draft.rename(folder / RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
