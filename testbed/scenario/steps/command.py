"""``command``: a command as a person would type it, with what it prints, checked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from testbed.errors import InputError
from testbed.records import READ
from testbed.scenario.model import Context, Step, step

LOOK_AGAIN_SECONDS = 0.2
COMMAND_SECONDS = 60.0
_PLACE = re.compile(r"\{(\w+) ([^}]+)\}")


@step("command")
class Command(Step, frozen=True, kw_only=True):
    """run: a ``testbed`` command line; in it ``{pod NAME}`` is that pod's address, ``{service NAME}`` that
    Service's ClusterIP (``NAMESPACE/NAME`` outside default).

    say: what it shows, for the reader. prints: regular expressions that must be found in what it prints,
    hides: such that must not; reads: name → such a one with a group, whose text is recorded under that name,
    to be compared between variants. In all of them places are filled in, too. code: its exit code. within:
    seconds in which it has to come true, being run again until then.
    """

    run_: str = msgspec.field(name="run")
    say: str = ""
    prints: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    reads: dict[str, str] = msgspec.field(default_factory=dict)
    code: int = 0
    within: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0

    def __post_init__(self) -> None:
        reads = [(f"reads: {name}", pattern) for name, pattern in self.reads.items()]
        shows = [("prints", pattern) for pattern in self.prints] + [("hides", each) for each in self.hides]
        for where, pattern in (*shows, *reads):
            try:
                groups = re.compile(pattern).groups
            except (re.error, OverflowError) as error:
                raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from error
            if (where, pattern) in reads and groups != 1:
                raise ValueError(f"{where}: needs one group: what is in parentheses is read")

    def run(self, context: Context) -> None:
        """Run it, show it and compare."""
        line = filled_in(self.run_, context, literally=True)
        words = shlex.split(line)
        if not words or words[0] != "testbed":
            raise InputError(f"command: must begin with testbed, not {line!r}")
        context.report(f"  $ {line}")
        begun = time.monotonic()
        while True:
            code, output = _run(words, context.cluster.name)
            problems = self._problems(context, code, output)
            if not problems or time.monotonic() - begun >= self.within:
                break
            time.sleep(LOOK_AGAIN_SECONDS)
        for shown in output.rstrip().splitlines():
            context.report(f"    {shown}")
        context.note("command", title=self.name, say=self.say, line=line, output=output, code=code)
        for name, pattern in self.reads.items():
            if found := _found(pattern, context, output):
                context.note(READ, step=context.place, name=name, value=found[1])
        context.expect(
            self.name or line, self._expected(), "; ".join(problems) or "as expected", not problems
        )

    def _problems(self, context: Context, code: int, output: str) -> list[str]:
        problems = [] if code == self.code else [f"exit code {code}"]
        for pattern in self.prints:
            if not _found(pattern, context, output):
                problems.append(f"no {pattern!r} in it")
        for pattern in self.hides:
            if _found(pattern, context, output):
                problems.append(f"{pattern!r} in it")
        for name, pattern in self.reads.items():
            if not _found(pattern, context, output):
                problems.append(f"no {name} in it")
        return problems

    def _expected(self) -> str:
        wanted = [f"exit code {self.code}"] if self.code else []
        wanted += [f"prints {pattern}" for pattern in self.prints]
        wanted += [f"does not print {pattern}" for pattern in self.hides]
        wanted += [f"tells {name}" for name in self.reads]
        return "; ".join(wanted) or "succeeds"


def _run(words: list[str], cluster: str) -> tuple[int, str]:
    """Run a testbed command as it stands on a cluster; its exit code, and all that it printed."""
    environment: Mapping[str, str] = {**os.environ, "TESTBED_CLUSTER": cluster, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


def _found(pattern: str, context: Context, output: str) -> re.Match[str] | None:
    return re.search(filled_in(pattern, context), output, re.MULTILINE)


def filled_in(text: str, context: Context, *, literally: bool = False) -> str:
    """A text with its places filled in; in a pattern (not literally) they stand for themselves."""

    def place(match: re.Match[str]) -> str:
        value = _address(context, match[1], match[2])
        return value if literally else re.escape(value)

    return _PLACE.sub(place, text)


def _address(context: Context, kind: str, name: str) -> str:
    namespace, _, short = name.rpartition("/")
    base = f"/api/v1/namespaces/{namespace or 'default'}"
    client = context.cluster.client
    if kind == "pod":
        status: dict[str, Any] = client.get(f"{base}/pods/{short}").get("status") or {}
        return str(status.get("podIP", ""))
    if kind == "service":
        return str(client.get(f"{base}/services/{short}")["spec"].get("clusterIP", ""))
    if kind == "node":
        return str(client.get(f"/api/v1/nodes/{short}")["status"]["addresses"][0]["address"])
    raise InputError(f"command: {{{kind} {name}}}: known are pod, service and node")
