"""The third answer: generated policies on a live cluster, and what traffic does with the generated flows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

from hypothesis import strategies as st
from policy_worlds import (
    FORMS,
    NAMESPACE_LABELS,
    NAMESPACES,
    POD_LABELS,
    PORTS,
    Object,
    compiled,
    namespace,
    policy_sets,
    walked,
)

from testbed.api.cluster import Cluster
from testbed.api.manifests import path_of
from testbed.control import view
from testbed.control.policies import Policies
from testbed.control.snapshot import ClusterFacts, Snapshot
from testbed.objects.kinds import kind_of
from testbed.policy.meaning import Flow, Meaning
from testbed.wait import wait_until

SPEC = """\
apiVersion: testbed/v1
kind: Cluster
metadata: {{name: {name}}}
spec:
  nodes:
    items:
    - {{name: node-1, labels: {{zone: b}}}}
    - {{name: node-2, labels: {{zone: a}}}}
  dns: {{enabled: false}}
  network:
    podCIDR: [10.244.0.0/16, "fd00:244::/48"]
    serviceCIDR: [10.96.0.0/12, "fd00:10:96::/112"]
    nodeCIDR: [192.168.100.0/24, "fd00:100::/64"]
    proxy: {{mode: {mode}}}
    policy: {{onChange: {on_change}}}
  external:
  - {{name: client, address: [203.0.113.10, "fd00:203::10"]}}
"""
SILENCE = 0.3
WITHIN = 5.0
"""Seconds in which traffic has to do what policies mean."""
LABELS = (
    ("x", {"app": "a", "tier": "x"}),
    ("x", {"app": "b"}),
    ("y", {"app": "a"}),
    ("y", {"tier": "y"}),
    ("z", {"app": "b", "tier": "x"}),
    ("x", {}),
    ("z", {"app": "a"}),
)
HOST = 6
"""The pod that has its node's network."""
NAMED = {
    0: {"TCP": ("web", "alt")},
    1: {"TCP": ("alt", "web")},
    2: {"UDP": ("web", "")},
    3: {"TCP": ("web", "")},
}


def pods() -> list[Object]:
    """Six pods on two nodes, and one that is its node; each answers on every port over TCP and UDP."""
    made = []
    for number, (where, labels) in enumerate(LABELS):
        ports: list[Object] = []
        for protocol in ("TCP", "UDP"):
            names = NAMED.get(number, {}).get(protocol, ("", ""))
            for port, name in zip(PORTS, (*names, ""), strict=True):
                named = {"name": name} if name else {}
                ports.append({"containerPort": port, "protocol": protocol, **named})
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"p{number}", "namespace": where, "labels": labels},
                "spec": {
                    "nodeName": f"node-{number % 2 + 1}",
                    "hostNetwork": number == HOST,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "agnhost", "ports": ports}],
                },
            }
        )
    return made


@dataclass(frozen=True)
class Change:
    """of what: ``pod`` and ``namespace`` get labels, ``again`` makes a pod anew with them."""

    what: str
    name: str
    labels: dict[str, str]


CHANGES = st.one_of(
    st.builds(
        Change,
        st.sampled_from(("pod", "pod", "again")),
        st.sampled_from([f"p{number}" for number in range(len(LABELS))]),
        POD_LABELS,
    ),
    st.builds(Change, st.just("namespace"), st.sampled_from(NAMESPACES), NAMESPACE_LABELS),
)

NAMESPACE_OBJECTS = (namespace("x", {"team": "r"}), namespace("y", {"team": "s"}), namespace("z", {}))


