"""Where a command acts: ``web-0``, ``pod/web-0``, ``deploy/web`` (its first pod), ``--node``, ``--host``.

Also the way such commands read their words: our options before and after the target, then what is not
ours (a program, a filter), which argparse alone would mix up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.api.client import Client


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Add ``-n``, ``--node`` and ``--host``."""
    parser.add_argument("-n", "--namespace", default="default", help="the pod's (default: default)")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--node", metavar="NODE", help="on a node instead of in a pod")
    place.add_argument("--host", metavar="HOST", help="on a host of the fabric: outside hosts, routers")


def take_target(args: argparse.Namespace, words: Sequence[str]) -> tuple[str, list[str]]:
    """(the pod's word, the words after it); the pod is "" with --node or --host. Raises InputError."""
    if args.node or args.host:
        return "", list(words)
    if not words or words[0].startswith("-"):
        raise InputError("say where: a POD, --node NODE or --host HOST")
    return words[0], list(words[1:])


def read_late(
    args: argparse.Namespace, add_options: Callable[[argparse.ArgumentParser], None], words: Sequence[str]
) -> list[str]:
    """Take options that follow the target into ``args``; returns what comes from the first other word on."""
    late = argparse.ArgumentParser(prog="testbed", add_help=False, allow_abbrev=False)
    add_options(late)
    late.add_argument("-C", "--cluster", default=argparse.SUPPRESS)
    late.add_argument("--debug", action="store_true", default=argparse.SUPPRESS)
    late.add_argument("rest", nargs=argparse.REMAINDER)
    return list(late.parse_args(list(words), namespace=args).rest)


def exec_path(client: Client, args: argparse.Namespace, pod: str) -> str:
    """The API path that executes there. Raises InputError, RequestFailed."""
    if args.node:
        return f"/apis/testbed/v1/nodes/{_one_word(args.node)}/exec"
    if args.host:
        return f"/apis/testbed/v1/hosts/{_one_word(args.host)}/exec"
    return (
        f"/api/v1/namespaces/{_one_word(args.namespace)}/pods/{pod_named(client, args.namespace, pod)}/exec"
    )


def _one_word(name: str) -> str:
    """A name as part of a path. Raises InputError where it cannot be one."""
    if not name or set(name) & set("/?#% "):
        raise InputError(f"{name!r} is not a name")
    return name


def pod_named(client: Client, namespace: str, word: str) -> str:
    """The name of the pod that ``word`` means. Raises InputError, RequestFailed."""
    kind_word, slash, name = word.rpartition("/")
    if not slash or kind_word.lower() in ("pod", "pods", "po"):
        return _one_word(name)
    from testbed.api.manifests import path_of
    from testbed.objects.kinds import by_word

    kind, pods = by_word(kind_word), by_word("pods")
    if kind is None or pods is None:
        raise InputError(f'the server doesn\'t have a resource type "{kind_word}"')
    owner = client.get(path_of(kind, namespace, _one_word(name)))
    selector = selector_text(owner.get("spec", {}).get("selector") or {})
    if not selector:
        raise InputError(f"{word} selects no pods")
    found = client.get(path_of(pods, namespace), labelSelector=selector)["items"]
    placed = sorted(pod["metadata"]["name"] for pod in found if pod.get("status", {}).get("podIPs"))
    if not placed:
        raise InputError(f"{word} has no pod that runs")
    return str(placed[0])


def selector_text(selector: Mapping[str, Any]) -> str:
    """A selector (a Service's map, or matchLabels and matchExpressions) as a labelSelector parameter."""
    plain = "matchLabels" not in selector and "matchExpressions" not in selector
    labels = selector if plain else selector.get("matchLabels") or {}
    terms = [f"{key}={value}" for key, value in labels.items()]
    for expression in () if plain else selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        if operator in ("Exists", "DoesNotExist"):
            terms.append(key if operator == "Exists" else f"!{key}")
        else:
            word = "in" if operator == "In" else "notin"
            terms.append(f"{key} {word} ({','.join(expression.get('values') or ())})")
    return ",".join(terms)
