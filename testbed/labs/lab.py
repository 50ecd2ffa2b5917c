"""What a lab is, where it is found, and how it is started and checked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.api.cluster import Cluster
from testbed.errors import InputError

FOLDER = Path(__file__).parents[2] / "labs"
"""Where the labs of this clone are."""


@dataclass(frozen=True)
class Finding:
    """One check's result. subject: what was looked at; expected, seen: of it, in words a student has met."""

    subject: str
    met: bool
    expected: str
    seen: str


Check = Callable[[Cluster], Finding]


@dataclass(frozen=True)
class Lab:
    """One lab. folder: where its files are."""

    folder: Path

    @property
    def name(self) -> str:
        """As its folder is called: ``01-pod-network-by-hand``."""
        return self.folder.name

    @property
    def cluster_name(self) -> str:
        """What its cluster is called: ``lab-01``."""
        return f"lab-{self.name.split('-')[0]}"

    @property
    def text(self) -> Path:
        """What the student reads."""
        return self.folder / "README.md"

    @property
    def title(self) -> str:
        """The text's first heading."""
        return self.text.read_text().splitlines()[0].lstrip("# ")

    def start(self) -> Cluster:
        """Start its cluster, before the student did anything. Raises InputError, MissingCapability."""
        return Cluster.up(self.folder / "cluster.yaml", name=self.cluster_name)

    def check(self) -> Iterator[Finding]:
        """Look at the running cluster, a finding at a time. Raises InputError where it is not running."""
        cluster = Cluster.attach(self.cluster_name)
        for check in self._checks():
            yield check(cluster)

    def _checks(self) -> Sequence[Check]:
        file = self.folder / "check.py"
        spec = importlib.util.spec_from_file_location(f"testbed_lab_{self.cluster_name}", file)
        if spec is None or spec.loader is None:
            raise InputError(f"{file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for their module
        spec.loader.exec_module(module)
        checks: Sequence[Check] = module.CHECKS
        return checks


def known(folder: Path = FOLDER) -> list[Lab]:
    """All labs, in order."""
    return [Lab(path.parent) for path in sorted(folder.glob("[0-9][0-9]-*/check.py"))]


def find(name: str, folder: Path = FOLDER) -> Lab:
    """The lab of a name, of its number (``01``, ``1``), or of a folder. Raises InputError."""
    if (Path(name) / "check.py").is_file():
        return Lab(Path(name).resolve())
    for lab in known(folder):
        if name in (lab.name, lab.name.split("-")[0]) or name.zfill(2) == lab.name.split("-")[0]:
            return lab
    names = ", ".join(lab.name for lab in known(folder)) or "none"
    raise InputError(f"no lab {name!r}; there are: {names}")
