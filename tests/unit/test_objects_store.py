"""The store: versions, watches, namespaces, owners, generated names."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.objects.status import ApiError
from testbed.objects.store import Event, Store

Object = dict[str, Any]


def make(kind: str, name: str, namespace: str = "default", **fields: Any) -> Object:
    metadata: Object = {"name": name, **fields.pop("metadata", {})}
    if namespace:
        metadata["namespace"] = namespace
    version = {"ReplicaSet": "apps/v1", "Deployment": "apps/v1"}.get(kind, "v1")
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def make_pod(name: str, **metadata: Any) -> Object:
    spec = {"containers": [{"name": "c", "image": "example/c:1"}]}
    return make("Pod", name, metadata=metadata, spec=spec)


@pytest.fixture
def store() -> Store:
    made = Store(seed=1, now=lambda: 1_800_000_000)
    made.create(make("Namespace", "default", ""))
    return made


def types(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.type, event.object["metadata"]["name"]) for event in events]


def test_a_new_object_gets_what_only_the_server_gives(store: Store) -> None:
    given = make_pod("a", uid="mine", resourceVersion="7", creationTimestamp="2001-01-01T00:00:00Z")
    metadata = store.create(given)["metadata"]
    assert metadata["uid"] != "mine"
    assert metadata["creationTimestamp"] == "2027-01-15T08:00:00Z"
    assert metadata["resourceVersion"] == store.resource_version
    assert metadata["generation"] == 1


def test_what_was_given_is_not_changed_by_storing_it(store: Store) -> None:
    given = make_pod("a")
    store.create(given)
    assert given == make_pod("a")


def test_reading_gives_the_stored_object_itself_and_writing_replaces_it(store: Store) -> None:
    before = store.create(make_pod("a"))
    assert store.get("Pod", "default", "a") is before
    after = store.update_status({**before, "status": {"phase": "Running"}})
    assert before["status"]["phase"] == "Pending"
    assert store.get("Pod", "default", "a") is after


def test_a_second_object_of_one_name_is_refused(store: Store) -> None:
    store.create(make_pod("a"))
    with pytest.raises(ApiError) as error:
        store.create(make_pod("a"))
    assert error.value.message == 'pods "a" already exists'
    assert error.value.code == 409


def test_a_missing_object_is_said_with_its_resource(store: Store) -> None:
    with pytest.raises(ApiError) as error:
        store.get("Deployment", "default", "a")
    assert error.value.message == 'deployments.apps "a" not found'
    assert error.value.status["details"] == {"name": "a", "group": "apps", "kind": "deployments"}


def test_a_stale_version_conflicts_and_a_missing_one_does_not(store: Store) -> None:
    first = store.create(make("ConfigMap", "a", data={"k": "1"}))
    second = store.update({**first, "data": {"k": "2"}})
    with pytest.raises(ApiError) as error:
        store.update({**first, "data": {"k": "3"}})
    assert error.value.message == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    unversioned = make("ConfigMap", "a", data={"k": "4"})
    assert store.update(unversioned)["metadata"]["uid"] == second["metadata"]["uid"]


def test_generation_counts_changes_of_what_is_wanted_alone(store: Store) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": make_pod("x")["spec"]}
    spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    first = store.create(make("ReplicaSet", "a", spec=spec))
    labelled = store.patch_merge("ReplicaSet", "default", "a", {"metadata": {"labels": {"x": "y"}}})
    assert labelled["metadata"]["generation"] == 1
    store.update_status({**first, "metadata": labelled["metadata"], "status": {"replicas": 1}})
    scaled = store.patch_merge("ReplicaSet", "default", "a", {"spec": {"replicas": 3}})
    assert scaled["metadata"]["generation"] == 2
    assert scaled["status"] == {"replicas": 1}, "an update leaves the status alone"


def test_an_update_that_changes_nothing_is_no_event(store: Store) -> None:
    obj = store.create(make("ConfigMap", "a", data={"k": "1"}))
    events: list[Event] = []
    store.subscribe(events.append)
    assert store.update(make("ConfigMap", "a", data={"k": "1"})) is obj
    assert events == []


def test_generated_names_are_five_of_upstreams_letters(store: Store) -> None:
    pod = make_pod("")
    pod["metadata"] = {"generateName": "web-", "namespace": "default"}
    names = {store.create(pod)["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20
    assert all(set(name.removeprefix("web-")) <= set("bcdfghjklmnpqrstvwxz2456789") for name in names)
    assert {len(name) for name in names} == {9}


def test_lists_are_in_order_and_selected(store: Store) -> None:
    store.create(make("Namespace", "b", ""))
    for name, namespace, tier in (("z", "default", "web"), ("a", "default", "db"), ("m", "b", "web")):
        pod = make_pod(name, labels={"tier": tier})
        pod["metadata"]["namespace"] = namespace
        store.create(pod)
    store.bind("default", "a", "node-1")

    def names(namespace: str | None = None, **selectors: str) -> list[str]:
        return [obj["metadata"]["name"] for obj in store.list("Pod", namespace, **selectors)]

    assert names() == ["m", "a", "z"]
    assert names("default") == ["a", "z"]
    assert names(label_selector="tier in (web)") == ["m", "z"]
    assert names(field_selector="spec.nodeName=node-1") == ["a"]
    assert names("default", label_selector="tier=web", field_selector="metadata.name!=z") == []


def test_a_status_from_outside_is_read_strictly(store: Store) -> None:
    store.create(make_pod("a"))
    with pytest.raises(ApiError, match=r'unknown field "status\.fase"'):
        store.patch_merge("Pod", "default", "a", {"status": {"fase": "Running"}}, subresource="status")
    patched = store.patch_merge("Pod", "default", "a", {"status": {"phase": "Running"}}, subresource="status")
    assert patched["status"]["phase"] == "Running"
    assert patched["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("kind", "entry", "field", "why"),
    [
        ("LoadBalancer", {"ip": "bad"}, "[0].ip", "must be a valid IP address"),
        ("LoadBalancer", {"ip": "1.2.3.4", "ipMode": "vip"}, "[0].ipMode", "Unsupported value"),
        ("LoadBalancer", {"ipMode": "VIP"}, "[0].ipMode", "may not be specified when `ip` is not set"),
        ("ClusterIP", {"ip": "1.2.3.4"}, "", "may only be used when `spec.type` is 'LoadBalancer'"),
    ],
)
def test_nobody_can_say_of_a_load_balancer_what_cannot_be(
    store: Store, kind: str, entry: Object, field: str, why: str
) -> None:
    store.create({**make("Service", "web"), "spec": {"type": kind, "ports": [{"port": 80}]}})
    status = {"loadBalancer": {"ingress": [entry]}}
    with pytest.raises(ApiError) as refused:
        store.patch_merge("Service", "default", "web", {"status": status}, subresource="status")
    assert refused.value.code == 422
    assert f"status.loadBalancer.ingress{field}: " in str(refused.value)
    assert why in str(refused.value)
    assert store.get("Service", "default", "web")["status"] == {"loadBalancer": {}}


def test_a_patch_cannot_change_the_status_in_passing(store: Store) -> None:
    store.create(make_pod("a"))
    store.patch_merge("Pod", "default", "a", {"status": {"phase": "Running"}})
    assert store.get("Pod", "default", "a")["status"]["phase"] == "Pending"


@pytest.mark.parametrize(
    "patch", [{"kind": "ConfigMap"}, {"metadata": {"name": "b"}}, {"metadata": None}, {"apiVersion": None}]
)
def test_a_patch_stays_with_the_object_it_is_for(store: Store, patch: Object) -> None:
    pod = store.create(make_pod("a"))
    store.create(make("ConfigMap", "a"))
    patched = store.patch_merge("Pod", "default", "a", patch)
    assert (patched["kind"], patched["metadata"]["uid"]) == ("Pod", pod["metadata"]["uid"])
    assert len(store.list("Pod")) == 1


def test_a_patch_that_makes_nonsense_is_refused(store: Store) -> None:
    store.create(make_pod("a"))
    for patch in ({"metadata": "x"}, {"spec": None}, {"spec": {"containers": "x"}}):
        with pytest.raises(ApiError):
            store.patch_merge("Pod", "default", "a", patch)


# --- watching ---------------------------------------------------------------------------------------------


def test_a_watch_from_a_version_gets_what_happened_since(store: Store) -> None:
    store.create(make_pod("a"))
    version = store.resource_version
    store.create(make_pod("b"))
    store.create(make("ConfigMap", "c"))
    store.delete("Pod", "default", "a")
    seen: list[Event] = []
    stop = store.watch("Pod", None, seen.append, resource_version=version)
    store.create(make_pod("d"))
    stop()
    store.create(make_pod("e"))
    assert types(seen) == [("ADDED", "b"), ("DELETED", "a"), ("ADDED", "d")]
    versions = [event.version for event in seen]
    assert versions == sorted(versions)


def test_a_watch_from_the_start_gets_what_is_there(store: Store) -> None:
    store.create(make_pod("b"))
    store.create(make_pod("a"))
    seen: list[Event] = []
    store.watch("Pod", "default", seen.append)
    assert types(seen) == [("ADDED", "a"), ("ADDED", "b")]


def test_a_watch_from_before_the_history_is_expired() -> None:
    store = Store(history=3)
    store.create(make("Namespace", "default", ""))
    for number in range(5):
        store.create(make_pod(f"p{number}"))
    with pytest.raises(ApiError) as error:
        store.watch("Pod", None, print, resource_version="1")
    assert (error.value.code, error.value.reason) == (410, "Expired")
    assert error.value.message == "too old resource version: 1 (3)"
    seen: list[Event] = []
    store.watch("Pod", None, seen.append, resource_version="3")
    assert types(seen) == [("ADDED", "p2"), ("ADDED", "p3"), ("ADDED", "p4")]


def test_a_watcher_with_a_selector_sees_objects_come_and_go(store: Store) -> None:
    seen: list[Event] = []
    store.watch("Pod", None, seen.append, label_selector="app=web")
    store.create(make_pod("a"))
    for labels in ({"app": "web"}, {"app": "web", "x": "y"}, {"app": "db"}, {"app": None}):
        store.patch_merge("Pod", "default", "a", {"metadata": {"labels": labels}})
    assert [event.type for event in seen] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_subscriber_that_writes_does_not_disturb_the_order_for_others(store: Store) -> None:
    def write_once(event: Event) -> None:
        if event.type == "ADDED":
            store.update_status({**event.object, "status": {"phase": "Running"}})

    seen: list[Event] = []
    store.subscribe(write_once, "Pod")
    store.subscribe(seen.append, "Pod")
    store.create(make_pod("a"))
    assert types(seen) == [("ADDED", "a"), ("MODIFIED", "a")]


# --- deleting ---------------------------------------------------------------------------------------------


def owned_by(owner: Object, name: str, *more: Object) -> Object:
    references = [
        {
            "apiVersion": "v1",
            "kind": one["kind"],
            "name": one["metadata"]["name"],
            "uid": one["metadata"]["uid"],
        }
        for one in (owner, *more)
    ]
    return make_pod(name, ownerReferences=references)


def test_dependants_go_with_their_last_owner(store: Store) -> None:
    first, second = (store.create(make("ConfigMap", name)) for name in ("first", "second"))
    store.create(owned_by(first, "one"))
    store.create(owned_by(first, "both", second))
    store.delete("ConfigMap", "default", "first")
    assert [pod["metadata"]["name"] for pod in store.list("Pod")] == ["both"]
    store.delete("ConfigMap", "default", "second")
    assert store.list("Pod") == []


def test_orphans_stay_without_their_owner(store: Store) -> None:
    owner = store.create(make("ConfigMap", "owner"))
    store.create(owned_by(owner, "a"))
    store.delete("ConfigMap", "default", "owner", propagation="Orphan")
    assert "ownerReferences" not in store.get("Pod", "default", "a")["metadata"]


def test_a_namespace_takes_what_is_in_it(store: Store) -> None:
    store.create(make("Namespace", "b", ""))
    store.create(make("ConfigMap", "a", "b"))
    store.create(make("ConfigMap", "a"))
    events: list[Event] = []
    store.subscribe(events.append)
    store.delete("Namespace", "", "b")
    assert [obj["metadata"]["namespace"] for obj in store.list("ConfigMap")] == ["default"]
    assert types(events) == [("MODIFIED", "b"), ("DELETED", "a"), ("DELETED", "b")]


def test_a_namespace_waits_for_what_cannot_go_yet(store: Store) -> None:
    store.create(make("Namespace", "b", ""))
    store.create(make("ConfigMap", "held", "b", metadata={"finalizers": ["example.com/hold"]}))
    store.delete("Namespace", "", "b")
    assert store.get("Namespace", "", "b")["status"]["phase"] == "Terminating"
    with pytest.raises(ApiError, match="because it is being terminated"):
        store.create(make("ConfigMap", "late", "b"))
    store.patch_merge("ConfigMap", "b", "held", {"metadata": {"finalizers": None}})
    assert store.find("ConfigMap", "b", "held") is None
    assert store.find("Namespace", "", "b") is None


def test_a_pod_on_a_node_is_marked_first_and_then_removed(store: Store) -> None:
    store.create(make_pod("a"))
    store.bind("default", "a", "node-1")
    marked = store.delete("Pod", "default", "a", grace=30)
    assert marked["metadata"]["deletionTimestamp"] == "2027-01-15T08:00:30Z"
    assert store.find("Pod", "default", "a") is marked
    store.delete("Pod", "default", "a")
    assert store.find("Pod", "default", "a") is None


def test_the_namespaces_of_the_system_stay(store: Store) -> None:
    with pytest.raises(
        ApiError, match='namespaces "default" is forbidden: this namespace may not be deleted'
    ):
        store.delete("Namespace", "", "default")


def test_another_uid_is_another_object(store: Store) -> None:
    store.create(make_pod("a"))
    with pytest.raises(ApiError, match="Precondition failed: UID in precondition: other"):
        store.delete("Pod", "default", "a", uid="other")


def test_a_pod_is_bound_once(store: Store) -> None:
    store.create(make_pod("a"))
    store.bind("default", "a", "node-1")
    with pytest.raises(ApiError, match='pod a is already assigned to node "node-1"'):
        store.bind("default", "a", "node-2")


# --- transactions -----------------------------------------------------------------------------------------


def test_a_transaction_is_delivered_as_a_whole(store: Store) -> None:
    seen: list[Event] = []
    store.subscribe(seen.append)
    with store.transaction() as trial:
        trial.create(make_pod("a"))
        trial.create(make_pod("b"))
        assert seen == []
        assert store.list("Pod") == []
    assert types(seen) == [("ADDED", "a"), ("ADDED", "b")]
    assert store.create(make_pod("c"))["metadata"]["resourceVersion"] == "4"


def test_a_failed_transaction_leaves_no_trace(store: Store) -> None:
    before, version = list(store.everything()), store.resource_version
    seen: list[Event] = []
    store.subscribe(seen.append)
    with pytest.raises(ApiError), store.transaction() as trial:  # noqa: PT012
        trial.create(make_pod("a"))
        trial.create(make_pod("a"))
    assert (list(store.everything()), store.resource_version, seen) == (before, version, [])


def test_a_trusted_object_shares_its_template_and_leaves_it_alone(store: Store) -> None:
    spec = {
        "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}],
        "hostNetwork": True,
    }
    pod = store.create(make("Pod", "a", spec=spec), trusted=True)
    assert pod["spec"]["containers"][0]["ports"] == [{"containerPort": 80, "hostPort": 80}]
    assert spec["containers"] == [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]


def test_a_pod_put_on_a_node_gets_the_nodes_place_and_keeps_its_generation() -> None:
    store = Store(seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    labels = {"topology.kubernetes.io/zone": "a", "topology.kubernetes.io/region": "r", "disk": "ssd"}
    store.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": labels}})
    spec = {"containers": [{"name": "c", "image": "nginx"}]}
    for name, made in (("bound", spec), ("placed", {**spec, "nodeName": "n"})):
        store.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": "x"}},
                "spec": made,
            }
        )
    store.bind("default", "bound", "n")
    for name in ("bound", "placed"):
        metadata = store.get("Pod", "default", name)["metadata"]
        assert metadata["labels"] == {"app": "x"} | {key: labels[key] for key in list(labels)[:2]}
        assert metadata["generation"] == 1


def test_a_pod_that_wants_no_token_or_has_its_own_gets_none() -> None:
    store = Store(seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    own = {"name": "own", "image": "nginx", "volumeMounts": [{"name": "mine", "mountPath": path}]}
    other = {"name": "other", "image": "nginx"}

    def volumes(name: str, containers: list[Any], **spec: Any) -> list[list[str]]:
        spec |= {"containers": containers, "volumes": [{"name": "mine"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        made = store.create(pod)["spec"]
        mounts = [[one["name"] for one in each.get("volumeMounts", ())] for each in made["containers"]]
        return [[volume["name"] for volume in made["volumes"]], *mounts]

    assert volumes("none", [other], automountServiceAccountToken=False) == [["mine"], []]
    assert volumes("own", [own]) == [["mine"], ["mine"]]
    names, first, second = volumes("both", [own, other])
    assert (names[0], first, second) == ("mine", ["mine"], [names[1]])
    assert names[1].startswith("kube-api-access-")


@pytest.mark.parametrize(
    ("cidrs", "said"),
    [
        ([], "spec.cidrs: Required value: at least one CIDR required"),
        (["nonsense"], 'spec.cidrs[0]: Invalid value: "nonsense": must be a valid CIDR value'),
        (["10.0.0.0/24", "10.1.0.0/24"], "may specify no more than one IP for each IP family"),
        (["10.0.0.0/24", "fd00::/112", "fd01::/112"], "may only hold up to 2 values"),
    ],
)
def test_a_service_range_is_a_range(store: Store, cidrs: list[str], said: str) -> None:
    made = make("ServiceCIDR", "more", "", spec={"cidrs": cidrs})
    with pytest.raises(ApiError) as refused:
        store.create({**made, "apiVersion": "networking.k8s.io/v1"})
    assert refused.value.code == 422
    assert said in str(refused.value)
