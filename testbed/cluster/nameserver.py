"""DNS servers of a node's pods: the dnsmasq processes of each, their files, and changing them without a gap.

A server whose configuration changed is started anew beside the old one, on another port; when it answers,
the pod's port 53 is turned to it in one nftables transaction, and the old one goes when what it still has to
answer is answered. Questions over UDP are rewritten without connection tracking, so that those in flight come
back from port 53 whoever answers them; connections over TCP stay with the server that took them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.apps.wire import dns
from testbed.cluster.messages import FeedNames, NamesFed, WantNames
from testbed.cluster.programs import Log, Programs
from testbed.dns.dnsmasq import FIRST_PORT, HOSTS, PLACE, ROLES, UNASKED, port, with_ports
from testbed.errors import NotConverged, TestbedError
from testbed.kernel import execute, process
from testbed.kernel.apply import RealKernel
from testbed.state import NameFiles, PodState

log = logging.getLogger(__name__)

STATE = Path("/run/testbed-dns")
"""In the sandbox: a directory per server."""

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

PORTS = 16
"""How many ports a role has: more than there are servers of it at a time."""
RESTART_SECONDS = 1.0
"""How long after a restart the next may begin."""
DRAIN_SECONDS = 5.0
"""How long a replaced server goes on: as long as resolvers wait for an answer (``resolv.conf(5)``)."""
START_SECONDS = 5.0
FAILED = 1 << 8
"""The wait status of a container whose server could not be started: exit code 1."""
REFRESH_SECONDS = 30.0
"""How often names outside are asked for again that aliases lead to, as ``cache 30`` would."""
ASK_SECONDS = 2.0
ASK_AT_ONCE = 64
"""How many names outside are asked for at a time: a silent one keeps few others waiting."""


@dataclass(frozen=True)
class Surroundings:
    """What a server needs of its node. kernel: holds the pods' netns."""

    loop: asyncio.AbstractEventLoop
    programs: Programs
    children: process.Children
    kernel: RealKernel


class Nameservers:
    """All DNS servers of one node. tell: sends a message to the daemon."""

    def __init__(self, around: Surroundings, tell: Callable[[Any], object]) -> None:
        self._around, self._tell = around, tell
        self._servers: dict[tuple[str, str], Nameserver] = {}
        self._files = NameFiles()
        self._serial = -1
        self._told = (-1, -1)
        self._wanted = False

    def start(
        self,
        pod: PodState,
        container: str,
        output: Log,
        ready: Callable[[], None],
        ended: Callable[[int], None],
    ) -> Nameserver:
        """Run the DNS server of a container; see ``Nameserver``."""
        own = pod.nameservers[container]
        server = Nameserver(self._around, pod, container, output, ready, ended, self._report)
        self._servers[pod.uid, container] = server
        if own != NameFiles():
            server.read(own, 0)
        elif self._serial >= 0:
            server.read(self._files, self._serial)
        elif not self._wanted:
            self._wanted = True
            self._tell(WantNames())
        return server

    def feed(self, change: FeedNames) -> None:
        """Bring what the servers read up to date."""
        before = NameFiles() if change.whole else self._files
        hosts = {name: text for name, text in {**before.hosts, **change.hosts}.items() if text}
        externals = before.externals if change.externals is None else change.externals
        self._files = NameFiles(hosts, {**before.servers, **change.servers}, externals)
        self._serial = change.serial
        for server in self._fed():
            server.read(self._files, change.serial)
        self._report()

    def stop(self, uid: str) -> None:
        """A pod goes: forget its servers. Their processes are killed by ``Programs.stop``."""
        for key in [key for key in self._servers if key[0] == uid]:
            self._servers.pop(key).close()
        self._report()

    def close(self) -> None:
        """Forget all."""
        for uid, _ in list(self._servers):
            self.stop(uid)

    def _fed(self) -> list[Nameserver]:
        return [server for server in self._servers.values() if server.fed and not server.over]

    def _report(self) -> None:
        """Tell the daemon how far all servers are."""
        fed = self._fed()
        now = (
            min((server.read_serial for server in fed), default=self._serial),
            min((server.run_serial for server in fed), default=self._serial),
        )
        if self._wanted and self._serial >= 0 and now != self._told:
            self._told = now
            self._tell(NamesFed(*now))


