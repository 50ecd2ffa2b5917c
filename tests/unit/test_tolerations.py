"""How long pods stay on a node in trouble: by default, by the cluster's clocks, by their own word."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.api.start import toleration_seconds
from testbed.objects.store import Store
from testbed.spec.load import parse_spec

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default"},
    "spec": {"containers": [{"name": "c", "image": "nginx"}]},
}


def seconds(kubelet: str, pod: dict[str, Any], *, trusted: bool) -> dict[str, int]:
    text = "apiVersion: testbed/v1\nkind: Cluster\nmetadata: {name: t}\nspec: {kubelet: {%s}}\n"
    spec = parse_spec(text.replace("%s", kubelet), "t.yaml")
    store = Store(toleration_seconds=toleration_seconds(spec))
    store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, trusted=True)
    with store.transaction() as trial:
        stored = trial.create(pod, trusted=trusted)
    return {
        entry["key"].rpartition("/")[2]: entry["tolerationSeconds"] for entry in stored["spec"]["tolerations"]
    }


@pytest.mark.parametrize("trusted", [False, True])
def test_the_clusters_clocks_decide_where_the_pod_does_not(trusted: bool) -> None:
    assert seconds("", POD, trusted=trusted) == {"not-ready": 300, "unreachable": 300}
    short = "defaultUnreachableTolerationSeconds: 2s"
    assert seconds(short, POD, trusted=trusted) == {"not-ready": 300, "unreachable": 2}
    own = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 9,
    }
    pod = {**POD, "spec": {**POD["spec"], "tolerations": [own]}}
    assert seconds(short, pod, trusted=trusted) == {"not-ready": 300, "unreachable": 9}
