"""What a node should look like, of the cluster's objects: wiring, service rules, pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from testbed.cluster.reconcile import Merged, merge, merge_netns
from testbed.control.containers import commands, listeners
from testbed.control.envvars import Links, ServiceLinks
from testbed.control.podfiles import pod_env, pod_files, pod_hostname
from testbed.control.probes import DEFAULT_BACKOFF, probes
from testbed.control.snapshot import Node, Pod, Snapshot
from testbed.dataplane import Dataplane, Enforces
from testbed.dataplane.bandwidth import compile_bandwidth
from testbed.dataplane.portmap import compile_ports
from testbed.dns.servers import nameservers, node_device
from testbed.policy import Enforcer, enforcer_beside
from testbed.proxy import Proxier
from testbed.proxy.health import listeners as listeners_of
from testbed.proxy.kubelet import kubelet_rules
from testbed.state import NetnsState, NodeState, PodState


def compile_node(snapshot: Snapshot, node: Node, dataplane: Dataplane, proxier: Proxier) -> NodeState:
    """Everything one node should be: wiring, service rules, and its pods with files, names and servers."""
    return Compiler(dataplane, proxier).compile(snapshot, node)


@dataclass
class _Part:
    """Something compiled, and the objects it was made of."""

    of: tuple[object, ...] = ()
    made: Any = None

    def is_of(self, inputs: Sequence[object]) -> bool:
        """Whether it was made of these very objects."""
        return len(self.of) == len(inputs) and all(map(_is, self.of, inputs))

    def keep(self, inputs: tuple[object, ...], made: Any) -> None:
        self.of, self.made = inputs, made


@dataclass
class _Kept:
    """What was compiled for a node last."""

    wiring: _Part = field(default_factory=_Part)
    services: _Part = field(default_factory=_Part)
    ports: _Part = field(default_factory=_Part)
    policy: _Part = field(default_factory=_Part)
    pods: dict[str, _Part] = field(default_factory=dict)
    whole: _Part = field(default_factory=_Part)
    merged: Merged = field(default_factory=dict)


class Compiler:
    """Compiles nodes again and again; a part whose objects are the same is kept, not compiled again.

    The result is always that of a fresh compile, apart from service rules that are asked for as they were.
    """

    def __init__(self, dataplane: Dataplane, proxier: Proxier) -> None:
        self._dataplane, self._proxier = dataplane, proxier
        self._enforcer = _enforcer(dataplane, proxier)
        self.names_all_pods = isinstance(dataplane, Enforces) and dataplane.names_all_pods
        """Whether a pod anywhere concerns the rules of every node, whatever policies there are."""
        self.links = ServiceLinks()
        self._kept: dict[str, _Kept] = {}

    def compile(
        self, snapshot: Snapshot, node: Node, *, services: bool = True, policy: bool = True
    ) -> NodeState:
        """Everything one node should be. services, policy: False leaves its rules as they were made last."""
        kept = self._kept.setdefault(node.name, _Kept())
        own = snapshot.pods_by_node.get(node.name, ())
        facts = snapshot.facts
        unaddressed = snapshot.unaddressed.get(node.name, ())
        wired = (facts, *snapshot.nodes, *self._wired(kept.wiring.of, own), *unaddressed)
        if not kept.wiring.is_of(wired):
            kept.wiring.keep(wired, self._dataplane.compile(snapshot, node))
        served = (facts, node, snapshot.services, snapshot.slices, snapshot.service_cidrs)
        if (services or kept.services.made is None) and not kept.services.is_of(served):
            rules = self._proxier.compile(snapshot, node)
            kept.services.keep(
                served, NodeState(rules, listeners=listeners_of(snapshot, node, self._proxier))
            )
        if not kept.ports.is_of(mapped := (kept.wiring.made, node, *own)):
            wiring: NodeState = kept.wiring.made
            native = tuple(pod for pod in own if pod.uid not in wiring.sandboxes)  # others have plugins
            shaped = compile_bandwidth(wiring, native)
            mapped_ports = compile_ports(wiring, node, native)
            kept.ports.keep(mapped, merge_netns([("host ports", mapped_ports), ("bandwidth limits", shaped)]))
        judged = (facts, snapshot.pods, snapshot.policies, snapshot.namespaces, *snapshot.nodes)
        if (policy or kept.policy.made is None) and not kept.policy.is_of(judged):
            kept.policy.keep(
                judged, self._enforcer.compile(snapshot, node) if self._enforcer else NetnsState()
            )
        pods = {pod.uid: self._pod(kept, snapshot, node, pod) for pod in own}
        kept.pods = {uid: kept.pods[uid] for uid in pods}
        parts = (
            *(kept.wiring.made, kept.services.made, kept.policy.made, kept.ports.made),
            *pods.values(),
        )
        if not kept.whole.is_of(parts):
            # In the order in which these come to a node, and put their rules into the built-in chains.
            fragments = [
                ("the kubelet", NodeState(kubelet_rules())),
                ("the dataplane", kept.wiring.made),
                ("the proxier", kept.services.made),
                ("network policy", NodeState(kept.policy.made)),
                ("cluster DNS", NodeState(node_device(facts))),
                ("host ports and bandwidth", NodeState(kept.ports.made)),
                ("the pods", NodeState(pods=pods)),
            ]
            kept.whole.keep(parts, merge(fragments, kept.merged))
        whole: NodeState = kept.whole.made
        return whole

    def _wired(self, before: tuple[object, ...], own: tuple[Pod, ...]) -> tuple[Pod, ...]:
        """The node's pods, those as before that changed in their labels alone: wires do not look at these."""
        if self._enforcer is None:  # the dataplane does, to enforce policies
            return own
        known = {pod.uid: pod for pod in before if isinstance(pod, Pod)}
        return tuple(
            old if (old := known.get(pod.uid)) is not None and _but_for_labels(old, pod) else pod
            for pod in own
        )

    def services(self, node: str) -> NetnsState:
        """The service rules that were last made for a node, alone."""
        made: NetnsState = self._kept[node].services.made.netns
        return made

    def policy(self, node: str) -> NetnsState:
        """The policy rules that were last made for a node, alone."""
        made: NetnsState = self._kept[node].policy.made
        return made

    def forget(self, node: str) -> None:
        """The node is no more."""
        self._kept.pop(node, None)

    def _pod(self, kept: _Kept, snapshot: Snapshot, node: Node, pod: Pod) -> PodState:
        part = kept.pods.setdefault(pod.uid, _Part())
        told = self.links.of(snapshot, pod) if _runs_programs(snapshot, pod) else ()
        if not part.is_of(inputs := (snapshot.facts, node, pod, told)):
            part.keep(inputs, _pod_state(snapshot, pod, told))
        state: PodState = part.made
        return state


