"""Probes and restarts of one container as a kubelet decides them: thresholds, back-off. Pure.

The node's agent runs probes and tells the outcome; nothing here waits or connects.
Sources: kubernetes v1.36 ``pkg/apis/core/v1/defaults.go``, ``pkg/kubelet/prober/{worker,prober}.go``,
``client-go/util/flowcontrol/backoff.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from msgspec.structs import replace

from testbed.control.podfiles import expand
from testbed.control.snapshot import Container, Pod
from testbed.state import Probe

Kind = Literal["startup", "readiness", "liveness"]
KINDS: tuple[Kind, ...] = ("startup", "readiness", "liveness")

DEFAULT_BACKOFF = (10.0, 300.0)
"""Seconds before the second restart of a container, and at most (``pkg/kubelet/kubelet.go``)."""


# --- from manifests -----------------------------------------------------------------------------------


def probes(pod: Pod, allow: bool, env: Mapping[str, Mapping[str, str]] = {}) -> dict[str, tuple[Probe, ...]]:
    """The probes that the pod's node has to run: container name → probes.

    allow: whether commands run. Without it an exec probe always succeeds and so is none at all (see
    ``skipped``). env: for ``$(VAR)`` in commands.
    """
    found = {
        container.name: tuple(
            _plain(
                _probe(pod, container, kind, container.probes[kind], env.get(container.name, {})),
                pod,
                built_in=not (allow and container.command),
            )
            for kind in KINDS
            if kind in container.probes and (allow or "exec" not in container.probes[kind])
        )
        for container in pod.containers
    }
    return {name: several for name, several in found.items() if several}


def _plain(probe: Probe, pod: Pod, *, built_in: bool) -> Probe:
    """The built-in servers speak no TLS: what asks them for it is asked without."""
    if built_in and probe.how == "https" and probe.host in pod.ips:
        return replace(probe, how="http")
    return probe


def kinds(container: Container, allow: bool) -> list[str]:
    """The kinds of probes of a container that run. allow: whether commands do."""
    return [kind for kind, probe in container.probes.items() if allow or "exec" not in probe]


def skipped(container: Container, allow: bool) -> list[str]:
    """The kinds of probes of a container that do not run, being commands."""
    return [kind for kind, probe in container.probes.items() if not allow and "exec" in probe]


def _probe(pod: Pod, container: Container, kind: Kind, spec: dict[str, Any], env: Mapping[str, str]) -> Probe:
    host, target, problem = pod.ips[0], "", ""
    port: Any = 0
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    how: str = "exec"
    if action := spec.get("httpGet"):
        how = str(action.get("scheme", "HTTP")).lower()
        host, port = action.get("host") or host, action.get("port", 0)
        path = str(action.get("path") or "/")
        target = path if path.startswith("/") else f"/{path}"
        headers = tuple((header["name"], header["value"]) for header in action.get("httpHeaders") or ())
    elif action := spec.get("tcpSocket"):
        how, host, port = "tcp", action.get("host") or host, action.get("port", 0)
    elif action := spec.get("grpc"):
        how, port, target = "grpc", action.get("port", 0), action.get("service") or ""
    else:
        command = tuple(expand(word, env) for word in (spec.get("exec") or {}).get("command") or ())
    if isinstance(port, str):
        port, problem = _named_port(container, port)
    return Probe(
        kind=kind,
        how=cast(Any, how),
        host=host,
        port=port,
        target=target,
        headers=headers,
        command=command,
        delay=float(spec.get("initialDelaySeconds", 0)),
        period=float(spec.get("periodSeconds") or 10),
        timeout=float(spec.get("timeoutSeconds") or 1),
        successes=spec.get("successThreshold") or 1,
        failures=spec.get("failureThreshold") or 3,
        grace=float(spec.get("terminationGracePeriodSeconds", pod.stop_seconds)),
        problem=problem,
    )


def _named_port(container: Container, name: str) -> tuple[int, str]:
    """``pkg/probe/util.go``, ResolveContainerPort: a number written as text, or a port of this container."""
    if name.isdecimal():
        return int(name), ""
    for port in container.ports:
        if port.name == name:
            return port.container_port, ""
    return 0, f'strconv.Atoi: parsing "{name}": invalid syntax'


# --- what probes say of a container ---------------------------------------------------------------------

Verdict = Literal["same", "changed", "kill"]


@dataclass
class Probing:
    """What the probes have shown of one run of a container; a new run starts with a new one."""

    probes: tuple[Probe, ...]
    started: bool = field(init=False)
    ready: bool = field(init=False)
    _last: dict[str, tuple[bool, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {probe.kind for probe in self.probes}
        self.started = "startup" not in kinds
        self._passed = "readiness" not in kinds
        self.ready = self.started and self._passed

    def runs(self, kind: str) -> bool:
        """Whether probes of this kind run now: the startup probe until it succeeds, the others after that."""
        return self.started != (kind == "startup")

    def feed(self, probe: Probe, success: bool) -> Verdict:
        """Take in one outcome. A threshold counts equal outcomes in a row.

        ``kill``: the container is to be ended and, as its pod's restartPolicy says, started again.
        """
        before, row = self._last.get(probe.kind, (success, 0))
        row = row + 1 if before == success else 1
        self._last[probe.kind] = success, row
        if row < (probe.successes if success else probe.failures):
            return "same"
        if probe.kind == "readiness":
            self._passed = success
        elif not success:
            return "kill"
        elif probe.kind == "startup":
            self.started = True
        was, self.ready = self.ready, self.started and self._passed
        return "changed" if was != self.ready or (probe.kind == "startup" and success) else "same"


@dataclass
class Backoff:
    """When a container that ended may start again: the first time at once, then after ``first`` seconds
    doubling to ``limit``; forgotten after two limits of quiet."""

    first: float
    limit: float
    _seconds: float = 0.0
    _since: float = 0.0

    def wait(self, ended: float) -> float:
        """How long after it ``ended`` a container has to wait (seconds; 0: not at all)."""
        if self._seconds and ended - self._since > 2 * self.limit:
            self._seconds = 0.0
        seconds, self._since = self._seconds, ended
        self._seconds = min(seconds * 2 if seconds else self.first, self.limit)
        return seconds


def restarts(policy: str, exit_code: int, *, killed: bool = False) -> bool:
    """Whether a container that ended starts again. killed: by its probe, which counts as a failure."""
    if policy == "OnFailure":
        return killed or exit_code != 0
    return policy == "Always"


# --- the kubelet's words --------------------------------------------------------------------------------


def failed_text(kind: str, output: str) -> str:
    """The message of an Unhealthy event."""
    return f"{kind.capitalize()} probe failed: {output}"


def skipped_text(kind: str, container: str) -> str:
    """The message of an event for an exec probe where commands are not allowed."""
    return (
        f"{kind.capitalize()} probe of container {container} counts as success: "
        "its command does not run without --allow-commands"
    )


def errored_text(kind: str, error: str) -> str:
    """The message of an Unhealthy event for a probe that could not be run."""
    return f"{kind.capitalize()} probe errored and resulted in unknown state: {error}"


def killing_text(container: str, kind: str) -> str:
    """The message of a Killing event where a probe asks for it."""
    return f"Container {container} failed {kind} probe, will be restarted"


def waiting_text(seconds: float, container: str, pod: str, namespace: str, uid: str) -> str:
    """The message of a container in CrashLoopBackOff; the duration as Go prints it."""
    minutes, rest = divmod(seconds, 60)
    shown = f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
    return f"back-off {shown} restarting failed container={container} pod={pod}_{namespace}({uid})"


def backoff_text(container: str, pod: str, namespace: str, uid: str) -> str:
    """The message of a BackOff event."""
    return f"Back-off restarting failed container {container} in pod {pod}_{namespace}({uid})"
