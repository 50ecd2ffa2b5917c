"""``POST`` and ``DELETE`` of nodes: machines of the fabric join the cluster and leave it."""

from __future__ import annotations

from aiohttp import web

from testbed.api.server import json_body
from testbed.cluster.membership import Membership


def routes(membership: Membership) -> list[web.RouteDef]:
    """All routes of the group; they stand before those of objects."""

    async def join(request: web.Request) -> web.Response:
        return web.json_response(await membership.join(await json_body(request)), status=201)

    async def leave(request: web.Request) -> web.Response:
        return web.json_response(await membership.leave(request.match_info["name"]))

    return [
        web.post("/api/v1/nodes", join),
        web.delete("/api/v1/nodes/{name}", leave),
    ]
