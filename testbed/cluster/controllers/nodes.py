"""Nodes' lives: heartbeats, Ready and Unknown, the taints these bring, and pods that have to leave.

What upstream splits into node lifecycle and taint eviction controllers (kube-controller-manager); the
decisions are ``control.nodelifecycle``'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from testbed.cluster.clock import Clock
from testbed.cluster.events import Recorder
from testbed.control import nodelifecycle, podstatus
from testbed.objects.store import Event, Store

Object = dict[str, Any]
Name = tuple[str, str]  # namespace, name


class Nodes:
    """The nodes of one store. clocks: what ``spec.kubelet`` sets, by its names, in seconds."""

    def __init__(self, store: Store, clock: Clock, recorder: Recorder, clocks: Mapping[str, float]) -> None:
        self._store, self._clock, self._recorder = store, clock, recorder
        self.clocks = {**nodelifecycle.CLOCKS, **clocks}
        self._heard: dict[str, float] = {}  # node → when it last said something
        self._networks: dict[str, str] = {}  # node → why its runtime has no network
        self._due_nodes: dict[str, None] = {}
        self._due_pods: dict[str, None] = {}
        self._pods: defaultdict[str, dict[str, Name]] = defaultdict(dict)  # node → its pods by uid
        self._tainted: dict[str, list[Object]] = {}  # node → its NoExecute taints, where it has any
        self._leaving: dict[str, tuple[float, Callable[[], None]]] = {}  # uid → when it is evicted
        self._watching = False

    # --- what happens -------------------------------------------------------------------------------

    def heard(self, node: str) -> None:
        """A node's agent said that it lives."""
        new = node not in self._heard
        self._heard[node] = self._clock.now()
        found = self._store.find("Node", "", node)
        if found is not None and nodelifecycle.ready(found) != "True":
            self._due_nodes[node] = None
        if new and not self._watching:
            self._watching = True
            self._clock.later(self.clocks["nodeMonitorPeriod"], self._look)

    def network_status(self, node: str, problem: str) -> None:
        """A node's runtime has no network, or ("") has one again. Of what is no node any more nothing is
        kept: who is asked for last, while it leaves, may answer late."""
        if self._store.find("Node", "", node) is None:
            return
        self._networks[node] = problem
        self._due_nodes[node] = None

    def lacks_network(self, node: str) -> bool:
        """Whether a node's runtime has no network."""
        return bool(self._networks.get(node))

    def _look(self) -> None:
        """Look which nodes have been silent for too long, again and again."""
        silent = self._clock.now() - self.clocks["nodeMonitorGracePeriod"]
        for node, heard in self._heard.items():
            found = self._store.find("Node", "", node)
            if heard <= silent and found is not None and nodelifecycle.ready(found) in ("True", "False"):
                self._due_nodes[node] = None
        self._clock.later(self.clocks["nodeMonitorPeriod"], self._look)

    @property
    def due(self) -> bool:
        """Whether a node changed its state, or a pod has to leave."""
        return bool(self._due_nodes or self._due_pods)

    def observe(self, event: Event) -> None:
        """Take note of nodes' taints and of the pods on nodes."""
        obj = event.object
        if obj["kind"] == "Pod":
            self._observe_pod(event)
        elif obj["kind"] == "Node":
            name = obj["metadata"]["name"]
            found = nodelifecycle.evicting(obj) if event.type != "DELETED" else []
            if found != self._tainted.get(name, []):
                self._tainted[name] = found
                for uid in self._pods[name]:
                    self._due_pods[uid] = None
                if not found:
                    del self._tainted[name]
            if event.type == "DELETED":
                self._heard.pop(name, None)
                self._networks.pop(name, None)

    def _observe_pod(self, event: Event) -> None:
        metadata, node = event.object["metadata"], event.object["spec"].get("nodeName")
        uid = metadata["uid"]
        if event.type == "DELETED":
            self._pods[node].pop(uid, None)
            self._stay(uid)
        elif node and uid not in self._pods[node]:
            self._pods[node][uid] = metadata["namespace"], metadata["name"]
            if node in self._tainted:
                self._due_pods[uid] = None

    # --- what is done -------------------------------------------------------------------------------

    def run(self) -> None:
        """Write what nodes have become; evict what has to leave."""
        while self.due:
            for node in list(self._due_nodes):
                del self._due_nodes[node]
                self._judge(node)
            for uid in list(self._due_pods):
                del self._due_pods[uid]
                self._consider(uid)

    def _judge(self, name: str) -> None:
        node = self._store.find("Node", "", name)
        if node is None or name not in self._heard:
            return
        now, heard = self._clock.now(), self._heard[name]
        alive = heard > now - self.clocks["nodeMonitorGracePeriod"]
        before = nodelifecycle.ready(node)
        status = node.get("status") or {}
        network = self._networks.get(name, "")
        conditions = nodelifecycle.conditions(status.get("conditions") or (), alive, heard, now, network)
        node = self._store.update_status({**node, "status": {**status, "conditions": conditions}})
        taints = nodelifecycle.taints(node, now)
        if taints != (node["spec"].get("taints") or []):
            spec = {key: value for key, value in node["spec"].items() if key != "taints"}
            node = {**node, "spec": {**spec, **({"taints": taints} if taints else {})}}
            self._store.update(node, trusted=True)
        after = nodelifecycle.ready(node)
        if after == before or (not alive and before != "True"):
            return
        state = "NodeReady" if after == "True" else "NodeNotReady"
        text = f"Node {name} status is now: {state}"
        self._recorder.record(node, "Normal", state, text, "kubelet" if alive else "node-controller")
        if not alive:  # what a kubelet says of its pods itself stands
            for pod in self._pods_on(name):
                self._not_ready(pod)

    def _pods_on(self, node: str) -> list[Object]:
        found = [self._store.find("Pod", *name) for name in self._pods[node].values()]
        return [pod for pod in found if pod is not None]

    def _not_ready(self, pod: Object) -> None:
        """``controller/util/node.MarkPodsNotReady``: the Ready condition alone, reason and all else kept."""
        status, now = pod.get("status") or {}, podstatus.timestamp(self._clock.now())
        conditions = [
            {**entry, "status": "False", "lastTransitionTime": now}
            if entry["type"] == "Ready" and entry["status"] != "False"
            else entry
            for entry in status.get("conditions") or ()
        ]
        if conditions == status.get("conditions"):
            return
        self._store.update_status({**pod, "status": {**status, "conditions": conditions}})
        self._recorder.record(pod, "Warning", "NodeNotReady", "Node is not ready", "node-controller")

    # --- eviction -----------------------------------------------------------------------------------

    def _consider(self, uid: str) -> None:
        """Evict a pod that has to leave now, or remember when it has to."""
        where = next(((node, pods[uid]) for node, pods in self._pods.items() if uid in pods), None)
        pod = self._store.find("Pod", *where[1]) if where else None
        if where is None or pod is None or pod["metadata"]["uid"] != uid:
            return
        if "deletionTimestamp" in pod["metadata"]:
            return
        now = self._clock.now()
        at = nodelifecycle.eviction_time(pod, self._tainted.get(where[0], []), now)
        planned = self._leaving.get(uid)
        if planned and at is not None and at >= planned[0] > now:
            return
        self._stay(uid)
        if at is None:
            return
        if at > now:
            self._leaving[uid] = at, self._clock.later(at - now, lambda: self._due_pods.update({uid: None}))
            return
        self._evict(pod)

    def _stay(self, uid: str) -> None:
        planned = self._leaving.pop(uid, None)
        if planned:
            planned[1]()

    def _evict(self, pod: Object) -> None:
        metadata = pod["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        text = f"Marking for deletion Pod {name}"
        self._recorder.record(pod, "Normal", "TaintManagerEviction", text, "taint-eviction-controller")
        status, now = pod.get("status") or {}, podstatus.timestamp(self._clock.now())
        target = (
            "True",
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
        )
        others = [entry for entry in status.get("conditions") or () if entry["type"] != "DisruptionTarget"]
        conditions = [*others, podstatus.condition((), "DisruptionTarget", target, now)]
        self._store.update_status({**pod, "status": {**status, "conditions": conditions}})
        grace = podstatus.termination_grace(pod)
        self._store.delete("Pod", metadata["namespace"], metadata["name"], grace=grace)
