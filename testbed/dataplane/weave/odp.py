"""fastdp's flows on an Open vSwitch datapath: who the source and the destination are is in the VNI.

Port 1 is ``vethwe-datapath``, port 2 the tunnel. A frame's VNI is the short id of its source's peer and, 12
bits up, that of the peer it is sent to; a frame for somebody else is sent on with its VNI as it is. Where a
MAC is is learned from what comes in, for ten minutes; what has no known place goes along the tree of its
source. weaver makes such flows one by one as misses come up, and lets them go unused after five minutes; here
they are all there from the start. Sources: weave 2.8 ``router/fastdp.go``; ovs-actions(7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

PORT, TUNNEL = 1, 2
BITS = 12
"""Of a short id."""
MAC_SECONDS = 600
FAR, NEAR = 10, 30
"""Tables: of MACs behind other peers, and of MACs here, which are not sent on."""


def short_ids(peers: Iterable[str]) -> dict[str, int]:
    """Peer → its short id. weaver draws it at random, and again where two have the same; here the name
    decides, and of two that are the same the later name draws again."""
    found: dict[str, int] = {}
    for peer in sorted(peers):
        attempt = 0
        while (number := _drawn(peer, attempt)) in found.values():
            attempt += 1
        found[peer] = number
    return found


def _drawn(peer: str, attempt: int) -> int:
    return int.from_bytes(sha256(f"weave short id {peer} {attempt}".encode()).digest()[:2]) >> (16 - BITS)


def vni(source: int, destination: int) -> int:
    """The network id of a frame from one peer to another, by their short ids."""
    return source | destination << BITS


def flows(
    me: str,
    addresses: Mapping[str, str],
    unicast: Mapping[str, str],
    broadcast: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    """The flows of one peer, as ``ovs-ofctl`` reads them. addresses: peer → node's; unicast, broadcast: ways
    through the mesh (``mesh``)."""
    ids = short_ids(addresses)

    def sent(source: str, hop: str, out: str) -> str:
        number = vni(ids[source], ids[hop])
        return f"set_field:{number:#x}->tun_id,set_field:{addresses[hop]}->tun_dst,{out}"

    own = ",".join(sent(me, hop, f"output:{TUNNEL}") for hop in broadcast.get(me, ()))
    learn_near = (
        f"learn(table={NEAR},hard_timeout={MAC_SECONDS},priority=10,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])"
    )
    yield f"table=0,priority=100,in_port={PORT},dl_dst=01:80:c2:00:00:00,actions=drop"
    yield f"table=0,priority=10,in_port={PORT},actions={learn_near},resubmit(,{FAR})"
    yield f"table={FAR},priority=0,actions={own or 'drop'}"
    for source, hop in unicast.items():
        back = vni(ids[me], ids[source])
        learn_far = (
            f"learn(table={FAR},hard_timeout={MAC_SECONDS},priority=10,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],"
            f"load:{back:#x}->NXM_NX_TUN_ID[],load:{_number(addresses[hop]):#x}->NXM_NX_TUN_IPV4_DST[],"
            f"output:NXM_OF_IN_PORT[])"
        )
        comes = f"in_port={TUNNEL},tun_id={vni(ids[source], ids[me]):#x}"
        yield f"table=0,priority=20,{comes},actions={learn_far},output:{PORT},resubmit(,{NEAR})"
        onward = ",".join(sent(source, other, "in_port") for other in broadcast.get(source, ()))
        if onward:
            yield f"table={NEAR},priority=5,{comes},actions={onward}"
        relayed = f"in_port={TUNNEL},tun_id={ids[source] << BITS:#x}/{((1 << BITS) - 1) << BITS:#x}"
        yield f"table=0,priority=10,{relayed},actions=set_field:{addresses[hop]}->tun_dst,in_port"


def _number(address: str) -> int:
    one, two, three, four = map(int, address.split("."))
    return one << 24 | two << 16 | three << 8 | four
