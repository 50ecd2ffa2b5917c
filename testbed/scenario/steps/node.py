"""``node``: nodes leave the cluster and join it, boot with other addresses, restart their network."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from testbed.scenario.model import Context, Step, step


@step("node")
class Node(Step, frozen=True, kw_only=True):
    """leave, join, readdress, restart: the node's name, one of them; labels: more of those that a joining
    node gets; addresses: those that it boots with. A restart is that of kube-proxy and the dataplane's agent.

    Goes on when all nodes follow. How soon each did is a sample of step ``node changes`` (docs/results.md).
    """

    DONE: ClassVar[dict[str, str]] = {
        "leave": "has left",
        "join": "has joined",
        "readdress": "has another address",
        "restart": "has restarted its network",
    }

    leave: str = ""
    join: str = ""
    readdress: str = ""
    restart: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    addresses: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if len(asked := [act for act in self.DONE if getattr(self, act)]) != 1:
            raise ValueError(f"say one of {', '.join(self.DONE)}, with the node's name")
        if bool(self.addresses) != (asked == ["readdress"]):
            raise ValueError("readdress takes addresses, the others none")

    def run(self, context: Context) -> None:
        """Have it done."""
        act, name = next((act, getattr(self, act)) for act in self.DONE if getattr(self, act))
        context.note("node readdressed" if act == "readdress" else f"node {act}s", node=name)
        self._ask(context.cluster.client, act, name)
        changes = context.cluster.programming(of="nodes")["items"]
        last = max(each["written"] for each in changes if each["name"] == name)
        seconds = max(each["seconds"] for each in changes if each["written"] == last)
        context.note("nodes follow", node=name, seconds=seconds)
        context.report(f"  {name} {self.DONE[act]}; in force everywhere after {seconds:.2f} s")

    def _ask(self, client: Any, act: str, name: str) -> None:
        match act:
            case "leave":
                client.delete(f"/api/v1/nodes/{name}")
            case "join":
                metadata = {"name": name, "labels": self.labels}
                node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
                client.post("/api/v1/nodes", node)
            case "readdress":
                client.post(f"/apis/testbed/v1/nodes/{name}/addresses", {"addresses": self.addresses})
            case _:
                client.post(f"/apis/testbed/v1/nodes/{name}/restart", {})
