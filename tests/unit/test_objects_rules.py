"""Schema, kinds, selectors, allocation; and that nothing anybody writes makes more than a refusal."""

from __future__ import annotations

import copy
import random
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.documents import read_documents
from testbed.objects import defaults, kinds, schema, selectors
from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_one
from testbed.objects.status import ApiError
from testbed.objects.store import Store
from testbed.objects.validation import names, validate
from testbed.objects.validation.scheduling import PREFERRED, REQUIRED

Object = dict[str, Any]
VALID = Path(__file__).parents[1] / "golden" / "api" / "valid"
FOUR = ip_network("10.96.0.0/12")
SIX = ip_network("fd00:10:96::/112")


def make_store(*cidrs: Any, seed: int = 1) -> Store:
    store = Store(ServiceRanges(cidrs or (FOUR,)), seed=seed)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return store


def make_service(name: str = "s", port: int = 80, **spec: Any) -> Object:
    spec = {"selector": {"a": "b"}, "ports": [{"port": port}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def refusal(store: Store, obj: Object) -> str:
    with pytest.raises(ApiError) as error:
        store.create(obj)
    return error.value.message


# --- kinds and schema -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.kind)
def test_every_kind_has_a_schema_and_its_words_find_it(kind: kinds.Kind) -> None:
    for api_version in kind.api_versions:
        assert "metadata" in schema.struct(schema.type_of(api_version, kind.kind)).fields
        assert kinds.find(api_version, kind.kind) is kind
        assert kinds.by_plural(kind.group, api_version.rpartition("/")[2], kind.plural) is kind
    words = {kind.plural, kind.kind.lower(), kind.kind, kind.resource, kind.printed, *kind.short_names}
    assert {kinds.by_word(word) for word in words} == {kind}


def in_pod(spec: Object) -> Object:
    return {"template": {"spec": spec}}


@pytest.mark.parametrize(
    ("spec", "what", "field", "kind"),
    [
        ({"replicas": "3"}, "string", "DeploymentSpec.spec.replicas", "int32"),
        ({"replicas": True}, "bool", "DeploymentSpec.spec.replicas", "int32"),
        ({"replicas": 1.5}, "number 1.5", "DeploymentSpec.spec.replicas", "int32"),
        ({"replicas": 2**31}, "number 2147483648", "DeploymentSpec.spec.replicas", "int32"),
        (
            in_pod({"containers": [{"name": 1}]}),
            "number",
            "Container.spec.template.spec.containers.name",
            "string",
        ),
        (in_pod({"containers": {}}), "object", "PodSpec.spec.template.spec.containers", "[]v1.Container"),
        (in_pod({"nodeSelector": {"a": True}}), "bool", "PodSpec.spec.template.spec.nodeSelector", "string"),
        ([], "array", "Deployment.spec", "v1.DeploymentSpec"),
    ],
)
def test_a_wrong_type_is_said_as_go_says_it(spec: Any, what: str, field: str, kind: str) -> None:
    obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}
    _, found = schema.read(obj)
    assert found.message() == f"json: cannot unmarshal {what} into Go struct field {field} of type {kind}"


def test_unknown_fields_are_all_named_with_their_indexes() -> None:
    containers = [{"name": "c", "image": "i", "port": 1}]
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"nam": "x"},
        "spec": {"containers": containers, "x": 1},
    }
    assert schema.read(obj)[1].message() == (
        'strict decoding error: unknown field "metadata.nam", unknown field "spec.containers[0].port", '
        'unknown field "spec.x"'
    )


def test_null_is_absent_and_empty_lists_are_not_stored() -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {}},
        "spec": {"volumes": None},
    }
    copied, found = schema.read(obj)
    assert found.message() == ""
    assert copied == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}


@pytest.mark.parametrize(
    ("quantity", "good"),
    [("100m", True), ("1Gi", True), (2, True), (0.5, True), ("1e3", True), ("1.5", True), ("1gb", False),
     ("much", False), ("", False), ("1.2.3", False), (True, False)],
)  # fmt: skip
def test_quantities(quantity: Any, good: bool) -> None:
    container = {"name": "c", "image": "i", "resources": {"requests": {"cpu": quantity}}}
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": [container]}}
    assert (schema.read(obj)[1].message() == "") == good


