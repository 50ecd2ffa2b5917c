"""``rollout``: a Deployment's pods are replaced by new ones, as ``kubectl rollout restart`` does it."""

from __future__ import annotations

import time
from typing import Any

from testbed.errors import NotConverged
from testbed.scenario.model import Context, Step, step
from testbed.wait import wait_until

RESTARTED = "kubectl.kubernetes.io/restartedAt"


@step("rollout")
class Rollout(Step, frozen=True, kw_only=True):
    """Change the pod template of ``deployment`` (``namespace/name`` or ``name``) and wait for the rollout.

    template: a patch of the template that goes with it, if any. Old pods may still be ending when it is
    done, as with kubectl.
    """

    deployment: str
    template: dict[str, Any] | None = None
    timeout: float = 120.0

    def run(self, context: Context) -> None:
        """Change and wait; the seconds it took are recorded."""
        namespace, _, name = self.deployment.rpartition("/")
        path = f"/apis/apps/v1/namespaces/{namespace or 'default'}/deployments/{name}"
        patch = self.template or {}
        metadata = patch.get("metadata") or {}
        annotations = {**(metadata.get("annotations") or {}), RESTARTED: str(time.time())}
        template = {**patch, "metadata": {**metadata, "annotations": annotations}}
        client = context.cluster.client
        client.request(
            "PATCH",
            path,
            {"spec": {"template": template}},
            content_type="application/merge-patch+json",
        )
        context.note("rollout begun", deployment=self.deployment)
        state: dict[str, Any] = {}

        def rolled_out() -> bool:
            state.update(client.get(path))
            return complete(state)

        try:
            seconds = wait_until(rolled_out, self.timeout, f"rollout of {name}", interval=0.05)
        except NotConverged as late:
            raise NotConverged(late.what, late.waited, str(state.get("status"))) from late
        context.note("rollout done", deployment=self.deployment, seconds=seconds)
        context.report(f"  {self.deployment} rolled out in {seconds:.1f} s")


def complete(deployment: dict[str, Any]) -> bool:
    """Whether all replicas are new and available. Source: kubectl, ``polymorphichelpers``."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) == status.get("replicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
    )
