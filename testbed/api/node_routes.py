"""``POST`` and ``DELETE`` of nodes: machines of the fabric join the cluster and leave it."""

from __future__ import annotations

from aiohttp import web

from testbed.api.server import delete_options, json_body, placed
from testbed.cluster.membership import Membership
from testbed.objects.kinds import BY_NAME


def routes(membership: Membership) -> list[web.RouteDef]:
    """All routes of the group; they stand before those of objects."""

    async def join(request: web.Request) -> web.Response:
        obj = placed(await json_body(request), BY_NAME["Node"], "")
        return web.json_response(await membership.join(obj), status=201)

    async def leave(request: web.Request) -> web.Response:
        wanted = (await delete_options(request)).get("preconditions") or {}
        uid, version = wanted.get("uid") or "", wanted.get("resourceVersion") or ""
        return web.json_response(await membership.leave(request.match_info["name"], uid=uid, version=version))

    return [
        web.post("/api/v1/nodes", join),
        web.delete("/api/v1/nodes/{name}", leave),
    ]
