"""Machines of the fabric join the cluster and leave it; nodes get other addresses, their network restarts."""

from __future__ import annotations

from aiohttp import web

from testbed.api.server import delete_options, json_body, placed
from testbed.cluster.membership import Membership
from testbed.faults.service import Faults
from testbed.objects.kinds import BY_NAME
from testbed.objects.status import ApiError


def routes(membership: Membership, faults: Faults) -> list[web.RouteDef]:
    """All routes of the group; they stand before those of objects."""

    async def join(request: web.Request) -> web.Response:
        obj = placed(await json_body(request), BY_NAME["Node"], "")
        return web.json_response(await membership.join(obj), status=201)

    async def leave(request: web.Request) -> web.Response:
        wanted = (await delete_options(request)).get("preconditions") or {}
        uid, version = wanted.get("uid") or "", wanted.get("resourceVersion") or ""
        return web.json_response(await membership.leave(request.match_info["name"], uid=uid, version=version))

    async def readdress(request: web.Request) -> web.Response:
        addresses = (await json_body(request)).get("addresses")
        if not isinstance(addresses, list) or not all(isinstance(each, str) for each in addresses):
            raise ApiError.bad_request("addresses: must be a list of addresses")
        name = request.match_info["name"]
        async with faults.none_on(name):  # faults know a node by the address that it had
            return web.json_response(await membership.readdress(name, addresses))

    async def restart(request: web.Request) -> web.Response:
        await membership.restart(request.match_info["name"])
        return web.json_response({})

    return [
        web.post("/apis/testbed/v1/nodes/{name}/addresses", readdress),
        web.post("/apis/testbed/v1/nodes/{name}/restart", restart),
        web.post("/api/v1/nodes", join),
        web.delete("/api/v1/nodes/{name}", leave),
    ]
