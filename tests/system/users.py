"""For tests: being another user. Import the fixtures by name where they are used."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
NOBODY = 65534


def become(uid: int, gid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


as_nobody = pytest.mark.needs("user:root", "user:others")
as_subordinate_user = pytest.mark.needs("user:root", "user:others", "tool:useradd", "tool:newuidmap")
"""Of tests that become these, the latter by the fixture below."""


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A place any user may make a directory in."""
    place = Path("/tmp") / f"testbed-test-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    place.chmod(0o1777)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def subordinate_user() -> Iterator[tuple[int, int]]:
    """A user of its own with subordinate ids, as adduser makes one; gone afterwards."""
    name = f"tb{uuid.uuid4().hex[:8]}"
    subprocess.run(
        ["useradd", "--no-create-home", "--add-subids-for-system", "--user-group", name], check=True
    )
    try:
        ids = [
            subprocess.run(["id", flag, name], capture_output=True, check=True).stdout
            for flag in ("-u", "-g")
        ]
        yield int(ids[0]), int(ids[1])
    finally:
        subprocess.run(["userdel", name], check=True)
