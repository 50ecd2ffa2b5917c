"""Rules for workloads. Sources: ``pkg/apis/apps/validation``, ``pkg/apis/core/validation``."""

from __future__ import annotations

import re
from typing import Any

from testbed.documents import FieldPath
from testbed.objects import schema, selectors
from testbed.objects.kinds import Object
from testbed.objects.status import FieldError, forbidden, invalid, required, unsupported
from testbed.objects.validation import cron, meta, names, pod

_SPEC: FieldPath = ("spec",)
MAX_REPLICAS = 10_000
"""Not Kubernetes': objects come from strangers, and every replica is an object in this machine's memory."""
_MISMATCH = "`selector` does not match template `labels`"


def _at(*below: str | int) -> FieldPath:
    return (*_SPEC, *below)


def _labels(spec: Object) -> dict[str, str]:
    labels: dict[str, str] = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    return labels


def _selector(spec: Object, owner: str = "deployment") -> list[FieldError]:
    """A selector that is there, selects something, and selects the template's pods."""
    selector = spec.get("selector")
    if selector is None:
        return [required(_at("selector"))]
    errors = meta.selector(_at("selector"), selector)
    if not selector:
        return [invalid(_at("selector"), selector, f"empty selector is invalid for {owner}")]
    if not errors and not selectors.matches(selector, _labels(spec)):
        errors.append(invalid(_at("template", "metadata", "labels"), _labels(spec), _MISMATCH))
    return errors


def _template(spec: Object) -> list[FieldError]:
    if not spec.get("template"):
        return [required(_at("template"))]
    claims = [
        (claim.get("metadata") or {}).get("name", "") for claim in spec.get("volumeClaimTemplates") or ()
    ]
    errors = pod.validate_template(_at("template"), spec["template"], claims)
    policy = (spec["template"].get("spec") or {}).get("restartPolicy", "Always")
    if policy != "Always" and not any(error.path[-1:] == ("restartPolicy",) for error in errors):
        errors.append(unsupported(_at("template", "spec", "restartPolicy"), policy, ("Always",)))
    return errors


def _numbers(spec: Object, *fields: str, at: FieldPath = _SPEC) -> list[FieldError]:
    errors = [error for field in fields for error in meta.not_negative((*at, field), spec.get(field))]
    why = f"must be less than or equal to {MAX_REPLICAS}, the most that is emulated"
    for field in ("replicas", "parallelism", "completions"):
        if field in fields and (spec.get(field) or 0) > MAX_REPLICAS:
            errors.append(invalid((*at, field), spec[field], why))
    return errors


def validate_job(job: Object) -> list[FieldError]:
    """What the schema asks of a Job, and its numbers (``pkg/apis/batch/validation``)."""
    return [*schema.missing(job), *_job_spec(_SPEC, job.get("spec") or {})]


def _job_spec(path: FieldPath, spec: Object) -> list[FieldError]:
    numbers = ("parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished")
    errors = _numbers(spec, *numbers, at=path)
    template = spec.get("template")
    if template is None:
        return errors
    errors += pod.validate_template((*path, "template"), template)
    policy = (*path, "template", "spec", "restartPolicy")
    if (template.get("spec") or {}).get("restartPolicy", "Always") not in ("OnFailure", "Never"):
        errors = [error for error in errors if error.path != policy]
        errors.append(required(policy, 'valid values: "OnFailure", "Never"'))
    return errors


CONCURRENCY = ("Allow", "Forbid", "Replace")


def validate_cron_job(cron_job: Object) -> list[FieldError]:
    """What the schema asks of a CronJob, its schedule, and the Job that it would make."""
    spec = cron_job.get("spec") or {}
    errors = [*schema.missing(cron_job)]
    schedule = spec.get("schedule", "")
    if not schedule:
        errors.append(required(_at("schedule")))
    elif problem := cron.problem(schedule):
        errors.append(invalid(_at("schedule"), schedule, problem))
    policy = spec.get("concurrencyPolicy", "Allow")
    if policy not in CONCURRENCY:
        errors.append(unsupported(_at("concurrencyPolicy"), policy, CONCURRENCY))
    errors += _numbers(
        spec, "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"
    )
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    return errors + _job_spec(_at("jobTemplate", "spec"), job)


