"""Manifests: files, directories and standard input as a list of objects that know where they came from.

Whether an object is any good is the API's to say; here it only has to be an object with a kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.documents import MAX_BYTES, Document, FieldPath, format_path, read_documents, read_file
from testbed.errors import InputError, Problem
from testbed.objects.kinds import Object

STDIN = "-"
SOURCE_ANNOTATION = "testbed/manifest"
"""Where an object was written: its file, and the line of each field that can decide about a flow."""
_EXPLAINED = frozenset(
    {"NetworkPolicy", "ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"}
)
"""Kinds of objects that keep it."""
_SUFFIXES = (".yaml", ".yml", ".json")
_MAX_DIRECTORY_FILES = 10_000


@dataclass(frozen=True)
class Manifest:
    """One object of a manifest. path: where it stands in its document: ``("items", 2)`` in a List."""

    object: Object
    document: Document
    path: FieldPath = ()

    def problem(self, path: FieldPath, message: str) -> Problem:
        """A Problem at ``path`` of this object, with its file and line; the path shown is the object's."""
        line = self.document.line_of((*self.path, *path))
        return Problem(message, self.document.file, line, format_path(path))


def load_manifests(paths: Sequence[str | Path]) -> list[Manifest]:
    """The objects of all files, in order; directories with all below them by name, ``-`` is standard input.

    Raises InputError with everything that is wrong in any of them.
    """
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            for document in _documents(path):
                manifests.extend(_objects(document.data, document, (), problems))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return manifests


def _documents(path: str | Path) -> Iterator[Document]:
    if str(path) == STDIN:
        yield from read_documents(sys.stdin.buffer.read(MAX_BYTES + 1), "STDIN")
        return
    problems: list[Problem] = []
    for file in _files(Path(path)):
        try:
            yield from read_file(file)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError([Problem(f'the path "{path}" does not exist', str(path))])
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    if not files:
        raise InputError([Problem(f"has no {', '.join(_SUFFIXES)} file in it", str(path))])
    if len(files) > _MAX_DIRECTORY_FILES:
        raise InputError([Problem(f"has more than {_MAX_DIRECTORY_FILES} files in it", str(path))])
    return files


def _objects(data: Any, document: Document, path: FieldPath, problems: list[Problem]) -> Iterator[Manifest]:
    """The object, or those of a List, Lists of Lists included; what is none becomes a problem.

    A recording of a cluster, too, is a list: a mapping without a kind that has its objects under ``objects``.
    """
    if not isinstance(data, dict):
        problems.append(document.problem(path, "is not an object: a mapping with apiVersion and kind"))
        return
    if "kind" not in data and isinstance(data.get("objects"), list):
        for index, item in enumerate(data["objects"]):
            yield from _objects(item, document, (*path, "objects", index), problems)
        return
    missing = [field for field in ("apiVersion", "kind") if not isinstance(data.get(field), str)]
    if missing or not (data["apiVersion"] and data["kind"]):
        name = " and ".join(missing) or ("apiVersion" if not data["apiVersion"] else "kind")
        problems.append(document.problem(path, f"Object '{name}' is missing or not text"))
    elif not data["kind"].endswith("List") or not isinstance(data.get("items"), list):
        yield Manifest(data, document, path)
    else:
        for index, item in enumerate(data["items"]):
            yield from _objects(_typed(item, data), document, (*path, "items", index), problems)


def _typed(item: Any, parent: Object) -> Any:
    """An item of a ``PodList`` may leave its own type out."""
    if not isinstance(item, dict) or parent["kind"] == "List":
        return item
    return {"apiVersion": parent["apiVersion"], "kind": parent["kind"].removesuffix("List"), **item}


def with_source(manifest: Manifest) -> Object:
    """The object; a network policy with an annotation that says where it was written."""
    obj, metadata = manifest.object, manifest.object.get("metadata")
    annotations = metadata.get("annotations") or {} if isinstance(metadata, dict) else None
    if obj["kind"] not in _EXPLAINED or not isinstance(annotations, dict) or not isinstance(metadata, dict):
        return obj
    place = {"file": manifest.document.file, "lines": dict(_lines(manifest))}
    text = json.dumps(place, separators=(",", ":"))
    return {**obj, "metadata": {**metadata, "annotations": {**annotations, SOURCE_ANNOTATION: text}}}


def _lines(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """The lines of a policy's selector, rules and peers."""
    spec = manifest.object.get("spec")
    if not isinstance(spec, dict):
        return
    paths: list[FieldPath] = [("spec",), ("spec", "podSelector")]
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        rules = spec.get(direction)
        for index, rule in enumerate(rules if isinstance(rules, list) else ()):
            paths.append(("spec", direction, index))
            items = rule.get(peers) if isinstance(rule, dict) else None
            count = len(items) if isinstance(items, list) else 0
            paths += (("spec", direction, index, peers, place) for place in range(count))
    for path in paths:
        yield format_path(path), manifest.document.line_of((*manifest.path, *path))
