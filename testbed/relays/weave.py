"""Weave's router as far as packets go: frames between peers over UDP 6783 (sleeve), and heartbeats of fastdp.

    python -m testbed.relays.weave CONFIG.json

Frames that leave the bridge by a port (``vethwe-pcap``, in mode fastdp ``vethwe-datapath``) are captured
there, sent to the peer that their destination is known at or along the source's broadcast tree, relayed by
peers in between, and put in at the other end's port. A packet: the sender's name (6 bytes), then for each
frame the names of its source's and its destination's peer, its length (2 bytes) and the frame. What may not
be fragmented (DF) goes by a socket that sets DF, too; what is larger than the path then takes is answered by
ICMP.

In mode fastdp the kernel carries frames, to every peer whose heartbeats come: frames as large as the
datapath's MTU, in VXLAN. To a peer whose heartbeats die, or that says that ours do, frames go by sleeve,
until they are back. CONFIG is read anew when it changes; ``status.json`` beside it says how each peer is
reached.

Sources: weave 2.8 ``router/{sleeve,fastdp,network_router,overlay_switch,ethernet_decoder}.go``. What weave
tells by its control connection (TCP) is told by special frames of sleeve here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import KernelRefused
from testbed.kernel import ethtool, netlink
from testbed.relays.checksum import checksum
from testbed.state import FdbEntry

PORT = 6783
NAME, FRAME = 6, 14
"""Bytes of a packet's header and of a frame's; the latter is two names and a length."""
ETHERNET, UDP_OVERHEAD = 14, 28
OVERHEAD = UDP_OVERHEAD + NAME + FRAME + ETHERNET
"""Bytes around an IP packet of a pod: 62."""
MOST_UDP = 65535 - UDP_OVERHEAD
MTU_ATTEMPTS, MTU_FIRST_TIMEOUT = 8, 0.01
FORGET_SECONDS = 1.0
"""How often what the kernel learned of a peer that is reached by sleeve is forgotten."""
FRAGMENT_TEST, FRAGMENT_TEST_INTERVAL = 60001, 300.0
MAC_AGE = 600.0
MOST_AT_ONCE = 100
"""Frames that are taken before what was gathered is sent."""
LOOK, LOOK_SOON = 0.25, 0.01
"""Seconds after which clocks and the configuration are looked at; while an MTU is being tested."""
EARLY = 6
"""Fast heartbeats without an answer after which a peer never heard by fastdp is reached by sleeve."""

HEARTBEAT, CONTROL = ETHERNET + 8, ETHERNET + 9
"""Lengths of special frames, whose Ethernet header is all zeros; those of other lengths test the MTU."""
ESTABLISHED, FRAGMENTED, MTU_VERIFIED, FAST_HEARD = 1, 2, 3, 4
FAST_TYPE = 0x88B5
"""EtherType of fastdp's heartbeats (local experimental); weave's have a VXLAN flow of their own."""

FLOOD = "00:00:00:00:00:00"
UNFORWARDED = bytes.fromhex("0180c2000000")
SOL_PACKET, ADD_MEMBERSHIP, PROMISCUOUS, IGNORE_OUTGOING = 263, 1, 1, 23
MTU_DISCOVER, DISCOVER_NOT, DISCOVER, MTU = 10, 0, 2, 14
ATTACH_FILTER = 26

Program = Sequence[tuple[int, int, int, int]]
NOTHING: Program = ((0x06, 0, 0, 0),)
EVERYTHING: Program = ((0x06, 0, 0, 0x40000),)
HEARTBEATS: Program = ((0x28, 0, 0, 12), (0x15, 0, 1, FAST_TYPE), (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0))
"""Classic BPF: (code, jump if true, jump if false, value)."""


def hear(sock: socket.socket, program: Program) -> None:
    """Let a socket hear what a filter keeps."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    sock.setsockopt(
        socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
    )


def name_of(text: str) -> bytes:
    """A peer's name in a packet."""
    return bytes.fromhex(text.replace(":", ""))


