"""Write testbed/objects/schema.json: the fields and types of every kind in testbed.objects.kinds.

Run it when a kind is added or the API version is raised:

    python -m pip install kubernetes-validate && python tools/make_schema.py

The source is the published OpenAPI definitions of one Kubernetes release, which that package carries.
Form of the result (read by testbed/objects/schema.py): ``kinds`` maps ``apps/v1/Deployment`` to a type,
``types`` maps a type to its ``fields`` (name → notation) and its ``required`` fields. Notation: a scalar
(string, bool, int32, int64, double, bytes, time, quantity, intstr, any), a type's name, ``map:X``,
``[]X``, or ``[key]X``, a list whose items patches merge by ``key`` (``[=]X``: by their value).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from testbed.objects.kinds import KINDS

RELEASE = "1.36.0"
TARGET = Path(__file__).parents[1] / "testbed" / "objects" / "schema.json"

_SCALARS = {
    "Quantity": "quantity",
    "IntOrString": "intstr",
    "Time": "time",
    "MicroTime": "time",
    "RawExtension": "any",
    "FieldsV1": "any",
    "JSON": "any",
    "JSONSchemaPropsOrArray": "any",
    "JSONSchemaPropsOrBool": "any",
    "JSONSchemaPropsOrStringArray": "any",
}


def definitions() -> dict[str, Any]:
    """The release's definitions by their full name."""
    spec = importlib.util.find_spec("kubernetes_validate")
    if spec is None or spec.origin is None:
        raise SystemExit("make_schema.py needs the package kubernetes-validate")
    folder = Path(spec.origin).parent / "kubernetes-json-schema" / f"v{RELEASE}-local"
    found: dict[str, Any] = json.loads((folder / "_definitions.json").read_text())["$defs"]
    return found


def short_name(full: str) -> str:
    """``io.k8s.api.core.v1.PodSpec`` as ``core.v1.PodSpec``."""
    return ".".join(full.split(".")[-3:])


class Extractor:
    """Collects the types that the kinds refer to, directly and through others."""

    def __init__(self, all_definitions: dict[str, Any]) -> None:
        self.definitions = all_definitions
        self.types: dict[str, dict[str, Any]] = {}

    def add(self, full: str) -> str:
        """The notation of a reference, whose type is collected."""
        name = short_name(full)
        if scalar := _SCALARS.get(name.rsplit(".", 1)[1]):
            return scalar
        if name not in self.types:
            definition = self.definitions[full]
            entry: dict[str, Any] = {}
            self.types[name] = entry
            fields = definition.get("properties", {})
            entry["fields"] = {field: self.notation(value) for field, value in sorted(fields.items())}
            if required := definition.get("required"):
                entry["required"] = sorted(required)
        return name

    def notation(self, schema: dict[str, Any]) -> str:
        """The notation of one field."""
        if "$ref" in schema:
            return self.add(schema["$ref"].removeprefix("#/$defs/"))
        kinds = schema.get("type", [])
        kind = next((one for one in ([kinds] if isinstance(kinds, str) else kinds) if one != "null"), "any")
        match kind:
            case "array":
                key = schema.get("x-kubernetes-patch-merge-key", "")
                if not key and schema.get("x-kubernetes-patch-strategy") == "merge":
                    key = "="
                return f"[{key}]{self.notation(schema['items'])}"
            case "object":
                values = schema.get("additionalProperties")
                return f"map:{self.notation(values)}" if values else "any"
            case "integer" | "number":
                return str(schema["format"])
            case "boolean":
                return "bool"
            case "string":
                return "bytes" if schema.get("format") == "byte" else "string"
        return "any"


def main() -> None:
    """Write the file."""
    extractor = Extractor(definitions())
    by_type = {
        (gvk["group"], gvk["version"], gvk["kind"]): name
        for name, definition in extractor.definitions.items()
        for gvk in definition.get("x-kubernetes-group-version-kind", ())
    }
    kinds = {}
    for kind in KINDS:
        if kind.group == "policy.networking.k8s.io":  # no part of Kubernetes: schema_network_policy.json
            continue
        for api_version in kind.api_versions:
            full = by_type[kind.group, api_version.rpartition("/")[2], kind.kind]
            kinds[f"{api_version}/{kind.kind}"] = extractor.add(full)
    types = dict(sorted(extractor.types.items()))
    data = {"release": RELEASE, "kinds": kinds, "types": types}
    lines = ",\n".join(
        f"{json.dumps(name)}:{json.dumps(value, separators=(',', ':'))}" for name, value in types.items()
    )
    head = json.dumps({"release": RELEASE, "kinds": kinds}, separators=(",", ":"))
    text = f'{head[:-1]},"types":{{\n{lines}\n}}}}\n'
    if json.loads(text) != data:
        raise SystemExit("the text written is not the data meant")
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
