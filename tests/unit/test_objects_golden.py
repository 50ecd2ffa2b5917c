"""What a real API server (v1.36.2) said to each of these manifests; recorded in tests/golden/api."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.documents import read_documents
from testbed.errors import InputError
from testbed.objects.allocate import ServiceRanges
from testbed.objects.apply import apply_one
from testbed.objects.status import ApiError, as_kubectl_prints
from testbed.objects.store import Store

CASES = Path(__file__).parents[1] / "golden" / "api"
UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GO_DIFF = re.compile(r"\n@@ .*", re.DOTALL)  # the server adds a diff of Go structures to one message


def cases(kind: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((CASES / kind).glob("*.yaml"))]


@pytest.fixture
def store() -> Store:
    ranges = ServiceRanges((ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112")))
    made = Store(ranges, seed=1)
    made.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return made


def objects(text: str) -> list[Any]:
    return [document.data for document in read_documents(text, "STDIN")]


def said_by_kubectl(error: ApiError, obj: Any) -> str:
    """The refusal in kubectl's words, some of which are its own and not the server's."""
    metadata = obj.get("metadata", {})
    name, namespace = metadata.get("name", ""), metadata.get("namespace", "")
    if error.message.startswith("no matches for kind"):
        return (
            f'error: resource mapping not found for name: "{name}" namespace: "{namespace}" from "STDIN": '
            f"{error.message}\nensure CRDs are installed first\n"
        )
    if not name:
        return (
            "error: error when retrieving current configuration of:\n"
            f'Resource: "/v1, Resource=services", GroupVersionKind: "/v1, Kind={obj["kind"]}"\n'
            f'Name: "", Namespace: "{namespace}"\nfrom server for: "STDIN": {error.errors[0].message}\n'
        )
    return as_kubectl_prints(error.status, 'error when creating "STDIN"')


def refusal(store: Store, manifest: str) -> str:
    """What kubectl prints for a manifest that is refused; "" if it is not."""
    try:
        given = objects(manifest)
    except InputError as error:
        return f"error: error parsing STDIN: {error.problems[0].message}\n"
    for obj in given:
        try:
            apply_one(store, obj)
        except ApiError as error:
            return said_by_kubectl(error, obj)
    return ""


@pytest.mark.parametrize("path", cases("invalid"))
def test_a_refusal_reads_as_the_servers(path: Path, store: Store) -> None:
    case = yaml.safe_load(path.read_text())
    for obj in objects(case.get("before", "")):
        apply_one(store, obj)
    before = list(store.everything())
    assert refusal(store, case["manifest"]) == GO_DIFF.sub("\n", case["stderr"])
    assert list(store.everything()) == before


@pytest.mark.parametrize("path", cases("odd-but-accepted"))
def test_what_the_server_takes_is_taken(path: Path, store: Store) -> None:
    case = yaml.safe_load(path.read_text())
    printed = [apply_one(store, obj) for obj in objects(case["manifest"])]
    assert "".join(f"{kind}/{name} {action}\n" for kind, name, action in printed) == case["stdout"]


DRAWN_SPEC = ("clusterIP", "clusterIPs", "healthCheckNodePort")


def plain(obj: Any) -> Any:
    """The object without its status and what time, chance and controllers put into it."""
    metadata = {
        field: obj["metadata"].get(field, "")
        for field in ("name", "namespace", "generation", "finalizers", "ownerReferences")
    }
    spec = dict(obj.get("spec", {}))
    metadata["labels"] = without_uid(obj["metadata"].get("labels"))
    if obj["kind"] == "Job":
        spec |= {field: without_uid(spec[field]) for field in ("selector", "template")}
    if obj["kind"] == "Service":
        spec |= {field: drawn(spec[field]) for field in DRAWN_SPEC if field in spec}
        ports = [
            {**port, "nodePort": "drawn"} if "nodePort" in port else port for port in spec.get("ports", ())
        ]
        spec["ports"] = ports
    rest = {key: value for key, value in obj.items() if key not in ("metadata", "spec", "status")}
    return {**rest, "metadata": metadata, "spec": spec}


def without_uid(value: Any) -> Any:
    """Labels, or what has them inside, with the uid of a Job by its form."""
    if isinstance(value, dict):
        return {key: without_uid(one) for key, one in value.items()}
    return UID.sub("uid", value) if isinstance(value, str) else value


def drawn(value: Any) -> Any:
    """An address or port drawn at random, by its form."""
    if isinstance(value, list):
        return [drawn(one) for one in value]
    return value if value == "None" else "IPv6" if ":" in str(value) else "drawn"


@pytest.mark.parametrize("path", cases("valid"))
def test_defaults_are_the_servers(path: Path, store: Store) -> None:
    case = yaml.safe_load(path.read_text())
    printed = [apply_one(store, obj) for obj in objects(case["manifest"])]
    assert "".join(f"{kind}/{name} {action}\n" for kind, name, action in printed) == case["apply"]["stdout"]
    assert len(case["live"]) == len(printed)
    for live in case["live"]:
        metadata = live["metadata"]
        ours = store.get(live["kind"], metadata.get("namespace", ""), metadata["name"])
        assert plain(ours) == plain(live)


def by_form(spec: Any) -> Any:
    """A pod's spec with the drawn letters of its token volume as five question marks."""
    return yaml.safe_load(re.sub(r"kube-api-access-[b-z2-9]{5}\b", "kube-api-access-?????", yaml.dump(spec)))


@pytest.mark.parametrize("name", ["deployment-clusterip", "deployment-named-multiport", "loadbalancer-local"])
def test_a_pod_of_a_template_gets_what_admission_adds(name: str, store: Store) -> None:
    case = yaml.safe_load((CASES / "valid" / f"{name}.yaml").read_text())
    for obj in objects(case["manifest"]):
        apply_one(store, obj)
    (owner,) = store.list("Deployment")
    template = owner["spec"]["template"]
    metadata = {"generateName": "web-", "namespace": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    ours = store.create(pod, trusted=True)["spec"]
    live = case["onePodInFull"]["spec"]
    live.pop("nodeName")
    assert by_form(ours) == by_form(live)
    assert template["spec"].keys() < ours.keys(), "the template itself must stay as it was"


@pytest.mark.parametrize("path", cases("valid"))
def test_applying_again_changes_nothing(path: Path, store: Store) -> None:
    given = objects(yaml.safe_load(path.read_text())["manifest"])
    for obj in given:
        apply_one(store, obj)
    before = list(store.everything())
    assert {apply_one(store, obj)[2] for obj in given} == {"unchanged"}
    assert list(store.everything()) == before