@dataclass
class Config:
    """What the router is to do. peers: neighbours by name; unicast: peer → neighbour on the way to it;
    broadcast: source's peer → neighbours that its broadcasts are sent on to. MACs and names: as bytes."""

    name: bytes
    port: str
    bridge_port: str
    vxlan: str
    mtu: int
    fast: float
    slow: float
    timeout: float
    peers: dict[bytes, Neighbour]
    unicast: dict[bytes, bytes]
    broadcast: dict[bytes, tuple[bytes, ...]]

    @classmethod
    def of(cls, text: str) -> Config:
        """A configuration file's."""
        data = json.loads(text)
        clocks = {key: float(data["clocks"][key]) for key in ("fast", "slow", "timeout")}
        return cls(
            name_of(data["name"]),
            data["port"],
            data["bridgePort"],
            data["vxlan"],
            data["mtu"],
            clocks["fast"],
            clocks["slow"],
            clocks["timeout"],
            {
                name_of(name): Neighbour(each["node"], each["address"], name_of(each["datapath"]))
                for name, each in data["peers"].items()
            },
            {name_of(to): name_of(by) for to, by in data["unicast"].items()},
            {name_of(name): tuple(map(name_of, hops)) for name, hops in data["broadcast"].items()},
        )


@dataclass(frozen=True)
class Neighbour:
    """A peer that there is a connection to. datapath: where fastdp's heartbeats are sent to."""

    node: str
    address: str
    datapath: bytes


@dataclass
class Link:
    """A connection. mtu: of pods' packets by sleeve; fragments: whether the path was seen to carry fragments.

    heard: when a heartbeat came last, 0.0 never; fast_heard: of fastdp; hears: whether the peer says that it
    hears ours by fastdp. by_sleeve: that frames go this way.
    """

    name: bytes
    to: Neighbour
    sender: socket.socket
    begun: float
    mtu: int
    most: int
    fragments: bool = False
    heard: float = 0.0
    established: bool = False
    next_heartbeat: float = 0.0
    next_fragment_test: float = 0.0
    fast_heard: float = 0.0
    hears: bool | None = None
    next_fast: float = 0.0
    by_sleeve: bool = True
    next_forget: float = 0.0
    queue: list[bytes] = field(default_factory=list)
    queue_df: list[bytes] = field(default_factory=list)
    candidate: int = 0
    good: int = 0
    bad: int = 0
    attempts: int = 0
    test_ends: float = 0.0