# --- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "text", "good"),
    [
        (names.label, "a" * 63, True), (names.label, "a" * 64, False), (names.label, "0a", True),
        (names.label, "-a", False), (names.label, "a.b", False), (names.subdomain, "a.b-c.9", True),
        (names.subdomain, "a..b", False), (names.label_value, "", True), (names.label_value, "A_b.c", True),
        (names.label_value, "a ", False), (names.qualified_name, "example.com/Name", True),
        (names.qualified_name, "/name", False), (names.qualified_name, "a/b/c", False),
        (names.port_name, "http-1", True), (names.port_name, "a--b", False), (names.port_name, "123", False),
        (names.port_name, "a" * 16, False), (names.port_name, "http-", False),
    ],
)  # fmt: skip
def test_names(check: Any, text: str, good: bool) -> None:
    assert (check(text) == []) == good


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("10.0.0.0/8", ""), ("fd00::/8", ""), ("10.0.0.1/8", "must not have bits set beyond the prefix"),
        ("010.0.0.0/8", "must not have leading 0s in IP"), ("10.0.0.0", "must be a valid CIDR value"),
        ("10.0.0.0/33", "must be a valid CIDR value"), ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped"),
    ],
)  # fmt: skip
def test_ranges_are_read_strictly(text: str, wrong: str) -> None:
    errors = names.cidr(("x",), text)
    assert [wrong in error.message for error in errors] == ([True] if wrong else [])


# --- selectors --------------------------------------------------------------------------------------------

LABELS = {"app": "web", "tier": "front", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True), ("app=web", True), ("app==web,tier!=back", True), ("app!=web", False), ("app", True),
        ("!app", False), ("!absent", True), ("app in (db, web)", True), ("app notin (db)", True),
        ("absent notin (x)", True), ("absent!=x", True), ("empty=", True), ("app in (web),!tier", False),
        ("in=x", False), ("app=", False),
    ],
)  # fmt: skip
def test_label_selectors(text: str, selected: bool) -> None:
    assert selectors.parse_labels(text)(LABELS) == selected


@pytest.mark.parametrize(
    "text", ["app=web,", "=web", "app in web", "app in (web", "a=b=c", "a b", ",", "!a=b"]
)
def test_a_selector_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="unable to parse requirement"):
        selectors.parse_labels(text)


def test_a_field_that_cannot_be_selected_by_is_refused() -> None:
    with pytest.raises(ApiError, match=r"field label not supported: spec\.containers"):
        selectors.parse_fields("Pod", "spec.containers=x")


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True), (None, False), ({"matchLabels": {"app": "web"}}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}, True),
    ],
)  # fmt: skip
def test_object_selectors(selector: Any, selected: bool) -> None:
    assert selectors.matches(selector, LABELS) == selected


# --- services' addresses and ports ------------------------------------------------------------------------


def test_addresses_come_from_the_upper_band_and_are_not_given_twice() -> None:
    store = make_store(ip_network("10.96.0.0/24"))
    given = [store.create(make_service(f"s{number}"))["spec"]["clusterIP"] for number in range(254)]
    last = [int(ip_address(address)) & 255 for address in given]
    assert len(set(given)) == 254
    assert all(number > 16 for number in last[: 254 - 16]), "the lower band only once the upper is full"
    assert sorted(last) == list(range(1, 255))
    assert "range is full" in refusal(store, make_service("more"))
    store.delete("Service", "default", "s7")
    assert store.create(make_service("again"))["spec"]["clusterIP"] == given[7]


def test_an_address_asked_for_is_given_once() -> None:
    store = make_store()
    assert store.create(make_service("a", clusterIP="10.96.0.10"))["spec"]["clusterIPs"] == ["10.96.0.10"]
    assert refusal(store, make_service("b", clusterIP="10.96.0.10")) == (
        'Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.10"]: '
        "failed to allocate IP 10.96.0.10: provided IP is already allocated"
    )


def test_a_refused_service_takes_nothing() -> None:
    store = make_store()
    refusal(
        store, make_service("a", type="NodePort", clusterIP="10.96.0.10", ports=[{"port": 1, "nodePort": 80}])
    )
    assert store.create(make_service("b", clusterIP="10.96.0.10"))["spec"]["clusterIP"] == "10.96.0.10"


def test_one_number_serves_both_protocols_of_a_port() -> None:
    ports = [{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53, "protocol": "TCP"}]
    spec = make_store().create(make_service(type="NodePort", ports=ports))["spec"]
    first, second = (port["nodePort"] for port in spec["ports"])
    assert first == second
    assert 30086 <= first <= 32767


