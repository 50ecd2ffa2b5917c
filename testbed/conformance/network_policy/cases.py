"""Recorded network policy cases: a file per case, steps of actions and the table that is expected after each.

The format is that of ``tests/golden/network-policy`` (its README says where the recorded ones come from). A
case may name the pods of ``resources.yaml`` that it begins with (``pods``); otherwise it begins with all.
Pure but for reading the files. What a case does to the cluster is kept as Kubernetes objects in a ``World``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.documents import read_file
from testbed.errors import InputError, Problem
from testbed.objects.defaults import fill
from testbed.objects.schema import read as read_object

Object = dict[str, Any]
PodKey = tuple[str, str]

RESOURCES = "resources.yaml"
BLOCKED, ALLOWED = "X", "."
NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Step:
    """Actions, in order, and the tables after them: ``TCP/80`` → source pod → a character per target pod.

    to: the target pods, ``namespace/name``, in the order of the characters.
    """

    actions: tuple[Object, ...]
    tables: dict[str, dict[str, str]]
    to: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """One case file. tags: what it is about."""

    file: str
    name: str
    steps: tuple[Step, ...]
    tags: tuple[str, ...] = ()
    resources: Object = field(default_factory=dict)


@dataclass
class World:
    """What is in the cluster: namespaces by name, pods and policies by (namespace, name), as objects."""

    namespaces: dict[str, Object] = field(default_factory=dict)
    pods: dict[PodKey, Object] = field(default_factory=dict)
    policies: dict[PodKey, Object] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Object) -> World:
        """The state that ``resources.yaml`` describes."""
        world = cls()
        for namespace in resources.get("namespaces") or ():
            metadata = namespace["metadata"]
            world._set_namespace(metadata["name"], metadata.get("labels") or {})
        for pod in resources.get("pods") or ():
            world.put_pod(pod["namespace"], pod["name"], pod["labels"], pod["ip"], pod["containers"])
        return world

    def act(self, action: Object) -> None:
        """Carry out one action of a case. Raises ValueError for one that is not known."""
        ((verb, about),) = action.items()
        match verb:
            case "createPolicy" | "updatePolicy":
                key = (about["metadata"]["namespace"], about["metadata"]["name"])
                self.policies[key] = complete(about)
            case "deletePolicy":
                del self.policies[about["namespace"], about["name"]]
            case "createNamespace" | "setNamespaceLabels":
                self._set_namespace(about["namespace"], about.get("labels") or {})
            case "deleteNamespace":
                self._delete_namespace(about["namespace"])
            case "createPod":
                self._create_pod(about)
            case "setPodLabels":
                pod = copy.deepcopy(self.pods[about["namespace"], about["pod"]])
                pod["metadata"]["labels"] = dict(about.get("labels") or {})
                self.pods[about["namespace"], about["pod"]] = pod
            case "deletePod":
                del self.pods[about["namespace"], about["pod"]]
            case _:
                raise ValueError(f"a case cannot {verb!r}")

    def _create_pod(self, about: Object) -> None:
        """A new pod has the containers of the others unless it says which."""
        containers = about.get("containers")
        if containers is None:
            containers = next(iter(self.pods.values()))["spec"]["containers"]
        self.put_pod(about["namespace"], about["pod"], about.get("labels") or {}, about["ip"], containers)

    def _set_namespace(self, name: str, labels: dict[str, str]) -> None:
        self.namespaces[name] = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {**labels, NAME_LABEL: name}},
        }

    def _delete_namespace(self, name: str) -> None:
        del self.namespaces[name]
        self.pods = {key: pod for key, pod in self.pods.items() if key[0] != name}
        self.policies = {key: policy for key, policy in self.policies.items() if key[0] != name}

    def put_pod(
        self, namespace: str, name: str, labels: dict[str, str], ip: str, containers: Sequence[Object]
    ) -> None:
        """Add a pod. ip: that it asks for; containers: with their ports."""
        self.pods[namespace, name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": dict(labels),
                "annotations": {"testbed/ip": ip},
            },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"image": "registry.k8s.io/e2e-test-images/agnhost:2.53", **container}
                    for container in containers
                ],
            },
        }


def complete(policy: Object) -> Object:
    """A policy as the API server stores it: read strictly, with its defaults. Raises ValueError."""
    stored, unreadable = read_object(policy)
    if message := unreadable.message():
        raise ValueError(message)
    fill(stored)
    return stored


def address_of(pod: Object) -> str:
    """The address that a pod of a world asks for."""
    return str(pod["metadata"]["annotations"]["testbed/ip"])


def load(folders: Sequence[Path]) -> list[Recorded]:
    """The cases of all folders (or files), by folder and file name. Raises InputError."""
    found: list[Recorded] = []
    for folder in folders:
        files = sorted(folder.glob("*.yaml")) if folder.is_dir() else [folder]
        home = folder if folder.is_dir() else folder.parent
        if not (home / RESOURCES).is_file():
            raise InputError(f"{home}: has no {RESOURCES}, the state that its cases begin from")
        resources = _one(home / RESOURCES)
        found += (_case(file, resources) for file in files if file.name != RESOURCES)
    return found


def _one(path: Path) -> Object:
    documents = read_file(path)
    if len(documents) != 1 or not isinstance(documents[0].data, dict):
        raise InputError([Problem("has to be one mapping", str(path))])
    return documents[0].data


def _case(path: Path, resources: Object) -> Recorded:
    data = _one(path)
    try:
        steps = tuple(_steps(data["steps"]))
        name = str(data.get("name") or path.stem)
        begins = _only(resources, set(map(str, data["pods"]))) if "pods" in data else resources
        return Recorded(str(path), name, steps, tuple(data.get("tags") or ()), begins)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError([Problem(f"is no case: {type(error).__name__}: {error}", str(path))]) from error


def _only(resources: Object, pods: set[str]) -> Object:
    """The resources with these pods (``namespace/name``) alone, and the namespaces that they are in."""
    namespaces = {pod.partition("/")[0] for pod in pods}
    return {
        "namespaces": [each for each in resources["namespaces"] if each["metadata"]["name"] in namespaces],
        "pods": [pod for pod in resources["pods"] if f"{pod['namespace']}/{pod['name']}" in pods],
    }


def _steps(steps: Sequence[Object]) -> Iterator[Step]:
    for step in steps:
        expected = step["expected"]
        yield Step(
            tuple(step.get("actions") or ()),
            {name: {str(k): str(v) for k, v in table.items()} for name, table in expected["tables"].items()},
            tuple(map(str, expected["to"])),
        )
