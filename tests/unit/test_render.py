"""What a recorded cluster's node would get is made of the recorded objects, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from scenes import GOLDEN, Scene, scenes

from testbed.api.offline import node_state
from testbed.cluster.render import render
from testbed.errors import InputError
from testbed.proxy import proxiers
from testbed.rules.iptables import full_input

SPEC = {"apiVersion": "testbed/v1", "kind": "Cluster", "metadata": {"name": "recorded"}}


def spec_file(tmp_path: Path, cluster_cidr: str = "10.244.0.0/16") -> Path:
    network = {"podCIDR": cluster_cidr.split(",")}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "spec": {"nodes": {"count": 3}, "network": network}}))
    return path


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_a_recorded_scene_is_taken_as_it_is(scene: Scene, mode: str, tmp_path: Path) -> None:
    spec = spec_file(tmp_path, ",".join(scene.snapshot.facts.pod_cidrs))
    _, fragments = node_state(
        spec, [scene.path("scene.yaml")], [f"spec.network.proxy.mode={mode}"], scene.node.name
    )
    services = fragments["services"]
    expected = proxiers.get(mode).compile(scene.snapshot, scene.node)
    assert (services.chains, services.nft_chains, services.nft_elements) == (
        expected.chains,
        expected.nft_chains,
        expected.nft_elements,
    )


def test_what_is_shown_is_the_proxiers_part_alone_as_input_for_the_tools(tmp_path: Path) -> None:
    scene = GOLDEN / "headless" / "scene.yaml"
    state, fragments = node_state(spec_file(tmp_path), [scene], [], "node-1")
    text = render(state, fragments, "services", ("ipv4",))
    assert text == "# iptables-restore\n" + full_input(fragments["services"].chains, "ipv4")
    assert "-I INPUT 1 -j KUBE-FIREWALL\n" in text
    assert "KUBELET" not in text
    assert "KUBE-KUBELET-CANARY" in render(state, fragments, "all", ("ipv4",))


def test_a_recorded_object_that_no_api_server_gave_is_bad_input(tmp_path: Path) -> None:
    scene = tmp_path / "scene.yaml"
    metadata = {"name": "web", "namespace": "default", "uid": "1"}
    broken = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ["http"]}}
    scene.write_text(yaml.safe_dump({"scene": "broken", "objects": [broken]}))
    with pytest.raises(InputError, match="is not as an API server gives it") as raised:
        node_state(spec_file(tmp_path), [scene], [], "node-1")
    assert raised.value.problems[0].line == 2


def test_a_manifest_of_ones_own_beside_it_gets_what_a_cluster_gives(tmp_path: Path) -> None:
    """Its address is allocated, its endpoints are the pods that it selects."""
    own = tmp_path / "own.yaml"
    container = {"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}
    pod = {"metadata": {"name": "p", "labels": {"app": "own"}}, "spec": {"containers": [container]}}
    service = {"metadata": {"name": "own"}, "spec": {"selector": {"app": "own"}, "ports": [{"port": 80}]}}
    objects = [
        {"apiVersion": "v1", "kind": kind, **each} for kind, each in (("Pod", pod), ("Service", service))
    ]
    own.write_text(yaml.safe_dump_all(objects))
    scene = GOLDEN / "headless" / "scene.yaml"
    _, fragments = node_state(spec_file(tmp_path), [scene, own], [], "node-1")
    rules = [rule for chain in fragments["services"].chains.values() for rule in chain.rules]
    assert any('"default/own" -m tcp -j DNAT --to-destination 10.244.' in rule for rule in rules)
    assert any('"default/web cluster IP"' in rule for rule in rules)
    assert not any("kubernetes:https" in rule for rule in rules)


def test_policy_is_shown_alone_with_the_sets_that_it_looks_at(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    container = {"name": "c", "image": "nginx"}
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "node-1", "containers": [container]}}
    deny = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}
    kinds = (("v1", "Pod", pod), ("networking.k8s.io/v1", "NetworkPolicy", deny))
    policy.write_text(yaml.safe_dump_all([{"apiVersion": v, "kind": k, **each} for v, k, each in kinds]))
    state, fragments = node_state(spec_file(tmp_path), [policy], [], "node-1")
    text = render(state, fragments, "policy", ("ipv4",))
    assert text.startswith("# ipset restore\ncreate KUBE-")
    assert "-I FORWARD 1 -m comment --comment" in text
    assert "KUBE-SERVICES" not in text
