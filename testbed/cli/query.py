"""What commands share that name objects as kubectl does: ``pods``, ``pod web``, ``deploy/web``, ``-n``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.api.client import Client
    from testbed.objects.kinds import Kind


ALL = (
    "pods",
    "rc",
    "services",
    "daemonsets",
    "deployments",
    "replicasets",
    "statefulsets",
    "jobs",
    "cronjobs",
)
"""What kubectl means by ``all``, in its order."""


def add_scope(parser: argparse.ArgumentParser) -> None:
    """Add ``-n``, ``-A`` and ``-l``."""
    parser.add_argument("-n", "--namespace", default="", help="objects of it (default: default)")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="objects of every namespace")
    parser.add_argument("-l", "--selector", default="", help="label selector, a=b,c in (d,e),!f")


def wanted(words: list[str]) -> Iterator[tuple[Kind, list[str]]]:
    """(kind, names) of the words after a verb; a comma lists kinds. Raises InputError."""
    if not words:
        raise InputError("say which kind of object: pods, nodes, deployments, services …")
    if any("/" in word for word in words):
        for word in words:
            kind, _, name = word.partition("/")
            if not (kind and name) or "/" in name:
                raise InputError(f"{word!r}: say KIND NAME, or KIND/NAME for each object")
            yield _kind(kind), [name]
        return
    if not all(words):
        raise InputError("resource name may not be empty")
    for word in words[0].split(","):
        for kind in ALL if word == "all" else (word,):
            yield _kind(kind), words[1:]


def _kind(word: str) -> Kind:
    from testbed.objects.kinds import by_word

    kind = by_word(word)
    if kind is None:
        raise InputError(f'the server doesn\'t have a resource type "{word}"')
    return kind


def objects(
    client: Client, args: argparse.Namespace, *, need_name: bool = False, ignore_missing: bool = False
) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """The objects that ``args.what`` and the scope name, in the server's order.

    ignore_missing: a named one that is not there is left out. Raises InputError, RequestFailed.
    """
    from testbed.api.client import RequestFailed
    from testbed.api.manifests import path_of

    own = args.namespace or "default"
    for kind, names in list(wanted(args.what)):  # all are read before anything is done
        if need_name and not names:
            raise InputError(f"say which of the {kind.plural}, by name or with -l")
        if names and (args.selector or args.all_namespaces):
            raise InputError(f"{' '.join(names)}: a name goes with neither -l nor -A")
        namespace = "" if args.all_namespaces else own
        if names:
            for name in names:
                try:
                    found = client.get(path_of(kind, own, name))
                except RequestFailed as error:
                    if not (ignore_missing and error.reason == "NotFound"):
                        raise
                    continue
                yield kind, found
        else:
            selector = {"labelSelector": args.selector} if args.selector else {}
            for obj in client.get(path_of(kind, namespace), **selector)["items"]:
                yield kind, {"apiVersion": kind.api_version, "kind": kind.kind, **obj}
