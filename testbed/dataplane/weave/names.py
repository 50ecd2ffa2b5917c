"""What Weave calls things: peers, ports of the bridge, ipsets.

Sources: weave 2.8 ``npc/{shortname,selector,namespace}.go``, ``net/bridge.go``, ``plugin/net/cni.go``.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1, sha256

BRIDGE, DATAPATH = "weave", "datapath"
BRIDGE_PORT, DATAPATH_PORT, PCAP_PORT = "vethwe-bridge", "vethwe-datapath", "vethwe-pcap"
VXLAN = "vxlan-6784"
POD_PORT = "vethwepl"

CONTROL_PORT, SLEEVE_PORT, FASTDP_PORT = 6783, 6783, 6784
"""TCP of gossip, UDP of sleeve, UDP of fastdp: always the control port, and one more."""

SYMBOLS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789(){}[]+=_$%^!*|/?.;:@#~"
"""The 85 digits of an ipset's name, the least significant first."""


@lru_cache(65536)
def short(text: str) -> str:
    """The name of the ipset for a key: ``weave-`` and its SHA-1 in base 85, 31 characters at most."""
    number = int.from_bytes(sha1(text.encode(), usedforsecurity=False).digest())
    digits = []
    while number:
        number, digit = divmod(number, len(SYMBOLS))
        digits.append(SYMBOLS[digit])
    return "weave-" + "".join(digits)


@lru_cache(4096)
def peer_name(node: str) -> str:
    """A peer's name, which is its bridge's MAC: made of the machine's id; here of the node's name."""
    digest = sha256(f"weave peer {node}".encode()).digest()
    # Unicast and locally administered, as weave makes it (net/uuid.go).
    return ":".join(f"{byte:02x}" for byte in (digest[0] & 0xFE | 0x02, *digest[1:6]))


def pod_port(container_id: str) -> str:
    """The host end of a pod's veth pair."""
    return POD_PORT + container_id[: 15 - len(POD_PORT)]
