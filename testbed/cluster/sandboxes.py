"""The container runtime's part of a node with CNI plugins: netns that plugins wire, before pods are in them.

Runs in the node's agent. Plugins are programs in the node's own netns, several at a time and never two for
one container. What they and we keep is in the node's directory below STATE: ``results`` (libcni's cache),
``networks`` (host-local's), ``netns`` (names of ours), ``calls.jsonl``: every call of a plugin, with what it
read and what it said.

Source: the CNI specification 1.1.0, section 3; libcni 1.1 ``libcni/api.go``; the words of errors are those of
containerd 2.0 (``internal/cri/server/sandbox_run.go``, ``sandbox_stop.go``) and the kubelet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from testbed.cluster.messages import (
    AnyMessage,
    CheckSandbox,
    Done,
    Failed,
    NetworkStatus,
    SandboxFailed,
    SandboxGone,
    SandboxReady,
)
from testbed.dataplane.cni import protocol
from testbed.dataplane.cni.protocol import Attachment, NetworkList, Operation
from testbed.errors import KernelRefused, TestbedError
from testbed.kernel import execute, netlink, netns, process, syscalls
from testbed.kernel.netlink import Netlink
from testbed.state import PluginList, Sandbox

log = logging.getLogger(__name__)

STATE = Path("/run/testbed-cni")
"""In the sandbox of the cluster: a directory per node."""

NETNS = Path("/run/netns")

CALLS, RESULTS, HELD = "calls.jsonl", "results", "netns"
MAX_CALLS = 8 << 20
"""Bytes of the log of calls; then it begins anew."""

AT_ONCE = 8
"""Plugins that run at the same time on a node."""

MAX_WRITTEN = 64 << 20
"""Bytes that a plugin may write to one file, and so print."""

CALL_SECONDS = 120.0
"""How long a plugin may take: the kubelet's --runtime-request-timeout."""

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 10.0
STATUS_SECONDS = 5.0
"""How often plugins are asked for their STATUS: as often as the kubelet asks its runtime."""
NOT_READY_SECONDS = 1.0
"""After which a pod is looked at again while there is no network (``backOffOnTransientErrorPeriod``)."""
COLLECT_SECONDS = 60.0
"""How often what nobody knows of any more is collected."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NETWORK_NOT_READY = (
    "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
    "message:Network plugin returns error: {}"
)
"""The kubelet's words (``pkg/kubelet/kubelet.go``: updateRuntimeUp) and containerd's
(``internal/cri/server/status.go``)."""
NOT_READY = "NetworkNotReady"

Tell = Callable[[AnyMessage], None]


def directory(node: str) -> Path:
    """A node's own directory."""
    return STATE / node


def forget(node: str) -> None:
    """Let go of what an agent of this node left that was killed: its netns, and what plugins kept."""
    home = directory(node)
    for name in sorted(path.name for path in (home / HELD).glob("*")):
        _release(NETNS / name)
    shutil.rmtree(home, ignore_errors=True)


class PluginFailed(TestbedError):
    """A plugin refused. code: the specification's, 0 where it gave none."""

    def __init__(self, failure: protocol.Failure, plugin: str, operation: Operation) -> None:
        self.code = failure.code
        verb = {"DEL": "delete"}.get(operation, operation.lower())
        super().__init__(f"{plugin} failed ({verb}): {failure.text}")


