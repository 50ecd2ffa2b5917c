"""Rules for pods and pod templates. Source: ``pkg/apis/core/validation/validation.go``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from testbed.documents import FieldPath
from testbed.objects.kinds import Object
from testbed.objects.quantity import milli
from testbed.objects.status import (
    FieldError,
    duplicate,
    forbidden,
    invalid,
    not_found_value,
    required,
    unsupported,
)
from testbed.objects.validation import names, scheduling

PROTOCOLS = ("SCTP", "TCP", "UDP")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_OPERATORS = ("Equal", "Exists")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_MAX_INT32 = 2**31 - 1
_MAX_NAMESERVERS = 3
_MAX_SEARCHES = 32
_MAX_SEARCH_CHARACTERS = 2048
_PROBE_CLOCKS = (
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold",
)  # fmt: skip
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")

Spec = dict[str, Any]


def validate(pod: Object) -> list[FieldError]:
    """A pod as a whole."""
    return validate_spec(("spec",), pod.get("spec") or {})


def validate_template(
    path: FieldPath, template: Object, more_volumes: Collection[str] = ()
) -> list[FieldError]:
    """The template of a workload: labels, annotations and spec. more_volumes: of the workload's own."""
    metadata = template.get("metadata") or {}
    return [
        *names.label_map((*path, "labels"), metadata.get("labels")),
        *names.annotation_map((*path, "annotations"), metadata.get("annotations")),
        *validate_spec((*path, "spec"), template.get("spec") or {}, more_volumes),
    ]


def validate_spec(path: FieldPath, spec: Spec, more_volumes: Collection[str] = ()) -> list[FieldError]:
    """A PodSpec, wherever it is."""
    volumes = spec.get("volumes") or []
    errors = _volumes((*path, "volumes"), volumes)
    errors += _all_containers(path, spec, {*more_volumes, *(volume.get("name", "") for volume in volumes)})
    errors += _choice((*path, "restartPolicy"), spec.get("restartPolicy"), _RESTART_POLICIES)
    errors += _choice((*path, "dnsPolicy"), spec.get("dnsPolicy"), _DNS_POLICIES)
    errors += names.label_map((*path, "nodeSelector"), spec.get("nodeSelector"))
    errors += _host_names(path, spec)
    errors += _dns_config(path, spec)
    errors += _host_aliases((*path, "hostAliases"), spec.get("hostAliases") or [])
    errors += _tolerations((*path, "tolerations"), spec.get("tolerations") or [])
    for name in ("nodeName", "serviceAccountName"):
        if text := spec.get(name):
            errors += names.checked((*path, name), text, names.subdomain(text))
    errors += scheduling.affinity((*path, "affinity"), spec.get("affinity"))
    constraints = spec.get("topologySpreadConstraints") or []
    errors += scheduling.spread((*path, "topologySpreadConstraints"), constraints)
    for index, gate in enumerate(spec.get("readinessGates") or ()):
        kind = gate.get("conditionType", "")
        here = (*path, "readinessGates", index, "conditionType")
        errors += names.checked(here, kind, names.qualified_name(kind))
    active = spec.get("activeDeadlineSeconds")
    if active is not None and not 1 <= active <= _MAX_INT32:
        why = f"must be between 1 and {_MAX_INT32}, inclusive"
        errors.append(invalid((*path, "activeDeadlineSeconds"), active, why))
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and grace < 0:
        errors.append(
            invalid((*path, "terminationGracePeriodSeconds"), grace, "must be greater than or equal to 0")
        )
    return errors


def _choice(path: FieldPath, value: str | None, known: Sequence[str]) -> list[FieldError]:
    if not value:
        return [required(path)]
    return [] if value in known else [unsupported(path, value, known)]


# --- containers -----------------------------------------------------------------------------------------


def _all_containers(path: FieldPath, spec: Spec, volumes: set[str]) -> list[FieldError]:
    errors: list[FieldError] = []
    containers = spec.get("containers") or []
    if not containers:
        errors.append(required((*path, "containers")))
    seen: set[str] = set()
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            errors += _container(
                (*path, field, index), container, volumes, seen, bool(spec.get("hostNetwork"))
            )
    return errors + _host_port_conflicts((*path, "containers"), containers)


