"""Files of a node's own below /run, which all nodes share: only programs on the node see them there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

STATE = Path("/run/testbed-files")
"""In the sandbox: a directory per node."""


class Files:
    """The files of one node."""

    def __init__(self, node: str) -> None:
        self._home = STATE / node

    def write(self, files: Mapping[str, str]) -> None:
        """Have these files, each whole at any moment, and no others. Paths: ``/run/DIRECTORY/…``."""
        wanted = {self._home / path.removeprefix("/run/"): text for path, text in files.items()}
        for path in self._home.rglob("*") if self._home.exists() else ():
            if path.is_file() and path not in wanted:
                path.unlink()
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.write_text(text)
            draft.chmod(0o644)
            draft.rename(path)

    def volumes(self) -> dict[str, str]:
        """Directory below /run → that of ours that programs see in its place."""
        if not self._home.exists():
            return {}
        return {
            str(PurePosixPath("/run") / each.name): str(each)
            for each in self._home.iterdir()
            if each.is_dir()
        }

    def close(self) -> None:
        """Remove them."""
        shutil.rmtree(self._home, ignore_errors=True)