class Router:
    """The router of one node. path: of its configuration."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = 0
        self._config = self._read()
        self._links: dict[bytes, Link] = {}
        self._macs: dict[bytes, tuple[bytes, float]] = {}  # MAC → the peer it is at, when it was seen
        self._selector = selectors.DefaultSelector()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DISCOVER_NOT)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._udp.bind(("", PORT))
        self._port = self._packets(self._config.port)
        self._listen(self._udp, self._received)
        self._listen(self._port, self._captured)
        self._fast: socket.socket | None = None
        if self._config.vxlan:
            self._fast = self._packets(self._config.vxlan)
            hear(self._fast, HEARTBEATS)
            self._listen(self._fast, self._fast_received)
        self._devices = self._indexes()
        self._told = ""
        self._follow()

    def _listen(self, sock: socket.socket, act: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, act)

    @staticmethod
    def _packets(interface: str) -> socket.socket:
        """A packet socket that hears all that comes in by a device."""
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((interface, 3))
        wish = struct.pack("=iHH8s", socket.if_nametoindex(interface), PROMISCUOUS, 0, b"")
        sock.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, wish)
        return sock

    def run(self) -> None:
        """Route until the process is ended."""
        while True:
            testing = any(link.candidate for link in self._links.values())
            for key, _ in self._selector.select(LOOK_SOON if testing else LOOK):
                key.data()
            self._flush()
            self._clocks()

    # --- configuration ------------------------------------------------------------------------------------

    def _read(self) -> Config:
        self._read_at = self._path.stat().st_mtime_ns
        return Config.of(self._path.read_text())

    def _follow(self) -> None:
        """Have a connection to each neighbour that is named, and to no other."""
        now = time.monotonic()
        for name in [name for name, link in self._links.items() if self._config.peers.get(name) != link.to]:
            link = self._links.pop(name)
            link.sender.close()
            if self._fast is not None:
                self._forget_learned(link)
            self._macs = {mac: seen for mac, seen in self._macs.items() if seen[0] != name}
        for name, to in self._config.peers.items():
            if name not in self._links:
                sender = self._sender(to.address)
                whole = self._path_mtu(sender)
                self._links[name] = Link(
                    name,
                    to,
                    sender,
                    now,
                    whole - OVERHEAD,
                    whole - UDP_OVERHEAD,
                    by_sleeve=self._fast is None,
                )
                if self._fast is not None:  # one that ran before may have left it out
                    self._flood(self._links[name], add=True)
        self._watch_port()

    @staticmethod
    def _sender(address: str) -> socket.socket:
        """A socket that sends to a peer with DF set and hears nothing."""
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        hear(sender, NOTHING)
        sender.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, DISCOVER)
        sender.connect((address, 0))
        return sender

    @staticmethod
    def _path_mtu(sender: socket.socket) -> int:
        return sender.getsockopt(socket.IPPROTO_IP, MTU)

    def _watch_port(self) -> None:
        """Frames are only looked at while some peer is reached by sleeve, with whole checksums and no longer
        than the MTU."""
        needed = any(link.by_sleeve for link in self._links.values())
        hear(self._port, EVERYTHING if needed else NOTHING)
        if self._fast is not None:
            ethtool.set_tx_checksum(self._config.bridge_port, not needed)
        self._tell()

    def _tell(self) -> None:
        """``weave status connections``, as data."""
        status = {
            link.to.node: {
                "name": link.name.hex(":"),
                "address": link.to.address,
                "overlay": "sleeve" if link.by_sleeve else "fastdp",
                "mtu": link.mtu if link.by_sleeve else self._config.mtu,
                "established": link.established,
            }
            for link in self._links.values()
        }
        text = json.dumps(status, indent=1, sort_keys=True)
        if text != self._told:
            draft = self._path.with_name(".status.json.new")
            draft.write_text(text)
            draft.rename(self._path.with_name("status.json"))
            self._told = text

    # --- frames of this node's pods -----------------------------------------------------------------------

    def _captured(self) -> None:
        for frame in _waiting(self._port, 1 << 17):
            self._capture(frame)

    def _capture(self, frame: bytes) -> None:
        to, source = frame[:6], frame[6:12]
        if len(frame) < ETHERNET or to == UNFORWARDED:
            return
        own = self._config.name
        if self._where(source) not in (None, own):
            return  # a MAC of another peer's: a conflict, or a frame that comes round
        self._macs[source] = own, time.monotonic()
        peer = self._where(to)
        if peer == own:
            return
        if peer is not None and not to[0] & 1:
            self._unicast(own, peer, frame)
        else:
            self._broadcast(own, frame)

    def _where(self, mac: bytes) -> bytes | None:
        """The peer that a MAC is at; None if none is known, or too long ago."""
        found = self._macs.get(mac)
        if found is None or time.monotonic() - found[1] > MAC_AGE:
            return None
        return found[0]

    def _unicast(self, source: bytes, peer: bytes, frame: bytes) -> None:
        hop = self._links.get(self._config.unicast.get(peer, b""))
        if hop is not None and hop.by_sleeve:
            self._forward(hop, source, peer, frame, broadcast=False)

    def _broadcast(self, source: bytes, frame: bytes) -> None:
        for name in self._config.broadcast.get(source, ()):
            hop = self._links.get(name)
            if hop is not None and hop.by_sleeve:
                self._forward(hop, source, name, frame, broadcast=True)

    # --- to a neighbour -----------------------------------------------------------------------------------

    def _forward(self, link: Link, source: bytes, peer: bytes, frame: bytes, *, broadcast: bool) -> None:
        is_ip = frame[12:14] == b"\x08\x00" and len(frame) >= ETHERNET + 20
        large = len(frame) > link.mtu + ETHERNET
        if is_ip and frame[20] & 0x40:  # DF
            if not large:
                self._gather(link, source, peer, frame, df=True)
            elif not broadcast:
                answer = fragmentation_needed(frame, link.mtu)
                self._consume(peer, source, answer)
        elif link.fragments or not is_ip:
            self._gather(link, source, peer, frame, df=False)
        elif not large:
            self._gather(link, source, peer, frame, df=True)
        else:  # nobody knows whether fragments arrive, so none are left to the underlay
            for part in fragments(frame, link.mtu):
                self._gather(link, source, peer, part, df=True)

    def _gather(self, link: Link, source: bytes, peer: bytes, frame: bytes, *, df: bool) -> None:
        queue = link.queue_df if df else link.queue
        queue.append(source + peer + struct.pack("!H", len(frame)) + frame)

    def _flush(self) -> None:
        """Send what was gathered, in as few packets as hold it."""
        for link in self._links.values():
            for queue, df in ((link.queue, False), (link.queue_df, True)):
                while queue:
                    parts, size = [self._config.name, queue[0]], NAME + len(queue[0])
                    taken = 1
                    while taken < len(queue) and size + len(queue[taken]) <= link.most:
                        size += len(queue[taken])
                        parts.append(queue[taken])
                        taken += 1
                    del queue[:taken]
                    self._send(link, b"".join(parts), df=df)

    def _send(self, link: Link, packet: bytes, *, df: bool) -> None:
        try:
            if df:
                header = struct.pack("!HHHH", PORT, PORT, 8 + len(packet), 0)
                link.sender.send(header + packet)
            elif len(packet) <= MOST_UDP:
                self._udp.sendto(packet, (link.to.address, PORT))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._too_large(link)
            elif error.errno not in (
                *(errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.ENETUNREACH),
                *(errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ENETDOWN),
            ):
                raise

    def _too_large(self, link: Link) -> None:
        """The path takes less than was thought: the kernel knows how much."""
        if not link.candidate or self._path_mtu(link.sender) - OVERHEAD < link.candidate:
            self._verify_mtu(link)

    def _verify_mtu(self, link: Link) -> None:
        """Take what the kernel knows for the path's MTU, and see whether packets of that length arrive."""
        whole = self._path_mtu(link.sender)
        link.mtu, link.most = whole - OVERHEAD, whole - UDP_OVERHEAD
        link.good, link.bad, link.candidate, link.attempts = 8, link.mtu + 1, link.mtu, 0
        self._test_mtu(link)
        self._tell()

    # --- from a neighbour ---------------------------------------------------------------------------------

    def _received(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                packet, (address, _) = self._udp.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue
            link = self._links.get(packet[:NAME])
            if link is None or link.to.address != address:
                continue
            for source, peer, frame in frames(packet):
                if len(frame) >= ETHERNET and not any(frame[:ETHERNET]):
                    if (source, peer) == (link.name, self._config.name):
                        self._special(link, frame)
                else:
                    self._consume(source, peer, frame)

    def _consume(self, source: bytes, peer: bytes, frame: bytes) -> None:
        """A frame of another peer's: for a third one, for pods here, or for all."""
        own = self._config.name
        if peer != own:
            self._unicast(source, peer, frame)
            return
        if source != own:
            self._macs[frame[6:12]] = source, time.monotonic()
        self._inject(frame)
        if source != own and self._where(frame[:6]) != own:
            self._broadcast(source, frame)

    def _inject(self, frame: bytes) -> None:
        try:
            self._port.send(frame)
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.EAGAIN, errno.EMSGSIZE, errno.ENETDOWN, errno.ENXIO):
                raise

    # --- special frames -----------------------------------------------------------------------------------

    def _special(self, link: Link, frame: bytes) -> None:
        if len(frame) == HEARTBEAT:
            first = not link.heard
            link.heard = time.monotonic()
            if first:
                self._tell()
            self._control(link, ESTABLISHED, 0)
            if self._fast is not None:
                self._control(link, FAST_HEARD, self._hears_fast(link))
        elif len(frame) == CONTROL:
            tag, value = struct.unpack("!BQ", frame[ETHERNET:])
            self._controlled(link, tag, value)
        elif len(frame) == FRAGMENT_TEST:
            self._control(link, FRAGMENTED, 0)
        else:
            self._control(link, MTU_VERIFIED, len(frame) - ETHERNET)

    def _controlled(self, link: Link, tag: int, value: int) -> None:
        if tag == ESTABLISHED and not link.established:
            link.established = True
            self._verify_mtu(link)
        elif tag == FRAGMENTED:
            link.fragments = True
        elif tag == MTU_VERIFIED and value == link.candidate:
            link.good = value
            self._search_mtu(link)
        elif tag == FAST_HEARD:
            link.hears = bool(value)
            self._choose(link)

    def _special_frame(self, link: Link, data: bytes, *, df: bool) -> None:
        frame = bytes(ETHERNET) + data
        header = self._config.name + self._config.name + link.name + struct.pack("!H", len(frame))
        self._send(link, header + frame, df=df)

    def _control(self, link: Link, tag: int, value: int) -> None:
        self._special_frame(link, struct.pack("!BQ", tag, value), df=True)

    def _test_mtu(self, link: Link) -> None:
        link.test_ends = time.monotonic() + MTU_FIRST_TIMEOUT * (1 << link.attempts)
        link.attempts += 1
        self._special_frame(link, bytes(link.candidate), df=True)

    def _search_mtu(self, link: Link) -> None:
        if link.good + 1 >= link.bad:
            link.candidate, link.test_ends = 0, 0.0
            link.mtu, link.most = link.good, link.good + OVERHEAD - UDP_OVERHEAD
            self._tell()
            return
        link.candidate, link.attempts = (link.good + link.bad) // 2, 0
        self._test_mtu(link)

    # --- fastdp -------------------------------------------------------------------------------------------

    def _hears_fast(self, link: Link) -> bool:
        return bool(link.fast_heard) and time.monotonic() - link.fast_heard < self._config.timeout

    def _fast_heartbeat(self, link: Link) -> None:
        """A frame as large as the datapath takes, to the peer's own datapath."""
        if self._fast is None:
            return
        head = link.to.datapath + self._config.name + struct.pack("!H", FAST_TYPE) + self._config.name
        try:
            self._fast.send(head.ljust(self._config.mtu + ETHERNET, b"\0"))
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE, errno.ENETDOWN, errno.ENXIO, errno.EAGAIN):
                raise

    def _fast_received(self) -> None:
        if self._fast is None:
            return
        for frame in _waiting(self._fast, 1 << 16):
            link = self._links.get(frame[ETHERNET : ETHERNET + NAME])
            if link is None:
                continue
            news = not self._hears_fast(link)
            link.fast_heard = time.monotonic()
            if news:  # also an answer to whether theirs arrive, at once
                self._control(link, FAST_HEARD, 1)
                link.next_fast = 0.0
            self._choose(link)

    def _choose(self, link: Link) -> None:
        """By which of the two a peer is reached: by fastdp where heartbeats come and arrive."""
        if self._fast is None:
            return
        now = time.monotonic()
        early = not link.fast_heard and now - link.begun < EARLY * self._config.fast
        alive = (early or self._hears_fast(link)) and (link.hears is not False or early)
        if alive is not link.by_sleeve:
            return
        link.by_sleeve = not alive
        if alive:
            self._flood(link, add=True)
        else:
            self._flood(link, add=False)
            self._forget_learned(link)
        self._macs = {mac: seen for mac, seen in self._macs.items() if seen[0] != link.name}
        link.next_fast = 0.0
        self._watch_port()
        print(f"{link.to.node} is reached by {'fastdp' if alive else 'sleeve'}", flush=True)

    def _flood(self, link: Link, *, add: bool) -> None:
        self._change_fdb(FdbEntry(self._config.vxlan, FLOOD, link.to.address), add=add)

    def _forget_learned(self, link: Link) -> None:
        """MACs that the kernel knows behind a peer, which it would go on sending there."""
        listing = subprocess.run(
            ["bridge", "-json", "fdb", "show", "dev", self._config.vxlan],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for entry in json.loads(listing or "[]"):
            if entry.get("dst") == link.to.address and entry.get("state") != "permanent":
                found = FdbEntry(self._config.vxlan, entry["mac"], link.to.address)
                self._change_fdb(found, add=False)

    def _change_fdb(self, entry: FdbEntry, *, add: bool) -> None:
        with netlink.Netlink() as links:
            change = netlink.add_fdb if add else netlink.delete_fdb
            for refusal in links.send([change(entry, links.index(entry.dev))]):
                if refusal.number not in (errno.EEXIST, errno.ENOENT):
                    raise refusal.error

    # --- clocks -------------------------------------------------------------------------------------------

    def _indexes(self) -> list[int]:
        names = [self._config.port, *([self._config.vxlan] if self._config.vxlan else [])]
        return list(map(socket.if_nametoindex, names))

    def _clocks(self) -> None:
        now = time.monotonic()
        if self._indexes() != self._devices:
            raise OSError(errno.ENODEV, f"{self._config.port} or {self._config.vxlan} was made anew")
        if self._path.stat().st_mtime_ns != self._read_at:
            self._config = self._read()
            self._follow()
        for link in self._links.values():
            if now >= link.next_heartbeat:
                self._special_frame(link, struct.pack("!Q", 0), df=True)
                period = self._config.slow if link.established else self._config.fast
                link.next_heartbeat = now + period
            if self._fast is not None and now >= link.next_fast:
                self._fast_heartbeat(link)
                settled = self._hears_fast(link) and link.hears
                link.next_fast = now + (self._config.slow if settled else self._config.fast)
            if link.established and now >= link.next_fragment_test:
                link.fragments = False
                self._special_frame(link, bytes(FRAGMENT_TEST - ETHERNET), df=False)
                link.next_fragment_test = now + FRAGMENT_TEST_INTERVAL
            if link.heard and now - link.heard > self._config.timeout and link.established:
                link.established = False
                self._tell()
            if link.candidate and now >= link.test_ends:
                if link.attempts < MTU_ATTEMPTS:
                    self._test_mtu(link)
                else:
                    link.bad = link.candidate
                    self._search_mtu(link)
            self._choose(link)
            if self._fast is not None and link.by_sleeve and now >= link.next_forget:
                # A peer that has not changed over yet goes on teaching the kernel where its pods are.
                self._forget_learned(link)
                link.next_forget = now + FORGET_SECONDS


# --- packets ----------------------------------------------------------------------------------------------


def frames(packet: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The frames of a packet with their source's and destination's peers; one that is cut short ends it."""
    at = NAME
    while at + FRAME <= len(packet):
        source, peer = packet[at : at + NAME], packet[at + NAME : at + 2 * NAME]
        (length,) = struct.unpack_from("!H", packet, at + 2 * NAME)
        at += FRAME
        if at + length > len(packet):
            return
        yield source, peer, packet[at : at + length]
        at += length


def _waiting(opened: socket.socket, size: int) -> Iterator[bytes]:
    """What has arrived, as much as is taken at once; nothing where the device is down or gone."""
    for _ in range(MOST_AT_ONCE):
        try:
            yield opened.recv(size)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.ENETDOWN, errno.ENXIO):
                return
            raise


def _with_checksum(header: bytes) -> bytes:
    blank = header[:10] + b"\0\0" + header[12:]
    return blank[:10] + struct.pack("!H", checksum(blank)) + blank[12:]


def fragmentation_needed(frame: bytes, mtu: int) -> bytes:
    """The ICMP error about a frame that is too large, as from the one it was for (``makeICMPFragNeeded``)."""
    ip = frame[ETHERNET:]
    length = 4 * (ip[0] & 15)
    message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + ip[: length + 8]
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0) + ip[16:20] + ip[12:16]
    return frame[6:12] + frame[:6] + frame[12:14] + _with_checksum(header) + message


def fragments(frame: bytes, mtu: int) -> Iterator[bytes]:
    """An IPv4 packet in pieces that fit, each in a frame of its own."""
    ip = frame[ETHERNET:]
    length = 4 * (ip[0] & 15)
    (total, _, flags) = struct.unpack_from("!HHH", ip, 2)
    payload = ip[length:total]
    most = (mtu - length) // 8 * 8
    first, more = flags & 0x1FFF, flags & 0xE000
    for at in range(0, len(payload), most):
        piece = payload[at : at + most]
        last = at + most >= len(payload)
        word = (more if last else more | 0x2000) | (first + at // 8)
        head = (
            ip[:2] + struct.pack("!H", length + len(piece)) + ip[4:6] + struct.pack("!H", word) + ip[8:length]
        )
        yield frame[:ETHERNET] + _with_checksum(head) + piece


def main(argv: Sequence[str]) -> int:
    """Run the router of a configuration file until it is ended."""
    if len(argv) != 1:
        print("usage: python -m testbed.relays.weave CONFIG.json", file=sys.stderr)
        return 2
    try:
        Router(Path(argv[0])).run()
    except (KernelRefused, OSError) as error:
        print(f"weave: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
