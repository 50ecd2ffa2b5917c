"""Testbed: Kubernetes networking on one Linux machine, without Kubernetes.

``Cluster`` is the Python API; it is imported when first asked for, so that the package itself costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.api.cluster import Cluster

__version__ = "0.1.0"
__all__ = ["Cluster", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Cluster":
        from testbed.api.cluster import Cluster

        return Cluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