def test_a_local_load_balancer_gets_a_health_check_port() -> None:
    store = make_store()
    made = store.create(make_service(type="LoadBalancer", externalTrafficPolicy="Local"))
    assert made["spec"]["healthCheckNodePort"] in range(30000, 32768)
    assert made["spec"]["healthCheckNodePort"] != made["spec"]["ports"][0]["nodePort"]
    cluster = {**made, "spec": {**made["spec"], "externalTrafficPolicy": "Cluster"}}
    assert "healthCheckNodePort" not in store.update(cluster)["spec"]


def test_node_ports_and_addresses_survive_an_update_that_does_not_name_them() -> None:
    store = make_store()
    before = store.create(make_service(type="NodePort"))["spec"]
    after = store.update(make_service(type="NodePort", selector={"a": "c"}))["spec"]
    assert (after["clusterIP"], after["ports"]) == (before["clusterIP"], before["ports"])


def test_becoming_cluster_ip_gives_the_node_port_back() -> None:
    store = make_store()
    before = store.create(make_service(type="NodePort", ports=[{"port": 80, "nodePort": 30555}]))
    after = store.update({**before, "spec": {**before["spec"], "type": "ClusterIP"}})
    assert "nodePort" not in after["spec"]["ports"][0]
    assert "externalTrafficPolicy" not in after["spec"]
    assert store.create(make_service("b", type="NodePort", ports=[{"port": 80, "nodePort": 30555}]))


def test_becoming_an_external_name_gives_the_address_back() -> None:
    store = make_store()
    before = store.create(make_service(clusterIP="10.96.0.77"))
    external = {**before["spec"], "type": "ExternalName", "externalName": "db.example.com"}
    after = store.update({**before, "spec": external})["spec"]
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & after.keys()
    assert store.create(make_service("b", clusterIP="10.96.0.77"))


