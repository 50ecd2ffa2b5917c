"""``node``: a node leaves the cluster, or a machine joins it."""

from __future__ import annotations

from typing import Any

import msgspec

from testbed.scenario.model import Context, Step, step


@step("node")
class Node(Step, frozen=True, kw_only=True):
    """leave, join: the node's name, one of them; labels: more of those that a joining node gets.

    Goes on when all nodes follow. How soon each did is a sample of step ``node changes`` (docs/results.md).
    """

    leave: str = ""
    join: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.leave) == bool(self.join):
            raise ValueError("say which node is to leave, or which is to join")

    def run(self, context: Context) -> None:
        """Have it leave or join."""
        client, name = context.cluster.client, self.leave or self.join
        context.note("node leaves" if self.leave else "node joins", node=name)
        if self.leave:
            client.delete(f"/api/v1/nodes/{name}")
        else:
            metadata = {"name": name, "labels": self.labels}
            node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
            client.post("/api/v1/nodes", node)
        changes = context.cluster.programming(of="nodes")["items"]
        last = max(each["version"] for each in changes)
        seconds = max(each["seconds"] for each in changes if each["version"] == last)
        context.note("nodes follow", node=name, seconds=seconds)
        done = "left" if self.leave else "joined"
        context.report(f"  {name} has {done}; all nodes follow after {seconds:.2f} s")
