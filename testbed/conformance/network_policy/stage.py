"""The cluster that recorded cases are played on: brought from one state to the next by what differs.

Pods ask for their recorded addresses and are put on the node that these are of. Where a cluster cannot give
them, the policies' ranges are rewritten to the pods' real addresses, so that each holds the same pods.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Set
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from testbed.api.client import RequestFailed
from testbed.api.cluster import Cluster
from testbed.api.manifests import path_of
from testbed.conformance.network_policy.cases import Object, PodKey, Recorded, World, address_of
from testbed.control.workloads import is_ready
from testbed.errors import InputError
from testbed.kernel.capabilities import missing
from testbed.objects.kinds import BY_NAME
from testbed.wait import wait_until

log = logging.getLogger(__name__)

READY_WITHIN = 30.0
"""Seconds in which new pods have to be ready."""
GONE_WITHIN = 30.0
"""Seconds in which what is deleted has to be gone."""
UNLIMITED = (("net.ipv4.icmp_ratemask", "0"), ("net.ipv6.icmp.ratemask", ""))
"""Settings by which a node answers every rejected packet, not six and then one a second."""

CLUSTER_WIDE = ("ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy")

Network = IPv4Network | IPv6Network


class Stage:
    """What is on the cluster now, as a ``World``."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = World()
        self.sctp = not missing(["sctp"])
        self._nodes: list[Object] = cluster.client.get("/api/v1/nodes")["items"]
        self._rewriting = False
        self._real: dict[PodKey, str] = {}
        self._put: dict[PodKey, Object] = {}  # policies, as they were given to the cluster
        self._limits = {name: self._unlimit(name) for name in self.node_names}
        if not self.sctp:
            log.warning("this kernel has no SCTP: tables of SCTP are left to one that has")

    @property
    def node_names(self) -> list[str]:
        """The nodes."""
        return [node["metadata"]["name"] for node in self._nodes]

    def _unlimit(self, node: str) -> dict[str, str]:
        """Lift a node's limit of ICMP errors; the settings as they were."""
        before: dict[str, str] = {}
        for name, value in UNLIMITED:
            told = self.cluster.node(node).run(["sysctl", "-n", name])
            if told.code == 0:
                before[name] = told.stdout.strip()
                self._set(node, name, value)
        return before

    def _set(self, node: str, name: str, value: str) -> None:
        done = self.cluster.node(node).run(["sysctl", "-q", "-w", f"{name}={value}"])
        if done.code:
            raise InputError(f"{node}: {done.stderr.strip()}")

    def close(self) -> None:
        """Remove everything and give the nodes their limits back."""
        self._become(World())
        for node, limits in self._limits.items():
            for name, value in limits.items():
                self._set(node, name, value)

    # --- from one state to the next ------------------------------------------------------------------

    def begin(self, case: Recorded) -> None:
        """The state that a case begins from."""
        self._become(World.of(case.resources))

    def act(self, action: Object) -> None:
        """One action of a case."""
        wanted = copy.copy(self.world)
        wanted.namespaces, wanted.pods, wanted.policies = (
            dict(self.world.namespaces),
            dict(self.world.pods),
            dict(self.world.policies),
        )
        wanted.act(action)
        self._become(wanted)

    def settle(self) -> None:
        """Wait until all that was done is in force."""
        self.cluster.settle()

    def _become(self, wanted: World) -> None:
        """Policies that go come first, so that nothing of the last case holds while the rest changes."""
        now = self.world
        self._refuse_others(wanted.namespaces.keys() - now.namespaces.keys())
        for key in now.policies.keys() - wanted.policies.keys():
            self._delete("NetworkPolicy", *key)
            del self._put[key]
        for pod in now.pods.keys() - wanted.pods.keys():
            if pod[0] in wanted.namespaces:
                self._delete("Pod", *pod)
        gone = now.namespaces.keys() - wanted.namespaces.keys()
        for name in gone:
            self._delete("Namespace", "", name)
        self._await_gone(gone, now.pods.keys() - wanted.pods.keys())
        for name, namespace in wanted.namespaces.items():
            if name not in now.namespaces:
                self._apply(namespace)
            elif namespace != now.namespaces[name]:
                self._relabel(now.namespaces[name], namespace)
        self._make_pods(now, wanted)
        for key, policy in wanted.policies.items():
            self._put_policy(key, self._rewritten(policy, wanted) if self._rewriting else policy)
        self.world = wanted

    def _refuse_others(self, new: Set[str]) -> None:
        """Raises InputError where a namespace to be made is somebody's, or others' policies would count."""
        client = self.cluster.client
        there = (
            {each["metadata"]["name"] for each in client.get("/api/v1/namespaces")["items"]} if new else set()
        )
        if taken := sorted(new & there):
            raise InputError(
                f"namespace {', '.join(taken)} is there already, and these cases would delete it with all "
                "that is in it: delete it yourself, or use another cluster"
            )
        if self.world.namespaces or not new:
            return
        for kind in CLUSTER_WIDE:
            if found := [each["metadata"]["name"] for each in client.get(path_of(BY_NAME[kind]))["items"]]:
                raise InputError(
                    f"{kind} {', '.join(found)} would count in every case: delete it, or use another cluster"
                )

    def _make_pods(self, now: World, wanted: World) -> None:
        new = [pod for key, pod in wanted.pods.items() if key not in now.pods]
        if new:
            taken = self._taken()
            self._apply(*(self._placed(pod, taken) for pod in new))
            self._await_ready(wanted)
        for key, pod in wanted.pods.items():
            before = now.pods.get(key)
            if before is not None and pod["metadata"]["labels"] != before["metadata"]["labels"]:
                self._relabel(before, pod)

    def _placed(self, pod: Object, taken: set[str]) -> Object:
        """The pod on the node that its address is of, and with it, if that can be. taken: by others."""
        address = address_of(pod)
        for node in self._nodes:
            if any(ip_address(address) in ip_network(cidr) for cidr in node["spec"].get("podCIDRs") or ()):
                pod = {**pod, "spec": {**pod["spec"], "nodeName": node["metadata"]["name"]}}
                if address not in taken:
                    return pod
        if not self._rewriting:
            log.warning("%s cannot be had: ranges are rewritten to the pods' real addresses", address)
            self._rewriting = True
        return {**pod, "metadata": {**pod["metadata"], "annotations": {}}}

    def _taken(self) -> set[str]:
        """The addresses of pods that are there."""
        pods = self.cluster.client.get("/api/v1/pods")["items"]
        return {pod["status"]["podIP"] for pod in pods if pod.get("status", {}).get("podIP")}

    def _await_ready(self, wanted: World) -> None:
        late: list[str] = []

        def ready() -> bool:
            found = {
                (pod["metadata"]["namespace"], pod["metadata"]["name"]): pod
                for pod in self.cluster.client.get("/api/v1/pods")["items"]
            }
            late[:] = ["/".join(key) for key in wanted.pods if key not in found or not is_ready(found[key])]
            self._real = {
                key: found[key]["status"]["podIP"]
                for key in wanted.pods
                if key in found and found[key].get("status", {}).get("podIP")
            }
            return not late

        wait_until(ready, READY_WITHIN, "the pods are ready", interval=0.02, detail=lambda: ", ".join(late))

    def _await_gone(self, namespaces: Any, pods: Any) -> None:
        for kind, keys in (("Pod", pods), ("Namespace", {("", name) for name in namespaces})):
            for namespace, name in keys:
                path = path_of(BY_NAME[kind], namespace, name)
                wait_until(lambda path=path: not self._there(path), GONE_WITHIN, f"{path} is gone")  # type: ignore[misc]

    # --- requests ----------------------------------------------------------------------------------------

    def _there(self, path: str) -> bool:
        try:
            self.cluster.client.get(path)
        except RequestFailed as error:
            if error.reason == "NotFound":
                return False
            raise
        return True

    def _apply(self, *objects: Object) -> None:
        self.cluster.client.post("/apis/testbed/v1/manifests", {"objects": list(objects)})

    def _delete(self, kind: str, namespace: str, name: str) -> None:
        self.cluster.client.delete(path_of(BY_NAME[kind], namespace, name))

    def _relabel(self, before: Object, after: Object) -> None:
        """Replace all labels."""
        old, new = before["metadata"]["labels"], after["metadata"]["labels"]
        metadata = after["metadata"]
        self.cluster.client.request(
            "PATCH",
            path_of(BY_NAME[after["kind"]], metadata.get("namespace", ""), metadata["name"]),
            {"metadata": {"labels": {**dict.fromkeys(old, None), **new}}},
            content_type="application/merge-patch+json",
        )

    def _put_policy(self, key: PodKey, policy: Object) -> None:
        """Create or update a policy, unless it is there as it is; ranges change when pods come with others'
        addresses than the recorded ones."""
        before, self._put[key] = self._put.get(key), policy
        kind = BY_NAME["NetworkPolicy"]
        if before is None:
            self.cluster.client.post(path_of(kind, key[0]), policy)
        elif before != policy:
            self.cluster.client.put(path_of(kind, *key), policy)

    # --- addresses ---------------------------------------------------------------------------------------

    def address(self, key: PodKey) -> str:
        """A pod's real address."""
        return self._real[key]

    def _rewritten(self, policy: Object, wanted: World) -> Object:
        pairs = [(address_of(pod), self._real[key]) for key, pod in wanted.pods.items()]
        copied = copy.deepcopy(policy)
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in copied["spec"].get(direction) or ():
                for peer in rule.get(peers) or ():
                    if "ipBlock" in peer:
                        peer["ipBlock"] = rewritten(peer["ipBlock"], pairs)
        return copied


def rewritten(block: Object, pairs: list[tuple[str, str]]) -> Object:
    """A range that holds the real addresses of those pods whose recorded ones ``block`` holds, and no others.

    pairs: (recorded, real). One that holds no pod stays as it is, unless by accident it holds real ones.
    """
    cidr = ip_network(block["cidr"])
    excepts = [ip_network(each) for each in block.get("except") or ()]
    inside = {real for recorded, real in pairs if ip_address(recorded) in cidr}
    members = {
        real
        for recorded, real in pairs
        if real in inside and not any(ip_address(recorded) in each for each in excepts)
    }
    whole = cidr if not inside else _around(inside)
    others = sorted(real for _, real in pairs if ip_address(real) in whole and real not in members)
    if not others:
        return {"cidr": str(whole)}
    return {"cidr": str(whole), "except": [str(ip_network(real)) for real in others]}


def _around(addresses: set[str]) -> Network:
    """The smallest range that holds them all."""
    found: Network = ip_network(min(addresses))
    while not all(ip_address(each) in found for each in addresses) or found.prefixlen == found.max_prefixlen:
        found = found.supernet()
    return found
