"""One place for what colour means what. Palettes made for colour-blind readers: Okabe and Ito; Paul Tol."""

from __future__ import annotations

from typing import Final

PATHS: Final = {
    "loopback": "#8c939e",
    "self": "#56b4e9",
    "same-node": "#0072b2",
    "cross-node": "#d55e00",
    "outside": "#009e73",
    "service": "#cc79a7",
    "node port": "#e69f00",
    "bare veth": "#8c939e",
}
"""Ways, in the order they are drawn."""

PATH_NAMES: Final = {
    "loopback": "noise floor (loopback)",
    "self": "to itself",
    "same-node": "same node",
    "cross-node": "cross node",
    "outside": "to outside",
    "service": "to a Service",
    "node port": "to a node port",
    "bare veth": "noise floor (bare veth)",
}

VERDICTS: Final = {
    "ok": "#9fd3c0",
    "refused": "#e8a317",
    "timeout": "#332288",
    "unreachable": "#b3344f",
    "reset": "#cc79a7",
    "error": "#222222",
}
"""Verdicts; those that are not ok also carry a sign, so that colour is never the only difference."""

SIGNS: Final = {
    "refused": "\N{MULTIPLICATION SIGN}",
    "timeout": "…",
    "unreachable": "⊘",
    "reset": "↯",
    "error": "!",
}

RUNS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Runs of a comparison, in order."""

EFFECTS: Final = {"better": "#009e73", "worse": "#d55e00", "no difference shown": "#8c939e"}
"""Verdicts of a comparison; drawn as a filled circle, a square, a hollow circle."""
