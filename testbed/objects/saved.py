"""What of a cluster's objects its users made, in a form that makes the same cluster again. Pure.

Left out is what a cluster makes of itself: nodes, events, what controllers own, what every namespace has; and
of each object what the server and controllers wrote into it. Addresses and ports of Services stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from testbed.objects.apply import LAST_APPLIED, last_applied
from testbed.objects.defaults import ROOT_CA, TOKEN_VOLUME
from testbed.objects.kinds import Object

_KINDS = frozenset({"Node", "Event", "Lease", "CSINode", "ServiceCIDR", "IPAddress", "ControllerRevision"})
"""Kinds whose objects a cluster makes of itself."""

_OBJECTS = frozenset(
    {
        *(("Namespace", "", name) for name in ("default", "kube-node-lease", "kube-public", "kube-system")),
        ("Service", "default", "kubernetes"),
        ("Endpoints", "default", "kubernetes"),
        ("EndpointSlice", "default", "kubernetes"),
        *((kind, "kube-system", "kube-dns") for kind in ("Service", "Deployment")),
        ("DaemonSet", "kube-system", "node-local-dns"),
    }
)
_MANAGED = ("endpointslice.kubernetes.io/managed-by", "endpoints.kubernetes.io/managed-by")
"""Labels of what the endpoints controllers make."""

LOAD_BALANCER_CLEANUP = "service.kubernetes.io/load-balancer-cleanup"
"""The finalizer that keeps a Service until its load balancer is gone."""

_METADATA = frozenset(
    {
        "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
        "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences",
    }
)  # fmt: skip
_ANNOTATIONS = frozenset(
    {LAST_APPLIED, "deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation"}
)
_LABELS: dict[str, frozenset[str]] = {
    "Namespace": frozenset({"kubernetes.io/metadata.name"}),
    "Pod": frozenset({"topology.kubernetes.io/zone", "topology.kubernetes.io/region"}),
}
"""Kind → labels that the server gives."""

_JOB_LABELS = frozenset(
    prefix + name for prefix in ("", "batch.kubernetes.io/") for name in ("controller-uid", "job-name")
)


def saved(objects: Iterable[Object]) -> list[Object]:
    """The users' objects among all of a cluster's, as one would write them; the order stays."""
    return [_plain(obj) for obj in objects if _is_users(obj)]


def _is_users(obj: Object) -> bool:
    metadata = obj["metadata"]
    kind, name = obj["kind"], metadata["name"]
    labels = metadata.get("labels") or {}
    return not (
        kind in _KINDS
        or (kind, metadata.get("namespace", ""), name) in _OBJECTS
        or (kind, name) == ("ConfigMap", ROOT_CA)
        or (
            (kind, name) == ("ServiceAccount", "default") and obj.keys() <= {"apiVersion", "kind", "metadata"}
        )
        or "deletionTimestamp" in metadata
        or (kind in ("Endpoints", "EndpointSlice") and any(label in labels for label in _MANAGED))
        or any(owner.get("controller") for owner in metadata.get("ownerReferences") or ())
    )


def _plain(obj: Object) -> Object:
    kind, metadata = obj["kind"], obj["metadata"]
    kept = {key: value for key, value in metadata.items() if key not in _METADATA}
    _strip(kept, "annotations", _ANNOTATIONS)
    _strip(kept, "labels", _LABELS.get(kind, frozenset()))
    if finalizers := [one for one in kept.pop("finalizers", ()) if one != LOAD_BALANCER_CLEANUP]:
        kept["finalizers"] = finalizers
    plain = {**obj, "metadata": kept}
    plain.pop("status", None)
    if kind == "Namespace":
        plain.pop("spec", None)
    elif kind == "Pod":
        plain["spec"] = _pod_spec(obj["spec"])
        asked = last_applied(obj)
        if isinstance(asked, dict) and (node := (asked.get("spec") or {}).get("nodeName")):
            plain["spec"]["nodeName"] = node
    elif kind == "Job" and not obj["spec"].get("manualSelector"):
        _strip(kept, "labels", _JOB_LABELS)
        spec = {key: value for key, value in obj["spec"].items() if key != "selector"}
        template = dict(spec["template"])
        template["metadata"] = dict(template.get("metadata") or {})
        _strip(template["metadata"], "labels", _JOB_LABELS)
        plain["spec"] = {**spec, "template": template}
    return plain


def _strip(metadata: Object, field: str, keys: Iterable[str]) -> None:
    """Take entries out of a map of ``metadata``, and the map where it is empty then."""
    left = {key: value for key, value in (metadata.pop(field, None) or {}).items() if key not in keys}
    if left:
        metadata[field] = left


def _pod_spec(spec: Object) -> Object:
    """A pod's spec as before it was admitted and put on a node."""
    plain = {key: value for key, value in spec.items() if key != "nodeName"}

    def without_token(items: list[Any]) -> list[Any]:
        return [item for item in items if not item["name"].startswith(TOKEN_VOLUME)]

    for field in ("containers", "initContainers"):
        if field in plain:
            containers = [dict(container) for container in plain[field]]
            for container in containers:
                if not (mounts := without_token(container.pop("volumeMounts", []))):
                    continue
                container["volumeMounts"] = mounts
            plain[field] = containers
    if volumes := without_token(plain.pop("volumes", [])):
        plain["volumes"] = volumes
    return plain


_PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


class _Dumper(yaml.SafeDumper):
    """Writes texts so that no reader of whatever version of YAML takes them for anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        """What stands in two places is written twice."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN_TEXT.fullmatch(text) and text.lower() not in _WORDS
    style = None if plain else "|" if "\n" in text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def format_documents(objects: Iterable[Object]) -> str:
    """Objects as YAML documents."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
