"""The control plane of one cluster: store → controllers → placement and addresses → per-node work.

Lives in the daemon's asyncio loop. A change flows one way; only the nodes it touches are compiled again.
"""

from __future__ import annotations

import asyncio
import logging
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Literal

from testbed.cluster.clock import Clock, WakingClock, timestamp
from testbed.cluster.compile import Compiler
from testbed.cluster.controllers import all_controllers
from testbed.cluster.controllers.nodes import Nodes
from testbed.cluster.events import Recorder
from testbed.cluster.messages import Connection
from testbed.cluster.naming import Naming
from testbed.cluster.proxying import Change, Proxying
from testbed.cluster.worker import NodeWorker
from testbed.control import nodelifecycle, podstatus, probes, scheduler, view
from testbed.control.containers import nameserver
from testbed.control.envvars import Links
from testbed.control.ipam import ASKED, AllocationError, GivenByNodes
from testbed.control.podfiles import container_env, resolver_warnings, sandbox_problem
from testbed.control.policies import KINDS as POLICY_KINDS
from testbed.control.policies import Policies
from testbed.control.served import KINDS as SERVED_KINDS
from testbed.control.served import Served
from testbed.control.snapshot import ClusterFacts, Node, Pod, Router, Snapshot
from testbed.control.workloads import is_ready
from testbed.dataplane import Dataplane, Pooling, Routing
from testbed.objects.status import ApiError
from testbed.objects.store import Event, Store
from testbed.policy.meaning import Flow, Meaning
from testbed.proxy import Proxier
from testbed.proxy.parameters import MIN_SYNC_PERIOD
from testbed.state import ContainerState, Daemon, NetnsState, NodeState

log = logging.getLogger(__name__)

Object = dict[str, Any]


NAMES_WITHIN = 5.0
"""Seconds that a starting cluster waits for its DNS servers; then it is up without."""

RETRY_SECONDS = 1.0
"""How long after a failure of ours everything that is due is looked at again."""


