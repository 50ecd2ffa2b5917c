"""Applying changes to one node's kernel, in order: a part that fails is told and does not stop the rest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec

from testbed.cluster.messages import (
    AddPods,
    Change,
    ChangeNetns,
    ChangeSandboxes,
    DeletePods,
    LoadPlugins,
    RunDaemons,
    ServeNode,
    UpdatePod,
    WriteFiles,
)
from testbed.errors import TestbedError
from testbed.kernel import sysctl
from testbed.kernel.apply import Kernel, peers
from testbed.state import NODE, Daemon, Listener, NetnsState, PluginList, PodState, Sandbox


class Tenants(Protocol):
    """What lives in pods: servers and programs. ``open`` and ``update`` are called in the pod's netns."""

    def open(self, pod: PodState) -> None:
        """Open the pod's sockets. Any TestbedError or OSError fails the pod."""
        ...

    def start(self, pod: PodState) -> tuple[str, ...]:
        """The pod is made: serve. Returns what of it does not work."""
        ...

    def update(self, pod: PodState) -> tuple[str, ...]:
        """Something of the pod but its netns changed. Returns what of it does not work."""
        ...

    def serve_node(self, listeners: tuple[Listener, ...]) -> None:
        """Answer on the node itself on these ports; in the node's netns."""
        ...

    def run_daemons(self, daemons: Mapping[str, Daemon]) -> None:
        """Run these on the node, and no others. Raises TestbedError or OSError where one cannot be run."""
        ...

    def load_plugins(self, plugins: PluginList) -> None:
        """Have the runtime use these plugins."""
        ...

    def change_sandboxes(self, add: Sequence[Sandbox], remove: Sequence[str]) -> None:
        """Have plugins wire these sandboxes and take those down, in their own time."""
        ...

    def write_files(self, files: Mapping[str, str]) -> None:
        """Have programs on the node see these files. Raises OSError."""
        ...

    def stop(self, uid: str) -> None:
        """The pod goes, or could not be made; may be called for one that was never opened."""
        ...


@dataclass
class Outcome:
    """failed: pod uid or ``node`` → what was refused; warnings: pod uid → what of it does not work;
    seconds: kind of change → time spent."""

    failed: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def warn(self, uid: str, messages: tuple[str, ...]) -> None:
        """Note what of a pod does not work, if anything."""
        if messages:
            self.warnings[uid] = messages

    def fail(self, where: str, message: str) -> None:
        """Note a failure beside those already known."""
        self.failed[where] = f"{self.failed[where]}; {message}" if where in self.failed else message


def apply(kernel: Kernel, changes: Iterable[Change], tenants: Tenants) -> Outcome:
    """Apply changes in order; one that fails does not stop the rest, and no half-made pod stays."""
    outcome = Outcome()
    owners: dict[str, str] = {}  # host end → uid, of the pods made now
    for change in changes:
        start = time.monotonic()
        match change:
            case DeletePods(uids):
                for uid in uids:
                    tenants.stop(uid)
                try:
                    kernel.delete_pods(uids)
                except TestbedError as error:
                    outcome.fail(NODE, str(error))
            case AddPods(pods):
                owners = {peer: pod.uid for pod in reversed(pods) for peer in peers(pod)} | owners
                _add_pods(kernel, pods, tenants, outcome)
            case ChangeNetns(where, add, remove):
                absent = {peer for peer, uid in owners.items() if uid in outcome.failed}
                for failure in kernel.change(where, without_devices(add, absent), remove):
                    outcome.fail(owners.get(failure.dev, where), failure.message)
                _drop_half_made(kernel, set(owners.values()) & outcome.failed.keys(), tenants)
            case ServeNode(listeners):
                tenants.serve_node(listeners)
            case RunDaemons(daemons):
                try:
                    tenants.run_daemons(daemons)
                except (TestbedError, OSError) as error:
                    outcome.fail(NODE, str(error))
            case WriteFiles(files):
                try:
                    tenants.write_files(files)
                except OSError as error:
                    outcome.fail(NODE, str(error))
            case LoadPlugins(plugins):
                tenants.load_plugins(plugins)
            case ChangeSandboxes(coming, leaving):
                tenants.change_sandboxes(coming, leaving)
            case UpdatePod(pod):
                try:
                    outcome.warn(pod.uid, kernel.enter(pod.uid, partial(tenants.update, pod)))
                except (TestbedError, OSError) as error:
                    outcome.fail(pod.uid, str(error))
        outcome.seconds[type(change).__name__] += time.monotonic() - start
    return outcome


def _add_pods(kernel: Kernel, pods: Sequence[PodState], tenants: Tenants, outcome: Outcome) -> None:
    failed = kernel.add_pods(pods, tenants.open)
    for pod in pods:
        if pod.uid in failed:
            outcome.fail(pod.uid, failed[pod.uid])
            tenants.stop(pod.uid)
            continue
        try:
            outcome.warn(pod.uid, tenants.start(pod))
        except (TestbedError, OSError) as error:
            outcome.fail(pod.uid, str(error))
            _drop_half_made(kernel, [pod.uid], tenants)


def _drop_half_made(kernel: Kernel, uids: Iterable[str], tenants: Tenants) -> None:
    for uid in uids:
        tenants.stop(uid)
        kernel.delete_pods([uid])


def without_devices(state: NetnsState, devices: set[str]) -> NetnsState:
    """The state without what stands on these devices."""
    if not devices:
        return state
    return msgspec.structs.replace(
        state,
        links={name: link for name, link in state.links.items() if name not in devices},
        addresses={key: address for key, address in state.addresses.items() if address.dev not in devices},
        routes={dst: route for dst, route in state.routes.items() if route.dev not in devices},
        neighbours={key: entry for key, entry in state.neighbours.items() if entry.dev not in devices},
        fdb={key: entry for key, entry in state.fdb.items() if entry.dev not in devices},
        peers={key: peer for key, peer in state.peers.items() if peer.dev not in devices},
        shapers={dev: shaper for dev, shaper in state.shapers.items() if dev not in devices},
        redirects={dev: redirect for dev, redirect in state.redirects.items() if dev not in devices},
        sysctls={path: text for path, text in state.sysctls.items() if sysctl.device(path) not in devices},
    )