@pytest.mark.parametrize(
    ("cidrs", "spec", "families", "policy"),
    [
        ((FOUR,), {}, ["IPv4"], "SingleStack"),
        ((SIX,), {}, ["IPv6"], "SingleStack"),
        ((FOUR,), {"ipFamilyPolicy": "PreferDualStack"}, ["IPv4"], "PreferDualStack"),
        ((SIX, FOUR), {"ipFamilyPolicy": "PreferDualStack"}, ["IPv6", "IPv4"], "PreferDualStack"),
        ((FOUR, SIX), {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"},
         ["IPv6", "IPv4"], "RequireDualStack"),
        ((FOUR, SIX), {"clusterIP": "fd00:10:96::5"}, ["IPv6"], "SingleStack"),
        ((FOUR,), {"clusterIP": "None", "selector": None}, ["IPv4", "IPv6"], "RequireDualStack"),
    ],
)  # fmt: skip
def test_families(cidrs: Any, spec: Object, families: list[str], policy: str) -> None:
    made = make_store(*cidrs).create(make_service(**spec))["spec"]
    assert (made["ipFamilies"], made["ipFamilyPolicy"]) == (families, policy)
    if made["clusterIP"] != "None":
        assert [f"IPv{ip_address(address).version}" for address in made["clusterIPs"]] == families


def test_a_family_the_cluster_lacks_is_refused() -> None:
    assert 'spec.ipFamilies[0]: Invalid value: "IPv6": not configured' in refusal(
        make_store(), make_service(ipFamilies=["IPv6"])
    )
    assert "this cluster is not configured for dual-stack" in refusal(
        make_store(), make_service(ipFamilyPolicy="RequireDualStack")
    )


def test_a_seed_repeats_the_draws() -> None:
    first, second = (make_store(seed=5).create(make_service(type="NodePort"))["spec"] for _ in range(2))
    assert first == second
    assert first != make_store(seed=6).create(make_service(type="NodePort"))["spec"]


# --- pods and workloads beyond the recorded cases ---------------------------------------------------------


def make_pod(**spec: Any) -> Object:
    spec = {"containers": [{"name": "c", "image": "i"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


@pytest.mark.parametrize(
    ("resources", "requests", "quality"),
    [
        ({}, None, "BestEffort"),
        ({"requests": {"cpu": "1"}}, {"cpu": "1"}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"cpu": "1", "memory": "1Gi"}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
         {"cpu": "500m", "memory": "1Gi"}, "Burstable"),
    ],
)  # fmt: skip
def test_limits_are_requests_and_make_the_quality_of_service(
    resources: Object, requests: Object | None, quality: str
) -> None:
    made = make_store().create(make_pod(containers=[{"name": "c", "image": "i", "resources": resources}]))
    assert made["spec"]["containers"][0]["resources"].get("requests") == requests
    assert made["status"] == {"phase": "Pending", "qosClass": quality}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"tolerations": [{"operator": "Equal"}]}, "spec.tolerations[0].operator: Invalid value: \"Equal\""),
        ({"restartPolicy": "Sometimes"}, 'spec.restartPolicy: Unsupported value: "Sometimes"'),
        ({"dnsPolicy": "None", "dnsConfig": {}}, "spec.dnsConfig.nameservers: Required value: must"),
        ({"containers": [{"name": "c"}]}, "spec.containers[0].image: Required value"),
        ({"containers": [{"name": "c", "image": "i"}] * 2}, 'spec.containers[1].name: Duplicate value: "c"'),
        (
            {"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]},
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            {"containers": [{"name": "c", "image": "i", "readinessProbe": {"httpGet": {"port": 0}}}]},
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535",
        ),
        (
            {"hostNetwork": True, "containers": [
                {"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]},
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort`",
        ),
    ],
)  # fmt: skip
def test_pods_that_are_refused(spec: Object, message: str) -> None:
    assert message in refusal(make_store(), make_pod(**spec))


def test_a_container_image_may_change_and_nothing_beside_it() -> None:
    store = make_store()
    store.create(make_pod())
    store.update(make_pod(containers=[{"name": "c", "image": "i:2", "imagePullPolicy": "Always"}]))
    with pytest.raises(ApiError, match="pod updates may not change fields other than"):
        store.update(make_pod(hostname="other"))


@pytest.mark.parametrize("kind", ["Deployment", "ReplicaSet", "DaemonSet"])
def test_a_selector_stays_as_it_is(kind: str) -> None:
    def workload(label: str) -> Object:
        template = {"metadata": {"labels": {"a": label}}, "spec": make_pod()["spec"]}
        spec = {"selector": {"matchLabels": {"a": label}}, "template": template}
        return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "w"}, "spec": spec}

    store = make_store()
    store.create(workload("x"))
    with pytest.raises(ApiError, match=r"spec\.selector: Invalid value: .*: field is immutable"):
        store.update(workload("y"))


def test_a_kind_that_is_only_stored_must_have_what_its_schema_requires() -> None:
    rules = [{"verbs": ["get"], "resources": ["pods"]}, {"resources": ["pods"]}]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "r"},
        "rules": rules,
    }
    assert refusal(make_store(), role) == (
        'Role.rbac.authorization.k8s.io "r" is invalid: rules[1].verbs: Required value'
    )


# --- anything at all --------------------------------------------------------------------------------------


def valid_objects() -> list[Object]:
    manifests = (yaml.safe_load(path.read_text())["manifest"] for path in sorted(VALID.glob("*.yaml")))
    return [document.data for manifest in manifests for document in read_documents(manifest)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in items for place in places(item, (*path, key))]


WORDS = ("", "None", "a b", "10.0.0.1", "::1", "10.96.0.0/12", "Local", "NodePort", "x" * 300)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
KEYS = st.sampled_from(["name", "port", "a"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=4,
)


def applied(store: Store, obj: Object) -> ApiError | str:
    try:
        return apply_one(store, obj)[2]
    except ApiError as error:
        return error


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), value=ANYTHING)
def test_a_spoiled_object_is_taken_or_refused_but_never_worse(seed: int, value: Any) -> None:
    choose = random.Random(seed)  # noqa: S311
    obj = copy.deepcopy(choose.choice(OBJECTS))
    path = choose.choice(places(obj))
    parent = obj
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    store = make_store(FOUR, SIX)
    outcome = applied(store, obj)
    if isinstance(outcome, ApiError):
        assert outcome.code in (400, 404, 409, 422)
        assert str(outcome)
        assert len(list(store.everything())) == 1
    else:
        assert outcome == "created"
        assert applied(store, obj) == "unchanged"


OBJECTS = valid_objects()


@pytest.mark.parametrize("kind", ["Deployment", "ReplicaSet", "StatefulSet"])
def test_nobody_gets_more_replicas_than_memory_has_room_for(kind: str) -> None:
    labels = {"app": "many"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    spec = {"replicas": 10_000, "selector": {"matchLabels": labels}, "template": template}
    obj = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "many"}, "spec": spec}
    store = make_store()
    stored = store.create(obj)
    too_many = {**stored, "spec": {**stored["spec"], "replicas": 2**31 - 1}}
    with pytest.raises(ApiError) as refused:
        store.update(too_many)
    message = "spec.replicas: Invalid value: 2147483647: must be less than or equal to 10000"
    assert refused.value.message.count(message) == 1


@pytest.mark.parametrize("field", ["parallelism", "completions"])
@pytest.mark.parametrize(("number", "why"), [(10_001, "less than or equal to 10000"), (-1, "greater than")])
def test_a_jobs_numbers_have_bounds(field: str, number: int, why: str) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "j", "namespace": "default"},
        "spec": {"template": template, field: number},
    }
    defaults.fill(job)
    (error,) = validate(kinds.BY_NAME["Job"], job)
    assert error.field == f"spec.{field}"
    assert why in error.message


POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}}
CONTAINER = {"name": "c", "image": "i"}


def said_of(kind: str, obj: Object) -> list[str]:
    """What the server says against an object, each with its path."""
    filled = copy.deepcopy(obj)
    defaults.fill(filled)
    return [str(error) for error in validate(kinds.BY_NAME[kind], filled)]


@pytest.mark.parametrize(
    ("spec", "path", "why"),
    [
        (
            {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}}}},
            f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms",
            "Required value: must have at least one node selector term",
        ),
        (
            {
                "affinity": {
                    "podAntiAffinity": {PREFERRED: [{"weight": 0, "podAffinityTerm": {"topologyKey": "z"}}]}
                }
            },
            f"spec.affinity.podAntiAffinity.{PREFERRED}[0].weight",
            "Invalid value: 0: must be in the range 1-100",
        ),
        (
            {
                "topologySpreadConstraints": [
                    {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
                ]
            },
            "spec.topologySpreadConstraints[0].maxSkew",
            "Invalid value: 0: must be greater than zero",
        ),
        (
            {"activeDeadlineSeconds": 0},
            "spec.activeDeadlineSeconds",
            "Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            {
                "containers": [
                    {**CONTAINER, "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}}
                ]
            },
            "spec.containers[0].resources.requests",
            'Invalid value: "2": must be less than or equal to cpu limit of 1500m',
        ),
    ],
)
def test_what_a_pod_says_of_its_place_and_needs_is_checked(spec: Object, path: str, why: str) -> None:
    assert said_of("Pod", {**POD, "spec": {"containers": [CONTAINER], **spec}}) == [f"{path}: {why}"]


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        ("*/5 0-6 1,15 JAN-mar *", ""),
        ("@hourly", ""),
        ("@every 1h30m", ""),
        ("@never", "unrecognized descriptor: @never"),
        ("* * *", "expected exactly 5 fields, found 3: [* * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("a * * * *", 'failed to parse int from a: strconv.Atoi: parsing "a": invalid syntax'),
    ],
)
def test_a_cron_jobs_schedule_is_read_as_the_server_reads_it(schedule: str, why: str) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}
    spec = {"schedule": schedule, "jobTemplate": {"spec": {"template": template}}}
    obj = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "c", "namespace": "default"},
        "spec": spec,
    }
    expected = [f'spec.schedule: Invalid value: "{schedule}": {why}'] if why else []
    assert said_of("CronJob", obj) == expected


def test_a_secret_of_a_type_has_what_the_type_needs() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}}
    tls = {**secret, "type": "kubernetes.io/tls", "data": {"tls.crt": "YQ=="}}
    assert said_of("Secret", tls) == ["data[tls.key]: Required value"]
    assert said_of("Secret", {**tls, "type": "kubernetes.io/basic-auth", "data": {"username": "YQ=="}}) == []


def test_a_daemon_set_either_surges_or_goes_without() -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    path = "spec.updateStrategy.rollingUpdate"
    for more, said in (
        (
            {"maxSurge": 0, "maxUnavailable": 0},
            f"{path}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            {"maxSurge": 1, "maxUnavailable": 1},
            f"{path}.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
    ):
        strategy = {"type": "RollingUpdate", "rollingUpdate": more}
        obj = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "d", "namespace": "default"},
            "spec": {**spec, "updateStrategy": strategy},
        }
        assert said_of("DaemonSet", obj) == [said]
