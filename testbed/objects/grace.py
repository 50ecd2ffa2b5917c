"""How long an object that is deleted has to end, where nobody says otherwise.

Source: kubernetes v1.36 ``pkg/registry/core/pod/strategy.go`` (``CheckGracefulDelete``).
"""

from __future__ import annotations

from testbed.objects.kinds import Object

DEFAULT_GRACE = 30
TERMINAL = ("Succeeded", "Failed")


def is_terminal(pod: Object) -> bool:
    """Whether a pod has run to its end."""
    return pod.get("status", {}).get("phase") in TERMINAL


def termination_grace(obj: Object) -> int:
    """Seconds: a pod's own grace period where something of it may run; none for anything else."""
    if obj["kind"] != "Pod" or not obj["spec"].get("nodeName") or is_terminal(obj):
        return 0
    return max(0, int(obj["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE)))
