"""``testbed/v1`` about faults: apply, heal and list them; ``faults.service`` says what goes in and out."""

from __future__ import annotations

import contextlib

from aiohttp import web

from testbed.api.server import json_body
from testbed.api.testbed_routes import taken_over, upgrade
from testbed.cluster.messages import AnyMessage
from testbed.faults.model import described
from testbed.faults.service import Faults
from testbed.kernel.channel import AsyncChannel, ChannelClosed
from testbed.objects.status import ApiError


def routes(faults: Faults) -> list[web.RouteDef]:
    """The routes about faults."""

    async def apply(request: web.Request) -> web.Response:
        return web.json_response(await faults.apply(await json_body(request)))

    async def listing(request: web.Request) -> web.Response:
        return web.json_response(faults.listing())

    async def heal(request: web.Request) -> web.Response:
        return web.json_response(await faults.heal(request.match_info["id"]))

    async def heal_all(request: web.Request) -> web.Response:
        return web.json_response({"items": await faults.heal_all()})

    async def hold(request: web.Request) -> web.StreamResponse:
        """Until the client closes the connection, however it ends, the fault stays; then it is healed."""
        name = request.match_info["id"]
        if name not in faults.records:
            raise ApiError.of(404, "NotFound", f'no fault "{name}"')
        client = await upgrade(request)
        await faults.held(name, _end_of(client))
        client.close()
        return taken_over(request)

    async def kinds(request: web.Request) -> web.Response:
        return web.json_response({"items": described()})

    path = "/apis/testbed/v1/faults"
    return [
        web.get(path, listing),
        web.post(path, apply),
        web.delete(path, heal_all),
        web.delete(f"{path}/{{id}}", heal),
        web.post(f"{path}/{{id}}/hold", hold),
        web.get("/apis/testbed/v1/faultkinds", kinds),
    ]


async def _end_of(client: AsyncChannel[AnyMessage]) -> None:
    with contextlib.suppress(ChannelClosed):
        while True:
            await client.receive()