class ControlPlane:
    """Everything that decides. networks: node name → the subnets its own interface is in."""

    def __init__(
        self,
        store: Store,
        facts: ClusterFacts,
        dataplane: Dataplane,
        proxier: Proxier,
        networks: Mapping[str, tuple[str, ...]],
        clock: Clock,
    ) -> None:
        self.store, self.facts, self.clock = store, facts, clock
        self.recorder = Recorder(store, clock)
        self._networks = networks
        self._dataplane = dataplane
        self._compiler = Compiler(dataplane, proxier)
        period = float(facts.proxy_options.get("minSyncPeriod", MIN_SYNC_PERIOD))
        self.proxying = Proxying(clock, period, self._touch)
        self.naming = Naming(clock, self.snapshot, self.worker_done)
        self._served = Served()
        self._policies = Policies()
        self._judged: dict[str, NetnsState] = {}  # node → the rules by which connections were judged last
        self._nodes: dict[str, Node] = {}
        self._wake = asyncio.Event()
        waking = WakingClock(clock, self._wake.set)
        self.nodes = Nodes(store, waking, self.recorder, facts.kubelet)
        self._controllers = (*all_controllers(store, waking, self.recorder, facts), self.nodes)
        self._pods: dict[str, Object] = {}  # uid → Pod object, bound ones
        self._typed: dict[str, Pod] = {}
        self._on_node: defaultdict[str, dict[str, None]] = defaultdict(dict)  # node → uids, in order
        self._unplaced: dict[str, Object] = {}
        self._without_address: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._leaving: defaultdict[str, set[str]] = defaultdict(
            set
        )  # node → uids whose address is still used
        self._loads: defaultdict[str, scheduler.NodeLoad] = defaultdict(scheduler.NodeLoad)
        self._refused: dict[str, Object] = {}  # uid → spec that fits nowhere among …
        self._placed_among: object = None  # … these versions of nodes, namespaces and loads
        self.ipam = dataplane.ipam(facts)
        self._given: dict[str, tuple[str, ...]] = {}  # uid → addresses that the pod's node gave it
        self._unaddressed: defaultdict[str, dict[str, Pod]] = defaultdict(dict)  # node → those that wait
        self._had_pods: set[str] = set()
        self._node_problems: dict[str, str] = {}
        self._warned: dict[str, str] = {}
        self._made: dict[str, float] = {}  # uid → when its node had made it
        self._containers: dict[str, tuple[ContainerState, ...]] = {}  # uid → what its node said of them
        self._told: dict[str, dict[str, Links]] = {}  # uid → container → Services when it was started
        self._stale: dict[str, None] = {}  # uids whose status is to be written
        self._ended: dict[str, None] = {}  # uids that nothing is left of but the object
        self._snapshot: Snapshot | None = None
        self._seen_pods: tuple[Pod, ...] = ()
        self._quiet = asyncio.Condition()
        self.workers: dict[str, NodeWorker] = {}
        self.perturb: Callable[[str, NodeState], NodeState] = lambda node, state: state
        """What faults make of a node's state."""
        self.held: dict[str, frozenset[Literal["services", "policy"]]] = {}
        """Node → whose rules there stay as they are, as nobody makes them anew."""
        self.beside: list[Callable[[], bool]] = [lambda: not self.naming.behind]
        """What else has to be idle for the cluster to be settled; who does it calls ``worker_done``."""
        self._unsubscribe: Callable[[], None] = store.subscribe(self._observe)
        for obj in store.everything():
            self._observe(Event("ADDED", obj))

    # --- what happens in the store ------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        for controller in self._controllers:
            controller.observe(event)
        obj = event.object
        if obj["kind"] == "Pod":
            if event.type == "DELETED":
                self._forget(obj)
            else:
                self._note(obj)
        elif obj["kind"] == "Node":
            self._observe_node(event)
        elif obj["kind"] in SERVED_KINDS:
            self._observe_served(event)
        elif obj["kind"] in POLICY_KINDS:
            self._observe_policy(event)
        self._wake.set()

    def _observe_node(self, event: Event) -> None:
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            self._nodes.pop(name, None)  # one that could not be taken in is not there
            self.ipam.remove_node(name)
            self._compiler.forget(name)
            self._judged.pop(name, None)
            self._had_pods.discard(name)
            self.proxying.forget(name)
            self.held.pop(name, None)
            self._snapshot = None
            self._touch(*self.workers)
            self._look_at_held()
            return
        if event.old and nodelifecycle.ready(event.old) != "True" == nodelifecycle.ready(event.object):
            self._stale |= dict.fromkeys(self._on_node[name])
        if name not in self._nodes:
            self.ipam.add_node(name, view.typed_node(event.object).pod_cidrs)
        self._type_node(event.object)
        self._look_at_held()

    def _type_node(self, obj: Object) -> None:
        """Keep the node typed; one that compilers see otherwise than before concerns every node."""
        name = obj["metadata"]["name"]
        known = self._nodes.get(name)
        node = view.typed_node(
            obj,
            self._networks.get(name),
            had_pods=name in self._had_pods,
            pooled=isinstance(self._dataplane, Pooling),
            held=self.ipam.held(name),
        )
        if node == known:
            return
        self._nodes[name], self._snapshot = node, None
        if known is None or _wiring_view(known) != _wiring_view(node):
            self._touch(*self.workers)
        self._touch_services(name)

    def _look_at_held(self) -> None:
        """What nodes have of a pool that they share concerns every node's wiring."""
        for name in self.ipam.changed():
            if name in self._nodes and (node := self.store.find("Node", "", name)) is not None:
                self._type_node(node)

    def held_changed(self) -> None:
        """What nodes have of a pool that they share was changed from outside: nodes and pods that wait for an
        address are looked at again."""
        self._look_at_held()
        self._wake.set()

    def _observe_served(self, event: Event) -> None:
        """A change of what Services lead to concerns the service rules of every node."""
        obj = event.object
        gone = event.type == "DELETED"
        if not (self._served.drop(obj) if gone else self._served.put(obj)):
            return
        self._snapshot = None
        change = self._change(event)
        self._touch_services(*self.workers, change=change)
        self.naming.changed(change)

    def _change(self, event: Event) -> Change:
        metadata = event.object["metadata"]
        return Change(
            event.version,
            event.kind,
            metadata.get("namespace", ""),
            metadata["name"],
            event.type.lower(),
            self.clock.now(),
        )

    def _observe_policy(self, event: Event) -> None:
        """A change of a policy, or of what its selectors see of a namespace, concerns every node."""
        gone = event.type == "DELETED"
        if self._policies.drop(event.object) if gone else self._policies.put(event.object):
            self._snapshot = None
            if event.kind == "Namespace":
                self.naming.changed(self._change(event))
            if self._policies.policies or event.kind != "Namespace":
                self._touch(*self.workers)

    def _note(self, pod: Object) -> None:
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
        if not node:
            self._unplaced[uid] = pod
            return
        known = self._pods.get(uid)
        self._pods[uid] = pod
        self._loads[node].put(pod)
        self._unplaced.pop(uid, None)
        if known is None:
            self._on_node[node][uid] = None
            ips = _recorded(pod)
            if ips and (pod["spec"].get("hostNetwork") or not isinstance(self.ipam, GivenByNodes)):
                if not pod["spec"].get("hostNetwork"):
                    self.ipam.adopt(node, uid, ips)
                self._type(pod, ips)
            else:
                self._without_address[node][uid] = None
            self._touch(node)
        elif uid in self._typed and (_network_view(known) != _network_view(pod) or _hurried(known, pod)):
            self._type(pod, self._typed[uid].ips)
            self._touch(node)
        if "deletionTimestamp" in pod["metadata"] and not (
            known and "deletionTimestamp" in known["metadata"]
        ):
            self._end(pod)
        elif known is not None and _status_view(known) != _status_view(pod):
            self._stale[uid] = None

    def _end(self, pod: Object) -> None:
        """A pod is being deleted. What ends at once goes from its node; the rest is ended by the node."""
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        if uid in self._unaddressed[node]:  # what plugins have wired so far is taken down first
            self._leave(uid, node)
            return
        if uid not in self._typed:  # nothing of it is on the node
            self._ended[uid] = None
            return
        for container in pod["spec"]["containers"]:
            text = f"Stopping container {container['name']}"
            self.recorder.record(pod, "Normal", "Killing", text, "kubelet")
        for container in podstatus.skipped_stop_hooks(pod):
            text = f"PreStopHook of container {container} is not carried out: only sleeping is"
            self.recorder.record(pod, "Warning", "FailedPreStopHook", text, "kubelet")
        lingers = podstatus.linger(pod) or (
            self.facts.allow_commands and any(c.get("command") for c in pod["spec"]["containers"])
        )
        if lingers and uid in self._made:
            self._type(pod, self._typed[uid].ips)
            self._touch(node)
        else:
            self._leave(uid, node)

    def _leave(self, uid: str, node: str) -> None:
        """The pod is no longer wanted on its node; its address is free when the node has removed it."""
        self._without_address[node].pop(uid, None)
        self._unaddressed[node].pop(uid, None)
        self._given.pop(uid, None)
        self._typed.pop(uid, None)
        self._leaving[node].add(uid)
        self._snapshot = None
        self._touch(node)
        self._touch_policies(node)

    def _forget(self, pod: Object) -> None:
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
        self._unplaced.pop(uid, None)
        for noted in (
            *(self._warned, self._refused, self._made, self._containers, self._told),
            *(self._stale, self._ended),
        ):
            noted.pop(uid, None)
        if self._pods.pop(uid, None) is None or not node:
            return
        del self._on_node[node][uid]
        self._loads[node].drop(uid)
        if uid in self._typed or uid in self._without_address[node]:
            self._leave(uid, node)
        if node in self.workers and not self.workers[node].alive:  # nobody is left to remove it
            self._release(node, {uid})

    def _type(self, pod: Object, ips: tuple[str, ...]) -> None:
        typed = self._typed[pod["metadata"]["uid"]] = view.typed_pod(pod, ips)
        self._snapshot = None
        if not typed.host_network and typed.node not in self._had_pods:
            self._had_pods.add(typed.node)
            if (node := self.store.find("Node", "", typed.node)) is not None:
                self._type_node(node)
        self._touch_policies(typed.node)

    def _touch(self, *nodes: str) -> None:
        for node in nodes:
            if node in self.workers:
                self.workers[node].touch()

    def _touch_policies(self, first: str) -> None:
        """Where rules speak of them, a pod's labels and addresses concern every node, its own first."""
        if self._policies.policies or self._compiler.names_all_pods:
            self._touch(first, *(node for node in self.workers if node != first))

    def _touch_services(self, *nodes: str, change: Change | None = None) -> None:
        for node in nodes:
            if node in self.workers:
                self.proxying.changed(node, change)

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Act on changes until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                self.step()
            except Exception:
                # What is wrong may be changed, and until then the rest goes on.
                log.exception("the control plane could not decide")
                self.clock.later(RETRY_SECONDS, self._wake.set)
            async with self._quiet:
                self._quiet.notify_all()

    def step(self) -> None:
        """Controllers, placement, addresses: all that can be decided now."""
        while self._due or self._ended or self._stale:
            for controller in self._controllers:
                controller.run()
            self._write_statuses()
            self._delete_ended()
        self._place()
        if self._due:
            self._wake.set()
        for node in list(self._without_address):
            self._give_addresses(node)

    def _place(self) -> None:
        if not self._unplaced:
            return
        namespaces, nodes = self.store.list("Namespace"), self.store.list("Node")
        loads = {node["metadata"]["name"]: self._loads[node["metadata"]["name"]] for node in nodes}
        labels = {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in namespaces}
        chooser = scheduler.Scheduler(nodes, loads, labels)
        versions = [each["metadata"]["resourceVersion"] for each in (*nodes, *namespaces)]
        seen = (versions, [load.version for load in loads.values()])
        if seen != self._placed_among:
            self._placed_among = seen
            self._refused.clear()
        for uid, pod in list(self._unplaced.items()):
            if self._refused.get(uid) is pod["spec"]:
                continue
            try:
                node = chooser.place(pod)
            except scheduler.Unschedulable as reason:
                self._refused[uid] = pod["spec"]
                self._warn(pod, "FailedScheduling", str(reason), scheduler.COMPONENT)
                self._condition(pod, "PodScheduled", "False", "Unschedulable", str(reason))
                continue
            except Exception as error:  # noqa: BLE001 - one pod's oddity must not stop the others
                self._failed(pod, "FailedScheduling", error)
                continue
            del self._unplaced[uid]
            self._warned.pop(uid, None)
            self.store.update(
                {
                    **pod,
                    "spec": {**pod["spec"], "nodeName": node},
                    "status": _scheduled(pod, timestamp(self.clock.now())),
                },
                trusted=True,
            )
            metadata = pod["metadata"]
            text = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
            self.recorder.record(pod, "Normal", "Scheduled", text, scheduler.COMPONENT)

    def _give_addresses(self, node: str) -> None:
        if node not in self._nodes or self.store.find("Node", "", node) is None:
            return
        for uid in list(self._without_address[node]):
            pod = self._pods[uid]
            try:
                self._give_address(node, uid, pod)
            except Exception as error:  # noqa: BLE001 - one pod's oddity must not stop the others
                self.ipam.release(node, uid)
                self._failed(pod, "FailedCreatePodSandBox", error)
        self._look_at_held()

    def _give_address(self, node: str, uid: str, pod: Object) -> None:
        if pod["spec"].get("hostNetwork"):
            ips = view.typed_node(self.store.get("Node", "", node)).addresses
        else:
            asked = (pod["metadata"].get("annotations") or {}).get(ASKED, "")
            try:
                ips = self.ipam.allocate(node, uid, asked)
            except AllocationError as error:
                self._unmade(pod, "FailedCreatePodSandBox", str(error))
                return
        if problem := sandbox_problem(self.facts, view.typed_pod(pod, ips)):
            self.ipam.release(node, uid)
            self._unmade(pod, "FailedCreatePodSandBox", problem)
            return
        ips = ips or self._given.get(uid, ())
        if not ips:
            self._have_addressed(node, uid, pod)
            return
        self._unaddressed[node].pop(uid, None)
        del self._without_address[node][uid]
        self._warned.pop(uid, None)
        self._type(pod, ips)
        self._touch(node)

    def _have_addressed(self, node: str, uid: str, pod: Object) -> None:
        """Have the pod's node give it an address."""
        if uid not in self._unaddressed[node]:
            self._unaddressed[node][uid] = view.typed_pod(pod, ())
            self._snapshot = None
            self._touch(node)

    def sandbox_ready(self, uid: str, addresses: tuple[str, ...]) -> None:
        """The node gave a pod these addresses."""
        pod = self._pods.get(uid)
        if pod is not None and uid in self._without_address[pod["spec"]["nodeName"]]:
            self._given[uid] = addresses
            self._wake.set()
        elif pod is not None and uid in self._typed and self._typed[uid].ips != addresses:
            # Its node was started anew, and its plugins gave it another one.
            self._type(pod, addresses)
            self._stale[uid] = None
            self._touch(pod["spec"]["nodeName"])
            self._wake.set()

    def sandbox_stuck(self, uid: str, message: str) -> None:
        """The node cannot take a pod's sandbox down yet; it goes on trying."""
        if (pod := self._pods.get(uid)) is not None:
            self._warn(pod, "FailedKillPod", message)

    def _failed(self, pod: Object, reason: str, error: Exception) -> None:
        """A failure of ours over one pod: in the log in full, and told where its other troubles are."""
        log.error("%s/%s", pod["metadata"]["namespace"], pod["metadata"]["name"], exc_info=error)
        self._warn(pod, reason, f"internal failure: {type(error).__name__}: {error}")

    @property
    def _due(self) -> bool:
        return any(controller.due for controller in self._controllers)

    # --- for the node workers -----------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The cluster as compilers see it now."""
        if self._snapshot is None:
            pods = tuple(self._typed.values())
            if len(pods) != len(self._seen_pods) or any(map(operator.is_not, pods, self._seen_pods)):
                self._seen_pods = pods
            self._snapshot = Snapshot(
                self.facts,
                tuple(self._nodes[name] for name in sorted(self._nodes)),
                self._seen_pods,
                self._served.services,
                self._served.slices,
                self._served.service_cidrs,
                self._policies.policies,
                self._policies.namespaces,
                {node: tuple(pods.values()) for node, pods in self._unaddressed.items() if pods},
            )
        return self._snapshot

    def desired(self, node: str) -> NodeState:
        """What ``node`` should look like now; its service rules only if their time has come."""
        snapshot = self.snapshot()
        if node not in snapshot.node:  # its object was deleted
            return NodeState()
        held = self.held.get(node, frozenset())
        now = "services" not in held and (node not in self.workers or self.proxying.begin(node))
        state = self._compiler.compile(
            snapshot, snapshot.node[node], services=now, policy="policy" not in held
        )
        return self.perturb(node, state)

    def judge(self, node: str) -> Callable[[Connection], bool] | None:
        """Whether open connections are still allowed; None where nothing about that changed on the node since
        ``judged`` was told."""
        if self.facts.policy_on_change != "cut" or node not in self.snapshot().node:
            return None
        rules = self._judging(node)
        known = self._judged.get(node, NetnsState())
        if rules is known or rules == known == NetnsState():
            return None  # where the last rule went, what was cut off still has to be let go on
        meaning = Meaning(self.snapshot())
        judged: dict[Flow, bool] = {}  # many connections differ in their source port alone

        def allowed(each: Connection) -> bool:
            flow = Flow(each.source, each.destination, each.protocol, each.port)
            if flow not in judged:
                judged[flow] = meaning.allowed_on(node, flow)
            return judged[flow]

        return allowed

    def judged(self, node: str) -> None:
        """The node's open connections were dealt with as ``judge`` said; it may have left meanwhile."""
        if node in self._nodes:
            self._judged[node] = self._judging(node)

    def _judging(self, node: str) -> NetnsState:
        """The rules that may cut connections off: none where there is no policy."""
        return self._compiler.policy(node) if self._policies.policies else NetnsState()

    def fabric_changed(self, routers: tuple[Router, ...]) -> None:
        """The fabric's routers know other addresses of machines."""
        self.facts = replace(self.facts, routers=routers)
        self._snapshot = None
        self._touch(*self.workers)

    def router_daemons(self) -> Mapping[str, Mapping[str, Daemon]]:
        """What the dataplane has routers of the fabric run."""
        dataplane = self._dataplane
        return dataplane.routers(self.snapshot()) if isinstance(dataplane, Routing) else {}

    def services(self, node: str) -> NetnsState:
        """The service rules that were last made for ``node``, alone."""
        return self._compiler.services(node)

    def services_applied(self, node: str, done: bool) -> None:
        """What was last compiled for the node is in force there, or could not be brought there."""
        self.proxying.over(node, done)

    def pods_made(self, uids: Iterable[str]) -> None:
        """These pods are in the kernel and answer: say so in their status."""
        for uid in uids:
            pod = self._pods.get(uid)
            if pod is None or uid not in self._typed:
                continue
            self._made[uid] = self.clock.now()
            self._told[uid] = dict.fromkeys(self._names(uid), self._links_now(uid))
            self._write_status(uid)
            self._tell_skipped(pod)
            for reason, text in resolver_warnings(self.facts, self._typed[uid]):
                self.recorder.record(pod, "Warning", reason, text, "kubelet")

    def _tell_skipped(self, pod: Object) -> None:
        """Say which probes are not run, so that nobody trusts them."""
        allow = self.facts.allow_commands
        for container in self._typed[pod["metadata"]["uid"]].containers:
            for kind in probes.skipped(container, allow) if container.probes else ():
                text = probes.skipped_text(kind, container.name)
                self.recorder.record(pod, "Warning", "ProbeWarning", text, "kubelet")

    def heard(self, node: str) -> None:
        """The node's agent said that it lives."""
        self.nodes.heard(node)
        if self.nodes.due:
            self.nodes.run()

    def pod_changed(self, uid: str, containers: tuple[ContainerState, ...]) -> None:
        """The node says how these containers of a pod are now; of the others they are as at first."""
        if uid not in self._pods:
            return
        before = {state.name: state.restarts for state in self._containers.get(uid, ())}
        self._containers[uid] = containers
        self._stale[uid] = None
        self._wake.set()
        for state in containers:
            if uid in self._told and state.restarts > before.get(state.name, 0):
                self._told[uid][state.name] = self._links_now(uid)

    def _names(self, uid: str) -> list[str]:
        return [container.name for container in self._typed[uid].containers]

    def _links_now(self, uid: str) -> Links:
        return self._compiler.links.of(self.snapshot(), self._typed[uid])

    def environment(self, pod: Pod, name: str) -> dict[str, str]:
        """The environment of a container's processes: it knows the Services of when it was started."""
        container = next(container for container in pod.containers if container.name == name)
        told = self._told.get(pod.uid, {}).get(name)
        return container_env(
            self.snapshot(), pod, container, self._links_now(pod.uid) if told is None else told
        )

    def pod_event(self, uid: str, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """The node has something to tell about a pod."""
        if (pod := self._pods.get(uid)) is not None:
            self.recorder.record(pod, kind, reason, message, "kubelet")

    def pod_ended(self, uid: str) -> None:
        """Nothing of a pod that is being deleted runs any more: its node may remove it."""
        if uid in self._typed:
            self._leave(uid, self._typed[uid].node)

    def not_running(self) -> list[str]:
        """Pods (uids) that have a node and an address and whose status does not say yet that they run."""
        return [uid for uid in self._typed if uid not in self._made and _waits(self._pods[uid])]

    def pod_failed(self, uid: str, message: str, reason: str = "FailedCreatePodSandBox") -> None:
        """The node could not make this pod; it will be tried again. reason: of the event."""
        pod = self._pods.get(uid)
        if pod is not None:
            if self.nodes.lacks_network(pod["spec"]["nodeName"]):
                reason = "NetworkNotReady"
            self._unmade(pod, reason, message)

    def pod_warned(self, uid: str, message: str) -> None:
        """The pod runs, but something of it does not: an event says so."""
        pod = self._pods.get(uid)
        if pod is not None:
            self._warn(pod, "Failed", message)

    def pods_removed(self, node: str, kept: Iterable[str]) -> None:
        """The node applied a state with only the pods ``kept``: what else was there is gone."""
        gone = self._leaving[node] - set(kept)
        if gone:
            self._release(node, gone)
            self._ended |= {uid: None for uid in gone if uid in self._pods}

    def _release(self, node: str, uids: set[str]) -> None:
        """The addresses of these pods are free."""
        for uid in uids:
            self.ipam.release(node, uid)
        self._look_at_held()
        self._leaving[node] -= uids
        self._wake.set()

    # --- statuses -----------------------------------------------------------------------------------

    def _write_statuses(self) -> None:
        for uid in list(self._stale):
            del self._stale[uid]
            if uid in self._made and uid in self._typed:
                self._write_status(uid)

    def _write_status(self, uid: str) -> None:
        """Write what the pod's node knows of it, as its kubelet would, unless that one is silent."""
        pod = self._pods[uid]
        try:
            self._write_told(pod, self._typed[uid])
        except Exception as error:  # noqa: BLE001 - one pod's oddity must not stop the others
            self._failed(pod, "Failed", error)

    def _write_told(self, pod: Object, typed: Pod) -> None:
        node = self.store.find("Node", "", typed.node)
        if node is None or nodelifecycle.ready(node) == "Unknown":
            return
        status = podstatus.status(
            pod, self._states(typed), typed.ips, view.typed_node(node).addresses, self.clock.now()
        )
        self.store.update_status({**pod, "status": status})

    def _states(self, pod: Pod) -> list[ContainerState]:
        names = [container.name for container in pod.containers]
        kinds = {c.name: probes.kinds(c, self.facts.allow_commands) for c in pod.containers if c.probes}
        told = {state.name: state for state in self._containers.get(pod.uid, ())}
        first = podstatus.unstarted(kinds, names, self._made[pod.uid])
        return [told.get(state.name, state) for state in first]

    def _delete_ended(self) -> None:
        """Delete the objects of pods that were being deleted and of which nothing is left."""
        for uid in list(self._ended):
            del self._ended[uid]
            metadata = self._pods[uid]["metadata"]
            if "deletionTimestamp" in metadata:
                self.store.delete("Pod", metadata["namespace"], metadata["name"], uid=uid)

    # --- nodes that leave, and that fail ------------------------------------------------------------

    def collect(self, name: str) -> None:
        """Delete the pods that are bound to a node that is no more, without waiting for them to end."""
        for uid in list(self._on_node[name]):
            metadata = self._pods[uid]["metadata"]
            self.store.delete("Pod", metadata["namespace"], metadata["name"], uid=uid)
        self._node_problems.pop(name, None)

    def dismiss(self, name: str) -> NodeWorker | None:
        """Have nobody work for a node that is no more; returns who did."""
        worker = self.workers.pop(name, None)
        # What changed while it was being emptied was for rules that are gone.
        self.proxying.forget(name)
        self._node_problems.pop(name, None)
        return worker

    def node_failed(self, name: str, message: str) -> None:
        """What of a node's own network could not be made; "": now it is."""
        if message:
            self._node_problems[name] = message
            if (node := self.store.find("Node", "", name)) is not None:  # else it leaves
                self.recorder.record(node, "Warning", "NetworkNotReady", message, "kubelet")
        else:
            self._node_problems.pop(name, None)

    def network_status(self, name: str, message: str) -> None:
        """The plugins of a node's runtime cannot be used; "": they can."""
        self.nodes.network_status(name, message)
        self.nodes.run()

    def rebooted(self, name: str) -> None:
        """A node that crashed is about to come back with nothing on it: what was ending there has ended."""
        self.proxying.over(name, False)
        self._judged.pop(name, None)
        self.nodes.network_status(name, "")
        for uid in list(self._on_node[name]):
            self._containers.pop(uid, None)
            if "deletionTimestamp" in self._pods[uid]["metadata"]:
                self.pod_ended(uid)

    def readdress(self, name: str, addresses: list[Object]) -> Object:
        """A node has other addresses, and so have its pods with hostNetwork; the statuses of all say so.
        Returns the Node."""
        node = self.store.get("Node", "", name)
        node = self.store.update_status({**node, "status": {**node["status"], "addresses": addresses}})
        for uid in list(self._on_node[name]):
            if uid in self._typed and self._typed[uid].host_network:
                self._type(self._pods[uid], self._nodes[name].addresses)
            if uid in self._made:
                self._stale[uid] = None
            elif (self._pods[uid].get("status") or {}).get("containerStatuses") and _waits(self._pods[uid]):
                self._write_creating(self._pods[uid], node)
        self._wake.set()
        return node

    def failing_nodes(self) -> dict[str, str]:
        """Node → what is wrong with it: its network, or that its agent does not answer."""
        silent = {
            node["metadata"]["name"]: condition.get("message", "")
            for node in self.store.list("Node")
            for condition in node["status"].get("conditions") or ()
            if condition["type"] == "Ready" and condition["status"] != "True"
        }
        return silent | self._node_problems

    # --- events and conditions ----------------------------------------------------------------------

    def _warn(self, pod: Object, reason: str, message: str, component: str = "kubelet") -> None:
        uid = pod["metadata"]["uid"]
        if self._warned.get(uid) == message:
            return
        self._warned[uid] = message
        log.warning("%s/%s: %s: %s", pod["metadata"]["namespace"], pod["metadata"]["name"], reason, message)
        self.recorder.record(pod, "Warning", reason, message, component)

    def _unmade(self, pod: Object, reason: str, message: str) -> None:
        """A pod's node could not make it: its containers are being created, and an event says why."""
        uid = pod["metadata"]["uid"]
        self._warn(pod, reason, message)
        node = self.store.find("Node", "", pod["spec"]["nodeName"])
        if node is None or uid in self._made or (pod.get("status") or {}).get("containerStatuses"):
            return
        self._write_creating(pod, node)

    def _write_creating(self, pod: Object, node: Object) -> None:
        addresses = view.typed_node(node).addresses
        self.store.update_status({**pod, "status": podstatus.creating(pod, addresses, self.clock.now())})

    def _condition(self, pod: Object, kind: str, status: str, reason: str, message: str) -> None:
        current = pod.get("status", {})
        others = [entry for entry in current.get("conditions") or () if entry["type"] != kind]
        old = [entry for entry in current.get("conditions") or () if entry["type"] == kind]
        if old and (old[0]["status"], old[0].get("message", "")) == (status, message):
            return
        entry = {"type": kind, "status": status, "lastTransitionTime": timestamp(self.clock.now())}
        entry |= {name: text for name, text in (("reason", reason), ("message", message)) if text}
        self.store.update_status({**pod, "status": {**current, "conditions": [*others, entry]}})

    # --- waiting ------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Nothing is due: what is not running now stays so until something changes."""
        behind = any(
            self.proxying.behind(name)
            for name, worker in self.workers.items()
            if worker.alive and not worker.paused and "services" not in self.held.get(name, ())
        )
        return self.settled_but_for_services and not behind and all(idle() for idle in self.beside)

    @property
    def settled_but_for_services(self) -> bool:
        """Nothing is due but service rules whose time has not come yet."""
        return (
            not self._wake.is_set() and not self._due and all(worker.idle for worker in self.workers.values())
        )

    def worker_done(self) -> None:
        """A worker finished a round: whoever waits for the cluster to settle looks again."""
        self._wake.set()

    async def settle(self, deadline: float) -> bool:
        """Wait until nothing is due. deadline: seconds; False where it passed first."""
        return await self.reach(lambda: self.settled, deadline)

    async def settle_first(self, deadline: float) -> bool:
        """As ``settle``, for a cluster that starts: its service rules are made at once, and then again when
        its pods are there, without waiting for more to come."""
        begun = self.clock.now()
        self.proxying.hold()
        try:
            if not await self.reach(lambda: self.settled_but_for_services, deadline):
                return False
            # Rules made before cluster DNS answers would refuse it, and be made again only a period later.
            await self.reach(lambda: self.settled_but_for_services and self._names_served, NAMES_WITHIN)
        finally:
            self.proxying.release()
        return await self.settle(deadline - (self.clock.now() - begun))

    @property
    def _names_served(self) -> bool:
        """Whether every DNS server that was started is Ready."""
        servers = (pod for pod in self._typed.values() if any(map(nameserver, pod.containers)))
        return all(is_ready(self._pods[pod.uid]) for pod in servers if pod.uid in self._made)

    async def reach(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait for what becomes true by work that is due. deadline: seconds; False where it passed first."""
        try:
            async with asyncio.timeout(deadline), self._quiet:
                await self._quiet.wait_for(condition)
        except TimeoutError:
            return False
        return True

    def waiting_pods(self) -> dict[str, str]:
        """Pods that are not running, ``namespace/name`` → why."""
        waiting = {uid: pod for uid, pod in (*self._unplaced.items(), *self._pods.items()) if _waits(pod)}
        return {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": self._warned.get(
                uid, "not started yet"
            )
            for uid, pod in waiting.items()
        }

    def pod_uid(self, namespace: str, name: str) -> str:
        """The uid of a pod that is in the kernel. Raises ApiError."""
        pod = self.store.get("Pod", namespace, name)
        uid = str(pod["metadata"]["uid"])
        if uid not in self._typed or uid not in self._made:
            raise ApiError.bad_request(f"pod {name} does not have a host assigned or is not running")
        return uid

    def running(self) -> list[Pod]:
        """The pods that were made in the kernel and have not ended, by namespace and name."""
        found = (self._typed.get(pod["metadata"]["uid"]) for pod in self.store.list("Pod"))
        return [
            pod
            for pod in found
            if pod is not None
            and pod.uid in self._made
            and pod.node in self.workers
            and not podstatus.is_terminal(self._pods[pod.uid])
        ]

    def typed(self, uid: str) -> Pod:
        """The typed pod."""
        return self._typed[uid]


def _recorded(pod: Object) -> tuple[str, ...]:
    """The addresses that a pod comes with; none where what anybody wrote into its status is no address."""
    entries = (pod.get("status") or {}).get("podIPs") or ()
    try:
        return tuple(str(ip_address(entry.get("ip", ""))) for entry in entries)
    except ValueError:
        return ()


def _wiring_view(node: Node) -> tuple[object, ...]:
    """What of a node matters to the wiring of others."""
    return node.addresses, node.pod_cidrs, node.networks, node.labels, node.held


def _network_view(pod: Object) -> tuple[Any, ...]:
    """What of a bound pod matters to its node: an update that leaves it alone changes nothing there."""
    metadata = pod["metadata"]
    return metadata.get("labels"), metadata.get("annotations"), pod["spec"]


def _hurried(known: Object, pod: Object) -> bool:
    """Whether a pod that is being deleted got less time for it."""
    given = known["metadata"].get("deletionGracePeriodSeconds")
    return given is not None and given != pod["metadata"].get("deletionGracePeriodSeconds")


def _status_view(pod: Object) -> tuple[Any, ...]:
    """What of a pod its status depends on, beside its containers."""
    forced = (pod["metadata"].get("annotations") or {}).get(podstatus.FORCED_READINESS)
    gates = {gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()}
    if not gates:
        return (forced,)
    conditions = pod.get("status", {}).get("conditions") or ()
    return forced, [(entry["type"], entry.get("status")) for entry in conditions if entry["type"] in gates]


def _waits(pod: Object) -> bool:
    """Whether a pod has not been started yet."""
    return bool(pod.get("status", {}).get("phase", "Pending") == "Pending")


def _scheduled(pod: Object, now: str) -> Object:
    status = pod.get("status") or {}
    others = [entry for entry in status.get("conditions") or () if entry["type"] != "PodScheduled"]
    entry = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
    return {**status, "phase": "Pending", "conditions": [*others, entry]}


def family_of(address: str) -> int:
    """4 or 6."""
    return ip_address(address).version
