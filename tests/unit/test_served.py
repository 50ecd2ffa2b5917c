"""What compilers see of Services, kept up to date object by object."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from testbed.control import view
from testbed.control.served import Served

Object = dict[str, Any]


def service(name: str, port: int = 80, **metadata: Any) -> Object:
    return {
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name, **metadata},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.7", "ports": [{"port": port, "protocol": "TCP"}]},
    }


def endpoint_slice(owner: str, name: str, *addresses: str, **metadata: Any) -> Object:
    labels = {view.SERVICE_NAME_LABEL: owner}
    return {
        "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name, "labels": labels, **metadata},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


def test_an_annotation_changes_nothing_and_leaves_the_same_objects():
    served = Served()
    assert served.put(service("web"))
    assert served.put(endpoint_slice("web", "web-1", "10.244.1.2"))
    before, slices = served.services, served.slices
    assert not served.put(service("web", annotations={"a": "b"}))
    assert not served.put(endpoint_slice("web", "web-1", "10.244.1.2", annotations={"a": "b"}))
    assert served.services is before
    assert served.slices is slices


def test_a_change_leaves_what_others_hold_and_the_objects_beside_it():
    served = Served()
    for name in ("one", "two"):
        served.put(service(name))
        served.put(endpoint_slice(name, f"{name}-1", "10.244.1.2"))
    services, slices = served.services, served.slices
    assert served.put(service("one", port=81))
    assert served.put(endpoint_slice("one", "one-1", "10.244.1.3"))
    assert services["default", "one"].ports[0].port == 80
    assert served.services["default", "one"].ports[0].port == 81
    assert served.services["default", "two"] is services["default", "two"]
    assert served.slices["default", "two"] is slices["default", "two"]


def test_ranges_are_those_of_the_service_cidr_objects():
    served = Served()
    cidr = {"kind": "ServiceCIDR", "metadata": {"name": "extra"}, "spec": {"cidrs": ["10.112.0.0/24"]}}
    assert served.put(cidr)
    assert served.service_cidrs == ("10.112.0.0/24",)
    assert served.drop(cidr)
    assert served.service_cidrs == ()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["service", "slice"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x", "y"]),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=30,
)


@given(OPERATIONS)
def test_after_any_changes_it_is_what_it_would_be_made_anew(operations: list[Any]) -> None:
    served, objects = Served(), dict[tuple[str, ...], Object]()
    for kind, owner, name, number, gone in operations:
        if kind == "service":
            key, obj = (kind, owner), service(owner, number)
        else:
            # Its label may come to lead to another Service.
            key, obj = (kind, name), endpoint_slice(owner, name, f"10.244.1.{number}")
        if gone:
            there = key in objects
            assert served.drop(objects.pop(key, obj)) == there
        else:
            objects[key] = obj
            served.put(obj)
        _ = served.services, served.slices
    fresh = Served()
    for obj in objects.values():
        fresh.put(obj)
    assert served.services == fresh.services
    assert served.slices == fresh.slices


def test_endpoints_that_name_nothing_are_endpoints_all_the_same() -> None:
    odd = endpoint_slice("a", "a-1", "10.244.1.1")
    odd["endpoints"][0] |= {"targetRef": {"kind": "Pod"}, "hints": {"forZones": [{}], "forNodes": [{}]}}
    served = Served()
    served.put(odd)
    (endpoint,) = next(iter(served.slices.values()))[0].endpoints
    assert endpoint.addresses == ("10.244.1.1",)
    assert endpoint.pod is None
