"""The Python API: a cluster of one's own, gone at the end of the ``with``.

from testbed import Cluster
with Cluster.up("topologies/three-nodes.yaml") as cluster:
    cluster.apply("web.yaml")
    cluster.wait(ready="app=web", timeout=10)
    out = cluster.pod("client").run(["curl", "-s", "http://web"])
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from testbed.api.client import Client, RequestFailed, ServerGone
from testbed.cluster.messages import AnyMessage, Exec, Exited, Failed, Started
from testbed.control.workloads import is_ready
from testbed.errors import NotConverged, TestbedError
from testbed.kernel.channel import Channel, ChannelClosed
from testbed.wait import wait_until

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Completed:
    """What a program left: its exit code (as a shell gives it) and what it printed, decoded as UTF-8."""

    code: int
    stdout: str
    stderr: str


class NotRun(TestbedError):
    """A program could not be started; exit_code 127: not found, 126: not executable."""

    def __init__(self, argv: Sequence[str], failure: Failed) -> None:
        self.exit_code = failure.exit_code
        super().__init__(f"{' '.join(argv)}: {failure.message}")


@dataclass(frozen=True)
class Place:
    """Where programs run: a pod, a node, or a host outside the cluster. path: its exec path in the API."""

    client: Client
    path: str

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = "") -> Completed:
        """Run a program of the host's file system there and wait for it. Raises NotRun."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin.encode())
            given.seek(0)
            channel = self.client.channel(self.path)
            try:
                channel.send(
                    Exec(1, "", tuple(argv), dict(env or {})), [given.fileno(), out.fileno(), err.fileno()]
                )
                while True:
                    answer, _ = channel.receive()
                    match answer:
                        case Exited():
                            return Completed(answer.code, _text(out), _text(err))
                        case Failed():
                            raise NotRun(argv, answer)
                        case Started():
                            continue
                        case _:
                            raise TestbedError(f"unexpected answer {type(answer).__name__}")
            except ChannelClosed as error:
                raise ServerGone("the cluster went away") from error
            finally:
                channel.close()


@dataclass
class Fault:
    """A fault that was applied. record: as the API gives it.

    As a context manager it is healed at the end, by the cluster itself where this process is killed.
    """

    client: Client
    record: dict[str, Any]
    _held: Channel[AnyMessage] | None = None

    @property
    def id(self) -> str:
        """``fault-3``."""
        return str(self.record["id"])

    @property
    def target(self) -> list[str]:
        """What it acts on: nodes, pods (``namespace/name``), links."""
        return list(self.record["target"])

    def heal(self) -> None:
        """Heal it, if it is not healed yet; done when the kernel shows it. Raises NotConverged."""
        self.record = self.client.delete(f"/apis/testbed/v1/faults/{self.id}")

    def __enter__(self) -> Fault:
        self._held = self.client.channel(f"/apis/testbed/v1/faults/{self.id}/hold")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.heal()
        finally:
            if self._held is not None:
                self._held.close()


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


