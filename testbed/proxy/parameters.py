"""What of kube-proxy's configuration a spec may set: ``spec.network.proxy``, beside ``mode``.

A mode declares which of these it heeds, and its own. Names and defaults:
``pkg/proxy/apis/config/v1alpha1/{types,defaults}.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from testbed.spec.fields import flag
from testbed.spec.params import Param
from testbed.units import describe, parse_duration

MIN_SYNC_PERIOD = 1.0
"""Seconds from the end of one sync to the begin of the next; what comes meanwhile is gathered."""

SYNC_PERIOD = 30.0
"""Seconds between looks at whether the rules are still there."""

PRIMARY = "primary"
"""As nodePortAddresses: the node's own addresses, whatever they are."""


def node_port_addresses(value: Any) -> tuple[str, ...]:
    """Reads the ranges of the node's addresses that node ports answer on; none: all of them."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, not {describe(value)}")
    if PRIMARY in value and len(value) > 1:
        raise ValueError(f"{PRIMARY} stands alone: it cannot be used together with ranges")
    return tuple(_entry(index, item) for index, item in enumerate(value))


def _entry(index: int, item: Any) -> str:
    if item == PRIMARY:
        return PRIMARY
    try:
        if not isinstance(item, str) or "/" not in item:
            raise ValueError("no range")
        return str(ip_network(item))
    except ValueError:
        what = f"a range such as 192.168.0.0/16, or {PRIMARY}"
        raise ValueError(f"entry {index + 1}: must be {what}, not {describe(item)}") from None


PARAMETERS: Mapping[str, Param] = {
    "minSyncPeriod": Param(parse_duration, MIN_SYNC_PERIOD),
    "nodePortAddresses": Param(node_port_addresses, ()),
    "masqueradeAll": Param(flag, False),
}
"""What every mode that writes rules heeds."""