class Nameserver:
    """One DNS server: some dnsmasq processes that together answer on a pod's port 53.

    ready: called once, when it answers for the first time; ended: with a wait status, once, when a process
    that should run has ended (the others are then ended too) or all have after ``signal``.
    """

    def __init__(
        self,
        around: Surroundings,
        pod: PodState,
        container: str,
        output: Log,
        ready: Callable[[], None],
        ended: Callable[[int], None],
        progress: Callable[[], None],
    ) -> None:
        self._around, self._pod, self._container, self._output = around, pod, container, output
        self._ready, self._ended, self._progress = ready, ended, progress
        self.fed = pod.nameservers[container] == NameFiles()
        self._directory = STATE / pod.uid / container
        shutil.rmtree(self._directory, ignore_errors=True)
        (self._directory / HOSTS).mkdir(parents=True)
        self._wanted, self._hosts = NameFiles(), dict[str, str]()
        self.read_serial = self.run_serial = -1
        self._serial = -1
        self._running: dict[str, tuple[int, int, str]] = {}  # role → pid, port, its configuration
        self._pids: set[int] = set()
        self._last_port = dict(FIRST_PORT)
        self._changed = asyncio.Event()
        self._task = around.loop.create_task(self._work())
        self._resolving: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.over = self._ending = self._answered = False
        self._status: int | None = None  # what ended it, where nobody asked it to end

    def read(self, files: NameFiles, serial: int) -> None:
        """From now on read these. Hosts files take effect at once, configurations after a restart."""
        asked_before = self._wanted.externals
        self._wanted, self._serial = files, serial
        self._write_hosts()
        if files.externals != asked_before and self._answered:
            self._resolve()
        self.read_serial = serial
        self._changed.set()

    def signal(self, number: int) -> None:
        """Send a signal to every process; asked to end it ends, and says so, even where none runs yet."""
        for pid in self._pids:
            self._around.children.signal(pid, number, group=True)
        if number in (signal.SIGTERM, signal.SIGKILL):
            self._ending = True
            self._stop_working()
            if not self._pids:
                self._finish(self._status or 0)

    def close(self) -> None:
        """The pod goes."""
        self._stop_working()
        self.over = True
        shutil.rmtree(self._directory, ignore_errors=True)

    def _stop_working(self) -> None:
        self._task.cancel()
        if self._resolving:
            self._resolving.cancel()
        for timer in self._timers:
            timer.cancel()

    def _finish(self, status: int) -> None:
        if not self.over:
            self.over = True
            self._stop_working()
            self._ended(status)
            self._progress()

    # --- processes ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                if await self._restart():
                    if self._resolving is None:  # one that is under way goes on: servers that go answer yet
                        self._resolve()
                    await asyncio.sleep(RESTART_SECONDS)
        except (TestbedError, OSError) as error:
            log.warning("pod %s/%s: %s", self._pod.namespace, self._pod.name, error)
            self._output.append(f"{error}\n".encode())
            self._fail()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("pod %s/%s: its DNS server", self._pod.namespace, self._pod.name)
            self._fail()

    def _fail(self) -> None:
        """What was to be started does not run: what runs goes on; without any, the container has failed."""
        if not self._answered:
            self._status = FAILED
            self.signal(signal.SIGKILL)
        else:
            self._timers.append(self._around.loop.call_later(RESTART_SECONDS, self._retry))

    def _retry(self) -> None:
        if not self._ending and not self.over:
            self._task = self._around.loop.create_task(self._work())
            self._changed.set()

    async def _restart(self) -> bool:
        """Have every role run with its present configuration. Whether anything had to be started."""
        serial, files = self._serial, self._wanted
        ports = {role: number for role, (_, number, _) in self._running.items()}
        started: dict[str, tuple[int, int, str]] = {}
        try:
            for role in (role for role in ROLES if role in files.servers):
                text = files.servers[role]
                if role in self._running and self._running[role][2] == with_ports(text, ports):
                    continue
                number = ports[role] = self._next_port(role) if port(role) in text else 0
                text = with_ports(text, ports)
                started[role] = (self._start(role, text), number, text)
            for pid, _, text in started.values():
                await self._answers(text, pid)
            if "front" in started and ports["front"]:
                await self._turn_to(ports["front"])
            if lost := [role for role, (pid, _, _) in started.items() if pid not in self._pids]:
                raise TestbedError(f"dnsmasq in the role {', '.join(lost)} ended as soon as it had answered")
        except BaseException:
            for pid, _, _ in started.values():
                self._around.children.signal(pid, signal.SIGKILL, group=True)
            raise
        replaced = [self._running[role][0] for role in started if role in self._running]
        self._running |= started
        for pid in replaced:
            self._timers.append(self._around.loop.call_later(DRAIN_SECONDS, self._end, pid))
        self._timers = [timer for timer in self._timers if timer.when() > self._around.loop.time()]
        self.run_serial = serial
        if files.servers and not self._answered:
            self._answered = True
            self._ready()
        self._progress()
        return bool(started)

    def _next_port(self, role: str) -> int:
        first, last = FIRST_PORT[role], self._last_port[role]
        self._last_port[role] = first + (last - first + 1) % PORTS
        return last

    def _start(self, role: str, text: str) -> int:
        (self._directory / f"{role}.conf").write_text(text)
        argv = ("dnsmasq", "--keep-in-foreground", f"--conf-file={PLACE}/{role}.conf")
        volumes = {PLACE: str(self._directory)}
        run = self._around.programs.run
        pid = 0

        def over(status: int) -> None:
            self._pids.discard(pid)
            self._exited(pid, status)

        pid = run(self._pod, self._container, argv, self._output, over, volumes, ENV)
        self._pids.add(pid)
        return pid

    def _exited(self, pid: int, status: int) -> None:
        """Over when all have ended: the next run takes their ports."""
        if not self._ending and any(pid == running for running, _, _ in self._running.values()):
            self._status = status
            self.signal(signal.SIGKILL)
        elif self._ending and not self._pids:
            self._finish(status if self._status is None else self._status)

    def _end(self, pid: int) -> None:
        self._around.children.signal(pid, signal.SIGTERM, group=True)

    async def _answers(self, text: str, pid: int) -> None:
        """Wait until the server of a configuration answers. Raises NotConverged."""
        where = re.search(r"^listen-address=(.*)$", text, re.MULTILINE)
        number = re.search(r"^port=(\d+)$", text, re.MULTILINE)
        address = (where[1] if where else "127.0.0.1", int(number[1]) if number else 53)
        loop = self._around.loop
        begun = loop.time()
        with self._socket(address) as sock:
            while loop.time() - begun < START_SECONDS and pid in self._pids:
                try:
                    await loop.sock_sendall(sock, dns.question(1, UNASKED, "A"))
                    async with asyncio.timeout(0.05):
                        await loop.sock_recv(sock, 512)
                    return
                except ConnectionRefusedError:
                    await asyncio.sleep(0.002)
                except TimeoutError:
                    continue
        last = bytes(self._output).decode(errors="replace").splitlines()[-1:]
        raise NotConverged(f"dnsmasq on {address[0]}#{address[1]} answers", loop.time() - begun, *last)

    def _socket(self, address: tuple[str, int]) -> socket.socket:
        def open_socket() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(address)
            return sock

        return self._around.kernel.enter(self._pod.uid, open_socket)

    async def _turn_to(self, number: int) -> None:
        """Turn the pod's port 53 to a server's port. Raises TestbedError."""
        over: asyncio.Future[int] = self._around.loop.create_future()
        with open(os.memfd_create("rules"), "w+b") as rules, open(os.devnull, "wb") as nowhere:
            rules.write(turning_rules(number).encode())
            rules.flush()
            rules.seek(0)
            stdio = rules.fileno(), nowhere.fileno(), nowhere.fileno()
            netns = self._around.kernel.netns(self._pod.uid)
            pid = execute.spawn(["nft", "-f", "-"], env=ENV, stdio=stdio, netns=netns)

        def ended(status: int) -> None:
            if not over.done():
                over.set_result(status)

        self._around.children.watch(pid, ended)
        if code := process.exit_code(await over):
            raise TestbedError(f"nft could not turn port 53 to {number}: exit code {code}")

    # --- files --------------------------------------------------------------------------------------

    def _write_hosts(self) -> None:
        wanted = self._wanted.hosts
        for name, text in wanted.items():
            if self._hosts.get(name) != text:
                self._write(name, text)
        for name in self._hosts.keys() - wanted.keys():
            (self._directory / HOSTS / name).unlink()
        self._hosts = dict(wanted)

    def _write(self, name: str, text: str) -> None:
        """Put a hosts file in its place, whole: dnsmasq looks at no name with a leading dot."""
        draft = self._directory / HOSTS / f".{name}"
        draft.write_text(text)
        draft.rename(self._directory / HOSTS / name)

    # --- names outside ------------------------------------------------------------------------------

    def _resolve(self) -> None:
        if self._resolving:
            self._resolving.cancel()
        self._resolving = self._around.loop.create_task(self._resolve_externals())

    async def _resolve_externals(self) -> None:
        """Ask for the addresses of names outside that aliases lead to, again and again."""
        while self._wanted.externals and "cache" in self._running:
            asked = [(name, kind) for name in self._wanted.externals for kind in ("A", "AAAA")]
            text = ""
            for some in (asked[at : at + ASK_AT_ONCE] for at in range(0, len(asked), ASK_AT_ONCE)):
                answers = await asyncio.gather(*(self._ask(name, kind) for name, kind in some))
                for (name, _), addresses in zip(some, answers, strict=True):
                    text += "".join(f"{address} {name}\n" for address in addresses)
            self._write("externals", text)
            await asyncio.sleep(REFRESH_SECONDS)
        (self._directory / HOSTS / "externals").unlink(missing_ok=True)

    async def _ask(self, name: str, kind: str) -> list[str]:
        """The addresses of a name outside; none where nobody answers in time."""
        loop = self._around.loop
        where = "127.0.0.1", self._running["cache"][1]
        with self._socket(where) as sock, contextlib.suppress(TimeoutError, OSError, dns.Malformed):
            await loop.sock_sendall(sock, dns.question(1, name, kind))
            async with asyncio.timeout(ASK_SECONDS):
                answer = dns.parse(await loop.sock_recv(sock, 4096))
            return [record.data for record in answer.answers if record.type == kind]
        return []


def turning_rules(number: int) -> str:
    """The nftables script that turns port 53 to ``number``; answers of all the role's ports leave from 53."""
    first = FIRST_PORT["front"]
    return f"""\
table inet testbed-dns
delete table inet testbed-dns
table inet testbed-dns {{
	chain questions {{
		type filter hook prerouting priority raw;
		ip daddr 127.0.0.0/8 accept
		udp dport 53 notrack udp dport set {number}
	}}
	chain answers {{
		type filter hook output priority raw;
		ip daddr 127.0.0.0/8 accept
		udp sport {first}-{first + PORTS - 1} notrack udp sport set 53
	}}
	chain connections {{
		type nat hook prerouting priority dstnat;
		tcp dport 53 redirect to :{number}
	}}
}}
"""
