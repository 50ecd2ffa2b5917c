"""Planning slices and Endpoints objects, without a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from testbed.control.endpoints import apiserver, hints, legacy, slices
from testbed.control.endpoints.members import Member, member
from testbed.control.endpoints.ports import Port, in_slice, resolve

Object = dict[str, Any]


def service(name: str = "web", **spec: Any) -> Object:
    annotations = spec.pop("annotations", {})
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": "s", "annotations": annotations},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.9",
            "ipFamilies": ["IPv4"],
            "selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
            **spec,
        },
    }


def pod(number: int, *, ready: bool = True, ips: Iterable[str] = (), **more: Any) -> Object:
    return {
        "metadata": {
            "name": f"p{number}",
            "namespace": "default",
            "uid": f"u{number}",
            **more.pop("meta", {}),
        },
        "spec": {"nodeName": more.pop("node", "node-1"), "containers": [], **more},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip} for ip in ips or [f"10.244.{number // 200}.{number % 200 + 2}"]],
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ],
        },
    }


def members(of: Object, pods: Iterable[Object], zone: str = "a") -> list[Member]:
    return [member(of, each, {"topology.kubernetes.io/zone": zone}) for each in pods]


def stored(plan: slices.Plan, before: Iterable[Object] = ()) -> list[Object]:
    """The slices there are once a plan is carried out."""
    kept = {one["metadata"]["name"]: one for one in before}
    for one in plan.delete:
        del kept[one["metadata"]["name"]]
    for one in plan.update:
        kept[one["metadata"]["name"]] = one
    for one in plan.create:
        name = f"{one['metadata']['generateName']}{len(kept)}"
        kept[name] = {**one, "metadata": {**one["metadata"], "name": name}}
    return list(kept.values())


def sizes(objects: Iterable[Object]) -> list[int]:
    return sorted((len(one["endpoints"] or ()) for one in objects), reverse=True)


def fill(of: Object, count: int) -> list[Object]:
    return stored(slices.plan(of, members(of, map(pod, range(count))), []))


# --- packing ----------------------------------------------------------------------------------------------


def test_a_hundred_endpoints_go_into_a_slice():
    assert sizes(fill(service(), 230)) == [100, 100, 30]


def test_nothing_is_written_when_nothing_changed():
    of = service()
    plan = slices.plan(of, members(of, map(pod, range(230))), fill(of, 230))
    assert (plan.create, plan.update, plan.delete) == ([], [], [])


def test_a_few_more_go_into_the_one_slice_with_room_and_touch_no_other():
    of = service()
    plan = slices.plan(of, members(of, map(pod, range(240))), fill(of, 230))
    assert (plan.create, plan.delete, sizes(plan.update)) == ([], [], [40])


def test_too_many_for_that_slice_get_new_ones_and_it_stays_as_it_is():
    of = service()
    plan = slices.plan(of, members(of, map(pod, range(310))), fill(of, 230))
    assert (sizes(plan.create), plan.update, plan.delete) == ([80], [], [])


def test_slices_that_change_anyway_are_filled_first():
    of = service()
    before = fill(of, 230)
    (replaced,) = (one for one in before if len(one["endpoints"]) == 30)
    gone = {endpoint["targetRef"]["uid"] for endpoint in replaced["endpoints"][:5]}
    now = [pod(number) for number in range(233) if f"u{number}" not in gone]
    plan = slices.plan(of, members(of, now), before)
    assert (plan.create, plan.delete, sizes(plan.update)) == ([], [], [28])


def test_an_emptied_slice_goes_and_the_others_are_not_repacked():
    of = service()
    before = fill(of, 230)
    gone = {endpoint["targetRef"]["uid"] for endpoint in before[0]["endpoints"]}
    now = [pod(number) for number in range(230) if f"u{number}" not in gone]
    plan = slices.plan(of, members(of, now), before)
    assert (plan.create, plan.update, plan.delete) == ([], [], [before[0]])


def test_without_endpoints_one_empty_slice_is_kept_and_used_again():
    of = service()
    (empty,) = fill(of, 0)
    assert (empty["endpoints"], empty["ports"]) == (None, None)
    assert stored(slices.plan(of, [], [empty]), [empty]) == [empty]
    (filled,) = stored(slices.plan(of, members(of, [pod(1)]), [empty]), [empty])
    assert filled["metadata"]["name"] == empty["metadata"]["name"]
    assert sizes([filled]) == [1]
    (again,) = stored(slices.plan(of, [], [filled]), [filled])
    assert (again["metadata"]["name"], again["endpoints"]) == (empty["metadata"]["name"], None)


def test_a_change_of_ports_reuses_the_slices_name():
    before = fill(service(), 3)
    other = service(ports=[{"port": 80, "protocol": "TCP", "targetPort": 9090}])
    plan = slices.plan(other, members(other, map(pod, range(3))), before)
    assert (plan.create, plan.delete) == ([], [])
    (changed,) = plan.update
    assert changed["metadata"]["name"] == before[0]["metadata"]["name"]
    assert changed["ports"] == [{"name": "", "port": 9090, "protocol": "TCP"}]


def test_slices_of_an_earlier_service_of_the_same_name_are_replaced():
    of = service()
    before = [{**one, "metadata": {**one["metadata"], "ownerReferences": []}} for one in fill(of, 3)]
    plan = slices.plan(of, members(of, map(pod, range(3))), before)
    assert (sizes(plan.create), plan.update, plan.delete) == ([3], [], before)


def test_a_relabelled_service_relabels_its_slices():
    of = service()
    before = fill(of, 3)
    of["metadata"]["labels"] = {"tier": "front", slices.SERVICE_NAME: "other"}
    (changed,) = slices.plan(of, members(of, map(pod, range(3))), before).update
    assert changed["metadata"]["labels"] == {
        "tier": "front",
        slices.SERVICE_NAME: "web",
        slices.MANAGED_BY: slices.CONTROLLER,
    }


def test_the_trigger_time_is_that_of_the_last_change_or_none():
    of = service()
    (made,) = slices.plan(of, members(of, [pod(1)]), [], trigger="2026-01-01T00:00:00Z").create
    assert made["metadata"]["annotations"] == {slices.TRIGGER_TIME: "2026-01-01T00:00:00Z"}
    (changed,) = slices.plan(of, members(of, map(pod, (1, 2))), stored(slices.Plan([made]))).update
    assert "annotations" not in changed["metadata"]


def test_each_family_has_slices_of_its_own():
    of = service(ipFamilies=["IPv6", "IPv4"])
    both = pod(1, ips=("10.244.1.2", "fd00::2"))
    made = {one["addressType"]: one for one in stored(slices.plan(of, members(of, [both]), []))}
    assert made["IPv4"]["endpoints"][0]["addresses"] == ["10.244.1.2"]
    assert made["IPv6"]["endpoints"][0]["addresses"] == ["fd00::2"]
    single = service()
    plan = slices.plan(single, members(single, [both]), list(made.values()))
    assert plan.delete == [made["IPv6"]]


# --- endpoints and ports ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("publish", "is_ready", "leaving", "conditions"),
    [
        (False, True, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (False, True, True, (False, True, True)),
        (False, False, True, (False, False, True)),
        (True, False, False, (True, False, False)),
        (True, True, True, (True, True, True)),
    ],
)
def test_conditions(publish: bool, is_ready: bool, leaving: bool, conditions: tuple[bool, ...]):
    of = service(publishNotReadyAddresses=publish)
    meta = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {}
    (found,) = members(of, [pod(1, ready=is_ready, meta=meta)])
    assert tuple(found.endpoints["IPv4"]["conditions"].values()) == conditions
    assert (found.address is not None) == (publish or not leaving)


def test_ended_pods_and_pods_without_an_address_are_nowhere():
    of, without, ended = service(), pod(1), pod(2)
    del without["status"]["podIPs"]
    ended["status"]["phase"] = "Succeeded"
    assert [each.counts for each in members(of, [without, ended])] == [False, False]


def test_a_pod_of_a_missing_node_is_left_out_unless_unready_ones_are_published():
    of = service()
    assert member(of, pod(1), None).endpoints == {}
    published = service(publishNotReadyAddresses=True)
    assert member(published, pod(1), None).endpoints["IPv4"]["addresses"] == ["10.244.0.3"]


def test_the_hostname_is_given_where_the_subdomain_is_the_service():
    of = service("db")
    mine, other = pod(1, hostname="db-0", subdomain="db"), pod(2, hostname="db-1", subdomain="web")
    assert [each.endpoints["IPv4"].get("hostname") for each in members(of, [mine, other])] == ["db-0", None]


def named(number: int, port: int, **more: Any) -> Object:
    container = {"name": "c", "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}
    return pod(number, containers=[container], **more)


def test_pods_that_name_other_ports_are_in_slices_of_their_own():
    of = service(ports=[{"name": "w", "port": 80, "protocol": "TCP", "targetPort": "http"}])
    made = stored(slices.plan(of, members(of, [named(1, 8080), named(2, 9090), pod(3)]), []))
    assert {one["ports"][0]["port"] if one["ports"] else None: sizes([one]) for one in made} == {
        8080: [1],
        9090: [1],
        None: [1],
    }


def test_a_port_name_counts_with_its_protocol_and_in_sidecars_too():
    wanted = [{"port": 53, "protocol": "UDP", "targetPort": "http"}]
    assert resolve(service(ports=wanted)["spec"], named(1, 8080)["spec"]) == ()
    wanted[0]["protocol"] = "TCP"
    sidecar = {"restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 7, "protocol": "TCP"}]}
    ordinary = {**sidecar, "restartPolicy": None, "ports": [{**sidecar["ports"][0], "containerPort": 6}]}
    spec = {"containers": [], "initContainers": [ordinary, sidecar]}
    assert resolve(service(ports=wanted)["spec"], spec) == (Port("", "TCP", 7),)


def test_the_application_protocol_is_passed_on():
    wanted = [{"port": 80, "protocol": "TCP", "targetPort": 80, "appProtocol": "kubernetes.io/h2c"}]
    assert in_slice(resolve(service(ports=wanted)["spec"], {})) == [
        {"name": "", "port": 80, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"}
    ]


def test_a_headless_service_may_have_no_ports():
    of = service(clusterIP="None", ports=[])
    (made,) = fill(of, 2)
    assert (sizes([made]), made["ports"]) == ([2], None)
    assert made["metadata"]["labels"][slices.HEADLESS] == ""
    subsets = legacy.endpoints_object(of, members(of, [pod(1)]), None)["subsets"]  # type: ignore[index]
    assert [(len(each["addresses"]), "ports" in each) for each in subsets] == [(1, False)]


# --- hints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "wanted"),
    [
        ("PreferClose", {"forZones": [{"name": "a"}]}),
        ("PreferSameZone", {"forZones": [{"name": "a"}]}),
        ("PreferSameNode", {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]}),
        (None, None),
    ],
)
def test_traffic_distribution_gives_every_ready_endpoint_its_own_place(distribution: str, wanted: Object):
    of = service(trafficDistribution=distribution)
    (made,) = stored(slices.plan(of, members(of, [pod(1), pod(2, ready=False)]), []))
    assert [endpoint.get("hints") for endpoint in made["endpoints"]] == [wanted, None]
    without_zone = member(of, pod(1), {})
    assert "forZones" not in without_zone.endpoints["IPv4"].get("hints", {})


AUTO = {"service.kubernetes.io/topology-mode": "Auto"}


def zoned(of: Object, counts: dict[str, int]) -> list[Member]:
    numbers = iter(range(1000))
    return [
        each
        for zone, count in counts.items()
        for each in members(of, [pod(next(numbers)) for _ in range(count)], zone)
    ]


def hinted(objects: Iterable[Object]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in objects:
        for endpoint in one["endpoints"]:
            for entry in endpoint.get("hints", {}).get("forZones", ()):
                found[entry["name"]] = found.get(entry["name"], 0) + 1
    return found


def test_shares_are_those_of_the_ready_nodes_cpu():
    def node(zone: str, cpu: float, *, ready: bool = True, **labels: str) -> Any:
        return {"topology.kubernetes.io/zone": zone, **labels}, ready, cpu

    control_plane = node("b", 9, **{"node-role.kubernetes.io/control-plane": ""})
    nodes = [node("a", 2), node("b", 6), node("b", 8, ready=False), control_plane]
    assert hints.zone_shares(nodes) == {"a": 0.25, "b": 0.75}
    assert hints.zone_shares(nodes[:1]) is None
    assert hints.zone_shares([*nodes, node("b", 0)]) is None
    assert hints.zone_shares([*nodes, node("", 2)]) is None


def test_auto_hands_endpoints_over_to_zones_with_too_few():
    of = service(annotations=AUTO)
    shares = {"a": 0.5, "b": 0.5}
    plan = slices.plan(of, zoned(of, {"a": 7, "b": 3}), [], shares=shares)
    assert hinted(stored(plan)) == {"a": 5, "b": 5}
    assert [event.reason for event in plan.events] == ["TopologyAwareHintsEnabled"]
    again = slices.plan(of, zoned(of, {"a": 7, "b": 3}), stored(plan), shares=shares)
    assert (again.create, again.update, again.delete, again.events) == ([], [], [], [])


def test_auto_wins_over_traffic_distribution():
    of = service(annotations=AUTO, trafficDistribution="PreferSameNode")
    made = stored(slices.plan(of, zoned(of, {"a": 2, "b": 2}), [], shares={"a": 0.5, "b": 0.5}))
    assert all(set(endpoint["hints"]) == {"forZones"} for one in made for endpoint in one["endpoints"])


@pytest.mark.parametrize(
    ("counts", "shares", "message"),
    [
        (
            {"a": 3, "b": 3},
            None,
            "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes",
        ),
        ({"a": 1}, {"a": 0.5, "b": 0.5}, "Insufficient number of endpoints (1 endpoints, 2 zones)"),
        (
            {"a": 1, "b": 1, "c": 1},
            {"a": 0.7, "b": 0.2, "c": 0.1},
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold "
            "(3 endpoints, 3 zones)",
        ),
        ({"a": 2, "": 2}, {"a": 0.5, "b": 0.5}, "One or more endpoints do not have a zone specified"),
    ],
)
def test_hints_go_where_they_would_be_unfair(counts: dict[str, int], shares: Any, message: str):
    of = service(annotations=AUTO)
    before = stored(slices.plan(of, zoned(of, {"a": 2, "b": 2}), [], shares={"a": 0.5, "b": 0.5}))
    plan = slices.plan(of, zoned(of, counts), before, shares=shares)
    assert hinted(stored(plan, before)) == {}
    assert plan.events == [("Warning", "TopologyAwareHintsDisabled", f"{message}, addressType: IPv4")]


def test_hints_go_with_the_annotation():
    of = service(annotations=AUTO)
    before = stored(slices.plan(of, zoned(of, {"a": 2, "b": 2}), [], shares={"a": 0.5, "b": 0.5}))
    plain = service()
    plan = slices.plan(plain, zoned(plain, {"a": 2, "b": 2}), before)
    assert hinted(stored(plan, before)) == {}


# --- Endpoints objects ------------------------------------------------------------------------------------


def endpoints(of: Object, found: list[Member], before: Object | None = None) -> Object:
    made = legacy.endpoints_object(of, found, before)
    assert made is not None
    return made


def test_ports_that_the_same_pods_have_share_a_subset():
    of = service(
        ports=[
            {"name": "w", "port": 80, "protocol": "TCP", "targetPort": "http"},
            {"name": "m", "port": 90, "protocol": "TCP", "targetPort": 90},
        ]
    )
    subsets = endpoints(of, members(of, [named(1, 8080), named(2, 8080), pod(3)]))["subsets"]
    assert sorted((each["ports"][0]["name"], len(each["addresses"])) for each in subsets) == [
        ("m", 3),
        ("w", 2),
    ]


def test_an_endpoints_object_that_is_right_is_left_alone():
    of = service()
    found = members(of, map(pod, range(5)))
    made = endpoints(of, found)
    assert legacy.endpoints_object(of, found, made) is None
    assert legacy.endpoints_object(of, found[:4], made) is not None


def test_an_endpoints_object_is_cut_at_a_thousand_the_ready_ones_first():
    of = service()
    found = members(of, [pod(number, ready=number < 990) for number in range(1020)])
    made = endpoints(of, found)
    (subset,) = made["subsets"]
    assert (len(subset["addresses"]), len(subset["notReadyAddresses"])) == (990, 10)
    assert made["metadata"]["annotations"] == {"endpoints.kubernetes.io/over-capacity": "truncated"}
    assert legacy.endpoints_object(of, found, made) is None
    assert "annotations" not in endpoints(of, found[:5], made)["metadata"]


def by_hand(**metadata: Any) -> Object:
    return {
        "kind": "Endpoints",
        "metadata": {"name": "db", "namespace": "default", "uid": "e", **metadata},
        "subsets": [
            {
                "addresses": [{"ip": "192.0.2.1", "nodeName": "node-1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}],
                "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}],
            }
        ],
    }


def test_endpoints_made_by_hand_are_mirrored_by_family_and_ports():
    made = {
        one["addressType"]: one
        for one in legacy.mirror(
            by_hand(labels={"a": "b"}, annotations={slices.TRIGGER_TIME: "x"}), []
        ).create
    }
    assert made["IPv4"]["endpoints"] == [
        {"addresses": ["192.0.2.1"], "conditions": {"ready": True}, "nodeName": "node-1"},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": False}},
    ]
    assert made["IPv6"]["ports"] == [{"name": "pg", "port": 5432, "protocol": "TCP"}]
    assert made["IPv4"]["metadata"]["labels"] == {
        "a": "b",
        slices.SERVICE_NAME: "db",
        slices.MANAGED_BY: legacy.MIRRORED_BY,
    }
    assert "annotations" not in made["IPv4"]["metadata"]
    assert made["IPv4"]["metadata"]["ownerReferences"][0]["kind"] == "Endpoints"


def test_a_mirror_follows_and_writes_nothing_when_it_is_right():
    first = legacy.mirror(by_hand(), [])
    before = stored(first)
    again = legacy.mirror(by_hand(), before)
    assert (again.create, again.update, again.delete) == ([], [], [])
    changed = by_hand()
    del changed["subsets"][0]["addresses"][1]
    changed["subsets"][0]["ports"][0]["port"] = 5433
    plan = legacy.mirror(changed, before)
    assert (plan.create, len(plan.update), len(plan.delete)) == ([], 1, 1)
    assert plan.update[0]["ports"][0]["port"] == 5433


def test_who_asks_not_to_be_mirrored_is_not():
    assert legacy.is_mirrored(by_hand())
    assert not legacy.is_mirrored(by_hand(labels={legacy.SKIP_MIRROR: "true"}))
    assert not legacy.is_mirrored(by_hand(annotations={legacy.LEADER: "{}"}))


def test_the_api_servers_own_endpoints():
    made = apiserver.objects(["192.168.100.10", "fd00::a"], ["IPv6", "IPv4"], 6443)
    assert [(one["kind"], one["metadata"]["name"]) for one in made] == [
        ("Endpoints", "kubernetes"),
        ("EndpointSlice", "kubernetes"),
        ("EndpointSlice", "kubernetes-v4"),
    ]
    assert made[0]["subsets"][0]["addresses"] == [{"ip": "fd00::a"}]
    assert made[2]["endpoints"] == [{"addresses": ["192.168.100.10"], "conditions": {"ready": True}}]
    assert made[1]["metadata"]["labels"] == {slices.SERVICE_NAME: "kubernetes"}
