"""CNI as JSON, the dataplane that compiles it, and pods whose nodes give them their addresses."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.cluster.clock import ManualClock
from testbed.cluster.controlplane import ControlPlane
from testbed.cluster.messages import ChangeSandboxes, DeletePods
from testbed.cluster.reconcile import diff
from testbed.cluster.sandboxes import _ending
from testbed.control.bandwidth import Bandwidth, bandwidth, bandwidth_problem
from testbed.control.snapshot import ClusterFacts, Node, Pod, Snapshot
from testbed.dataplane import dataplanes, needs_of
from testbed.dataplane.bandwidth import compile_bandwidth
from testbed.dataplane.cni import protocol
from testbed.dataplane.cni.protocol import Attachment
from testbed.errors import InputError
from testbed.objects.allocate import ServiceRanges
from testbed.objects.store import Store
from testbed.proxy import proxiers
from testbed.spec.load import load_spec
from testbed.state import Link, NodeState, PodState, Redirect, Sandbox, Shaper

FACTS = ClusterFacts(
    cluster_domain="cluster.local",
    pod_cidrs=("10.244.0.0/16",),
    service_cidrs=("10.96.0.0/12",),
    node_cidrs=("192.168.100.0/24",),
    dns_addresses=(),
)
LIST = {
    "cniVersion": "1.0.0",
    "name": "net",
    "plugins": [{"type": "bridge", "capabilities": {"ips": True, "mac": False}, "cni.dev/x": 1}],
}

# --- JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../etc"}, "name must begin with a letter"),
        ({"plugins": []}, "plugins must be a list"),
        ({"plugins": [{"type": "../../bin/sh"}]}, r"plugins\[0\].type must be the name"),
        ({"plugins": [{"type": "a", "capabilities": ["mac"]}]}, r"capabilities must be a mapping"),
        ({"cniVersion": "9.9.9"}, "cniVersion 9.9.9: known are 0.1.0"),
        ({"cniVersions": "1.0.0"}, "cniVersions must be a list"),
    ],
)
def test_a_list_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        protocol.parse(LIST | change)


def test_a_plugin_reads_its_configuration_with_what_it_declares_of_what_there_is() -> None:
    network = protocol.parse(LIST)
    (plugin,) = network.plugins
    read = json.loads(
        protocol.stdin(network, plugin, "1.0.0", {"ips": ["10.1.0.9/24"], "mac": "x", "dns": {}}, {})
    )
    assert read == {
        "type": "bridge",
        "name": "net",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"ips": ["10.1.0.9/24"]},
        "prevResult": {},
    }


def test_the_environment_of_an_operation() -> None:
    one = Attachment("c1", "/run/netns/x", "eth0", (("K8S_POD_NAME", "a"), ("K8S_POD_UID", "u")))
    assert protocol.environment("ADD", one, ("/a", "/b")) == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K8S_POD_NAME=a;K8S_POD_UID=u",
        "CNI_PATH": "/a:/b",
    }
    assert protocol.environment("STATUS", None, ("/a",)) == {"CNI_COMMAND": "STATUS", "CNI_PATH": "/a"}


@pytest.mark.parametrize(
    ("stdout", "stderr", "expected"),
    [
        (b'{"code": 11, "msg": "busy", "details": "later"}', b"", (11, "busy; later")),
        (b'{"code": 999, "msg": "no"}', b"noise", (999, "no")),
        (b"", b"oh", (0, 'netplugin failed: "oh"')),
        (b"", b"", (0, "netplugin failed with no error message: exit status 1")),
        (b'{"code": 7, "msg": "half \\ud800 a pair"}', b"", (7, "half ? a pair")),
    ],
)
def test_errors_are_read_as_libcni_reads_them(
    stdout: bytes, stderr: bytes, expected: tuple[int, str]
) -> None:
    failure = protocol.failure(stdout, stderr, "exit status 1")
    assert (failure.code, failure.text) == expected


@pytest.mark.parametrize(
    "found",
    [
        {"ips": ["10.1.0.2/24"]},
        {"ips": 1},
        {"ips": [{"address": "10.1.0.2/24", "interface": "0"}]},
        {"ips": [{"address": "10.1.0.2/24", "interface": 0}], "interfaces": ["eth0"]},
        {"ips": [{}]},
    ],
)
def test_a_result_of_another_form_is_told_and_no_crash(found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"form|does not appear"):
        protocol.addresses(found, "eth0")


@pytest.mark.parametrize("said", [b"[]", b"1", b"{}", b'{"supportedVersions": 1}', b"no"])
def test_versions_of_another_form_are_none(said: bytes) -> None:
    with pytest.raises(ValueError, match=r"supportedVersions|Expecting"):
        protocol.supported(said)


@pytest.mark.parametrize(
    ("code", "how"), [(1, "exit status 1"), (137, "signal: killed"), (255, "exit status 255")]
)
def test_a_plugin_that_ends_with_any_code_is_told(code: int, how: str) -> None:
    assert _ending(code) == how


def test_an_answer_that_is_no_json_is_told_with_what_it_says() -> None:
    said = protocol.failure(b"panic: x", b"", "exit status 2").text
    assert said.startswith('netplugin failed but error parsing its diagnostic message "panic: x"')


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "failed to unmarshal raw result: unexpected end of JSON input"),
        (b"hello", 'failed to unmarshal raw result "hello": '),
        (b"\xff\xfe\xfd", 'failed to unmarshal raw result "\\ufffd'),
        (b"[]", 'failed to unmarshal raw result "[]": not a JSON object'),
        (b"[" * 100_000, 'failed to unmarshal raw result "[['),
    ],
)
def test_a_result_that_is_none_is_told_with_what_it_says(said: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        protocol.result(said, "1.0.0")


def test_an_error_that_is_nested_too_deeply_is_told() -> None:
    assert protocol.failure(b"[" * 100_000, b"", "exit status 1").text.endswith("exceeded max depth")


@pytest.mark.parametrize(
    "found",
    [
        {"ip4": {"ip": "10.1.0.2/24"}, "ip6": {"ip": "fd00::2/64"}},
        {"ips": [{"version": "6", "address": "fd00::2/64"}, {"version": "4", "address": "10.1.0.2/24"}]},
        {
            "interfaces": [
                {"name": "br0"},
                {"name": "eth0", "sandbox": "/x"},
                {"name": "net1", "sandbox": "/x"},
            ],
            "ips": [
                {"address": "10.1.0.1/24", "interface": 0},
                {"address": "10.9.0.2/24", "interface": 2},
                {"address": "10.1.0.2/24", "interface": 1},
                {"address": "10.1.0.3/24", "interface": 1},
                {"address": "fd00::2/64", "interface": 1},
            ],
        },
    ],
)
def test_addresses_of_a_result_of_any_version_are_the_containers_one_per_family(
    found: dict[str, Any],
) -> None:
    assert protocol.addresses(found, "eth0") == ("10.1.0.2", "fd00::2")


@settings(deadline=None)
@given(
    st.sets(st.sampled_from(protocol.VERSIONS), min_size=1),
    st.lists(st.sets(st.sampled_from(protocol.VERSIONS))),
)
def test_the_version_is_the_newest_that_all_know_or_the_lists_own(
    asked: set[str], known: list[set[str]]
) -> None:
    network = protocol.parse({**LIST, "cniVersion": min(asked), "cniVersions": sorted(asked)})
    both = asked.intersection(*known)
    found = protocol.negotiate(network, [tuple(each) for each in known])
    assert found == max(both or asked, key=protocol.VERSIONS.index)


def test_what_is_kept_is_libcnis_format() -> None:
    network = protocol.parse(LIST)
    one = Attachment("c1", "/n", "eth0", (("A", "1"),), {"ips": ["10.1.0.9/24"]})
    kept = json.loads(protocol.cache_text(network, one, {"cniVersion": "1.0.0"}))
    assert json.loads(base64.b64decode(kept.pop("config"))) == LIST
    assert kept == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/n",
        "cniArgs": [["A", "1"]],
        "capabilityArgs": {"ips": ["10.1.0.9/24"]},
        "result": {"cniVersion": "1.0.0"},
    }
    assert protocol.cache_name(network, one) == "net-c1-eth0"


def test_an_unknown_placeholder_is_refused() -> None:
    assert protocol.fill('{"a": "{{.PodCIDR}}"}', {"PodCIDR": "10.1.0.0/24"}) == '{"a": "10.1.0.0/24"}'
    with pytest.raises(ValueError, match=r"\{\{ \.Other \}\}: known are \{\{\.PodCIDR\}\}"):
        protocol.fill("{{ .Other }}", {"PodCIDR": ""})


# --- the spec -------------------------------------------------------------------------------------------


def spec(directory: Path, dataplane: str) -> Any:
    path = directory / "spec.yaml"
    head = "apiVersion: testbed/v1\nkind: Cluster\n"
    path.write_text(f"{head}spec: {{nodes: {{count: 1}}, network: {{dataplane: {dataplane}}}}}\n")
    return load_spec(path)


@pytest.mark.parametrize(
    ("text", "words"), [("", "cannot be read: No such file"), ("[" * 100_000, "max depth")]
)
def test_a_lists_file_that_cannot_be_read_is_told_once(text: str, words: str, tmp_path: Path) -> None:
    if text:
        (tmp_path / "10-net.conflist").write_text(text)
    with pytest.raises(InputError) as refused:
        spec(tmp_path, "{name: cni, conflist: 10-net.conflist}")
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_lists_file_and_directories_of_plugins_are_found_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "10-net.conflist").write_text(json.dumps(LIST))
    read = spec(tmp_path, "{name: cni, conflist: 10-net.conflist, path: [bin]}").network.dataplane_options
    assert json.loads(read["conflist"]) == LIST
    assert read["path"] == [str(tmp_path / "bin")]
    bare = """'{"name": "x", "plugins": [{"type": "bridge", "mtu": {{.MTU}}}]}'"""
    read = spec(tmp_path, f"{{name: cni, conflist: {bare}}}").network.dataplane_options
    assert "{{.MTU}}" in read["conflist"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("conflist: nowhere.conflist", "spec.network.dataplane.conflist: 'nowhere.conflist' cannot be read"),
        ("conflist: {name: x, plugins: []}", "spec.network.dataplane.conflist: plugins must be a list"),
        (
            """conflist: '{"name": "x", "plugins": [{"type": "bridge", "subnet": {{.PodCIDR6}}}]}'""",
            "spec.network.dataplane.conflist: must be a CNI network configuration list in JSON",
        ),
        ("path: []", "spec.network.dataplane.path: must be a directory"),
        ("routes: some", "spec.network.dataplane.routes: must be podCIDR or none"),
    ],
)
def test_options_that_cannot_be_used_are_refused_with_their_place(
    option: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        spec(tmp_path, f"{{name: cni, {option}}}")


def test_programs_are_asked_for_unless_they_are_the_users_own() -> None:
    cni = dataplanes.get("cni")
    assert "cni-plugins" in needs_of(cni, {})
    assert "cni-plugins" not in needs_of(cni, {"path": ["/x"]})


# --- the dataplane and the control plane ----------------------------------------------------------------


NODE_1 = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1", "labels": {}},
    "spec": {"podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.100.11"}]},
}
WEB = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"containers": [{"name": "c", "image": "nginx"}]},
}


def drive(plane: ControlPlane) -> None:
    """Decide, and pretend that the node makes what it should, until nothing changes."""
    plane.step()
    while made := plane.not_running():
        plane.pods_made(made)
        plane.step()


def plane() -> ControlPlane:
    store = Store(ServiceRanges((ip_network("10.96.0.0/12"),)), seed=1)
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    store.create(NODE_1, trusted=True)
    store.create(WEB)
    return ControlPlane(store, FACTS, dataplanes.get("cni"), proxiers.get("none"), {}, ManualClock())


def test_a_pod_is_on_its_node_only_once_the_node_gave_it_an_address() -> None:
    made = plane()
    made.step()
    before = made.desired("node-1")
    ((uid, sandbox),) = before.sandboxes.items()
    assert before.pods == {}
    made.sandbox_ready(uid, ("10.50.0.7",))
    made.step()
    after = made.desired("node-1")
    assert after.pods[uid].ips == ("10.50.0.7",)
    assert after.pods[uid].sandboxed
    assert after.sandboxes == {uid: sandbox}
    drive(made)
    (pod,) = made.store.list("Pod")
    assert pod["status"]["podIP"] == "10.50.0.7"


def test_a_pods_object_stays_until_plugins_took_its_sandbox_down() -> None:
    made = plane()
    made.step()
    (uid,) = made.desired("node-1").sandboxes
    made.sandbox_ready(uid, ("10.50.0.7",))
    drive(made)
    made.store.delete("Pod", "default", "web", grace=30)
    made.step()
    made.pods_removed("node-1", [uid])  # the pod is gone, its sandbox is not
    made.step()
    assert made.store.find("Pod", "default", "web") is not None
    made.pods_removed("node-1", [])
    made.step()
    assert made.store.find("Pod", "default", "web") is None


def test_a_pod_that_has_no_address_yet_stays_until_plugins_took_its_sandbox_down() -> None:
    made = plane()
    made.step()
    (uid,) = made.desired("node-1").sandboxes
    made.store.delete("Pod", "default", "web", grace=30)
    made.step()
    assert made.desired("node-1").sandboxes == {}
    made.pods_removed("node-1", [uid])
    made.step()
    assert made.store.find("Pod", "default", "web") is not None
    made.pods_removed("node-1", [])
    made.step()
    assert made.store.find("Pod", "default", "web") is None


def test_a_sandbox_comes_by_itself_and_goes_after_its_pod() -> None:
    sandbox = Sandbox("u", "default", "a", "c", "{}", ())
    first = NodeState(sandboxes={"u": sandbox})
    assert diff(None, first) == (ChangeSandboxes((sandbox,), ()),)
    both = NodeState(pods={"u": PodState("u", "default", "a", "a", sandboxed=True)}, sandboxes={"u": sandbox})
    assert diff(both, NodeState()) == (DeletePods(("u",)), ChangeSandboxes((), ("u",)))
    later = replace_sandbox(both, path=("/elsewhere",))
    assert diff(both, later) == ()  # what plugins were called with stays as it was


def replace_sandbox(state: NodeState, **more: Any) -> NodeState:
    changed = {uid: msgspec.structs.replace(each, **more) for uid, each in state.sandboxes.items()}
    return msgspec.structs.replace(state, sandboxes=changed)


def test_what_is_offered_to_plugins() -> None:
    pod = Pod(
        "u",
        "default",
        "a",
        "n",
        (),
        annotations={"testbed/ip": "10.1.0.9", "kubernetes.io/egress-bandwidth": "1M"},
    )
    n = Node("n", ("192.168.0.1",), ("10.1.0.0/24",))
    taken = Snapshot(FACTS, (n,), (), unaddressed={"n": (pod,)})
    (sandbox,) = dataplanes.get("cni").compile(taken, n).sandboxes.values()
    assert sandbox.capabilities == {
        "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
        "ips": ["10.1.0.9/24"],
        "bandwidth": {"egressRate": 1_000_000, "egressBurst": 2**32 - 1},
    }
    first = json.loads(sandbox.network)["plugins"][0]
    assert first["ipam"] == {"type": "host-local", "dataDir": "@DIR@/networks"}


# --- bandwidth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10M", ""),
        ("1k", ""),
        ("999", "reading pod bandwidth annotations: resource is unreasonably small (< 1kbit)"),
        ("1001T", "reading pod bandwidth annotations: resource is unreasonably large (> 1Pbit)"),
        ("fast", "reading pod bandwidth annotations: not a quantity: 'fast'"),
    ],
)
def test_bandwidth_annotations_are_judged_as_the_kubelet_does(text: str, problem: str) -> None:
    assert bandwidth_problem({"kubernetes.io/ingress-bandwidth": text}) == problem


def test_limits_are_a_shaper_on_the_host_end_and_one_on_an_ifb() -> None:
    annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "500k"}
    assert bandwidth(annotations) == Bandwidth(10_000_000, 500_000)
    pod = Pod("u", "default", "a", "n", ("10.1.0.2",), annotations=annotations)
    n = Node("n", ("192.168.0.1",), ("10.1.0.0/24",))
    bridge = dataplanes.get("bridge")
    wiring = bridge.compile(Snapshot(replace(FACTS, link_mtu=1400), (n,), (pod,)), n)
    (host_end,) = [link.name for link in wiring.netns.links.values() if link.kind == "peer"]
    made = compile_bandwidth(wiring, (pod,))
    ((ifb, link),) = made.links.items()
    assert link == Link(ifb, "ifb", mtu=1400)
    assert ifb.startswith("bwp")
    assert len(ifb) == 15
    assert made.redirects == {host_end: Redirect(host_end, ifb)}
    assert made.shapers == {
        host_end: Shaper(host_end, 10_000_000, 2**32 - 1),
        ifb: Shaper(ifb, 500_000, 2**32 - 1),
    }
    assert compile_bandwidth(wiring, (replace(pod, annotations={}),)).links == {}
