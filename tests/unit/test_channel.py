"""Channels between processes: what comes whole, what does not, and what is no message at all."""

from __future__ import annotations

import asyncio
import os
import resource
import struct

import pytest

from testbed.cluster.messages import AnyMessage, Done, GetNetns, Signal
from testbed.kernel.channel import AsyncChannel, Channel, ChannelClosed, socket_pair


def test_messages_and_descriptors_arrive_in_order() -> None:
    one, other = socket_pair()
    sender, receiver = Channel[AnyMessage](one, AnyMessage), Channel[AnyMessage](other, AnyMessage)
    reader, writer = os.pipe()
    sender.send(Done(1), [writer])
    sender.send(GetNetns(2, ("a", "b")))
    message, fds = receiver.receive()
    assert message == Done(1)
    os.write(fds[0], b"through")
    assert os.read(reader, 10) == b"through"
    assert receiver.receive() == (GetNetns(2, ("a", "b")), [])
    for fd in (reader, writer, *fds):
        os.close(fd)
    sender.close()
    with pytest.raises(ChannelClosed):
        receiver.receive()
    receiver.close()


@pytest.mark.parametrize("junk", [struct.pack("!IB", 3, 0) + b"abc", struct.pack("!IB", 1, 2) + b"\x80"])
def test_what_is_no_message_ends_the_channel(junk: bytes) -> None:
    one, other = socket_pair()
    one.sendall(junk)
    with pytest.raises(ChannelClosed):
        Channel[AnyMessage](other, AnyMessage).receive()

    async def asynchronous() -> None:
        left, right = socket_pair()
        channel = AsyncChannel[AnyMessage](right, AnyMessage)
        left.sendall(junk)
        with pytest.raises(ChannelClosed):
            await channel.receive()
        assert channel.closed
        left.close()

    asyncio.run(asynchronous())
    one.close()
    other.close()


def test_descriptors_that_do_not_fit_end_the_channel() -> None:
    one, other = socket_pair()
    Channel[AnyMessage](one, AnyMessage).send(Signal(1, 2), [one.fileno()] * 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.dup(0)]
    while fillers[-1] <= highest:  # no number below is free now
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 6, hard))
    try:
        with pytest.raises(ChannelClosed):
            Channel[AnyMessage](other, AnyMessage).receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    one.close()
    other.close()


def test_an_answer_goes_to_who_asked() -> None:
    async def run() -> None:
        one, other = socket_pair()
        asking: AsyncChannel[AnyMessage] = AsyncChannel(one, AnyMessage)
        answering: AsyncChannel[AnyMessage] = AsyncChannel(other, AnyMessage)
        first, second = asking.new_id(), asking.new_id()
        waiting = [asyncio.create_task(asking.request(GetNetns(number, ()))) for number in (first, second)]
        await answering.receive()
        await answering.receive()
        for answer in (Signal(99, 1), Done(second), Done(first)):
            answering.send(answer)
        assert [(await task)[0] for task in waiting] == [Done(first), Done(second)]
        assert (await asking.receive())[0] == Signal(99, 1)
        answering.close()
        with pytest.raises(ChannelClosed):
            await asking.request(Done(asking.new_id()))
        asking.close()

    asyncio.run(run())
