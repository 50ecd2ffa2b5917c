"""The annotations that limit a pod's bandwidth, read as the kubelet reads them.

Source: kubernetes 1.31 ``pkg/util/bandwidth/utils.go`` (ExtractPodBandwidthResources); the words around an
error are containerd's (``internal/cri/server/sandbox_run.go``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from testbed.objects.quantity import milli

INGRESS, EGRESS = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"

SMALLEST, LARGEST = 1_000, 10**15
"""Bits per second: 1k and 1P."""


@dataclass(frozen=True)
class Bandwidth:
    """What a pod may receive (ingress) and send (egress): bits per second, 0 without a limit."""

    ingress: int = 0
    egress: int = 0


def bandwidth(annotations: Mapping[str, str]) -> Bandwidth:
    """A pod's limits; those that cannot be read are none (see ``bandwidth_problem``)."""
    try:
        return _read(annotations)
    except ValueError:
        return Bandwidth()


def bandwidth_problem(annotations: Mapping[str, str]) -> str:
    """Why the sandbox of a pod with these annotations cannot be made, "" where it can."""
    try:
        _read(annotations)
    except ValueError as error:
        return f"reading pod bandwidth annotations: {error}"
    return ""


def _read(annotations: Mapping[str, str]) -> Bandwidth:
    return Bandwidth(*(_rate(annotations[name]) if name in annotations else 0 for name in (INGRESS, EGRESS)))


def _rate(text: str) -> int:
    rate = -(-milli(text) // 1000)
    if rate < SMALLEST:
        raise ValueError("resource is unreasonably small (< 1kbit)")
    if rate > LARGEST:
        raise ValueError("resource is unreasonably large (> 1Pbit)")
    return rate
