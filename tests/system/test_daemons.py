"""Daemons of a node: started with their files, fed, run again when they end, gone with the node's wish."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sandboxed import in_sandbox

from testbed.cluster import daemons
from testbed.cluster.daemons import Daemons, directory
from testbed.errors import TestbedError
from testbed.kernel import process
from testbed.state import Daemon

SHOW = 'echo "$$ $(cat said)" >> ran; exec sleep 1000'
DEADLINE = 10.0
Talk = Callable[[Daemons], Awaitable[None]]


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(daemons, "STATE", tmp_path)
    monkeypatch.setattr(daemons, "FIRST_BACKOFF", 0.05)


@pytest.fixture
def with_daemons(tmp_path: Path) -> Callable[[Talk], None]:
    """Runs what it is given with a node's daemons, in a sandbox: a daemon gets namespaces of its own."""

    async def whole(talk: Talk) -> None:
        loop = asyncio.get_running_loop()
        running = Daemons(loop, process.Children(loop), "node-1")
        try:
            await talk(running)
        finally:
            running.close()

    def run(talk: Talk) -> None:
        in_sandbox(lambda: asyncio.run(whole(talk)), tmp_path / "testbed")

    return run


def shell(script: str, said: str, reload: tuple[str, ...] = ()) -> dict[str, Daemon]:
    return {"teller": Daemon(("sh", "-c", script), {"said": said}, reload)}


async def runs(count: int) -> list[tuple[int, str]]:
    """What the daemon wrote, once it has done so ``count`` times: its pid and its file's content."""
    path = directory("node-1", "teller") / "ran"
    async with asyncio.timeout(DEADLINE):
        while True:
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= count:
                return [(int(line.split()[0]), line.partition(" ")[2]) for line in lines]
            await asyncio.sleep(0.01)


async def gone(pid: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while process.start_time(pid) is not None:
            await asyncio.sleep(0.01)


def test_a_daemon_starts_with_its_files_and_goes_when_it_is_not_wanted(
    with_daemons: Callable[[Talk], None],
) -> None:
    async def talk(running: Daemons) -> None:
        running.run(shell(SHOW, "from @DIR@"))
        [(pid, said)] = await runs(1)
        assert said == f"from {directory('node-1', 'teller')}"
        running.run({})
        await gone(pid)

    with_daemons(talk)


def test_a_daemon_that_ends_is_run_again(with_daemons: Callable[[Talk], None]) -> None:
    async def talk(running: Daemons) -> None:
        running.run(shell(SHOW, "hello"))
        [(first, _)] = await runs(1)
        os.kill(first, signal.SIGKILL)
        assert [said for _, said in await runs(2)] == ["hello", "hello"]

    with_daemons(talk)


def test_changed_files_are_read_by_the_reload_command_without_a_new_start(
    with_daemons: Callable[[Talk], None],
) -> None:
    async def talk(running: Daemons) -> None:
        reload = ("sh", "-c", 'echo "0 again: $(cat said)" >> ran')
        running.run(shell(SHOW, "one", reload))
        [(pid, _)] = await runs(1)
        running.run(shell(SHOW, "two", reload))
        assert await runs(2) == [(pid, "one"), (0, "again: two")]
        assert process.start_time(pid) is not None
        running.run(shell(SHOW + " ", "two", reload))  # another command line
        await gone(pid)
        assert (await runs(3))[2][1] == "two"

    with_daemons(talk)


def test_files_that_could_not_be_reloaded_are_reloaded_next_time(
    with_daemons: Callable[[Talk], None],
) -> None:
    async def talk(running: Daemons) -> None:
        reload = ("./again",)
        running.run(shell(SHOW, "one", reload))
        [(pid, _)] = await runs(1)
        with pytest.raises(TestbedError, match="teller: "):
            running.run(shell(SHOW, "two", reload))
        program = directory("node-1", "teller") / "again"
        program.write_text('#!/bin/sh\necho "0 again: $(cat said)" >> ran\n')
        program.chmod(0o755)
        running.run(shell(SHOW, "two", reload))
        assert await runs(2) == [(pid, "one"), (0, "again: two")]

    with_daemons(talk)


def test_without_a_reload_command_changed_files_mean_a_new_start(
    with_daemons: Callable[[Talk], None],
) -> None:
    async def talk(running: Daemons) -> None:
        running.run(shell(SHOW, "one"))
        [(pid, _)] = await runs(1)
        running.run(shell(SHOW, "two"))
        await gone(pid)
        assert [said for _, said in await runs(2)] == ["one", "two"]

    with_daemons(talk)


def test_a_program_that_is_not_there_is_refused(with_daemons: Callable[[Talk], None]) -> None:
    async def talk(running: Daemons) -> None:
        with pytest.raises(TestbedError, match=r"nobody: .*command not found"):
            running.run({"nobody": Daemon(("no-such-program",))} | shell(SHOW, "hello"))
        assert [said for _, said in await runs(1)] == ["hello"]  # it stops no other

    with_daemons(talk)


def test_a_log_begins_anew_before_it_is_too_long(
    with_daemons: Callable[[Talk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(daemons, "MAX_LOG", 1000)

    async def talk(running: Daemons) -> None:
        running.run(shell("while :; do echo a line; echo $$ > ran; sleep 0.001; done", ""))
        path = directory("node-1", "teller") / "log"
        async with asyncio.timeout(DEADLINE):
            while not (kept := path.with_suffix(".old")).exists():
                await asyncio.sleep(0.01)
            size = kept.stat().st_size
            while kept.stat().st_size == size:  # and once more
                await asyncio.sleep(0.01)
        assert set(kept.read_text().splitlines()) == {"a line"}
        assert path.stat().st_size < 100_000

    with_daemons(talk)
