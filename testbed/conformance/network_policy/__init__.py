"""Suite ``network-policy``: recorded cases with their truth tables, on a live cluster of any kind.

The cases are read from the folders named on the command line; see ``cases`` for the format, ``stage`` for how
the cluster is brought from one state to the next, ``tables`` for how a cell is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testbed.conformance import Case, suites
from testbed.conformance.lab import Lab
from testbed.conformance.network_policy.cases import Recorded, load
from testbed.conformance.network_policy.stage import Stage
from testbed.conformance.network_policy.tables import check
from testbed.errors import InputError


class RecordedSuite:
    """A case per file. They follow each other on one stage, which is set up by the first of a run."""

    def __init__(self) -> None:
        self._stage: Stage | None = None

    def cases(self, folders: Sequence[Path]) -> list[Case]:
        """The cases of these folders. Raises InputError."""
        if not folders:
            raise InputError("say in which folder the recorded cases are")
        return self.played(load(folders), several=len(folders) > 1)

    def played(self, recorded: Sequence[Recorded], *, several: bool = False) -> list[Case]:
        """Cases that play these. several: they come of more than one folder, which their names begin with."""
        return [self._case(each, several) for each in recorded]

    def _case(self, recorded: Recorded, several: bool) -> Case:
        path = Path(recorded.file)
        name = f"{path.parent.name}/{path.stem}" if several else path.stem

        def body(lab: Lab) -> None:
            stage = self._of(lab)
            stage.begin(recorded)
            for number, step in enumerate(recorded.steps):
                lab.step(f"step {number + 1}")
                for action in step.actions:
                    stage.act(action)
                stage.settle()
                check(stage, step, lab.fail)

        return Case(name, recorded.name, body, alone=True)

    def _of(self, lab: Lab) -> Stage:
        if self._stage is None:
            self._stage = Stage(lab.cluster)
            lab.at_end.append(self._leave)
        return self._stage

    def _leave(self) -> None:
        if self._stage is not None:
            stage, self._stage = self._stage, None
            stage.close()


suites.register("network-policy")(RecordedSuite())