def validate_deployment(deployment: Object) -> list[FieldError]:
    """A Deployment as a whole."""
    spec = deployment.get("spec") or {}
    errors = _numbers(spec, "replicas") + _selector(spec) + _template(spec)
    strategy = spec.get("strategy") or {}
    errors += _deployment_strategy(strategy)
    errors += _numbers(spec, "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and 0 <= deadline <= spec.get("minReadySeconds", 0):
        why = "must be greater than minReadySeconds"
        errors.append(invalid(_at("progressDeadlineSeconds"), deadline, why))
    return errors


def _deployment_strategy(strategy: Object) -> list[FieldError]:
    path = _at("strategy")
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind == "Recreate":
        why = "may not be specified when strategy `type` is 'Recreate'"
        return [forbidden((*path, "rollingUpdate"), why)] if rolling is not None else []
    if kind != "RollingUpdate":
        return [unsupported((*path, "type"), kind, ("Recreate", "RollingUpdate"))]
    rolling = rolling or {}
    here = (*path, "rollingUpdate")
    errors = _share((*here, "maxUnavailable"), rolling.get("maxUnavailable", 0), upto=100)
    errors += _share((*here, "maxSurge"), rolling.get("maxSurge", 0))
    if not errors and _is_zero(rolling.get("maxUnavailable")) and _is_zero(rolling.get("maxSurge")):
        value = rolling.get("maxUnavailable")
        errors.append(invalid((*here, "maxUnavailable"), value, "may not be 0 when `maxSurge` is 0"))
    return errors


def _share(path: FieldPath, value: int | str, upto: int = 0) -> list[FieldError]:
    """A number or a percentage, the latter at most ``upto`` if that is given."""
    if isinstance(value, int):
        return meta.not_negative(path, value)
    if not re.fullmatch("[0-9]+%", value):
        why = (
            "a valid percent string must be a numeric string followed by an ending '%' "
            "(e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
        )
        return [invalid(path, value, why)]
    if upto and int(value[:-1]) > upto:
        return [invalid(path, value, f"must not be greater than {upto}%")]
    return []


def _is_zero(value: Any) -> bool:
    return value in (0, "0%")


def validate_replica_set(replica_set: Object) -> list[FieldError]:
    """A ReplicaSet as a whole."""
    spec = replica_set.get("spec") or {}
    return _numbers(spec, "replicas", "minReadySeconds") + _selector(spec) + _template(spec)


def validate_daemon_set(daemon_set: Object) -> list[FieldError]:
    """A DaemonSet as a whole."""
    spec = daemon_set.get("spec") or {}
    errors = _selector(spec, "daemonset") + _template(spec)
    errors += _numbers(spec, "minReadySeconds", "revisionHistoryLimit")
    strategy = spec.get("updateStrategy") or {}
    if (kind := strategy.get("type")) not in ("RollingUpdate", "OnDelete"):
        errors.append(unsupported(_at("updateStrategy", "type"), kind, ("RollingUpdate", "OnDelete")))
    elif kind == "RollingUpdate":
        path = _at("updateStrategy", "rollingUpdate")
        rolling = strategy.get("rollingUpdate") or {}
        errors += _share((*path, "maxUnavailable"), rolling.get("maxUnavailable", 1), upto=100)
        errors += _share((*path, "maxSurge"), rolling.get("maxSurge", 0), upto=100)
        gone, more = rolling.get("maxUnavailable", 1), rolling.get("maxSurge", 0)
        if _is_zero(gone) and _is_zero(more):
            errors.append(required((*path, "maxUnavailable"), "cannot be 0 when maxSurge is 0"))
        elif not _is_zero(gone) and not _is_zero(more):
            why = "may not be set when maxUnavailable is non-zero"
            errors.append(invalid((*path, "maxSurge"), more, why))
    return errors


def validate_stateful_set(stateful_set: Object) -> list[FieldError]:
    """A StatefulSet as a whole."""
    spec = stateful_set.get("spec") or {}
    errors: list[FieldError] = []
    if (policy := spec.get("podManagementPolicy")) not in ("OrderedReady", "Parallel"):
        why = "must be 'OrderedReady' or 'Parallel'"
        errors.append(invalid(_at("podManagementPolicy"), policy, why))
    strategy = (spec.get("updateStrategy") or {}).get("type")
    if strategy not in ("RollingUpdate", "OnDelete"):
        why = "must be 'RollingUpdate' or 'OnDelete'"
        errors.append(invalid(_at("updateStrategy"), spec.get("updateStrategy"), why))
    errors += _numbers(spec, "replicas", "minReadySeconds", "revisionHistoryLimit")
    errors += meta.not_negative(_at("ordinals", "start"), (spec.get("ordinals") or {}).get("start"))
    if name := spec.get("serviceName"):
        errors += names.checked(_at("serviceName"), name, names.subdomain(name))
    return errors + _selector(spec, "statefulset") + _template(spec)


def validate_replication_controller(controller: Object) -> list[FieldError]:
    """A ReplicationController as a whole."""
    spec = controller.get("spec") or {}
    errors = _numbers(spec, "replicas", "minReadySeconds")
    if not spec.get("selector"):
        errors.append(required(_at("selector")))
    elif not selectors.matches_labels(spec["selector"], _labels(spec)):
        errors.append(invalid(_at("template", "metadata", "labels"), _labels(spec), _MISMATCH))
    return errors + _template(spec)


# --- updates ----------------------------------------------------------------------------------------------

_STATEFUL_MUTABLE = (
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
)  # fmt: skip


def validate_selector_update(new: Object, old: Object) -> list[FieldError]:
    """A workload's selector stays as it is."""
    return meta.immutable(_at("selector"), new["spec"].get("selector"), old["spec"].get("selector"))


def validate_stateful_set_update(new: Object, old: Object) -> list[FieldError]:
    """Most of a StatefulSet stays as it is."""

    def frozen(spec: Object) -> Object:
        return {key: value for key, value in spec.items() if key not in _STATEFUL_MUTABLE}

    if frozen(new["spec"]) == frozen(old["spec"]):
        return []
    mutable = ", ".join(f"'{name}'" for name in _STATEFUL_MUTABLE[:-1])
    why = (
        f"updates to statefulset spec for fields other than {mutable} and '{_STATEFUL_MUTABLE[-1]}' "
        "are forbidden"
    )
    return [forbidden(_SPEC, why)]
