"""Rules for small core kinds: Node, ConfigMap, Secret."""

from __future__ import annotations

import re

from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, forbidden, invalid, required, unsupported
from testbed.objects.validation import names

_EFFECTS = ("NoSchedule", "NoExecute", "PreferNoSchedule")
_KEY = "[-._a-zA-Z0-9]+"
_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/basic-auth": ("username", "password"),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}
"""What a Secret of a type has to hold; basic-auth one of them."""


def validate_nothing(obj: Object) -> list[FieldError]:
    """A kind whose metadata is all there is to check."""
    return []


def validate_node(node: Object) -> list[FieldError]:
    """Pod ranges are ranges; taints have keys and known effects."""
    errors: list[FieldError] = []
    spec = node.get("spec") or {}
    for index, cidr in enumerate(spec.get("podCIDRs") or ()):
        errors += names.cidr(("spec", "podCIDRs", index), cidr)
    for index, taint in enumerate(spec.get("taints") or ()):
        if not taint.get("key"):
            errors.append(required(("spec", "taints", index, "key")))
        if not (effect := taint.get("effect")):
            errors.append(required(("spec", "taints", index, "effect")))
        elif effect not in _EFFECTS:
            errors.append(unsupported(("spec", "taints", index, "effect"), effect, _EFFECTS))
    return errors


def validate_config_map(obj: Object) -> list[FieldError]:
    """Keys can be file names, and stand once."""
    errors = _keys("data", obj.get("data") or {}) + _keys("binaryData", obj.get("binaryData") or {})
    for key in (obj.get("data") or {}).keys() & (obj.get("binaryData") or {}).keys():
        why = "duplicate of key present in binaryData"
        errors.append(invalid(("data", key), key, why))
    return errors


def validate_secret(obj: Object) -> list[FieldError]:
    """Keys can be file names; some types need some keys (``ValidateSecret``)."""
    data = obj.get("data") or {}
    errors = _keys("data", data)
    wanted = _SECRET_KEYS.get(obj.get("type", ""), ())
    if obj.get("type") == "kubernetes.io/basic-auth" and any(key in data for key in wanted):
        return errors
    return errors + [required(("data", key)) for key in wanted if not data.get(key)]


def _keys(field: str, data: Object) -> list[FieldError]:
    why = (
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' "
        f"(e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '{_KEY}')"
    )
    return [invalid((field, key), key, why) for key in data if not re.fullmatch(_KEY, key)]


def validate_immutable_update(new: Object, old: Object) -> list[FieldError]:
    """What says ``immutable: true`` stays as it is."""
    if not old.get("immutable"):
        return []
    return [
        forbidden((field,), "field is immutable when `immutable` is set")
        for field in ("immutable", "data", "binaryData")
        if new.get(field) != old.get(field)
    ]
