"""YAML and JSON text as plain data with positions, read as kubectl reads it.

kubectl turns YAML into JSON with sigs.k8s.io/yaml, that is go-yaml v2: YAML 1.1 booleans (``y``, ``on``),
octal ``0755``, timestamps left as text, every key a string. Values resolve here by the same rules
(go-yaml v2 ``resolve.go``). The text comes from strangers: its size, depth and alias expansion are
bounded, tags other than JSON's own types are refused, and so are duplicate keys.

What the data means is not known here: that is ``spec.load`` and ``objects.manifests``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import InputError, Problem

try:
    from yaml import CSafeLoader as _BaseLoader  # libyaml, ten times as fast
except ImportError:  # a PyYAML built without libyaml
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 100
MAX_ALIASED = 100_000
"""How many values aliases may add to one text: a "billion laughs" stops here."""

Key = str | int
FieldPath = tuple[Key, ...]

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = "plain"  # an untagged, unquoted scalar: its text decides what it is
_TAGS = frozenset(_PREFIX + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq"))

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_NOT_JSON = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BARE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class _Loader(_BaseLoader):
    """Composes nodes; says of a scalar only whether it was plain, ``_Builder`` decides the rest.

    PyYAML calls ``descend_resolver`` on the way into every node: the one place where depth can be bounded
    before its recursion, which is C and has no other bound, runs out of stack.
    """

    _depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = current_node.start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)

    def ascend_resolver(self) -> None:
        self._depth -= 1

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _PREFIX + "str"
        return _PREFIX + ("map" if kind is yaml.MappingNode else "seq")


@dataclass(frozen=True)
class Document:
    """One document: its data (JSON types only), the file as the user named it, and where things stand."""

    data: Any
    file: str
    node: yaml.Node | None = None

    def line_of(self, path: FieldPath) -> int:
        """1-based line of the field at ``path``; of its nearest parent where the field itself is absent."""
        node, line = self.node, 1
        if node is None:
            return line
        line = node.start_mark.line + 1
        for key in path:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A Problem at ``path`` with this document's file and line."""
        return Problem(message, self.file, self.line_of(path), format_path(path))


def format_path(path: FieldPath) -> str:
    """``("spec", "ports", 0, "name")`` as ``spec.ports[0].name``; other keys as ``labels[a.b/c]``."""
    text = ""
    for key in path:
        if isinstance(key, str) and _BARE_KEY.fullmatch(key):
            text += f".{key}" if text else key
        else:
            text += f"[{key}]"
    return text


def read_documents(text: str | bytes, file: str = "") -> list[Document]:
    """Every document of a YAML or JSON text, empty ones left out.

    Raises InputError with everything that is wrong (a syntax error hides what comes after it).
    """
    text = _decode(text, file)
    try:
        return _read_yaml(text, file)
    except (yaml.YAMLError, RecursionError) as error:
        # JSON allows what YAML 1.1 does not, such as surrogate pairs in strings.
        document = _read_json(text, file) if text.lstrip()[:1] in ("{", "[") else None
        if document is None:
            raise InputError([_syntax_problem(error, text, file)]) from error
        return [document]


def read_file(path: Path, name: str | None = None) -> list[Document]:
    """Every document of a file; ``name`` is what errors call it. Raises InputError."""
    file = str(path) if name is None else name
    try:
        with path.open("rb") as stream:
            return read_documents(stream.read(MAX_BYTES + 1), file)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError([Problem(f"cannot be read: {reason}", file)]) from error


def _decode(text: str | bytes, file: str) -> str:
    if len(text) > MAX_BYTES:
        raise InputError([Problem(f"is larger than {MAX_BYTES // 2**20} MiB", file)])
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InputError([Problem("is not UTF-8 text", file, line)]) from error


def _read_yaml(text: str, file: str) -> list[Document]:
    loader = _Loader(text)
    builder = _Builder(file)
    documents = []
    try:
        while loader.check_node():
            node = loader.get_node()
            data = builder.build(node, (), 0)
            if data is not None:
                documents.append(Document(data, file, node))
    finally:
        loader.dispose()
    if builder.problems:
        raise InputError(builder.problems)
    return documents


def _read_json(text: str, file: str) -> Document | None:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = [name for name, _ in pairs]
            again = sorted({name for name in names if names.count(name) > 1})
            raise InputError([Problem(f'key "{name}" already set in map', file) for name in again])
        return data

    def refuse_constant(name: str) -> None:
        raise ValueError(name)

    try:
        data = json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return Document(data, file) if _depth(data) <= MAX_DEPTH else None


def _depth(data: Any) -> int:
    """How deep it is nested, which json may be far beyond what Python calls by itself."""
    depth, level = 0, [data]
    while level:
        depth += 1
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
    return depth