def _enforcer(dataplane: Dataplane, proxier: Proxier) -> Enforcer | None:
    if isinstance(dataplane, Enforces):
        return dataplane.enforcer()
    return None if dataplane.enforces_policy else enforcer_beside(proxier.needs)


def _but_for_labels(old: Pod, new: Pod) -> bool:
    """Whether two pods are the same, their labels aside."""
    return old is new or replace(old, labels=new.labels) == new


def _is(one: object, other: object) -> bool:
    return one is other


def _runs_programs(snapshot: Snapshot, pod: Pod) -> bool:
    """Whether the node itself starts programs of the pod; others get their environment when they are run."""
    return snapshot.facts.allow_commands and any(
        container.command or any("exec" in probe for probe in container.probes.values())
        for container in pod.containers
    )


def _pod_state(snapshot: Snapshot, pod: Pod, told: Links) -> PodState:
    """told: of Services, to programs that start now."""
    hostname, domainname = pod_hostname(snapshot, pod)
    allow = snapshot.facts.allow_commands
    env = pod_env(snapshot, pod, told) if _runs_programs(snapshot, pod) else {}
    return PodState(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        hostname=hostname,
        host_network=pod.host_network,
        domainname=domainname,
        files=pod_files(snapshot, pod),
        env=env,
        listeners=listeners(pod, allow),
        commands=commands(pod, allow, env),
        ips=pod.ips,
        node=pod.node,
        nameservers=nameservers(snapshot.facts, pod),
        probes=probes(pod, allow, env),
        restart_policy=cast(Any, pod.restart_policy),
        backoff=_backoff(snapshot.facts.kubelet),
        grace=pod.grace,
        linger=pod.linger,
    )


def _backoff(clocks: Mapping[str, float]) -> tuple[float, float]:
    first, limit = DEFAULT_BACKOFF
    return (
        clocks.get("initialContainerRestartPeriod", first),
        clocks.get("maxContainerRestartPeriod", limit),
    )