class Cluster:
    """A running cluster. ``up`` starts one, ``attach`` takes one that runs already.

    status: the cluster as it was then (``testbed up -o json``), until ``refresh``.
    """

    def __init__(self, name: str, status: dict[str, Any] | None = None) -> None:
        self.name = name
        self.client = Client.of(name)
        self.status = status if status is not None else self.client.get("/apis/testbed/v1/cluster")

    @classmethod
    def up(
        cls,
        spec: str | Path,
        *,
        name: str = "",
        manifests: Sequence[str | Path] = (),
        overrides: Sequence[str] = (),
        allow_commands: bool = False,
        bound: bool = False,
    ) -> Cluster:
        """Start a cluster of a spec file. bound: it ends when this process does, by SIGKILL too.

        Raises InputError, MissingCapability, TestbedError.
        """
        from testbed.api.start import start

        status = start(
            spec,
            manifests=manifests,
            overrides=overrides,
            name=name,
            allow_commands=allow_commands,
            bound=bound,
        )
        return cls(status["metadata"]["name"], status)

    @classmethod
    def attach(cls, name: str | None = None) -> Cluster:
        """The running cluster ``name``, or the only one there is. Raises InputError."""
        from testbed.cluster.statedir import resolve

        return cls(resolve(name).name)

    def refresh(self) -> dict[str, Any]:
        """``status`` as it is now: counts of pods, what waits, what fails."""
        self.status = {**self.status, **self.client.get("/apis/testbed/v1/cluster")}
        return self.status

    def down(self) -> float:
        """Stop it; returns the seconds that took."""
        from testbed.cluster.lifecycle import down

        return down(self.name)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def apply(self, *paths: str | Path) -> list[tuple[str, str, str]]:
        """Apply manifests, all or nothing; per object kind as kubectl prints it, name, what was done.

        Raises InputError.
        """
        from testbed.api.manifests import apply

        return apply(self.client, paths)

    def delete(self, *paths: str | Path) -> None:
        """Delete what the manifests name; what is not there is fine."""
        from testbed.api.manifests import delete

        for _ in delete(self.client, paths, ignore_missing=True):
            pass  # each is deleted when it is asked for

    def wait(self, *, ready: str, namespace: str = "default", timeout: float = 30.0) -> float:
        """Wait until the pods of a label selector (``app=web``; "" for all) are there and Ready.

        timeout: seconds. Returns the seconds it took. Raises NotConverged, which says who is not.
        """
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        late: list[str] = []

        def all_ready() -> bool:
            pods = self.client.get(path, labelSelector=ready)["items"]
            late[:] = [pod["metadata"]["name"] for pod in pods if not is_ready(pod)]
            return bool(pods) and not late

        return wait_until(
            all_ready,
            timeout,
            f"pods {ready or 'of the cluster'} ready",
            interval=0.02,
            detail=lambda: f"not ready: {', '.join(late) or 'there are none'}",
        )

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until everything applied so far has reached the kernel. Raises NotConverged."""
        begun = time.monotonic()
        query = {"timeout": str(timeout)}  # after which the server answers
        answer = self.client.request("GET", "/apis/testbed/v1/settled", query=query, timeout=None)
        if not answer["settled"]:
            raise NotConverged("the cluster settles", time.monotonic() - begun, str(answer["waiting"]))

    def fault(
        self,
        fault: str,
        *targets: str,
        selector: str = "",
        namespace: str = "",
        count: int | Literal["all"] = 0,
        seconds: float | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Fault:
        """Break something; in force when this returns, as read from the kernel (``docs/faults.md``).

        targets: nodes, pods or links, whatever this fault acts on; none: chosen by the seed. seconds: how
        long it lasts; without, until it is healed. As a context manager it is healed whatever happens.
        Raises InputError, MissingCapability, NotConverged.
        """
        wanted = {"names": targets, "selector": selector, "namespace": namespace, "count": count}
        request = {"fault": fault, "target": wanted, "options": options, "seed": seed, "seconds": seconds}
        return Fault(self.client, self.client.post("/apis/testbed/v1/faults", request, timeout=None))

    def faults(self) -> list[dict[str, Any]]:
        """Every fault there was, healed ones too, in the order in which they came."""
        items: list[dict[str, Any]] = self.client.get("/apis/testbed/v1/faults")["items"]
        return items

    def heal(self) -> None:
        """Heal every fault that is in force."""
        self.client.delete("/apis/testbed/v1/faults")

    def pods(self, selector: str = "", namespace: str = "") -> list[dict[str, Any]]:
        """Pod objects; namespace "": all."""
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        items: list[dict[str, Any]] = self.client.get(path, labelSelector=selector)["items"]
        return items

    def pod(self, name: str, namespace: str = "default") -> Place:
        """The inside of a pod."""
        return Place(self.client, f"/api/v1/namespaces/{namespace}/pods/{name}/exec")

    def node(self, name: str) -> Place:
        """A node's own namespaces."""
        return Place(self.client, f"/apis/testbed/v1/nodes/{name}/exec")

    def host(self, name: str) -> Place:
        """A host of the fabric outside the nodes: an external client, the gateway, a router."""
        return Place(self.client, f"/apis/testbed/v1/hosts/{name}/exec")

    def reachability(
        self, *, port: int | None = None, protocol: str = "tcp", selector: str = "", namespace: str = ""
    ) -> pd.DataFrame:
        """Every pod to every pod now; columns in ``docs/results.md``."""
        from testbed.measure.frames import reachability_frame

        request: dict[str, Any] = {"protocol": protocol, "selector": selector, "namespace": namespace}
        if port is not None:
            request["port"] = port
        answer = self.client.post("/apis/testbed/v1/reachability", request)
        return reachability_frame(answer)

    def programming(
        self, since: str = "0", of: Literal["rules", "names", "nodes"] = "rules"
    ) -> dict[str, Any]:
        """How long changes of Services took until they were in force on each node; ``docs/results.md``.

        since: a resourceVersion; only later changes are listed. of: the nodes' rules, cluster DNS, or
        nodes that come and go.
        """
        answer: dict[str, Any] = self.client.get("/apis/testbed/v1/programming", since=since, of=of)
        return answer

    def roundtrips(self, pairs: Sequence[tuple[str, str]] = (), *, count: int = 200) -> pd.DataFrame:
        """Round-trip times now, ``count`` echoes each; columns in ``docs/results.md``.

        pairs: (source, destination), each ``namespace/pod``, ``pod`` or ``host:NAME``; none: one pair on
        the same node, one across nodes, one to the outside.
        """
        from testbed.measure.frames import roundtrips_frame

        request: dict[str, Any] = {"count": count}
        if pairs:
            request["pairs"] = [
                {"source": source, "destination": destination} for source, destination in pairs
            ]
        return roundtrips_frame(self.client.post("/apis/testbed/v1/roundtrips", request, timeout=None))


__all__ = ["Cluster", "Completed", "NotRun", "Place", "RequestFailed"]