def _syntax_problem(error: yaml.YAMLError | RecursionError, text: str, file: str) -> Problem:
    """The message as kubectl words it, with the line of the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line, what = (mark.line + 1 if mark else 0), error.problem or "cannot be parsed"
    elif isinstance(error, yaml.reader.ReaderError):
        line, what = text.count("\n", 0, error.position) + 1, error.reason
    else:
        line, what = 0, f"nested deeper than {MAX_DEPTH} levels"
    where = f"line {line}: " if line else ""
    return Problem(f"error converting YAML to JSON: yaml: {where}{what}", file, line)


class _Builder:
    """Turns composed nodes into plain data and gathers what is wrong with them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._seen: set[int] = set()
        self._kept: list[yaml.Node] = []  # keeps the ids in _seen unique
        self._aliased = 0
        self._gave_up = False

    def build(self, node: Any, path: FieldPath, depth: int, aliased: bool = False) -> Any:
        """The data of ``node``; None, with a problem noted, where it cannot be data."""
        if self._gave_up or not self._bounded(node, path, depth, aliased):
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        aliased = aliased or id(node) in self._seen
        if not aliased:
            self._seen.add(id(node))
            self._kept.append(node)
        if node.tag != _PREFIX + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            self._note(node, path, f"tag {_tag(node)} is not allowed")
            return None
        if isinstance(node, yaml.SequenceNode):
            return [
                self.build(item, (*path, index), depth + 1, aliased) for index, item in enumerate(node.value)
            ]
        return self._mapping(node, path, depth, aliased)

    def _bounded(self, node: yaml.Node, path: FieldPath, depth: int, aliased: bool) -> bool:
        self._aliased += aliased
        if depth > MAX_DEPTH:
            self._note(node, path[:3], f"is nested deeper than {MAX_DEPTH} levels")
        elif self._aliased > MAX_ALIASED:
            self._note(node, path[:3], "document contains excessive aliasing")
        else:
            return True
        self._gave_up = True
        return False

    def _mapping(self, node: Any, path: FieldPath, depth: int, aliased: bool) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merges: list[tuple[yaml.Node, yaml.Node]] = []
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                merges.append((key_node, value_node))
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in data:
                self._note(key_node, (*path, key), f'key "{key}" already set in map')
            data[key] = self.build(value_node, (*path, key), depth + 1, aliased)
        for key_node, value_node in merges:
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                if not isinstance(source, yaml.MappingNode):
                    self._note(key_node, path, "map merge requires map or sequence of maps as the value")
                    continue
                merged = self.build(source, path, depth + 1, aliased)
                data = {**(merged or {}), **data}
        return data

    def _key(self, node: yaml.Node, path: FieldPath) -> str | None:
        value = self._scalar(node, path) if isinstance(node, yaml.ScalarNode) else None
        if value is None:
            self._note(node, path, "a key must be text, a number or a boolean")
            return None
        return value if isinstance(value, str) else json.dumps(value)

    def _scalar(self, node: yaml.ScalarNode, path: FieldPath) -> Any:
        text: str = node.value
        if node.tag == _PREFIX + "str":
            return text
        if node.tag != _PLAIN and node.tag not in _TAGS:
            self._note(node, path, f"tag {_tag(node)} is not allowed")
            return None
        if text[:1] in ("+", "-", ".") and _NOT_JSON.fullmatch(text):
            self._note(node, path, f"error converting YAML to JSON: unsupported value: {text}")
            return None
        value = resolve_scalar(text)
        if node.tag != _PLAIN and not _is_of(value, node.tag.removeprefix(_PREFIX)):
            self._note(node, path, f"cannot be {_tag(node)}: {text!r}")
        return value

    def _note(self, node: yaml.Node, path: FieldPath, message: str) -> None:
        self.problems.append(Problem(message, self.file, node.start_mark.line + 1, format_path(path)))


def resolve_scalar(text: str) -> Any:
    """What go-yaml v2 takes an unquoted scalar for: None, a bool, a number, or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if text[0] != "0" and len(text) < 19 and text.isascii() and text.isdecimal():
        return int(text)  # nearly every number, without the regular expressions
    plain = text if text[0] == "." else text.replace("_", "")
    if (match := _INT.fullmatch(plain)) and len(plain) < 70:
        number = _integer(match[2]) * (-1 if match[1] == "-" else 1)
        if -(2**63) <= number < 2**64:
            return number
    if _FLOAT.fullmatch(plain) and math.isfinite(value := float(plain)):
        # JSON knows no difference between 80 and 80.0, and Go prints the former.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return text


def _integer(digits: str) -> int:
    if digits[:1] == "0" and digits[1:].isdecimal():
        return int(digits, 8)
    return int(digits, 0)


def _is_of(value: Any, kind: str) -> bool:
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "null": (type(None),),
    }
    return isinstance(value, types.get(kind, ())) and (kind == "bool" or not isinstance(value, bool))


def _tag(node: yaml.Node) -> str:
    tag: str = node.tag
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag


def _is_merge(node: yaml.Node) -> bool:
    return node.tag == _PLAIN and node.value == "<<"


def _child(node: yaml.Node, key: Key) -> tuple[int, yaml.Node] | None:
    """The line and node of one key or index below ``node``, looked up through merges."""
    if isinstance(node, yaml.SequenceNode):
        if isinstance(key, int) and key < len(node.value):
            item = node.value[key]
            return item.start_mark.line + 1, item
        return None
    if not isinstance(node, yaml.MappingNode):
        return None
    for key_node, value_node in node.value:
        if isinstance(key_node, yaml.ScalarNode) and not _is_merge(key_node) and _key_text(key_node) == key:
            return key_node.start_mark.line + 1, value_node
    return next((found for source in _merged(node) if (found := _child(source, key))), None)


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    for key_node, value_node in node.value:
        if _is_merge(key_node):
            yield from value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]


def _key_text(node: yaml.ScalarNode) -> str:
    value = resolve_scalar(node.value) if node.tag == _PLAIN else node.value
    return value if isinstance(value, str) else json.dumps(value)
