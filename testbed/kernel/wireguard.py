"""WireGuard devices of the netns this thread is in: their keys and peers, by ``wg``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from testbed.kernel.run import run
from testbed.rules import wireguard
from testbed.state import Link, Peer


def configure(dev: str, link: Link | None, peers: Iterable[Peer]) -> None:
    """Give a device its key and port (link: as it is to be, None where it stays) and set peers of it.

    Raises CommandFailed.
    """
    own = link.wireguard if link is not None else None
    if own is not None:
        _set(dev, wireguard.device_words(own), own.key)
    by_psk: dict[str, list[Peer]] = {}
    for peer in peers:
        by_psk.setdefault(peer.psk, []).append(peer)
    for psk, several in by_psk.items():  # wg reads one key from its input, as often as it is named
        _set(dev, wireguard.peer_words(several), psk)


def remove_peers(dev: str, peers: Iterable[Peer]) -> None:
    """Raises CommandFailed."""
    _set(dev, wireguard.removal_words(peers), "")


def by_device(peers: Mapping[tuple[str, str], Peer]) -> dict[str, list[Peer]]:
    """Peers by the device that they are of."""
    found: dict[str, list[Peer]] = {}
    for peer in peers.values():
        found.setdefault(peer.dev, []).append(peer)
    return found


def listing() -> str:
    """What ``wg show all dump`` prints. Raises CommandFailed."""
    return run(["wg", "show", "all", "dump"]).stdout


def _set(dev: str, words: list[str], key: str) -> None:
    run(["wg", "set", dev, *words], stdin=key)
