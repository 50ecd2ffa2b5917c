"""What a terminal shows of reachability."""

from __future__ import annotations

from typing import Any

from testbed.measure.text import failures, matrix, skipped, totals


def make_row(
    source: str, destination: str, verdict: str = "ok", reason: str = "", **extra: Any
) -> dict[str, Any]:
    row = {
        "source": source,
        "source_namespace": "default",
        "destination": destination,
        "destination_namespace": "default",
        "ip": "10.244.1.2",
        "port": 80,
        "path": "same-node",
        "verdict": verdict,
        "reason": reason,
        "reporter": "",
    }
    return row | extra


def test_matrix_has_sources_down_and_destinations_across() -> None:
    rows = [
        make_row("a", "b"),
        make_row("b", "a", "refused", "reset"),
        make_row("c", "a"),
        make_row("c", "b"),
    ]
    assert matrix(rows) == (
        "             1 2\ndefault/a 1    .\ndefault/b 2  R\ndefault/c 3  . .\n\n. ok   R refused\n"
    )


def test_failures_are_grouped_by_reason_most_frequent_first() -> None:
    rows = [
        make_row("a", "b", "timeout", "no answer"),
        make_row("a", "c", "refused", "reset"),
        make_row("b", "c", "refused", "reset", reporter="10.0.0.1"),
        make_row("a", "d"),
    ]
    assert failures(rows) == (
        "2 refused: reset (all to default/c)\n"
        "  default/a → default/c (10.244.1.2:80, same-node)\n"
        "  default/b → default/c (10.244.1.2:80, same-node, says 10.0.0.1)\n"
        "1 timeout: no answer\n"
        "  default/a → default/b (10.244.1.2:80, same-node)\n"
    )


def test_more_failures_than_examples_are_counted() -> None:
    rows = [make_row("a", f"d{number}", "timeout", "no answer") for number in range(5)]
    assert failures(rows).endswith("  … and 2 more\n")


def test_ipv6_address_with_a_port_has_brackets() -> None:
    assert "([fd00::2]:80," in failures([make_row("a", "b", "timeout", "no answer", ip="fd00::2")])


def test_totals_name_protocol_and_time() -> None:
    rows = [make_row("a", "b"), make_row("a", "c", "timeout", "no answer")]
    assert totals(rows, "tcp", 1.234) == "2 TCP flows in 1.23 s: 1 ok, 1 not\n"


def test_skipped_are_grouped_by_why() -> None:
    entries = [{"namespace": "n", "name": f"p{number}", "why": "declares no UDP port"} for number in range(5)]
    assert skipped(entries) == "not a destination: n/p0, n/p1, n/p2 and 2 more (declares no UDP port)\n"
