"""The rules an object must follow beyond its schema, in the server's words. One module per group of kinds.

``validate`` expects an object that was read by ``schema.read`` and has its defaults.
"""

from __future__ import annotations

from collections.abc import Callable

from testbed.objects import schema
from testbed.objects.kinds import Kind, Object
from testbed.objects.status import FieldError
from testbed.objects.validation import (
    apps,
    clusterpolicy,
    core,
    endpointslice,
    meta,
    networkpolicy,
    pod,
    service,
)

_RULES: dict[str, Callable[[Object], list[FieldError]]] = {
    "Pod": pod.validate,
    "Service": service.validate,
    "ServiceCIDR": service.validate_service_cidr,
    "EndpointSlice": endpointslice.validate,
    "NetworkPolicy": networkpolicy.validate,
    "ClusterNetworkPolicy": clusterpolicy.validate,
    "AdminNetworkPolicy": clusterpolicy.validate,
    "BaselineAdminNetworkPolicy": clusterpolicy.validate,
    "Deployment": apps.validate_deployment,
    "ReplicaSet": apps.validate_replica_set,
    "StatefulSet": apps.validate_stateful_set,
    "DaemonSet": apps.validate_daemon_set,
    "Job": apps.validate_job,
    "CronJob": apps.validate_cron_job,
    "ReplicationController": apps.validate_replication_controller,
    "Node": core.validate_node,
    "Namespace": core.validate_nothing,
    "ConfigMap": core.validate_config_map,
    "Secret": core.validate_secret,
}

_UPDATE_RULES: dict[str, Callable[[Object, Object], list[FieldError]]] = {
    "Pod": pod.validate_update,
    "Service": service.validate_update,
    "EndpointSlice": endpointslice.validate_update,
    "Deployment": apps.validate_selector_update,
    "ReplicaSet": apps.validate_selector_update,
    "StatefulSet": apps.validate_stateful_set_update,
    "DaemonSet": apps.validate_selector_update,
    "ConfigMap": core.validate_immutable_update,
    "Secret": core.validate_immutable_update,
}


_STATUS_RULES: dict[str, Callable[[Object], list[FieldError]]] = {"Service": service.validate_status}


def validate_status(kind: Kind, obj: Object) -> list[FieldError]:
    """Everything wrong with the status of ``obj``, where there are rules for it."""
    rules = _STATUS_RULES.get(kind.kind)
    return rules(obj) if rules else []


def validate(kind: Kind, obj: Object, old: Object | None = None) -> list[FieldError]:
    """Everything wrong with ``obj``, which is new or is to take the place of ``old``."""
    errors = meta.validate(kind, obj, old)
    errors += _RULES.get(kind.kind, schema.missing)(obj)
    if old is not None and kind.kind in _UPDATE_RULES:
        errors += _UPDATE_RULES[kind.kind](obj, old)
    return errors
