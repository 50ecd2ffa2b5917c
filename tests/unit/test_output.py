from __future__ import annotations

import io
import json

import pytest

from testbed.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_three_spaces_apart_and_lines_do_not_end_in_spaces() -> None:
    table = output.format_table(
        ("NAME", "READY", "AGE"), [("web-0", "1/1", "5s"), ("database-0", "0/1", "12m")]
    )
    assert table == "NAME         READY   AGE\nweb-0        1/1     5s\ndatabase-0   0/1     12m\n"


def test_a_narrow_column_has_kubectls_least_width() -> None:
    assert output.format_table(("A", "B"), [("x", "y")]) == "A     B\nx     y\n"


def test_a_table_of_nothing_is_nothing() -> None:
    assert output.format_table((), []) == ""


def test_colour_takes_no_room_in_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    red = output.colour("LACKING", "red", Terminal())
    assert red == "\x1b[31mLACKING\x1b[0m"
    assert output.format_table((), [(red, "x"), ("a", "y")]) == f"{red}   x\na         y\n"


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_no_colour_but_on_a_terminal(stream: io.StringIO | None) -> None:
    assert output.colour("x", "red", stream) == "x"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.colour("x", "red", Terminal()) == "x"


def test_json_is_one_document_that_reads_back() -> None:
    value = {"b": [1, "ä"], "a": None}
    assert json.loads(output.format_data(value, "json")) == value
    assert output.format_data(value, "yaml") == "a: null\nb:\n- 1\n- ä\n"


def test_progress_is_redrawn_on_a_terminal_and_gone_at_the_end() -> None:
    stream = Terminal()
    with output.Progress(stream) as progress:
        progress.show("starting")
    assert stream.getvalue() == "\r\x1b[Kstarting\r\x1b[K"


def test_progress_says_nothing_elsewhere() -> None:
    stream = io.StringIO()
    with output.Progress(stream) as progress:
        progress.show("starting")
    assert stream.getvalue() == ""
