"""Reading YAML and JSON as kubectl does: values, positions, and what a stranger's text may not do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.documents import MAX_BYTES, format_path, read_documents, resolve_scalar
from testbed.errors import InputError


def one(text: str) -> Any:
    (document,) = read_documents(text, "f.yaml")
    return document.data


def refusal(text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_documents(text, "f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, True) for word in ("y", "Y", "yes", "on", "true", "True")),
        *((word, False) for word in ("n", "N", "no", "off", "false", "FALSE")),
        *((word, None) for word in ("", "~", "null", "Null")),
        ("nO", "nO"),
        ("0755", 493),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("-0x10", -16),
        ("08", 8),
        ("1_000", 1000),
        ("1e3", 1000),
        ("1.5", 1.5),
        (".5", 0.5),
        ("80.0", 80),
        ("1:30", "1:30"),
        ("2001-12-14", "2001-12-14"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("1.2.3", "1.2.3"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("18446744073709551615", 18446744073709551615),
        ("99999999999999999999", 1e20),
        ("1e999", "1e999"),
        ("_", "_"),
        ("-", "-"),
        ("0x", "0x"),
    ],
)
def test_plain_scalars_resolve_as_in_go_yaml(text: str, value: Any) -> None:
    resolved = resolve_scalar(text)
    assert (resolved, type(resolved)) == (value, type(value))


def test_quoted_scalars_are_text() -> None:
    assert one("[\"y\", '1', !!str 2]") == ["y", "1", "2"]


def test_keys_become_text_as_in_json() -> None:
    assert one("{1: a, on: b, 1.5: c, 'x': d}") == {"1": "a", "true": "b", "1.5": "c", "x": "d"}


def test_empty_documents_are_left_out() -> None:
    assert [d.data for d in read_documents("---\n# nothing\n---\na: 1\n---\n---\nb: 2\n")] == [
        {"a": 1},
        {"b": 2},
    ]


def test_merge_keys_give_way_to_explicit_ones() -> None:
    assert one("a: &a {p: 1, q: 2}\nb: {q: 3, <<: *a}\n")["b"] == {"p": 1, "q": 3}


def test_lines_of_fields_and_of_their_nearest_parents() -> None:
    text = "# c\na:\n  b:\n  - c: 1\n  - d: 2\n---\nx: 1\ny: {z: 2}\n"
    first, second = read_documents(text)
    assert [first.line_of(path) for path in [("a",), ("a", "b", 1), ("a", "b", 1, "d")]] == [2, 5, 5]
    assert first.line_of(("a", "b", 1, "gone")) == 5
    assert first.line_of(("a", "b", 7)) == 3
    assert second.line_of(("x",)) == 7
    assert second.line_of(("true", "z")) == 8


def test_line_of_a_merged_field_is_where_it_is_written() -> None:
    (document,) = read_documents("a: &a\n  p: 1\nb:\n  <<: *a\n")
    assert document.line_of(("b", "p")) == 2


def test_problem_names_file_line_and_path() -> None:
    (document,) = read_documents("spec:\n  ports:\n  - name: x\n", "svc.yaml")
    problem = document.problem(("spec", "ports", 0, "name"), "is wrong")
    assert str(problem) == "svc.yaml:3: spec.ports[0].name: is wrong"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("spec", "ports", 0, "name"), "spec.ports[0].name"),
        (("metadata", "labels", "a.b/c"), "metadata.labels[a.b/c]"),
        ((0, "a"), "[0].a"),
        ((), ""),
    ],
)
def test_paths_print_as_kubernetes_prints_them(path: tuple[Any, ...], text: str) -> None:
    assert format_path(path) == text


def test_syntax_error_reads_as_kubectl_says_it() -> None:
    """Recorded: kubectl apply of a manifest indented with a tab."""
    message = refusal("apiVersion: v1\nkind: Service\nmetadata:\n\tname: bad\n")
    wanted = "error converting YAML to JSON: yaml: line 4: found character that cannot start any token"
    assert message == f"f.yaml:4: {wanted}"


def test_every_duplicate_key_is_named() -> None:
    message = refusal("a: 1\nb: {c: 1, c: 2}\na: 3\n")
    assert message == 'f.yaml:2: b.c: key "c" already set in map\nf.yaml:3: a: key "a" already set in map'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!python/object/apply:os.system [x]", "tag !!python/object/apply:os.system is not allowed"),
        ("a: !local x", "tag !local is not allowed"),
        ("a: !!int x", "cannot be !!int"),
        ("? [a]\n: b", "a key must be"),
        ("a: .nan", "unsupported value: .nan"),
        ("a: &a [*a]", "nested deeper than"),
        ("a: &a {<<: *a}", "nested deeper than"),
        ("a: *b", "found undefined alias"),
        ("[" * 100_000, "nested deeper than"),
        ("{a: " * 100_000, "nested deeper than"),
        ("- " * 100_000, "nested deeper than"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested deeper than"),
        ("a: \x07", "control characters are not allowed"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("x" * (MAX_BYTES + 1), "is larger than 8 MiB"),
        ('{"a": 1, "a": "\\ud83d\\ude00"}', 'key "a" already set in map'),
    ],
)
def test_what_a_text_may_not_do(text: str | bytes, reason: str) -> None:
    assert reason in refusal(text)


def test_billion_laughs_stops_early() -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "document contains excessive aliasing" in refusal("\n".join(["l0: &l0 [x]", *levels]))


def test_json_with_what_yaml_does_not_know() -> None:
    assert one('{"a": "\\ud83d\\ude00", "b": [1, null, true]}') == {"a": "😀", "b": [1, None, True]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
        lambda children: (
            st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_json_reads_back_as_it_was_written(data: Any) -> None:
    (document,) = read_documents(json.dumps({"a": data}))
    assert document.data == {"a": data}
