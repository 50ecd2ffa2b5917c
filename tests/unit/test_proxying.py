"""When service rules are made: the first change at once, what comes soon after it together."""

from __future__ import annotations

import pytest

from testbed.cluster.clock import ManualClock
from testbed.cluster.proxying import KEPT, METRIC, Change, Proxying, exposition


class Node:
    """One node whose rules take ``seconds`` to be made and applied."""

    def __init__(self, period: float = 1.0, seconds: float = 0.25) -> None:
        self.clock = ManualClock(1000.0)
        self.seconds = seconds
        self.runs: list[float] = []
        self.working = False
        self.fails = 0
        self.proxying = Proxying(self.clock, period, self.look)
        self.version = 0

    def look(self, name: str) -> None:
        """What a worker does when it is touched: if the time has come, make the rules."""
        if not self.working and self.proxying.begin(name):
            self.working = True
            self.runs.append(self.clock.now())
            self.clock.later(self.seconds, lambda: self.end(name))

    def end(self, name: str) -> None:
        self.working = False
        done = not self.fails
        self.fails = max(0, self.fails - 1)
        self.proxying.over(name, done)
        if not done:
            self.clock.later(1.0, lambda: self.look(name))

    def change(self) -> None:
        self.version += 1
        written = self.clock.now()
        change = Change(self.version, "Service", "default", "web", "modified", written)
        self.proxying.changed("node-1", change)


def test_the_first_change_is_made_at_once_and_later_ones_wait_for_the_period():
    node = Node()
    node.change()
    node.clock.advance(0.3)  # the first run ended after 0.25
    for _ in range(5):
        node.change()
        node.clock.advance(0.1)
    assert node.runs == [1000.0]
    node.clock.advance(2)
    assert node.runs == [1000.0, 1001.25]
    assert not node.proxying.behind("node-1")


def test_a_change_during_a_run_is_made_after_the_period_not_lost():
    node = Node()
    node.change()
    node.clock.advance(0.1)
    node.change()
    assert node.proxying.behind("node-1")
    node.clock.advance(3)
    assert node.runs == [1000.0, 1001.25]
    assert [(one.change.version, one.seconds) for one in node.proxying.programmed] == [
        (1, 0.25),
        (2, pytest.approx(1.4)),
    ]


def test_a_change_after_a_quiet_time_is_made_at_once():
    node = Node()
    node.change()
    node.clock.advance(60)
    node.change()
    assert node.runs == [1000.0, 1060.0]


def test_a_run_that_failed_is_no_run_and_its_changes_still_count_from_when_they_were_written():
    node = Node()
    node.fails = 1
    node.change()
    node.clock.advance(0.5)
    assert node.proxying.behind("node-1")
    assert not node.proxying.programmed
    node.clock.advance(5)
    assert node.runs == [1000.0, 1001.25]
    assert [one.seconds for one in node.proxying.programmed] == [1.5]


def test_while_it_is_held_a_node_makes_its_rules_once_and_at_the_end_without_waiting():
    node = Node()
    node.proxying.hold()
    for _ in range(5):
        node.change()
        node.clock.advance(1.0)
    assert node.runs == [1000.0]
    assert node.proxying.behind("node-1")
    node.change()
    node.clock.advance(0.3)
    node.proxying.release()
    node.clock.advance(0.3)
    assert node.runs == [1000.0, 1005.3]
    assert not node.proxying.behind("node-1")
    node.clock.advance(10)
    assert len(node.runs) == 2
    assert not node.proxying.programmed
    node.change()
    assert [one.change.version for one in node.proxying.programmed] == []
    node.clock.advance(1)
    assert [one.change.version for one in node.proxying.programmed] == [7]


def test_without_a_period_nothing_is_gathered_but_what_comes_during_a_run():
    node = Node(period=0.0, seconds=0.1)
    for _ in range(4):
        node.change()
        node.clock.advance(0.2)
    assert len(node.runs) == 4


def test_the_distribution_counts_every_change_of_a_node():
    node = Node()
    for _ in range(3):
        node.change()
        node.clock.advance(10)
    seen = node.proxying.distribution["node-1"]
    assert (seen.count, seen.sum, seen.counts[3:6]) == (3, 0.75, [0, 3, 3])
    assert [one.change.version for one in node.proxying.since(1)] == [2, 3]


def test_the_distribution_reads_as_prometheus_wants_it():
    node = Node()
    node.change()
    node.clock.advance(10)
    lines = exposition(node.proxying.distribution).splitlines()
    assert f'{METRIC}_bucket{{node="node-1",le="0.12"}} 0' in lines
    assert f'{METRIC}_bucket{{node="node-1",le="0.25"}} 1' in lines
    assert lines[-3:] == [
        f'{METRIC}_bucket{{node="node-1",le="+Inf"}} 1',
        f'{METRIC}_sum{{node="node-1"}} 0.25',
        f'{METRIC}_count{{node="node-1"}} 1',
    ]


def test_of_a_node_that_is_down_for_long_only_the_latest_changes_are_kept() -> None:
    node = Node()
    node.fails = 10**9
    for _ in range(KEPT + 5):
        node.change()
    node.clock.advance(5.0)
    node.change()
    node.fails = 0
    node.clock.advance(5.0)
    kept = [each.change.version for each in node.proxying.since(0)]
    assert kept == list(range(KEPT + 6 - len(kept) + 1, KEPT + 7))
    assert len(kept) == KEPT
