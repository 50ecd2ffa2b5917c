"""A process that opens a listening socket in a host's netns, hands it over and ends.

No thread of the daemon enters a namespace; a socket stays in the one it was made in.
"""

from __future__ import annotations

import socket

from testbed.cluster.messages import AnyMessage, Listening
from testbed.kernel.channel import Channel

BACKLOG = 128


def main(sock: socket.socket, name: str) -> None:
    """Open the port that is the last word of ``name``, on all addresses, for whoever is at the other end."""
    port = int(name.rpartition(" ")[2])
    with listen(port) as listener:
        Channel[AnyMessage](sock, AnyMessage).send(Listening(port), [listener.fileno()])


def listen(port: int) -> socket.socket:
    """A listening socket of both families, of IPv4 alone where there is no IPv6."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
