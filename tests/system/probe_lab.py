"""Pods on two nodes, hand-made with ``ip``, for measuring without a cluster.

Everything hangs on namespaces that only descriptors of the calling process hold: use it in a child
process (``in_child``), and the kernel removes all of it when that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from testbed.measure.sockets import CLONE_NEWNET, enter
from testbed.wait import wait_until

TCP_PORT, UDP_PORT = 8080, 8081
CLONE_NEWUSER = 0x10000000
_libc = ctypes.CDLL(None, use_errno=True)


def in_child(body: Callable[..., Any], *args: Any) -> Any:
    """Run ``body(*args)`` in a child with a netns of its own; return or raise what it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        try:
            _become_root()
            os.close(_new_netns())
            result = (True, body(*args))
        except BaseException:  # noqa: BLE001  handed to the parent as it is
            result = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as out:
            pickle.dump(result, out)
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as source:
        data = source.read()
    os.waitpid(child, 0)
    assert data, "the child died"
    fine, value = pickle.loads(data)  # noqa: S301  our own child
    assert fine, value
    return value


def _become_root() -> None:
    """As an ordinary user: root of a user namespace, which is all that a netns of one's own needs."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return
    assert _libc.unshare(CLONE_NEWUSER) == 0
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _new_netns() -> int:
    assert _libc.unshare(CLONE_NEWNET) == 0
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def ip(lines: Iterable[str]) -> None:
    """Run lines of ``ip -batch`` in the netns this thread is in."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, pass_fds=())


def sysctl(path: str, value: str) -> None:
    Path("/proc/sys/net", path).write_text(value)


class Lab:
    """``nodes`` bridges with ``pods`` pods in all, the k-th on node k mod nodes; a switch joins the nodes.

    fds: netns by name (``pod-0`` …, ``node-0`` …); ips: pod → address.
    """

    def __init__(self, pods: int, nodes: int = 2, *, ipv6: bool = False) -> None:
        self.switch = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.fds: dict[str, int] = {}
        self.ips: dict[str, str] = {}
        self._servers: list[int] = []
        self._listeners: list[socket.socket] = []
        ip(["link add br0 type bridge", "link set br0 up", "link set lo up"])
        for number in range(nodes):
            self._add_node(number, nodes)
        for number in range(pods):
            self._add_pod(number, number % nodes, ipv6)
        enter(self.switch)
        self._wait_forwarding()

    def _wait_forwarding(self) -> None:
        """Bridge ports forward only when the kernel's link watch has seen their carrier."""

        def forwards() -> bool:
            shown = subprocess.run(["bridge", "-j", "link"], capture_output=True, check=True).stdout
            return all(port.get("state") == "forwarding" for port in json.loads(shown or b"[]"))

        for name in ("", *(name for name in self.fds if name.startswith("node-"))):
            enter(self.fds[name] if name else self.switch)
            wait_until(forwards, 10, f"bridge ports of {name or 'the switch'} forward")
        enter(self.switch)

    def inside(self, name: str, lines: Iterable[str]) -> None:
        """``ip`` lines in a netns."""
        enter(self.fds[name])
        ip(lines)
        enter(self.switch)

    def run(self, name: str, argv: list[str]) -> None:
        """A program in a netns."""
        enter(self.fds[name])
        subprocess.run(argv, check=True)
        enter(self.switch)

    def _add_netns(self, name: str) -> str:
        enter(self.switch)
        self.fds[name] = _new_netns()
        return f"/proc/{os.getpid()}/fd/{self.fds[name]}"

    def _add_node(self, number: int, nodes: int) -> None:
        path = self._add_netns(f"node-{number}")
        enter(self.switch)
        ip(
            [
                f"link add node{number} type veth peer name eth0 netns {path}",
                f"link set node{number} master br0 up",
            ]
        )
        enter(self.fds[f"node-{number}"])
        sysctl("ipv4/ip_forward", "1")
        sysctl("ipv6/conf/all/forwarding", "1")
        sysctl("ipv6/conf/default/accept_dad", "0")
        routes = [
            f"route add 10.244.{other}.0/24 via 192.168.100.{10 + other}"
            for other in range(nodes)
            if other != number
        ]
        ip(
            [
                "link set lo up",
                "link set eth0 up",
                f"addr add 192.168.100.{10 + number}/24 dev eth0",
                "link add cni0 type bridge",
                "link set cni0 up",
                f"addr add 10.244.{number}.1/24 dev cni0",
                f"addr add fd00:{number}::1/64 dev cni0 nodad",
                *routes,
            ]
        )

    def _add_pod(self, number: int, node: int, ipv6: bool) -> None:
        path = self._add_netns(f"pod-{number}")
        address = f"10.244.{node}.{number // 2 + 2}" if not ipv6 else f"fd00:{node}::{number + 2:x}"
        self.ips[f"pod-{number}"] = address
        enter(self.fds[f"node-{node}"])
        ip(
            [
                f"link add veth{number} type veth peer name eth0 netns {path}",
                f"link set veth{number} master cni0 up",
            ]
        )
        enter(self.fds[f"pod-{number}"])
        sysctl("ipv6/conf/eth0/accept_dad", "0")
        gateway, prefix = (f"10.244.{node}.1", 24) if not ipv6 else (f"fd00:{node}::1", 64)
        ip(
            [
                "link set lo up",
                "link set eth0 up",
                f"addr add {address}/{prefix} dev eth0" + (" nodad" if ipv6 else ""),
                f"route add default via {gateway}",
            ]
        )

    def serve(self, closed: Iterable[str] = ()) -> None:
        """TCP accept and UDP echo in every pod but those ``closed``, in a child process."""
        for name, address in self.ips.items():
            if name in closed:
                continue
            enter(self.fds[name])
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            tcp = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, TCP_PORT))
            tcp.listen(128)
            udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            udp.bind((address, UDP_PORT))
            self._listeners += [tcp, udp]
        enter(self.switch)
        child = os.fork()
        if child == 0:
            _libc.prctl(1, signal.SIGKILL, 0, 0, 0)
            _serve(self._listeners)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._servers.append(child)

    def close(self) -> None:
        for child in self._servers:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for fd in self.fds.values():
            os.close(fd)


def _serve(listeners: list[socket.socket]) -> None:
    selector = selectors.DefaultSelector()
    for listener in listeners:
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if sock.type == socket.SOCK_DGRAM:
                    data, sender = sock.recvfrom(2048)
                    sock.sendto(data, sender)
                else:
                    sock.accept()[0].close()
            except (BlockingIOError, ConnectionResetError):
                continue
