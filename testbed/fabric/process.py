"""The fabric process: builds the network, says so, then serves its hosts' namespaces, programs and shell."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from mininet.topo import Topo

from testbed.cluster.messages import (
    AnyMessage,
    ChangeEnd,
    Done,
    Exec,
    Exited,
    FabricReady,
    Failed,
    GetNetns,
    Netns,
    OpenShell,
    Readdress,
    SetRoutes,
    Signal,
    Started,
)
from testbed.errors import InputError, TestbedError
from testbed.fabric import nodes
from testbed.fabric.network import ClusterNet
from testbed.fabric.shell import ClusterCLI, Terminal
from testbed.kernel.channel import AsyncChannel, Channel, ChannelClosed
from testbed.kernel.execute import failure_code, failure_text, spawn
from testbed.kernel.process import Children, exit_code

log = logging.getLogger(__name__)


def main(sock: socket.socket, topo: Topo) -> None:
    """Build ``topo`` in this process's network namespace and serve until the other end of ``sock`` is gone.

    Sends FabricReady once every link carried a frame, or Failed with id 0 and ends.
    """
    # A Mininet node's commands run on a terminal, where ip of Debian 13 writes in colours, into pipes too.
    os.environ["NO_COLOR"] = "1"
    net = ClusterNet(topo)
    try:
        net.start()
    except TestbedError as error:
        with suppress(ChannelClosed):  # the daemon is gone
            Channel[AnyMessage](sock, AnyMessage).send(Failed(0, str(error), error.exit_code))
        return
    asyncio.run(_serve(sock, net))


async def _serve(sock: socket.socket, net: ClusterNet) -> None:
    channel = AsyncChannel[AnyMessage](sock, AnyMessage)
    fabric = Fabric(net, channel)
    try:
        channel.send(ready(net))
        while True:
            message, fds = await channel.receive()
            fabric.handle(message, fds)
    except ChannelClosed:
        log.info("the daemon is gone")
    finally:
        fabric.close()


def ready(net: ClusterNet) -> FabricReady:
    """What there is to say of a network that is up."""
    links = (
        (one.node.name, one.name, other.node.name, other.name)
        for one, other in (wire.ends for wire in net.links)
    )
    return FabricReady({host.name: nodes.role(host) for host in net.hosts}, tuple(links), dict(net.seconds))


class Fabric:
    """Answers the daemon's messages about one network."""

    def __init__(self, net: ClusterNet, channel: AsyncChannel[AnyMessage]) -> None:
        self._net, self._channel = net, channel
        self._loop = asyncio.get_running_loop()
        self._children = Children(self._loop)
        self._programs: dict[int, int] = {}
        self._shell: tuple[int, Terminal] | None = None

    def handle(self, message: AnyMessage, fds: Sequence[int]) -> None:
        """Act on one message. Its descriptors are closed, a failure is answered by Failed."""
        try:
            match message:
                case GetNetns():
                    self._get_netns(message)
                case Exec():
                    self._exec(message, fds)
                case Signal():
                    self._signal(message)
                case OpenShell():
                    self._open_shell(message.id, fds)
                case ChangeEnd():
                    self._net.change_end(
                        message.host, message.port, up=message.up, mtu=message.mtu, shaping=message.shaping
                    )
                    self._channel.send(Done(message.id))
                case Readdress():
                    self._net.readdress(message.host, message.addresses)
                    self._channel.send(Done(message.id))
                case SetRoutes():
                    self._net.set_routes(message.routes)
                    self._channel.send(Done(message.id))
                case _:
                    log.error("unexpected message %s", type(message).__name__)
        except TestbedError as error:
            self._channel.send(Failed(getattr(message, "id", 0), str(error), error.exit_code))
        except OSError as error:  # such as the namespace of a host whose shell somebody has killed
            self._channel.send(Failed(getattr(message, "id", 0), str(error)))
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """End what was started for others; the network stays until this process ends."""
        self._children.kill_all()
        if self._shell is not None:
            self._shell[1].hang_up()

    def _open_netns(self, name: str) -> int:
        """A descriptor of the netns of a host (of a switch: the one all switches share)."""
        if name not in self._net:
            raise InputError(f"no host {name!r} in the fabric: there are {', '.join(self._net.keys())}")
        return os.open(f"/proc/{self._net[name].pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _get_netns(self, message: GetNetns) -> None:
        opened: list[int] = []
        try:
            for name in message.names:
                opened.append(self._open_netns(name))
            self._channel.send(Netns(message.id, message.names), opened)
        finally:
            for fd in opened:
                os.close(fd)

    def _exec(self, message: Exec, fds: Sequence[int]) -> None:
        stdin, stdout, stderr = fds
        netns = self._open_netns(message.where)
        try:
            pid = spawn(
                message.argv,
                env=message.env,
                cwd=message.cwd,
                stdio=(stdin, stdout, stderr),
                netns=netns,
                hostname=message.where,
                tty=message.tty,
            )
        except OSError as error:
            self._channel.send(Failed(message.id, failure_text(error), failure_code(error)))
            return
        finally:
            os.close(netns)
        self._programs[message.id] = pid
        self._channel.send(Started(message.id, pid))
        self._children.watch(pid, lambda status: self._ended(message.id, exit_code(status)))

    def _ended(self, request: int, code: int) -> None:
        self._programs.pop(request, None)
        if not self._channel.closed:
            self._channel.send(Exited(request, code))

    def _signal(self, message: Signal) -> None:
        if self._shell is not None and self._shell[0] == message.id:
            terminal = self._shell[1]
            terminal.interrupt() if message.number == signal.SIGINT else terminal.hang_up()
        elif message.id in self._programs:
            self._children.signal(self._programs[message.id], message.number, group=True)

    def _open_shell(self, request: int, fds: Sequence[int]) -> None:
        if self._shell is not None:
            raise InputError("somebody else uses the shell; only one at a time")
        # Copies: the thread outlives this message's descriptors.
        terminal = Terminal(os.dup(fds[0]), os.dup(fds[1]))
        self._shell = (request, terminal)

        def run() -> None:
            try:
                ClusterCLI(self._net, terminal).run_until_left()
            except Exception:
                log.exception("the shell failed")
            finally:
                if not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._shell_left, request)

        threading.Thread(target=run, name="shell", daemon=True).start()

    def _shell_left(self, request: int) -> None:
        assert self._shell is not None  # noqa: S101 - it is what has just been left
        self._shell[1].close()
        self._shell = None
        self._ended(request, 0)