class Plugins:
    """Runs plugins on one node."""

    def __init__(self, loop: asyncio.AbstractEventLoop, children: process.Children, node: str) -> None:
        self._loop, self._children, self._node = loop, children, node
        self.directory = directory(node)
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def call(
        self, operation: Operation, kind: str, path: Sequence[str], given: str, attachment: Attachment | None
    ) -> bytes:
        """What a plugin prints. Raises ``_Refused`` where it fails or is not found."""
        program = next((each for name in path if os.path.isfile(each := f"{name}/{kind}")), None)
        if program is None:
            raise _Refused(protocol.Failure(0, f'failed to find plugin "{kind}" in path [{" ".join(path)}]'))
        env, begun = protocol.environment(operation, attachment, path), time.monotonic()
        async with self._slots:
            code, how, said, complained = await self._run(program, env, given.encode())
        self._note(program, env, given, code, how, said, complained, time.monotonic() - begun)
        if code:
            raise _Refused(protocol.failure(said, complained, how))
        return said

    async def _run(self, program: str, env: Mapping[str, str], given: bytes) -> tuple[int, str, bytes, bytes]:
        """Its exit code, how it ended in words, and what it printed and complained of."""
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
        try:
            os.write(files[0], given)
            os.lseek(files[0], 0, os.SEEK_SET)
            over: asyncio.Future[int] = self._loop.create_future()
            pid = execute.spawn(
                (program,),
                env={"PATH": PATH, "LC_ALL": "C.UTF-8", **env},
                cwd=str(self.directory),
                stdio=(files[0], files[1], files[2]),
                hostname=self._node,
                largest_file=MAX_WRITTEN,
            )
            self._children.watch(pid, over.set_result)
            try:
                status = await asyncio.wait_for(asyncio.shield(over), CALL_SECONDS)
            except TimeoutError:
                self._children.signal(pid, signal.SIGKILL, group=True)
                status = await over
            code, limit = process.exit_code(status), protocol.MAX_BYTES + 1
            return code, _ending(code), os.pread(files[1], limit, 0), os.pread(files[2], limit, 0)
        except (OSError, KernelRefused) as error:
            why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
            return 126, f"fork/exec {program}: {why}", b"", b""
        finally:
            for fd in files:
                os.close(fd)

    def _note(
        self,
        program: str,
        env: Mapping[str, str],
        given: str,
        code: int,
        how: str,
        said: bytes,
        complained: bytes,
        seconds: float,
    ) -> None:
        entry = {
            "time": time.time(),
            "seconds": round(seconds, 6),
            "operation": env["CNI_COMMAND"],
            "plugin": program,
            "env": dict(env),
            "stdin": json.loads(given),
            "exit": code,
            "ended": how,
            "stdout": said.decode(errors="replace"),
            "stderr": complained.decode(errors="replace"),
        }
        path = self.directory / CALLS
        if path.exists() and path.stat().st_size > MAX_CALLS:
            path.replace(path.with_suffix(".old"))
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _ending(code: int) -> str:
    """How a program with this exit code, as a shell gives it, has ended, in Go's words; a code may be no
    signal's."""
    killed = code - 128 in signal.valid_signals() and signal.strsignal(code - 128)
    return f"signal: {killed.lower()}" if killed else f"exit status {code}"


