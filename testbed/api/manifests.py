"""Applying and deleting manifests through the API, with errors that point into the user's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from testbed.api.client import Client, RequestFailed
from testbed.errors import InputError, Problem
from testbed.objects import kinds
from testbed.objects.apply import problems_for
from testbed.objects.kinds import Kind
from testbed.objects.manifests import Manifest, load_manifests, with_source
from testbed.objects.saved import format_documents, saved


def path_of(kind: Kind, namespace: str = "", name: str = "") -> str:
    """The API path of a collection or, with a name, of one object."""
    base = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if kind.namespaced and namespace else ""
    return f"{base}{scope}/{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")


def apply(client: Client, paths: Sequence[str | Path], *, namespace: str = "") -> list[tuple[str, str, str]]:
    """Apply all files as one: (kind, name, created | configured | unchanged) each.

    namespace: of the objects that name none. Raises InputError.
    """
    manifests = load_manifests(paths)
    objects = _in_namespace(manifests, namespace)
    try:
        answer = client.post("/apis/testbed/v1/manifests", {"objects": objects})
    except RequestFailed as error:
        problems = problems_for(manifests, error.status)
        if problems:
            raise InputError(problems) from error
        raise
    return [(kind, name, action) for kind, name, action in answer["results"]]


def objects_of(paths: Sequence[str | Path], namespace: str = "") -> list[dict[str, Any]]:
    """The objects of files as they would be applied, those that name no namespace in ``namespace``.

    Raises InputError.
    """
    return _in_namespace(load_manifests(paths), namespace)


def delete(
    client: Client, paths: Sequence[str | Path], *, ignore_missing: bool, namespace: str = ""
) -> Iterator[tuple[str, str]]:
    """Delete what the files name, last first: (kind, name) of each that was there, as it is deleted.

    What is not there is an error at the end, but for ignore_missing: all else is deleted first.
    namespace: of the objects that name none. Raises InputError.
    """
    manifests = load_manifests(paths)
    wanted: list[tuple[Manifest, Kind, str, str]] = []
    problems: list[Problem] = []
    for manifest, obj in zip(manifests, _in_namespace(manifests, namespace), strict=True):
        kind = kinds.find(obj["apiVersion"], obj["kind"])
        given = obj.get("metadata")
        metadata: dict[str, Any] = given if isinstance(given, dict) else {}
        name = metadata.get("name")
        if kind is None:
            problems.append(manifest.problem((), _no_matches(obj)))
        elif not isinstance(name, str) or not name:
            problems.append(manifest.problem(("metadata", "name"), "must be given: it says what to delete"))
        else:
            wanted.append((manifest, kind, str(metadata.get("namespace") or "default"), name))
    if problems:
        raise InputError(problems)
    for manifest, kind, where, name in reversed(wanted):
        try:
            client.delete(path_of(kind, where, name))
        except RequestFailed as error:
            if error.reason != "NotFound":
                raise
            if not ignore_missing:
                problems.append(manifest.problem(("metadata", "name"), error.status.get("message", "")))
            continue
        yield kind.printed, name
    if problems:
        raise InputError(list(reversed(problems)))


def _no_matches(obj: Mapping[str, Any]) -> str:
    return f'no matches for kind "{obj["kind"]}" in version "{obj["apiVersion"]}"'


def _in_namespace(manifests: Sequence[Manifest], namespace: str) -> list[dict[str, Any]]:
    """The objects, those of namespaced kinds that name no namespace in ``namespace``. Raises InputError."""
    objects: list[dict[str, Any]] = [with_source(manifest) for manifest in manifests]
    if not namespace:
        return objects
    problems: list[Problem] = []
    for index, (manifest, obj) in enumerate(zip(manifests, objects, strict=True)):
        kind, metadata = kinds.find(obj["apiVersion"], obj["kind"]), obj.get("metadata")
        if kind is None or not kind.namespaced or not isinstance(metadata, dict):
            continue  # the server says what is wrong with it
        own = metadata.get("namespace")
        if not own:
            objects[index] = {**obj, "metadata": {**metadata, "namespace": namespace}}
        elif own != namespace:
            message = f'the object\'s namespace "{own}" does not match -n {namespace}'
            problems.append(manifest.problem(("metadata", "namespace"), message))
    if problems:
        raise InputError(problems)
    return objects


def save(client: Client) -> tuple[str, int]:
    """The users' objects of a cluster as YAML documents, and how many they are."""
    objects = []
    for kind in kinds.KINDS:
        items = client.get(path_of(kind))["items"]
        objects += saved({"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in items)
    return format_documents(objects), len(objects)
