"""Every failure a person can meet, as one tree that says whose fault it is and which exit code it has.

Exit codes (the command line's contract): 0 done, 1 an expectation failed, 2 bad usage or input,
3 the machine lacks something, 4 internal failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TestbedError(Exception):
    """Base of all errors that are shown to a person as a message, never as a traceback."""

    __test__ = False  # not a test class, whatever pytest thinks of its name
    exit_code = 4


class ExpectationFailed(TestbedError):
    """An experiment ran and did not show what was expected."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where it stands and what is wrong.

    file: the path as the user gave it, or "" where there is none; line: 1-based, 0 if unknown;
    path: field path such as ``spec.nodes.count``, "" for the whole document; message: plain text.
    """

    message: str
    file: str = ""
    line: int = 0
    path: str = ""

    def __str__(self) -> str:
        where = self.file + (f":{self.line}" if self.line else "")
        return ": ".join(part for part in (where, self.path, self.message) if part)


class InputError(TestbedError):
    """The user's input is wrong; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True)
class Lack:
    """One thing this machine lacks: its name, what needs it, and the way to get it."""

    name: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"missing {self.name}: {self.why}; {self.fix}"


class MissingCapability(TestbedError):
    """The kernel or machine lacks what the input needs; nothing has been built.

    lacks: what is missing, or the message of such an error that came from another process.
    """

    exit_code = 3

    def __init__(self, lacks: Sequence[Lack] | str) -> None:
        self.lacks = () if isinstance(lacks, str) else tuple(lacks)
        super().__init__(lacks if isinstance(lacks, str) else "\n".join(str(lack) for lack in self.lacks))


class CommandFailed(TestbedError):
    """A tool we ran ended with a failure."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str, where: str = "") -> None:
        self.argv, self.returncode, self.stderr, self.where = tuple(argv), returncode, stderr, where
        place = f" in {where}" if where else ""
        super().__init__(f"{' '.join(argv)}{place}: exit code {returncode}: {stderr.strip()}")


class KernelRefused(TestbedError):
    """The kernel refused one netlink or system call; says what was asked, where, and the errno."""

    def __init__(self, what: str, errno: int, message: str = "", where: str = "") -> None:
        self.what, self.errno, self.where = what, errno, where
        place = f" in {where}" if where else ""
        super().__init__(f"{what}{place}: errno {errno}{': ' + message if message else ''}")


class NotConverged(TestbedError):
    """A condition did not come true before its deadline."""

    def __init__(self, what: str, waited: float, detail: str = "") -> None:
        self.what, self.waited = what, waited
        super().__init__(f"{what}: not after {waited:.1f} s{': ' + detail if detail else ''}")


def error_of(exit_code: int, message: str) -> TestbedError:
    """The error that another process reported by its exit code and message, to be raised here again."""
    match exit_code:
        case ExpectationFailed.exit_code:
            return ExpectationFailed(message)
        case InputError.exit_code:
            return InputError(message)
        case MissingCapability.exit_code:
            return MissingCapability(message)
        case _:
            return TestbedError(message)
