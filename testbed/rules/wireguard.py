"""WireGuard devices and their peers as words of ``wg set``, and out of what ``wg show all dump`` prints."""

from __future__ import annotations

from collections.abc import Iterable

from testbed.state import Peer, Wireguard

KEY_FILE = "/dev/stdin"
"""Where the words below have ``wg`` read a key that is secret, which is no word of a command line."""
NO_KEY = "/dev/null"


def device_words(wireguard: Wireguard) -> list[str]:
    """Have a device listen with its key, which is to be in KEY_FILE."""
    return ["private-key", KEY_FILE, "listen-port", str(wireguard.port)]


def peer_words(peers: Iterable[Peer]) -> list[str]:
    """Set peers: what each has takes the place of what it had; a preshared key is to be in KEY_FILE."""
    words: list[str] = []
    for peer in peers:
        words += ["peer", peer.key, "preshared-key", KEY_FILE if peer.psk else NO_KEY]
        words += ["endpoint", peer.endpoint]
        words += ["persistent-keepalive", str(peer.keepalive), "allowed-ips", ",".join(peer.allowed)]
    return words


def removal_words(peers: Iterable[Peer]) -> list[str]:
    """Remove peers; one that is not there is none to remove."""
    return [word for peer in peers for word in ("peer", peer.key, "remove")]


def parse_dump(text: str) -> tuple[dict[str, Wireguard], list[Peer]]:
    """``wg show all dump`` → devices by name, and their peers.

    A line is a device (name, private key, public key, port, mark) or a peer of it (name, public key, shared
    key, endpoint, allowed, last handshake, bytes received and sent, keepalive), with tabs between.
    """
    devices: dict[str, Wireguard] = {}
    peers: list[Peer] = []
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) == 5:
            devices[fields[0]] = Wireguard(int(fields[3]), fields[1])
            continue
        dev, key, psk, endpoint, allowed, *_, keepalive = fields
        ranges = () if allowed == "(none)" else tuple(allowed.split(","))
        seconds = 0 if keepalive == "off" else int(keepalive)
        peers.append(Peer(dev, key, endpoint, ranges, seconds, "" if psk == "(none)" else psk))
    return devices, peers