def _container(
    path: FieldPath, container: Object, volumes: set[str], seen: set[str], host_network: bool
) -> list[FieldError]:
    errors: list[FieldError] = []
    name = container.get("name", "")
    if not name:
        errors.append(required((*path, "name")))
    else:
        errors += names.checked((*path, "name"), name, names.label(name))
        if name in seen:
            errors.append(duplicate((*path, "name"), name))
    seen.add(name)
    image = container.get("image", "")
    if not image:
        errors.append(required((*path, "image")))
    elif image != image.strip():
        errors.append(invalid((*path, "image"), image, "must not have leading or trailing whitespace"))
    errors += _ports((*path, "ports"), container.get("ports") or [], host_network)
    errors += _environment((*path, "env"), container.get("env") or [])
    errors += _mounts((*path, "volumeMounts"), container.get("volumeMounts") or [], volumes)
    errors += _choice((*path, "imagePullPolicy"), container.get("imagePullPolicy"), _PULL_POLICIES)
    errors += _resources((*path, "resources"), container.get("resources") or {})
    for probe in _PROBES:
        errors += _probe((*path, probe), container.get(probe), container)
    return errors


def _resources(path: FieldPath, resources: Object) -> list[FieldError]:
    """No quantity is negative, and nothing asks for more than its limit."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    errors = [
        invalid((*path, field, name), str(value), "must be greater than or equal to 0")
        for field, asked in (("limits", limits), ("requests", requests))
        for name, value in asked.items()
        if milli(value) < 0
    ]
    for name, value in requests.items():
        if name in limits and milli(value) > milli(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            errors.append(invalid((*path, "requests"), str(value), why))
    return errors


def _ports(path: FieldPath, ports: Sequence[Object], host_network: bool) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, port in enumerate(ports):
        here = (*path, index)
        if name := port.get("name"):
            errors += names.checked((*here, "name"), name, names.port_name(name))
            if name in seen:
                errors.append(duplicate((*here, "name"), name))
            seen.add(name)
        number, host = port.get("containerPort", 0), port.get("hostPort", 0)
        if number == 0:
            errors.append(required((*here, "containerPort")))
        else:
            errors += names.checked((*here, "containerPort"), number, names.port_number(number))
        if host:
            errors += names.checked((*here, "hostPort"), host, names.port_number(host))
        if host_network and host and host != number:
            errors.append(
                invalid((*here, "hostPort"), host, "must match `containerPort` when `hostNetwork` is true")
            )
        errors += _choice((*here, "protocol"), port.get("protocol"), PROTOCOLS)
        if address := port.get("hostIP"):
            errors += names.ip((*here, "hostIP"), address)
    return errors


def _host_port_conflicts(path: FieldPath, containers: Sequence[Object]) -> list[FieldError]:
    """A host port stands once per protocol and host address in a pod (AccumulateUniqueHostPorts)."""
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, container in enumerate(containers):
        for position, port in enumerate(container.get("ports") or ()):
            if not port.get("hostPort"):
                continue
            text = f"{port.get('protocol', 'TCP')}/{port.get('hostIP', '')}/{port['hostPort']}"
            if text in seen:
                errors.append(duplicate((*path, index, "ports", position, "hostPort"), text))
            seen.add(text)
    return errors


_FIELD_PATHS = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
    "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip


def _environment(path: FieldPath, entries: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, entry in enumerate(entries):
        here = (*path, index)
        name = entry.get("name", "")
        if not name:
            errors.append(required((*here, "name")))
        elif any(not 32 <= ord(letter) < 127 or letter == "=" for letter in name):
            why = (
                "a valid environment variable name must consist only of printable ASCII characters "
                "other than '='"
            )
            errors.append(invalid((*here, "name"), name, why))
        source = entry.get("valueFrom")
        if source is None:
            continue
        here = (*here, "valueFrom")
        if not source:
            why = (
                "must specify one of: `fieldRef`, `resourceFieldRef`, "
                "`configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            )
            errors.append(invalid(here, "", why))
        elif entry.get("value"):
            errors.append(invalid(here, "", "may not be specified when `value` is not empty"))
        elif len(source) > 1:
            errors.append(invalid(here, "", "may not have more than one field specified at a time"))
        errors += _field_reference((*here, "fieldRef"), source.get("fieldRef"))
    return errors


def _field_reference(path: FieldPath, reference: Object | None) -> list[FieldError]:
    if reference is None:
        return []
    field = reference.get("fieldPath", "")
    if not field:
        return [required((*path, "fieldPath"))]
    if field in _FIELD_PATHS or field.startswith(("metadata.labels['", "metadata.annotations['")):
        return []
    return [unsupported((*path, "fieldPath"), field, sorted(_FIELD_PATHS))]


def _mounts(path: FieldPath, mounts: Sequence[Object], volumes: set[str]) -> list[FieldError]:
    errors: list[FieldError] = []
    points: set[str] = set()
    for index, mount in enumerate(mounts):
        name, point = mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            errors.append(required((*path, index, "name")))
        elif name not in volumes:
            errors.append(not_found_value((*path, index, "name"), name))
        if not point:
            errors.append(required((*path, index, "mountPath")))
        elif point in points:
            errors.append(invalid((*path, index, "mountPath"), point, "must be unique"))
        points.add(point)
    return errors


def _probe(path: FieldPath, probe: Object | None, container: Object) -> list[FieldError]:
    if probe is None:
        return []
    errors: list[FieldError] = []
    handlers = [name for name in ("exec", "httpGet", "tcpSocket", "grpc") if name in probe]
    if not handlers:
        errors.append(required(path, "must specify a handler type"))
    for name in handlers[1:]:
        errors.append(forbidden((*path, name), "may not specify more than 1 handler type"))
    if handlers and handlers[0] in ("httpGet", "tcpSocket", "grpc"):
        errors += _probe_port((*path, handlers[0], "port"), probe[handlers[0]].get("port", 0))
    if handlers and handlers[0] == "exec" and not probe["exec"].get("command"):
        errors.append(required((*path, "exec", "command")))
    for clock in _PROBE_CLOCKS:
        if probe.get(clock, 0) < 0:
            errors.append(invalid((*path, clock), probe[clock], "must be greater than or equal to 0"))
    if path[-1] != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        errors.append(invalid((*path, "successThreshold"), probe["successThreshold"], "must be 1"))
    return errors


def _probe_port(path: FieldPath, port: int | str) -> list[FieldError]:
    wrong = names.port_number(port) if isinstance(port, int) else names.port_name(port)
    return names.checked(path, port, wrong)


# --- volumes, names, DNS ----------------------------------------------------------------------------------


def _volumes(path: FieldPath, volumes: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, volume in enumerate(volumes):
        name = volume.get("name", "")
        if not name:
            errors.append(required((*path, index, "name")))
        else:
            errors += names.checked((*path, index, "name"), name, names.label(name))
            if name in seen:
                errors.append(duplicate((*path, index, "name"), name))
        seen.add(name)
        for source in sorted(volume.keys() - {"name"})[1:]:
            errors.append(forbidden((*path, index, source), "may not specify more than 1 volume type"))
    return errors


def _host_names(path: FieldPath, spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    if hostname := spec.get("hostname"):
        wrong = ["must not contain dots"] if "." in hostname else names.label(hostname)
        errors += names.checked((*path, "hostname"), hostname, wrong)
    if subdomain := spec.get("subdomain"):
        errors += names.checked((*path, "subdomain"), subdomain, names.label(subdomain))
    return errors


def _dns_config(path: FieldPath, spec: Spec) -> list[FieldError]:
    errors: list[FieldError] = []
    config = spec.get("dnsConfig") or {}
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if spec.get("dnsPolicy") == "None":
        if "dnsConfig" not in spec:
            return [required((*path, "dnsConfig"), "must provide `dnsConfig` when `dnsPolicy` is None")]
        if not servers:
            why = "must provide at least one DNS nameserver when `dnsPolicy` is None"
            return [required((*path, "dnsConfig", "nameservers"), why)]
    here = (*path, "dnsConfig")
    if len(servers) > _MAX_NAMESERVERS:
        why = f"must not have more than {_MAX_NAMESERVERS} nameservers"
        errors.append(invalid((*here, "nameservers"), servers, why))
    for index, server in enumerate(servers):
        errors += names.ip((*here, "nameservers", index), server)
    if len(searches) > _MAX_SEARCHES:
        why = f"must not have more than {_MAX_SEARCHES} search paths"
        errors.append(invalid((*here, "searches"), searches, why))
    if len(" ".join(searches)) > _MAX_SEARCH_CHARACTERS:
        limit = f"{_MAX_SEARCH_CHARACTERS} characters (including spaces)"
        why = f"must not have more than {limit} in the search list"
        errors.append(invalid((*here, "searches"), searches, why))
    for index, search in enumerate(searches):
        # One trailing dot is fine, and so is the root by itself; underscores are since 1.34.
        plain = search if search == "." else search.removesuffix(".").replace("_", "-")
        if search != ".":
            wrong = names.subdomain("a" + plain[1:] if search.startswith("_") else plain)
            errors += names.checked((*here, "searches", index), search, wrong)
    for index, option in enumerate(config.get("options") or ()):
        if not option.get("name"):
            errors.append(required((*here, "options", index), "must not be empty"))
    return errors


def _host_aliases(path: FieldPath, aliases: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, alias in enumerate(aliases):
        errors += names.ip((*path, index, "ip"), alias.get("ip", ""))
        for position, name in enumerate(alias.get("hostnames") or ()):
            errors += names.checked((*path, index, "hostnames", position), name, names.subdomain(name))
    return errors


def _tolerations(path: FieldPath, tolerations: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    for index, toleration in enumerate(tolerations):
        key, operator = toleration.get("key", ""), toleration.get("operator", "") or "Equal"
        if key:
            errors += names.checked((*path, index, "key"), key, names.qualified_name(key))
        elif operator != "Exists":
            why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            errors.append(invalid((*path, index, "operator"), toleration.get("operator", ""), why))
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            errors.append(invalid((*path, index, "effect"), toleration.get("effect", ""), why))
        if operator == "Exists" and toleration.get("value"):
            why = "value must be empty when `operator` is 'Exists'"
            errors.append(invalid((*path, index, "operator"), toleration, why))
        if operator not in _OPERATORS:
            errors.append(unsupported((*path, index, "operator"), operator, _OPERATORS))
        if (effect := toleration.get("effect")) and effect not in _EFFECTS:
            errors.append(unsupported((*path, index, "effect"), effect, _EFFECTS))
    return errors


# --- updates ----------------------------------------------------------------------------------------------

_FROZEN = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_MUTABLE = frozenset({"activeDeadlineSeconds", "tolerations"})


def validate_update(new: Object, old: Object) -> list[FieldError]:
    """What of a pod may change once it is there: nearly nothing."""
    errors: list[FieldError] = []
    if len(new["spec"].get("containers") or ()) != len(old["spec"].get("containers") or ()):
        errors.append(forbidden(("spec", "containers"), "pod updates may not add or remove containers"))
        return errors
    if _frozen(new["spec"]) != _frozen(old["spec"]):
        errors.append(forbidden(("spec",), _FROZEN))
    tolerations = new["spec"].get("tolerations") or []
    for index, toleration in enumerate(old["spec"].get("tolerations") or ()):
        if toleration not in tolerations:
            why = "existing toleration can not be modified except its tolerationSeconds"
            if not any(_same_but_seconds(toleration, other) for other in tolerations):
                errors.append(forbidden(("spec", "tolerations", index), why))
    return errors


def _same_but_seconds(one: Object, other: Object) -> bool:
    return {**one, "tolerationSeconds": None} == {**other, "tolerationSeconds": None}


def _frozen(spec: Spec) -> Spec:
    return {key: _without_images(key, value) for key, value in spec.items() if key not in _MUTABLE}


def _without_images(key: str, value: Any) -> Any:
    if key not in ("containers", "initContainers"):
        return value
    return [dict(_image_free(container)) for container in value]


def _image_free(container: Object) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in container.items() if key != "image")
