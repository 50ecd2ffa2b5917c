from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from testbed import __version__
from testbed.cli import doctor, main
from testbed.errors import ExpectationFailed, InputError, Lack, MissingCapability, NotConverged, Problem

Run = Callable[[argparse.Namespace], int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Run], None]:
    """Makes the doctor's command do something else."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TESTBED_CLUSTER", raising=False)

    def replace(run: Run) -> None:
        def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
            subparsers.add_parser("doctor").set_defaults(run=run)

        monkeypatch.setattr(doctor, "register", register)

    return replace


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["ls"], "ls"),
        (["-C", "exec", "get", "pods"], "get"),
        (["--cluster", "a", "--debug", "get"], "get"),
        (["--cluster=a", "get", "-C", "b"], "get"),
        (["--version"], None),
        ([], None),
    ],
)
def test_the_command_is_the_first_word_that_is_no_option(argv: Sequence[str], named: str | None) -> None:
    assert main.command_in(argv) == named


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main([name, "--help"])
    assert left.value.code == 0
    assert f"testbed {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    text = capsys.readouterr().out
    assert [name for name in main.COMMANDS if f"    {name} " not in text] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"testbed {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["doctor", "--nonsense"], ["-C"]])
def test_a_usage_error_is_2(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(argv)
    assert left.value.code == 2
    assert "usage: testbed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ExpectationFailed("5 pairs differ"), 1, "5 pairs differ"),
        (
            InputError([Problem("must be at least 1", "a.yaml", 3, "spec.nodes.count")]),
            2,
            "a.yaml:3: spec.nodes",
        ),
        (MissingCapability([Lack("netem", "link delay", "modprobe sch_netem")]), 3, "missing netem"),
        (NotConverged("ready", 5.0), 4, "ready: not after 5.0 s"),
    ],
)
def test_our_errors_are_a_message_and_their_exit_code(
    command: Callable[[Run], None],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    message: str,
) -> None:
    command(raising(error))
    assert main.main(["doctor"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert "Traceback" not in printed.err


def test_an_interrupt_is_130(command: Callable[[Run], None]) -> None:
    command(raising(KeyboardInterrupt()))
    assert main.main(["doctor"]) == 130


def test_the_unforeseen_is_4_with_its_traceback_in_a_file(
    command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command(raising(ZeroDivisionError("division by zero")))
    assert main.main(["doctor"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("internal failure: ZeroDivisionError: division by zero")
    (file,) = tmp_path.iterdir()
    assert str(file) in line
    assert "Traceback" in file.read_text()


def test_debug_shows_the_traceback(
    command: Callable[[Run], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command(raising(ZeroDivisionError("division by zero")))
    assert main.main(["--debug", "doctor"]) == 4
    assert "Traceback" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "environment", "cluster"),
    [
        (["doctor"], None, None),
        (["doctor"], "e", "e"),
        (["-C", "a", "doctor"], "e", "a"),
        (["doctor", "-C", "b"], "e", "b"),
        (["-C", "a", "doctor", "--cluster", "b"], None, "b"),
    ],
)
def test_the_cluster_is_named_before_or_after_the_command_or_by_the_environment(
    command: Callable[[Run], None],
    monkeypatch: pytest.MonkeyPatch,
    argv: Sequence[str],
    environment: str | None,
    cluster: str | None,
) -> None:
    if environment:
        monkeypatch.setenv("TESTBED_CLUSTER", environment)
    seen: list[str | None] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args.cluster)
        return 0

    command(run)
    assert main.main(argv) == 0
    assert seen == [cluster]
