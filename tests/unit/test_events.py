from __future__ import annotations

from typing import Any

from testbed.cluster.clock import ManualClock
from testbed.cluster.events import Recorder
from testbed.objects.store import Store


def recorder() -> tuple[Recorder, Store, ManualClock, dict[str, Any]]:
    clock = ManualClock(1_800_000_000.0)
    store = Store(seed=1, now=clock.now)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    metadata = {"name": "web", "namespace": "default", "uid": "u1"}
    obj = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata}
    return Recorder(store, clock), store, clock, obj


def test_what_repeats_is_counted_in_one_event() -> None:
    record, store, clock, obj = recorder()
    for _ in range(3):
        record.record(obj, "Warning", "Failed", "no", "kubelet")
        clock.advance(60)
    (event,) = store.list("Event")
    assert (event["count"], event["message"]) == (3, "no")
    assert event["firstTimestamp"] < event["lastTimestamp"]
    assert event["source"] == {"component": "kubelet"}


def test_from_the_tenth_similar_event_on_one_stands_for_all() -> None:
    record, store, _, obj = recorder()
    for number in range(500):
        record.record(obj, "Normal", "SuccessfulCreate", f"Created pod: {number}", "replicaset-controller")
    events = store.list("Event")
    combined = [event for event in events if event["message"].startswith("(combined from similar events): ")]
    assert (len(events), len(combined)) == (10, 1)
    # 25 writes at once: nine events, the combined one, and fifteen times its count.
    assert (combined[0]["count"], combined[0]["message"].rpartition(" ")[2]) == (16, "24")


def test_events_far_apart_are_not_combined() -> None:
    record, store, clock, obj = recorder()
    for number in range(12):
        record.record(obj, "Normal", "Scaled", str(number))
        clock.advance(601)
    assert len(store.list("Event")) == 12


def test_who_said_too_much_is_heard_again_after_a_while() -> None:
    record, store, clock, obj = recorder()
    for _ in range(30):
        record.record(obj, "Warning", "Failed", "no")
    assert store.list("Event")[0]["count"] == 25
    clock.advance(300)
    record.record(obj, "Warning", "Failed", "no")
    assert store.list("Event")[0]["count"] == 31


def test_an_event_that_was_deleted_is_written_anew() -> None:
    record, store, _, obj = recorder()
    record.record(obj, "Warning", "Failed", "no")
    store.delete("Event", "default", store.list("Event")[0]["metadata"]["name"])
    record.record(obj, "Warning", "Failed", "no")
    assert [event["message"] for event in store.list("Event")] == ["no"]


def test_a_namespace_that_goes_takes_no_more_events() -> None:
    record, store, _, obj = recorder()
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}, trusted=True)
    held = {"name": "held", "namespace": "b", "finalizers": ["example.com/hold"]}
    store.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held}, trusted=True)
    inside = {**obj, "metadata": {**obj["metadata"], "namespace": "b"}}
    record.record(inside, "Normal", "Killing", "while it lives")
    store.delete("Namespace", "", "b")
    record.record(inside, "Normal", "Killing", "too late")
    assert store.list("Event") == []
    store.patch_merge("ConfigMap", "b", "held", {"metadata": {"finalizers": None}})
    record.record(inside, "Normal", "Killing", "gone")
    assert store.find("Namespace", "", "b") is None
    assert store.list("Event") == []