class _Refused(Exception):
    def __init__(self, failure: protocol.Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


class Network:
    """One configuration list on one node, as libcni has it."""

    def __init__(self, plugins: Plugins, network: NetworkList, path: Sequence[str]) -> None:
        self._plugins, self.network, self._path = plugins, network, tuple(path)
        self._results = plugins.directory / RESULTS
        self._version: asyncio.Future[str] | None = None

    async def version(self) -> str:
        """The version that is spoken with the plugins: asked for once."""
        if self._version is None:
            self._version = asyncio.ensure_future(self._negotiate())
        return await asyncio.shield(self._version)

    async def _negotiate(self) -> str:
        if len(self.network.versions) == 1:  # nothing to choose: the plugins themselves refuse it
            return self.network.versions[0]
        supported = []
        for kind in {str(plugin["type"]) for plugin in self.network.plugins}:
            asked = json.dumps({"cniVersion": self.network.versions[-1]})
            try:
                said = await self._plugins.call("VERSION", kind, self._path, asked, None)
                supported.append(protocol.supported(said))
            except (_Refused, ValueError) as error:
                log.warning("%s does not say its versions: %s", kind, error)
        return protocol.negotiate(self.network, supported)

    async def add(self, attachment: Attachment) -> dict[str, Any]:
        """Have every plugin add its part, in order; the result is kept. Raises PluginFailed."""
        version = await self.version()
        found: dict[str, Any] | None = None
        for plugin in self.network.plugins:
            said = await self._call("ADD", plugin, version, attachment, found)
            try:
                found = protocol.result(said, version)
            except ValueError as error:
                raise self._failed("ADD", plugin, protocol.Failure(0, str(error))) from error
        self._results.mkdir(parents=True, exist_ok=True)
        path = self._cache(attachment)
        draft = path.with_name(f".{path.name}")
        draft.write_text(protocol.cache_text(self.network, attachment, found or {}))
        draft.chmod(0o600)
        draft.rename(path)
        return found or {}

    async def check(self, attachment: Attachment) -> None:
        """Have every plugin look whether all is as it left it. Raises PluginFailed."""
        version = await self.version()
        if version < "0.4.0" or self.network.disable_check:
            return
        for plugin in self.network.plugins:
            await self._call("CHECK", plugin, version, attachment, self.cached(attachment))

    async def delete(self, attachment: Attachment) -> None:
        """Have every plugin take its part away, in reverse order. Raises PluginFailed."""
        version = await self.version()
        kept = self.cached(attachment) if version >= "0.4.0" else None
        for plugin in reversed(self.network.plugins):
            await self._call("DEL", plugin, version, attachment, kept)
        self._cache(attachment).unlink(missing_ok=True)

    async def status(self) -> None:
        """Ask every plugin whether it can be used, from version 1.1.0 on. Raises PluginFailed."""
        version = await self.version()
        if version < "1.1.0":
            return
        for plugin in self.network.plugins:
            await self._call("STATUS", plugin, version, None, None)

    async def collect(self, valid: Sequence[tuple[str, str]]) -> list[str]:
        """Take away what is kept of attachments that are not ``valid`` (container id, ifname), and have
        plugins of version 1.1.0 do so with what they keep. Returns what failed, having gone on."""
        failures: list[str] = []
        if self.network.disable_gc:
            return failures
        for stale in self._kept():
            if (stale.container, stale.ifname) in valid:
                continue
            try:
                await self.delete(stale)
            except PluginFailed as error:
                failures.append(str(error))
        version = await self.version()
        for plugin in self.network.plugins if version >= "1.1.0" else ():
            try:
                await self._call("GC", plugin, version, None, None, valid)
            except PluginFailed as error:
                failures.append(str(error))
        return failures

    def cached(self, attachment: Attachment) -> dict[str, Any] | None:
        """The result that is kept of an attachment."""
        try:
            kept = json.loads(self._cache(attachment).read_text())
        except (FileNotFoundError, ValueError):
            return None
        found = kept.get("result") if isinstance(kept, dict) else None
        return found if isinstance(found, dict) else None

    def _kept(self) -> list[Attachment]:
        found = []
        for path in sorted(self._results.glob("[!.]*")) if self._results.exists() else ():
            try:
                kept = json.loads(path.read_text())
                if kept["networkName"] == self.network.name:
                    args = tuple((str(key), str(value)) for key, value in kept.get("cniArgs", ()))
                    found.append(
                        Attachment(kept["containerId"], "", kept["ifName"], args, kept.get("capabilityArgs"))
                    )
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s cannot be read: %s", path, error)
        return found

    def _cache(self, attachment: Attachment) -> Path:
        return self._results / protocol.cache_name(self.network, attachment)

    async def _call(
        self,
        operation: Operation,
        plugin: Mapping[str, Any],
        version: str,
        attachment: Attachment | None,
        previous: Mapping[str, Any] | None,
        valid: Sequence[tuple[str, str]] | None = None,
    ) -> bytes:
        capabilities = attachment.capabilities if attachment else None
        given = protocol.stdin(self.network, plugin, version, capabilities, previous, valid)
        try:
            return await self._plugins.call(operation, str(plugin["type"]), self._path, given, attachment)
        except _Refused as refused:
            raise self._failed(operation, plugin, refused.failure) from refused

    def _failed(
        self, operation: Operation, plugin: Mapping[str, Any], failure: protocol.Failure
    ) -> PluginFailed:
        return PluginFailed(failure, protocol.described(plugin, self.network), operation)


class Sandboxes:
    """The sandboxes of the node in whose netns this process lives."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, children: process.Children, node: str, tell: Tell
    ) -> None:
        self._loop, self._children, self._node, self._tell = loop, children, node, tell
        self._sandboxes: dict[str, _Sandbox] = {}
        self._plugins: Plugins | None = None
        self._networks: dict[tuple[str, tuple[str, ...]], Network] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loaded: Network | None = None
        self._status: str | None = None  # why plugins cannot be used; None: nobody asked them yet
        self._asked = asyncio.Event()
        self._quiet = _Quiet()
        forget(node)

    def netns(self, uid: str) -> int:
        """The netns of a sandbox; the descriptor stays ours. Raises KernelRefused."""
        if uid not in self._sandboxes or not self._sandboxes[uid].made:
            raise KernelRefused(f"find the sandbox of pod {uid}", 2, "no such sandbox")
        return self._sandboxes[uid].netns

    def load(self, plugins: PluginList) -> None:
        """Use these plugins from now on, and ask them whether they can be used."""
        try:
            self._loaded = self._network(plugins.network, plugins.path)
        except (ValueError, OSError) as error:
            self._loaded = None
            self._say(NETWORK_NOT_READY.format(error))

    def change(self, add: Sequence[Sandbox], remove: Sequence[str]) -> None:
        """Wire these and take those down, in their own time; what comes of each is told."""
        for uid in remove:
            if uid in self._sandboxes:
                self._sandboxes[uid].unwanted.set()
        for wanted in add:
            if wanted.uid not in self._sandboxes:
                sandbox = self._sandboxes[wanted.uid] = _Sandbox(wanted, str(directory(self._node)))
                self._background(self._live(sandbox))

    def check(self, message: CheckSandbox) -> None:
        """Have plugins check a sandbox, and answer."""
        self._background(self._check(message))

    def close(self) -> None:
        """Let go of everything, as when the node's power is cut."""
        for task in self._tasks:
            task.cancel()
        for sandbox in self._sandboxes.values():
            sandbox.drop()
        self._sandboxes.clear()

    # --- one sandbox

    async def _live(self, sandbox: _Sandbox) -> None:
        wanted = sandbox.wanted
        backoff = FIRST_BACKOFF
        network: Network | None = None
        while not sandbox.unwanted.is_set():
            if not await self._usable(sandbox):
                continue
            try:
                network = self._network(wanted.network, wanted.path)
                async with self._quiet.change():
                    addresses = await self._add(network, sandbox)
            except (TestbedError, ValueError, OSError) as error:
                log.info("%s: %s", self._node, error)
                self._tell(SandboxFailed(wanted.uid, str(error)))
                await _within(sandbox.unwanted.wait(), backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            else:
                self._tell(SandboxReady(wanted.uid, addresses))
                await sandbox.unwanted.wait()
        if network is not None and sandbox.made:
            await self._take_down(network, sandbox)
        self._sandboxes.pop(wanted.uid).drop()
        self._tell(SandboxGone(wanted.uid))

    async def _usable(self, sandbox: _Sandbox) -> bool:
        """Whether plugins can be used; if not, that is told, and a moment passes."""
        if not self._asked.is_set():
            await _first(self._asked.wait(), sandbox.unwanted.wait())
        if self._status:
            if sandbox.told != self._status:
                text = f"network is not ready: {self._status}"
                self._tell(SandboxFailed(sandbox.wanted.uid, text, reason=NOT_READY))
            await _within(sandbox.unwanted.wait(), NOT_READY_SECONDS)
        sandbox.told = self._status
        return not self._status and not sandbox.unwanted.is_set()

    async def _add(self, network: Network, sandbox: _Sandbox) -> tuple[str, ...]:
        """Raises TestbedError as the kubelet tells it."""
        if sandbox.left:  # the kubelet begins no new sandbox before it has ended the one that is there
            try:
                await network.delete(sandbox.attachment)
            except (PluginFailed, OSError) as error:
                text = f"{sandbox.left}; not tried again while DEL of what is left fails: {error}"
                raise TestbedError(setup_text(sandbox.attachment.container, text)) from error
            sandbox.drop()
        if not sandbox.made:
            try:
                sandbox.make()
            except (OSError, TestbedError) as error:
                raise TestbedError(_unmade_text(sandbox, error)) from error
        try:
            found = await network.add(sandbox.attachment)
            addresses = protocol.addresses(found, sandbox.wanted.ifname)
            if not addresses:
                text = f'failed to find network info for sandbox "{sandbox.attachment.container}"'
                raise TestbedError(text)
        except (TestbedError, ValueError, OSError) as error:
            told = setup_text(sandbox.attachment.container, error)
            try:
                await network.delete(sandbox.attachment)
            except (PluginFailed, OSError) as another:  # the first error is told, as containerd does
                log.warning("%s: after a failed ADD: %s", self._node, another)
                sandbox.left = str(error)
            else:
                sandbox.drop()
            raise TestbedError(told) from error
        return addresses

    async def _take_down(self, network: Network, sandbox: _Sandbox) -> None:
        backoff = FIRST_BACKOFF
        while True:
            try:
                async with self._quiet.change():
                    await network.delete(sandbox.attachment)
                return
            except (PluginFailed, OSError) as error:
                log.warning("%s: %s", self._node, error)
                text = _destroy_text(sandbox, error)
                self._tell(SandboxFailed(sandbox.wanted.uid, text, leaving=True))
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _check(self, message: CheckSandbox) -> None:
        sandbox = self._sandboxes.get(message.uid)
        try:
            if sandbox is None or not sandbox.made:
                raise KernelRefused(f"find the sandbox of pod {message.uid}", 2, "no such sandbox")
            await self._network(sandbox.wanted.network, sandbox.wanted.path).check(sandbox.attachment)
        except TestbedError as error:
            self._tell(Failed(message.id, str(error), error.exit_code))
        except (ValueError, OSError) as error:
            self._tell(Failed(message.id, str(error)))
        else:
            self._tell(Done(message.id))

    # --- networks

    def _network(self, text: str, path: tuple[str, ...]) -> Network:
        key = (text := text.replace("@DIR@", str(directory(self._node)))), path
        if key not in self._networks:
            network = protocol.parse(text)
            if self._plugins is None:
                self._plugins = Plugins(self._loop, self._children, self._node)
                self._plugins.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            (self._plugins.directory / f"10-{network.name}.conflist").write_text(text)
            self._networks[key] = Network(self._plugins, network, path)
            self._background(self._watch(self._networks[key]))
        return self._networks[key]

    async def _watch(self, network: Network) -> None:
        """Ask for the network's status, and have it collect what is left over, again and again."""
        collected = self._loop.time()
        while True:
            if network is self._loaded:
                await self._ask(network)
            await asyncio.sleep(STATUS_SECONDS)
            if self._loop.time() - collected >= COLLECT_SECONDS:
                collected = self._loop.time()
                try:
                    await self._collect(network)
                except OSError as error:
                    log.warning("%s: collecting what is left over: %s", self._node, error)

    async def _ask(self, network: Network) -> None:
        """Ask whether the plugins can be used, and tell what is new."""
        try:
            await network.status()
            status = ""
        except (PluginFailed, OSError) as error:
            status = NETWORK_NOT_READY.format(error)
        self._say(status)

    def _say(self, status: str) -> None:
        before, self._status = self._status or "", status
        if status != before:
            self._tell(NetworkStatus(status))
        self._asked.set()

    async def _collect(self, network: Network) -> None:
        async with self._quiet.alone():
            attached = [each.attachment for each in self._sandboxes.values() if each.made]
            valid = [(each.container, each.ifname) for each in attached]
            for failure in await network.collect(valid):
                log.warning("%s: collecting what is left over: %s", self._node, failure)

    def _background(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: plugins", self._node, exc_info=error)


class _Sandbox:
    """A netns with lo up, found by a path as long as it lives. Each that is made after one that could not be
    wired is another, with an id of its own."""

    def __init__(self, wanted: Sandbox, home: str) -> None:
        self.wanted = wanted
        self.unwanted = asyncio.Event()
        self.left = ""  # why an ADD failed that DEL could not take back
        self.told: str | None = None  # why it could not be wired yet for want of a network
        self.made = False
        self._home, self._attempt = Path(home), 0
        self._identify()

    def _identify(self) -> None:
        wanted, container = self.wanted, self.wanted.container
        if self._attempt:
            container = sha256(f"{container} {self._attempt}".encode()).hexdigest()
        self._path = NETNS / f"cni-{container[:32]}"
        self._held = self._home / HELD / self._path.name
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": wanted.namespace,
            "K8S_POD_NAME": wanted.name,
            "K8S_POD_INFRA_CONTAINER_ID": container,
            "K8S_POD_UID": wanted.uid,
        }
        self.attachment = Attachment(
            container, str(self._path), wanted.ifname, tuple(args.items()), wanted.capabilities
        )

    def make(self) -> None:
        """Make the netns. Raises OSError, TestbedError; then nothing of it is there."""
        self.netns, self.made = netns.create(), True
        try:
            self._held.parent.mkdir(parents=True, exist_ok=True)
            self._held.touch()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            syscalls.mount(f"/proc/self/fd/{self.netns}", str(self._path), None, syscalls.MS_BIND)
            with netns.inside(self.netns), Netlink() as links:
                for refusal in links.send([netlink.set_link("lo", up=True)]):
                    raise refusal.error
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Let the netns go, if there is one; what is made next is another."""
        if not self.made:
            return
        self.made, self.left = False, ""
        _release(self._path)
        self._held.unlink(missing_ok=True)
        os.close(self.netns)
        self._attempt += 1
        self._identify()


def _release(path: Path) -> None:
    """Let go of a netns' path."""
    try:
        syscalls.umount(str(path), syscalls.MNT_DETACH)
    except OSError as error:
        log.debug("%s: %s", path, error)  # it was never mounted
    path.unlink(missing_ok=True)


class _Quiet:
    """Any number change at the same time, but not while left-overs are collected: GC excludes ADD and DEL."""

    def __init__(self) -> None:
        self._changing = self._collecting = 0
        self._condition = asyncio.Condition()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        async with self._condition:
            await self._condition.wait_for(lambda: not self._collecting)
            self._changing += 1
        try:
            yield
        finally:
            async with self._condition:
                self._changing -= 1
                self._condition.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._condition:
            self._collecting += 1
            await self._condition.wait_for(lambda: not self._changing)
        try:
            yield
        finally:
            async with self._condition:
                self._collecting -= 1
                self._condition.notify_all()


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait for one of several things."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _within(wait: Coroutine[Any, Any, object], seconds: float) -> None:
    """Wait for something, but not for longer."""
    with suppress(TimeoutError):
        await asyncio.wait_for(wait, seconds)


def _unmade_text(sandbox: _Sandbox, error: Exception) -> str:
    """What the kubelet's event says where there is no netns to begin with."""
    return (
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to create network namespace "
        f'for sandbox "{sandbox.attachment.container}": {error}'
    )


def setup_text(container: str, error: Exception | str) -> str:
    """What the kubelet's event says of a sandbox that could not be made. container: its id."""
    return (
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "
        f'"{container}": {error}'
    )


def _destroy_text(sandbox: _Sandbox, error: Exception) -> str:
    """What the kubelet's event says of a sandbox that could not be taken down."""
    what = f'failed to destroy network for sandbox "{sandbox.attachment.container}": {error}'
    why = f"rpc error: code = Unknown desc = {what}"
    return (
        f'error killing pod: failed to "KillPodSandbox" for "{sandbox.wanted.uid}" with KillPodSandboxError: '
        f"{json.dumps(why)}"
    )