@dataclass
class Traffic:
    """A cluster with the pods, whose policies are replaced again and again."""

    cluster: Cluster

    def begin(self) -> None:
        """Make the pods, and have rejections answered without a limit, so that nobody waits for silence."""
        self.apply(*NAMESPACE_OBJECTS, *pods())
        self.cluster.wait(ready="", namespace="", timeout=30)
        for node in ("node-1", "node-2"):
            for name in ("net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratemask="):
                assert self.cluster.node(node).run(["sysctl", "-q", "-w", name]).code == 0
        self.policies: tuple[Object, ...] = ()
        ends = [next(ip for ip in pod.ips if ":" not in ip) for pod in self.plain.pods]
        self.observed([Flow(ends[0], ends[1], "TCP", 80)])  # the prober stays for as long as the cluster

    def apply(self, *objects: Object) -> None:
        """Apply objects, all or nothing."""
        self.cluster.client.post("/apis/testbed/v1/manifests", {"objects": list(objects)})

    def enforce(self, policies: tuple[Object, ...]) -> None:
        """Have these policies in force, and no others."""
        for policy in self.policies:
            metadata = policy["metadata"]
            self.cluster.client.delete(
                path_of(kind_of(policy), metadata.get("namespace", ""), metadata["name"])
            )
        self.policies = ()
        if policies:
            self.apply(*policies)
        self.policies = policies
        self.cluster.settle()

    def change(self, change: Change) -> None:
        """Relabel a pod or a namespace, or make a pod anew, with everything else as it is."""
        client = self.cluster.client
        if change.what == "namespace":
            self._relabel(f"/api/v1/namespaces/{change.name}", ("team",), change.labels)
        else:
            number = int(change.name.removeprefix("p"))
            path = f"/api/v1/namespaces/{LABELS[number][0]}/pods/{change.name}"
            if change.what == "pod":
                self._relabel(path, ("app", "tier"), change.labels)
            else:
                client.delete(path)
                wait_until(lambda: change.name not in self._pods(), 10, f"{change.name} is gone")
                again = pods()[number]
                self.apply({**again, "metadata": {**again["metadata"], "labels": change.labels}})
                self.cluster.wait(ready="", namespace="", timeout=30)
        self.__dict__.pop("plain", None)
        self.cluster.settle()

    def _pods(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.cluster.client.get("/api/v1/pods")["items"]}

    def _relabel(self, path: str, keys: tuple[str, ...], labels: dict[str, str]) -> None:
        self.cluster.client.request(
            "PATCH",
            path,
            {"metadata": {"labels": {**dict.fromkeys(keys), **labels}}},
            content_type="application/merge-patch+json",
        )

    @cached_property
    def plain(self) -> Snapshot:
        """The cluster without policies."""
        client, kept = self.cluster.client, Policies()
        for name in NAMESPACES:
            kept.put({"kind": "Namespace", **client.get(f"/api/v1/namespaces/{name}")})
        nodes = tuple(map(view.typed_node, client.get("/api/v1/nodes")["items"]))
        running = tuple(map(view.typed_pod, client.get("/api/v1/pods")["items"]))
        facts = ClusterFacts(
            "cluster.local",
            ("10.244.0.0/16", "fd00:244::/48"),
            ("10.96.0.0/12",),
            ("192.168.100.0/24",),
            (),
        )
        return Snapshot(facts, nodes, running, namespaces=kept.namespaces)

    def snapshot(self, policies: tuple[Object, ...]) -> Snapshot:
        """The cluster with policies."""
        kept = Policies()
        for policy in policies:
            kept.put(policy)
        plain = self.plain
        return Snapshot(
            plain.facts, plain.nodes, plain.pods, policies=kept.policies, namespaces=plain.namespaces
        )

    def sources(self) -> dict[str, str]:
        """Address → who asks from it."""
        known = {ip: f"{pod.namespace}/{pod.name}" for pod in self.plain.pods for ip in pod.ips}
        return known | {"203.0.113.10": "host:client", "fd00:203::10": "host:client"}

    def flows(self) -> st.SearchStrategy[Flow]:
        """Flows between the pods, and from outside to them, over both families."""
        ends = {
            version: [ip for pod in self.plain.pods for ip in pod.ips if (":" in ip) == (version == 6)]
            for version in (4, 6)
        }
        outside = {4: "203.0.113.10", 6: "fd00:203::10"}
        pairs = [
            (source, target)
            for version in (4, 6)
            for source in (*ends[version], outside[version])
            for target in ends[version]
            if source != target
        ]
        return st.builds(
            lambda ends, protocol, port: Flow(*ends, protocol, port),
            st.sampled_from(pairs),
            st.sampled_from(("TCP", "UDP")),
            st.sampled_from(PORTS),
        )

    def observed(self, flows: list[Flow]) -> dict[Flow, bool]:
        """Whether each flow's first packet is answered."""
        found: dict[Flow, bool] = {}
        sources = self.sources()
        for protocol in ("TCP", "UDP"):
            asked = sorted(
                {flow for flow in flows if flow.protocol == protocol}, key=lambda flow: flow.source
            )
            if not asked:
                continue
            request = {
                "questions": [
                    {"source": sources[flow.source], "ip": flow.destination, "port": flow.port}
                    for flow in asked
                ],
                "language": protocol.lower(),
                "text": "" if protocol == "TCP" else "testbed",
                "timeout": SILENCE,
                "at_once": len(asked),
            }
            replies = self.cluster.client.post("/apis/testbed/v1/conversations", request)["replies"]
            found |= {flow: verdict == "ok" for flow, verdict in zip(asked, replies["verdict"], strict=True)}
        return found

    def disagreements(self, policies: tuple[Object, ...], flows: list[Flow]) -> list[str]:
        """What policies mean, what both forms of rules do and what traffic does: where these differ."""
        snapshot = self.snapshot(policies)
        meaning = Meaning(snapshot)
        meant = {flow: meaning.allowed(flow) for flow in flows}
        found = []
        for form in FORMS:
            states = compiled(form, snapshot)
            for flow in flows:
                passed, rule = walked(form, states, snapshot, flow)
                if passed != meant[flow].allowed:
                    found.append(f"{form}: {flow}: meant {meant[flow].deciding}; walked {rule or 'pass'}")
        deadline = time.monotonic() + WITHIN
        left = flows
        while left:
            seen = self.observed(left)
            left = [flow for flow in left if seen[flow] != meant[flow].allowed]
            if left and time.monotonic() > deadline:
                found += [f"{flow}: meant {meant[flow].deciding}; seen the opposite" for flow in left]
                break
        return found


POLICY_SETS = policy_sets()
