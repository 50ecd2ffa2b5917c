"""What of a device's offloads a state asks for, by ioctl. Source: linux/ethtool.h, linux/sockios.h."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

from testbed.errors import KernelRefused

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17


def set_tx_checksum(name: str, on: bool) -> None:
    """Whether a device of this thread's netns leaves checksums of what it sends to hardware, which a veth
    pair never fills in. Raises KernelRefused."""
    value = array.array("B", struct.pack("=II", ETHTOOL_STXCSUM, on))
    request = struct.pack("@16sP", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, SIOCETHTOOL, request)
        except OSError as error:
            what = f"set {name} tx checksumming {'on' if on else 'off'}"
            raise KernelRefused(what, error.errno or 0, error.strerror or "") from error
